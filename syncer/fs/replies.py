"""What both adapters need to answer the kernel: our values and errors as pyfuse3 wants them."""

import ctypes
import functools
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import pyfuse3
from pyfuse3 import FUSEError

from syncer.fs.errmap import errno_of
from syncer.fs.filesystem import BLOCK_UNIT_BYTES, FileSystemStatus
from syncer.values import NAME_MAX_BYTES

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")

TIMEOUT_S = 3600.0
"""How long the kernel may believe what it was told: nobody else changes the tree."""
ENTRIES_PER_READ = 256
"""About as many as a request of the kernel's takes."""
DOTS = (b".", b"..")
"""Come first in every directory, with the first cookies; those of its entries follow."""
MAX_BLOCK_BYTES = 128 * 1024

Method = Callable[Concatenate[S, P], Coroutine[Any, Any, R]]


class Attributes(Protocol):
    """What stat(2) shows of an inode; times in nanoseconds."""

    @property
    def number(self) -> int: ...
    @property
    def mode(self) -> int: ...
    @property
    def nlink(self) -> int: ...
    @property
    def uid(self) -> int: ...
    @property
    def gid(self) -> int: ...
    @property
    def rdev(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def atime_ns(self) -> int: ...
    @property
    def mtime_ns(self) -> int: ...
    @property
    def ctime_ns(self) -> int: ...


def mapped(method: Method[S, P, R]) -> Method[S, P, R]:
    """Turn whatever *method* raises into the FUSEError the kernel understands."""

    @functools.wraps(method)
    async def call(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return await method(self, *args, **kwargs)
        except FUSEError:
            raise
        except Exception as error:  # the mount must outlive any failed call; errno_of logs what nobody expected
            raise FUSEError(errno_of(error)) from error

    return call


def attributes(inode: Attributes, stat_s: float = TIMEOUT_S, name_s: float = TIMEOUT_S) -> pyfuse3.EntryAttributes:
    """*stat_s* and *name_s*: how long the kernel may believe these, and that the name is theirs."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = inode.number
    entry.st_mode = inode.mode
    entry.st_nlink = inode.nlink
    entry.st_uid = inode.uid
    entry.st_gid = inode.gid
    entry.st_rdev = inode.rdev
    entry.st_size = inode.size
    entry.st_blksize = MAX_BLOCK_BYTES
    entry.st_blocks = (inode.size + 511) // 512
    entry.st_atime_ns = inode.atime_ns
    entry.st_mtime_ns = inode.mtime_ns
    entry.st_ctime_ns = inode.ctime_ns
    entry.st_birthtime_ns = 0
    entry.entry_timeout = name_s
    entry.attr_timeout = stat_s
    return entry


def _node_of(entry: pyfuse3.EntryAttributes) -> ctypes.c_uint64:
    """The field of *entry* that says which inode the kernel is given, alone: `st_ino` sets it and what stat(2) shows.

    Raises: ImportError: this pyfuse3 keeps it somewhere else.
    """
    size = ctypes.sizeof(ctypes.c_uint64)
    for offset in range(object.__basicsize__, pyfuse3.EntryAttributes.__basicsize__, size):
        field = ctypes.c_uint64.from_address(id(entry) + offset)
        entry.st_ino = 2**64 - 1
        if field.value == 2**64 - 1:
            field.value = 0
            if entry.st_ino == 0:
                return field
    raise ImportError("syncer does not know this version of pyfuse3")


_HINT = pyfuse3.EntryAttributes()
_HINT_NODE = _node_of(_HINT)


def hinted(number: int, mode: int) -> pyfuse3.EntryAttributes:
    """For `readdir_reply`: a name with its inode number and type, of which the kernel remembers nothing.

    To a listing with attributes (FUSE_READDIRPLUS) node 0 means that there are none, and that nothing was looked up.
    Good until the next call.
    """
    _HINT.st_ino = number
    _HINT_NODE.value = 0
    _HINT.st_mode = mode
    return _HINT


def nothing(timeout_s: float = TIMEOUT_S) -> pyfuse3.EntryAttributes:
    """The answer to a look-up of a name that is not there."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = 0
    entry.entry_timeout = timeout_s
    return entry


def visible(names: Sequence[bytes], ctx: pyfuse3.RequestContext) -> Sequence[bytes]:
    """The extended attributes among *names* that the caller may see."""
    return names if not ctx.uid else [name for name in names if not name.startswith(b"trusted.")]


def statfs_reply(status: FileSystemStatus) -> pyfuse3.StatvfsData:
    data = pyfuse3.StatvfsData()
    data.f_bsize = data.f_frsize = BLOCK_UNIT_BYTES
    data.f_blocks = status.blocks
    data.f_bfree = data.f_bavail = status.free_blocks
    data.f_files = status.files
    data.f_ffree = data.f_favail = status.free_files
    data.f_namemax = NAME_MAX_BYTES
    return data
