"""What differs between two states of the file system: added, removed, modified, renamed. Walks only what differs.

Two directories with the same tree are the same and are not looked into. A name that went and one that came are one
rename when they are the same inode; of a directory that was renamed only what differs inside is told. Pure; in a
worker thread where nodes may have to be fetched. Memory grows with the differences, not with the collection; and of
directories that came, while hardly anything went, not even with these: who needs no list of them goes by `each_change`.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from stat import S_IFMT, S_ISDIR
from typing import Literal

from syncer.snapshots.nodes import Entry, Load
from syncer.snapshots.tree import diff_directory, iter_directory
from syncer.values import TreeId

Kind = Literal["added", "removed", "modified", "renamed"]
Aspect = Literal["type", "content", "mode", "owner", "xattrs", "times"]


@dataclass(frozen=True, slots=True)
class Change:
    """One difference. *path* is where it is now (where it was, if it was removed), from the root, without a slash.

    *old_path* is where a renamed one was. *aspects* are what differs of one that was modified or renamed.
    """

    kind: Kind
    path: bytes
    old: Entry | None
    new: Entry | None
    old_path: bytes | None = None
    aspects: tuple[Aspect, ...] = ()

    @property
    def grown_bytes(self) -> int:
        """By how much the sizes of files have grown with it."""
        return (self.new.size if self.new else 0) - (self.old.size if self.old else 0)


def aspects_of(old: Entry, new: Entry) -> tuple[Aspect, ...]:
    """In what two entries differ that a user would call a change.

    Not the link count and the time of the last change of the inode, which follow from changes elsewhere; of a
    directory neither its times, nor what is in it. Content is the same when its extents are, or when neither size nor
    any time has changed: blocks may be cut anew.
    """
    found: list[Aspect] = []
    if S_IFMT(old.mode) != S_IFMT(new.mode):
        found.append("type")
    if _is_other_content(old, new):
        found.append("content")
    if old.mode & 0o7777 != new.mode & 0o7777:
        found.append("mode")
    if (old.uid, old.gid) != (new.uid, new.gid):
        found.append("owner")
    if old.xattrs != new.xattrs:
        found.append("xattrs")
    if old.mtime_ns != new.mtime_ns and not S_ISDIR(new.mode) and not found:
        found.append("times")
    return tuple(found)


def _is_other_content(old: Entry, new: Entry) -> bool:
    if S_ISDIR(old.mode) and S_ISDIR(new.mode):
        return False
    if (old.size, old.target, old.rdev) != (new.size, new.target, new.rdev):
        return True
    same_times = old.inode == new.inode and (old.mtime_ns, old.ctime_ns) == (new.mtime_ns, new.ctime_ns)
    return not same_times and (old.extents, old.tree) != (new.extents, new.tree)


def each_change(
    old: Entry | None,
    new: Entry | None,
    load: Load,
    tell: Callable[[Change], None],
    path: bytes = b"",
    ready: Callable[[Entry], None] = lambda directory: None,
) -> None:
    """Tell every difference between two states of what is at *path*, each once it is sure; None where nothing was.

    In no order, but what is added under a path is told after what was removed there. *ready* is called with each
    directory of the new state before it is looked into.

    Raises: what *load* raises.
    """
    _Comparison(load, ready, tell).run(old, new, path)


@dataclass(slots=True)
class _Candidate:
    """A name that is in one state only, until its inode turns up in the other."""

    path: bytes
    entry: Entry
    expanded: bool = False


@dataclass(slots=True)
class _Side:
    """The names that are in one of the states only."""

    prepare: Callable[[Entry], None]
    found: list[_Candidate]
    directories: dict[int, _Candidate]
    waiting: deque[_Candidate]
    """Directories that were not looked into yet."""

    def add(self, path: bytes, entry: Entry) -> None:
        candidate = _Candidate(path, entry)
        self.found.append(candidate)
        if S_ISDIR(entry.mode):
            self.directories[entry.inode] = candidate
            self.waiting.append(candidate)


class _Comparison:
    def __init__(self, load: Load, ready: Callable[[Entry], None], tell: Callable[[Change], None]) -> None:
        self._load = load
        self._ready = ready
        self._tell = tell
        self._gone = _Side(lambda directory: None, [], {}, deque())
        self._come = _Side(ready, [], {}, deque())
        self._moved: dict[bytes, bytes] = {}
        """Renamed directories: where each was, by where it is."""

    def run(self, old: Entry | None, new: Entry | None, path: bytes) -> None:
        self._compare(old, new, path, path)
        self._expand()
        self._match()

    def _compare(self, old: Entry | None, new: Entry | None, old_path: bytes, path: bytes) -> None:
        """One name, and what is below it while both are directories."""
        waiting = [(old, new, old_path, path)]
        while waiting:
            before, after, was, now = waiting.pop()
            if before is None or after is None or before.inode != after.inode:
                if before is not None:
                    self._gone.add(was, before)
                if after is not None:
                    self._come.add(now, after)
                continue
            if aspects := aspects_of(before, after):
                self._tell(Change("modified", now, before, after, aspects=aspects))
            if S_ISDIR(after.mode):
                for name, one, other in self._children(before, after):
                    waiting.append((one, other, join_path(was, name), join_path(now, name)))

    def _children(self, old: Entry, new: Entry) -> Iterator[tuple[bytes, Entry | None, Entry | None]]:
        if old.tree == new.tree or old.tree is None or new.tree is None:
            return
        self._ready(new)
        yield from diff_directory(TreeId(old.tree), TreeId(new.tree), self._load)

    def _expand(self) -> None:
        """Look into directories that came or went, level by level, unless they turn out to have been renamed."""
        while self._gone.waiting or self._come.waiting:
            if not self._gone.waiting:
                return self._pour(self._come, self._gone, lambda path, entry: Change("added", path, None, entry))
            if not self._come.waiting:
                return self._pour(self._gone, self._come, lambda path, entry: Change("removed", path, entry, None))
            level = [*self._gone.waiting], [*self._come.waiting]
            for numbers, side, other in ((level[0], self._gone, self._come), (level[1], self._come, self._gone)):
                for candidate in numbers:
                    side.waiting.popleft()
                    twin = other.directories.get(candidate.entry.inode)
                    if twin is not None and not twin.expanded and not candidate.expanded:
                        gone, come = (candidate, twin) if side is self._gone else (twin, candidate)
                        gone.expanded = come.expanded = True
                        for name, before, after in self._children(gone.entry, come.entry):
                            self._compare(before, after, join_path(gone.path, name), join_path(come.path, name))
                    elif not candidate.expanded:
                        self._look_into(candidate, side)

    def _look_into(self, candidate: _Candidate, side: _Side) -> None:
        candidate.expanded = True
        side.prepare(candidate.entry)
        if candidate.entry.tree is not None:
            for entry in iter_directory(TreeId(candidate.entry.tree), self._load):
                side.add(join_path(candidate.path, entry.name), entry)

    def _pour(self, side: _Side, other: _Side, change: Callable[[bytes, Entry], Change]) -> None:
        """Look into all that is left of one side, when the other is complete: what has no counterpart there is told at
        once, and not kept."""
        inodes = {candidate.entry.inode for candidate in other.found}
        paths = {candidate.path for candidate in other.found}
        waiting = [(one.path, one.entry) for one in side.waiting if not one.expanded]
        while waiting:
            above, directory = waiting.pop()
            side.prepare(directory)
            for entry in () if directory.tree is None else iter_directory(TreeId(directory.tree), self._load):
                path = join_path(above, entry.name)
                if entry.inode in inodes or path in paths:
                    side.found.append(_Candidate(path, entry))
                else:
                    self._tell(change(path, entry))
                if S_ISDIR(entry.mode):
                    waiting.append((path, entry))

    def _match(self) -> None:
        """Make changes of what came and went: renames where the inode is the same, in the order of the paths."""
        gone: dict[int, deque[_Candidate]] = {}
        for candidate in sorted(self._gone.found, key=lambda candidate: candidate.path.split(b"/")):
            gone.setdefault(candidate.entry.inode, deque()).append(candidate)
        come: dict[bytes, _Candidate] = {}
        for candidate in sorted(self._come.found, key=lambda candidate: candidate.path.split(b"/")):
            olds = gone.get(candidate.entry.inode)
            if olds:
                self._renamed(olds.popleft(), candidate)
            else:
                come[candidate.path] = candidate
        for old in (candidate for olds in gone.values() for candidate in olds):
            new = come.get(old.path)
            if new is not None and S_IFMT(new.entry.mode) == S_IFMT(old.entry.mode):
                del come[old.path]  # another inode under the same name, as editors leave when they save
                if aspects := aspects_of(old.entry, new.entry):
                    self._tell(Change("modified", old.path, old.entry, new.entry, aspects=aspects))
            else:
                self._tell(Change("removed", old.path, old.entry, None))
        for new in come.values():
            self._tell(Change("added", new.path, None, new.entry))

    def _renamed(self, old: _Candidate, new: _Candidate) -> None:
        aspects = aspects_of(old.entry, new.entry)
        if S_ISDIR(new.entry.mode):
            self._moved[new.path] = old.path
        parent, _, name = new.path.rpartition(b"/")
        # It went along with its directory, or stayed where it was while that was made anew.
        if old.path == new.path or (parent in self._moved and old.path == join_path(self._moved[parent], name)):
            if aspects:
                self._tell(Change("modified", new.path, old.entry, new.entry, aspects=aspects))
            return
        self._tell(Change("renamed", new.path, old.entry, new.entry, old.path, aspects))


def join_path(path: bytes, name: bytes) -> bytes:
    """The path of *name* in the directory *path*, which is empty for the root."""
    return path + b"/" + name if path else name


@dataclass(frozen=True, slots=True)
class Stat:
    """How many differences there are of each kind, and how many bytes files have grown by and shrunk by."""

    added: int
    removed: int
    modified: int
    renamed: int
    more_bytes: int
    fewer_bytes: int


class Tally:
    """Adds changes up."""

    def __init__(self) -> None:
        self._counts: dict[Kind, int] = {"added": 0, "removed": 0, "modified": 0, "renamed": 0}
        self._more_bytes = self._fewer_bytes = 0

    def add(self, change: Change) -> None:
        self._counts[change.kind] += 1
        self._more_bytes += max(0, change.grown_bytes)
        self._fewer_bytes += max(0, -change.grown_bytes)

    def stat(self) -> Stat:
        return Stat(**self._counts, more_bytes=self._more_bytes, fewer_bytes=self._fewer_bytes)
