"""Which bytes of a file its overlays hold.

An overlay is a sparse dirty file with the offsets of its file. A file may have several: one that takes writes, and
older ones that are being sealed; where they overlap, the newest holds the bytes. Ranges are kept in memory by regions
of the file and written with the next commit, so that a write costs no statement.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator

import msgspec

from syncer.meta.database import Database, Table

REGION_BYTES = 256 * 1024
"""One row; as many ranges as there are holes between them."""
KEPT_REGIONS = 8192
_FEW_REGIONS = 256

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[int]).decode


class _Overlay:
    __slots__ = ("changed", "dirty", "inode", "regions", "used_regions")

    def __init__(self, dirty: int, inode: int, used_regions: int) -> None:
        self.dirty = dirty
        self.inode = inode
        self.regions: dict[int, list[int]] = {}
        """Of the regions looked at: where ranges begin and end, in turn, ascending. Ranges never touch."""
        self.changed: set[int] = set()
        self.used_regions = used_regions
        """How many regions have a range, here or in the table."""


class OverlayTable(Table):
    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self._overlays: dict[int, _Overlay] = {}
        self._of_inode: dict[int, list[int]] = {}
        self._changed: set[_Overlay] = set()
        self._kept_regions = 0
        self._load_all()

    def _load_all(self) -> None:
        rows = self.execute("SELECT dirty, inode, count(*) FROM overlays GROUP BY dirty ORDER BY dirty")
        for dirty, inode, count in rows.fetchall():
            self._keep(_Overlay(dirty, inode, count))

    def _keep(self, overlay: _Overlay) -> None:
        self._overlays[overlay.dirty] = overlay
        self._of_inode.setdefault(overlay.inode, []).append(overlay.dirty)
        self._of_inode[overlay.inode].sort()

    # --- reading -------------------------------------------------------------------------------------------------

    def of(self, number: int) -> list[int]:
        """The overlays of the inode that hold any byte, oldest first. Not to be changed."""
        return self._of_inode.get(number, [])

    def inodes(self) -> list[int]:
        """Inodes with bytes in an overlay."""
        return list(self._of_inode)

    def has(self, dirty: int) -> bool:
        """Whether the dirty file is an overlay that holds any byte."""
        return dirty in self._overlays

    def inode(self, dirty: int) -> int:
        """The inode whose overlay it is. Raises: KeyError: it is none that holds any byte."""
        return self._overlays[dirty].inode

    def ranges(self, dirty: int, start: int, end: int) -> list[tuple[int, int]]:
        """The ranges (first byte, one after the last) of an overlay in [start, end), clipped to it, in order."""
        found: list[tuple[int, int]] = []
        overlay = self._overlays.get(dirty)
        if overlay is None:
            return found
        for region in self._regions_in(overlay, start, end):
            bounds = self._region(overlay, region)
            for index in range(0, len(bounds), 2):
                low, high = max(bounds[index], start), min(bounds[index + 1], end)
                if low < high:
                    if found and found[-1][1] == low:
                        low = found.pop()[0]
                    found.append((low, high))
        return found

    def next_after(self, dirty: int, position: int) -> int | None:
        """The first byte at or after *position* that the overlay holds."""
        overlay = self._overlays.get(dirty)
        if overlay is None:
            return None
        for region in self._used_regions(overlay, position // REGION_BYTES, None):
            bounds = self._region(overlay, region)
            for index in range(0, len(bounds), 2):
                if bounds[index + 1] > position:
                    return max(bounds[index], position)
        return None

    def _regions_in(self, overlay: _Overlay, start: int, end: int) -> list[int] | range:
        """The regions of [start, end), or those of them that have a range, where that is shorter to tell."""
        first, last = start // REGION_BYTES, (end - 1) // REGION_BYTES
        if last - first < _FEW_REGIONS:
            return range(first, last + 1)
        return list(self._used_regions(overlay, first, last))

    def _used_regions(self, overlay: _Overlay, first: int, last: int | None) -> Iterator[int]:
        """The regions from *first* to *last* that have a range, in order."""
        self._write(overlay)
        while True:
            row = self.execute(
                "SELECT region FROM overlays WHERE dirty = ? AND region >= ? ORDER BY region LIMIT 1",
                (overlay.dirty, first),
            ).fetchone()
            if row is None or (last is not None and row[0] > last):
                return
            yield row[0]
            first = row[0] + 1

    def _region(self, overlay: _Overlay, region: int) -> list[int]:
        bounds = overlay.regions.get(region)
        if bounds is None:
            row = self.execute(
                "SELECT bounds FROM overlays WHERE dirty = ? AND region = ?", (overlay.dirty, region)
            ).fetchone()
            base = region * REGION_BYTES
            bounds = [] if row is None else [base + bound for bound in _decode(row[0])]
            overlay.regions[region] = bounds
            self._kept_regions += 1
        return bounds

    # --- parts of journaled operations ---------------------------------------------------------------------------

    def add(self, number: int, dirty: int, start: int, end: int) -> None:
        """The overlay *dirty* of inode *number* holds [start, end)."""
        overlay = self._overlays.get(dirty)
        if overlay is None:
            overlay = _Overlay(dirty, number, 0)
            self._keep(overlay)
        self._changed.add(overlay)
        while start < end:
            region = start // REGION_BYTES
            high = min(end, (region + 1) * REGION_BYTES)
            bounds = self._region(overlay, region)
            if not bounds:
                overlay.used_regions += 1
            _splice(bounds, start, high, 0)
            overlay.changed.add(region)
            start = high

    def clear(self, dirty: int, start: int, end: int) -> bool:
        """The overlay does not hold [start, end) any more. Whether it holds nothing at all now."""
        overlay = self._overlays.get(dirty)
        if overlay is None:
            return False
        self._changed.add(overlay)
        for region in self._regions_in(overlay, start, end):
            bounds = self._region(overlay, region)
            if bounds:
                _splice(bounds, start, end, 1)
                overlay.changed.add(region)
                overlay.used_regions -= not bounds
        if overlay.used_regions:
            return False
        self._write(overlay)
        del self._overlays[dirty]
        self._of_inode[overlay.inode].remove(dirty)
        if not self._of_inode[overlay.inode]:
            del self._of_inode[overlay.inode]
        return True

    # --- commit --------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        for overlay in self._changed:
            self._write(overlay)
        self._changed.clear()
        if self._kept_regions > KEPT_REGIONS:
            for overlay in self._overlays.values():
                overlay.regions.clear()
            self._kept_regions = 0

    def _write(self, overlay: _Overlay) -> None:
        """Write the changed regions into the table."""
        for region in overlay.changed:
            base = region * REGION_BYTES
            if bounds := overlay.regions[region]:
                row = (overlay.dirty, region, overlay.inode, _encode([bound - base for bound in bounds]))
                self.execute("INSERT OR REPLACE INTO overlays VALUES (?, ?, ?, ?)", row)
            else:
                self.execute("DELETE FROM overlays WHERE dirty = ? AND region = ?", (overlay.dirty, region))
        overlay.changed.clear()

    def forget_cached(self) -> None:
        self._overlays.clear()
        self._of_inode.clear()
        self._changed.clear()
        self._load_all()


def _splice(bounds: list[int], start: int, end: int, outside: int) -> None:
    """Make [start, end) one range with what it touches (*outside* 0), or take it out of the ranges (1)."""
    low, high = bisect_left(bounds, start), bisect_right(bounds, end)
    first = [start] if low & 1 == outside else []
    last = [end] if high & 1 == outside else []
    bounds[low:high] = first + last
