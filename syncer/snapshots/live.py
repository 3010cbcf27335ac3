"""The tree of the live file system as it is now, as a snapshot would show it, without publishing anything.

Built like a snapshot's, in a thread and from one commit: what changed since the last publication anew, kept in memory,
and nothing of it is sent. Needs no network, because what is in no tree node that is cached here the tables tell.
"""

from types import TracebackType
from typing import Self

from syncer.meta.store import MetaStore
from syncer.meta.treereader import TreeReader
from syncer.snapshots.nodes import Entry, Load, Node
from syncer.snapshots.planter import GaveWay, Planter
from syncer.snapshots.tree import build_directory, load_root
from syncer.values import TreeId


class LiveTree(Planter):
    """One moment of the live tree. A context manager: leaving it lets go of the moment, which must not be held long.

    Made on the event loop at a moment when nothing is dirty; everything else is for one worker thread.
    """

    def __init__(self, meta: MetaStore) -> None:
        """ATOMIC: what is recorded so far is committed, and is what this shows."""
        meta.commit()
        super().__init__(TreeReader(meta.database), meta.inodes.generation, lambda pack, named: None)
        self._here: dict[TreeId, bytes] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.reader.close()

    def _emit(self, tree: TreeId, data: bytes) -> None:
        self._here[tree] = data  # instead of sending it

    def root(self) -> Entry:
        """The root directory's own entry. Raises: GaveWay."""
        return load_root(self.plant().root, self._node)

    def ready(self, directory: Entry) -> None:
        """Have the nodes of a directory of this moment here: from the tables, where they are not cached."""
        if directory.tree is None:
            return
        tree = TreeId(directory.tree)
        if tree not in self._here and self.reader.node(tree) is None:
            build_directory(self._entries(directory.inode), self._emit)

    def load(self, others: Load) -> Load:
        """Loads nodes of this moment, and with *others* those of any other one. Raises: GaveWay, and as *others*."""

        def load(tree: TreeId) -> bytes | Node:
            if self.unwanted:
                raise GaveWay
            data = self._here.get(tree) or self.reader.node(tree)
            return others(tree) if data is None else data

        return load

    def _node(self, tree: TreeId) -> bytes:
        return self._here[tree]
