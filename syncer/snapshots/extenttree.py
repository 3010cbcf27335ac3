"""The extents of big files as trees. docs/format.md, "Extent trees".

Cut by the ids of the blocks, and each leaf counts from the end of the extent before it, so neither a leaf nor a branch
says where in the file it is. Bytes inserted at the front of a file, appended, or changed in place therefore make new
only the nodes that hold the changed extents and those above them. Pure, like tree.py.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Protocol

from syncer.errors import ObjectCorrupt
from syncer.snapshots.levels import SHAPE, Levels, Shape, levels_ended, lowest_root
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
from syncer.values import FILE_END_MAX, TreeId

_Node = ExtentLeaf | ExtentBranch


def build_extents(
    extents: Iterable[Extent], emit: Emit, shape: Shape = SHAPE, emit_branch: Emit | None = None
) -> TreeId:
    """Emit the nodes for the *extents* of a file, whose starts are absolute, and return their tree.

    Holds one unfinished node a level. Branches go to *emit_branch* where there is one.

    Raises:
        ValueError: they overlap, are not sorted, or one breaks a limit.
    """
    sequence = _Sequence(emit, emit_branch or emit, shape)
    for extent in extents:
        sequence.add(extent)
    found = sequence.levels.finish()
    return emit_node(ExtentLeaf(VERSION, ()), emit) if found is None else TreeId(found[1].tree)


class _Sequence:
    """The extents of a file in order, on their way into its tree."""

    def __init__(self, emit: Emit, emit_branch: Emit, shape: Shape) -> None:
        self.levels: Levels[Extent, SpanChild] = Levels(partial(_leaf, emit), partial(_branch, emit_branch), shape)
        self.end = 0
        """Where the last extent ends."""
        self._shape = shape

    def add(self, extent: Extent) -> None:
        if extent.start < self.end:
            raise ValueError("extents must be sorted and must not overlap")
        # Until its leaf is made, an extent counts from the end of the one before it: that needs no leaf's place.
        self.levels.add(
            Extent(extent.start - self.end, extent.length, extent.block, extent.offset),
            levels_ended(extent.block, self._shape),
        )
        self.end = extent.start + extent.length

    def take(self, level: int, child: SpanChild, last_block: bytes) -> None:
        self.levels.take(level, child, levels_ended(last_block, self._shape))
        self.end += child.span


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


# --- changing ---------------------------------------------------------------------------------------------------


class ExtentSource(Protocol):
    """The extents of a file as they are now, with absolute starts."""

    def extents(self, start: int, end: int) -> Iterable[Extent]:
        """Those that begin in [*start*, *end*), in order."""

    def last_block(self, end: int) -> bytes:
        """The block of the last one that begins before *end*; there is one."""


def update_extents(
    root: TreeId,
    changed: Sequence[tuple[int, int]],
    source: ExtentSource,
    load: Load,
    emit: Emit,
    shape: Shape = SHAPE,
    emit_branch: Emit | None = None,
) -> TreeId:
    """The tree of a file that had the tree *root*, and whose extents came or went in the ranges *changed* only.

    The ranges are (begin, end), in order, without overlaps; an extent that came or went is in one with all its bytes.
    Reads the extents of leaves that a range reaches into, and of neighbours as far as a cut has moved. Loads branches
    alone, and a root that is a leaf. The result is what `build_extents` would give.

    Raises:
        ValueError: an extent breaks a limit.
    """
    change = _Change(changed, source, load, emit, shape, emit_branch or emit)
    change.merge(_load(root, load), 0, is_last=True)
    return change.finish()


class _Change:
    """One walk over an old tree that takes over what did not change, and reads the rest anew."""

    def __init__(
        self,
        changed: Sequence[tuple[int, int]],
        source: ExtentSource,
        load: Load,
        emit: Emit,
        shape: Shape,
        emit_branch: Emit,
    ) -> None:
        self._begins = [begin for begin, _ in changed]
        self._ends = [end for _, end in changed]
        self._source = source
        self._load = load
        self._emit = emit
        self._emit_branch = emit_branch
        self._made: set[TreeId] = set()
        self._sequence = _Sequence(emit, self._emit_new, shape)

    def _emit_new(self, tree: TreeId, data: bytes) -> None:
        self._made.add(tree)
        self._emit_branch(tree, data)

    def merge(self, node: _Node, base: int, *, is_last: bool) -> None:
        """Append what is in the place of *node*, which begins at *base*; the last one reaches as far as a file can."""
        if isinstance(node, ExtentLeaf):
            self._read(base, FILE_END_MAX)
            return
        for index, child in enumerate(node.children):
            self._merge_child(node.level, child, base, is_last and index == len(node.children) - 1)
            base += child.span

    def _merge_child(self, level: int, child: SpanChild, base: int, is_last: bool) -> None:
        end = FILE_END_MAX if is_last else base + child.span
        if not self._is_changed(base, end) and self._sequence.end == base and self._sequence.levels.can_take(level):
            self._sequence.take(level, child, self._source.last_block(base + child.span))
        elif level == 1:
            self._read(base, end)
        else:
            self.merge(_load_child(level, child, self._load), base, is_last=is_last)

    def _is_changed(self, start: int, end: int) -> bool:
        index = bisect_right(self._ends, start)
        return index < len(self._ends) and self._begins[index] < end

    def _read(self, start: int, end: int) -> None:
        for extent in self._source.extents(start, end):
            self._sequence.add(extent)

    def finish(self) -> TreeId:
        found = self._sequence.levels.finish()
        if found is None:
            return emit_node(ExtentLeaf(VERSION, ()), self._emit)
        return TreeId(lowest_root(*found, self._taken_children).tree)

    def _taken_children(self, level: int, child: SpanChild) -> Sequence[SpanChild]:
        if TreeId(child.tree) in self._made:
            return ()
        node = _load_child(level, child, self._load)
        return () if isinstance(node, ExtentLeaf) else node.children


# --- reading ----------------------------------------------------------------------------------------------------


def iter_extents(root: TreeId, load: Load, start: int = 0, end: int = FILE_END_MAX) -> Iterator[Extent]:
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
        if base + child.span > FILE_END_MAX:
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
