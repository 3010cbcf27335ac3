"""What stands in a stretch of a file: bytes of a block or of a dirty file. Pure."""

import itertools
from dataclasses import dataclass
from operator import attrgetter
from typing import NewType

from syncer.values import BlockId

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

    def part(self, start: int, end: int) -> "Extent":
        """[start, end) of the file, which it covers."""
        return Extent(start, end - start, self.source, self.source_offset + start - self.start)


Piece = tuple[int, int, BlockId, bytes | int]
"""A sealed piece of a file: (start, length, block id, where its bytes are: themselves, to be kept as a row, or the
number of the dirty file that holds just them and is to move into the cache)."""

Part = tuple[int, int, BlockId, int]
"""A slice of a block in a file: (start, length, block id, offset in the block)."""


def laid_over(parts: list[Extent], top: list[Extent]) -> list[Extent]:
    """The extents of *top* and what they leave of *parts*. Both are in order and without overlaps; so is the result."""
    if not top:
        return parts
    result = list(top)
    first = 0
    for extent in parts:
        position = extent.start
        while first < len(top) and top[first].end <= position:
            first += 1
        for above in itertools.islice(top, first, None):
            if above.start >= extent.end:
                break
            if above.start > position:
                result.append(extent.part(position, above.start))
            position = above.end
        if position < extent.end:
            result.append(extent.part(position, extent.end))
    return sorted(result, key=attrgetter("start"))
