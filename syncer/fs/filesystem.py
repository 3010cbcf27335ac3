"""The file system: every call of POSIX on inodes, without FUSE in it.

Owns the parts (namespace, file I/O, handles) and what belongs to none of them: attributes, xattrs, statfs. Runs on
the event loop's thread; a method without `async` is ATOMIC to other tasks.
"""

import errno
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from stat import S_ISGID, S_ISUID, S_IXGRP

from syncer.blocks.store import BlockStore
from syncer.fs.fileio import FileIO
from syncer.fs.handles import O_ACCMODE, O_TRUNC, Handles
from syncer.fs.namespace import Caller, Namespace
from syncer.meta.inodes import Inode
from syncer.meta.namespace import Entry
from syncer.values import XATTRS_MAX_BYTES, InodeNumber

STATE_XATTR = b"user.syncer.state"
CAPABILITY_XATTR = b"security.capability"
XATTR_MAX_BYTES = 65536
XATTR_SPACES = (b"user.", b"trusted.", b"security.")
METADATA_BYTES = 1024
"""About what a new name takes in meta.db, with its indexes."""
BLOCK_UNIT_BYTES = 4096
CAPACITY_BYTES = 2**50
"""What statfs claims to offer beyond what is used: the remote's size is not known, and not asked."""

ROOT = Caller(0, 0)


@dataclass(frozen=True, slots=True)
class FileSystemStatus:
    """statvfs(3): sizes in blocks of BLOCK_UNIT_BYTES."""

    blocks: int
    free_blocks: int
    files: int
    free_files: int


class FileSystem:
    def __init__(
        self, store: BlockStore, make_io: Callable[[], FileIO], *, read_only: bool, history_name: bytes | None = None
    ) -> None:
        """*history_name* is shown in every directory that has no such name, without being listed; None: nowhere."""
        self.history_name = history_name
        self._store = store
        self._meta = store.meta
        self.io = make_io()
        self.read_only = read_only
        self.handles = Handles(self._meta, self.io.erase)
        self.names = Namespace(self._meta, self.handles.unlinked)
        self.on_mode_changed: Callable[[InodeNumber], None] = lambda number: None
        """Told of an inode whose mode changed by a call that does not answer with its attributes."""
        self.kernel_keeps_sizes = False
        """Whether the kernel goes by its own idea of the size of a file that it knows, whatever it is told."""
        self.changed_behind: Callable[[Sequence[tuple[int, bytes]], Sequence[int]], Awaitable[None]] = _nobody_to_tell
        """Told of (directory, name) and of inodes that changed without the kernel's having asked for it."""

    def check_writable(self) -> None:
        """Raises: OSError EROFS."""
        if self.read_only:
            raise OSError(errno.EROFS, "mounted read-only")

    async def room(self, amount: int = METADATA_BYTES) -> None:
        """Return when metadata of about *amount* bytes may be added; before what adds it, which awaits nothing.

        Raises: OSError ENOSPC.
        """
        await self.io.room(amount, rows=True)

    async def room_for_name(self, name: bytes, new_parent: int, new_name: bytes) -> None:
        """Return when the entry *name* may be called *new_name*; before what does it, which awaits nothing.

        Only where that is longer, and takes nobody's place, it needs room. Raises: OSError.
        """
        if len(new_name) > len(name) and self.names.lookup(new_parent, new_name) is None:
            await self.room(METADATA_BYTES)
        else:
            await self.keep_up()

    def settle(self) -> None:
        """To be called when the caller of the last operation has its answer: it leaves work for then."""
        self.io.settle()

    async def keep_up(self) -> None:
        """Return when names and attributes may be changed or removed; before what does that, which awaits nothing.

        Raises: OSError ENOSPC.
        """
        await self.io.keep_up()

    async def room_for_size(self, number: int, size: int) -> None:
        """Return when the file may be given the *size*; before what does it, which awaits nothing. Raises: OSError."""
        await self.io.room_for_size(number, size)

    async def may_grow(self, number: int, size: int) -> None:
        """Return when the size of the file may be set without everybody's having to wait; before what does it."""
        await self.io.may_grow(number, size)

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
        caller: Caller = ROOT,
    ) -> Inode:
        """chmod, chown, truncate and utimensat in one, as FUSE sends them; None leaves as it is.

        With None throughout it is chown(2) with neither owner nor group, or what the kernel sends before a write(2)
        that ends the set-id bits.
        """
        self.check_writable()
        atime_ns, mtime_ns = _kept_time(atime_ns), _kept_time(mtime_ns)
        inode = self.names.inode(number)
        if size is not None:
            if inode.is_directory:
                raise OSError(errno.EISDIR, "is a directory")
            if not inode.is_regular:
                raise OSError(errno.EINVAL, "not a regular file")
            self.io.truncate(number, size)
            self._drop_privileges(inode, caller)
        elif mode is None and atime_ns is None and mtime_ns is None and not inode.is_directory:
            self._check_may_end(inode, caller)
            self._drop_privileges(inode, caller, given_away=True)
        if size is None or any(value is not None for value in (mode, uid, gid, atime_ns, mtime_ns)):
            self._meta.inodes.set_attributes(number, mode, uid, gid, atime_ns, mtime_ns, time.time_ns())
        return self.names.inode(number)

    def _drop_privileges(self, inode: Inode, caller: Caller, *, given_away: bool = False) -> bool:
        """Clear set-id bits and the file's capabilities, because *caller* changed the content, or calls chown(2).

        The kernel leaves this to us (device.py) when a file is truncated or given away. Before a write(2) it removes
        capabilities itself and asks for the bits. As in ext4, root's writes keep the set-id bits, a new owner
        never does, and a set-group-id bit without execution by the group is a mark for locks and stays within the
        group. Returns whether anything was cleared.
        """
        cleared = _ended(inode, caller, given_away=given_away)
        if cleared:
            mode = inode.mode & ~cleared
            self._meta.inodes.set_attributes(inode.number, mode, None, None, None, None, time.time_ns())
        if CAPABILITY_XATTR not in self._meta.inodes.xattrs(inode):
            return bool(cleared)
        self._meta.inodes.set_xattr(inode.number, CAPABILITY_XATTR, None, time.time_ns())
        return True

    def _check_may_end(self, inode: Inode, caller: Caller) -> None:
        """Only its owner ends the set-id bits of a file by chown(2) without an owner; who writes to it has it open.

        Raises: OSError EPERM.
        """
        if (
            caller.uid in (0, inode.uid)
            or not _ended(inode, caller, given_away=True)
            or self.handles.is_written(inode.number)
        ):
            return
        raise OSError(errno.EPERM, "not the owner")

    def state(self, inode: Inode) -> bytes:
        """`dirty` (has bytes in no block yet), `local` (all in blocks), or `uploaded`: a snapshot on the remote has it.

        Just as it is now, under its names, and the remote has all that the snapshot names of it.
        """
        if inode.content is not None or self._meta.extents.dirty_files(inode):
            return b"dirty"
        if not self._meta.snapshots.shows(inode) or self._meta.extents.has_pending(inode.number):
            return b"local"
        return b"uploaded"

    def getxattr(self, number: int, name: bytes) -> bytes:
        check_xattr_name(name)
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
        others = self._meta.inodes.xattrs(self.names.inode(number))
        if sum(len(key) + len(held) for key, held in others.items()) + len(name) + len(value) > XATTRS_MAX_BYTES:
            raise OSError(errno.ENOSPC, "too many attributes")
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
        check_xattr_name(name)
        if name == STATE_XATTR:
            raise OSError(errno.EPERM, "this attribute is read-only")

    def statfs(self) -> FileSystemStatus:
        totals = self._meta.inodes.totals
        used = -(-totals.logical_bytes // BLOCK_UNIT_BYTES)
        free = CAPACITY_BYTES // BLOCK_UNIT_BYTES
        count = totals.files + totals.directories
        return FileSystemStatus(used + free, free, count + 2**32, 2**32)

    def readlink(self, number: int) -> bytes:
        """Raises: OSError EINVAL."""
        target = self.names.readlink(number)
        self.io.note_access(self.names.inode(number))
        return target

    def entries(self, number: int, after_cookie: int, limit: int) -> list[Entry]:
        """Up to *limit* entries of a directory, from its begin on (0) or after a cookie."""
        self.io.note_access(self.names.inode(number))
        return self.names.entries(number, after_cookie, limit)

    # --- names ---------------------------------------------------------------------------------------------------

    def _check_not_shown(self, parent: int, name: bytes, number: int) -> None:
        """Refuse to use the name of history, where it is not a name like any other. Raises: OSError *number*."""
        if name == self.history_name and self.names.lookup(parent, name) is None:
            raise OSError(number, "history is there")

    def create(
        self, parent: int, name: bytes, mode: int, caller: Caller, *, rdev: int = 0, target: bytes | None = None
    ) -> Inode:
        self.check_writable()
        self._check_not_shown(parent, name, errno.EEXIST)
        return self.names.create(parent, name, mode, caller, rdev=rdev, target=target)

    def link(self, number: int, parent: int, name: bytes) -> Inode:
        self.check_writable()
        self._check_not_shown(parent, name, errno.EEXIST)
        return self.names.link(number, parent, name)

    def unlink(self, parent: int, name: bytes) -> None:
        self.check_writable()
        self._check_not_shown(parent, name, errno.EROFS)
        self.names.unlink(parent, name)

    def rmdir(self, parent: int, name: bytes) -> None:
        self.check_writable()
        self._check_not_shown(parent, name, errno.EROFS)
        self.names.rmdir(parent, name)

    def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, *, replace: bool = True) -> None:
        self.check_writable()
        self._check_not_shown(parent, name, errno.EROFS)
        self._check_not_shown(new_parent, new_name, errno.EEXIST)
        self.names.rename(parent, name, new_parent, new_name, replace=replace)

    def exchange(self, parent: int, name: bytes, new_parent: int, new_name: bytes) -> None:
        self.check_writable()
        self._check_not_shown(parent, name, errno.EROFS)
        self._check_not_shown(new_parent, new_name, errno.EROFS)
        self.names.exchange(parent, name, new_parent, new_name)

    # --- open files ----------------------------------------------------------------------------------------------

    def open(self, number: int, flags: int, caller: Caller = ROOT) -> int:
        """A handle; truncates where O_TRUNC asks for it."""
        inode = self.names.inode(number)
        if flags & (O_ACCMODE | O_TRUNC):
            self.check_writable()
        if flags & O_TRUNC:
            self.io.truncate(number, 0)
            if self._drop_privileges(inode, caller):
                self.on_mode_changed(inode.number)
        return self.handles.open(inode, flags)

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


async def _nobody_to_tell(entries: Sequence[tuple[int, bytes]], inodes: Sequence[int]) -> None:
    """Without a kernel nobody has cached anything."""


def _kept_time(time_ns: int | None) -> int | None:
    """The nearest that 64 bits of nanoseconds hold: from 1677 to 2262."""
    return None if time_ns is None else max(-(2**63), min(time_ns, 2**63 - 1))


def _ended(inode: Inode, caller: Caller, *, given_away: bool) -> int:
    """The set-id bits that go when *caller* changes the content, or calls chown(2)."""
    if not caller.uid and not given_away:
        return 0
    ended = inode.mode & S_ISUID
    if inode.mode & S_ISGID and (inode.mode & S_IXGRP or (caller.uid and not caller.is_in(inode.gid))):
        ended |= S_ISGID
    return ended


def check_xattr_name(name: bytes) -> None:
    """Raises: OSError EOPNOTSUPP, EINVAL. ACLs (system.*) are refused: unenforced, their presence would be a lie."""
    if not name.startswith(XATTR_SPACES):
        raise OSError(errno.EOPNOTSUPP, "no such kind of attribute here")
    if name in XATTR_SPACES:
        raise OSError(errno.EINVAL, "an attribute without a name")
