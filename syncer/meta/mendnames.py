"""The names of a repair: every inode gets its place and its links; and the tools that the other parts share.

Part of the one transaction of repair.py.
"""

import sqlite3

from syncer.meta import rules
from syncer.values import PEER_SHIFT, ROOT_INODE

LOST_AND_FOUND = b"lost+found"


class Mender:
    """The namespace, and what the other parts need: new inodes, and places in lost+found."""

    def __init__(self, connection: sqlite3.Connection, uid: int, gid: int, now_ns: int) -> None:
        self.execute = connection.execute
        self._uid, self._gid, self._now_ns = uid, gid, now_ns
        self._generation = int(self.value("SELECT ifnull(max(value), 0) FROM state WHERE key = 'generation'"))
        self._folder = 0

    def rows(self, query: str, *arguments: object) -> list[tuple[int, ...]]:
        return self.execute(query, arguments).fetchall()

    def value(self, query: str, *arguments: object) -> int:
        row = self.execute(query, arguments).fetchone()
        return int(row[0]) if row and row[0] is not None else 0

    # --- tools ---------------------------------------------------------------------------------------------------

    def touch(self, number: int) -> None:
        """The next snapshot must look at the inode, and not trust what was published of it."""
        self.execute("INSERT OR REPLACE INTO changed VALUES (?, ?)", (number, self._generation))
        self.execute("DELETE FROM trees WHERE inode = ?", (number,))

    def make(self, number: int, mode: int, nlink: int = 0, size: int = 0) -> int:
        times = (self._now_ns,) * 3
        self.execute(
            "INSERT INTO inodes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 0, 0, 0, 0, 0)",
            (number, mode, self._uid, self._gid, nlink, size, *times),
        )
        self.touch(number)
        return number

    def new_inode(self) -> int:
        peer = self.value("SELECT value FROM state WHERE key = 'peer'")
        low, high = peer << PEER_SHIFT, (peer + 1) << PEER_SHIFT
        number = max(
            low + 1,
            self.value("SELECT value FROM state WHERE key = 'next_inode'"),
            self.value("SELECT max(inode) + 1 FROM inodes WHERE inode >= ? AND inode < ?", low, high),
        )
        self.execute("INSERT OR REPLACE INTO state VALUES ('next_inode', ?)", (number + 1,))
        return number

    def new_file(self) -> int:
        """An empty file in lost+found."""
        number = self.make(self.new_inode(), rules.REGULAR | 0o600)
        self.set_aside(number)
        return number

    def folder(self) -> int:
        """The directory lost+found."""
        if not self._folder:
            name, count = LOST_AND_FOUND, 0
            while found := self.rows(
                "SELECT d.inode, i.mode FROM dentries d JOIN inodes i ON i.inode = d.inode"
                " WHERE d.parent = ? AND d.name = ?",
                *(ROOT_INODE, name),
            ):
                if found[0][1] & 0xF000 == rules.DIRECTORY:
                    self._folder = found[0][0]
                    return self._folder
                count += 1
                name = LOST_AND_FOUND + b".%d" % count
            self._folder = self.make(self.new_inode(), rules.DIRECTORY | 0o700)
            self._enter(ROOT_INODE, name, self._folder)
        return self._folder

    def _enter(self, parent: int, name: bytes, number: int) -> None:
        self.execute("INSERT INTO dentries(parent, name, inode) VALUES (?, ?, ?)", (parent, name, number))
        self.execute("INSERT OR REPLACE INTO changed_names VALUES (?, ?, ?)", (parent, name, self._generation))
        self.touch(parent)
        self.touch(number)

    def set_aside(self, number: int) -> None:
        """Take away every name of the inode and give it one in lost+found. Again does nothing."""
        folder = self.folder()
        if number in (ROOT_INODE, folder):
            return
        if self.rows("SELECT 1 FROM dentries WHERE inode = ? AND parent = ?", number, folder):
            return
        for (parent,) in self.rows("SELECT parent FROM dentries WHERE inode = ?", number):
            self.touch(parent)
        self.execute("DELETE FROM dentries WHERE inode = ?", (number,))
        name = b"#%d" % number
        while self.rows("SELECT 1 FROM dentries WHERE parent = ? AND name = ?", folder, name):
            name += b"'"
        self._enter(folder, name, number)

    # --- names ---------------------------------------------------------------------------------------------------

    def namespace(self) -> None:
        rule = next(rule for rule in rules.NAMESPACE if rule.code == "inode-number")
        for row in self.rows(rule.query):
            self._renumber(row[0])
        self.execute(
            "UPDATE inodes SET mode = mode & 0xFFFF, uid = iif(uid BETWEEN 0 AND 0xFFFFFFFF, uid, ?),"
            " gid = iif(gid BETWEEN 0 AND 0xFFFFFFFF, gid, ?), size = max(size, 0), rdev = max(rdev, 0),"
            f" tail = max(tail, 0), overlay = max(overlay, 0), content = (content = 1) WHERE {rules.BAD_ATTRIBUTES}",
            (self._uid, self._gid),
        )
        self._missing_inodes()
        self._drop_names("inode NOT IN (SELECT inode FROM inodes)")
        self._drop_names(rules.BAD_NAME)
        self._misplaced()
        while cycle := self.value(f"{rules.REACHED} SELECT min(i.inode) FROM inodes i WHERE {rules.CYCLE}"):
            self.set_aside(cycle)

    def _renumber(self, number: int) -> None:
        """Give what stands under an impossible number a possible one."""
        new = self.new_inode()
        for table in ("inodes", "contents", "symlinks", "xattrs", "extents", "overlays", "dentries"):
            self.execute(f"UPDATE {table} SET inode = ? WHERE inode = ?", (new, number))
        self.execute("UPDATE dentries SET parent = ? WHERE parent = ?", (new, number))

    def _drop_names(self, where: str) -> None:
        for cookie, parent, number in self.rows(f"SELECT cookie, parent, inode FROM dentries WHERE {where}"):
            self.execute("DELETE FROM dentries WHERE cookie = ?", (cookie,))
            self.touch(parent)
            if self.rows("SELECT 1 FROM inodes WHERE inode = ?", number):
                self.touch(number)

    def _missing_inodes(self) -> None:
        """Rows that speak of an inode make one; the root is made where there is none."""
        missing = self.rows(
            f"SELECT u.inode FROM ({rules.INODES_WITH_DATA}) u WHERE u.inode NOT IN (SELECT inode FROM inodes)"
        )
        for (number,) in missing:
            if number != ROOT_INODE:
                self._make_missing(number)
        if not self.rows("SELECT 1 FROM inodes WHERE inode = ?", ROOT_INODE):
            self.make(ROOT_INODE, rules.DIRECTORY | 0o755, 2)
        self.execute("UPDATE inodes SET mode = ? WHERE inode = ? AND (mode & 0xF000) <> ?", (
            *(rules.DIRECTORY | 0o755, ROOT_INODE, rules.DIRECTORY),
        ))  # fmt: skip
        for number, mode in self.rows(
            "SELECT inode, mode FROM inodes WHERE (mode & 0xF000)"
            " NOT IN (0x1000, 0x2000, 0x4000, 0x6000, 0x8000, 0xA000, 0xC000)"
        ):
            self.execute("UPDATE inodes SET mode = ? WHERE inode = ?", (self._kind(number) | mode & 0o7777, number))
            self.touch(number)

    def _kind(self, number: int) -> int:
        """What the rows of an inode make of it."""
        if self.rows("SELECT 1 FROM dentries WHERE parent = ? LIMIT 1", number):
            return rules.DIRECTORY
        return rules.SYMLINK if self.rows("SELECT 1 FROM symlinks WHERE inode = ?", number) else rules.REGULAR

    def _make_missing(self, number: int) -> None:
        self.make(number, self._kind(number) | 0o600)
        if self.rows("SELECT 1 FROM contents WHERE inode = ?", number):
            self.execute(
                "UPDATE inodes SET content = 1, size = (SELECT length(data) FROM contents WHERE inode = ?1)"
                " WHERE inode = ?1",
                (number,),
            )

    def _misplaced(self) -> None:
        """Names in what is no directory, and names of directories beyond the first."""
        self._drop_names(f"parent IN (SELECT inode FROM inodes WHERE (mode & 0xF000) <> {rules.DIRECTORY})")
        self._drop_names(
            f"inode IN (SELECT inode FROM inodes WHERE (mode & 0xF000) = {rules.DIRECTORY}) AND (inode = 1"
            " OR EXISTS (SELECT 1 FROM dentries o WHERE o.inode = dentries.inode AND o.cookie < dentries.cookie))"
        )

    def finish(self) -> None:
        """What follows from everything else: places for what has none, links, totals."""
        for (number,) in self.rows(f"SELECT i.inode FROM inodes i WHERE {rules.UNNAMED}"):
            self.set_aside(number)
        for number, links in self.rows(f"SELECT i.inode, {rules.LINKS} FROM inodes i WHERE i.nlink <> {rules.LINKS}"):
            self.execute("UPDATE inodes SET nlink = ? WHERE inode = ?", (links, number))
            self.execute("INSERT OR REPLACE INTO changed VALUES (?, ?)", (number, self._generation))
        self.execute("DELETE FROM trees WHERE inode NOT IN (SELECT inode FROM inodes)")
        self.execute(
            f"INSERT OR REPLACE INTO state SELECT t.key, t.value FROM ({rules.TOTALS}) t"
            " LEFT JOIN state s ON s.key = t.key WHERE ifnull(s.value, 0) <> t.value"
        )
