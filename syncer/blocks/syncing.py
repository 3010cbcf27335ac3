"""fsync: one flush of the journal shared by all who wait (group commit), and of the files each of them means."""

import os
from collections.abc import Iterable
from pathlib import Path

import trio

from syncer.blocks.dirty import DirtyFiles
from syncer.blocks.files import sync_descriptors, sync_paths
from syncer.meta.database import Database


class Durability:
    """Makes operations and files survive a power cut, in threads, one flush at a time.

    A flush covers every operation recorded before it began; who comes while one runs waits for the next, together
    with all others that came meanwhile.
    """

    def __init__(self, database: Database, dirty: DirtyFiles) -> None:
        self._database = database
        self._dirty = dirty
        self._next: _Flush | None = None
        self._turn = trio.Lock()

    async def sync(self, dirty: Iterable[int] = (), files: Iterable[Path] = ()) -> None:
        """Return when these files and every operation so far would survive. Raises: OSError when the disk does."""
        if self._next is None:
            self._next = _Flush()
        mine = self._next
        for number in dirty:  # opened now: a tail may become a block before the flush begins
            if number not in mine.dirty and (descriptor := self._dirty.duplicate(number)) is not None:
                mine.dirty[number] = descriptor
        mine.paths.update(files)
        mine.waiting += 1
        try:
            await self._wait(mine)
        finally:
            mine.waiting -= 1
            if not mine.waiting:
                mine.close()

    async def _wait(self, mine: "_Flush") -> None:
        async with self._turn:
            if mine.done:
                if mine.error is not None:
                    raise mine.error
                return
            if self._next is mine:
                self._next = None
            try:
                await trio.to_thread.run_sync(self._flush, mine)
            except OSError as error:
                mine.error = error
                mine.done = True
                raise
            mine.done = True  # a cancelled flush is not done: the next who waits for it does it

    def _flush(self, flush: "_Flush") -> None:
        """In a thread: data first, then the records that refer to it."""
        sync_descriptors(flush.dirty.values())
        sync_paths(flush.paths)
        self._database.sync()


class _Flush:
    """Those who wait for the same flush."""

    def __init__(self) -> None:
        self.dirty: dict[int, int] = {}
        """Descriptors of dirty files, by number."""
        self.paths: set[Path] = set()
        self.waiting = 0
        self.done = False
        self.error: OSError | None = None

    def close(self) -> None:
        while self.dirty:
            os.close(self.dirty.popitem()[1])
