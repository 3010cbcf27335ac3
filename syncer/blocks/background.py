"""A thread for what the local disk may do ahead of time: write blocks out, read and verify blocks that come next.

Owned by the BlockStore. Nothing waits for it but a reader who needs the very block that it is reading.
"""

import collections
import contextlib
import os
import queue
import threading
from pathlib import Path

from blake3 import blake3

from syncer.disk import start_writing
from syncer.values import BlockId

QUEUED = 64


def opened(path: Path, size: int) -> int | None:
    """A descriptor of the file, all of which the disk is asked for; None when it is missing."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    with contextlib.suppress(OSError):
        os.posix_fadvise(descriptor, 0, size, os.POSIX_FADV_WILLNEED)  # in one go, not a read-ahead window at a time
    return descriptor


def verified(descriptor: int | None, block_id: BlockId, size: int) -> int | None:
    """The descriptor, when the file has just the bytes of the block; otherwise None, and it is closed.

    Raises: OSError: the disk does not give them; it is closed then, too.
    """
    if descriptor is None:
        return None
    try:
        data = os.pread(descriptor, size + 1, 0)
    except OSError:
        os.close(descriptor)
        raise
    if len(data) == size and blake3(data).digest() == block_id:
        return descriptor
    os.close(descriptor)
    return None


class _Job:
    """A block to be read ahead. Whoever finds it neither taken nor begun, with the lock held, may verify it."""

    def __init__(self, path: Path, block_id: BlockId, size: int) -> None:
        self.path = path
        self.block_id = block_id
        self.size = size
        self.taken = False
        self.begun = False
        self.descriptor: int | None = None
        self.done = threading.Event()


def _opened(job: _Job) -> int | None:
    try:
        return opened(job.path, job.size)
    except OSError:
        return None


class Background:
    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[_Job | int | None] = queue.SimpleQueue()
        self._jobs: dict[int, _Job] = {}
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="disk", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        """Open whatever is wanted before verifying the first of it, so that the disk has all of it to do at once."""
        begun: collections.deque[tuple[_Job, int | None]] = collections.deque()
        ended = False
        while begun or not ended:
            try:
                item = self._queue.get(block=not begun)
            except queue.Empty:
                self._read(*begun.popleft())
                continue
            if isinstance(item, _Job):
                if not item.taken:
                    begun.append((item, _opened(item)))
            elif item is None:
                ended = True
            else:
                start_writing(item)
                os.close(item)

    def _read(self, job: _Job, opened: int | None) -> None:
        with self._lock:
            job.begun = not job.taken
        if not job.begun:
            if opened is not None:
                os.close(opened)
            return
        descriptor = None
        with contextlib.suppress(OSError):  # whoever needs the block meets the error again
            descriptor = verified(opened, job.block_id, job.size)
        with self._lock:
            if job.taken and descriptor is not None:
                os.close(descriptor)
            else:
                job.descriptor = descriptor
        job.done.set()

    def write_out(self, descriptor: int) -> None:
        """Begin to write the file to the disk, soon; the descriptor stays the caller's."""
        if self._queue.qsize() < QUEUED:
            self._queue.put(os.dup(descriptor))

    def read_ahead(self, number: int, path: Path, block_id: BlockId, size: int) -> None:
        """Read and verify the file of block *number*, soon."""
        if number in self._jobs or self._queue.qsize() >= QUEUED:
            return
        if len(self._jobs) >= QUEUED:
            self.forget(next(iter(self._jobs)))
        job = self._jobs[number] = _Job(path, block_id, size)
        self._queue.put(job)

    def take(self, number: int) -> int | None:
        """The descriptor of a block that was read ahead and is good, now the caller's; None when there is none.

        Blocks while the thread is reading just this one.
        """
        job = self._jobs.pop(number, None)
        if job is None:
            return None
        with self._lock:
            if not job.begun:
                job.taken = True  # the caller is faster than what is queued before it
                return None
        job.done.wait()
        return job.descriptor

    def forget(self, number: int) -> None:
        """Nobody needs the block any more."""
        job = self._jobs.pop(number, None)
        if job is None:
            return
        with self._lock:
            job.taken = True
            if job.descriptor is not None:
                os.close(job.descriptor)

    def close(self) -> None:
        """End the thread after what it was given."""
        for number in list(self._jobs):
            self.forget(number)
        self._queue.put(None)
        self._thread.join()
