"""The past of one path: in which snapshots it became something else.

A path is followed from snapshot to snapshot, not a file: what was moved away ends there, as a deletion, and what takes
its name goes on. Trees that are equal are not looked into, so a snapshot costs the nodes on the way to the path that
differ from those of the snapshot before.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from stat import S_ISDIR

import trio

from syncer.snapshots.history import History, Snapshot
from syncer.snapshots.nodes import Entry
from syncer.values import TreeId

STRETCH = 32
"""So many snapshots are gone through one after the other, because of what they share; such stretches at the same time,
because each snapshot may cost a round trip to the remote."""


@dataclass(frozen=True, slots=True)
class Version:
    """What a path was from *snapshot* on; *entry* None: nothing, it had been deleted or moved away by then."""

    snapshot: Snapshot
    entry: Entry | None


class Trail:
    """The way to one path, in one snapshot after the other."""

    def __init__(self, history: History, path: bytes) -> None:
        self._history = history
        self._names = [name for name in path.split(b"/") if name not in (b"", b".")]
        self._trees: list[TreeId | None] = [None] * len(self._names)
        """Of the directories on the way, as they were found last."""
        self._found: Entry | None = None

    async def follow(self, snapshot: Snapshot) -> Entry | None:
        """What is at its end in *snapshot*. Raises: SyncerError."""
        entry: Entry | None = await self._history.root(snapshot)
        for level, name in enumerate(self._names):
            tree = TreeId(entry.tree) if entry is not None and S_ISDIR(entry.mode) and entry.tree else None
            if tree is not None and tree == self._trees[level]:
                return self._found  # all that follows is as it was
            self._trees[level] = tree
            entry = None if tree is None else await self._history.find(tree, name)
        self._found = entry
        return entry


def _state(entry: Entry | None) -> object:
    """What makes an entry another version: of a directory what is in it; else content and attributes, not names."""
    if entry is None:
        return None
    if S_ISDIR(entry.mode):
        return entry.tree
    attributes = entry.mode, entry.uid, entry.gid, entry.size, entry.mtime_ns, entry.rdev, entry.target
    return *attributes, entry.xattrs, entry.extents, entry.tree


async def versions(history: History, path: bytes, snapshots: Sequence[Snapshot]) -> list[Version]:
    """The versions of what is at *path*, over *snapshots* in the order of history. Raises: SyncerError."""
    entries: list[Entry | None] = [None] * len(snapshots)

    async def follow(begin: int) -> None:
        trail = Trail(history, path)
        for place, snapshot in enumerate(snapshots[begin : begin + STRETCH], begin):
            entries[place] = await trail.follow(snapshot)
            await trio.lowlevel.checkpoint()

    await history.for_each(range(0, len(snapshots), STRETCH), follow)
    found = list[Version]()
    before: object = None
    for snapshot, entry in zip(snapshots, entries, strict=True):
        if _state(entry) != before:
            found.append(Version(snapshot, entry))
            before = _state(entry)
    return found


async def directory_versions(history: History, path: bytes, snapshots: Sequence[Snapshot]) -> list[Snapshot]:
    """The snapshots in which *path* is a directory that differs from what it was in the one before.

    Every snapshot for the root, which would not have been taken without a change. Raises: SyncerError.
    """
    if not path.strip(b"/"):
        return list(snapshots)
    found = await versions(history, path, snapshots)
    return [version.snapshot for version in found if version.entry is not None and S_ISDIR(version.entry.mode)]
