"""Reads the tree of one commit through a connection of its own, while the file system goes on.

Made on the event loop right after a commit, then used by one thread until closed. Its read transaction keeps the WAL
from starting over, so it must not live long.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from syncer.meta.database import Database
from syncer.values import FILE_END_MAX, ROOT_INODE, BlockId, TreeId

ExtentRow = tuple[int, int, BlockId, int]
"""(start, length, block id, offset in the block)"""


@dataclass(frozen=True, slots=True)
class TreeRow:
    """A directory entry with its inode, as a tree wants it. Times in nanoseconds."""

    name: bytes
    inode: int
    mode: int
    uid: int
    gid: int
    nlink: int
    size: int
    mtime_ns: int
    ctime_ns: int
    rdev: int
    target: bytes | None
    xattrs: tuple[tuple[bytes, bytes], ...]
    extents: tuple[ExtentRow, ...] | None
    """None when they are many, or when the file has a tree of them: `TreeReader.extents` reads them."""
    tree: TreeId | None
    """The published tree of a subdirectory, or of a file with many extents; None without one."""


_INODE = "i.inode, i.mode, i.uid, i.gid, i.nlink, i.size, i.mtime_ns, i.ctime_ns, i.rdev"


class TreeReader:
    def __init__(self, database: Database) -> None:
        """ATOMIC: the commit this reads is the last one when this returns."""
        self._connection = database.reader()
        self._execute = self._connection.execute
        self._execute("PRAGMA cache_size = -8192")
        self._execute("BEGIN")
        self._execute("SELECT 1 FROM state LIMIT 1").fetchone()

    def close(self) -> None:
        self._connection.close()

    def affected(self, generation: int) -> dict[int, int]:
        """Directories whose tree may differ from what was published, each with its parent (the root's is 0)."""
        pending = [row[0] for row in self._execute("SELECT inode FROM changed WHERE generation <= ?", (generation,))]
        pending.append(ROOT_INODE)
        affected: dict[int, int] = {}
        seen: set[int] = set()
        while pending:
            number = pending.pop()
            if number in seen:
                continue
            seen.add(number)
            parents = [row[0] for row in self._execute("SELECT parent FROM dentries WHERE inode = ?", (number,))]
            row = self._execute("SELECT mode FROM inodes WHERE inode = ? AND nlink > 0", (number,)).fetchone()
            if row is None:
                continue
            if row[0] & 0o170000 == 0o040000:
                affected[number] = parents[0] if parents else 0
            pending.extend(parents)
        return affected

    def count(self, directory: int) -> int:
        """How many entries the directory has."""
        return int(self._execute("SELECT count(*) FROM dentries WHERE parent = ?", (directory,)).fetchone()[0])

    def published(self, directory: int) -> tuple[TreeId, bool] | None:
        """(tree, large) as last published."""
        row = self._execute("SELECT id, large FROM trees WHERE inode = ?", (directory,)).fetchone()
        return None if row is None else (TreeId(row[0]), bool(row[1]))

    def changed_names(self, directory: int, generation: int) -> set[bytes]:
        """Names in a large directory whose entries came, went, or may differ."""
        names = {
            row[0]
            for row in self._execute(
                "SELECT name FROM changed_names WHERE parent = ? AND generation <= ?", (directory, generation)
            )
        }
        rows = self._execute(
            "SELECT d.name FROM changed c JOIN dentries d ON d.inode = c.inode"
            " WHERE c.generation <= ? AND d.parent = ?",
            (generation, directory),
        )
        names.update(row[0] for row in rows)
        return names

    def names_of(self, directory: int, numbers: Iterable[int]) -> set[bytes]:
        """The names in *directory* of those among the inodes *numbers* that it holds."""
        found: set[bytes] = set()
        for number in numbers:
            rows = self._execute("SELECT name FROM dentries WHERE inode = ? AND parent = ?", (number, directory))
            found.update(row[0] for row in rows)
        return found

    def root(self) -> TreeRow:
        """The root directory, without a name."""
        row = self._execute(f"SELECT x'', {_INODE} FROM inodes i WHERE i.inode = ?", (ROOT_INODE,)).fetchone()
        return self._complete([row], self._xattrs("x.inode = ?", (ROOT_INODE,)), {}, {}, {})[0]

    def entries(self, directory: int, extents_max: int) -> Iterator[TreeRow]:
        """All entries in the order of their names. More than *extents_max* extents are many."""
        after: bytes | None = None
        while True:
            batch = self._batch(directory, after, extents_max)
            yield from batch
            if len(batch) < _BATCH:
                return
            after = batch[-1].name

    def _batch(self, directory: int, after: bytes | None, extents_max: int) -> list[TreeRow]:
        rows = self._execute(
            f"SELECT d.name, {_INODE} FROM dentries d JOIN inodes i ON i.inode = d.inode"
            " WHERE d.parent = ? AND d.name > ? ORDER BY d.name LIMIT ?",
            (directory, b"" if after is None else after, _BATCH),
        ).fetchall()
        if not rows:
            return []
        where = "d.parent = ? AND d.name >= ? AND d.name <= ?"
        return self._with_details(rows, where, (directory, rows[0][0], rows[-1][0]), extents_max)

    def entry(self, directory: int, name: bytes, extents_max: int) -> TreeRow | None:
        """The entry of that name, as one of `entries`."""
        rows = self._execute(
            f"SELECT d.name, {_INODE} FROM dentries d JOIN inodes i ON i.inode = d.inode"
            " WHERE d.parent = ? AND d.name = ?",
            (directory, name),
        ).fetchall()
        found = self._with_details(rows, "d.parent = ? AND d.name = ?", (directory, name), extents_max) if rows else []
        return found[0] if found else None

    def _with_details(
        self, rows: list[tuple[object, ...]], where: str, arguments: tuple[object, ...], extents_max: int
    ) -> list[TreeRow]:
        xattrs = self._xattrs(f"x.inode IN (SELECT d.inode FROM dentries d WHERE {where})", arguments)
        targets = dict(
            self._execute(
                f"SELECT s.inode, s.target FROM dentries d JOIN symlinks s ON s.inode = d.inode WHERE {where}",
                arguments,
            ).fetchall()
        )
        trees = dict(
            self._execute(
                f"SELECT t.inode, t.id FROM dentries d JOIN trees t ON t.inode = d.inode WHERE {where}", arguments
            ).fetchall()
        )
        return self._complete(rows, xattrs, self._few_extents(where, arguments, extents_max), targets, trees)

    def _few_extents(
        self, where: str, arguments: tuple[object, ...], extents_max: int
    ) -> dict[int, list[ExtentRow] | None]:
        """The extents of files without a tree; None of those that have more than *extents_max*."""
        found: dict[int, list[ExtentRow] | None] = {}
        for number, start, length, block_id, offset in self._execute(
            "SELECT d.inode, e.start, e.length, b.id, e.source_offset"
            " FROM dentries d CROSS JOIN extents e ON e.inode = d.inode CROSS JOIN blocks b ON b.number = e.source"
            f" WHERE {where} AND NOT EXISTS (SELECT 1 FROM trees t WHERE t.inode = d.inode) AND e.start <="
            " ifnull((SELECT x.start FROM extents x WHERE x.inode = d.inode ORDER BY x.start LIMIT 1 OFFSET ?), ?)"
            " ORDER BY d.name, e.start",
            (*arguments, extents_max, FILE_END_MAX),
        ):
            known = found.setdefault(number, [])
            if known is None or (known and known[-1][0] >= start):
                continue  # a second name of the inode brings its extents once more
            known.append((start, length, block_id, offset))
            if len(known) > extents_max:
                found[number] = None
        return found

    # --- the extents of one file ---------------------------------------------------------------------------------

    def extents(self, inode: int, start: int, end: int) -> Iterator[ExtentRow]:
        """The extents that begin in [start, end), in order."""
        return self._execute(
            "SELECT e.start, e.length, b.id, e.source_offset FROM extents e CROSS JOIN blocks b ON b.number = e.source"
            " WHERE e.inode = ? AND e.start >= ? AND e.start < ? ORDER BY e.start",
            (inode, start, end),
        )

    def has_more_extents(self, inode: int, count: int) -> bool:
        """Whether the file has more than *count* extents."""
        row = self._execute("SELECT 1 FROM extents WHERE inode = ? LIMIT 1 OFFSET ?", (inode, count)).fetchone()
        return row is not None

    def last_block(self, inode: int, end: int) -> BlockId:
        """The block of the last extent that begins before *end*; there is one."""
        row = self._execute(
            "SELECT b.id FROM extents e CROSS JOIN blocks b ON b.number = e.source WHERE e.inode = ? AND e.start < ?"
            " ORDER BY e.start DESC LIMIT 1",
            (inode, end),
        ).fetchone()
        return BlockId(row[0])

    def changed_ranges(self, inode: int, generation: int) -> list[tuple[int, int]]:
        """Where extents of a file with a published tree may differ from it: (begin, end), in order, not touching."""
        ranges: list[tuple[int, int]] = []
        for begin, reach in self._execute(
            "SELECT begin, reach FROM changed_extents WHERE inode = ? AND generation <= ? ORDER BY begin",
            (inode, generation),
        ):
            if ranges and begin <= ranges[-1][1]:
                begin, before = ranges.pop()
                reach = max(reach, before)
            ranges.append((begin, reach))
        return ranges

    def _xattrs(self, where: str, arguments: tuple[object, ...]) -> dict[int, list[tuple[bytes, bytes]]]:
        found: dict[int, list[tuple[bytes, bytes]]] = defaultdict(list)
        for number, name, value in self._execute(
            f"SELECT x.inode, x.name, x.value FROM xattrs x WHERE {where} ORDER BY x.inode, x.name", arguments
        ):
            found[number].append((name, value))
        return found

    @staticmethod
    def _complete(
        rows: list[tuple[object, ...]],
        xattrs: dict[int, list[tuple[bytes, bytes]]],
        extents: Mapping[int, list[ExtentRow] | None],
        targets: dict[int, bytes],
        trees: dict[int, TreeId],
    ) -> list[TreeRow]:
        complete = []
        for row in rows:
            number: int = row[1]  # type: ignore[assignment]
            few: Sequence[ExtentRow] | None = extents.get(number, ())
            if number in trees and row[2] & 0o170000 != 0o040000:  # type: ignore[operator]
                few = None
            complete.append(
                TreeRow(
                    *row,  # type: ignore[call-arg, arg-type]
                    targets.get(number),
                    tuple(xattrs.get(number, ())),
                    None if few is None else tuple(few),
                    trees.get(number),
                )
            )
        return complete

    def is_stored(self, block_id: BlockId | TreeId) -> bool:
        """Whether the remote has the block or tree node."""
        row = self._execute("SELECT 1 FROM blocks WHERE id = ? AND pack IS NOT NULL", (block_id,)).fetchone()
        return row is not None

    def node(self, tree_id: TreeId) -> bytes | None:
        """A tree node that is cached here."""
        row = self._execute(
            "SELECT x.data FROM blocks b JOIN block_data x ON x.number = b.number WHERE b.id = ?", (tree_id,)
        ).fetchone()
        return None if row is None else bytes(row[0])

    def totals(self) -> tuple[int, int, int, int]:
        """(files, directories, logical bytes, unique bytes) of the tree."""
        state = dict(
            self._execute("SELECT key, value FROM state WHERE key IN ('files', 'directories', 'logical_bytes')")
        )
        unique = self._execute("SELECT unique_bytes FROM sums").fetchone()[0]
        return state.get("files", 0), state.get("directories", 0), state.get("logical_bytes", 0), unique


_BATCH = 2048
