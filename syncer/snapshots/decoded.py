"""Nodes of trees that were looked at last, decoded: who walks a directory asks for each of them many times."""

from collections import OrderedDict

from syncer.snapshots.nodes import Node, decode_node
from syncer.values import TreeId

DECODED_BYTES = 2 * 1024 * 1024
"""So much of nodes, as they are encoded, is kept decoded, which takes five to ten times as much."""


class DecodedNodes:
    def __init__(self) -> None:
        self._nodes: OrderedDict[TreeId, tuple[Node, int]] = OrderedDict()
        self._bytes = 0

    def get(self, tree: TreeId) -> Node | None:
        found = self._nodes.get(tree)
        if found is None:
            return None
        self._nodes.move_to_end(tree)
        return found[0]

    def keep(self, tree: TreeId, data: bytes) -> Node:
        """The node in *data*. Raises: ObjectCorrupt."""
        node = decode_node(data)
        if tree not in self._nodes:
            self._nodes[tree] = node, len(data)
            self._bytes += len(data)
        while self._bytes > DECODED_BYTES:
            self._bytes -= self._nodes.popitem(last=False)[1][1]
        return node
