"""Removes the extents of large files that were deleted or cut off: some at a time, so that nobody waits for it.

Such a file is recorded as what it is from the first moment (`ExtentTable.cuts`); what is left of the old extents is
garbage that nobody sees. A task of the engine; a crash at any point leaves a smaller rest to the next start.
"""

import logging
from collections.abc import Awaitable, Callable

import trio

from syncer.errors import LocalDamage
from syncer.meta.extents import REMOVED_AT_ONCE
from syncer.meta.inodes import Inode
from syncer.meta.store import MetaStore

log = logging.getLogger(__name__)

TROUBLE_S = 2.0


class Eraser:
    def __init__(self, meta: MetaStore, commit: Callable[[], None]) -> None:
        """*commit* commits between two operations, so that no commit grows with what is removed."""
        self._meta = meta
        self._commit = commit
        self._orphans: set[int] = set()
        """To be erased when their extents are gone."""
        self._wake = trio.Event()
        self._removed = trio.Event()
        self.pace: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint
        """Awaited between two steps, so that meta.db can keep up and others get their turn."""

    def erase(self, inode: Inode) -> None:
        """Delete an orphan that nobody uses, soon if it is large."""
        if not self._meta.extents.has_many(inode.number):
            self._meta.extents.erase(inode.number)
            return
        self._meta.extents.truncate(inode.number, 0, inode.mtime_ns)
        self._orphans.add(inode.number)
        self.wake()

    def wake(self) -> None:
        """Something may have been cut off."""
        if self._meta.extents.cuts:
            self._wake.set()

    async def removed(self, number: int | None = None) -> None:
        """Return when nothing is left of what was cut off the file; of all files that still have a name, with None."""
        extents = self._meta.extents
        while extents.has_cut_files() if number is None else number in extents.cuts:
            await self._removed.wait()

    async def run(self) -> None:
        """For as long as the file system is open. Trouble with the disk is tried again."""
        while True:
            try:
                while self._meta.extents.cuts:
                    await self._remove(next(iter(self._meta.extents.cuts)))
            except (LocalDamage, OSError) as error:
                log.error("what was deleted cannot be removed now: %s", error)
                await trio.sleep(TROUBLE_S)
                continue
            await self._wake.wait()
            self._wake = trio.Event()

    async def _remove(self, number: int) -> None:
        while number in self._meta.extents.cuts:
            self._meta.extents.remove_cut(number, REMOVED_AT_ONCE)
            if number not in self._meta.extents.cuts and number in self._orphans:
                self._orphans.discard(number)
                self._meta.extents.erase(number)
            self._commit()
            await self.pace()
        self._removed.set()
        self._removed = trio.Event()
