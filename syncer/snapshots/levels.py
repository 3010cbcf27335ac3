"""Cuts a sequence into nodes, the sequence of those nodes into nodes, and so on up to one root.

The rule of the cuts, and why equal sequences make equal trees however they came to be: an item ends the node it is in
when its hash says so (`ends`: on how many levels), or when the node has `items_max` items. Both depend on nothing but
the items since the last cut, so after a change the cuts are the old ones again from the next cut that both have.
The hash makes cuts that an insertion cannot shift; the maximum bounds nodes whatever the hashes.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from syncer.snapshots.nodes import ITEMS_MAX

Item = TypeVar("Item")
Ref = TypeVar("Ref")


@dataclass(frozen=True, slots=True)
class Shape:
    """Where trees are cut. Part of the format: other values make other ids; tests use small ones.

    A node ends where *bits* further low bits of the hash are zero for each level: after 2 ** bits items on average.
    """

    bits: int = 8
    items_max: int = ITEMS_MAX


SHAPE = Shape()


def levels_ended(digest: bytes, shape: Shape = SHAPE) -> int:
    """On how many levels nodes end after the item with this hash, of which 8 bytes are looked at."""
    value = int.from_bytes(digest[:8], "little")
    zeros = (value & -value).bit_length() - 1 if value else 64
    return zeros // shape.bits


def lowest_root(level: int, node: Ref, children: Callable[[int, Ref], Sequence[Ref]]) -> Ref:
    """No root has a single child, but what was taken from an old tree may have: the node below all such.

    *children* gives those of a node of the old tree on that level; none for a leaf, and none for a new node.
    """
    while level > 1 and len(below := children(level, node)) == 1:
        level, node = level - 1, below[0]
    return node


class Levels(Generic[Item, Ref]):
    """Takes a sequence's items (level 0) and nodes of its old tree (higher levels), in order, and makes its tree.

    A node that is full waits for a successor before it is made, so no node is made above a single one. The nodes of a
    level are items of the next, level 1 being those made of level 0.
    """

    def __init__(
        self,
        leaf: Callable[[Sequence[Item]], Ref],
        branch: Callable[[int, Sequence[Ref]], Ref],
        shape: Shape = SHAPE,
    ) -> None:
        """*leaf* makes a node of items, *branch* one of nodes, given its level (1 above leaves)."""
        self._leaf = leaf
        self._branch = branch
        self._shape = shape
        self._items: list[Item] = []
        self._items_end = 0
        self._nodes: defaultdict[int, list[Ref]] = defaultdict(list)
        self._nodes_end: defaultdict[int, int] = defaultdict(int)
        self._counts: defaultdict[int, int] = defaultdict(int)
        self._last: dict[int, Ref] = {}

    def add(self, item: Item, ends: int) -> None:
        """Append an item that ends nodes on *ends* levels."""
        if self._items and (self._items_end or len(self._items) >= self._shape.items_max):
            self._close_leaf()
        self._items.append(item)
        self._items_end = ends

    def can_take(self, level: int) -> bool:
        """Whether a node of the old tree may be taken as an item of *level*: the nodes below have all come to an end.

        Call it only when something follows.
        """
        if self._items:
            if not (self._items_end or len(self._items) >= self._shape.items_max):
                return False
            self._close_leaf()
        for below in range(1, level):
            if self._nodes[below]:
                if not self._is_full(below):
                    return False
                self._close(below)
        return True

    def take(self, level: int, node: Ref, ends: int) -> None:
        """Append a node of the old tree, as it is, to the items of *level*; `can_take` has said that it fits."""
        for below in range(1, level):
            self._counts[below] += 2  # many, and in nodes already
        self._add_node(level, node, ends)

    def _add_node(self, level: int, node: Ref, ends: int) -> None:
        if self._nodes[level] and self._is_full(level):
            self._close(level)
        self._nodes[level].append(node)
        self._nodes_end[level] = ends
        self._counts[level] += 1
        self._last[level] = node

    def _is_full(self, level: int) -> bool:
        return self._nodes_end[level] > level or len(self._nodes[level]) >= self._shape.items_max

    def _close_leaf(self) -> None:
        items, self._items = self._items, []
        self._add_node(1, self._leaf(items), self._items_end)

    def _close(self, level: int) -> None:
        nodes, self._nodes[level] = self._nodes[level], []
        self._add_node(level + 1, self._branch(level, nodes), self._nodes_end[level])

    def finish(self) -> tuple[int, Ref] | None:
        """(level as an item, root), None when nothing was added. A root that was taken may have a single child."""
        if self._items:
            self._close_leaf()
        if not self._counts:
            return None
        level = 1
        while self._counts[level] > 1:
            if self._nodes[level]:
                self._close(level)
            level += 1
        return level, self._last[level]
