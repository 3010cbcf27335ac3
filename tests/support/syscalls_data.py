"""Calls of the C library about bytes and directories that Python's os lacks, and what to know of the file system."""

import contextlib
import ctypes
import errno
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_libc = ctypes.CDLL(None, use_errno=True)

SYNC_FILE_RANGE_WAIT_BEFORE, SYNC_FILE_RANGE_WRITE, SYNC_FILE_RANGE_WAIT_AFTER = 1, 2, 4
FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_COLLAPSE_RANGE, FALLOC_FL_ZERO_RANGE = 1, 2, 8, 16
DT_FIFO, DT_CHR, DT_DIR, DT_BLK, DT_REG, DT_LNK, DT_SOCK = 1, 2, 4, 6, 8, 10, 12

CLOCK_REALTIME_COARSE = 5
"""The clock that file systems may take their times from; Python's time does not name it."""
SYNCER = "fuse.syncer"
EXT4 = "ext4"
LARGEST_FILE_BYTES = {EXT4: 2**44 - 4096, SYNCER: 2**44 - 4096}
LARGEST_POSSIBLE_BYTES = 2**63 - 1
NO_LIMIT = 2**63 - 4096
"""From here on the kernel's own arithmetic is the limit."""


def _returned(result: int) -> int:
    """Raises: OSError: *result* is -1."""
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


# --- the file system -------------------------------------------------------------------------------------------------


def file_system(path: Path) -> str:
    """The type of the file system that *path* is on, as in /proc/mounts."""
    device = os.stat(path).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    with open("/proc/self/mountinfo") as file:
        for line in file:
            fields = line.split()
            if fields[2] == wanted:
                return fields[fields.index("-") + 1]
    return "unknown"


def largest_file_bytes(folder: Path) -> int:
    """The size a file may have here: known, or found by asking for it."""
    known = LARGEST_FILE_BYTES.get(file_system(folder))
    if known is not None:
        return known
    low, high = 0, LARGEST_POSSIBLE_BYTES
    with opened(folder / ".largest", os.O_RDWR | os.O_CREAT) as descriptor:
        while low < high:
            size = (low + high + 1) // 2
            try:
                os.ftruncate(descriptor, size)
                low = size
            except OSError as error:
                assert error.errno in (errno.EFBIG, errno.EINVAL), error
                high = size - 1
    os.unlink(folder / ".largest")
    return low


def pass_time(since_ns: int) -> None:
    """Return when a change would get a later time than *since_ns*: some milliseconds at most."""
    while time.clock_gettime_ns(CLOCK_REALTIME_COARSE) <= since_ns:
        pass


@contextlib.contextmanager
def opened(path: Path, flags: int, mode: int = 0o644) -> Iterator[int]:
    """A descriptor, closed in the end."""
    descriptor = os.open(path, flags, mode)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


# --- bytes -----------------------------------------------------------------------------------------------------------


def sync_file_range(descriptor: int, offset: int, length: int, flags: int) -> None:
    _returned(_libc.sync_file_range(descriptor, ctypes.c_int64(offset), ctypes.c_int64(length), flags))


def syncfs(descriptor: int) -> None:
    _returned(_libc.syncfs(descriptor))


def fallocate(descriptor: int, mode: int, offset: int, length: int) -> None:
    _returned(_libc.fallocate(descriptor, mode, ctypes.c_int64(offset), ctypes.c_int64(length)))


def read_to(descriptor: int, address: int, length: int) -> int:
    """read(2) to any address, also one where nothing is."""
    return _returned(_libc.read(descriptor, ctypes.c_void_p(address), ctypes.c_size_t(length)))


def write_from(descriptor: int, address: int, length: int) -> int:
    """write(2) from any address."""
    return _returned(_libc.write(descriptor, ctypes.c_void_p(address), ctypes.c_size_t(length)))


# --- directories -----------------------------------------------------------------------------------------------------


class _Dirent(ctypes.Structure):
    _fields_ = (
        ("d_ino", ctypes.c_uint64),
        ("d_off", ctypes.c_int64),
        ("d_reclen", ctypes.c_ushort),
        ("d_type", ctypes.c_ubyte),
        ("d_name", ctypes.c_char * 256),
    )


_libc.opendir.restype = _libc.fdopendir.restype = ctypes.c_void_p
_libc.readdir64.restype = ctypes.POINTER(_Dirent)
_libc.telldir.restype = ctypes.c_long
_libc.dirfd.restype = ctypes.c_int


@dataclass(frozen=True, slots=True)
class Entry:
    """What readdir(3) says of one name."""

    name: str
    inode: int
    type: int


class Directory:
    """opendir(3) and the calls on what it returns, `.` and `..` included. A context manager."""

    def __init__(self, path: Path) -> None:
        self._stream: Any = _libc.opendir(os.fsencode(path))
        if not self._stream:
            _returned(-1)

    def __enter__(self) -> "Directory":
        return self

    def __exit__(self, *_: object) -> None:
        _libc.closedir(ctypes.c_void_p(self._stream))

    def read(self) -> Entry | None:
        """The next entry, None at the end."""
        ctypes.set_errno(0)
        found = _libc.readdir64(ctypes.c_void_p(self._stream))
        if not found:
            number = ctypes.get_errno()
            if number:
                raise OSError(number, os.strerror(number))
            return None
        entry = found.contents
        return Entry(os.fsdecode(entry.d_name), entry.d_ino, entry.d_type)

    def __iter__(self) -> Iterator[Entry]:
        """What is left, `.` and `..` not."""
        while entry := self.read():
            if entry.name not in (".", ".."):
                yield entry

    def tell(self) -> int:
        return int(_libc.telldir(ctypes.c_void_p(self._stream)))

    def seek(self, place: int) -> None:
        _libc.seekdir(ctypes.c_void_p(self._stream), ctypes.c_long(place))

    def rewind(self) -> None:
        _libc.rewinddir(ctypes.c_void_p(self._stream))

    def fileno(self) -> int:
        return int(_libc.dirfd(ctypes.c_void_p(self._stream)))
