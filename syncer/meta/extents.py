"""Where the bytes of a file are: small contents, extents of blocks and dirty files, the growing tail.

A regular file is in one of two forms:

- **content**: all bytes are in `Inode.content` (at most SMALL_BYTES); no extents, no tail.
- **extents**: [0, tail_start) is described by the extents table, with the overlays laid over it; [tail_start, size) is
  the tail when there is one.

Every method journaled here is told by its caller which dirty file took the bytes *after* they were written there.
"""

from collections.abc import Collection, Container, Sequence

from syncer.meta.blocktable import CACHED_FILE, CACHED_ROW, BlockTable
from syncer.meta.database import Database, Table, journaled
from syncer.meta.extent import DirtyNumber, Extent, Part, Piece, laid_over
from syncer.meta.inodes import Inode, InodeTable
from syncer.meta.overlays import REGION_BYTES, OverlayTable
from syncer.values import FILE_END_MAX, SMALL_BYTES, BlockId

REMOVED_AT_ONCE = 512
"""So many extents one operation removes while others wait: about 10 ms."""


class ExtentTable(Table):
    def __init__(self, database: Database, inodes: InodeTable, blocks: BlockTable, overlays: OverlayTable) -> None:
        super().__init__(database)
        self._inodes = inodes
        self._blocks = blocks
        self._overlays = overlays
        self._next_dirty = database.state_integer("next_dirty") or 1
        self._gone: list[tuple[DirtyNumber, int]] = []
        self.cuts: dict[int, int] = {}
        """Inodes with extents that are still to be removed, from where on."""
        self._load_cuts()
        self.dropped: list[DirtyNumber] = []
        """Dirty files that nothing refers to since the last commit; their owner deletes them and clears the list."""
        database.on_commit.append(self._report_dropped)

    def new_dirty(self) -> DirtyNumber:
        """A number for a new dirty file."""
        number = DirtyNumber(self._next_dirty)
        self._next_dirty += 1
        return number

    def _load_cuts(self) -> None:
        self.cuts = dict(self.execute("SELECT inode, start FROM cuts").fetchall())

    def skip_dirty(self, number: int) -> None:
        """There is a dirty file of that number: new ones get higher ones."""
        self.database.begin()
        self._used_dirty(number)

    # --- reading -------------------------------------------------------------------------------------------------

    def find(self, number: int, start: int, end: int) -> list[Extent]:
        """The extents that overlap [start, end), in order. The tail is not among them."""
        if not self._overlays.of(number):
            return self._rows(number, start, end)
        around = self.view(number, start - start % REGION_BYTES, end + -end % REGION_BYTES)
        return [extent for extent in around if extent.start < end and extent.end > start]

    def view(self, number: int, start: int, end: int, *, frozen: bool = False) -> list[Extent]:
        """What covers [start, end), clipped to it, in order. *frozen*: without the overlay that takes writes."""
        parts = [
            extent.part(max(extent.start, start), min(extent.end, end)) for extent in self._rows(number, start, end)
        ]
        for dirty in self._frozen(number) if frozen else self._overlays.of(number):
            ranges = self._overlays.ranges(dirty, start, end)
            parts = laid_over(parts, [Extent(low, high - low, -dirty, low) for low, high in ranges])
        return parts

    def newest_frozen(self, number: int) -> int:
        """The youngest overlay of the inode that takes no more writes; 0 without one. The one that does is younger."""
        return max(self._frozen(number), default=0)

    def _frozen(self, number: int) -> list[int]:
        """The overlays of the inode that take no more writes, oldest first."""
        inode = self._inodes.get(number)
        return [dirty for dirty in self._overlays.of(number) if inode is None or dirty != inode.overlay]

    def _rows(self, number: int, start: int, end: int) -> list[Extent]:
        """The rows that overlap [start, end), in order; not those that are cut off."""
        if number in self.cuts:
            end = min(end, self.cuts[number])
        rows = self.execute(
            "SELECT start, length, source, source_offset FROM extents WHERE inode = ?1 AND start < ?3 AND start >="
            " ifnull((SELECT start FROM extents WHERE inode = ?1 AND start <= ?2 ORDER BY start DESC LIMIT 1), 0)"
            " ORDER BY start",
            (number, start, end),
        ).fetchall()
        return [Extent(*row) for row in rows if row[0] + row[1] > start]

    def has_many(self, number: int, start: int = 0) -> bool:
        """Whether more extents begin at *start* or beyond than one operation should remove."""
        row = self.execute(
            "SELECT 1 FROM extents WHERE inode = ? AND start >= ? LIMIT 1 OFFSET ?", (number, start, REMOVED_AT_ONCE)
        ).fetchone()
        return row is not None

    def has_cut_files(self) -> bool:
        """Whether a file that has a name has extents left that were cut off."""
        return any(self._inodes.need(number).nlink for number in self.cuts)

    def last_end(self, number: int) -> int:
        """Where the last extent ends; 0 without one."""
        row = self.execute(
            "SELECT start + length FROM extents WHERE inode = ? ORDER BY start DESC LIMIT 1", (number,)
        ).fetchone()
        return int(row[0]) if row else 0

    def dirty_inodes(self) -> list[int]:
        """Inodes with bytes in dirty files other than a tail."""
        rows = self.execute("SELECT DISTINCT inode FROM extents INDEXED BY extents_dirty WHERE source < 0")
        return list({*(row[0] for row in rows), *self._overlays.inodes()})

    def dirty_files(self, inode: Inode) -> set[int]:
        """The dirty files that hold bytes of the inode."""
        return {*self._sources(inode.number), inode.tail, *self._overlays.of(inode.number)} - {0}

    def dirty_rows(self) -> list[tuple[int, Extent]]:
        """(inode, extent) of all bytes in dirty files but tails and overlays."""
        rows = self.execute(
            "SELECT inode, start, length, source, source_offset FROM extents INDEXED BY extents_dirty WHERE source < 0"
        )
        return [(row[0], Extent(*row[1:])) for row in rows.fetchall()]

    def held_by(self, dirty: int) -> list[tuple[int, Extent]]:
        """(inode, extent) of all bytes that the dirty file holds."""
        if self._overlays.has(dirty):
            number = self._overlays.inode(dirty)
            ranges = self._overlays.ranges(dirty, 0, FILE_END_MAX)
            return [(number, Extent(low, high - low, -dirty, low)) for low, high in ranges]
        inode = self._inodes.of_tail(dirty)
        if inode is not None:
            return [(inode.number, Extent(inode.tail_start, inode.size - inode.tail_start, -dirty, 0))]
        return [row for row in self.dirty_rows() if row[1].source == -dirty]

    def of_sources(self, sources: Collection[int]) -> list[tuple[int, Extent]]:
        """(inode, extent) of all extents with one of *sources*. Goes over all there are, if there is a source."""
        rows = self.execute("SELECT inode, start, length, source, source_offset FROM extents") if sources else []
        return [(row[0], Extent(*row[1:])) for row in rows if row[3] in sources]

    def _sources(self, number: int, start: int = 0, end: int = FILE_END_MAX) -> list[int]:
        """The dirty files of rows that begin in [start, end)."""
        rows = self.execute(
            "SELECT DISTINCT -source FROM extents INDEXED BY extents_dirty"
            " WHERE inode = ? AND source < 0 AND start >= ? AND start < ?",
            (number, start, end),
        )
        return [row[0] for row in rows]

    def next_frozen(self, number: int, position: int) -> int | None:
        """The first byte at or after *position* that is in a dirty file which takes no more writes."""
        row = self.execute(
            "SELECT max(start, ?2) FROM extents INDEXED BY extents_dirty WHERE inode = ?1 AND source < 0"
            " AND start + length > ?2 ORDER BY start LIMIT 1",
            (number, position),
        ).fetchone()
        found = [self._overlays.next_after(dirty, position) for dirty in self._frozen(number)]
        return min((start for start in [*(row or ()), *found] if start is not None), default=None)

    def names_any(self, number: int, blocks: Container[int]) -> bool:
        """Whether the file has bytes of one of the blocks. Looks at every extent it has."""
        return any(row[0] in blocks for row in self.execute("SELECT source FROM extents WHERE inode = ?", (number,)))

    def has_pending(self, number: int) -> bool:
        """Whether a block of the file is not on the remote, or in a pack that no index there lists."""
        oldest = self.execute(
            "SELECT min(number) FROM (SELECT min(number) AS number FROM blocks WHERE pack IS NULL UNION ALL"
            " SELECT (SELECT min(b.number) FROM blocks b WHERE b.pack = p.number) FROM packs p WHERE p.indexed IS NULL)"
        ).fetchone()[0]
        row = (
            oldest
            and self.execute(
                "SELECT 1 FROM extents e WHERE e.inode = ?1 AND e.source >= ?2"
                " AND EXISTS (SELECT 1 FROM blocks b WHERE b.number = e.source AND (b.pack IS NULL"
                " OR EXISTS (SELECT 1 FROM packs p WHERE p.number = b.pack AND p.indexed IS NULL))) LIMIT 1",
                (number, oldest),
            ).fetchone()
        )
        return bool(row)

    def dirty_in_use(self) -> set[DirtyNumber]:
        """Every dirty file that something refers to. Complete only right after a commit."""
        rows = self.execute(
            "SELECT -source FROM extents WHERE source < 0 UNION SELECT tail FROM inodes WHERE tail > 0"
            " UNION SELECT overlay FROM inodes WHERE overlay > 0 UNION SELECT dirty FROM settling"
            " UNION SELECT dirty FROM overlays"
        )
        return {row[0] for row in rows}

    # --- parts of journaled operations ---------------------------------------------------------------------------

    def _clear(self, number: int, start: int, end: int) -> None:
        """Take [start, end) out of the rows, splitting those that reach over."""
        for extent in {*self._rows(number, start, start + 1), *self._rows(number, end - 1, end)}:
            if extent.start < start or extent.end > end:
                self.execute("DELETE FROM extents WHERE inode = ? AND start = ?", (number, extent.start))
                if extent.start < start:
                    self._insert(number, extent.start, start - extent.start, extent.source, extent.source_offset)
                if extent.end > end:
                    self._insert(
                        number, end, extent.end - end, extent.source, extent.source_offset + end - extent.start
                    )
                if extent.source < 0:
                    self._maybe_gone(-extent.source, number)
        for dirty in self._sources(number, start, end):
            self._maybe_gone(dirty, number)
        self.execute("DELETE FROM extents WHERE inode = ? AND start >= ? AND start < ?", (number, start, end))

    def _uncover(self, number: int, start: int, end: int, newest: int | None = None) -> None:
        """Take [start, end) out of the overlays, those up to *newest*."""
        for dirty in list(self._overlays.of(number)):
            if (newest is None or dirty <= newest) and self._overlays.clear(dirty, start, end):
                self._maybe_gone(dirty, number)

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
        has_copy = before is not None and before.cached and not self._blocks.is_damaged(before.number)
        block = self._blocks.add(block_id, length, CACHED_FILE, None, now_s)
        if not has_copy:
            self.execute("INSERT OR REPLACE INTO settling VALUES (?, ?, ?)", (held, block, length))
        else:
            self._maybe_gone(held, number)
        return block

    def _written(self, inode: Inode, end: int, now_ns: int) -> None:
        if end > inode.size:
            self._finish_cut(inode.number)
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
            self.database.expect(offset - len(content))
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
        self._uncover(number, 0, inode.size)
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
        self._overlays.add(number, overlay, offset, end)
        self._written(inode, end, now_ns)

    @journaled(48)
    def retire_overlay(self, number: int) -> None:
        """The overlay takes no more writes (it is about to be sealed); the next write begins another."""
        inode = self._inodes.need(number)
        if inode.overlay:
            self._maybe_gone(inode.overlay, number)
            inode.overlay = 0
            self._inodes.touch(inode)

    @journaled(49)
    def seal(self, number: int, start: int, end: int, newest: int, pieces: Sequence[Piece], now_s: int) -> None:
        """What covers [start, end), the overlays up to *newest* among it, became blocks; between them there are zeros.

        The caller has made sure that it is still what was read to make them.
        """
        inode = self._inodes.need(number)
        self._clear(number, start, end)
        self._uncover(number, start, end, newest)
        for piece_start, length, block_id, held in pieces:
            self._insert(number, piece_start, length, self._block(number, block_id, length, held, now_s), 0)
        inode.epoch += 1
        self._inodes.touch(inode)

    # --- losses --------------------------------------------------------------------------------------------------

    @journaled(53)
    def lose(self, number: int, start: int, end: int) -> None:
        """The bytes that the rows have in [start, end) are nowhere any more: a hole, or what overlays have there."""
        inode = self._inodes.need(number)
        self._clear(number, start, end)
        inode.epoch += 1
        self._inodes.touch(inode)

    @journaled(54)
    def lose_overlay(self, number: int, dirty: int, start: int, end: int) -> None:
        """What one overlay has in [start, end) is nowhere any more: what is below it counts again."""
        inode = self._inodes.need(number)
        if self._overlays.clear(dirty, start, end):
            self._maybe_gone(dirty, number)
        inode.epoch += 1
        self._inodes.touch(inode)

    # --- going back to blocks --------------------------------------------------------------------------------------

    @journaled(95)
    def relink(self, number: int, start: int, end: int, parts: Sequence[Part], size: int, now_ns: int) -> None:
        """[start, end) of the file becomes *parts*, and the file ends at *size*.

        The blocks have rows; between the parts there are zeros. What the file held as a small content is gone.
        """
        inode = self._inodes.need(number)
        if inode.content is not None:
            inode.content, inode.content_dirty = None, True
        self._finish_tail(inode)
        self._finish_cut(number)
        if end > start:
            self._clear(number, start, end)
            self._uncover(number, start, end)
        cursor = self.executemany(
            "INSERT INTO extents SELECT ?1, ?2, ?3, number, ?4 FROM blocks WHERE id = ?5",
            [(number, part_start, length, offset, block_id) for part_start, length, block_id, offset in parts],
        )
        assert not parts or cursor.rowcount == len(parts)
        if size < inode.size:
            self._cut_off(inode, size)
            self._uncover(number, size, inode.size)
        if inode.overlay and not self._overlays.has(inode.overlay):
            self._maybe_gone(inode.overlay, number)
            inode.overlay = 0
        self._inodes.resize(inode, size)
        inode.ctime_ns = now_ns
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
                self.database.expect(size - len(inode.content))
                inode.content.extend(bytes(size - len(inode.content)))
            inode.content_dirty = True
        else:
            assert inode.content is None
            self._finish_tail(inode)
            if size < inode.size:
                self._cut_off(inode, size)
                self._uncover(number, size, inode.size)
            elif size > inode.size:
                self._finish_cut(number)
            if not size and inode.overlay:
                self._maybe_gone(inode.overlay, number)
                inode.overlay = 0
        self._inodes.resize(inode, size)
        self._written(inode, size, now_ns)

    def _cut_off(self, inode: Inode, size: int) -> None:
        """Take what is beyond *size* out of the rows, or out of sight where that is much: `remove_cut` follows."""
        number = inode.number
        if not self.has_many(number, size):
            self._clear(number, size, max(inode.size, self.last_end(number)))
            self._forget_cut(number)
            return
        for extent in self._rows(number, size, size + 1):
            if extent.start < size:
                self._clear(number, size, extent.end)
        for dirty in self._sources(number, size):
            self._maybe_gone(dirty, number)
        self.execute(
            "DELETE FROM extents INDEXED BY extents_dirty WHERE inode = ? AND start >= ? AND source < 0", (number, size)
        )
        self.cuts[number] = size
        self.execute("INSERT OR REPLACE INTO cuts VALUES (?, ?)", (number, size))

    def _finish_cut(self, number: int) -> None:
        """The file is about to grow: what was cut off must not come back."""
        if number in self.cuts:
            self.execute("DELETE FROM extents WHERE inode = ? AND start >= ?", (number, self.cuts[number]))
            self._forget_cut(number)

    def _forget_cut(self, number: int) -> None:
        if self.cuts.pop(number, None) is not None:
            self.execute("DELETE FROM cuts WHERE inode = ?", (number,))

    @journaled(55)
    def remove_cut(self, number: int, count: int) -> None:
        """Remove the next *count* extents of what was cut off the file."""
        if number not in self.cuts:
            return
        start = self.cuts[number]
        following = self.execute(
            "SELECT start FROM extents WHERE inode = ? AND start >= ? ORDER BY start LIMIT 1 OFFSET ?",
            (number, start, count),
        ).fetchone()
        if following is None:
            self._finish_cut(number)
        else:
            self.execute(
                "DELETE FROM extents WHERE inode = ? AND start >= ? AND start < ?", (number, start, following[0])
            )

    @journaled(52)
    def erase(self, number: int) -> None:
        """Delete an orphan and everything it held."""
        inode = self._inodes.get(number)
        if inode is None:
            return
        for dirty in self.dirty_files(inode) | {inode.overlay} - {0}:
            self._maybe_gone(dirty, number)
        self._uncover(number, 0, max(inode.size, 1))
        self.execute("DELETE FROM extents WHERE inode = ?", (number,))
        self._forget_cut(number)
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
            used = (
                self._overlays.has(dirty)
                or self.execute(
                    "SELECT 1 FROM extents INDEXED BY extents_dirty WHERE inode = ?1 AND source = -?2 AND source < 0"
                    " UNION ALL SELECT 1 FROM settling WHERE dirty = ?2 LIMIT 1",
                    (number, dirty),
                ).fetchone()
            )
            if not used:
                self.dropped.append(dirty)

    def forget_cached(self) -> None:
        self._gone.clear()
        self._load_cuts()
