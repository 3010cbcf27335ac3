"""Dirty files: bytes that are written but not sealed yet, one numbered file per tail, overlay or sealed piece.

Owned by the BlockStore. Which of their bytes count is in meta.db and the journal, so a crash leaves nothing to guess:
a file nothing refers to is deleted at the start, a tail that had become a block is moved into the cache.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from syncer.blocks.files import punch_hole
from syncer.meta.extents import DirtyNumber, Extent

OPEN_FILES = 128


class DirtyFiles:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[int, int] = {}
        self._sizes = {number: _allocated(path.stat()) for number, path in self._listed()}
        self.total_bytes = sum(self._sizes.values())

    def _listed(self) -> list[tuple[int, Path]]:
        return [(int(path.name), path) for path in self._folder.iterdir() if path.name.isdigit()]

    def path(self, dirty: int) -> Path:
        return self._folder / str(dirty)

    def close(self) -> None:
        while self._files:
            os.close(self._files.popitem()[1])

    def _descriptor(self, dirty: int) -> int:
        descriptor = self._files.get(dirty)
        if descriptor is None:
            descriptor = os.open(self.path(dirty), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            if len(self._files) >= OPEN_FILES:
                os.close(self._files.pop(next(iter(self._files))))
            self._files[dirty] = descriptor
        return descriptor

    def write(self, dirty: int, offset: int, data: bytes | memoryview) -> None:
        """Write all of *data*, or raise; what a failed write left is not referred to by anything.

        Raises:
            OSError: ENOSPC and the like.
        """
        descriptor = self._descriptor(dirty)
        view = memoryview(data)
        try:
            while view:
                count = os.pwrite(descriptor, view, offset)
                view, offset = view[count:], offset + count
        finally:
            self._account(dirty, _allocated(os.fstat(descriptor)))

    def read(self, dirty: int, offset: int, length: int) -> bytes:
        """Exactly *length* bytes; those after the end of the file (a crash may have cut zeros off) are zeros."""
        data = os.pread(self._descriptor(dirty), length, offset)
        return data if len(data) == length else data + bytes(length - len(data))

    def read_frozen(self, run: Sequence[Extent]) -> Iterator[bytes]:
        """The bytes of extents in one dirty file that takes no more writes, a part at a time. Safe in a thread.

        Raises: FileNotFoundError.
        """
        descriptor = os.open(self.path(-run[0].source), os.O_RDONLY | os.O_CLOEXEC)
        try:
            for extent in run:
                data = os.pread(descriptor, extent.length, extent.source_offset)
                yield data + bytes(extent.length - len(data))
        finally:
            os.close(descriptor)

    def punch(self, dirty: int, offset: int, length: int) -> None:
        """Give back the disk space of bytes that nothing refers to.

        Where the local file system cannot, the space comes back when the whole file goes.
        """
        descriptor = self._descriptor(dirty)
        punch_hole(descriptor, offset, length)
        self._account(dirty, _allocated(os.fstat(descriptor)))

    def _account(self, dirty: int, size: int) -> None:
        self.total_bytes += size - self._sizes.get(dirty, 0)
        self._sizes[dirty] = size

    def release(self, dirty: int, length: int) -> int:
        """Cut the file to *length* and stop accounting it; returns its descriptor, now the caller's.

        The caller moves the file away. Raises: FileNotFoundError.
        """
        if not self.path(dirty).exists():
            self.forget(dirty)
            raise FileNotFoundError(self.path(dirty))
        descriptor = self._descriptor(dirty)
        if os.fstat(descriptor).st_size != length:
            os.ftruncate(descriptor, length)
        del self._files[dirty]
        self.forget(dirty)
        return descriptor

    def forget(self, dirty: int) -> None:
        """Stop accounting the file and close it."""
        self.total_bytes -= self._sizes.pop(dirty, 0)
        descriptor = self._files.pop(dirty, None)
        if descriptor is not None:
            os.close(descriptor)

    def delete(self, dirty: int) -> None:
        self.forget(dirty)
        self.path(dirty).unlink(missing_ok=True)

    def sweep(self, in_use: set[DirtyNumber]) -> int:
        """Delete every file that is not *in_use*; returns how many."""
        stale = [number for number, _ in self._listed() if number not in in_use]
        for number in stale:
            self.delete(number)
        return len(stale)


def _allocated(status: os.stat_result) -> int:
    return status.st_blocks * 512
