"""fsync: one flush of the journal shared by all who wait (group commit), and of the files each of them means."""

from collections.abc import Iterable
from pathlib import Path

import trio

from syncer.blocks.dirty import DirtyFiles
from syncer.blocks.files import sync_file
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
        mine.paths.update(self._dirty.path(number) for number in dirty)
        mine.paths.update(files)
        async with self._turn:
            if mine.done:
                if mine.error is not None:
                    raise mine.error
                return
            if self._next is mine:
                self._next = None
            try:
                await trio.to_thread.run_sync(self._flush, mine.paths)
            except OSError as error:
                mine.error = error
                mine.done = True
                raise
            mine.done = True  # a cancelled flush is not done: the next who waits for it does it

    def _flush(self, paths: set[Path]) -> None:
        """In a thread: data first, then the records that refer to it."""
        for path in paths:
            sync_file(path)
        self._database.sync()


class _Flush:
    """Those who wait for the same flush."""

    def __init__(self) -> None:
        self.paths: set[Path] = set()
        self.done = False
        self.error: OSError | None = None
