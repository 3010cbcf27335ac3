"""Calls to the local file system that Python does not offer as they are needed here."""

import contextlib
import ctypes
import errno
import os
import resource
import sys
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

_KEEP_SIZE, _PUNCH_HOLE = 1, 2
_SYNC_FILE_RANGE_WRITE = 2
_FILES_AT_ONCE = 64
_COPY_BYTES = 1024 * 1024
_OPEN_FILES = 8192
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_LARGE_BYTES = 2 * 1024 * 1024
_IDLE_BYTES = 16 * 1024 * 1024
_libc = ctypes.CDLL(None, use_errno=True)


def tune_allocator() -> None:
    """Have the allocator give packs and ranges back at once, and use what is smaller again (mallopt(3)).

    Its defaults adapt to the largest buffer ever freed and then keep such in the heaps of many threads, in pieces:
    twice the memory. Giving back every free page instead costs a third of a transfer's time in page faults. So: one
    heap for all threads, with some room at its end, and none of the large buffers in it.
    """
    mallopt = getattr(_libc, "mallopt", None)
    if mallopt is None:
        return  # not glibc
    mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
    mallopt(_M_TRIM_THRESHOLD, _IDLE_BYTES)
    mallopt(_M_ARENA_MAX, 1)


def give_back_memory() -> None:
    """Return free pages within the heap to the kernel (malloc_trim(3)). Takes a few milliseconds; safe in a thread."""
    trim = getattr(_libc, "malloc_trim", None)
    if trim is not None:
        trim(0)


def allow_open_files() -> None:
    """Raise how many files this process may have open (getrlimit(2)) as far as is useful and it may."""
    least, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if most == resource.RLIM_INFINITY else min(_OPEN_FILES, most)
    if least != resource.RLIM_INFINITY and least < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def punch_hole(descriptor: int, offset: int, length: int) -> bool:
    """Give the disk space of a range back (fallocate(2)); False where the file system cannot."""
    mode = ctypes.c_int(_PUNCH_HOLE | _KEEP_SIZE)
    return not _libc.fallocate(descriptor, mode, ctypes.c_int64(offset), ctypes.c_int64(length))


def take_room(descriptor: int, offset: int, length: int) -> bool:
    """Take the disk space of a range without a change of the size (fallocate(2)); False where that cannot be."""
    mode = ctypes.c_int(_KEEP_SIZE)
    return not _libc.fallocate(descriptor, mode, ctypes.c_int64(offset), ctypes.c_int64(length))


def sync_file_system(folder: Path) -> None:
    """Make everything on the file system of *folder* durable (syncfs(2)).

    Raises: OSError.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.syncfs(descriptor):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(folder))
    finally:
        os.close(descriptor)


def data_ranges(path: Path) -> list[tuple[int, int]]:
    """(begin, end) of what of a file was ever written to the disk (SEEK_DATA of lseek(2)); none when it is missing.

    Where the file system cannot tell, all of it. Raises: OSError: the disk does not say.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return []
    try:
        return list(_data_of(descriptor))
    finally:
        os.close(descriptor)


def has_data(descriptor: int, begin: int, end: int) -> bool:
    """Whether none of [begin, end) of an open file is a hole, as far as the file system can tell. Raises: OSError."""
    if begin >= end:
        return True
    try:
        return os.lseek(descriptor, begin, os.SEEK_DATA) == begin and os.lseek(descriptor, begin, os.SEEK_HOLE) >= end
    except OSError as error:
        if error.errno != errno.ENXIO:  # no more data
            raise
        return False


def read_no_further(descriptor: int) -> None:
    """Have the kernel read what is asked for and nothing ahead. What it reads of a place that has nothing on the disk,
    because that refused it, becomes zeros in memory, which pass for data from then on.
    """
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)


def _data_of(descriptor: int, most_bytes: int = sys.maxsize) -> Iterator[tuple[int, int]]:
    """In ranges of *most_bytes* at most, each asked for when its turn comes."""
    end = 0
    while True:
        try:
            begin = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:  # no more data
                raise
            return
        end = min(os.lseek(descriptor, begin, os.SEEK_HOLE), begin + most_bytes)
        yield begin, end


def boot_id() -> bytes:
    """Another one each time the machine starts (random(4)): what the kernel knew without the disk is gone then."""
    return Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()


def start_writing(descriptor: int) -> None:
    """Have the kernel begin to write a file's bytes to the disk (sync_file_range(2)); no promise of anything."""
    _libc.sync_file_range(descriptor, ctypes.c_int64(0), ctypes.c_int64(0), _SYNC_FILE_RANGE_WRITE)


def sync_descriptors(descriptors: Collection[int]) -> None:
    """Make the bytes of open files durable: all are begun, and only then waited for one by one.

    Raises: OSError.
    """
    for descriptor in descriptors if len(descriptors) > 1 else ():
        start_writing(descriptor)
    for descriptor in descriptors:
        os.fdatasync(descriptor)


def sync_paths(paths: Iterable[Path]) -> None:
    """Make the bytes of files durable; one that is gone needs nothing.

    Raises: OSError.
    """
    todo = list(paths)
    for begin in range(0, len(todo), _FILES_AT_ONCE):
        with contextlib.ExitStack() as stack:
            descriptors = []
            for path in todo[begin : begin + _FILES_AT_ONCE]:
                with contextlib.suppress(FileNotFoundError):
                    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                    stack.callback(os.close, descriptor)
                    descriptors.append(descriptor)
            sync_descriptors(descriptors)


def copy_ranges(source: int, target: int, ranges: Iterable[tuple[int, int]]) -> None:
    """Copy the bytes [begin, end) of each range from one open file to the same place in the other.

    Raises: OSError.
    """
    for begin, end in ranges:
        for offset in range(begin, end, _COPY_BYTES):
            data = os.pread(source, min(_COPY_BYTES, end - offset), offset)
            if os.pwrite(target, data, offset) != len(data):
                raise OSError(errno.ENOSPC, "the disk became full half-way")


def copy_sparse(source: int, target: int) -> None:
    """Give the empty file *target* all bytes of *source*; a hole stays one, as does what has become one by then.

    Raises: OSError.
    """
    os.ftruncate(target, os.fstat(source).st_size)
    read_no_further(source)
    copy_ranges(source, target, _data_of(source, _COPY_BYTES))


def path_of(descriptor: int) -> Path | None:
    """Where an open file is now; None when it has no name any more (proc(5))."""
    return Path(os.readlink(f"/proc/self/fd/{descriptor}")) if os.fstat(descriptor).st_nlink else None


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable: fsync(2), because fdatasync(2) may leave out what only a rename changed.

    Raises: OSError.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class NewNames:
    """Folders with names that may not survive a power cut: the fsync of a file need not see to its name (fsync(2)).

    From any thread.
    """

    def __init__(self) -> None:
        self._noted: dict[Path, object] = {}
        """Folders with new names, each with a mark of its newest one. They stay here until that is durable, because two
        threads may see to the same."""
        self._lock = threading.Lock()

    def note(self, folder: Path) -> None:
        """There is a new name in the folder, or there will be before it is synced."""
        with self._lock:
            self._noted[folder] = object()

    @property
    def is_any(self) -> bool:
        return bool(self._noted)

    def sync(self, folders: Iterable[Path]) -> None:
        """Make the names in those of *folders* durable that have new ones. Raises: OSError."""
        for folder in folders:
            if (mark := self._noted.get(folder)) is not None:
                sync_folder(folder)
                self._forget({folder: mark})

    def sync_all(self, folder: Path) -> None:
        """Make everything durable on the file system of *folder*, which is that of all. Raises: OSError."""
        with self._lock:
            before = dict(self._noted)
        sync_file_system(folder)
        self._forget(before)

    def _forget(self, durable: Mapping[Path, object]) -> None:
        """But for folders where somebody has made another name meanwhile."""
        with self._lock:
            for folder, mark in durable.items():
                if self._noted.get(folder) is mark:
                    del self._noted[folder]


def write_private(path: Path, data: bytes) -> None:
    """Make *data* the content of the file: atomically, durably, and for the owner's eyes only.

    Raises: OSError: it is then as it was.
    """
    new = path.with_name(path.name + ".new")
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(descriptor)
    new.replace(path)
    sync_folder(path.parent)
