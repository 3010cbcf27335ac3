"""Names: directory entries, and the inode changes that belong to making, linking, renaming and removing them.

What POSIX forbids is checked by `fs/namespace.py` before any of the journaled methods here is called.
"""

from stat import S_ISDIR

import msgspec

from syncer.meta.database import Database, Table, journaled
from syncer.meta.inodes import SHOWN_COLUMNS, Inode, InodeTable, Shown
from syncer.values import ROOT_INODE, InodeNumber

DEEPEST = 4096
"""Directories above a file that its path may have: as many as fit the longest path there can be."""


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One name in a directory. *cookie* is where readdir continues after it."""

    cookie: int
    name: bytes
    inode: Inode | Shown


class NamespaceTable(Table):
    def __init__(self, database: Database, inodes: InodeTable) -> None:
        super().__init__(database)
        self._inodes = inodes
        self.large: set[int] = set()
        """Directories published by their changes: a snapshot wants to know which of their names changed."""
        self.forget_cached()

    def forget_cached(self) -> None:
        self.large = {row[0] for row in self.execute("SELECT inode FROM trees WHERE large = 1")}

    # --- reading -------------------------------------------------------------------------------------------------

    def lookup(self, parent: int, name: bytes) -> InodeNumber | None:
        row = self.execute("SELECT inode FROM dentries WHERE parent = ? AND name = ?", (parent, name)).fetchone()
        return None if row is None else InodeNumber(row[0])

    def entries(self, parent: int, after_cookie: int, limit: int) -> list[Entry]:
        """Up to *limit* entries with a cookie above *after_cookie*, in the order of their cookies."""
        rows = self.execute(
            f"SELECT d.cookie, d.name, d.{SHOWN_COLUMNS}"
            " FROM dentries d LEFT JOIN inodes i ON i.inode = d.inode"
            " WHERE d.parent = ? AND d.cookie > ? ORDER BY d.cookie LIMIT ?",
            (parent, after_cookie, limit),
        ).fetchall()
        shown = self._inodes.shown
        return [Entry(row[0], row[1], shown(row[2:])) for row in rows]

    def is_empty(self, parent: int) -> bool:
        return self.execute("SELECT 1 FROM dentries WHERE parent = ? LIMIT 1", (parent,)).fetchone() is None

    def parents(self, number: int) -> list[tuple[InodeNumber, bytes]]:
        """Every (directory, name) that links to the inode."""
        return self.execute("SELECT parent, name FROM dentries WHERE inode = ?", (number,)).fetchall()

    def path(self, inode: int) -> bytes | None:
        """One path of the inode, from the root and without a slash before it; None when it has no name any more."""
        parts: list[bytes] = []
        number = InodeNumber(inode)
        while number != ROOT_INODE and len(parts) < DEEPEST:
            parents = self.parents(number)
            if not parents:
                return None
            number, name = parents[0]
            parts.append(name)
        return b"/".join(reversed(parts))

    def is_ancestor(self, candidate: int, number: int) -> bool:
        """Whether directory *candidate* is *number* or above it."""
        while number != candidate:
            row = self.execute("SELECT parent FROM dentries WHERE inode = ?", (number,)).fetchone()
            if row is None:
                return False
            number = row[0]
        return True

    def has_moved(self, number: int) -> bool:
        """Whether a path of the inode differs from the last snapshot's, because of a name or a directory that moved.

        Complete for directories above it alone: whose own names change is touched.
        """
        if self.execute("SELECT 1 FROM changed_names LIMIT 1").fetchone() is None:
            return False
        seen, pending = {ROOT_INODE}, [number]
        while pending:
            for parent, name in self.parents(pending.pop()):
                noted = self.execute("SELECT 1 FROM changed_names WHERE parent = ? AND name = ?", (parent, name))
                if noted.fetchone() is not None:
                    return True
                if parent not in seen:
                    seen.add(parent)
                    pending.append(parent)
        return False

    # --- changing ------------------------------------------------------------------------------------------------

    def _enter(self, parent: Inode, name: bytes, number: int, now_ns: int) -> None:
        self.execute("INSERT INTO dentries(parent, name, inode) VALUES (?, ?, ?)", (parent.number, name, number))
        self._note(parent, name, now_ns)

    def _leave(self, parent: Inode, name: bytes, now_ns: int) -> None:
        self.execute("DELETE FROM dentries WHERE parent = ? AND name = ?", (parent.number, name))
        self._note(parent, name, now_ns)

    def _note(self, parent: Inode, name: bytes, now_ns: int, *, for_directory: bool = False) -> None:
        """A name came or went. *for_directory*: it now stands for a directory that stood elsewhere before."""
        parent.mtime_ns = parent.ctime_ns = now_ns
        self._inodes.touch(parent)
        if for_directory or parent.number in self.large:
            self.execute(
                "INSERT OR REPLACE INTO changed_names VALUES (?, ?, ?)", (parent.number, name, self._inodes.generation)
            )

    @journaled(10)
    def create(
        self,
        parent: int,
        name: bytes,
        number: int,
        mode: int,
        uid: int,
        gid: int,
        rdev: int,
        target: bytes | None,
        now_ns: int,
    ) -> None:
        """Make an inode of any type and its first name. *mode* holds the type; *target* is a symlink's."""
        directory = self._inodes.need(parent)
        inode = Inode(number, mode, uid, gid, 1, now_ns, rdev)
        if target is not None:
            inode.target = target
            inode.size = len(target)
        if S_ISDIR(mode):
            inode.nlink = 2
            directory.nlink += 1
        self._inodes.insert(inode)
        self._enter(directory, name, number, now_ns)

    @journaled(11)
    def create_root(self, mode: int, uid: int, gid: int, now_ns: int) -> None:
        """Make the root directory of an empty file system."""
        self._inodes.insert(Inode(ROOT_INODE, mode, uid, gid, 2, now_ns, 0))

    @journaled(12)
    def link(self, number: int, parent: int, name: bytes, now_ns: int) -> None:
        inode = self._inodes.need(number)
        if not inode.nlink:
            self._inodes.count(inode, 1)
        inode.nlink += 1
        inode.ctime_ns = now_ns
        self._inodes.touch(inode)
        self._enter(self._inodes.need(parent), name, number, now_ns)

    @journaled(13)
    def unlink(self, parent: int, name: bytes, now_ns: int) -> None:
        """Remove the name of anything but a directory. The inode stays, an orphan when that was its last name."""
        number = self.lookup(parent, name)
        assert number is not None
        self._leave(self._inodes.need(parent), name, now_ns)
        self._drop_link(self._inodes.need(number), now_ns)

    def _drop_link(self, inode: Inode, now_ns: int) -> None:
        inode.nlink -= 1
        inode.ctime_ns = now_ns
        self._inodes.touch(inode)
        if not inode.nlink:
            self._inodes.count(inode, -1)

    @journaled(14)
    def rmdir(self, parent: int, name: bytes, now_ns: int) -> None:
        """Remove an empty directory's name; its inode becomes an orphan."""
        number = self.lookup(parent, name)
        assert number is not None
        directory = self._inodes.need(parent)
        self._leave(directory, name, now_ns)
        self._drop_directory(directory, self._inodes.need(number), now_ns)

    def _drop_directory(self, parent: Inode, inode: Inode, now_ns: int) -> None:
        parent.nlink -= 1
        inode.nlink = 0
        inode.ctime_ns = now_ns
        self._inodes.touch(inode)
        self._inodes.count(inode, -1)
        self.large.discard(inode.number)

    @journaled(15)
    def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, now_ns: int) -> None:
        """Move a name, replacing what stood at the new one (a file, or an empty directory)."""
        number = self.lookup(parent, name)
        assert number is not None
        source, destination = self._inodes.need(parent), self._inodes.need(new_parent)
        inode = self._inodes.need(number)
        replaced = self.lookup(new_parent, new_name)
        if replaced is None:
            self.execute(
                "UPDATE dentries SET parent = ?, name = ? WHERE parent = ? AND name = ?",
                (new_parent, new_name, parent, name),
            )
        else:  # the new name keeps its cookie: whoever lists the directory meets it once, before or after
            self.execute("DELETE FROM dentries WHERE parent = ? AND name = ?", (parent, name))
            self.execute("UPDATE dentries SET inode = ? WHERE parent = ? AND name = ?", (number, new_parent, new_name))
            victim = self._inodes.need(replaced)
            if victim.is_directory:
                self._drop_directory(destination, victim, now_ns)
            else:
                self._drop_link(victim, now_ns)
        self._note(source, name, now_ns)
        self._note(destination, new_name, now_ns, for_directory=inode.is_directory)
        if inode.is_directory and parent != new_parent:
            source.nlink -= 1
            destination.nlink += 1
        inode.ctime_ns = now_ns
        self._inodes.touch(inode)

    @journaled(16)
    def exchange(self, parent: int, name: bytes, new_parent: int, new_name: bytes, now_ns: int) -> None:
        """Swap what two names stand for, in one step."""
        first, second = self.lookup(parent, name), self.lookup(new_parent, new_name)
        assert first is not None and second is not None
        one, other = self._inodes.need(first), self._inodes.need(second)
        source, destination = self._inodes.need(parent), self._inodes.need(new_parent)
        self.execute("UPDATE dentries SET inode = ? WHERE parent = ? AND name = ?", (second, parent, name))
        self.execute("UPDATE dentries SET inode = ? WHERE parent = ? AND name = ?", (first, new_parent, new_name))
        if one.is_directory != other.is_directory and parent != new_parent:
            gains, loses = (destination, source) if one.is_directory else (source, destination)
            gains.nlink += 1
            loses.nlink -= 1
        for inode in (one, other):
            inode.ctime_ns = now_ns
            self._inodes.touch(inode)
        self._note(source, name, now_ns, for_directory=other.is_directory)
        self._note(destination, new_name, now_ns, for_directory=one.is_directory)
