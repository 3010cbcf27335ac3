"""The file system: every call of POSIX on inodes, without FUSE in it.

Owns the parts (namespace, file I/O, handles) and what belongs to none of them: attributes, xattrs, statfs. Runs on
the event loop's thread; a method without `async` is ATOMIC to other tasks.
"""

import errno
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from syncer.blocks.store import BlockStore
from syncer.fs.fileio import FileIO
from syncer.fs.handles import Handles
from syncer.fs.namespace import Caller, Namespace
from syncer.meta.inodes import Inode
from syncer.values import InodeNumber

STATE_XATTR = b"user.syncer.state"
XATTR_MAX_BYTES = 65536
METADATA_BYTES = 1024
"""About what a new name takes in meta.db, with its indexes."""
BLOCK_UNIT_BYTES = 4096
CAPACITY_BYTES = 2**50
"""What statfs claims to offer beyond what is used: the remote's size is not known, and not asked."""

O_ACCMODE, O_TRUNC = 0o3, 0o1000


@dataclass(frozen=True, slots=True)
class FileSystemStatus:
    """statvfs(3): sizes in blocks of BLOCK_UNIT_BYTES."""

    blocks: int
    free_blocks: int
    files: int
    free_files: int


class FileSystem:
    def __init__(self, store: BlockStore, make_io: Callable[[], FileIO], *, read_only: bool) -> None:
        self._store = store
        self._meta = store.meta
        self.io = make_io()
        self.read_only = read_only
        self.handles = Handles(self._meta, self.io.erase)
        self.names = Namespace(self._meta, self.handles.unlinked)

    def check_writable(self) -> None:
        """Raises: OSError EROFS."""
        if self.read_only:
            raise OSError(errno.EROFS, "mounted read-only")

    async def room(self, amount: int = METADATA_BYTES) -> None:
        """Return when metadata of about *amount* bytes may be added; before what adds it, which awaits nothing.

        Raises: OSError ENOSPC.
        """
        await self.io.room(amount, rows=True)

    # --- attributes ----------------------------------------------------------------------------------------------

    def getattr(self, number: int) -> Inode:
        return self.names.inode(number)

    def setattr(
        self,
        number: int,
        *,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        size: int | None = None,
        atime_ns: int | None = None,
        mtime_ns: int | None = None,
    ) -> Inode:
        """chmod, chown, truncate and utimensat in one, as FUSE sends them; None leaves as it is."""
        self.check_writable()
        inode = self.names.inode(number)
        if size is not None:
            if inode.is_directory:
                raise OSError(errno.EISDIR, "is a directory")
            if not inode.is_regular:
                raise OSError(errno.EINVAL, "not a regular file")
            self.io.truncate(number, size)
        if any(value is not None for value in (mode, uid, gid, atime_ns, mtime_ns)):
            self._meta.inodes.set_attributes(number, mode, uid, gid, atime_ns, mtime_ns, time.time_ns())
        return self.names.inode(number)

    def state(self, inode: Inode) -> bytes:
        """`dirty` (has bytes in no block yet), `local` (all in blocks, some not on the remote) or `uploaded`."""
        if inode.content is not None or inode.tail or self._meta.extents.dirty_extents(inode.number):
            return b"dirty"
        return b"local" if self._meta.extents.has_pending(inode.number) else b"uploaded"

    def getxattr(self, number: int, name: bytes) -> bytes:
        inode = self.names.inode(number)
        value = self._meta.inodes.xattrs(inode).get(name)
        if value is None:
            if name == STATE_XATTR and inode.is_regular:
                return self.state(inode)
            raise OSError(errno.ENODATA, "no such attribute")
        return value

    def listxattr(self, number: int) -> list[bytes]:
        return sorted(self._meta.inodes.xattrs(self.names.inode(number)))

    def setxattr(self, number: int, name: bytes, value: bytes) -> None:
        self.check_writable()
        self._check_xattr(number, name)
        if len(value) > XATTR_MAX_BYTES:
            raise OSError(errno.E2BIG, "attribute too large")
        self._meta.inodes.set_xattr(number, name, value, time.time_ns())

    def removexattr(self, number: int, name: bytes) -> None:
        self.check_writable()
        self._check_xattr(number, name)
        if name not in self._meta.inodes.xattrs(self.names.inode(number)):
            raise OSError(errno.ENODATA, "no such attribute")
        self._meta.inodes.set_xattr(number, name, None, time.time_ns())

    def _check_xattr(self, number: int, name: bytes) -> None:
        self.names.inode(number)
        if name == STATE_XATTR:
            raise OSError(errno.EPERM, "this attribute is read-only")
        if name.startswith(b"system."):  # ACLs: without their enforcement their presence would be a lie
            raise OSError(errno.EOPNOTSUPP, "no such kind of attribute here")

    def statfs(self) -> FileSystemStatus:
        totals = self._meta.inodes.totals
        used = -(-totals.logical_bytes // BLOCK_UNIT_BYTES)
        free = CAPACITY_BYTES // BLOCK_UNIT_BYTES
        count = totals.files + totals.directories
        return FileSystemStatus(used + free, free, count + 2**32, 2**32)

    # --- names ---------------------------------------------------------------------------------------------------

    def create(
        self, parent: int, name: bytes, mode: int, caller: Caller, *, rdev: int = 0, target: bytes | None = None
    ) -> Inode:
        self.check_writable()
        return self.names.create(parent, name, mode, caller, rdev=rdev, target=target)

    def link(self, number: int, parent: int, name: bytes) -> Inode:
        self.check_writable()
        return self.names.link(number, parent, name)

    def unlink(self, parent: int, name: bytes) -> None:
        self.check_writable()
        self.names.unlink(parent, name)

    def rmdir(self, parent: int, name: bytes) -> None:
        self.check_writable()
        self.names.rmdir(parent, name)

    def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, *, replace: bool = True) -> None:
        self.check_writable()
        self.names.rename(parent, name, new_parent, new_name, replace=replace)

    def exchange(self, parent: int, name: bytes, new_parent: int, new_name: bytes) -> None:
        self.check_writable()
        self.names.exchange(parent, name, new_parent, new_name)

    # --- open files ----------------------------------------------------------------------------------------------

    def open(self, number: int, flags: int) -> int:
        """A handle; truncates where O_TRUNC asks for it."""
        inode = self.names.inode(number)
        if flags & (O_ACCMODE | O_TRUNC):
            self.check_writable()
        if flags & O_TRUNC and inode.size:
            self.io.truncate(number, 0)
        return self.handles.open(inode)

    async def read(self, handle: int, offset: int, length: int) -> bytes:
        return await self.io.read(self.handles.get(handle), offset, length)

    async def write(self, handle: int, offset: int, data: bytes | memoryview) -> int:
        self.check_writable()
        return await self.io.write(self.handles.get(handle).number, offset, data)

    async def fsync(self, handle: int) -> None:
        await self.io.fsync(self.handles.get(handle).number)

    async def fsync_directory(self, number: int) -> None:
        await self.io.fsync(number)

    def release(self, handle: int) -> None:
        self.handles.close(handle)

    def forget(self, items: Iterable[tuple[int, int]]) -> None:
        self.handles.forget(items)

    def looked_up(self, number: InodeNumber) -> None:
        self.handles.looked_up(number)
