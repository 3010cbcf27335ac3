"""The processes of the differential test: each makes every call on both places, and tells what came of it.

A step is a tuple: the name of a `do_` method of `Side` and its arguments. A path is relative to the place, or a slot
and a name: what the open directory in that slot has under the name. Nothing here ever waits: what could block is asked
not to.
"""

import ast
import ctypes
import fcntl
import functools
import hashlib
import mmap
import os
import random
import stat
import struct
import sys
from typing import Any

from tests.support.posix import ALICE
from tests.support.syscalls import (
    Status,
    access,
    faccessat,
    linkat,
    renameat2,
    status,
    utimensat,
)
from tests.support.syscalls_data import syncfs

Where = bytes | tuple[int, bytes]
Step = tuple[Any, ...]
Outcome = tuple[str, Any]
"""("value", what came back) or ("error", errno)."""

PR_SET_DUMPABLE = 4
DIRENT = struct.Struct("=QqHB")
DIRENTS_BYTES = 320
"""Room for one name of any length, or some short ones: a directory takes several calls."""
RECORD = struct.Struct("hhqqi4x")
"""struct flock on 64-bit Linux: type, whence, start, length, process."""
STREAM_BYTES = 2 * 1024 * 1024
SHIFT_BYTES = 64 * 1024

_libc = ctypes.CDLL(None, use_errno=True)


@functools.cache
def _stream(seed: int) -> bytes:
    """Zeros (0), one byte over and over (1), or random bytes."""
    if seed < 2:
        return bytes([seed]) * STREAM_BYTES
    return random.Random(seed).randbytes(STREAM_BYTES)


def content(seed: int, length: int) -> bytes:
    """What a write of *length* bytes writes; other lengths are other bytes."""
    start = length * 31 % SHIFT_BYTES
    return _stream(seed)[start : start + length]


def digest(data: bytes) -> tuple[int, str]:
    """What is told of bytes that were read: how many, and their hash."""
    return len(data), hashlib.blake2b(data, digest_size=8).hexdigest()


class Side:
    """One of the two places, and what this process has open there, by slot."""

    def __init__(self, root: bytes) -> None:
        self.root = root
        self.open: dict[int, int] = {}

    def play(self, step: Step) -> Outcome:
        try:
            return "value", getattr(self, f"do_{step[0]}")(*step[1:])
        except OSError as error:
            return "error", error.errno

    def look(self) -> dict[int, tuple[int, int, int | None, tuple[int, ...]]]:
        """Of every slot: the descriptor, its flags, where it stands (None: nowhere, or a directory) and its status."""
        found = {}
        for slot, descriptor in sorted(self.open.items()):
            seen = status(descriptor)
            flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
            regular = stat.S_ISREG(seen.mode) and not flags & os.O_PATH
            position = os.lseek(descriptor, 0, os.SEEK_CUR) if regular else None
            found[slot] = (descriptor, flags, position, tuple(getattr(seen, name) for name in Status.__slots__))
        return found

    def _path(self, where: Where) -> bytes:
        if isinstance(where, bytes):
            return self.root + b"/" + where
        slot, name = where
        return b"/proc/self/fd/%d/%s" % (self.open[slot], name)

    # --- descriptors -------------------------------------------------------------------------------------------------

    def do_open(self, slot: int, where: Where, flags: int, mode: int) -> None:
        self.open[slot] = os.open(self._path(where), flags | os.O_NONBLOCK, mode)

    def do_close(self, slot: int) -> None:
        os.close(self.open.pop(slot))

    def do_append(self, slot: int, on: bool) -> None:
        """Switch O_APPEND."""
        flags = fcntl.fcntl(self.open[slot], fcntl.F_GETFL) & ~os.O_APPEND
        fcntl.fcntl(self.open[slot], fcntl.F_SETFL, flags | (os.O_APPEND if on else 0))

    def do_seek(self, slot: int, offset: int, whence: int) -> int:
        return os.lseek(self.open[slot], offset, whence)

    # --- bytes -------------------------------------------------------------------------------------------------------

    def do_read(self, slot: int, length: int) -> tuple[int, str]:
        return digest(os.read(self.open[slot], length))

    def do_pread(self, slot: int, offset: int, length: int) -> tuple[int, str]:
        return digest(os.pread(self.open[slot], length, offset))

    def do_readv(self, slot: int, lengths: tuple[int, ...]) -> tuple[int, str]:
        buffers = [bytearray(length) for length in lengths]
        count = os.readv(self.open[slot], buffers)
        return digest(b"".join(buffers)[:count])

    def do_write(self, slot: int, seed: int, length: int) -> int:
        return os.write(self.open[slot], content(seed, length))

    def do_pwrite(self, slot: int, offset: int, seed: int, length: int) -> int:
        return os.pwrite(self.open[slot], content(seed, length), offset)

    def do_writev(self, slot: int, seed: int, lengths: tuple[int, ...]) -> int:
        return os.writev(self.open[slot], [content(seed, length) for length in lengths])

    def do_truncate(self, where: Where, size: int) -> None:
        os.truncate(self._path(where), size)

    def do_ftruncate(self, slot: int, size: int) -> None:
        os.ftruncate(self.open[slot], size)

    def do_store(self, slot: int, offset: int, seed: int, length: int) -> int:
        """Through shared memory, as far as the file goes."""
        return len(self._mapped(slot, offset, length, content(seed, length)))

    def do_load(self, slot: int, offset: int, length: int) -> tuple[int, str]:
        return digest(self._mapped(slot, offset, length, None))

    def _mapped(self, slot: int, offset: int, length: int, data: bytes | None) -> bytes:
        descriptor = self.open[slot]
        found = os.fstat(descriptor)
        base = offset - offset % mmap.PAGESIZE
        end = offset + length
        if stat.S_ISREG(found.st_mode):
            end = min(end, found.st_size)
        access_mode = mmap.ACCESS_READ if data is None else mmap.ACCESS_WRITE
        if end <= offset:
            return b""
        with mmap.mmap(descriptor, end - base, access=access_mode, offset=base) as mapped:
            if data is not None:
                mapped[offset - base :] = data[: end - offset]
                mapped.flush()
            return mapped[offset - base :]

    def do_copy(self, source: int, target: int, offset: int, place: int, length: int) -> int:
        return os.copy_file_range(self.open[source], self.open[target], length, offset, place)

    def do_fsync(self, slot: int, data_only: bool) -> None:
        (os.fdatasync if data_only else os.fsync)(self.open[slot])

    def do_syncfs(self, slot: int) -> None:
        syncfs(self.open[slot])

    # --- names -------------------------------------------------------------------------------------------------------

    def do_mkdir(self, where: Where, mode: int) -> None:
        os.mkdir(self._path(where), mode)

    def do_mknod(self, where: Where, mode: int, device: int) -> None:
        os.mknod(self._path(where), mode, device)

    def do_symlink(self, target: bytes, where: Where) -> None:
        os.symlink(target, self._path(where))

    def do_link(self, where: Where, new: Where, flags: int) -> None:
        linkat(self._path(where), self._path(new), flags)

    def do_unlink(self, where: Where) -> None:
        os.unlink(self._path(where))

    def do_rmdir(self, where: Where) -> None:
        os.rmdir(self._path(where))

    def do_rename(self, where: Where, new: Where, flags: int) -> None:
        renameat2(self._path(where), self._path(new), flags)

    def do_readlink(self, where: Where) -> bytes:
        return os.readlink(self._path(where))

    # --- directories -------------------------------------------------------------------------------------------------

    def do_listdir(self, where: Where) -> list[bytes]:
        return sorted(os.listdir(self._path(where)))

    def do_list(self, slot: int, calls: int) -> tuple[bool, list[bytes]]:
        """Go on listing an open directory: whether this is the end, and the next names."""
        names: list[bytes] = []
        for _ in range(calls):
            buffer = ctypes.create_string_buffer(DIRENTS_BYTES)
            count = _libc.getdents64(self.open[slot], buffer, ctypes.c_size_t(DIRENTS_BYTES))
            if count < 0:
                raise OSError(ctypes.get_errno(), "getdents64")
            if not count:
                return True, names
            place = 0
            while place < count:
                _, _, length, _ = DIRENT.unpack_from(buffer.raw, place)
                names.append(buffer.raw[place + DIRENT.size : place + length].split(b"\0", 1)[0])
                place += length
        return False, names

    # --- attributes --------------------------------------------------------------------------------------------------

    def do_stat(self, where: Where) -> tuple[int, ...]:
        """What a path leads to, symlinks followed."""
        found = os.stat(self._path(where))
        size = 0 if stat.S_ISDIR(found.st_mode) else found.st_size
        return found.st_mode, found.st_nlink, found.st_uid, found.st_gid, found.st_rdev, size

    def do_access(self, where: Where, mode: int, flags: int) -> None:
        if flags:
            faccessat(self._path(where), mode, flags)
        else:
            access(self._path(where), mode)

    def do_chmod(self, where: Where, mode: int) -> None:
        os.chmod(self._path(where), mode)

    def do_fchmod(self, slot: int, mode: int) -> None:
        os.fchmod(self.open[slot], mode)

    def do_chown(self, where: Where, uid: int, gid: int, follow: bool) -> None:
        os.chown(self._path(where), uid, gid, follow_symlinks=follow)

    def do_fchown(self, slot: int, uid: int, gid: int) -> None:
        os.fchown(self.open[slot], uid, gid)

    def do_utimens(self, where: Where, atime: tuple[int, int], mtime: tuple[int, int], flags: int) -> None:
        utimensat(self._path(where), atime, mtime, flags)

    def do_umask(self, mask: int) -> None:
        os.umask(mask)

    def do_setxattr(self, where: Where, name: bytes, value: bytes, flags: int, follow: bool) -> None:
        os.setxattr(self._path(where), name, value, flags, follow_symlinks=follow)

    def do_getxattr(self, where: Where, name: bytes, follow: bool) -> bytes:
        return os.getxattr(self._path(where), name, follow_symlinks=follow)

    def do_removexattr(self, where: Where, name: bytes, follow: bool) -> None:
        os.removexattr(self._path(where), name, follow_symlinks=follow)

    def do_listxattr(self, where: Where, follow: bool) -> list[str]:
        return sorted(os.listxattr(self._path(where), follow_symlinks=follow))

    # --- locks -------------------------------------------------------------------------------------------------------

    def do_flock(self, slot: int, kind: int) -> None:
        fcntl.flock(self.open[slot], kind | fcntl.LOCK_NB)

    def do_record(self, slot: int, call: int, kind: int, start: int, length: int) -> tuple[int, ...]:
        """fcntl(2) with a struct flock, which comes back."""
        question = RECORD.pack(kind, os.SEEK_SET, start, length, 0)
        return RECORD.unpack(fcntl.fcntl(self.open[slot], call, question))


def serve(ordinary: bool, places: list[str]) -> None:
    """Answer steps, a line each, until there are no more. *ordinary*: as an ordinary user, not as root."""
    if ordinary:
        os.setgroups(ALICE.groups)
        os.setresgid(ALICE.gid, ALICE.gid, ALICE.gid)
        os.setresuid(ALICE.uid, ALICE.uid, ALICE.uid)
        _libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)  # or /proc/self/fd would not be ours
    roots = [os.fsencode(place) for place in places]
    sides = [Side(root) for root in roots]
    print("ready")
    for line in sys.stdin:
        step = ast.literal_eval(line)
        if step[0] == "begin":
            os.umask(0o022)
            for side, root in zip(sides, roots, strict=True):
                side.root = root + b"/" + step[1]
                for descriptor in side.open.values():
                    os.close(descriptor)
                side.open.clear()
            outcomes: list[Outcome] = []
        else:
            outcomes = [side.play(step) for side in sides] if step[0] != "look" else []
        print(repr((outcomes, [side.look() for side in sides])))
