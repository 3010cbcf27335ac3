"""The adapter between pyfuse3 and the file system: converts types and errors, decides nothing."""

import contextlib
import errno
from collections.abc import Awaitable, Callable, Sequence

import pyfuse3
import trio
from pyfuse3 import FUSEError

from syncer.fs.filesystem import METADATA_BYTES, FileSystem
from syncer.fs.fusehistory import HistoryAdapter
from syncer.fs.history import PAST, HistoryTree
from syncer.fs.interrupts import Interrupts
from syncer.fs.namespace import Caller
from syncer.fs.replies import DOTS, ENTRIES_PER_READ, attributes, mapped, nothing, statfs_reply, visible
from syncer.meta.inodes import Inode
from syncer.values import InodeNumber


def _caller(context: pyfuse3.RequestContext) -> Caller:
    return Caller(context.uid, context.gid, context.pid)


def _live(*numbers: int) -> None:
    """Refuse to change what is past. Raises: OSError EROFS."""
    for number in numbers:
        if number >= PAST:
            raise OSError(errno.EROFS, "history cannot be changed")


async def changed_behind(entries: Sequence[tuple[int, bytes]], inodes: Sequence[int]) -> None:
    """Have the kernel forget names, and attributes and pages of inodes, that changed without its having asked for it.

    In a thread: each of these calls waits for requests under way that concern the same directory or the same pages,
    and the event loop has to serve those.
    """
    await trio.to_thread.run_sync(_forget_cached, entries, inodes, False)


async def moved_on(entries: Sequence[tuple[int, bytes]], inodes: Sequence[int]) -> None:
    """As `changed_behind`, but pages stay: who opens a file says whether they are still right.

    What it waits for may wait for the remote: an end of the mount does not wait for that.
    """
    await trio.to_thread.run_sync(_forget_cached, entries, inodes, True, abandon_on_cancel=True)


def _forget_cached(entries: Sequence[tuple[int, bytes]], inodes: Sequence[int], attr_only: bool) -> None:
    if attr_only:  # which waits for nothing, so it is not to wait for names
        _forget_inodes(inodes, attr_only)
    for parent, name in entries:
        with contextlib.suppress(FileNotFoundError):  # it knew nothing of it
            pyfuse3.invalidate_entry(pyfuse3.InodeT(parent), pyfuse3.FileNameT(name))
    if not attr_only:
        _forget_inodes(inodes, attr_only)


def _forget_inodes(inodes: Sequence[int], attr_only: bool) -> None:
    for number in inodes:
        with contextlib.suppress(FileNotFoundError):
            pyfuse3.invalidate_inode(pyfuse3.InodeT(number), attr_only)


class Adapter(pyfuse3.Operations):
    supports_dot_lookup = True
    enable_acl = False

    def __init__(self, file_system: FileSystem, past: HistoryTree, interrupts: Interrupts, *, writeback: bool) -> None:
        """*writeback* lets the kernel collect writes: what it holds is lost when this process dies."""
        super().__init__()
        self.enable_writeback_cache = writeback
        self.writing = 0
        """How many writes are being served."""
        self.flush_remote: Callable[[InodeNumber], Awaitable[None]] | None = None
        """What an fsync of an inode waits for as well, where that is wanted."""
        self._fs = file_system
        self._interrupts = interrupts
        self._past = HistoryAdapter(past, interrupts)
        file_system.io.interruptible = interrupts.heard
        file_system.changed_behind = changed_behind
        file_system.kernel_keeps_sizes = writeback
        file_system.on_mode_changed = lambda number: pyfuse3.invalidate_inode(number, attr_only=True)

    def _entry(self, inode: Inode) -> pyfuse3.EntryAttributes:
        """The answer that gives the kernel one more look-up of the inode."""
        self._fs.looked_up(inode.number)
        return attributes(inode)

    # --- names ---------------------------------------------------------------------------------------------------

    @mapped
    async def lookup(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        if parent_inode >= PAST:
            return await self._past.lookup(parent_inode, name, ctx)
        inode = self._fs.names.lookup(parent_inode, name)
        if inode is None:
            return self._past.entrance(parent_inode) if name == self._fs.history_name else nothing()
        return self._entry(inode)

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        past = [item for item in inode_list if item[0] >= PAST]
        if past:
            await self._past.forget(past)
            inode_list = [item for item in inode_list if item[0] < PAST]
        self._fs.forget(inode_list)

    @mapped
    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        _live(parent_inode)
        await self._fs.room()
        return self._entry(self._fs.create(parent_inode, name, mode, _caller(ctx), rdev=rdev))

    @mapped
    async def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        _live(parent_inode)
        await self._fs.room()
        return self._entry(self._fs.create(parent_inode, name, mode | 0o40000, _caller(ctx)))

    @mapped
    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        _live(parent_inode)
        await self._fs.room()
        return self._entry(self._fs.create(parent_inode, name, 0o120777, _caller(ctx), target=target))

    @mapped
    async def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        _live(inode, new_parent_inode)
        await self._fs.room()
        return self._entry(self._fs.link(inode, new_parent_inode, new_name))

    @mapped
    async def unlink(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        _live(parent_inode)
        await self._fs.keep_up()
        self._fs.unlink(parent_inode, name)

    @mapped
    async def rmdir(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        _live(parent_inode)
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
        _live(parent_inode_old, parent_inode_new)
        await self._fs.room_for_name(name_old, parent_inode_new, name_new)
        if flags == pyfuse3.RENAME_EXCHANGE:
            self._fs.exchange(parent_inode_old, name_old, parent_inode_new, name_new)
        elif flags in (0, pyfuse3.RENAME_NOREPLACE):
            self._fs.rename(parent_inode_old, name_old, parent_inode_new, name_new, replace=not flags)
        else:
            raise FUSEError(errno.EINVAL)

    @mapped
    async def readlink(self, inode: int, ctx: pyfuse3.RequestContext) -> bytes:
        if inode >= PAST:
            return await self._past.readlink(inode, ctx)
        return self._fs.readlink(inode)

    @mapped
    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        if inode >= PAST:
            return await self._past.opendir(inode, ctx)
        return inode

    @mapped
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        if fh >= PAST:
            return await self._past.readdir(fh, start_id, token)
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
            if len(entries) < ENTRIES_PER_READ:
                return

    # --- attributes ----------------------------------------------------------------------------------------------

    @mapped
    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        if inode >= PAST:
            return await self._past.getattr(inode, ctx)
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
        _live(inode)
        if fields.update_size:
            await self._fs.may_grow(inode, attr.st_size)
            await self._fs.room_for_size(inode, attr.st_size)
        else:
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
        if inode >= PAST:
            return await self._past.getxattr(inode, name, ctx)
        return self._fs.getxattr(inode, name)

    @mapped
    async def listxattr(self, inode: int, ctx: pyfuse3.RequestContext) -> Sequence[bytes]:
        if inode >= PAST:
            return await self._past.listxattr(inode, ctx)
        return visible(self._fs.listxattr(inode), ctx)

    @mapped
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: pyfuse3.RequestContext) -> None:
        _live(inode)
        await self._fs.room(len(value) + METADATA_BYTES)
        self._fs.setxattr(inode, name, value)

    @mapped
    async def removexattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        _live(inode)
        await self._fs.keep_up()
        self._fs.removexattr(inode, name)

    @mapped
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        return statfs_reply(self._fs.statfs())

    # --- open files ----------------------------------------------------------------------------------------------

    @mapped
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: pyfuse3.RequestContext
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        _live(parent_inode)
        await self._fs.room()
        inode = self._fs.create(parent_inode, name, (mode & 0o7777) | 0o100000, _caller(ctx))
        handle = self._fs.handles.open(inode, flags)
        return pyfuse3.FileInfo(fh=handle, keep_cache=True), self._entry(inode)

    @mapped
    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        if inode >= PAST:
            return await self._past.open(inode, flags, ctx)
        return pyfuse3.FileInfo(fh=self._fs.open(inode, flags, _caller(ctx)), keep_cache=True)

    @mapped
    async def read(self, fh: int, off: int, size: int) -> bytes:
        if fh >= PAST:
            return await self._past.read(fh, off, size)
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
        if fh >= PAST:
            return
        await self._synced(self._fs.handles.get(fh).number, self._fs.fsync(fh))

    @mapped
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        if fh >= PAST:
            return
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
        if fh >= PAST:
            return await self._past.release(fh)
        self._fs.release(fh)

    async def releasedir(self, fh: int) -> None:
        if fh >= PAST:
            await self._past.releasedir(fh)

    @mapped
    async def access(self, inode: int, mode: int, ctx: pyfuse3.RequestContext) -> bool:
        return True  # the kernel decides (default_permissions)
