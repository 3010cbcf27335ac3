"""Where trees of the tests live: the nodes by id, and what was loaded and emitted."""

from syncer.snapshots.nodes import node_id
from syncer.values import TreeId


class NodeBag:
    """Keeps emitted nodes. `loaded` and `emitted` are for the test to clear and read."""

    def __init__(self) -> None:
        self.nodes: dict[TreeId, bytes] = {}
        self.loaded: list[TreeId] = []
        self.emitted: list[TreeId] = []

    def emit(self, tree: TreeId, data: bytes) -> None:
        assert tree == node_id(data)
        self.emitted.append(tree)
        self.nodes[tree] = data

    def load(self, tree: TreeId) -> bytes:
        self.loaded.append(tree)
        return self.nodes[tree]

    def forget(self) -> None:
        self.loaded.clear()
        self.emitted.clear()
