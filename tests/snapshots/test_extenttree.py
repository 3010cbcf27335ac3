"""Extent trees: what goes in comes out by range, and edits, appends and insertions share what did not change."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from syncer.errors import ObjectCorrupt
from syncer.snapshots.extenttree import build_extents, iter_extents
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
