"""Cutting into levels, against the rule as docs/format.md tells it: level by level over the whole sequence."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncer.snapshots.levels import Levels, Shape, levels_ended

Tree = tuple[object, ...]
"""(level, parts): level 0 is a leaf of items."""


def by_the_rule(ends: Sequence[int], items_max: int) -> object:
    """The tree of the items 0, 1, 2, ... of which each ends nodes on so many levels."""
    nodes: list[object] = list(range(len(ends)))
    lasts = list(range(len(ends)))
    level = 0
    while not level or len(nodes) > 1:
        above: list[object] = []
        above_lasts: list[int] = []
        group: list[object] = []
        for node, last in zip(nodes, lasts, strict=True):
            group.append(node)
            if ends[last] > level or len(group) == items_max or last == len(ends) - 1:
                above.append((level, *group))
                above_lasts.append(last)
                group = []
        nodes, lasts, level = above, above_lasts, level + 1
    return nodes[0]


def levels_of(items_max: int, made: list[Tree] | None = None) -> Levels[int, Tree]:
    def leaf(items: Sequence[int]) -> Tree:
        return branch(0, items)

    def branch(level: int, parts: Sequence[object]) -> Tree:
        node = (level, *parts)
        if made is not None:
            made.append(node)
        return node

    return Levels(leaf, branch, Shape(1, items_max))


sequences = st.lists(st.sampled_from([0, 0, 0, 0, 1, 1, 2, 3, 4]), min_size=1, max_size=80)
maxima = st.integers(2, 6)


@given(sequences, maxima)
def test_a_sequence_is_cut_by_the_rule(ends: list[int], items_max: int) -> None:
    made: list[Tree] = []
    levels = levels_of(items_max, made)
    for item, end in enumerate(ends):
        levels.add(item, end)
    found = levels.finish()
    assert found is not None
    level, root = found
    assert root == by_the_rule(ends, items_max)
    assert (level - 1, root) == (root[0], made[-1]), "the root is made last, and nothing above it"


@given(sequences, maxima, st.data())
def test_a_tree_made_of_parts_of_an_old_one_is_cut_by_the_rule(
    ends: list[int], items_max: int, data: st.DataObject
) -> None:
    """Whatever is in front, nodes of the old tree are taken as soon as they fit."""
    front = data.draw(sequences)
    old = by_the_rule(ends, items_max)
    shifted = shift(old, len(front))
    levels = levels_of(items_max)
    for item, end in enumerate(front):
        levels.add(item, end)
    all_ends = front + ends
    give(levels, shifted, all_ends)
    found = levels.finish()
    assert found is not None
    assert without_single_roots(found[1]) == by_the_rule(all_ends, items_max)


def shift(node: object, by: int) -> object:
    return node + by if isinstance(node, int) else (node[0], *(shift(part, by) for part in node[1:]))  # type: ignore[index]


def give(levels: Levels[int, Tree], node: object, ends: Sequence[int]) -> None:
    """Take the node as it is where it fits, else what is in it."""
    if isinstance(node, int):
        levels.add(node, ends[node])
        return
    assert isinstance(node, tuple)
    if levels.can_take(node[0] + 1):
        levels.take(node[0] + 1, node, ends[last_item(node)])
        return
    for part in node[1:]:
        give(levels, part, ends)


def last_item(node: object) -> int:
    return node if isinstance(node, int) else last_item(node[-1])  # type: ignore[index]


def without_single_roots(node: object) -> object:
    while isinstance(node, tuple) and node[0] and len(node) == 2:
        node = node[1]
    return node


@pytest.mark.parametrize("ends", [1, 0])
def test_a_node_that_ended_by_its_hash_or_its_length_lets_the_next_be_taken(ends: int) -> None:
    levels = levels_of(2)
    assert levels.can_take(1)
    levels.add(0, 0)
    assert not levels.can_take(1)
    levels.add(1, ends)
    assert levels.can_take(1)
    assert not levels.can_take(2)
    levels.take(1, (0, 2, 3), 0)
    assert levels.can_take(2)
    assert not levels.can_take(3)


def test_nothing_makes_no_tree() -> None:
    assert levels_of(5).finish() is None


def test_zero_bits_of_the_hash_end_levels() -> None:
    assert [levels_ended(value.to_bytes(8, "little")) for value in (1, 0x80, 0x100, 0x8000, 0x10000, 1 << 63)] == [
        *(0, 0, 1, 1, 2, 7)
    ]
    assert levels_ended(bytes(8)) == 8
    assert levels_ended(bytes([0, 1]) + bytes([255]) * 30) == 1
    assert levels_ended(bytes(8), Shape(bits=2)) == 32
    assert levels_ended(b"\x10" + bytes(7), Shape(bits=2)) == 2
