"""Names and directories: what POSIX asks of each call before the metadata store is changed.

Permissions are the kernel's affair (`default_permissions`); what is checked here is what only we can know. Synchronous
throughout, so every call is ATOMIC to other tasks.
"""

import errno
import time
from collections.abc import Callable
from dataclasses import dataclass
from stat import S_ISDIR, S_ISGID, S_ISLNK

from syncer.meta.inodes import Inode
from syncer.meta.namespace import Entry
from syncer.meta.store import MetaStore
from syncer.values import NAME_MAX_BYTES

LINK_MAX = 2**31 - 1
SYMLINK_MAX_BYTES = 4095


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes a call: its process, 0 where that is not known."""

    uid: int
    gid: int
    pid: int = 0

    def is_in(self, gid: int) -> bool:
        """Whether the group is one of the caller's; of its further groups, which FUSE does not tell, /proc does."""
        if gid == self.gid:
            return True
        try:
            with open(f"/proc/{self.pid}/status", "rb") as file:
                groups = next((line for line in file if line.startswith(b"Groups:")), b"Groups:")
        except OSError:
            return False
        return b"%d" % gid in groups.split()[1:]


class Namespace:
    def __init__(self, meta: MetaStore, unlinked: Callable[[Inode], None]) -> None:
        """*unlinked* is told of each inode that lost a name."""
        self._meta = meta
        self._unlinked = unlinked

    def inode(self, number: int) -> Inode:
        """Raises: OSError ENOENT."""
        inode = self._meta.inodes.get(number)
        if inode is None:
            raise OSError(errno.ENOENT, "no such inode")
        return inode

    def directory(self, number: int) -> Inode:
        """A directory that still has a name. Raises: OSError ENOENT, ENOTDIR."""
        inode = self.inode(number)
        if not inode.is_directory:
            raise OSError(errno.ENOTDIR, "not a directory")
        if not inode.nlink:
            raise OSError(errno.ENOENT, "the directory was removed")
        return inode

    def _child(self, parent: int, name: bytes) -> Inode:
        """Raises: OSError ENOENT."""
        number = self._meta.names.lookup(parent, name)
        if number is None:
            raise OSError(errno.ENOENT, "no such name")
        return self.inode(number)

    def lookup(self, parent: int, name: bytes) -> Inode | None:
        """The inode of a name, None when there is none. Raises: OSError ENAMETOOLONG, ENOENT, ENOTDIR."""
        if len(name) > NAME_MAX_BYTES:
            raise OSError(errno.ENAMETOOLONG, "name too long")
        self._meta.inodes.shed()
        if name == b".":
            return self.inode(parent)
        if name == b"..":
            parents = self._meta.names.parents(parent)
            return self.inode(parents[0][0] if parents else parent)
        if not self.inode(parent).is_directory:
            raise OSError(errno.ENOTDIR, "not a directory")
        number = self._meta.names.lookup(parent, name)
        return None if number is None else self.inode(number)

    def _check_new(self, parent: int, name: bytes) -> Inode:
        """The directory that takes a new name. Raises: OSError EEXIST, ENAMETOOLONG, ENOENT, ENOTDIR, EINVAL."""
        if len(name) > NAME_MAX_BYTES:
            raise OSError(errno.ENAMETOOLONG, "name too long")
        if not name or name in (b".", b"..") or b"/" in name or b"\0" in name:
            raise OSError(errno.EINVAL, "not a name")
        directory = self.directory(parent)
        if self._meta.names.lookup(parent, name) is not None:
            raise OSError(errno.EEXIST, "the name is taken")
        return directory

    def create(
        self, parent: int, name: bytes, mode: int, caller: Caller, *, rdev: int = 0, target: bytes | None = None
    ) -> Inode:
        """Make an inode of any type. In a set-group-ID directory it belongs to the directory's group (mkdir(2))."""
        directory = self._check_new(parent, name)
        gid = caller.gid
        if directory.mode & S_ISGID:
            gid = directory.gid
            if S_ISDIR(mode):
                mode |= S_ISGID
        if target is not None and len(target) > SYMLINK_MAX_BYTES:
            raise OSError(errno.ENAMETOOLONG, "symlink target too long")
        number = self._meta.new_inode()
        self._meta.names.create(parent, name, number, mode, caller.uid, gid, rdev, target, time.time_ns())
        return self.inode(number)

    def link(self, number: int, parent: int, name: bytes) -> Inode:
        inode = self.inode(number)
        if inode.is_directory:
            raise OSError(errno.EPERM, "hard links to directories are not allowed")
        if inode.nlink >= LINK_MAX:
            raise OSError(errno.EMLINK, "too many links")
        if not inode.nlink:
            raise OSError(errno.ENOENT, "the inode has lost its last name")
        self._check_new(parent, name)
        self._meta.names.link(number, parent, name, time.time_ns())
        return inode

    def unlink(self, parent: int, name: bytes) -> None:
        inode = self._child(parent, name)
        if inode.is_directory:
            raise OSError(errno.EISDIR, "is a directory")
        self._meta.names.unlink(parent, name, time.time_ns())
        self._unlinked(inode)

    def rmdir(self, parent: int, name: bytes) -> None:
        inode = self._child(parent, name)
        if not inode.is_directory:
            raise OSError(errno.ENOTDIR, "not a directory")
        if not self._meta.names.is_empty(inode.number):
            raise OSError(errno.ENOTEMPTY, "directory not empty")
        self._meta.names.rmdir(parent, name, time.time_ns())
        self._unlinked(inode)

    def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, *, replace: bool) -> None:
        """rename(2); without *replace* as RENAME_NOREPLACE."""
        inode = self._child(parent, name)
        if len(new_name) > NAME_MAX_BYTES:
            raise OSError(errno.ENAMETOOLONG, "name too long")
        self.directory(new_parent)
        self._check_not_inside(inode, new_parent)
        number = self._meta.names.lookup(new_parent, new_name)
        replaced = None if number is None else self.inode(number)
        if replaced is not None:
            if not replace:
                raise OSError(errno.EEXIST, "the new name is taken")
            if replaced is inode:
                return
            self._check_replaceable(inode, replaced)
        self._meta.names.rename(parent, name, new_parent, new_name, time.time_ns())
        if replaced is not None:
            self._unlinked(replaced)

    def _check_replaceable(self, inode: Inode, replaced: Inode) -> None:
        if inode.is_directory and not replaced.is_directory:
            raise OSError(errno.ENOTDIR, "a directory cannot replace a file")
        if replaced.is_directory:
            if not inode.is_directory:
                raise OSError(errno.EISDIR, "a file cannot replace a directory")
            if not self._meta.names.is_empty(replaced.number):
                raise OSError(errno.ENOTEMPTY, "directory not empty")

    def _check_not_inside(self, inode: Inode, parent: int) -> None:
        if inode.is_directory and self._meta.names.is_ancestor(inode.number, parent):
            raise OSError(errno.EINVAL, "a directory cannot move into itself")

    def exchange(self, parent: int, name: bytes, new_parent: int, new_name: bytes) -> None:
        """renameat2(2) with RENAME_EXCHANGE."""
        one, other = self._child(parent, name), self._child(new_parent, new_name)
        self._check_not_inside(one, new_parent)
        self._check_not_inside(other, parent)
        if one is not other:
            self._meta.names.exchange(parent, name, new_parent, new_name, time.time_ns())

    def readlink(self, number: int) -> bytes:
        inode = self.inode(number)
        if not S_ISLNK(inode.mode):
            raise OSError(errno.EINVAL, "not a symlink")
        return self._meta.inodes.target(inode)

    def path(self, number: int) -> bytes:
        """One path of the inode, from the root and without a slash before it. Raises: OSError ENOENT: it has none."""
        path = self._meta.names.path(number)
        if path is None:
            raise OSError(errno.ENOENT, "it has lost its last name")
        return path

    def entries(self, number: int, after_cookie: int, limit: int) -> list[Entry]:
        """Up to *limit* entries of a directory, those after *after_cookie*."""
        self._meta.inodes.shed()
        return self._meta.names.entries(number, after_cookie, limit)
