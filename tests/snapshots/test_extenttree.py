"""Extent trees: what goes in comes out by range, and edits, appends and insertions share what did not change."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from syncer.errors import ObjectCorrupt
from syncer.snapshots.extenttree import build_extents, iter_extents, update_extents
from syncer.snapshots.levels import Shape
from syncer.snapshots.nodes import (
    ITEMS_MAX,
    VERSION,
    DirectoryLeaf,
    Extent,
    ExtentBranch,
    ExtentLeaf,
    SpanChild,
    decode_node,
    emit_node,
)
from syncer.values import TreeId
from tests.snapshots.nodebag import NodeBag

TINY = Shape(bits=1, items_max=5)
MIB = 1 << 20


def block(number: int) -> bytes:
    return random.Random(number).randbytes(32)


@st.composite
def extent_lists(draw: st.DrawFn) -> list[Extent]:
    """Extents with holes between some, of few blocks, so that equal ones repeat."""
    extents, at = [], 0
    for hole, length, number, offset in draw(
        st.lists(st.tuples(st.sampled_from([0, 0, 7]), st.integers(1, 9), st.integers(1, 6), st.integers(0, 3)))
    ):
        extents.append(Extent(at + hole, length, block(number), offset))
        at += hole + length
    return extents


@settings(max_examples=150)
@given(extent_lists(), st.integers(0, 400), st.integers(0, 400), st.sampled_from([TINY, Shape(1, 2), Shape(8, 3)]))
def test_the_extents_of_any_range_come_out(extents: list[Extent], start: int, end: int, shape: Shape) -> None:
    bag = NodeBag()
    root = build_extents(extents, bag.emit, shape)
    assert list(iter_extents(root, bag.load)) == extents
    within = [extent for extent in extents if extent.start < end and extent.start + extent.length > start]
    assert list(iter_extents(root, bag.load, start, end)) == within


def big_file(count: int = 20_000) -> list[Extent]:
    ids = random.Random(0)
    return [Extent(index * MIB, MIB, ids.randbytes(32), 0) for index in range(count)]


def test_a_range_of_a_big_file_loads_one_path() -> None:
    bag = NodeBag()
    extents = big_file()
    root = build_extents(extents, bag.emit)
    assert len(bag.nodes) > 60
    assert list(iter_extents(root, bag.load, 5000 * MIB + 1, 5000 * MIB + 2)) == [extents[5000]]
    assert len(bag.loaded) <= 3


def shifted(extents: list[Extent], by: int) -> list[Extent]:
    return [Extent(extent.start + by, extent.length, extent.block, extent.offset) for extent in extents]


def test_insertions_appends_and_edits_make_few_new_nodes() -> None:
    extents = big_file()
    bag = NodeBag()
    build_extents(extents, bag.emit)
    new = Extent(0, 17, block(1), 0)
    at = extents[10_000].start
    edited = [Extent(at, 1000, extents[10_000].block, 0), Extent(at + 1000, MIB - 1000, block(2), 0)]
    for changed in (
        [new, *shifted(extents, 17)],
        shifted(extents, 4096),
        [*extents, Extent(len(extents) * MIB, 17, block(1), 0)],
        [*extents[:10_000], *edited, *extents[50_001:]],
        extents[1:],
        extents[:-1],
    ):
        other = NodeBag()
        build_extents(changed, other.emit)
        assert 1 <= len(set(other.nodes) - set(bag.nodes)) <= 4


# --- changing ---------------------------------------------------------------------------------------------------


class File:
    """The extents of a file, and which of them were read."""

    def __init__(self, extents: list[Extent]) -> None:
        self._extents = extents
        self.read: list[Extent] = []

    def extents(self, start: int, end: int) -> list[Extent]:
        found = [extent for extent in self._extents if start <= extent.start < end]
        self.read += found
        return found

    def last_block(self, end: int) -> bytes:
        return [extent for extent in self._extents if extent.start < end][-1].block


def changed_ranges(old: list[Extent], new: list[Extent]) -> list[tuple[int, int]]:
    """Where the extents are that only one of the two has."""
    ranges: list[tuple[int, int]] = []
    for extent in sorted(set(old) ^ set(new), key=lambda extent: extent.start):
        begin, end = extent.start, extent.start + extent.length
        if ranges and begin <= ranges[-1][1]:
            begin, before = ranges.pop()
            end = max(end, before)
        ranges.append((begin, end))
    return ranges


def some_extents(rng: random.Random) -> list[Extent]:
    extents, at = [], 0
    for _ in range(rng.randrange(40)):
        at += rng.choice([0, 0, 0, 7])
        extents.append(Extent(at, rng.randrange(1, 9), block(rng.randrange(12)), 0))
        at += extents[-1].length
    return extents


def changed(extents: list[Extent], rng: random.Random) -> list[Extent]:
    """The extents after some came, went, were replaced, cut, or taken away up to the end."""
    new = {extent.start: extent for extent in extents}
    for _ in range(rng.choice([0, 1, 1, 2, 3])):
        start, length = rng.randrange(200), rng.choice([1, 5, 20, 1000])
        for extent in list(new.values()):
            if extent.start < start + length and extent.start + extent.length > start:
                del new[extent.start]
                if extent.start < start:
                    new[extent.start] = Extent(extent.start, start - extent.start, extent.block, extent.offset)
        if length < 1000 and rng.randrange(2):
            new[start] = Extent(start, length, block(rng.randrange(12)), 0)
    return [new[start] for start in sorted(new)]


@pytest.mark.slow
@settings(max_examples=600, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([TINY, Shape(1, 2), Shape(8, 3), Shape(2, 8)]))
def test_a_changed_tree_is_the_one_that_is_built(seed: int, shape: Shape) -> None:
    rng = random.Random(seed)
    old = some_extents(rng)
    new = changed(old, rng)
    bag, other = NodeBag(), NodeBag()
    root = build_extents(old, bag.emit, shape)
    expected = build_extents(new, other.emit, shape)
    file = File(new)
    assert update_extents(root, changed_ranges(old, new), file, bag.load, bag.emit, shape) == expected
    assert list(iter_extents(expected, bag.load)) == new, "all its nodes are there"
    assert len(file.read) == len(set(file.read)), "nothing is read twice"


def test_a_few_changes_of_a_big_file_read_a_few_leaves_and_load_a_few_branches() -> None:
    extents = big_file()
    bag, branches = NodeBag(), NodeBag()
    root = build_extents(extents, bag.emit, emit_branch=branches.emit)
    assert len(branches.nodes) < len(bag.nodes) / 20
    shorter = Extent(extents[10_000].start, 1000, extents[10_000].block, 0)
    for new in (
        [*extents[:10_000], shorter, *extents[10_001:]],
        [*extents[:10_000], *extents[10_001:]],
        [*extents, Extent(len(extents) * MIB, 17, block(1), 0)],
        extents[:-1],
        extents[:10_000],
        extents[1:],
    ):
        file, made = File(new), NodeBag()
        branches.forget()
        tree = update_extents(root, changed_ranges(extents, new), file, branches.load, made.emit)
        assert tree == build_extents(new, NodeBag().emit)
        assert len(file.read) < 3000
        assert len(branches.loaded) <= 3
        assert len(made.nodes) <= 6


def test_one_block_repeated_for_ever_makes_bounded_nodes() -> None:
    """A block may end no node by its id, or every one."""
    never = next(block(number) for number in range(1000) if block(number)[0])
    always = bytes(8) + bytes(range(24))
    for repeated in (never, always):
        bag = NodeBag()
        extents = [Extent(index * 10, 10, repeated, 0) for index in range(8_000)]
        root = build_extents(extents, bag.emit)
        assert list(iter_extents(root, bag.load)) == extents
        assert max(map(len, bag.nodes.values())) < 64 * ITEMS_MAX
        assert len(bag.nodes) < 60


def test_a_file_without_extents_has_a_tree_too() -> None:
    bag = NodeBag()
    root = build_extents([], bag.emit)
    assert list(iter_extents(root, bag.load)) == []
    assert decode_node(bag.nodes[root]) == ExtentLeaf(VERSION, ())


@pytest.mark.parametrize(
    "extents",
    [
        [Extent(10, 5, bytes(32), 0), Extent(0, 5, bytes(32), 0)],
        [Extent(0, 5, bytes(32), 0), Extent(4, 5, bytes(32), 0)],
        [Extent(0, 0, bytes(32), 0)],
        [Extent(0, 5, bytes(31), 0)],
        [Extent(0, 5, bytes(32), -1)],
        [Extent(2**63 - 1, 1, bytes(32), 0)],
    ],
)
def test_what_could_not_be_read_again_is_not_written(extents: list[Extent]) -> None:
    bag = NodeBag()
    with pytest.raises(ValueError):
        build_extents(extents, bag.emit)
    assert not bag.nodes


LEAF = ExtentLeaf(VERSION, (Extent(5, 10, bytes(32), 0),))


def lying(bag: NodeBag, *, level: int = 1, span: int = 15, count: int = 1, of: object = LEAF) -> TreeId:
    child = emit_node(of, bag.emit)  # type: ignore[arg-type]
    return emit_node(ExtentBranch(VERSION, level, (SpanChild(span, child, count),)), bag.emit)


def test_the_honest_form_of_the_trees_below_is_read() -> None:
    bag = NodeBag()
    assert list(iter_extents(lying(bag), bag.load)) == [Extent(5, 10, bytes(32), 0)]


@pytest.mark.parametrize(
    "lie",
    [{"level": 2}, {"span": 14}, {"count": 2}, {"of": ExtentLeaf(VERSION, ())}, {"of": DirectoryLeaf(VERSION, ())}],
)
def test_nodes_that_are_not_what_their_parents_say_are_corrupt(lie: dict[str, object]) -> None:
    bag = NodeBag()
    root = lying(bag, **lie)  # type: ignore[arg-type]
    with pytest.raises(ObjectCorrupt):
        list(iter_extents(root, bag.load))


def test_a_tree_longer_than_any_file_is_corrupt() -> None:
    bag = NodeBag()
    leaf = emit_node(ExtentLeaf(VERSION, (Extent(0, 2**62, bytes(32), 0),)), bag.emit)
    root = emit_node(ExtentBranch(VERSION, 1, (SpanChild(2**62, leaf, 1),) * 4), bag.emit)
    with pytest.raises(ObjectCorrupt, match="longest file"):
        list(iter_extents(root, bag.load))
