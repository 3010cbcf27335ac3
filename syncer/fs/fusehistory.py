"""The adapters between pyfuse3 and trees that nobody changes: they convert types and errors, and decide nothing.

For what is behind `.snapshots`, for a mount of nothing but history, and for one that follows the writer. What they lack
is what changes something; a mount of their own has the kernel refuse that.
"""

import errno
from collections.abc import Sequence

import pyfuse3
from pyfuse3 import FUSEError

from syncer.fs.filesystem import check_xattr_name
from syncer.fs.following import FollowingTree
from syncer.fs.history import Hint, HistoryTree, Seen
from syncer.fs.interrupts import Interrupts
from syncer.fs.replies import DOTS, ENTRIES_PER_READ, attributes, hinted, mapped, nothing, statfs_reply, visible


class ReadOnlyAdapter(pyfuse3.Operations):
    supports_dot_lookup = True
    enable_acl = False
    enable_writeback_cache = False

    def __init__(self, tree: HistoryTree | FollowingTree, interrupts: Interrupts) -> None:
        super().__init__()
        self._tree = tree
        tree.interruptible = interrupts.heard

    def _entry(self, seen: Seen) -> pyfuse3.EntryAttributes:
        """The answer that gives the kernel one more look-up."""
        self._tree.looked_up(seen.number)
        return attributes(seen, seen.stat_s, seen.name_s)

    # --- names ---------------------------------------------------------------------------------------------------

    @mapped
    async def lookup(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        seen = await self._tree.lookup(parent_inode, name)
        return nothing(self._tree.absence_s(parent_inode)) if seen is None else self._entry(seen)

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        self._tree.forget(inode_list)

    @mapped
    async def readlink(self, inode: int, ctx: pyfuse3.RequestContext) -> bytes:
        return await self._tree.readlink(inode)

    @mapped
    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        return await self._tree.opendir(inode)

    @mapped
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        for place, name in enumerate(DOTS[start_id:], start_id + 1):  # these two are no look-ups of the kernel's
            if not pyfuse3.readdir_reply(token, name, attributes(self._tree.dots(fh)[place - 1]), place):
                return
            start_id = place
        while entries := await self._tree.entries(fh, start_id - len(DOTS), ENTRIES_PER_READ):
            for index, (name, seen, cookie) in enumerate(entries):
                start_id = cookie + len(DOTS)
                if isinstance(seen, Hint):
                    if not pyfuse3.readdir_reply(token, name, hinted(*seen), start_id):
                        return
                elif pyfuse3.readdir_reply(token, name, attributes(seen, seen.stat_s, seen.name_s), start_id):
                    self._tree.looked_up(seen.number)
                else:
                    self._tree.unused([left.number for _, left, _ in entries[index:]])
                    return

    async def releasedir(self, fh: int) -> None:
        self._tree.releasedir(fh)

    # --- attributes ----------------------------------------------------------------------------------------------

    @mapped
    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        seen = await self._tree.getattr(inode)
        return attributes(seen, seen.stat_s, seen.name_s)

    @mapped
    async def getxattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        check_xattr_name(name)
        value = (await self._tree.xattrs(inode)).get(name)
        if value is None:
            raise FUSEError(errno.ENODATA)
        return value

    @mapped
    async def listxattr(self, inode: int, ctx: pyfuse3.RequestContext) -> Sequence[bytes]:
        return visible(sorted(await self._tree.xattrs(inode)), ctx)

    @mapped
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        return statfs_reply(self._tree.status())

    @mapped
    async def access(self, inode: int, mode: int, ctx: pyfuse3.RequestContext) -> bool:
        return True  # the kernel decides (default_permissions)

    # --- open files ----------------------------------------------------------------------------------------------

    @mapped
    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        handle = await self._tree.open(inode, flags)
        return pyfuse3.FileInfo(fh=handle, keep_cache=self._tree.keeps_pages(handle))

    @mapped
    async def read(self, fh: int, off: int, size: int) -> bytes:
        return await self._tree.read(fh, off, size)

    async def flush(self, fh: int) -> None:
        raise FUSEError(errno.ENOSYS)  # nothing to do at close(2), and so the kernel never asks again

    async def release(self, fh: int) -> None:
        self._tree.release(fh)

    async def fsync(self, fh: int, datasync: bool) -> None:
        """All of it is on the remote."""

    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        """All of it is on the remote."""


class HistoryAdapter(ReadOnlyAdapter):
    """With a way in for the adapter of the live tree."""

    def __init__(self, past: HistoryTree, interrupts: Interrupts) -> None:
        super().__init__(past, interrupts)
        self._past = past

    def entrance(self, directory: int) -> pyfuse3.EntryAttributes:
        """The answer to a look-up of `.snapshots` in a live directory."""
        return self._entry(self._past.entrance(directory))
