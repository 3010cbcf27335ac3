"""The bytes of files in a repair: each is in one form again, as long as what it has, and no extent lies over another.

Part of the one transaction of repair.py.
"""

from collections.abc import Callable, Iterator

import msgspec

from syncer.meta import rules
from syncer.meta.mendnames import Mender
from syncer.meta.overlays import REGION_BYTES
from syncer.meta.tablecheck import overlay_bounds

_encode = msgspec.msgpack.Encoder().encode


class ContentMender:
    """The bytes of files: extents, contents, tails and overlays."""

    def __init__(self, mender: Mender, keep: Callable[[str, bytes], None]) -> None:
        self._mender = mender
        self._keep = keep
        self.execute = mender.execute
        self.rows = mender.rows

    def mend(self) -> None:
        for number, _ in self._breaking("symlink-target"):
            self.execute("UPDATE inodes SET mode = ?, size = 0 WHERE inode = ?", (rules.REGULAR | 0o600, number))
            self.execute("DELETE FROM symlinks WHERE inode = ?", (number,))
            self._mender.set_aside(number)
        for number in {row[0] for row in self.rows(f"SELECT inode FROM xattrs WHERE {rules.BAD_XATTR}")}:
            self._keep_xattrs(number)
        self._contents()
        for number, _ in self._breaking("form"):
            self._split(number)
        self._extents()
        self._tails()
        self._overlays()
        self._unused()
        self._sizes()

    def _breaking(self, code: str) -> Iterator[tuple[int, int]]:
        """(inode, block) of what breaks the rule now."""
        rule = next(rule for rule in (*rules.CONTENT, *rules.FILES) if rule.code == code)
        return ((row[0], row[2]) for row in self.rows(rule.query))

    def _keep_xattrs(self, number: int) -> None:
        """Attributes that cannot be: kept beside, as msgpack."""
        rows = self.execute(f"SELECT name, value FROM xattrs WHERE inode = ? AND ({rules.BAD_XATTR})", (number,))
        self._keep(f"xattrs-{number}", _encode(rows.fetchall()))
        self.execute(f"DELETE FROM xattrs WHERE inode = ? AND ({rules.BAD_XATTR})", (number,))
        self._mender.touch(number)

    def _resize(self, number: int, size: int) -> None:
        self.execute("UPDATE inodes SET size = ? WHERE inode = ?", (size, number))
        self._mender.touch(number)

    def _contents(self) -> None:
        for number, _ in self._breaking("content-missing"):
            self.execute("UPDATE inodes SET content = 0 WHERE inode = ?", (number,))
            self._resize(number, 0)
            self._mender.set_aside(number)
        for number, _ in self._breaking("content-stray"):
            mode, size, length, busy = self.rows(
                "SELECT i.mode, i.size, length(c.data), i.tail OR i.overlay OR EXISTS ("
                "SELECT 1 FROM extents e WHERE e.inode = i.inode) FROM inodes i JOIN contents c ON c.inode = i.inode"
                " WHERE i.inode = ?",
                number,
            )[0]
            if mode & 0xF000 != rules.REGULAR or busy or size not in (0, length):
                new = self._mender.new_file()
                self.execute("UPDATE contents SET inode = ? WHERE inode = ?", (new, number))
                number = new
            self.execute("UPDATE inodes SET content = 1 WHERE inode = ?", (number,))
        for number, length in self.rows(
            "SELECT i.inode, length(c.data) FROM inodes i JOIN contents c ON c.inode = i.inode"
            " WHERE i.content = 1 AND i.size <> length(c.data)"
        ):
            self._resize(number, length)

    def _split(self, number: int) -> None:
        """What a file of another form has of extents, tail and overlays becomes a file of its own."""
        new = self._mender.new_file()
        self.execute(
            "UPDATE inodes SET (tail, tail_start, overlay, size) ="
            " (SELECT tail, tail_start, overlay, iif(tail > 0, size, 0) FROM inodes WHERE inode = ?1)"
            " WHERE inode = ?2",
            (number, new),
        )
        self.execute("UPDATE inodes SET tail = 0, tail_start = 0, overlay = 0 WHERE inode = ?", (number,))
        for table in ("extents", "overlays"):
            self.execute(f"UPDATE {table} SET inode = ? WHERE inode = ?", (new, number))
        self._mender.touch(number)

    def _take_out(self, number: int, start: int) -> None:
        self.execute("DELETE FROM extents WHERE inode = ? AND start = ?", (number, start))
        self._mender.touch(number)

    def _move_out(self, number: int, start: int) -> None:
        """An extent that is in the way of others becomes a file of its own."""
        new = self._mender.new_file()
        self.execute("UPDATE extents SET inode = ? WHERE inode = ? AND start = ?", (new, number, start))
        self._mender.touch(number)

    def _extents(self) -> None:
        for number, start in self.rows(
            "SELECT inode, start FROM extents WHERE length <= 0 OR start < 0 OR source = 0 OR source_offset < 0"
            " UNION SELECT inode, start FROM extents WHERE source > 0 AND source NOT IN (SELECT number FROM blocks)"
        ):
            self._take_out(number, start)
            self._mender.set_aside(number)
        for number, start in self.rows(f"SELECT inode, start FROM ({rules.OVERLAPS}) WHERE start < before"):
            self._move_out(number, start)
        self._cut(
            "SELECT e.inode, e.start, e.length, e.source, e.source_offset, b.size - e.source_offset FROM extents e"
            " JOIN blocks b ON b.number = e.source WHERE e.source_offset + e.length > b.size"
        )
        self._cut(
            "SELECT e.inode, e.start, e.length, e.source, e.source_offset, ifnull(f.length, 0) - e.source_offset"
            " FROM extents e LEFT JOIN dirty_files f ON f.number = -e.source"
            " WHERE e.source < 0 AND e.source_offset + e.length > ifnull(f.length, -1)"
        )

    def _cut(self, query: str) -> None:
        """Extents (with how many bytes they really have): what is behind is lost."""
        for number, start, _, source, offset, left in self.rows(query):
            self._take_out(number, start)
            if left > 0:
                self.execute("INSERT INTO extents VALUES (?, ?, ?, ?, ?)", (number, start, left, source, offset))
            self._mender.set_aside(number)

    def _tails(self) -> None:
        """A tail is as long as its file, and begins behind the extents."""
        for number, size, tail_start, length in self.rows(
            "SELECT i.inode, i.size, i.tail_start, ifnull(f.length, -1) FROM inodes i"
            " LEFT JOIN dirty_files f ON f.number = i.tail WHERE i.tail > 0"
        ):
            if not 0 <= tail_start <= size:
                tail_start = self._last_end(number)
                size = tail_start + max(length, 0)
                self.execute("UPDATE inodes SET tail_start = ?, size = ? WHERE inode = ?", (tail_start, size, number))
                self._mender.set_aside(number)
            if length < 0:
                self.execute("UPDATE inodes SET tail = 0, tail_start = 0 WHERE inode = ?", (number,))
            if size - tail_start > max(length, 0):
                self._resize(number, tail_start + max(length, 0))
        for number, start in self.rows(
            "SELECT e.inode, e.start FROM extents e JOIN inodes i ON i.inode = e.inode"
            " WHERE i.tail > 0 AND e.start + e.length > i.tail_start"
        ):
            self._move_out(number, start)

    def _last_end(self, number: int) -> int:
        return self._mender.value("SELECT max(start + length) FROM extents WHERE inode = ?", number)

    def _overlays(self) -> None:
        self.execute(
            "UPDATE inodes SET overlay = 0 WHERE overlay > 0 AND (overlay NOT IN (SELECT number FROM dirty_files)"
            " OR EXISTS (SELECT 1 FROM overlays o WHERE o.inode = inodes.inode AND o.dirty > inodes.overlay))"
        )
        owner = {row[0]: row[1] for row in self.rows("SELECT overlay, inode FROM inodes WHERE overlay > 0")}
        for dirty, region, number, encoded in self.execute(
            "SELECT dirty, region, inode, bounds FROM overlays ORDER BY dirty, region"
        ).fetchall():
            length = self._mender.value("SELECT length FROM dirty_files WHERE number = ?", dirty)
            bounds = overlay_bounds(encoded)
            base = region * REGION_BYTES
            if bounds is None:
                self._region_out(dirty, region, number, [0, REGION_BYTES], length)
                self._mender.set_aside(number)
            elif owner.setdefault(dirty, number) != number:
                self._region_out(dirty, region, number, bounds, length)
            elif base + bounds[-1] > length:
                self._shorten(dirty, region, bounds, length - base)
                self._mender.set_aside(number)
        for (number,) in self.rows(
            "SELECT i.inode FROM inodes i WHERE i.tail > 0 AND EXISTS ("
            "SELECT 1 FROM overlays o WHERE o.inode = i.inode AND (o.region + 1) * ? > i.tail_start)",
            REGION_BYTES,
        ):
            self._finish_tail(number)

    def _region_out(self, dirty: int, region: int, number: int, bounds: list[int], length: int) -> None:
        """A region that cannot be of this file becomes a file of its own."""
        base = region * REGION_BYTES
        self.execute("DELETE FROM overlays WHERE dirty = ? AND region = ?", (dirty, region))
        self._mender.touch(number)
        parts = [(base + low, min(base + high, length)) for low, high in zip(bounds[::2], bounds[1::2], strict=True)]
        new = 0
        for low, high in parts:
            if low < high:
                new = new or self._mender.new_file()
                self.execute("INSERT INTO extents VALUES (?, ?, ?, ?, ?)", (new, low, high - low, -dirty, low))

    def _shorten(self, dirty: int, region: int, bounds: list[int], left: int) -> None:
        kept: list[int] = []
        for low, high in zip(bounds[::2], bounds[1::2], strict=True):
            if low < left:
                kept += [low, min(high, left)]
        if kept:
            self.execute(
                "UPDATE overlays SET bounds = ? WHERE dirty = ? AND region = ?", (_encode(kept), dirty, region)
            )
        else:
            self.execute("DELETE FROM overlays WHERE dirty = ? AND region = ?", (dirty, region))

    def _finish_tail(self, number: int) -> None:
        """Where an overlay reaches into the tail, the tail becomes an extent, over which it may lie."""
        tail, start, size = self.rows("SELECT tail, tail_start, size FROM inodes WHERE inode = ?", number)[0]
        if self._overlay_end(number) > start:
            if size > start:
                self.execute("INSERT INTO extents VALUES (?, ?, ?, ?, 0)", (number, start, size - start, -tail))
            self.execute("UPDATE inodes SET tail = 0, tail_start = 0 WHERE inode = ?", (number,))
            self._mender.touch(number)

    def _overlay_end(self, number: int) -> int:
        end = 0
        for region, encoded in self.execute(
            "SELECT max(region), bounds FROM overlays WHERE inode = ? GROUP BY dirty", (number,)
        ):
            end = max(end, region * REGION_BYTES + (overlay_bounds(encoded) or [0])[-1])
        return end

    def _unused(self) -> None:
        """Dirty files that nothing refers to now become files of their own: the next start would delete them."""
        for dirty, length in self.rows(f"SELECT f.number, f.length FROM dirty_files f WHERE {rules.UNUSED}"):
            new = self._mender.new_file()
            self.execute("INSERT INTO extents VALUES (?, 0, ?, ?, 0)", (new, length, -dirty))

    def _sizes(self) -> None:
        """A file is as long as what it has; a symlink as its target."""
        for number, size, tail in self.rows(
            f"SELECT inode, size, tail FROM inodes i WHERE content = 0 AND (mode & 0xF000) = {rules.REGULAR}"
            " AND (inode IN (SELECT inode FROM overlays)"
            " OR EXISTS (SELECT 1 FROM extents e WHERE e.inode = i.inode AND e.start + e.length > i.size))"
        ):
            end = max(self._last_end(number), self._overlay_end(number))
            if end > size and not tail:
                self._resize(number, end)
        for number, length in self.rows(
            "SELECT i.inode, length(s.target) FROM symlinks s JOIN inodes i ON i.inode = s.inode"
            f" WHERE (i.mode & 0xF000) = {rules.SYMLINK} AND i.size <> length(s.target)"
        ):
            self._resize(number, length)
