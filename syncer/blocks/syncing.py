"""fsync: one flush of the journal shared by all who wait (group commit), and of the files each of them means."""

import contextlib
import os
import queue
import threading
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

import trio

from syncer.blocks.dirty import DirtyFiles
from syncer.blocks.renewal import MadeAnew, Renewal
from syncer.disk import NewNames, path_of, start_writing, sync_descriptors, sync_paths
from syncer.meta.database import Database


class Durability:
    """Makes operations and files survive a power cut, in threads, one flush at a time.

    A flush covers every operation recorded before it began; who comes while one runs waits for the next, together
    with all others that came meanwhile.
    """

    def __init__(self, database: Database, dirty: DirtyFiles, names: NewNames, renewal: Renewal) -> None:
        self._database = database
        self._dirty = dirty
        self._names = names
        self._renewal = renewal
        renewal.on_made_anew.append(self._made_anew)
        self._next: _Flush | None = None
        self._awaited: set[_Flush] = set()
        """The next, the one under way, and one whose leader has given up while others go on waiting for it."""
        self._turn = trio.Lock()
        self.on_durable: Callable[[], None] = lambda: None
        """Called after each flush."""
        self._queue: queue.SimpleQueue[tuple[_Flush, Callable[[], None]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="sync", daemon=True)
        self._thread.start()

    async def sync(self, dirty: Iterable[int] = (), files: Iterable[Path] = ()) -> None:
        """Return when these files and every operation so far would survive. Raises: OSError when the disk does."""
        if self._next is None:
            self._next = _Flush()
        mine = self._next
        self._awaited.add(mine)
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
                self._awaited.discard(mine)
                mine.close()

    async def _wait(self, mine: "_Flush") -> None:
        async with self._turn:
            if mine.done:
                if mine.error is not None:
                    raise mine.error
                return
            if self._next is mine:
                self._next = None
            await self._renew(mine)
            if not mine.done:
                await self._run(mine)
            if mine.error is not None:
                raise mine.error
            self.on_durable()

    async def _renew(self, flush: "_Flush") -> None:
        """Make anew what the flush would rely on although an earlier one has failed; that it cannot be is its error."""
        if not self._renewal.failures and not self._database.is_doubted:
            return
        try:
            await self._renewal.renew([*flush.dirty.values(), *flush.paths])
            self._database.turn_over()
        except OSError as error:
            flush.error, flush.done = error, True

    def _made_anew(self, made: MadeAnew) -> None:
        """Who waits means the new file."""
        for flush in self._awaited:
            for descriptor in flush.dirty.values():
                if os.fstat(descriptor).st_ino == made.inode_before:
                    os.dup2(made.descriptor, descriptor, inheritable=False)

    async def _run(self, flush: "_Flush") -> None:
        """Have the thread do it. Not cancelled: a flush that has begun comes to its end, as fsync(2) itself does."""
        task, wake = trio.lowlevel.current_task(), trio.lowlevel.current_trio_token().run_sync_soon

        def ended() -> None:
            wake(trio.lowlevel.reschedule, task)

        self._queue.put((flush, ended))
        await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.FAILED)
        if flush.error is not None:
            self._renewal.doubt()
            with contextlib.suppress(OSError):  # the next flush tries again
                self._database.turn_over()

    def _serve(self) -> None:
        """In a thread of its own: handing over to one of trio's takes twice as long, a third of a small fsync."""
        while (item := self._queue.get()) is not None:
            flush, ended = item
            try:
                self.flush(flush.dirty.values(), flush.paths)
            except Exception as error:  # noqa: BLE001 - whatever it is: those who wait must get it
                flush.error = error
            flush.done = True
            ended()

    def flush(self, descriptors: Collection[int], paths: Collection[Path]) -> None:
        """In the thread: data first, then the records that refer to it; all of it is begun before anything waits.

        Raises: OSError.
        """
        if descriptors:
            self._database.start_sync()
            for descriptor in descriptors:
                start_writing(descriptor)
        sync_descriptors(descriptors)
        sync_paths(paths)
        if self._names.is_any:
            self._names.sync(self._folders(descriptors, paths))
        self._database.sync()

    def _folders(self, descriptors: Collection[int], paths: Collection[Path]) -> set[Path]:
        """Where the files have their names."""
        places = [*paths, *(place for descriptor in descriptors if (place := path_of(descriptor)) is not None)]
        return {path.parent for path in places}

    def close(self) -> None:
        """End the thread; nobody may call `sync` any more."""
        self._queue.put(None)
        self._thread.join()


class _Flush:
    """Those who wait for the same flush."""

    def __init__(self) -> None:
        self.dirty: dict[int, int] = {}
        """Descriptors of dirty files, by number."""
        self.paths: set[Path] = set()
        self.waiting = 0
        self.done = False
        self.error: Exception | None = None

    def close(self) -> None:
        while self.dirty:
            os.close(self.dirty.popitem()[1])
