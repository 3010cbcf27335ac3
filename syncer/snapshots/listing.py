"""What a list of snapshots tells of each: what came with it, and which files were deleted in between.

Two snapshots are compared by walking what differs, in a worker thread, so a list costs what has changed between them.
"""

from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from stat import S_ISREG

import trio

from syncer.snapshots.diff import Change, Stat, compare, stat_of
from syncer.snapshots.extenttree import iter_extents
from syncer.snapshots.history import History, Snapshot
from syncer.snapshots.nodes import Entry, Extent, Load
from syncer.snapshots.versions import Trail
from syncer.values import TreeId


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


async def news_of(history: History, snapshot: Snapshot, before: Snapshot | None) -> News:
    """What came with *snapshot* since *before*; with the first one, all that is in it. Raises: SyncerError."""
    if before is None:
        count = snapshot.files + snapshot.directories - 1
        return News(Stat(count, 0, 0, 0, snapshot.logical_bytes, 0), snapshot.unique_bytes)
    old, new = await history.root(before), await history.root(snapshot)
    return await trio.to_thread.run_sync(_news, old, new, history.load)


def _news(old: Entry, new: Entry, load: Load) -> News:
    changes = compare(old, new, load)
    return News(stat_of(changes), _new_bytes(changes, load))


def _new_bytes(changes: Iterable[Change], load: Load) -> int:
    total, seen = 0, set[bytes]()
    for change in changes:
        before = {extent.block for extent in _extents(change.old, load)}
        for extent in _extents(change.new, load):
            if extent.block not in before and extent.block not in seen:
                seen.add(extent.block)
                total += extent.length
    return total


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
            _note_deleted(await trio.to_thread.run_sync(compare, old, new, history.load, path), before, gone)
        before, old = snapshot, new
    if compare_now is not None and before is not None:
        _note_deleted(await compare_now(before, path), before, gone)
    return sorted(gone.values(), key=lambda found: found.path.split(b"/"))


def _note_deleted(changes: Iterable[Change], before: Snapshot, gone: dict[bytes, Deleted]) -> None:
    """Have *gone* tell what is so after these changes, which came after the snapshot *before*."""
    for change in changes:
        if change.kind == "removed" and change.old is not None:
            gone[change.path] = Deleted(change.path, change.old, before)
        else:
            gone.pop(change.path, None)
