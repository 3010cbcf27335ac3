"""What a list of snapshots tells of each: what came with it, and which files were deleted in between.

Two snapshots are compared by walking what differs, in a worker thread, so a list costs what has changed between them.
"""

from bisect import bisect_left
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from stat import S_ISDIR, S_ISREG

import trio

from syncer.snapshots.diff import Change, Stat, Tally, each_change
from syncer.snapshots.extenttree import iter_extents
from syncer.snapshots.history import History, Snapshot
from syncer.snapshots.nodes import Entry, Extent, Load
from syncer.snapshots.plan import find_path
from syncer.snapshots.versions import Trail
from syncer.values import TreeId

REMEMBERED = 10_000
"""Pairs of snapshots."""


@dataclass(frozen=True, slots=True)
class News:
    """What a snapshot brought. *new_bytes*: of blocks of changed files that the same file did not have before."""

    changes: Stat
    new_bytes: int


@dataclass(frozen=True, slots=True)
class Deleted:
    """A path that is not there any more, and the last snapshot that has it."""

    path: bytes
    entry: Entry
    snapshot: Snapshot


class Lister:
    """Tells what came with snapshots. What it has found out it remembers: between two snapshots that never changes."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._known: dict[tuple[TreeId, TreeId], News] = {}

    async def news_of(self, snapshot: Snapshot, before: Snapshot | None) -> News:
        """What came with *snapshot* since *before*; with the first one, all that is in it. Raises: SyncerError."""
        if before is None:
            count = snapshot.files + snapshot.directories - 1
            return News(Stat(count, 0, 0, 0, snapshot.logical_bytes, 0), snapshot.unique_bytes)
        between = before.root, snapshot.root
        news = self._known.get(between)
        if news is None:
            old, new = await self._history.root(before), await self._history.root(snapshot)
            news = await trio.to_thread.run_sync(_news, old, new, self._history.load)
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            self._known[between] = news
        return news


def _news(old: Entry, new: Entry, load: Load) -> News:
    tally, blocks = Tally(), _NewBlocks(load)

    def add(change: Change) -> None:
        tally.add(change)
        blocks.add(change)

    each_change(old, new, load, add)
    return News(tally.stat(), blocks.total_bytes)


class _NewBlocks:
    """Blocks that changed files have by now and the same file did not have before."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._seen = set[bytes]()
        self.total_bytes = 0

    def add(self, change: Change) -> None:
        before = {extent.block for extent in _extents(change.old, self._load)}
        for extent in _extents(change.new, self._load):
            if extent.block not in before and extent.block not in self._seen:
                self._seen.add(extent.block)
                self.total_bytes += extent.length


def _extents(entry: Entry | None, load: Load) -> Iterator[Extent]:
    if entry is None or not S_ISREG(entry.mode):
        return
    yield from entry.extents if entry.tree is None else iter_extents(TreeId(entry.tree), load)


CompareNow = Callable[[Snapshot, bytes], Awaitable[Sequence[Change]]]
"""Compares a snapshot with the live tree, at and below a path."""


async def deleted(
    history: History, path: bytes, snapshots: Sequence[Snapshot], compare_now: CompareNow | None = None
) -> list[Deleted]:
    """Everything at or below *path* that one of *snapshots* has and the last of them does not, sorted by path.

    With *compare_now* it is the live tree that does not have it. What was renamed has not been deleted.

    Raises: SyncerError.
    """
    trail, gone = Trail(history, path), dict[bytes, Deleted]()
    before: Snapshot | None = None
    old: Entry | None = None
    for snapshot in snapshots:
        new = await trail.follow(snapshot)
        if before is not None and new != old:
            note = _Notes(gone, before)
            await trio.to_thread.run_sync(each_change, old, new, history.load, note.add, path)
            await trio.to_thread.run_sync(note.finish, history.load)
        before, old = snapshot, new
    if compare_now is not None and before is not None:
        note = _Notes(gone, before)
        for change in await compare_now(before, path):
            note.add(change)
        await trio.to_thread.run_sync(note.finish, history.load)
    return sorted(gone.values(), key=lambda found: found.path.split(b"/"))


class _Notes:
    """Has *gone* tell what is so after some changes, which came after the snapshot *before*."""

    def __init__(self, gone: dict[bytes, Deleted], before: Snapshot) -> None:
        self._gone = gone
        self._before = before
        self._stay: list[bytes] = []
        """Paths that are there, whether they were told before something else was removed there or after it."""
        self._left = set[bytes]()
        """Paths that what was there has left, for good or to another one."""
        self._moved: list[tuple[bytes, bytes, Entry]] = []
        """Directories that were renamed: to where, from where, and what they were."""

    def add(self, change: Change) -> None:
        if change.kind == "removed" and change.old is not None:
            self._gone[change.path] = Deleted(change.path, change.old, self._before)
            self._left.add(change.path)
        elif change.kind == "added":
            self._gone.pop(change.path, None)
        else:
            self._stay.append(change.path)
            if change.old_path is not None and change.old is not None:
                self._left.add(change.old_path)
                if S_ISDIR(change.old.mode):
                    self._moved.append((change.path, change.old_path, change.old))

    def finish(self, load: Load) -> None:
        """To be called after the last change. In a thread.

        Of a renamed directory only what differs is told. What else it had is there now, so that is looked for in what
        it was.
        """
        paths = sorted(self._gone) if self._moved else []
        for new, old, directory in self._moved:
            top = new + b"/"
            for path in paths[bisect_left(paths, top) : bisect_left(paths, new + b"0")]:  # 0 comes after the slash
                rest = path.removeprefix(top)
                if not self._has_left(old, rest) and find_path(directory, rest, load, lambda found: None) is not None:
                    self._stay.append(path)
        for path in self._stay:
            self._gone.pop(path, None)

    def _has_left(self, directory: bytes, rest: bytes) -> bool:
        """Whether *rest*, or a directory that it was in, is not in *directory* any more."""
        at = directory
        for name in rest.split(b"/"):
            at += b"/" + name
            if at in self._left:
                return True
        return False
