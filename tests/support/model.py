"""A file system in a few dictionaries: what POSIX says must happen, for the tests to compare with.

Nothing is shared with the code under test. A node is its own identity, as an inode is; times are kept only where
they were set on purpose, since nobody can say beforehand what the clock will show.
"""

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(eq=False, slots=True)
class Node:
    """An inode of any type. *mode* holds the type."""

    mode: int
    uid: int = 0
    gid: int = 0
    rdev: int = 0
    nlink: int = 1
    data: bytearray = field(default_factory=bytearray, repr=False)
    target: bytes | None = None
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    entries: dict[bytes, "Node"] = field(default_factory=dict, repr=False)
    mtime_ns: int | None = None
    """Known while nothing but utimens has changed it."""

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_regular(self) -> bool:
        return stat.S_ISREG(self.mode)

    @property
    def size(self) -> int:
        return len(self.target) if self.target is not None else len(self.data)


def fail(code: int) -> OSError:
    return OSError(code, os.strerror(code))


class Model:
    """The tree below `root`. Methods raise the OSError that the call of the same name must end with."""

    def __init__(self) -> None:
        self.root = Node(stat.S_IFDIR | 0o755, nlink=2)

    def walk(self) -> Iterator[tuple[bytes, Node]]:
        """Every name with its node, parents first; a hard link comes once a name."""
        pending = [(b"", self.root)]
        while pending:
            path, node = pending.pop()
            yield path, node
            pending.extend((path + b"/" + name, child) for name, child in node.entries.items())

    def nodes(self) -> list[Node]:
        """Every node that has a name, once."""
        return list(dict.fromkeys(node for _, node in self.walk()))

    def directories(self) -> list[Node]:
        return [node for node in self.nodes() if node.is_directory]

    # --- names ---------------------------------------------------------------------------------------------------

    def create(
        self, parent: Node, name: bytes, mode: int, uid: int, gid: int, *, rdev: int = 0, target: bytes | None = None
    ) -> Node:
        self._check_new(parent, name)
        if parent.mode & stat.S_ISGID:
            gid = parent.gid
            if stat.S_ISDIR(mode):
                mode |= stat.S_ISGID
        node = Node(mode, uid, gid, rdev, target=target)
        if node.is_directory:
            node.nlink = 2
            parent.nlink += 1
        self._enter(parent, name, node)
        return node

    def link(self, node: Node, parent: Node, name: bytes) -> None:
        if node.is_directory:
            raise fail(errno.EPERM)
        if not node.nlink:
            raise fail(errno.ENOENT)
        self._check_new(parent, name)
        node.nlink += 1
        self._enter(parent, name, node)

    def unlink(self, parent: Node, name: bytes) -> None:
        node = self._child(parent, name)
        if node.is_directory:
            raise fail(errno.EISDIR)
        self._leave(parent, name)
        node.nlink -= 1

    def rmdir(self, parent: Node, name: bytes) -> None:
        node = self._child(parent, name)
        if not node.is_directory:
            raise fail(errno.ENOTDIR)
        if node.entries:
            raise fail(errno.ENOTEMPTY)
        self._leave(parent, name)
        self._bury(parent, node)

    def rename(self, parent: Node, name: bytes, new_parent: Node, new_name: bytes, *, replace: bool = True) -> None:
        node = self._child(parent, name)
        if not new_parent.nlink:
            raise fail(errno.ENOENT)
        if node.is_directory and self.is_below(new_parent, node):
            raise fail(errno.EINVAL)
        replaced = new_parent.entries.get(new_name)
        if replaced is not None:
            if not replace:
                raise fail(errno.EEXIST)
            if replaced is node:
                return
            self._replace(new_parent, node, replaced)
        self._leave(parent, name)
        self._enter(new_parent, new_name, node)
        if node.is_directory:
            parent.nlink -= 1
            new_parent.nlink += 1

    def _replace(self, parent: Node, node: Node, replaced: Node) -> None:
        if replaced.is_directory:
            if not node.is_directory:
                raise fail(errno.EISDIR)
            if replaced.entries:
                raise fail(errno.ENOTEMPTY)
            self._bury(parent, replaced)
        else:
            if node.is_directory:
                raise fail(errno.ENOTDIR)
            replaced.nlink -= 1

    def exchange(self, parent: Node, name: bytes, new_parent: Node, new_name: bytes) -> None:
        one, other = self._child(parent, name), self._child(new_parent, new_name)
        if one.is_directory and self.is_below(new_parent, one):
            raise fail(errno.EINVAL)
        if other.is_directory and self.is_below(parent, other):
            raise fail(errno.EINVAL)
        if one is other:
            return
        parent.nlink += other.is_directory - one.is_directory
        new_parent.nlink += one.is_directory - other.is_directory
        self._enter(parent, name, other)
        self._enter(new_parent, new_name, one)

    def is_below(self, node: Node, directory: Node) -> bool:
        """Whether *node* is *directory* or inside it."""
        return node is directory or any(self.is_below(node, child) for child in directory.entries.values())

    @staticmethod
    def _child(parent: Node, name: bytes) -> Node:
        if name not in parent.entries:
            raise fail(errno.ENOENT)
        return parent.entries[name]

    @staticmethod
    def _check_new(parent: Node, name: bytes) -> None:
        if not parent.nlink:
            raise fail(errno.ENOENT)
        if name in parent.entries:
            raise fail(errno.EEXIST)

    @staticmethod
    def _enter(parent: Node, name: bytes, node: Node) -> None:
        parent.entries[name] = node
        parent.mtime_ns = None

    @staticmethod
    def _leave(parent: Node, name: bytes) -> None:
        del parent.entries[name]
        parent.mtime_ns = None

    @staticmethod
    def _bury(parent: Node, directory: Node) -> None:
        directory.nlink = 0
        parent.nlink -= 1

    # --- bytes and attributes ------------------------------------------------------------------------------------

    @staticmethod
    def write(node: Node, offset: int, data: bytes) -> None:
        if offset > len(node.data):
            node.data.extend(bytes(offset - len(node.data)))
        node.data[offset : offset + len(data)] = data
        node.mtime_ns = None

    @staticmethod
    def truncate(node: Node, size: int) -> None:
        if node.is_directory:
            raise fail(errno.EISDIR)
        if not node.is_regular:
            raise fail(errno.EINVAL)
        if size < len(node.data):
            del node.data[size:]
        else:
            node.data.extend(bytes(size - len(node.data)))
        node.mtime_ns = None

    @staticmethod
    def set_xattr(node: Node, name: bytes, value: bytes) -> None:
        node.xattrs[name] = value

    @staticmethod
    def remove_xattr(node: Node, name: bytes) -> None:
        if name not in node.xattrs:
            raise fail(errno.ENODATA)
        del node.xattrs[name]
