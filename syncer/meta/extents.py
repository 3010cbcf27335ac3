"""Where the bytes of a file are: small contents, extents of blocks and dirty files, the growing tail.

A regular file is in one of two forms:

- **content**: all bytes are in `Inode.content` (at most SMALL_BYTES); no extents, no tail.
- **extents**: [0, tail_start) is described by the extents table, [tail_start, size) is the tail when there is one.

Every method journaled here is told by its caller which dirty file took the bytes *after* they were written there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NewType

from syncer.meta.blocktable import CACHED_FILE, CACHED_ROW, BlockTable
from syncer.meta.database import Database, Table, journaled
from syncer.meta.inodes import Inode, InodeTable
from syncer.values import SMALL_BYTES, BlockId

DirtyNumber = NewType("DirtyNumber", int)
"""Names a file under dirty/; 1 or more, never reused."""


@dataclass(frozen=True, slots=True)
class Extent:
    """*length* bytes of the file at *start*: source > 0 is a block's number, source < 0 the dirty file -source."""

    start: int
    length: int
    source: int
    source_offset: int

    @property
    def end(self) -> int:
        return self.start + self.length


Piece = tuple[int, int, BlockId, bytes | int]
"""A sealed piece of a file: (start, length, block id, where its bytes are: themselves, to be kept as a row, or the
number of the dirty file that holds just them and is to move into the cache)."""


class ExtentTable(Table):
    def __init__(self, database: Database, inodes: InodeTable, blocks: BlockTable) -> None:
        super().__init__(database)
        self._inodes = inodes
        self._blocks = blocks
        self._next_dirty = database.state_integer("next_dirty") or 1
        self._gone: list[tuple[DirtyNumber, int]] = []
        self.dropped: list[DirtyNumber] = []
        """Dirty files that nothing refers to since the last commit; their owner deletes them and clears the list."""
        database.on_commit.append(self._report_dropped)

    def new_dirty(self) -> DirtyNumber:
        """A number for a new dirty file."""
        number = DirtyNumber(self._next_dirty)
        self._next_dirty += 1
        return number

    # --- reading -------------------------------------------------------------------------------------------------

    def find(self, number: int, start: int, end: int) -> list[Extent]:
        """The extents that overlap [start, end), in order. The tail is not among them."""
        rows = self.execute(
            "SELECT start, length, source, source_offset FROM extents WHERE inode = ?1 AND start < ?3 AND start >="
            " ifnull((SELECT start FROM extents WHERE inode = ?1 AND start <= ?2 ORDER BY start DESC LIMIT 1), 0)"
            " ORDER BY start",
            (number, start, end),
        ).fetchall()
        return [Extent(*row) for row in rows if row[0] + row[1] > start]

    def last_end(self, number: int) -> int:
        """Where the last extent ends; 0 without one."""
        row = self.execute(
            "SELECT start + length FROM extents WHERE inode = ? ORDER BY start DESC LIMIT 1", (number,)
        ).fetchone()
        return int(row[0]) if row else 0

    def dirty_inodes(self) -> list[int]:
        """Inodes with extents in dirty files."""
        return [row[0] for row in self.execute("SELECT DISTINCT inode FROM extents WHERE source < 0")]

    def dirty_extents(self, number: int) -> list[Extent]:
        rows = self.execute(
            "SELECT start, length, source, source_offset FROM extents WHERE inode = ? AND source < 0 ORDER BY start",
            (number,),
        )
        return [Extent(*row) for row in rows]

    def has_pending(self, number: int) -> bool:
        """Whether a block of the file is not on the remote."""
        row = self.execute(
            "SELECT 1 FROM extents e JOIN blocks b ON b.number = e.source WHERE e.inode = ? AND e.source > 0"
            " AND b.pack IS NULL LIMIT 1",
            (number,),
        ).fetchone()
        return row is not None

    def is_dirty_in_use(self, dirty: int) -> bool:
        """Whether an extent refers to the dirty file."""
        return self.execute("SELECT 1 FROM extents WHERE source = ? LIMIT 1", (-dirty,)).fetchone() is not None

    def dirty_in_use(self) -> set[DirtyNumber]:
        """Every dirty file that something refers to. Complete only right after a commit."""
        rows = self.execute(
            "SELECT -source FROM extents WHERE source < 0 UNION SELECT tail FROM inodes WHERE tail > 0"
            " UNION SELECT overlay FROM inodes WHERE overlay > 0 UNION SELECT dirty FROM settling"
        )
        return {row[0] for row in rows}

    # --- parts of journaled operations ---------------------------------------------------------------------------

    def _clear(self, number: int, start: int, end: int) -> None:
        """Take [start, end) out of the extents, splitting those that reach over."""
        for extent in self.find(number, start, end):
            self.execute("DELETE FROM extents WHERE inode = ? AND start = ?", (number, extent.start))
            if extent.start < start:
                self._insert(number, extent.start, start - extent.start, extent.source, extent.source_offset)
            if extent.end > end:
                self._insert(number, end, extent.end - end, extent.source, extent.source_offset + end - extent.start)
            if extent.source < 0:
                self._maybe_gone(-extent.source, number)

    def _insert(self, number: int, start: int, length: int, source: int, source_offset: int) -> None:
        self.execute("INSERT INTO extents VALUES (?, ?, ?, ?, ?)", (number, start, length, source, source_offset))

    def _maybe_gone(self, dirty: int, number: int) -> None:
        """Remember that *dirty*, a file of inode *number*, may have lost its last reference; the commit decides."""
        self._gone.append((DirtyNumber(dirty), number))

    def _block(self, number: int, block_id: BlockId, length: int, held: bytes | int, now_s: int) -> int:
        """The number of the block whose bytes *held* has (see `Piece`), for inode *number*."""
        if isinstance(held, bytes):
            return self._blocks.add(block_id, length, CACHED_ROW, held, now_s)
        self._used_dirty(held)
        before = self._blocks.find(block_id)
        block = self._blocks.add(block_id, length, CACHED_FILE, None, now_s)
        if before is None or not before.cached:
            self.execute("INSERT OR REPLACE INTO settling VALUES (?, ?, ?)", (held, block, length))
        else:
            self._maybe_gone(held, number)
        return block

    def _written(self, inode: Inode, end: int, now_ns: int) -> None:
        if end > inode.size:
            self._inodes.resize(inode, end)
        inode.mtime_ns = inode.ctime_ns = now_ns
        inode.epoch += 1
        self._inodes.touch(inode)

    def _used_dirty(self, dirty: int) -> None:
        if dirty >= self._next_dirty:
            self._next_dirty = dirty + 1

    # --- small contents ------------------------------------------------------------------------------------------

    @journaled(40)
    def write_content(self, number: int, offset: int, data: bytes, now_ns: int) -> None:
        """Write into the small content of a file (which begins to be one when it is empty)."""
        inode = self._inodes.need(number)
        content = inode.content
        if content is None:
            content = inode.content = bytearray()
        if offset > len(content):
            content.extend(bytes(offset - len(content)))
        content[offset : offset + len(data)] = data
        assert len(content) <= SMALL_BYTES
        inode.content_dirty = True
        self._written(inode, offset + len(data), now_ns)

    @journaled(41)
    def spill(self, number: int, dirty: int) -> None:
        """The small content was written to the dirty file, which is now the tail."""
        inode = self._inodes.need(number)
        self._used_dirty(dirty)
        inode.content = None
        inode.content_dirty = True
        inode.tail, inode.tail_start = dirty, 0
        inode.epoch += 1
        self._inodes.touch(inode)

    @journaled(42)
    def seal_content(self, number: int, block_id: BlockId, now_s: int) -> None:
        """The small content becomes one block (a row), or a hole where it is empty."""
        inode = self._inodes.need(number)
        assert inode.content is not None
        data = bytes(inode.content)
        inode.content = None
        inode.content_dirty = True
        inode.epoch += 1
        self._inodes.touch(inode)
        if data:
            block = self._blocks.add(block_id, len(data), CACHED_ROW, data, now_s)
            self._insert(number, 0, len(data), block, 0)

    @journaled(43)
    def unseal_content(self, number: int, data: bytes) -> None:
        """A small file of one block is about to be written again: *data* is its content from now on."""
        inode = self._inodes.need(number)
        self._clear(number, 0, inode.size)
        inode.content = bytearray(data)
        inode.content_dirty = True
        inode.epoch += 1
        self._inodes.touch(inode)

    # --- the tail ------------------------------------------------------------------------------------------------

    @journaled(44)
    def append(self, number: int, dirty: int, start: int, length: int, now_ns: int) -> None:
        """The tail grew by *length* bytes; it begins with them, at *start*, when the file had none."""
        inode = self._inodes.need(number)
        if not inode.tail:
            self._used_dirty(dirty)
            inode.tail, inode.tail_start = dirty, start
            self._inodes.resize(inode, max(inode.size, start))
        self._written(inode, inode.size + length, now_ns)

    @journaled(45)
    def cut(self, number: int, pieces: Sequence[Piece], rest: int, rest_start: int, now_s: int) -> None:
        """The tail became *pieces*, the first of which may be its own file, up to a length; between them are zeros.

        From *rest_start* on the dirty file *rest* is the tail; without one (0) the file ends in a block or a hole.
        The caller moves the pieces into the cache; `settling` remembers that until it is done.
        """
        inode = self._inodes.need(number)
        dirty = inode.tail
        if rest:
            self._used_dirty(rest)
        inode.tail, inode.tail_start = rest, rest_start if rest else 0
        inode.epoch += 1
        self._inodes.touch(inode)
        for start, length, block_id, held in pieces:
            self._insert(number, start, length, self._block(number, block_id, length, held, now_s), 0)
        if not pieces or pieces[0][3] != dirty:
            self._maybe_gone(dirty, number)

    @journaled(46)
    def finish_tail(self, number: int) -> None:
        """The tail grows no more: it becomes an extent in its dirty file, to be sealed later."""
        inode = self._inodes.need(number)
        self._finish_tail(inode)
        inode.epoch += 1
        self._inodes.touch(inode)

    def _finish_tail(self, inode: Inode) -> None:
        if inode.tail:
            length = inode.size - inode.tail_start
            if length:
                self._insert(inode.number, inode.tail_start, length, -inode.tail, 0)
            else:
                self._maybe_gone(inode.tail, inode.number)
            inode.tail = inode.tail_start = 0

    # --- the overlay ---------------------------------------------------------------------------------------------

    @journaled(47)
    def write_overlay(self, number: int, offset: int, length: int, overlay: int, now_ns: int) -> None:
        """[offset, offset + length) was written to the overlay, at the same offsets. It does not touch the tail."""
        inode = self._inodes.need(number)
        if inode.overlay != overlay:
            self._used_dirty(overlay)
            inode.overlay = overlay
        end = offset + length
        covering = self.find(number, offset, end)
        one = covering[0] if len(covering) == 1 else None
        if one is None or one.start >= offset or one.end < end:
            if one is None or one.source != -overlay or one.start > offset or one.end < end:
                self._clear(number, offset, end)
                self._join(number, offset, length, overlay)
        elif one.source != -overlay:
            self._split(number, one, offset, end)
            self._insert(number, offset, length, -overlay, offset)
        self._written(inode, end, now_ns)

    def _split(self, number: int, extent: Extent, start: int, end: int) -> None:
        """Take [start, end) out of the inner part of an extent: `_clear` for the commonest case, in half the time."""
        head = start - extent.start
        self.execute("UPDATE extents SET length = ? WHERE inode = ? AND start = ?", (head, number, extent.start))
        if extent.end > end:
            offset = extent.source_offset + end - extent.start
            self._insert(number, end, extent.end - end, extent.source, offset)
        if extent.source < 0:
            self._maybe_gone(-extent.source, number)

    def _join(self, number: int, offset: int, length: int, overlay: int) -> None:
        """Insert an overlay extent, joined to the neighbour before it where that is in the overlay too."""
        grown = self.execute(
            "UPDATE extents SET length = length + ?1 WHERE inode = ?2 AND source = ?3 AND start + length = ?4"
            " AND start = (SELECT start FROM extents WHERE inode = ?2 AND start < ?4 ORDER BY start DESC LIMIT 1)",
            (length, number, -overlay, offset),
        )
        if not grown.rowcount:
            self._insert(number, offset, length, -overlay, offset)

    @journaled(48)
    def retire_overlay(self, number: int) -> None:
        """The overlay takes no more writes (it is about to be sealed); the next write begins another."""
        inode = self._inodes.need(number)
        if inode.overlay:
            self._maybe_gone(inode.overlay, number)
            inode.overlay = 0
            self._inodes.touch(inode)

    @journaled(49)
    def seal(self, number: int, dirty: int, begin: int, end: int, pieces: Sequence[Piece], now_s: int) -> None:
        """[begin, end) of the file, as the dirty file has it, became blocks: replace what extents still refer to it.

        What was written over since then stays. Between the pieces there were zeros, which need no extent.
        """
        inode = self._inodes.get(number)
        for start, length, block_id, held in pieces:
            still = [extent for extent in self.find(number, start, start + length) if extent.source == -dirty]
            if not still:  # erased, cut off or written over meanwhile: a block that nothing names would stay for ever
                if isinstance(held, int):
                    self._used_dirty(held)
                    self._maybe_gone(held, number)
                continue
            block = self._block(number, block_id, length, held, now_s)
            for extent in still:
                low, high = max(extent.start, start), min(extent.end, start + length)
                self._clear(number, low, high)
                self._insert(number, low, high - low, block, low - start)
        if inode is None:
            return
        for extent in self.find(number, begin, end):
            if extent.source == -dirty:
                self._clear(number, max(extent.start, begin), min(extent.end, end))
        self._maybe_gone(dirty, number)
        inode.epoch += 1
        self._inodes.touch(inode)

    @journaled(50)
    def replace(self, number: int, start: int, length: int, pieces: Sequence[Piece], now_s: int) -> None:
        """The same bytes, cut differently. The caller has made sure that [start, start + length) did not change."""
        inode = self._inodes.need(number)
        self._clear(number, start, start + length)
        for piece_start, piece_length, block_id, held in pieces:
            block = self._block(number, block_id, piece_length, held, now_s)
            self._insert(number, piece_start, piece_length, block, 0)
        inode.epoch += 1
        self._inodes.touch(inode)

    # --- size ----------------------------------------------------------------------------------------------------

    @journaled(51)
    def truncate(self, number: int, size: int, now_ns: int) -> None:
        """Set the size. What lies beyond is gone, also when the file grows again; growth is a hole."""
        inode = self._inodes.need(number)
        if inode.content is not None and size <= SMALL_BYTES:
            if size < len(inode.content):
                del inode.content[size:]
            else:
                inode.content.extend(bytes(size - len(inode.content)))
            inode.content_dirty = True
        else:
            assert inode.content is None
            self._finish_tail(inode)
            if size < inode.size:
                self._clear(number, size, max(inode.size, self.last_end(number)))
            if not size and inode.overlay:
                self._maybe_gone(inode.overlay, number)
                inode.overlay = 0
        self._inodes.resize(inode, size)
        self._written(inode, size, now_ns)

    @journaled(52)
    def erase(self, number: int) -> None:
        """Delete an orphan and everything it held."""
        inode = self._inodes.get(number)
        if inode is None:
            return
        for dirty in (inode.tail, inode.overlay):
            if dirty:
                self._maybe_gone(dirty, number)
        rows = self.execute("SELECT DISTINCT -source FROM extents WHERE inode = ? AND source < 0", (number,))
        for row in rows.fetchall():
            self._maybe_gone(row[0], number)
        self.execute("DELETE FROM extents WHERE inode = ?", (number,))
        self._inodes.erase(inode)

    # --- commit --------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        self.execute("INSERT OR REPLACE INTO state VALUES ('next_dirty', ?)", (self._next_dirty,))

    def _report_dropped(self) -> None:
        """After a commit: of the dirty files that lost a reference, those that have none left are dropped."""
        gone, self._gone = self._gone, []
        for dirty, number in dict(gone).items():
            inode = self._inodes.get(number)
            if inode is not None and dirty in (inode.tail, inode.overlay):
                continue
            used = self.execute(
                "SELECT 1 FROM extents WHERE source = ?1 UNION ALL SELECT 1 FROM settling WHERE dirty = ?2 LIMIT 1",
                (-dirty, dirty),
            ).fetchone()
            if used is None:
                self.dropped.append(dirty)

    def forget_cached(self) -> None:
        self._gone.clear()
