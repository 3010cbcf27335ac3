"""The adapter between pyfuse3 and the file system: converts types and errors, decides nothing."""

import errno
import functools
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

import pyfuse3
from pyfuse3 import FUSEError

from syncer.fs.errmap import errno_of
from syncer.fs.filesystem import BLOCK_UNIT_BYTES, METADATA_BYTES, FileSystem
from syncer.fs.interrupts import Interrupts
from syncer.fs.namespace import Caller
from syncer.meta.inodes import Inode
from syncer.values import NAME_MAX_BYTES, InodeNumber

P = ParamSpec("P")
R = TypeVar("R")

TIMEOUT_S = 3600.0
"""How long the kernel may believe what it was told: nobody else changes the tree."""
ENTRIES_PER_READ = 256
"""About as many as a request of the kernel's takes."""
DOTS = (b".", b"..")
"""Come first in every directory, with the first cookies; those of its entries follow."""
MAX_BLOCK_BYTES = 128 * 1024

Method = Callable[Concatenate["Adapter", P], Coroutine[Any, Any, R]]


def mapped(method: Method[P, R]) -> Method[P, R]:
    """Turn whatever *method* raises into the FUSEError the kernel understands."""

    @functools.wraps(method)
    async def call(self: "Adapter", /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return await method(self, *args, **kwargs)
        except FUSEError:
            raise
        except Exception as error:  # the mount must outlive any failed call; errno_of logs what nobody expected
            raise FUSEError(errno_of(error)) from error

    return call


def _caller(context: pyfuse3.RequestContext) -> Caller:
    return Caller(context.uid, context.gid, context.pid)


def attributes(inode: Inode) -> pyfuse3.EntryAttributes:
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
    entry.entry_timeout = TIMEOUT_S
    entry.attr_timeout = TIMEOUT_S
    return entry


class Adapter(pyfuse3.Operations):
    supports_dot_lookup = True
    enable_acl = False

    def __init__(self, file_system: FileSystem, interrupts: Interrupts, *, writeback: bool) -> None:
        """*writeback* lets the kernel collect writes: what it holds is lost when this process dies."""
        super().__init__()
        self.enable_writeback_cache = writeback
        self.writing = 0
        """How many writes are being served."""
        self.flush_remote: Callable[[InodeNumber], Awaitable[None]] | None = None
        """What an fsync of an inode waits for as well, where that is wanted."""
        self._fs = file_system
        self._interrupts = interrupts
        file_system.io.interruptible = interrupts.heard
        file_system.on_mode_changed = lambda number: pyfuse3.invalidate_inode(number, attr_only=True)

    def _entry(self, inode: Inode) -> pyfuse3.EntryAttributes:
        """The answer that gives the kernel one more look-up of the inode."""
        self._fs.looked_up(inode.number)
        return attributes(inode)

    # --- names ---------------------------------------------------------------------------------------------------

    @mapped
    async def lookup(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        inode = self._fs.names.lookup(parent_inode, name)
        if inode is None:
            entry = pyfuse3.EntryAttributes()
            entry.st_ino = 0
            entry.entry_timeout = TIMEOUT_S
            return entry
        return self._entry(inode)

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        self._fs.forget(inode_list)

    @mapped
    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        await self._fs.room()
        return self._entry(self._fs.create(parent_inode, name, mode, _caller(ctx), rdev=rdev))

    @mapped
    async def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        await self._fs.room()
        return self._entry(self._fs.create(parent_inode, name, mode | 0o40000, _caller(ctx)))

    @mapped
    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        await self._fs.room()
        return self._entry(self._fs.create(parent_inode, name, 0o120777, _caller(ctx), target=target))

    @mapped
    async def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        await self._fs.room()
        return self._entry(self._fs.link(inode, new_parent_inode, new_name))

    @mapped
    async def unlink(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        await self._fs.keep_up()
        self._fs.unlink(parent_inode, name)

    @mapped
    async def rmdir(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        await self._fs.keep_up()
        self._fs.rmdir(parent_inode, name)

    @mapped
    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: pyfuse3.RequestContext,
    ) -> None:
        await self._fs.keep_up()
        if flags == pyfuse3.RENAME_EXCHANGE:
            self._fs.exchange(parent_inode_old, name_old, parent_inode_new, name_new)
        elif flags in (0, pyfuse3.RENAME_NOREPLACE):
            self._fs.rename(parent_inode_old, name_old, parent_inode_new, name_new, replace=not flags)
        else:
            raise FUSEError(errno.EINVAL)

    @mapped
    async def readlink(self, inode: int, ctx: pyfuse3.RequestContext) -> bytes:
        return self._fs.readlink(inode)

    @mapped
    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        return inode

    @mapped
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        for place, name in enumerate(DOTS[start_id:], start_id + 1):  # these two are no look-ups of the kernel's
            inode = self._fs.names.lookup(fh, name)
            if inode is None or not pyfuse3.readdir_reply(token, name, attributes(inode), place):
                return
            start_id = place
        while entries := self._fs.entries(fh, start_id - len(DOTS), ENTRIES_PER_READ):
            for entry in entries:
                start_id = entry.cookie + len(DOTS)
                if not pyfuse3.readdir_reply(token, entry.name, attributes(entry.inode), start_id):
                    return
                self._fs.looked_up(entry.inode.number)

    # --- attributes ----------------------------------------------------------------------------------------------

    @mapped
    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        return attributes(self._fs.getattr(inode))

    @mapped
    async def setattr(
        self,
        inode: int,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        if fields.update_size:
            await self._fs.may_grow(inode, attr.st_size)
        await self._fs.keep_up()
        changed = self._fs.setattr(
            inode,
            mode=attr.st_mode if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            size=attr.st_size if fields.update_size else None,
            atime_ns=attr.st_atime_ns if fields.update_atime else None,
            mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
            caller=_caller(ctx),
        )
        return attributes(changed)

    @mapped
    async def getxattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        return self._fs.getxattr(inode, name)

    @mapped
    async def listxattr(self, inode: int, ctx: pyfuse3.RequestContext) -> Sequence[bytes]:
        names = self._fs.listxattr(inode)
        return names if not ctx.uid else [name for name in names if not name.startswith(b"trusted.")]

    @mapped
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: pyfuse3.RequestContext) -> None:
        await self._fs.room(len(value) + METADATA_BYTES)
        self._fs.setxattr(inode, name, value)

    @mapped
    async def removexattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        await self._fs.keep_up()
        self._fs.removexattr(inode, name)

    @mapped
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        status = self._fs.statfs()
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = BLOCK_UNIT_BYTES
        data.f_blocks = status.blocks
        data.f_bfree = data.f_bavail = status.free_blocks
        data.f_files = status.files
        data.f_ffree = data.f_favail = status.free_files
        data.f_namemax = NAME_MAX_BYTES
        return data

    # --- open files ----------------------------------------------------------------------------------------------

    @mapped
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: pyfuse3.RequestContext
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        await self._fs.room()
        inode = self._fs.create(parent_inode, name, (mode & 0o7777) | 0o100000, _caller(ctx))
        handle = self._fs.handles.open(inode, flags)
        return pyfuse3.FileInfo(fh=handle, keep_cache=True), self._entry(inode)

    @mapped
    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        return pyfuse3.FileInfo(fh=self._fs.open(inode, flags, _caller(ctx)), keep_cache=True)

    @mapped
    async def read(self, fh: int, off: int, size: int) -> bytes:
        return await self._fs.read(fh, off, size)

    @mapped
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        self.writing += 1
        try:
            return await self._fs.write(fh, off, buf)
        finally:
            self.writing -= 1

    async def flush(self, fh: int) -> None:
        raise FUSEError(errno.ENOSYS)  # nothing to do at close(2), and so the kernel never asks again

    @mapped
    async def fsync(self, fh: int, datasync: bool) -> None:
        await self._synced(self._fs.handles.get(fh).number, self._fs.fsync(fh))

    @mapped
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        await self._synced(InodeNumber(fh), self._fs.fsync_directory(fh))

    async def _synced(self, number: InodeNumber, local: Awaitable[None]) -> None:
        if self.flush_remote is None:
            with self._interrupts.deaf():
                await local
            return
        with self._interrupts.heard():
            await local
            await self.flush_remote(number)

    async def release(self, fh: int) -> None:
        self._fs.release(fh)

    async def releasedir(self, fh: int) -> None:
        pass

    @mapped
    async def access(self, inode: int, mode: int, ctx: pyfuse3.RequestContext) -> bool:
        return True  # the kernel decides (default_permissions)
