"""Reads meta.db to check it: the rules, paths, and lists of blocks. Never writes to it.

Used by one thread or process that is not the one which writes. Of a mounted DATA every question is a read transaction
of its own, which gives way when the WAL has grown meanwhile: the writer would have to wait for it.
"""

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import msgspec

from syncer.errors import DeadlinePassed, LocalDamage
from syncer.meta import schema
from syncer.meta.columns import column_findings
from syncer.meta.findings import Finding
from syncer.meta.journal import read_records
from syncer.meta.overlays import REGION_BYTES
from syncer.meta.rules import BLOCKS, CONTENT, NAMESPACE, NO_PLACE, Rule
from syncer.meta.tablecheck import as_bytes, bounds_of, fill_files, overlay_findings, run_rule
from syncer.values import ROOT_INODE, BlockId, PackId

T = TypeVar("T")

TRIES = 20
LOOK_S = 0.05
GIVE_WAY_S = 60.0
BATCH = 256
DEPTH_MAX = 10_000
"""Directories below each other: more are a cycle."""
NAMES_MAX = 1000
"""So many names of one file are told."""


class CheckReader:
    """A connection that reads one meta.db. Raises: LocalDamage, from every method, when SQLite cannot read it."""

    def __init__(self, path: Path, *, mounted: bool, wal_limit_bytes: int = 0) -> None:
        """*mounted*: somebody writes to it. Otherwise it was closed in good order, and no file is touched."""
        self.path = path
        self.mounted = mounted
        self._wal_limit_bytes = wal_limit_bytes
        how = "mode=ro" if mounted else "mode=ro&immutable=1"
        self.uri = f"file:{_quoted(path)}?{how}"
        self._connection = sqlite3.connect(self.uri, uri=True, isolation_level=None, check_same_thread=False)
        try:
            for pragma in ("temp_store = FILE", "cache_size = -65536", "busy_timeout = 5000"):
                self._connection.execute(f"PRAGMA {pragma}")
            version = self.state("schema")
        except sqlite3.DatabaseError as error:
            self._connection.close()
            raise LocalDamage(f"{path}: {error}") from error
        if version != schema.VERSION:
            self._connection.close()
            raise LocalDamage(f"{path}: made by another version of syncer", hint="use that version")

    def close(self) -> None:
        self._connection.close()

    # --- asking --------------------------------------------------------------------------------------------------

    def ask(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """What *work* returns; it sees one commit. Called again from the start when it must give way.

        Raises: DeadlinePassed: there are more changes all the time than a question takes.
        """
        if not self.mounted:
            return self._ask(work)
        for _ in range(TRIES):
            with contextlib.suppress(_GaveWay), self._watched():
                return self._ask(work)
            self._await_short_log()
        raise DeadlinePassed("the file system changes faster than it can be checked", hint="try again when it is calm")

    def _ask(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            if self._connection.in_transaction:  # the end of the last question was interrupted, too
                self._connection.execute("ROLLBACK")
            self._connection.execute("BEGIN")
            try:
                return work(self._connection)
            finally:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorname == "SQLITE_INTERRUPT":
                raise _GaveWay from error
            raise LocalDamage(f"{self.path}: {error}") from error
        except sqlite3.DatabaseError as error:
            raise LocalDamage(f"{self.path}: {error}") from error

    def _log_bytes(self) -> int:
        try:
            return os.stat(f"{self.path}-wal").st_size
        except FileNotFoundError:
            return 0

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        """While the body runs, a WAL that has become long ends its query."""
        done = threading.Event()

        def watch() -> None:
            while not done.wait(LOOK_S):
                if self._log_bytes() > self._wal_limit_bytes:
                    self._connection.interrupt()

        watcher = threading.Thread(target=watch, name="give way", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()

    def _await_short_log(self) -> None:
        end = time.monotonic() + GIVE_WAY_S
        while self._log_bytes() > self._wal_limit_bytes and time.monotonic() < end:
            time.sleep(LOOK_S)

    # --- rules ---------------------------------------------------------------------------------------------------

    def integrity(self) -> list[Finding]:
        """What SQLite itself finds wrong with the file."""
        tables = self.ask(
            lambda c: [r[0] for r in c.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY 1")]
        )
        scopes = [f"({name})" for name in tables] if self.mounted else [""]  # one by one: shorter transactions
        found: list[Finding] = []
        for scope in scopes:
            try:
                lines = self.ask(lambda c, scope=scope: c.execute(f"PRAGMA integrity_check{scope}").fetchall())  # type: ignore[misc]
            except LocalDamage as error:
                lines = [(str(error),)]
            found += [Finding("database", str(line[0])) for line in lines if line[0] != "ok"]
        return found

    def run(self, rules: Iterable[Rule]) -> list[Finding]:
        """What breaks one of the *rules*."""
        found: list[Finding] = []
        for rule in rules:
            if not (rule.still and self.mounted):
                found += self.ask(lambda c, rule=rule: run_rule(c, rule))  # type: ignore[misc]
        return found

    def columns(self) -> list[Finding]:
        """Values that no column can have. While there are any, nothing else here may be asked."""
        return self.ask(column_findings)

    def tables(self) -> list[Finding]:
        """Every rule among the tables alone."""
        found = self.run((*NAMESPACE, *CONTENT, *BLOCKS))
        return found + self.ask(overlay_findings)

    # --- files ---------------------------------------------------------------------------------------------------

    def list_files(self, dirty: Iterable[tuple[int, int]], cache: Iterable[tuple[BlockId, int]]) -> None:
        """Fill the tables of what lies in the folders: (number, length) of dirty files, (id, size) of cache files."""
        fill_files(self._connection, dirty, cache)

    def short_overlays(self) -> list[Finding]:
        """Overlays whose files are shorter than what they hold, by the list of files."""

        def work(connection: sqlite3.Connection) -> list[Finding]:
            found: list[Finding] = []
            last = connection.execute("SELECT dirty, max(region), inode, bounds FROM overlays GROUP BY dirty")
            for dirty, region, inode, encoded in last:
                with contextlib.suppress(msgspec.MsgspecError, IndexError):
                    end = region * REGION_BYTES + bounds_of(encoded)[-1]
                    row = connection.execute("SELECT length FROM dirty_files WHERE number = ?", (dirty,)).fetchone()
                    if row is not None and row[0] < end:
                        text = f"dirty/{dirty} has {row[0]} bytes of {end}"
                        found.append(Finding("dirty-short", text, inode, lost=True))
            return found

        return self.ask(work)

    def cached_files(self, after: int) -> list[tuple[int, BlockId, int]]:
        """Blocks that are files of the cache, numbered above *after*: (number, id, size), a batch of them."""
        query = (
            "SELECT number, id, size FROM blocks NOT INDEXED WHERE number > ? AND cached = 1"
            " AND number NOT IN (SELECT number FROM settling) ORDER BY number LIMIT ?"
        )
        return self.ask(lambda c: [(n, BlockId(i), size) for n, i, size in c.execute(query, (after, BATCH))])

    def cached_rows(self, after: int) -> list[tuple[int, BlockId, bytes]]:
        """Blocks that are rows, numbered above *after*: (number, id, bytes), a batch of them."""
        query = (
            "SELECT b.number, b.id, d.data FROM block_data d CROSS JOIN blocks b ON b.number = d.number"
            " WHERE d.number > ? AND b.cached = 2 ORDER BY d.number LIMIT ?"
        )
        return self.ask(lambda c: [(n, BlockId(i), bytes(data)) for n, i, data in c.execute(query, (after, BATCH))])

    def is_cached_file(self, number: int) -> bool:
        query = "SELECT cached = 1 FROM blocks WHERE number = ?"
        return self.ask(lambda c: (c.execute(query, (number,)).fetchone() or (0,))[0] == 1)

    def block_of(self, block_id: BlockId) -> tuple[int, int, int] | None:
        """(number, how it is cached, size) of a block."""
        query = "SELECT number, cached, size FROM blocks WHERE id = ?"
        row = self.ask(lambda c: c.execute(query, (block_id,)).fetchone())
        return None if row is None else (int(row[0]), int(row[1]), int(row[2]))

    def waiting(self, numbers: Iterable[int]) -> set[int]:
        """Those of the blocks that wait here to be sent."""
        query = "SELECT 1 FROM blocks WHERE number = ? AND pack IS NULL AND cached > 0 AND refs > 0"
        return self.ask(lambda c: {n for n in numbers if c.execute(query, (n,)).fetchone()})

    def is_on_its_way(self, number: int) -> bool:
        """Whether the block waits here to be sent, and can be as far as DATA knows."""
        damaged = "SELECT 1 FROM damaged WHERE number = ?"
        return bool(self.waiting([number])) and not self.ask(lambda c: c.execute(damaged, (number,)).fetchone())

    def is_indexed(self, pack_id: PackId) -> bool:
        """Whether an index lists the pack, as far as DATA knows."""
        query = "SELECT 1 FROM packs WHERE id = ? AND indexed IS NOT NULL"
        return self.ask(lambda c: c.execute(query, (pack_id,)).fetchone()) is not None

    def listing(self, seq: int) -> list[tuple[bytes, int, int, list[tuple[BlockId, int, int, int]]]]:
        """(pack id, size, kind, [(block id, offset, sealed bytes, plain bytes)]) that index *seq* of ours lists."""

        def work(connection: sqlite3.Connection) -> list[tuple[bytes, int, int, list[tuple[BlockId, int, int, int]]]]:
            packs = connection.execute("SELECT number, id, size, kind FROM packs WHERE indexed = ?", (seq,)).fetchall()
            blocks = "SELECT id, pack_offset, sealed_bytes, size FROM blocks WHERE pack = ? ORDER BY pack_offset"
            return [(i, size, kind, connection.execute(blocks, (n,)).fetchall()) for n, i, size, kind in packs]

        return self.ask(work)

    def rebuilds(self) -> bool:
        """Whether the next snapshot makes every tree anew."""
        return not self.ask(lambda c: c.execute("SELECT 1 FROM trees LIMIT 1").fetchone())

    def homeless(self) -> dict[int, BlockId]:
        """Blocks with bytes in files whose place on the remote is not known, and that are not here."""
        query = f"SELECT number, id FROM blocks WHERE refs > 0 AND (pack IS NULL AND cached = 0 OR {NO_PLACE})"
        return self.ask(lambda c: {number: BlockId(block_id) for number, block_id in c.execute(query)})

    def copies(self, numbers: Iterable[int]) -> dict[int, tuple[BlockId, bytes | None]]:
        """Of those of the blocks that are cached: the id, and the bytes where they are a row."""
        query = (
            "SELECT b.id, d.data FROM blocks b LEFT JOIN block_data d ON d.number = b.number AND b.cached = 2"
            " WHERE b.number = ? AND b.cached > 0"
        )

        def work(connection: sqlite3.Connection) -> dict[int, tuple[BlockId, bytes | None]]:
            rows = {number: connection.execute(query, (number,)).fetchone() for number in numbers}
            return {number: (BlockId(row[0]), row[1]) for number, row in rows.items() if row is not None}

        return self.ask(work)

    def usage(self) -> int:
        """What the budget counts for the files of the cache, bytes."""
        query = "SELECT ifnull(sum((size + 4095) / 4096 * 4096), 0) FROM blocks WHERE cached = 1"
        return int(self.ask(lambda c: c.execute(query).fetchone()[0]))

    # --- single values -------------------------------------------------------------------------------------------

    def state(self, key: str) -> int | bytes | None:
        def work(connection: sqlite3.Connection) -> int | bytes | None:
            row = connection.execute("SELECT value FROM state WHERE key = ?", (key,)).fetchone()
            return row[0] if row else None

        return self.ask(work)

    def snapshots(self) -> list[tuple[int, int, bytes, bytes]]:
        """(peer, seq, root, record) of the snapshots that are known here."""
        return self.ask(lambda c: c.execute("SELECT peer, seq, root, record FROM snapshots").fetchall())

    # --- whose it is ---------------------------------------------------------------------------------------------

    def with_paths(self, found: Sequence[Finding]) -> list[Finding]:
        """The findings with the paths of the files they are about, and whether their bytes are lost."""
        numbers = {finding.block for finding in found if finding.block is not None}
        inodes = self.ask(lambda c: _users_of(c, numbers))
        pending = self.ask(lambda c: {n for n in numbers if _is_pending(c, n)})
        result = []
        for finding in found:
            if finding.block is not None:
                paths = [path for number in inodes.get(finding.block, ()) for path in self.paths(number)]
                lost = finding.lost or (finding.block in pending and finding.code in _TAKES_BYTES)
                finding = replace(finding, paths=tuple(sorted(set(paths))), lost=lost)
            elif finding.inode is not None:
                paths = self.paths(finding.inode)
                if finding.name is not None:
                    paths = [path.rstrip(b"/") + b"/" + finding.name for path in paths]
                finding = replace(finding, paths=tuple(paths))
            result.append(finding)
        return result

    def paths(self, number: int) -> list[bytes]:
        """Every path of an inode, from the root of the file system; one that hangs nowhere begins with `#`."""
        return self.ask(lambda c: _paths(c, number))

    def paths_of_blocks(self, numbers: Iterable[int]) -> dict[int, list[bytes]]:
        """The paths of the files that name each of the blocks."""
        users = self.ask(lambda c: _users_of(c, set(numbers)))
        return {block: sorted({p for n in inodes for p in self.paths(n)}) for block, inodes in users.items()}


_TAKES_BYTES = ("cache-missing", "cache-size", "cache-damaged", "row-size", "row-damaged", "block-place")


def check_journal(reader: CheckReader, data: Path) -> None:
    """Of a DATA that was closed in good order. Raises: LocalDamage: the journal is not what follows the last commit."""
    position = reader.state("journal_position")
    for _ in read_records(data / "journal", position if isinstance(position, int) else 0):
        break


class _GaveWay(Exception):
    """The WAL has grown while we read."""


def replay(data: Path) -> int:
    """Bring meta.db in *data* up to its journal, as a mount does; returns how many operations that took.

    Raises: LocalDamage.
    """
    from syncer.meta.store import MetaStore

    try:
        meta = MetaStore(data)
        meta.close()
    except sqlite3.DatabaseError as error:
        raise LocalDamage(f"{data / 'meta.db'}: {error}") from error
    return meta.replayed


def _quoted(path: Path) -> str:
    from urllib.parse import quote

    return quote(os.fsencode(path.absolute()))


def _is_pending(connection: sqlite3.Connection, number: int) -> bool:
    row = connection.execute("SELECT pack IS NULL AND refs > 0 FROM blocks WHERE number = ?", (number,)).fetchone()
    return row is not None and bool(row[0])


def _users_of(connection: sqlite3.Connection, numbers: set[int]) -> dict[int, list[int]]:
    """The inodes whose extents name each of the blocks: one look at all extents, however many blocks."""
    if not numbers:
        return {}
    connection.execute("CREATE TEMP TABLE IF NOT EXISTS asked(number INTEGER PRIMARY KEY)")
    connection.execute("DELETE FROM asked")
    connection.executemany("INSERT INTO asked VALUES (?)", [(number,) for number in numbers])
    users: dict[int, list[int]] = {}
    rows = connection.execute(
        "SELECT DISTINCT e.source, e.inode FROM extents e CROSS JOIN asked a ON a.number = e.source"
    )
    for block, inode in rows:
        users.setdefault(block, []).append(inode)
    return users


def _paths(connection: sqlite3.Connection, number: int) -> list[bytes]:
    def names(inode: int) -> list[tuple[int, bytes]]:
        rows = connection.execute(
            "SELECT parent, name FROM dentries WHERE inode = ? ORDER BY cookie LIMIT ?", (inode, NAMES_MAX)
        )
        return [(parent, as_bytes(name)) for parent, name in rows]

    def above(inode: int, path: bytes) -> bytes:
        for _ in range(DEPTH_MAX):
            if inode == ROOT_INODE:
                return b"/" + path
            found = names(inode)
            if not found:
                break
            inode, name = found[0]
            path = name + b"/" + path if path else name
        return b"#%d" % inode + (b"/" + path if path else b"")

    found = [above(parent, name) for parent, name in names(number)] if number != ROOT_INODE else [b"/"]
    return found or [b"#%d" % number]
