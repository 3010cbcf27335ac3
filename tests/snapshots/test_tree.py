"""Directory trees: equal directories have equal ids, changes cost a path, and what goes in comes out."""

import random
from collections.abc import Iterable, Mapping

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from syncer.errors import ObjectCorrupt
from syncer.snapshots.levels import Shape
from syncer.snapshots.nodes import (
    ITEMS_MAX,
    VERSION,
    XATTRS_A_NODE_BYTES,
    XATTRS_INLINE_BYTES,
    DirectoryBranch,
    DirectoryLeaf,
    Entry,
    Extent,
    NameChild,
    Root,
    XattrNode,
    decode_node,
    emit_node,
)
from syncer.snapshots.tree import (
    boundary_level,
    build_directory,
    build_root,
    diff_directory,
    find_entry,
    iter_directory,
    load_root,
    update_directory,
)
from syncer.values import TreeId
from tests.snapshots.nodebag import NodeBag

TINY = Shape(bits=1, items_max=5)
"""Trees of a few entries are several levels high, and some nodes end by their length."""


def make_entry(name: bytes, inode: int = 1, **fields: object) -> Entry:
    plain = Entry(name, inode, 0o100644, 1000, 1000, 5, 6, 1, 7, 0, None, (), (), None)
    return msgspec.structs.replace(plain, **fields)


def build(entries: Iterable[Entry], bag: NodeBag, shape: Shape = TINY) -> TreeId:
    return build_directory(sorted(entries, key=lambda entry: entry.name), bag.emit, shape)


NAMES = [b"%d" % number for number in range(40)]
names = st.sampled_from(NAMES)
directories = st.dictionaries(names, st.integers(1, 3))
changes = st.dictionaries(names, st.none() | st.integers(1, 3), max_size=8)


def made(directory: Mapping[bytes, int]) -> list[Entry]:
    return [make_entry(name, inode) for name, inode in directory.items()]


# --- building and changing ---------------------------------------------------------------------------------------


@given(directories)
def test_what_goes_in_comes_out_sorted(directory: dict[bytes, int]) -> None:
    bag = NodeBag()
    root = build(made(directory), bag)
    assert list(iter_directory(root, bag.load)) == sorted(made(directory), key=lambda entry: entry.name)
    for name in [*NAMES, b"", b"zzz"]:
        found = find_entry(root, name, bag.load)
        assert found == (make_entry(name, directory[name]) if name in directory else None)


@settings(max_examples=150)
@given(directories, st.lists(changes, max_size=6), st.sampled_from([TINY, Shape(1, 3), Shape(2, 100), Shape(8, 2)]))
def test_a_changed_tree_is_the_tree_built_anew(
    directory: dict[bytes, int], steps: list[dict[bytes, int | None]], shape: Shape
) -> None:
    bag = NodeBag()
    root = build(made(directory), bag, shape)
    for step in steps:
        directory.update({name: inode for name, inode in step.items() if inode is not None})
        for name in [name for name, inode in step.items() if inode is None]:
            directory.pop(name, None)
        wanted = {name: None if inode is None else make_entry(name, inode) for name, inode in step.items()}
        root = update_directory(root, wanted, bag.load, bag.emit, shape)
        assert root == build(made(directory), NodeBag(), shape)
    assert {entry.name: entry.inode for entry in iter_directory(root, bag.load)} == directory


def long_directory(count: int = 5000) -> list[Entry]:
    return sorted((make_entry(b"photo %05d.jpeg" % number) for number in range(count)), key=lambda entry: entry.name)


def test_a_change_in_a_long_directory_loads_and_emits_one_path() -> None:
    bag = NodeBag()
    entries = long_directory(100_000)
    root = build_directory(entries, bag.emit)
    assert len(bag.nodes) > 300
    for index in (0, 50_000, 99_999):
        name = entries[index].name
        bag.forget()
        changed = update_directory(root, {name: make_entry(name, 77)}, bag.load, bag.emit)
        assert changed != root
        assert len(bag.loaded) <= 3 and len(set(bag.emitted)) == len(bag.emitted) <= 3
        assert find_entry(changed, name, bag.load) == make_entry(name, 77)


def test_an_update_emits_exactly_the_nodes_that_are_new() -> None:
    rng = random.Random(1)
    entries = long_directory(300)
    for _ in range(100):
        bag = NodeBag()
        root = build(entries, bag)
        old = set(bag.nodes)
        wanted: dict[bytes, Entry | None] = {
            entry.name: rng.choice([None, make_entry(entry.name, 9), make_entry(entry.name)])
            for entry in rng.sample(entries, rng.randrange(1, 6))
        }
        bag.forget()
        update_directory(root, wanted, bag.load, bag.emit, TINY)
        anew = NodeBag()
        left = [wanted.get(entry.name, entry) for entry in entries]
        build([entry for entry in left if entry is not None], anew)
        assert set(bag.emitted) - old == set(anew.nodes) - old
        assert not set(bag.emitted) & set(bag.loaded)


def test_a_tree_that_shrinks_loses_its_levels() -> None:
    bag = NodeBag()
    entries = long_directory(300)
    root = build(entries, bag)
    assert isinstance(decode_node(bag.load(root)), DirectoryBranch)
    root = update_directory(root, {entry.name: None for entry in entries[1:]}, bag.load, bag.emit, TINY)
    assert root == build(entries[:1], NodeBag())
    assert isinstance(decode_node(bag.load(root)), DirectoryLeaf)
    root = update_directory(root, {entries[0].name: None}, bag.load, bag.emit, TINY)
    assert root == build([], NodeBag())


def test_whatever_run_of_names_goes_the_rest_is_as_if_built_anew() -> None:
    """What is left may be a node of the old tree that is too high for it: its only child is the root then."""
    entries = long_directory(60)
    bag = NodeBag()
    root = build(entries, bag)
    for first in range(0, 60, 3):
        for last in range(first, 60, 4):
            gone = {entry.name: None for entry in entries[first:last]}
            left = update_directory(root, gone, bag.load, bag.emit, TINY)
            assert left == build(entries[:first] + entries[last:], NodeBag())


def test_no_change_costs_nothing() -> None:
    bag = NodeBag()
    entries = long_directory(300)
    root = build(entries, bag)
    bag.forget()
    assert update_directory(root, {}, bag.load, bag.emit, TINY) == root
    assert not bag.loaded
    same = {entries[7].name: entries[7], b"never there": None}
    assert update_directory(root, same, bag.load, bag.emit, TINY) == root
    assert not bag.emitted


def test_every_node_is_emitted_after_those_it_names() -> None:
    bag = NodeBag()
    root = build(long_directory(500), bag)
    seen: set[bytes] = set()
    for tree in bag.emitted:
        node = decode_node(bag.nodes[tree])
        if isinstance(node, DirectoryBranch):
            assert {child.tree for child in node.children} <= seen
        seen.add(tree)
    assert bag.emitted[-1] == root


def test_no_branch_stands_above_a_single_node_at_the_root_and_none_is_made_for_nothing() -> None:
    for count in range(60):
        bag = NodeBag()
        root = build(long_directory(count), bag)
        node = decode_node(bag.nodes[root])
        assert isinstance(node, DirectoryLeaf) or len(node.children) > 1  # type: ignore[union-attr]
        reachable = {root}
        pending: list[bytes] = [root]
        while pending:
            node = decode_node(bag.nodes[TreeId(pending.pop())])
            below = [child.tree for child in node.children] if isinstance(node, DirectoryBranch) else []
            reachable.update(map(TreeId, below))
            pending.extend(below)
        assert set(bag.nodes) == reachable


def test_leaves_hold_256_entries_on_average_and_never_more_than_the_limit() -> None:
    bag = NodeBag()
    build_directory(long_directory(100_000), bag.emit)
    leaves = [node for node in map(decode_node, bag.nodes.values()) if isinstance(node, DirectoryLeaf)]
    assert 300 < len(leaves) < 500
    assert max(len(leaf.entries) for leaf in leaves) <= ITEMS_MAX


def test_names_whose_hashes_never_end_a_leaf_still_make_leaves_of_bounded_length() -> None:
    stubborn = [entry for entry in long_directory(9000) if not boundary_level(entry.name)]
    bag = NodeBag()
    root = build_directory(stubborn, bag.emit)
    assert len([1 for _ in iter_directory(root, bag.load)]) == len(stubborn)
    assert max(map(len, bag.nodes.values())) < 200 * ITEMS_MAX
    name = stubborn[4000].name
    bag.forget()
    changed = update_directory(root, {name: None}, bag.load, bag.emit)
    assert changed == build_directory([entry for entry in stubborn if entry.name != name], NodeBag().emit)


def test_the_longest_entries_fit_their_nodes() -> None:
    def longest(number: int) -> Entry:
        extents = tuple(Extent(2**62 + index * 2**40, 2**40, bytes([255]) * 32, 2**40) for index in range(16))
        return make_entry(
            b"%0255d" % number, 2**63 - 1, mode=0o177777, uid=2**32 - 1, gid=2**32 - 1, mtime_ns=-(2**63),
            ctime_ns=2**63 - 1, nlink=2**32 - 1, size=2**63 - 1, rdev=2**32, target=b"t" * 4095,
            xattrs=((b"a", b"v" * (XATTRS_INLINE_BYTES - 1)),), extents=extents, tree=bytes(32),
        )  # fmt: skip

    stubborn = [longest(number) for number in range(1500) if not boundary_level(longest(number).name)]
    bag = NodeBag()
    root = build_directory(stubborn, bag.emit)
    assert list(iter_directory(root, bag.load)) == stubborn


@pytest.mark.parametrize(
    "entries",
    [
        [make_entry(b"b"), make_entry(b"a")],
        [make_entry(b"a"), make_entry(b"a")],
        [make_entry(b"")],
        [make_entry(b"a" * 256)],
        [make_entry(b"a/b")],
        [make_entry(b"a\0b")],
        [make_entry(b".")],
        [make_entry(b"..")],
        [make_entry(b"a", inode=0)],
        [make_entry(b"a", inode=2**63)],
        [make_entry(b"a", uid=2**32)],
        [make_entry(b"a", mtime_ns=2**63)],
        [make_entry(b"a", tree=bytes(31))],
        [make_entry(b"a", target=b"")],
        [make_entry(b"a", xattrs=((b"b", b""), (b"a", b"")))],
        [make_entry(b"a", extents=(Extent(0, 10, bytes(32), 0), Extent(9, 1, bytes(32), 0)))],
        [make_entry(b"a", extents=(Extent(0, 0, bytes(32), 0),))],
        [make_entry(b"a", extents=(Extent(2**63 - 1, 2, bytes(32), 0),))],
        [make_entry(b"a", extents=tuple(Extent(i, 1, bytes(32), 0) for i in range(17)))],
    ],
)
def test_what_could_not_be_read_again_is_not_written(entries: list[Entry]) -> None:
    bag = NodeBag()
    with pytest.raises(ValueError):
        build_directory(entries, bag.emit, TINY)
    assert not any(node for node in bag.nodes if b"a" in bag.nodes[node])


def test_an_entry_cannot_be_put_under_another_name() -> None:
    bag = NodeBag()
    with pytest.raises(ValueError, match="stands under"):
        update_directory(build([], bag), {b"a": make_entry(b"b")}, bag.load, bag.emit, TINY)


# --- long extended attributes ------------------------------------------------------------------------------------


def attributes(count: int, value_bytes: int) -> tuple[tuple[bytes, bytes], ...]:
    return tuple((b"user.%06d" % number, random.Random(number).randbytes(value_bytes)) for number in range(count))


@pytest.mark.parametrize("count, value_bytes", [(1, 1013), (1, 1014), (3, 60_000), (60, 65_536), (20_000, 100)])
def test_attributes_of_any_length_come_back_and_leave_the_leaf_short(count: int, value_bytes: int) -> None:
    xattrs = attributes(count, value_bytes)
    inline = sum(len(name) + len(value) for name, value in xattrs) <= XATTRS_INLINE_BYTES
    entry = make_entry(b"a", xattrs=xattrs)
    bag = NodeBag()
    root = build([entry, make_entry(b"b")], bag)
    assert len(bag.nodes[root]) < 1500
    assert max(map(len, bag.nodes.values())) < 2 * XATTRS_A_NODE_BYTES
    assert any(isinstance(decode_node(data), XattrNode) for data in bag.nodes.values()) is not inline
    assert next(iter_directory(root, bag.load)) == entry
    assert find_entry(root, b"a", bag.load) == entry
    assert load_root(build_root(make_entry(b"", xattrs=xattrs), bag.emit), bag.load).xattrs == xattrs
    assert update_directory(root, {b"a": entry}, bag.load, bag.emit, TINY) == root
    shorter = make_entry(b"a", xattrs=xattrs[1:])
    assert list(diff_directory(root, build([shorter, make_entry(b"b")], bag), bag.load)) == [(b"a", entry, shorter)]


# --- reading -----------------------------------------------------------------------------------------------------


@given(directories, names | st.sampled_from([b"", b"zzz"]), st.integers(0, 40))
def test_iteration_goes_on_behind_a_name_or_a_number(directory: dict[bytes, int], after: bytes, skip: int) -> None:
    bag = NodeBag()
    root = build(made(directory), bag)
    rest = [name for name in sorted(directory)[skip:] if name > after]
    assert [entry.name for entry in iter_directory(root, bag.load, after, skip)] == rest


def test_iteration_loads_what_it_is_asked_for() -> None:
    bag = NodeBag()
    entries = long_directory(100_000)
    root = build_directory(entries, bag.emit)
    assert next(iter_directory(root, bag.load, entries[70_000].name)) == entries[70_001]
    assert len(bag.loaded) <= 3
    bag.loaded.clear()
    assert next(iter_directory(root, bag.load, skip=70_001)) == entries[70_001]
    assert len(bag.loaded) <= 3
    bag.forget()
    assert find_entry(root, entries[70_000].name, bag.load) == entries[70_000]
    assert len(bag.loaded) <= 3


@settings(max_examples=150)
@given(directories, directories)
def test_the_difference_of_two_directories(a: dict[bytes, int], b: dict[bytes, int]) -> None:
    bag = NodeBag()
    expected = [
        (name, make_entry(name, a[name]) if name in a else None, make_entry(name, b[name]) if name in b else None)
        for name in sorted(a.keys() | b.keys())
        if a.get(name) != b.get(name)
    ]
    assert list(diff_directory(build(made(a), bag), build(made(b), bag), bag.load)) == expected


def test_a_difference_loads_only_what_differs() -> None:
    bag = NodeBag()
    entries = long_directory(100_000)
    root = build_directory(entries, bag.emit)
    assert list(diff_directory(root, root, bag.load)) == []
    assert not bag.loaded
    for changed in (entries[50_000].name, b"a new name", b"zzz"):
        other = update_directory(root, {changed: make_entry(changed, 5)}, bag.load, bag.emit)
        bag.forget()
        assert [name for name, _, _ in diff_directory(root, other, bag.load)] == [changed]
        assert len(bag.loaded) <= 8


def test_a_difference_of_trees_of_different_heights_loads_only_what_differs() -> None:
    def height(root: TreeId) -> int:
        node = decode_node(bag.nodes[root])
        return node.level if isinstance(node, DirectoryBranch) else 0

    bag = NodeBag()
    entries = long_directory(3000)
    large = build(entries[:1000], bag)
    for entry in entries[1000:]:
        small, large = large, update_directory(large, {entry.name: entry}, bag.load, bag.emit, TINY)
        if height(large) > height(small):
            break
    assert height(large) > height(small) > 5
    bag.forget()
    assert list(diff_directory(small, large, bag.load)) == [(entry.name, None, entry)]
    assert len(bag.loaded) < 30
    bag.forget()
    assert list(diff_directory(large, small, bag.load)) == [(entry.name, entry, None)]
    assert len(bag.loaded) < 30


def test_the_root_of_a_snapshot_comes_back_and_nothing_else_is_one() -> None:
    bag = NodeBag()
    tree = build(long_directory(20), bag)
    entry = make_entry(b"", mode=0o040755, tree=tree)
    assert load_root(build_root(entry, bag.emit), bag.load) == entry
    with pytest.raises(ObjectCorrupt, match="no root"):
        load_root(tree, bag.load)
    with pytest.raises(ObjectCorrupt, match="another kind"):
        list(iter_directory(build_root(entry, bag.emit), bag.load))


# --- trees that lie ----------------------------------------------------------------------------------------------


LEAF = DirectoryLeaf(VERSION, (make_entry(b"a"), make_entry(b"b")))


def lying(bag: NodeBag, *, level: int = 1, last_name: bytes = b"b", count: int = 2, of: object = LEAF) -> TreeId:
    child = emit_node(of, bag.emit)  # type: ignore[arg-type]
    return emit_node(DirectoryBranch(VERSION, level, (NameChild(last_name, child, count),)), bag.emit)


def test_the_honest_form_of_the_trees_below_is_read() -> None:
    bag = NodeBag()
    assert [entry.name for entry in iter_directory(lying(bag), bag.load)] == [b"a", b"b"]


@pytest.mark.parametrize(
    "lie",
    [
        {"level": 2},
        {"last_name": b"c"},
        {"count": 3},
        {"of": DirectoryLeaf(VERSION, ())},
        {"of": Root(VERSION, make_entry(b""))},
        {"of": XattrNode(VERSION, (), None)},
    ],
)
def test_nodes_that_are_not_what_their_parents_say_are_corrupt(lie: dict[str, object]) -> None:
    bag = NodeBag()
    root = lying(bag, **lie)  # type: ignore[arg-type]
    with pytest.raises(ObjectCorrupt):
        list(iter_directory(root, bag.load))
    with pytest.raises(ObjectCorrupt):
        find_entry(root, b"a", bag.load)
    with pytest.raises(ObjectCorrupt):
        update_directory(root, {b"a": None}, bag.load, bag.emit, TINY)
    with pytest.raises(ObjectCorrupt):
        list(diff_directory(root, build([], bag), bag.load))


def test_a_chain_of_attributes_with_another_node_in_it_is_corrupt() -> None:
    bag = NodeBag()
    leaf = emit_node(LEAF, bag.emit)
    root = emit_node(DirectoryLeaf(VERSION, (make_entry(b"x", xattr_tree=leaf),)), bag.emit)
    with pytest.raises(ObjectCorrupt, match="another kind"):
        list(iter_directory(root, bag.load))
