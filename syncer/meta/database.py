"""meta.db with its journal: one writer, redo records, commits, checkpoints, replay.

Everything but `checkpoint` and `sync` runs on the event loop's thread. Tables (inodes.py, namespace.py, extents.py,
blocktable.py) derive from `Table`; their mutating methods are decorated with `journaled`.
"""

import contextlib
import errno
import functools
import logging
import os
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import msgspec

from syncer.errors import LocalDamage, recover_command
from syncer.meta import schema
from syncer.meta.doubt import DOUBTED, DoubtNote
from syncer.meta.journal import Journal, read_records
from syncer.meta.reserve import RESERVE, RESERVE_BYTES, Reserve, free_bytes

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T", bound="Table")

log = logging.getLogger(__name__)

UNCOMMITTED_OPERATIONS = 512
UNCOMMITTED_BYTES = 1024 * 1024
"""So many operations, or bytes of them in the journal, are committed before more is written; at four times as many
nothing more at all is recorded before."""
PAGE_BYTES = 4096
JOURNAL_SHARE_BYTES = RESERVE_BYTES // 4
"""What the journal gets of the reserve; the WAL gets the rest."""
SHRINK_PAGES = 1024
"""A checkpoint gives so many unused pages of meta.db back to the disk, once there are that many."""
CACHE_BYTES = 32 * 1024 * 1024
"""What SQLite keeps of meta.db in memory, unless told otherwise."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode


def decode_record(payload: bytes) -> tuple[int, Sequence[Any]]:
    """(operation, arguments) of a record of the journal."""
    operation, arguments = _decode(payload)
    return operation, arguments


def journaled(operation: int) -> Callable[[Callable[Concatenate[T, P], R]], Callable[Concatenate[T, P], R]]:
    """Mark a method of a Table as a journaled mutation with the stable record number *operation*.

    The method must be a deterministic function of its arguments and the tables, must not fail once its arguments
    are right (check first, in the caller), and takes its arguments by position: they are the record.
    """

    def decorate(method: Callable[Concatenate[T, P], R]) -> Callable[Concatenate[T, P], R]:
        @functools.wraps(method)
        def call(self: T, /, *args: P.args, **kwargs: P.kwargs) -> R:
            begin = self.database.record(_encode((operation, args)))
            try:
                return method(self, *args, **kwargs)
            except BaseException as error:
                self.database.take_back(begin)
                if isinstance(error, sqlite3.Error):
                    raise refused(error) from error
                raise

        call.operation = operation  # type: ignore[attr-defined]
        return call

    return decorate


def _opened_private(path: Path) -> int:
    """A descriptor of the file, for the owner's eyes only; SQLite gives its WAL and shared memory the mode it has.

    To be closed after every connection of this process: closing any descriptor of a file ends the locks on it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    os.fchmod(descriptor, 0o600)
    return descriptor


def refused(error: sqlite3.Error) -> OSError:
    """What SQLite has refused, as the outcome of a call."""
    full = getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_FULL
    return OSError(errno.ENOSPC if full else errno.EIO, f"meta.db: {error}")


class Table:
    """A group of tables of meta.db with the operations that change them."""

    def __init__(self, database: "Database") -> None:
        self.database = database
        self.execute = database.connection.execute
        self.executemany = database.connection.executemany
        for name in dir(type(self)):
            method = getattr(type(self), name)
            operation = getattr(method, "operation", None)
            if operation is not None:
                database.register(operation, functools.partial(method.__wrapped__, self))

    def flush(self) -> None:
        """Write what is kept in memory into the tables; called before each commit."""

    def forget_cached(self) -> None:
        """Drop what is kept in memory, because the tables were rolled back under it."""


class Database:
    """The connection that writes, its open transaction and the journal.

    A transaction is opened by the first mutation after a commit. `pending` then becomes True and `on_pending` is
    called, so that the owner can commit a little later.
    """

    def __init__(self, path: Path, journal_folder: Path) -> None:
        """Open or create. Nothing is replayed before `recover`, which must come first.

        Raises:
            LocalDamage: meta.db cannot be read or has a version this syncer does not know.
        """
        self.path = path
        self._descriptor = _opened_private(path)
        self.reserve = Reserve(path.with_name(RESERVE))
        self.connection = sqlite3.connect(path, isolation_level=None, cached_statements=512)
        try:
            self._open_with_room()
        except sqlite3.DatabaseError as error:
            self.connection.close()
            os.close(self._descriptor)
            is_full = not self.reserve.size and free_bytes(path.parent) < RESERVE_BYTES
            hint = "make room on that disk" if is_full else f"rebuild it: {recover_command(path.parent)}"
            raise LocalDamage(f"{path}: {error}", hint=hint) from error
        self._journal_folder = journal_folder
        self._replay: dict[int, Callable[..., object]] = {}
        self._tables: list[Table] = []
        self.journal: Journal | None = None
        self.doubt_note = DoubtNote(path.with_name(DOUBTED))
        self._is_log_doubted = False
        """Whether the WAL may lack what the disk did not take; until all of it is in meta.db."""
        self.pending = False
        self._is_behind = False
        """Whether the tables lack what the journal has, because they were rolled back."""
        self.on_rolled_back: list[Callable[[], None]] = []
        self.on_pending: Callable[[], None] = lambda: None
        self.on_commit: list[Callable[[], None]] = []
        self._operations = 0
        self._unrecorded_bytes = 0
        self._mark = 0
        self.committed_position = self.state_integer("journal_position")
        self.kept_bytes = 0
        """As much of the journal stays although meta.db has it, if it then reaches back to the last snapshot."""

    def _open_with_room(self) -> None:
        """On a full disk with the room that is kept for that: SQLite makes files beside meta.db."""
        try:
            self._open()
        except sqlite3.OperationalError:
            if not self.reserve.release():
                raise
            self._open()

    def _open(self) -> None:
        execute = self.connection.execute
        if not execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone():
            schema.create(self.connection)
        execute("PRAGMA journal_mode = WAL")
        execute("PRAGMA synchronous = NORMAL")
        execute("PRAGMA wal_autocheckpoint = 0")
        execute("PRAGMA journal_size_limit = 0")  # a WAL that starts over gives its room back
        execute("PRAGMA secure_delete = OFF")  # Debian's default writes zeros over what is deleted, through the WAL
        self.keep_in_memory(CACHE_BYTES)
        execute("PRAGMA temp_store = MEMORY")
        if schema.migrate(self.connection) != schema.VERSION:
            raise LocalDamage(
                f"{self.path}: made by another version of syncer",
                hint="use that version, or build DATA anew from the remote",
            )

    def keep_in_memory(self, size_bytes: int) -> None:
        """Have SQLite keep about so many bytes of meta.db. The kernel has the rest, a few microseconds away."""
        self.connection.execute(f"PRAGMA cache_size = -{size_bytes // 1024}")

    def add(self, table: T) -> T:
        self._tables.append(table)
        return table

    def register(self, operation: int, method: Callable[..., object]) -> None:
        if operation in self._replay:
            raise ValueError(f"journal operation {operation} is taken")
        self._replay[operation] = method

    # --- state ---------------------------------------------------------------------------------------------------

    def state_integer(self, key: str) -> int:
        row = self.connection.execute("SELECT value FROM state WHERE key = ?", (key,)).fetchone()
        return int(row[0]) if row else 0

    def state_bytes(self, key: str) -> bytes | None:
        row = self.connection.execute("SELECT value FROM state WHERE key = ?", (key,)).fetchone()
        return bytes(row[0]) if row else None

    def set_state(self, key: str, value: int | bytes) -> None:
        """Set a value that is not journaled: derived, or set at a moment that is followed by a commit."""
        self.begin()
        self.connection.execute("INSERT OR REPLACE INTO state VALUES (?, ?)", (key, value))

    # --- mutations -----------------------------------------------------------------------------------------------

    def record(self, payload: bytes) -> int:
        """Append a redo record and make sure that a transaction is open for what it says. Where the record begins.

        Raises: OSError: the disk is full, or refuses.
        """
        assert self.journal is not None
        self._catch_up()
        if self.is_commit_due(4):
            self.commit()
        if not self.pending:
            self.begin()
        begin = self.journal.end
        try:
            self.journal.append(payload)
        except OSError:
            if not self._release_reserve():
                raise
            self.journal.append(payload)
        self._operations += 1
        return begin

    def begin(self) -> None:
        """Raises: OSError."""
        if not self.pending:
            try:
                self.connection.execute("BEGIN IMMEDIATE")
            except sqlite3.Error as error:
                raise refused(error) from error
            self.pending = True
            self.on_pending()

    def take_back(self, begin: int) -> None:
        """The operation recorded at *begin*, the last one, could not be applied: nothing of it stays."""
        assert self.journal is not None
        self._is_behind = True
        with contextlib.suppress(OSError):  # it stays recorded then, and is applied with the others
            self.journal.take_back(begin)
        with contextlib.suppress(OSError):
            self._catch_up()

    def _catch_up(self) -> None:
        """After a failure half-way: go back to the last commit, and apply again what was recorded since. ATOMIC.

        Raises: OSError: it fails again. Nothing is lost, and the next change tries again.
        """
        if not self._is_behind:
            return
        try:
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
            self.pending = False
            self.committed_position = self.state_integer("journal_position")
            self.forget_cached()
            self.begin()
            position, _ = self._replay_from(self.committed_position)
            if self.journal is not None and position != self.journal.end:
                raise LocalDamage("the journal has lost what the disk did not take")
        except (sqlite3.Error, LocalDamage) as error:
            raise OSError(errno.EIO, f"meta.db: {error}") from error
        self._is_behind = False
        for action in self.on_rolled_back:
            action()

    def expect(self, amount_bytes: int) -> None:
        """The next commit writes so much more than the journal says: zeros, which no record holds."""
        self._unrecorded_bytes += amount_bytes

    def is_commit_due(self, times: int = 1) -> bool:
        """Whether so much waits that it should be committed now, *times* over.

        Callers that are between two operations look at this, because they can seal small files before the commit.
        """
        return self._operations >= times * UNCOMMITTED_OPERATIONS or self._waiting_bytes() > times * UNCOMMITTED_BYTES

    def _waiting_bytes(self) -> int:
        recorded = self.journal.end - self.committed_position if self.journal else 0
        return recorded + self._unrecorded_bytes

    def uncommitted_bytes(self) -> int:
        """How much of the disk the next commit may take, and the checkpoint after it: a careful guess.

        Each operation changes about two pages; bytes of small writes are in the journal now, in the WAL after the
        commit and in meta.db after the checkpoint.
        """
        if self.journal is None:
            return 0
        return self._operations * 2 * PAGE_BYTES + 3 * self._waiting_bytes()

    def commit(self) -> None:
        """Commit everything recorded so far, and what the actions after a commit record: no transaction is left open.

        ATOMIC: no await between the flush of the tables and the COMMIT.

        Raises: OSError: the disk is full, or refuses; everything waits for the next commit then.
        """
        while self.pending:
            try:
                self._commit()
            except OSError as error:
                if error.errno != errno.ENOSPC or not self._release_reserve():
                    raise

    def _release_reserve(self) -> bool:
        """Have the room that is kept for a full disk, for what changes next. False when it is used up."""
        assert self.journal is not None
        return self.reserve.release(
            (self.journal.newest, JOURNAL_SHARE_BYTES),
            (Path(f"{self.path}-wal"), RESERVE_BYTES - JOURNAL_SHARE_BYTES),
        )

    def _commit(self) -> None:
        assert self.journal is not None
        self._catch_up()
        position = self.journal.end
        try:
            for table in self._tables:
                table.flush()
            self.connection.execute("INSERT OR REPLACE INTO state VALUES ('journal_position', ?)", (position,))
            self.connection.execute("COMMIT")
        except sqlite3.Error as error:
            self._is_behind = True
            with contextlib.suppress(OSError):
                self._catch_up()
            raise refused(error) from error
        self.committed_position = position
        self.pending = False
        self._operations = self._unrecorded_bytes = 0
        for action in self.on_commit:
            action()

    def recover(self) -> int:
        """Replay what the last commit lacks, start a new journal segment, and return how many records were replayed.

        Raises:
            LocalDamage: the journal has a gap, or a record that cannot be applied.
            OSError: the disk refuses what an earlier run has written.
        """
        self.connection.execute("BEGIN IMMEDIATE")
        self.pending = True  # so that what is replayed begins no transaction of its own
        try:
            position, replayed = self._replay_from(self.committed_position)
        except LocalDamage:
            self.connection.execute("ROLLBACK")
            self.pending = False
            raise
        with self.doubt_note.unless_synced():
            doubted = self.doubt_note.is_there
            self.journal = Journal(self._journal_folder, position, doubted=doubted)
            self.commit()
            if doubted:
                self._is_log_doubted = True  # the WAL of before may be as little on the disk
                if not self.checkpoint_here():
                    raise OSError(errno.EBUSY, "meta.db is in use, and its log may lack what the disk did not take")
                self._is_log_doubted = False
        return replayed

    def _replay_from(self, position: int) -> tuple[int, int]:
        """Apply what the journal has from *position* on; returns where that ends, and how many records it was.

        Raises: LocalDamage.
        """
        replayed = 0
        for end, payload in read_records(self._journal_folder, position):
            operation, arguments = decode_record(payload)
            try:
                self._replay[operation](*arguments)
            except (KeyError, TypeError, sqlite3.Error) as error:
                raise LocalDamage(
                    f"journal: the record before {end:#x} cannot be applied: {error!r}",
                    hint=f"rebuild meta.db: {recover_command(self.path.parent)}",
                ) from error
            position, replayed = end, replayed + 1
        return position, replayed

    def replay(self, operation: int, arguments: Sequence[Any]) -> None:
        """Apply an operation without recording it: it is in a journal already, or nothing needs to be replayed."""
        self.begin()
        self._replay[operation](*arguments)

    def forget_cached(self) -> None:
        for table in self._tables:
            table.forget_cached()

    def wipe(self) -> None:
        """Empty every table but what identifies the schema, and remember which cache files must go."""
        self.commit()
        self.begin()
        execute = self.connection.execute
        execute("INSERT OR IGNORE INTO deleting SELECT id FROM blocks WHERE cached = 1")
        tables = execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'").fetchall()
        for (table,) in tables:
            if table not in ("state", "deleting", "sums"):
                execute(f"DELETE FROM {table}")
        execute("UPDATE sums SET unique_bytes = 0, pack_bytes = 0")
        execute("DELETE FROM state WHERE key NOT IN ('schema', 'journal_position', 'next_dirty')")
        self.forget_cached()
        self.commit()

    # --- durability ----------------------------------------------------------------------------------------------

    def sync(self) -> None:
        """Make every operation recorded so far survive a power cut. Blocking; meant for a thread.

        After a failure it needs a `turn_over` before it. Raises: OSError.
        """
        if self.journal is not None:
            with self.doubt_note.unless_synced():
                self.journal.sync()

    def turn_over(self) -> None:
        """What the journal may lack takes no more records, so that `sync` may make it anew. Raises: OSError."""
        if self.journal is not None:
            self.journal.turn_over()

    def sync_here(self) -> None:
        """`sync`, on the event loop's thread. Raises: OSError."""
        self.turn_over()
        self.sync()

    @property
    def durable_position(self) -> int:
        """What was recorded before this position survives a power cut."""
        return self.journal.durable if self.journal is not None else 0

    def synced(self, position: int) -> None:
        """The journal up to *position* was synced with everything else; no news where that may have failed before."""
        if self.journal is not None and not self.journal.is_doubted:
            self.journal.durable = max(self.journal.durable, position)

    def is_in_meta_db(self, position: int) -> None:
        """What was recorded before *position* is in meta.db, durably: the journal before it is not needed."""
        self._is_log_doubted = False
        if self.journal is not None:
            self.journal.durable = max(self.journal.durable, position)

    @property
    def is_doubted(self) -> bool:
        """Whether the journal may lack what a failed sync should have written, and the WAL may too."""
        return self._is_log_doubted or (self.journal is not None and self.journal.is_doubted)

    def doubt(self) -> None:
        """A sync of everything has failed."""
        self._doubt_log()
        if self.journal is not None:
            self.journal.doubt()

    def _doubt_log(self) -> None:
        self._is_log_doubted = True
        self.doubt_note.write()

    def start_sync(self) -> None:
        """Begin what `sync` does, without waiting for it. Safe where `sync` is."""
        if self.journal is not None:
            self.journal.start_sync()

    def checkpoint(self) -> None:
        """Move committed pages from the WAL into meta.db, durably. Blocking; meant for a thread."""
        connection = sqlite3.connect(self.path, isolation_level=None)
        try:
            self._forget_pages()
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
        except sqlite3.Error as error:
            self._doubt_log()
            raise refused(error) from error
        finally:
            connection.close()

    def _forget_pages(self) -> None:
        """After a checkpoint that failed have the kernel read meta.db again: the next one writes it all once more.

        What is in doubt is in the WAL as long as none has succeeded. What ext4 could not write to blocks that were new
        to a file it takes for written while it has it in memory, and never writes them as new blocks again.
        """
        if self._is_log_doubted:
            os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def checkpoint_here(self) -> bool:
        """Finish a checkpoint on the writing connection and empty the WAL. True when it could.

        Blocks for the pages that `checkpoint` has left. Call between a commit and the next mutation.

        Raises: OSError.
        """
        try:
            self._forget_pages()
            return self._checkpoint_here()
        except sqlite3.Error as error:
            self._doubt_log()
            raise refused(error) from error

    def _checkpoint_here(self) -> bool:
        busy, log, done = self.connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        if busy or log != done:
            return False
        self.connection.execute("PRAGMA busy_timeout = 0")  # while somebody reads, the WAL stays as it is
        busy, _, _ = self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        self.connection.execute("PRAGMA busy_timeout = 5000")
        return not busy

    def shrink(self, pages: int) -> None:
        """Give up to *pages* unused pages back to the file system (with the next checkpoint)."""
        self.begin()
        self.connection.execute(f"PRAGMA incremental_vacuum({pages})").fetchall()

    def free_pages(self) -> int:
        return int(self.connection.execute("PRAGMA freelist_count").fetchone()[0])

    def disk_bytes(self) -> int:
        """meta.db, its WAL and shared memory, the journal and the reserve, as they are on the disk now."""
        total = self.reserve.size + (self.journal.total_bytes if self.journal else 0)
        for suffix in ("", "-wal", "-shm"):
            try:
                total += Path(f"{self.path}{suffix}").stat().st_size
            except FileNotFoundError:
                continue
        return total

    def wal_bytes(self) -> int:
        """The size of the WAL on the disk."""
        try:
            return Path(f"{self.path}-wal").stat().st_size
        except FileNotFoundError:
            return 0

    def discard_journal(self, position: int) -> None:
        """Delete journal segments before *position*, which is committed, and durable in meta.db or its WAL.

        What came after the last snapshot is left while it is not too much: without meta.db it is all there is.
        """
        if self.journal is not None:
            marked = self.state_integer("marked_position")
            self.journal.discard(min(marked, position) if self.journal.end - marked <= self.kept_bytes else position)

    def reader(self) -> sqlite3.Connection:
        """A second connection for one thread; it sees commits only."""
        uri = f"file:{self.path}?mode=ro"
        return sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)

    def close(self) -> None:
        """Commit, checkpoint and close. Whatever fails here is replayed at the next start."""
        try:
            self.set_state("open", 0)
            self.commit()
            if self.checkpoint_here():  # otherwise somebody reads, and the WAL, which was not synced, is all else
                self.discard_journal(self.committed_position)
        except (OSError, sqlite3.Error) as error:
            log.warning("meta.db is not written back, and the journal kept: %s", error)
        finally:
            self.connection.close()
            os.close(self._descriptor)
            if self.journal is not None:
                self.journal.close()
