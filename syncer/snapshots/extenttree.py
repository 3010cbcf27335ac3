"""The extents of big files as trees. docs/format.md, "Extent trees".

Cut by the ids of the blocks, and each leaf counts from the end of the extent before it, so neither a leaf nor a branch
says where in the file it is. Bytes inserted at the front of a file, appended, or changed in place therefore make new
only the nodes that hold the changed extents and those above them. Pure, like tree.py.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial

from syncer.errors import ObjectCorrupt
from syncer.snapshots.levels import SHAPE, Levels, Shape, levels_ended
from syncer.snapshots.nodes import (
    VERSION,
    Emit,
    Extent,
    ExtentBranch,
    ExtentLeaf,
    Load,
    SpanChild,
    decode_node,
    emit_node,
)
from syncer.values import TreeId

_Node = ExtentLeaf | ExtentBranch
FILE_MAX_BYTES = 2**63 - 1


def build_extents(extents: Iterable[Extent], emit: Emit, shape: Shape = SHAPE) -> TreeId:
    """Emit the nodes for the *extents* of a file, whose starts are absolute, and return their tree.

    Raises:
        ValueError: they overlap, are not sorted, or one breaks a limit.
    """
    levels: Levels[Extent, SpanChild] = Levels(partial(_leaf, emit), partial(_branch, emit), shape)
    end = 0
    for extent in extents:
        if extent.start < end:
            raise ValueError("extents must be sorted and must not overlap")
        # Until its leaf is made, an extent counts from the end of the one before it: that needs no leaf's place.
        levels.add(
            Extent(extent.start - end, extent.length, extent.block, extent.offset), levels_ended(extent.block, shape)
        )
        end = extent.start + extent.length
    found = levels.finish()
    return emit_node(ExtentLeaf(VERSION, ()), emit) if found is None else TreeId(found[1].tree)


def _leaf(emit: Emit, extents: Sequence[Extent]) -> SpanChild:
    placed: list[Extent] = []
    end = 0
    for extent in extents:
        start = end + extent.start
        placed.append(Extent(start, extent.length, extent.block, extent.offset))
        end = start + extent.length
    return SpanChild(end, emit_node(ExtentLeaf(VERSION, tuple(placed)), emit), len(placed))


def _branch(emit: Emit, level: int, children: Sequence[SpanChild]) -> SpanChild:
    tree = emit_node(ExtentBranch(VERSION, level, tuple(children)), emit)
    return SpanChild(sum(child.span for child in children), tree, sum(child.count for child in children))


def iter_extents(root: TreeId, load: Load, start: int = 0, end: int = FILE_MAX_BYTES) -> Iterator[Extent]:
    """The extents of a file that have a byte in [*start*, *end*), in order and whole, with absolute starts.

    Loads only nodes that reach into that range.

    Raises:
        ObjectCorrupt: it is no tree of extents, or breaks its own rules.
    """
    waiting: list[tuple[int, int, SpanChild]] = []
    base, node = 0, _load(root, load)
    while True:
        if isinstance(node, ExtentLeaf):
            for extent in node.extents:
                at = base + extent.start
                if at < end and at + extent.length > start:
                    yield Extent(at, extent.length, extent.block, extent.offset)
        else:
            waiting.extend(reversed(_reaching(node, base, start, end)))
        if not waiting:
            return
        base, level, child = waiting.pop()
        node = _load_child(level, child, load)
        if base + child.span > FILE_MAX_BYTES:
            raise ObjectCorrupt("an extent tree reaches beyond the longest file there can be")


def _reaching(node: ExtentBranch, base: int, start: int, end: int) -> list[tuple[int, int, SpanChild]]:
    """(place in the file, level of the branch, child) of the children that reach into [start, end)."""
    found = []
    for child in node.children:
        if base < end and base + child.span > start:
            found.append((base, node.level, child))
        base += child.span
    return found


def _load(tree: TreeId, load: Load) -> _Node:
    node = decode_node(load(tree))
    if not isinstance(node, ExtentLeaf | ExtentBranch):
        raise ObjectCorrupt("an extent tree has a node of another kind in it")
    return node


def _load_child(level: int, child: SpanChild, load: Load) -> _Node:
    """The node that is *child* of a branch of *level*, which must be as the branch says. Raises: ObjectCorrupt."""
    node = _load(TreeId(child.tree), load)
    if isinstance(node, ExtentLeaf):
        last = node.extents[-1] if node.extents else None
        found = 0, 0 if last is None else last.start + last.length, len(node.extents)
    else:
        found = node.level, sum(part.span for part in node.children), sum(part.count for part in node.children)
    if found != (level - 1, child.span, child.count):
        raise ObjectCorrupt("a node of an extent tree is not what the node above says")
    return node
