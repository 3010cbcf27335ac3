"""Bytes of the files in snapshots: read-only, through the same blocks as those of the live tree.

Blocks of old states are fetched, verified, cached and evicted like any others. On the event loop's thread.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence

from syncer.blocks.store import NOTHING, BlockStore
from syncer.errors import ObjectCorrupt, ObjectMissing
from syncer.fs.readahead import Limits, ReadAhead, Reading
from syncer.meta.extent import Extent
from syncer.snapshots.history import History
from syncer.snapshots.nodes import Entry
from syncer.values import FILE_END_MAX

EXTENTS_AT_ONCE = 512
"""So many extents of a file are known at a time: of most files all, of a long one about half a gigabyte."""
TRIES = 4


class PastFile(Reading):
    """An open file of a snapshot: its entry, and its extents in the stretch [begin, end) that is being read."""

    __slots__ = ("begin", "end", "entry", "extents")

    def __init__(self, entry: Entry) -> None:
        super().__init__()
        self.entry = entry
        self.begin = self.end = 0
        self.extents: Sequence[Extent] = ()

    def find(self, start: int, end: int) -> Sequence[Extent]:
        """The extents that have a byte in [start, end), as far as they are known."""
        first = bisect_right(self.extents, start, key=lambda extent: extent.end)
        last = bisect_left(self.extents, end, key=lambda extent: extent.start)
        return self.extents[first:last]


class PastFiles:
    def __init__(self, store: BlockStore, history: History, limits: Limits) -> None:
        self._store = store
        self._history = history
        self._limits = limits
        self._ahead = ReadAhead(store, limits)

    async def read(self, file: PastFile, offset: int, length: int) -> bytes:
        """Up to *length* bytes at *offset*; fewer only at the end of the file.

        Raises:
            SyncerError: bytes that are not here could not be had in time.
        """
        end = min(offset + length, file.entry.size)
        if end <= offset:
            return b""
        if offset < file.begin or end > file.end:
            await self._know(file, offset, end)
        extents = file.find(offset, end)  # another reader may have those of another stretch looked up meanwhile
        data = self._here(extents, offset, end)
        if data is None:
            data = await self._fetch(extents, offset, end)
        self._ahead.note(file, offset, end, file.find)
        return data

    async def _know(self, file: PastFile, start: int, end: int) -> None:
        """Have the extents from *start* on, up to *end* at least."""
        found: list[Extent] = []
        reached = start
        while reached < end:
            more = await self._history.extents(file.entry, reached, EXTENTS_AT_ONCE)
            found += more
            reached = more[-1].end if len(more) == EXTENTS_AT_ONCE else FILE_END_MAX
        file.begin, file.end, file.extents = start, reached, found

    def _here(
        self, extents: Sequence[Extent], offset: int, end: int, arrived: Mapping[int, memoryview] = NOTHING
    ) -> bytes | None:
        """The bytes, if all of them are local. Raises: ObjectMissing."""
        try:
            return self._store.assemble(extents, offset, end, arrived)
        except KeyError as error:
            raise ObjectMissing("blocks of this snapshot have been removed: it was deleted") from error

    async def _fetch(self, extents: Sequence[Extent], offset: int, end: int) -> bytes:
        """Fetch what is missing; again when a bad copy was found meanwhile."""
        numbers = [extent.source for extent in extents]
        for _ in range(TRIES):
            with self._store.budget.pin(numbers):
                try:
                    arrived = await self._store.fetch(numbers, self._limits.read_deadline_s)
                except KeyError as error:
                    raise ObjectMissing("blocks of this snapshot have been removed: it was deleted") from error
                data = self._here(extents, offset, end, arrived)
            if data is not None:
                return data
        raise ObjectCorrupt("the copies here are damaged as soon as they have come")
