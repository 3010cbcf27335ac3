"""Inodes in memory, over their table: attributes, xattrs, symlink targets, small contents.

An Inode object is loaded once and written back at the next commit, so the many small changes of a busy file
cost no SQL each. Objects are shared: whoever asks for the same number gets the same object for as long as it is
dirty or in use.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from stat import S_ISDIR, S_ISREG

import msgspec

from syncer.meta.database import Database, Table, journaled
from syncer.values import InodeNumber

CACHED_INODES = 16384
INODE_COLUMNS = (
    "inode, mode, uid, gid, nlink, size, atime_ns, mtime_ns, ctime_ns, rdev, tail, tail_start, overlay, content"
)


class Inode:
    """One inode. Changed only by Table methods, which then call `InodeTable.touch`.

    INVARIANT: do not keep one across an await unless its number is pinned; ask the table again. Between two awaits
    it stays the one object of its number (`InodeTable.shed` is called at the start of operations only).
    """

    __slots__ = (
        "atime_ns",
        "content",
        "content_dirty",
        "ctime_ns",
        "epoch",
        "gid",
        "mode",
        "mtime_ns",
        "nlink",
        "number",
        "overlay",
        "pins",
        "rdev",
        "size",
        "tail",
        "tail_start",
        "target",
        "uid",
        "xattrs",
    )

    def __init__(self, number: int, mode: int, uid: int, gid: int, nlink: int, now_ns: int, rdev: int) -> None:
        self.number = InodeNumber(number)
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.nlink = nlink
        self.size = 0
        self.atime_ns = self.mtime_ns = self.ctime_ns = now_ns
        self.rdev = rdev
        self.tail = 0
        self.tail_start = 0
        self.overlay = 0
        self.content: bytearray | None = None
        self.content_dirty = False
        self.target: bytes | None = None
        self.xattrs: dict[bytes, bytes] | None = None
        self.epoch = 0
        """Counts changes of extents, tail and content; whoever caches where bytes are compares it."""
        self.pins = 0

    @property
    def is_directory(self) -> bool:
        return S_ISDIR(self.mode)

    @property
    def is_regular(self) -> bool:
        return S_ISREG(self.mode)

    def row(self) -> tuple[int, ...]:
        return (
            self.number, self.mode, self.uid, self.gid, self.nlink, self.size, self.atime_ns, self.mtime_ns,
            self.ctime_ns, self.rdev, self.tail, self.tail_start, self.overlay, int(self.content is not None),
        )  # fmt: skip


class Shown(msgspec.Struct, frozen=True, gc=False):
    """What stat(2) shows of an inode that is not in memory, and need not be to be listed."""

    number: InodeNumber
    mode: int
    uid: int
    gid: int
    nlink: int
    size: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    rdev: int


SHOWN_COLUMNS = ", ".join(("inode", *Shown.__struct_fields__[1:]))


@dataclass(slots=True)
class Totals:
    """What the live tree holds; kept in step with every change and stored with every commit."""

    files: int = 0
    directories: int = 0
    logical_bytes: int = 0


class InodeTable(Table):
    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self._cache: dict[int, Inode] = {}
        self._shed_at = CACHED_INODES
        self._pins: dict[int, int] = {}
        """Of inodes that are in use and not in memory: how often."""
        self._epoch = 0
        self._dirty: dict[int, Inode] = {}
        self._changed: set[int] = set()
        self.generation = database.state_integer("generation")
        self.totals = Totals()
        self._load_totals()

    def _load_totals(self) -> None:
        state = self.database.state_integer
        self.totals = Totals(state("files"), state("directories"), state("logical_bytes"))
        self._saved_totals = (self.totals.files, self.totals.directories, self.totals.logical_bytes)

    # --- reading -------------------------------------------------------------------------------------------------

    def get(self, number: int) -> Inode | None:
        """The inode, or None when there is none of that number."""
        inode = self._cache.get(number)
        if inode is None:
            row = self.execute(f"SELECT {INODE_COLUMNS} FROM inodes WHERE inode = ?", (number,)).fetchone()
            if row is None:
                return None
            inode = self._adopt(row)
        return inode

    def _adopt(self, row: tuple[int, ...]) -> Inode:
        """The Inode for a row of the table; one that is in memory already is newer and wins."""
        number = row[0]
        inode = self._cache.get(number)
        if inode is not None:
            return inode
        inode = Inode(number, row[1], row[2], row[3], row[4], 0, row[9])
        self._resume(inode)
        inode.size, inode.atime_ns, inode.mtime_ns, inode.ctime_ns = row[5], row[6], row[7], row[8]
        inode.tail, inode.tail_start, inode.overlay = row[10], row[11], row[12]
        if row[13]:
            data = self.execute("SELECT data FROM contents WHERE inode = ?", (number,)).fetchone()
            inode.content = bytearray(data[0])
        self._cache[inode.number] = inode
        return inode

    def _resume(self, inode: Inode) -> None:
        """A new object for an inode: who had one of it before goes on with this one."""
        inode.pins = self._pins.pop(inode.number, 0)
        inode.epoch = self._epoch

    def shown(self, row: tuple[int, ...]) -> "Inode | Shown":
        """What is true now of an inode with these columns of the table, SHOWN_COLUMNS.

        All but the number may be None: a new inode has no row yet. Raises: KeyError.
        """
        inode = self._cache.get(row[0])
        if inode is not None:
            return inode
        return self.need(row[0]) if row[1] is None else Shown(*row)  # type: ignore[arg-type]

    def shed(self) -> None:
        """Forget the older half of what is neither dirty nor pinned, once there is too much.

        Call between operations only: one under way may hold an Inode, and would change an object that the next
        `get` does not return.
        """
        if len(self._cache) < self._shed_at:
            return
        idle = [number for number, inode in self._cache.items() if not inode.pins and number not in self._dirty]
        for number in idle[: (len(idle) + 1) // 2]:
            del self._cache[number]
        self._shed_at = max(CACHED_INODES, len(self._cache) + CACHED_INODES // 4)

    def cached(self, number: int) -> Inode | None:
        """The inode if it is in memory."""
        return self._cache.get(number)

    def xattrs(self, inode: Inode) -> dict[bytes, bytes]:
        """All extended attributes; the caller must not change the mapping."""
        if inode.xattrs is None:
            rows = self.execute("SELECT name, value FROM xattrs WHERE inode = ? ORDER BY name", (inode.number,))
            inode.xattrs = dict(rows.fetchall())
        return inode.xattrs

    def target(self, inode: Inode) -> bytes:
        """Where the symlink points."""
        if inode.target is None:
            row = self.execute("SELECT target FROM symlinks WHERE inode = ?", (inode.number,)).fetchone()
            inode.target = bytes(row[0])
        return inode.target

    def orphans(self) -> list[int]:
        """Inodes without a name. Complete only right after a commit."""
        return [row[0] for row in self.execute("SELECT inode FROM inodes WHERE nlink = 0")]

    def unsealed(self) -> list[int]:
        """Inodes with a small content, a tail or an overlay. Complete only right after a commit."""
        rows = self.execute("SELECT inode FROM inodes WHERE content = 1 OR tail > 0 OR overlay > 0")
        return [row[0] for row in rows]

    def of_tail(self, dirty: int) -> Inode | None:
        """The inode whose tail is that dirty file."""
        rows = self.execute(
            "SELECT inode FROM inodes WHERE (content = 1 OR tail > 0 OR overlay > 0) AND tail = ?", (dirty,)
        )
        written = (self.need(row[0]) for row in rows.fetchall())
        return next((inode for inode in (*self._dirty.values(), *written) if inode.tail == dirty), None)

    def set_totals(self, totals: Totals) -> None:
        """Take over the totals of a tree that was filled in behind the methods here."""
        self.database.begin()
        self.totals = totals

    def unwritten_contents(self) -> list[Inode]:
        """Inodes whose small content was changed since the last commit."""
        return [inode for inode in self._dirty.values() if inode.content_dirty and inode.content]

    def is_changed(self, number: int) -> bool:
        """Whether the inode was touched after what the last snapshot shows."""
        if number in self._changed:
            return True
        return self.execute("SELECT 1 FROM changed WHERE inode = ?", (number,)).fetchone() is not None

    def changed_files(self) -> int:
        """How many files and the like differ from the last snapshot. Complete only right after a commit."""
        rows = self.execute(
            "SELECT count(*) FROM changed c JOIN inodes i ON i.inode = c.inode"
            " WHERE i.nlink > 0 AND i.mode & 61440 <> 16384"
        )
        return int(rows.fetchone()[0])

    def content_bytes(self) -> int:
        """Bytes of all small contents that are not sealed. Complete only right after a commit."""
        return int(self.execute("SELECT ifnull(sum(size), 0) FROM inodes WHERE content = 1").fetchone()[0])

    # --- changing (called by the methods that journal) -----------------------------------------------------------

    def touch(self, inode: Inode) -> None:
        """Have *inode* written with the next commit and looked at by the next snapshot."""
        self._dirty[inode.number] = inode
        self._changed.add(inode.number)

    def resize(self, inode: Inode, size: int) -> None:
        """Set the size, keeping the totals right. The caller touches."""
        if inode.nlink:
            self.totals.logical_bytes += size - inode.size
        inode.size = size

    def insert(self, inode: Inode) -> None:
        """Add a new inode (with a link or more)."""
        self._cache[inode.number] = inode
        self._resume(inode)
        self.touch(inode)
        inode.xattrs = {}
        if inode.target is not None:
            self.execute("INSERT INTO symlinks VALUES (?, ?)", (inode.number, inode.target))
        self.count(inode, 1)

    def count(self, inode: Inode, sign: int) -> None:
        """Add *inode* to the totals, or take it out: an orphan is in none."""
        if inode.is_directory:
            self.totals.directories += sign
        else:
            self.totals.files += sign
            self.totals.logical_bytes += sign * inode.size

    def erase(self, inode: Inode) -> None:
        """Delete the rows of an inode that has no extents any more."""
        number = inode.number
        self._cache.pop(number, None)
        self._dirty.pop(number, None)
        for table in ("inodes", "contents", "xattrs", "symlinks", "trees"):
            self.execute(f"DELETE FROM {table} WHERE inode = ?", (number,))

    @journaled(1)
    def set_attributes(
        self,
        number: int,
        mode: int | None,
        uid: int | None,
        gid: int | None,
        atime_ns: int | None,
        mtime_ns: int | None,
        ctime_ns: int,
    ) -> None:
        """Set the permission bits (the type stays) and what else is not None."""
        inode = self.need(number)
        if mode is not None:
            inode.mode = (inode.mode & ~0o7777) | (mode & 0o7777)
        if uid is not None:
            inode.uid = uid
        if gid is not None:
            inode.gid = gid
        if atime_ns is not None:
            inode.atime_ns = atime_ns
        if mtime_ns is not None:
            inode.mtime_ns = mtime_ns
        inode.ctime_ns = ctime_ns
        self.touch(inode)

    @journaled(2)
    def set_xattr(self, number: int, name: bytes, value: bytes | None, now_ns: int) -> None:
        """Set an extended attribute, or remove it where *value* is None."""
        inode = self.need(number)
        xattrs = self.xattrs(inode)
        if value is None:
            self.execute("DELETE FROM xattrs WHERE inode = ? AND name = ?", (number, name))
            xattrs.pop(name, None)
        else:
            self.execute("INSERT OR REPLACE INTO xattrs VALUES (?, ?, ?)", (number, name, value))
            xattrs[name] = value
        inode.ctime_ns = now_ns
        self.touch(inode)

    def see_read(self, inode: Inode, now_ns: int) -> None:
        """Note an access. Not journaled: a lost atime is no lost data, and no snapshot holds it."""
        inode.atime_ns = now_ns
        self._dirty[inode.number] = inode
        self.database.begin()

    def need(self, number: int) -> Inode:
        """Like `get` for a number that must exist.

        Raises: KeyError.
        """
        inode = self.get(number)
        if inode is None:
            raise KeyError(number)
        return inode

    # --- commit --------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        if self._dirty:
            rows = [inode.row() for inode in self._dirty.values()]
            self.executemany(
                f"INSERT OR REPLACE INTO inodes({INODE_COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?)", rows
            )
            self._flush_contents(self._dirty.values())
            self._dirty.clear()
        if self._changed:
            generation = self.generation
            self.executemany("INSERT OR REPLACE INTO changed VALUES (?, ?)", [(n, generation) for n in self._changed])
            self._changed.clear()
        totals = (self.totals.files, self.totals.directories, self.totals.logical_bytes)
        if totals != self._saved_totals:
            names = ("files", "directories", "logical_bytes")
            self.executemany("INSERT OR REPLACE INTO state VALUES (?, ?)", list(zip(names, totals, strict=True)))
            self._saved_totals = totals

    def _flush_contents(self, inodes: Iterable[Inode]) -> None:
        for inode in inodes:
            if inode.content_dirty:
                inode.content_dirty = False
                if inode.content is None:
                    self.execute("DELETE FROM contents WHERE inode = ?", (inode.number,))
                else:
                    self.execute("INSERT OR REPLACE INTO contents VALUES (?, ?)", (inode.number, inode.content))

    def forget_cached(self) -> None:
        self._pins.update({number: inode.pins for number, inode in self._cache.items() if inode.pins})
        self._epoch += 1 << 32  # what was read of an inode before is never taken for what it is now
        self._cache.clear()
        self._dirty.clear()
        self._changed.clear()
        self._load_totals()
