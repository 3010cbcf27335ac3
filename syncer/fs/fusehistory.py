"""The adapter between pyfuse3 and history: converts types and errors, decides nothing.

Serves the part of a mount that is behind `.snapshots` for the adapter of the live tree, or a whole mount of nothing
but history. What it lacks is what changes something; a mount of its own has the kernel refuse that.
"""

import errno
from collections.abc import Sequence

import pyfuse3
from pyfuse3 import FUSEError

from syncer.fs.filesystem import FileSystemStatus, check_xattr_name
from syncer.fs.history import HistoryTree, Seen
from syncer.fs.interrupts import Interrupts
from syncer.fs.replies import DOTS, ENTRIES_PER_READ, attributes, mapped, nothing, statfs_reply, visible


class HistoryAdapter(pyfuse3.Operations):
    supports_dot_lookup = True
    enable_acl = False
    enable_writeback_cache = False

    def __init__(self, past: HistoryTree, interrupts: Interrupts) -> None:
        super().__init__()
        self._past = past
        past.interruptible = interrupts.heard

    def _entry(self, seen: Seen) -> pyfuse3.EntryAttributes:
        """The answer that gives the kernel one more look-up."""
        self._past.looked_up(seen.number)
        return attributes(seen, seen.stat_s, seen.name_s)

    def entrance(self, directory: int) -> pyfuse3.EntryAttributes:
        """The answer to a look-up of `.snapshots` in a live directory."""
        return self._entry(self._past.entrance(directory))

    # --- names ---------------------------------------------------------------------------------------------------

    @mapped
    async def lookup(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        seen = await self._past.lookup(parent_inode, name)
        return nothing(self._past.absence_s(parent_inode)) if seen is None else self._entry(seen)

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        self._past.forget(inode_list)

    @mapped
    async def readlink(self, inode: int, ctx: pyfuse3.RequestContext) -> bytes:
        return await self._past.readlink(inode)

    @mapped
    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        return await self._past.opendir(inode)

    @mapped
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        for place, name in enumerate(DOTS[start_id:], start_id + 1):  # these two are no look-ups of the kernel's
            seen = self._past.dots(fh)[place - 1]
            if not pyfuse3.readdir_reply(token, name, attributes(seen), place):
                return
            start_id = place
        while entries := await self._past.entries(fh, start_id - len(DOTS), ENTRIES_PER_READ):
            for index, (name, seen, cookie) in enumerate(entries):
                start_id = cookie + len(DOTS)
                if not pyfuse3.readdir_reply(token, name, attributes(seen, seen.stat_s, seen.name_s), start_id):
                    self._past.unused([left.number for _, left, _ in entries[index:]])
                    return
                self._past.looked_up(seen.number)

    async def releasedir(self, fh: int) -> None:
        self._past.releasedir(fh)

    # --- attributes ----------------------------------------------------------------------------------------------

    @mapped
    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        seen = await self._past.getattr(inode)
        return attributes(seen, seen.stat_s, seen.name_s)

    @mapped
    async def getxattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        check_xattr_name(name)
        value = (await self._past.xattrs(inode)).get(name)
        if value is None:
            raise FUSEError(errno.ENODATA)
        return value

    @mapped
    async def listxattr(self, inode: int, ctx: pyfuse3.RequestContext) -> Sequence[bytes]:
        return visible(sorted(await self._past.xattrs(inode)), ctx)

    @mapped
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        return statfs_reply(FileSystemStatus(0, 0, 0, 0))

    @mapped
    async def access(self, inode: int, mode: int, ctx: pyfuse3.RequestContext) -> bool:
        return True  # the kernel decides (default_permissions)

    # --- open files ----------------------------------------------------------------------------------------------

    @mapped
    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        return pyfuse3.FileInfo(fh=await self._past.open(inode, flags), keep_cache=True)

    @mapped
    async def read(self, fh: int, off: int, size: int) -> bytes:
        return await self._past.read(fh, off, size)

    async def flush(self, fh: int) -> None:
        raise FUSEError(errno.ENOSYS)  # nothing to do at close(2), and so the kernel never asks again

    async def release(self, fh: int) -> None:
        self._past.release(fh)

    async def fsync(self, fh: int, datasync: bool) -> None:
        """All of it is on the remote."""

    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        """All of it is on the remote."""
