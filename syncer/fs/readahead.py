"""Ahead of a sequential reader: blocks that are elsewhere are fetched, and those that are here verified.

Used for the files of the live tree and for those of snapshots, on the event loop's thread; what it begins goes on in
tasks and threads of the block store.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from syncer.blocks.fetcher import RANGE_BYTES
from syncer.blocks.store import BlockStore
from syncer.meta.extent import Extent

START_BYTES = 1024 * 1024
LOCAL_AHEAD_BYTES = 4 * 1024 * 1024
"""How far ahead of a sequential reader blocks that are here are read from the disk and verified, at least."""

Find = Callable[[int, int], Sequence[Extent]]
"""The extents of a file that have a byte in [start, end), in order."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How long calls may wait, in seconds, and how far ahead of a sequential reader blocks are fetched."""

    read_deadline_s: float
    write_deadline_s: float
    read_ahead_bytes: int


class Reading:
    """Where an open file stands in sequential reading."""

    __slots__ = ("ahead_offset", "local_offset", "next_offset", "window_bytes")

    def __init__(self) -> None:
        self.next_offset = 0
        self.window_bytes = 0
        """How far ahead of the reader blocks are fetched; 0 while reading is not sequential."""
        self.ahead_offset = 0
        """Up to where they are fetched already."""
        self.local_offset = 0
        """Up to where what is local is read from the disk already."""


class ReadAhead:
    def __init__(self, store: BlockStore, limits: Limits) -> None:
        self._store = store
        self._limits = limits

    def note(self, file: Reading, offset: int, end: int, find: Find) -> None:
        """[*offset*, *end*) has been read: fetch what comes next, farther the longer this goes on in order."""
        sequential = offset == file.next_offset
        file.next_offset = end
        if not sequential:
            file.window_bytes = file.local_offset = 0
            return
        if offset and end + LOCAL_AHEAD_BYTES > file.local_offset:
            reach = end + 2 * LOCAL_AHEAD_BYTES
            self._store.read_ahead(find(max(end, file.local_offset), reach))
            file.local_offset = reach
        if file.window_bytes and file.ahead_offset - end > max(file.window_bytes // 2, file.window_bytes - RANGE_BYTES):
            return
        most = self._store.fetcher.reach(self._limits.read_ahead_bytes, self._limits.read_deadline_s)
        window = min(max(file.window_bytes * 2, START_BYTES), most)
        begin = max(end, file.ahead_offset) if file.window_bytes else end
        file.window_bytes, file.ahead_offset = window, end + window
        ahead = list(find(begin, end + window))
        if ahead and window > RANGE_BYTES:
            ahead += self._store.rest_of_pack(ahead[-1], find)
            file.ahead_offset = max(file.ahead_offset, ahead[-1].end)
        self._store.prefetch([part.source for part in ahead if part.source > 0], self._limits.read_deadline_s)
