"""System calls that Python's os module lacks, or whose errno it hides; and what a file really looks like.

Each function is named after the system call it makes, and raises OSError with its errno.
"""

import ctypes
import os
import platform
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

AT_FDCWD = -100
AT_SYMLINK_NOFOLLOW = 0x100
AT_EACCESS = 0x200
AT_SYMLINK_FOLLOW = 0x400
AT_EMPTY_PATH = 0x1000
AT_STATX_FORCE_SYNC = 0x2000

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
RENAME_WHITEOUT = 4

UTIME_NOW = (1 << 30) - 1
UTIME_OMIT = (1 << 30) - 2

STATX_BASIC_STATS = 0x7FF

_SETTERS = {"x86_64": (117, 119, 116), "aarch64": (147, 149, 159)}[platform.machine()]
"""The numbers of setresuid, setresgid and setgroups."""

_libc = ctypes.CDLL(None, use_errno=True)

AnyPath = str | bytes | Path


def _call(name: str, *arguments: object) -> int:
    result: int = getattr(_libc, name)(*arguments)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def access(path: AnyPath, mode: int) -> None:
    """access(2): asks for the real user."""
    _call("access", os.fsencode(path), mode)


def faccessat(path: AnyPath, mode: int, flags: int, *, directory: int = AT_FDCWD) -> None:
    _call("faccessat", directory, os.fsencode(path), mode, flags)


def linkat(
    source: AnyPath, target: AnyPath, flags: int, *, directory: int = AT_FDCWD, target_directory: int = AT_FDCWD
) -> None:
    _call("linkat", directory, os.fsencode(source), target_directory, os.fsencode(target), flags)


def renameat2(
    source: AnyPath, target: AnyPath, flags: int, *, directory: int = AT_FDCWD, target_directory: int = AT_FDCWD
) -> None:
    _call("renameat2", directory, os.fsencode(source), target_directory, os.fsencode(target), ctypes.c_uint(flags))


def fchmodat(path: AnyPath, mode: int, flags: int) -> None:
    _call("fchmodat", AT_FDCWD, os.fsencode(path), mode, flags)


def fchownat(path: AnyPath, uid: int, gid: int, flags: int, *, directory: int = AT_FDCWD) -> None:
    _call("fchownat", directory, os.fsencode(path), ctypes.c_uint(uid), ctypes.c_uint(gid), flags)


def utimensat(path: AnyPath, atime: tuple[int, int], mtime: tuple[int, int], flags: int = 0) -> None:
    """*atime* and *mtime* are seconds and nanoseconds, or what the nanoseconds alone mean: UTIME_NOW, UTIME_OMIT."""
    times = struct.pack("=qqqq", *atime, *mtime)
    _call("utimensat", AT_FDCWD, os.fsencode(path), times, flags)


@dataclass(frozen=True, slots=True)
class Status:
    """What stat(2) tells, but for what a file system may choose as it likes (blocks, device number)."""

    number: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int


def status(what: AnyPath | int) -> Status:
    """What stat(2) tells of a path (a symlink itself) or a descriptor.

    Raises: AssertionError: what the kernel remembers is not what the file system says when it is asked.
    """
    found = os.fstat(what) if isinstance(what, int) else os.lstat(what)
    remembered = Status(
        found.st_ino, found.st_mode, found.st_nlink, found.st_uid, found.st_gid, found.st_rdev, found.st_size,
        found.st_atime_ns, found.st_mtime_ns, found.st_ctime_ns,
    )  # fmt: skip
    said = _statx(what)
    assert remembered == said, f"remembered {remembered}, said {said}"
    return said


def _statx(what: AnyPath | int) -> Status:
    directory, path = (what, b"") if isinstance(what, int) else (AT_FDCWD, os.fsencode(what))
    flags = AT_STATX_FORCE_SYNC | AT_SYMLINK_NOFOLLOW | (AT_EMPTY_PATH if isinstance(what, int) else 0)
    answer = ctypes.create_string_buffer(256)
    _call("statx", directory, path, flags, STATX_BASIC_STATS, answer)
    (_, _, _, nlink, uid, gid, mode, number, size, _, _, *times, rdev_major, rdev_minor) = struct.unpack_from(
        "=IIQ IIIHxx QQQQ qIxxxx qIxxxx qIxxxx qIxxxx II", answer.raw
    )
    atime_ns, _, ctime_ns, mtime_ns = (times[i] * 10**9 + times[i + 1] for i in (0, 2, 4, 6))
    rdev = os.makedev(rdev_major, rdev_minor)
    return Status(number, mode, nlink, uid, gid, rdev, size, atime_ns, mtime_ns, ctime_ns)


# --- who we are ------------------------------------------------------------------------------------------------------

# Of this thread alone, as the kernel has it. The C library's calls, and with them os.seteuid, change all threads of the
# process, also one that watches what only root may see.


def setresuid(real: int, effective: int, saved: int) -> None:
    """-1 leaves as it is."""
    _call("syscall", ctypes.c_long(_SETTERS[0]), *map(ctypes.c_uint, (real, effective, saved)))


def setresgid(real: int, effective: int, saved: int) -> None:
    """-1 leaves as it is."""
    _call("syscall", ctypes.c_long(_SETTERS[1]), *map(ctypes.c_uint, (real, effective, saved)))


def setgroups(groups: Sequence[int]) -> None:
    _call("syscall", ctypes.c_long(_SETTERS[2]), len(groups), struct.pack(f"={len(groups)}I", *groups))
