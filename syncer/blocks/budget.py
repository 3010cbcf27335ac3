"""The budget: how much of the local disk is taken, and who must wait when it is all taken.

Used = cache files + dirty files (of both also those about to be deleted) + meta.db with WAL and journal + what is
reserved for downloads under way. All methods run on the event loop's thread.
"""

import contextlib
import functools
import os
from collections import deque
from collections.abc import Callable, Iterator

import trio

from syncer.blocks.cache import BlockCache
from syncer.blocks.dirty import DirtyFiles
from syncer.blocks.retired import Retired
from syncer.errors import BudgetExhausted
from syncer.meta.blocktable import CACHED_ROW, Block, file_bytes
from syncer.meta.database import SHRINK_PAGES
from syncer.meta.store import MetaStore

HEADROOM_BYTES = 10_000_000
"""Kept free for what is not counted: the log, the folders themselves, what SQLite needs beyond the estimates here."""
BATCH_BYTES = 8 * 1024 * 1024
"""Dirty bytes are sealed in stretches of about this much. Room for the second copy of one is kept for the sealer: a
budget full of what only sealing can shrink would be full for ever. Readers may use it meanwhile: what they bring is
clean, and goes first."""
LOG_SHARE = 8
"""The WAL may hold this share of the budget. Then every change waits until it has started over, also one that frees."""
EVICT_BATCH = 1024
ROWS_BYTES = 8 * 1024 * 1024
"""Blocks that are rows go by so much at a time: their room comes back only with a commit and a checkpoint."""
DISK_MARGIN_BYTES = 4 * 1024 * 1024
"""Kept free of the disk itself: deletes and readers must find room when writers find none any more."""
RETIRED_SHARE = 16
RETIRED_BYTES = 64_000_000
"""Files about to be deleted may take this share of the budget, so many bytes at most, before they are seen to."""
AMPLE_BYTES = 16 * 1024 * 1024
LOOK_S = 0.5
"""How often who waits for room looks at the disk: others may have made some there, and nobody tells."""
UNCHECKED_CALLS = 32
UNCHECKED_BYTES = 128 * 1024
"""While so much is free, so many calls for at most so much each are let through without adding everything up."""
PAGE_BYTES = 4096
SHRINK_BYTES = SHRINK_PAGES * PAGE_BYTES


class Budget:
    def __init__(
        self,
        limit_bytes: int,
        meta: MetaStore,
        cache: BlockCache,
        dirty: DirtyFiles,
        retired: Retired,
        aside_bytes: int = 0,
    ) -> None:
        """*aside_bytes*: what lies in DATA besides, and stays."""
        self.limit_bytes = limit_bytes
        self._aside_bytes = aside_bytes
        self._meta = meta
        self._cache = cache
        self._dirty = dirty
        self._retired = retired
        self._held = 0
        self._metadata_bytes = meta.database.disk_bytes()
        self._wal_bytes = meta.database.wal_bytes()
        self._reusable_bytes = 0
        self._unchecked = 0
        self._room = trio.Event()
        self.pinned: dict[int, int] = {}
        """Blocks somebody is about to read, by number, with how many want them: never evicted."""
        self.waiting = 0
        """How many wait for room; the uploader and the sealer hurry when there are any."""
        self._queue: deque[object] = deque()
        """Those who wait, the sealer and readers aside, in their order: who wants much must not wait for ever behind
        the others."""
        self.on_pressure: Callable[[], None] = lambda: None
        self._evicted_bytes = 0
        """Of rows that were evicted since the last commit."""
        meta.database.on_commit.append(self._committed)

    def _committed(self) -> None:
        self._evicted_bytes = 0
        self.measure()

    def measure(self) -> None:
        """Look at the size of meta.db, its WAL and the journal on the disk."""
        self._unchecked = 0
        self._reusable_bytes = self._meta.database.free_pages() * PAGE_BYTES
        self._metadata_bytes = self._meta.database.disk_bytes()
        self._wal_bytes = self._meta.database.wal_bytes()
        self.changed()

    @property
    def metadata_bytes(self) -> int:
        return self._metadata_bytes

    @property
    def clean_bytes(self) -> int:
        return self._meta.blocks.totals.clean_files

    @property
    def dirty_bytes(self) -> int:
        """Dirty files and sealed blocks that the remote does not have."""
        return self._meta.blocks.totals.pending_files + self._dirty.total_bytes

    @property
    def used_bytes(self) -> int:
        store_bytes = self.clean_bytes + self.dirty_bytes + self._retired.total_bytes + self._metadata_bytes
        return store_bytes + self._held + self._aside_bytes

    def _free(self, *, reading: bool = False) -> int:
        """Room for new bytes."""
        of_budget = self.limit_bytes - HEADROOM_BYTES - BATCH_BYTES - self.used_bytes - self._coming()
        return min(of_budget, self._free_of_disk(0 if reading else DISK_MARGIN_BYTES))

    def make_room(self, wanted_bytes: int, *, rows: bool = False, sealing: bool = False, reading: bool = False) -> bool:
        """Evict until *wanted_bytes* fit; False when not enough may go. ATOMIC.

        With *rows*, room inside meta.db will do: the bytes are going to be a row there. *sealing* may take the room
        that is kept for it; *reading* that too, and what is kept of the disk.
        """
        self._unchecked = 0
        spare_bytes = (self._reusable_bytes if rows else 0) + (BATCH_BYTES if sealing else 0)
        while (missing := wanted_bytes - self._free(reading=reading) - spare_bytes) > 0:
            chosen = self._victims(missing)
            are_rows = bool(chosen) and chosen[0].cached == CACHED_ROW
            if chosen and not (are_rows and missing <= self._leaving_bytes(rows=rows)):
                self._cache.evict(chosen)
                self._evicted_bytes += sum(block.size for block in chosen) if are_rows else 0
            if not chosen or are_rows:  # whose pages come back with the next commits, checkpoint
                if reading:
                    return missing <= BATCH_BYTES and wanted_bytes <= self._free_of_disk(0)
                return not chosen and sealing and self._may_exceed(wanted_bytes)
        return True

    def _leaving_bytes(self, *, rows: bool) -> int:
        """What of evicted rows is still to come: with a commit for other *rows*, else also with checkpoints."""
        return self._evicted_bytes + (0 if rows else self._reusable_bytes // SHRINK_BYTES * SHRINK_BYTES)

    def _may_exceed(self, wanted_bytes: int) -> bool:
        """Whether DATA holds more than the budget, which was larger before, and the disk has room for one batch.

        Only sealing makes it less then, and it frees what it has copied before it goes on.
        """
        is_beyond = self.used_bytes - self._held > self.limit_bytes
        return is_beyond and self._held + wanted_bytes <= BATCH_BYTES and wanted_bytes <= self._free_of_disk()

    def _free_of_disk(self, margin_bytes: int = DISK_MARGIN_BYTES) -> int:
        """What others leave of the disk, after commits and checkpoints to come, and *margin_bytes*."""
        disk = os.statvfs(self._meta.database.path.parent)
        return disk.f_bavail * disk.f_frsize - margin_bytes - self._coming()

    def _coming(self) -> int:
        """What commits and checkpoints to come take, which nobody asks before."""
        return self._wal_bytes + self._meta.database.uncommitted_bytes()

    def _victims(self, missing_bytes: int) -> list[Block]:
        """Least recently used blocks of one kind, about *missing_bytes* together, or more where room comes slowly."""
        candidates = [
            b for b in self._meta.blocks.evictable(EVICT_BATCH + len(self.pinned)) if b.number not in self.pinned
        ]
        chosen: list[Block] = []
        freed = 0
        if candidates and candidates[0].cached == CACHED_ROW:
            missing_bytes = max(missing_bytes, ROWS_BYTES)
        for block in candidates:
            if freed >= missing_bytes or block.cached != candidates[0].cached:
                break
            chosen.append(block)
            freed += file_bytes(block.size)
        return chosen

    async def reserve(
        self,
        wanted_bytes: int,
        deadline_s: float,
        *,
        rows: bool = False,
        sealing: bool = False,
        reading: bool = False,
    ) -> None:
        """Return when *wanted_bytes* may be written now, before the next await of the caller: first come, first served.

        But the sealer and readers do not stand behind writers, who may wait for uploads.

        Raises:
            BudgetExhausted: there was no room within *deadline_s*.
        """
        is_queued = not (sealing or reading)
        fit = functools.partial(self.make_room, wanted_bytes, rows=rows, sealing=sealing, reading=reading)
        if (not is_queued or not self._queue) and fit():
            return
        me = object()
        if is_queued:
            self._queue.append(me)
        self.waiting += 1
        try:
            with trio.move_on_after(deadline_s):
                while True:
                    self.on_pressure()
                    with trio.move_on_after(LOOK_S):
                        await self._room.wait()
                    my_turn = not is_queued or self._queue[0] is me
                    if my_turn and fit():
                        return
        finally:
            self.waiting -= 1
            if is_queued:
                self._queue.remove(me)
            self.changed()
        raise BudgetExhausted("the budget, or the disk, is full of data that is not on the remote yet")

    @property
    def is_much_retired(self) -> bool:
        """Whether so much could be deleted, were it durable that it may be, that it should be made so."""
        return self._retired.total_bytes > min(RETIRED_BYTES, self.limit_bytes // RETIRED_SHARE)

    @property
    def is_log_long(self) -> bool:
        """Whether no change may be recorded before the WAL has started over."""
        return self._wal_bytes > self.limit_bytes // LOG_SHARE

    async def log_shortened(self, deadline_s: float) -> None:
        """Return when the WAL is short enough. It waits for a checkpoint, and for nothing else: see `on_pressure`.

        Raises:
            BudgetExhausted: it was not within *deadline_s*.
        """
        self.waiting += 1
        try:
            with trio.move_on_after(deadline_s):
                while self.is_log_long:
                    self.on_pressure()
                    await self._room.wait()
        finally:
            self.waiting -= 1
        if self.is_log_long:
            raise BudgetExhausted("the log of meta.db takes too much, and cannot be written back now")

    def fits(self, wanted_bytes: int) -> bool:
        """Whether `reserve` would return at once without evicting anything, and `log_shortened` too."""
        if self._unchecked and wanted_bytes <= UNCHECKED_BYTES:
            self._unchecked -= 1
            return True
        free = self._free()
        if self._queue or self.is_log_long or free < wanted_bytes:
            return False
        if free > AMPLE_BYTES:
            self._unchecked = UNCHECKED_CALLS
        return True

    def changed(self) -> None:
        """Wake those who wait for room; called whenever something was freed or became evictable."""
        if self.waiting:
            self._room.set()
            self._room = trio.Event()

    @contextlib.contextmanager
    def hold(self, amount_bytes: int) -> Iterator[None]:
        """Count *amount_bytes* as used while a download is under way."""
        self._unchecked = 0
        self._held += amount_bytes
        try:
            yield
        finally:
            self._held -= amount_bytes
            self.changed()

    @contextlib.contextmanager
    def pin(self, numbers: list[int]) -> Iterator[None]:
        """Keep the blocks from being evicted."""
        for number in numbers:
            self.pinned[number] = self.pinned.get(number, 0) + 1
        try:
            yield
        finally:
            for number in numbers:
                if self.pinned[number] == 1:
                    del self.pinned[number]
                else:
                    self.pinned[number] -= 1
