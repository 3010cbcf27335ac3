"""What the kernel must be told when a mount that follows goes from one snapshot to the next: only what it knows of.

Two states of the tree are walked where they differ, through directories that the kernel knows; memory goes with what
it knows. A worker thread's, because nodes may have to be fetched.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from stat import S_ISDIR, S_ISREG

import msgspec
from blake3 import blake3

from syncer.snapshots.nodes import Entry, Load
from syncer.snapshots.tree import diff_directory, iter_directory
from syncer.values import TreeId

SEARCHED = 4096
"""Among so many names in directories that nobody has looked into it is searched where something in use has gone."""

Way = tuple[tuple[int, bytes], ...]
"""From a known directory down: (a directory's inode, a name in it), each name that of the next directory."""


@dataclass(slots=True)
class Changes:
    """*entries*: (directory, name) that lead elsewhere, or nowhere. *contents*: (directory, name, inode) of files that
    hold something else. *inodes*: whose attributes are others, or that went. *places*: where inodes are by now.
    """

    entries: list[tuple[int, bytes]] = field(default_factory=list)
    contents: list[tuple[int, bytes, int]] = field(default_factory=list)
    inodes: set[int] = field(default_factory=set)
    places: dict[int, Way] = field(default_factory=dict)


def content_of(file: Entry) -> bytes:
    """What tells one content of a file from another. It may differ for equal bytes: blocks can be cut anew."""
    return blake3(msgspec.msgpack.encode((file.size, file.extents, file.tree))).digest(16)


def find_changes(
    old: Entry, new: Entry, load: Load, known: Callable[[int], bool], in_use: Callable[[int], bool]
) -> Changes:
    """What differs between two root directories as far as the inodes are *known*.

    Who is *in_use* is searched for where it is not found in a known directory any more.

    Raises: what *load* raises.
    """
    return _Walk(load, known, in_use).run(old, new)


@dataclass(frozen=True, slots=True)
class _Strange:
    """A directory that nobody knows: the way to it, and its trees, where *old* is None if it is new there."""

    way: Way
    inode: int
    old: bytes | None
    new: bytes | None


class _Walk:
    def __init__(self, load: Load, known: Callable[[int], bool], in_use: Callable[[int], bool]) -> None:
        self._load = load
        self._known = known
        self._in_use = in_use
        self._changes = Changes()
        self._waiting: list[tuple[int, bytes, bytes]] = []
        """Known directories: (inode, old tree, new tree)."""
        self._went: dict[int, Entry] = {}
        self._came: dict[int, Entry] = {}
        self._stayed: dict[int, Way] = {}
        """Another name of an inode, which led to it before."""
        self._strange: deque[_Strange] = deque()
        self._unsearched = SEARCHED
        self._elsewhere: dict[int, tuple[Way, Entry]] = {}
        """Known inodes, and where they were found in directories that nobody knows."""
        self._emptied: set[int] = set()

    def run(self, old: Entry, new: Entry) -> Changes:
        self._inode_changed(old, new)
        self._walk()
        while gone := self._gone():
            for number, directory in gone.items():
                self._left(number, directory)
            self._walk()
        for number in self._went.keys() & self._stayed.keys():
            self._changes.places.setdefault(number, self._stayed[number])
        return self._changes

    def _walk(self) -> None:
        """All of the known directories, then those that have been moved as a whole."""
        while True:
            while self._waiting:
                self._compare(*self._waiting.pop())
            moved = self._went.keys() & self._came.keys()
            if not moved:
                return
            for number in moved:
                self._inode_changed(self._went.pop(number), self._came.pop(number))

    def _compare(self, directory: int, old: bytes, new: bytes) -> None:
        for name, before, after in diff_directory(TreeId(old), TreeId(new), self._load):
            if before is not None and after is not None and before.inode == after.inode:
                self._stays(directory, name, before, after)
                continue
            if before is not None and self._known(before.inode):
                self._goes(directory, before)
            if after is not None:
                self._comes(((directory, name),), after)

    def _stays(self, directory: int, name: bytes, before: Entry, after: Entry) -> None:
        if not self._known(after.inode):
            self._pass(((directory, name),), after, before.tree)
            return
        self._inode_changed(before, after)
        self._stayed[after.inode] = ((directory, name),)
        if S_ISREG(after.mode) and content_of(before) != content_of(after):
            self._changes.contents.append((directory, name, after.inode))

    def _goes(self, directory: int, entry: Entry) -> None:
        self._changes.entries.append((directory, entry.name))
        self._changes.inodes.add(entry.inode)
        self._went[entry.inode] = entry

    def _comes(self, way: Way, entry: Entry) -> None:
        if self._known(entry.inode):
            self._came[entry.inode] = entry
            self._changes.places[entry.inode] = way
            self._changes.inodes.add(entry.inode)
        else:
            self._pass(way, entry, None)

    def _pass(self, way: Way, entry: Entry, old: bytes | None) -> None:
        """Past something that nobody knows. What is in it is looked at only if something is searched for."""
        if S_ISDIR(entry.mode) and old != entry.tree and len(self._strange) < SEARCHED:
            self._strange.append(_Strange(way, entry.inode, old, entry.tree))

    def _inode_changed(self, before: Entry, after: Entry) -> None:
        if before != after:
            self._changes.inodes.add(after.inode)
        if S_ISDIR(after.mode) and before.tree != after.tree and before.tree is not None and after.tree is not None:
            self._waiting.append((after.inode, before.tree, after.tree))

    # --- what has left the known directories ---------------------------------------------------------------------

    def _gone(self) -> dict[int, Entry]:
        """Directories that are found nowhere, each of them once; what was looked for and found is walked first."""
        lost = [number for number in self._went if number not in self._came and self._in_use(number)]
        if lost:
            self._look_elsewhere()
            for number in lost:
                if number in self._elsewhere:
                    self._comes(*self._elsewhere[number])
            self._walk()
        gone = {number: self._went[number] for number in lost if number in self._went and number not in self._emptied}
        self._emptied |= gone.keys()
        return {number: entry for number, entry in gone.items() if S_ISDIR(entry.mode)}

    def _left(self, number: int, directory: Entry) -> None:
        """What was in a directory that is gone is gone from there, too; it may have been moved out before."""
        if directory.tree is None:
            return
        for entry in iter_directory(TreeId(directory.tree), self._load):
            if self._known(entry.inode):
                self._goes(number, entry)

    def _look_elsewhere(self) -> None:
        """Find known inodes in directories that nobody knows, and that are others than before."""
        while self._strange and self._unsearched > 0:
            directory = self._strange.popleft()
            for entry in islice(self._entries(directory), self._unsearched):
                self._unsearched -= 1
                way = (*directory.way, (directory.inode, entry.name))
                if self._known(entry.inode):
                    self._elsewhere[entry.inode] = way, entry
                else:
                    self._pass(way, entry, None)

    def _entries(self, directory: _Strange) -> Iterator[Entry]:
        if directory.new is None:
            return
        if directory.old is None:
            yield from iter_directory(TreeId(directory.new), self._load)
            return
        for _, _, after in diff_directory(TreeId(directory.old), TreeId(directory.new), self._load):
            if after is not None:
                yield after
