"""Dirty files: bytes that are written but not sealed yet, one numbered file per tail, overlay or sealed piece.

Owned by the BlockStore. Which of their bytes count is in meta.db and the journal, so a crash leaves nothing to guess:
a file nothing refers to is deleted at the start, a tail that had become a block is moved into the cache.
"""

import contextlib
import errno
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from mmap import PAGESIZE
from pathlib import Path

from syncer.disk import NewNames, has_data, punch_hole, read_no_further
from syncer.errors import LocalDamage
from syncer.meta.extent import Extent

OPEN_FILES = 128


class BytesDropped(OSError):
    """The kernel does not have any more what the disk has not taken."""


class DirtyFiles:
    def __init__(self, folder: Path, names: NewNames) -> None:
        """*names* is told of files that are made."""
        self._folder = folder
        self._names = names
        self._files: dict[int, int] = {}
        self._sizes = {number: _allocated(path.stat()) for number, path in self._listed()}
        self.total_bytes = sum(self._sizes.values())
        self.promised: set[int] = set()
        """Files that an fsync has covered: what becomes of them must be durable before it is done."""
        self._watched: dict[Path, list[tuple[int, int]]] = {}
        self.in_doubt: Collection[int] = ()
        """Inode numbers below of files that may lack what the disk has refused. The kernel may drop that at any time;
        where it was is a hole then, until somebody reads it or writes to the same page."""
        self.recorded: Callable[[int], Iterable[tuple[int, Extent]]] = lambda _: ()
        """Gives (inode, extent) of all bytes that a file must have."""

    def _listed(self) -> list[tuple[int, Path]]:
        return [(int(path.name), path) for path in self._folder.iterdir() if path.name.isdigit()]

    def path(self, dirty: int) -> Path:
        return self._folder / str(dirty)

    def paths(self) -> list[Path]:
        """All files that there are."""
        return [self.path(dirty) for dirty in self._sizes]

    def close(self) -> None:
        while self._files:
            os.close(self._files.popitem()[1])

    def _descriptor(self, dirty: int, flags: int = 0) -> int:
        descriptor = self._files.get(dirty)
        if descriptor is None:
            try:
                descriptor = os.open(self.path(dirty), os.O_RDWR | os.O_CLOEXEC | flags, 0o600)
            except FileNotFoundError as error:
                raise LocalDamage(f"dirty file {dirty} is gone") from error
            if len(self._files) >= OPEN_FILES:
                os.close(self._files.pop(next(iter(self._files))))
            self._files[dirty] = descriptor
        return descriptor

    def write(self, dirty: int, offset: int, data: bytes | memoryview) -> None:
        """Write all of *data*, or raise; what a failed write left is not referred to by anything.

        Raises:
            OSError: ENOSPC and the like.
        """
        if self.write_some(dirty, offset, data) < len(data):
            raise OSError(errno.ENOSPC, "the disk became full half-way")

    def write_some(self, dirty: int, offset: int, data: bytes | memoryview) -> int:
        """Write *data*, or as much of it as the disk takes; returns how many bytes: not 0.

        Raises:
            OSError: ENOSPC and the like, when nothing was taken.
            LocalDamage: nothing was, because it would go into a page with bytes that are lost.
        """
        descriptor = self._descriptor(dirty, os.O_CREAT)
        if dirty not in self._sizes:
            self._names.note(self._folder)
        elif self.in_doubt:
            self._check_around(dirty, descriptor, offset, offset + len(data))
        view = memoryview(data)
        taken = 0
        try:
            while taken < len(view):
                taken += os.pwrite(descriptor, view[taken:], offset + taken)
        except OSError:
            if not taken:
                raise
        finally:
            self._account(dirty, _allocated(os.fstat(descriptor)))
            if self._watched and (seen := self._watched.get(self.path(dirty))) is not None:
                seen.append((offset, offset + taken))
        return taken

    @contextlib.contextmanager
    def watched(self, path: Path) -> Iterator[list[tuple[int, int]]]:
        """Within it the list grows by each range [begin, end) that is written to the file."""
        seen = self._watched[path] = []
        try:
            yield seen
        finally:
            del self._watched[path]

    def made_anew(self, path: Path, descriptor: int) -> None:
        """The file at *path* is another with the same bytes, open as *descriptor*, which stays the caller's."""
        if path.parent != self._folder or (dirty := int(path.name)) not in self._sizes:
            return
        if dirty in self._files:
            os.dup2(descriptor, self._files[dirty], inheritable=False)
        self._account(dirty, _allocated(os.fstat(descriptor)))

    def length(self, dirty: int) -> int | None:
        """How long the file is, whatever of it counts; None when it does not exist."""
        try:
            return self.path(dirty).stat().st_size
        except FileNotFoundError:
            return None

    def duplicate(self, dirty: int) -> int | None:
        """A descriptor of the file for the caller, who closes it; None when it is gone.

        It goes on meaning these bytes when the file becomes a block and moves away.
        """
        try:
            return os.dup(self._descriptor(dirty))
        except LocalDamage:
            return None

    def read(self, dirty: int, offset: int, length: int) -> bytes:
        """Exactly *length* bytes.

        Raises:
            LocalDamage: the file does not have them.
        """
        return self._read(self._descriptor(dirty), dirty, offset, length)

    def _read(self, descriptor: int, dirty: int, offset: int, length: int) -> bytes:
        """Safe in a thread."""
        if self._is_in_doubt(descriptor):
            read_no_further(descriptor)
            if not has_data(descriptor, offset, offset + length):
                raise LocalDamage(f"dirty file {dirty} has lost what the disk did not take")
        data = os.pread(descriptor, length, offset)
        if len(data) != length:
            raise LocalDamage(f"dirty file {dirty} is {length - len(data)} bytes short")
        return data

    def _is_in_doubt(self, descriptor: int) -> bool:
        return bool(self.in_doubt) and os.fstat(descriptor).st_ino in self.in_doubt

    def _check_around(self, dirty: int, descriptor: int, begin: int, end: int) -> None:
        """Before [begin, end) is written. Raises: LocalDamage: other bytes of its first or last page are lost."""
        if self._is_in_doubt(descriptor):
            edges = (begin - begin % PAGESIZE, begin), (end, end + -end % PAGESIZE)
            for _, extent in self.recorded(dirty):
                for low, high in edges:
                    low, high = max(low, extent.source_offset), min(high, extent.source_offset + extent.length)
                    if low < high and not has_data(descriptor, low, high):
                        raise LocalDamage(f"dirty file {dirty} has lost, in the same page, what the disk did not take")

    def check_whole(self, path: Path, descriptor: int) -> None:
        """Raises: BytesDropped: the file open as *descriptor* lacks bytes that the one at *path* must have."""
        for number, extent in self.recorded(int(path.name)) if path.parent == self._folder else ():
            begin = extent.source_offset
            if not has_data(descriptor, begin, begin + extent.length):
                what = f"inode {number} has lost some of {extent.length} bytes from {extent.start} on"
                raise BytesDropped(errno.EIO, f"{what}, which the disk did not take")

    @contextlib.contextmanager
    def frozen(self) -> Iterator[Callable[[Extent], bytes]]:
        """Reads extents in dirty files that take no more writes. Safe in a thread. The reader raises: LocalDamage."""
        files: dict[int, int] = {}

        def read(extent: Extent) -> bytes:
            dirty = -extent.source
            if dirty not in files:
                try:
                    files[dirty] = os.open(self.path(dirty), os.O_RDONLY | os.O_CLOEXEC)
                except FileNotFoundError as error:
                    raise LocalDamage(f"dirty file {dirty} is gone") from error
            return self._read(files[dirty], dirty, extent.source_offset, extent.length)

        try:
            yield read
        finally:
            for descriptor in files.values():
                os.close(descriptor)

    def punch(self, dirty: int, offset: int, length: int) -> None:
        """Give back the disk space of bytes that nothing refers to, if the file is still there.

        Where the local file system cannot, the space comes back when the whole file goes.
        """
        if dirty not in self._sizes:
            return
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
        if os.fstat(descriptor).st_size > length:  # never longer: zeros are not what a power cut has taken
            os.ftruncate(descriptor, length)
        del self._files[dirty]
        self.forget(dirty)
        return descriptor

    def forget(self, dirty: int) -> None:
        """Stop accounting the file and close it."""
        self.promised.discard(dirty)
        self.total_bytes -= self._sizes.pop(dirty, 0)
        descriptor = self._files.pop(dirty, None)
        if descriptor is not None:
            os.close(descriptor)

    def delete(self, dirty: int) -> None:
        self.forget(dirty)
        self.path(dirty).unlink(missing_ok=True)

    def sweep(self, in_use: Collection[int]) -> int:
        """Delete every file that is not *in_use*; returns how many."""
        stale = self.unused(in_use)
        for number in stale:
            self.delete(number)
        return len(stale)

    def unused(self, in_use: Collection[int]) -> list[int]:
        """The files that are not *in_use*."""
        return [number for number, _ in self._listed() if number not in in_use]


def _allocated(status: os.stat_result) -> int:
    return status.st_blocks * 512
