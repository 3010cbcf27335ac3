"""Trees: one form for equal directories however they came to be, small changes in few nodes, damage always noticed."""

import random
import tracemalloc
from collections.abc import Iterator

import msgspec
import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from syncer.errors import ObjectCorrupt
from syncer.snapshots import tree as trees
from syncer.snapshots.tree import (
    DEPTH_MAX,
    NODE_MAX_BYTES,
    VERSION,
    DirectoryBranch,
    DirectoryLeaf,
    Entry,
    Extent,
    ExtentBranch,
    ExtentLeaf,
    NameChild,
    Root,
    SpanChild,
    boundary_level,
    build_directory,
    build_extents,
    decode_node,
    encode_root,
    find_entry,
    iter_directory,
    iter_extents,
    load_root,
    node_id,
    update_directory,
)
from syncer.values import TreeId

encode = msgspec.msgpack.encode
BLOCK = bytes(range(32))


class Nodes(dict[TreeId, bytes]):
    """The nodes of some trees, and which of them were asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[TreeId] = []

    def emit(self, tree: TreeId, data: bytes) -> None:
        assert node_id(data) == tree
        self[tree] = data

    def load(self, tree: TreeId) -> bytes:
        self.loaded.append(tree)
        return self[tree]

    def build(self, entries: dict[bytes, Entry]) -> TreeId:
        return build_directory((entries[name] for name in sorted(entries)), self.emit)

    def leaves(self, loaded: list[TreeId]) -> set[TreeId]:
        return {tree for tree in loaded if isinstance(decode_node(self[tree]), DirectoryLeaf)}


@pytest.fixture
def deep(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nodes of four entries on average, so that small directories have deep trees."""
    monkeypatch.setattr(trees, "BITS_A_LEVEL", 2)
    yield


def entry(name: bytes, version: int = 0, /, **fields: object) -> Entry:
    plain = Entry(name, 2, 0o100644, 0, 0, version, 0, 1, 0, 0, None, (), (), None)
    return msgspec.structs.replace(plain, **fields)


def directory(count: int) -> dict[bytes, Entry]:
    return {name: entry(name) for name in (b"file %d" % number for number in range(count))}


# --- directories ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 2, 1000, 30_000])
def test_entries_come_back_in_the_order_of_their_names(count: int) -> None:
    nodes, entries = Nodes(), directory(count)
    tree = nodes.build(entries)
    assert list(iter_directory(tree, nodes.load)) == [entries[name] for name in sorted(entries)]
    after = b"file 5"
    assert [found.name for found in iter_directory(tree, nodes.load, after)] == sorted(n for n in entries if n > after)


def test_nodes_hold_256_entries_on_average() -> None:
    nodes = Nodes()
    nodes.build(directory(30_000))
    leaves = [node for node in map(decode_node, nodes.values()) if isinstance(node, DirectoryLeaf)]
    assert 80 < len(leaves) < 170


names = st.binary(min_size=1, max_size=2).filter(
    lambda name: not (b"/" in name or b"\0" in name or name in (b".", b".."))
)
changes = st.lists(st.dictionaries(names, st.integers(0, 3) | st.none(), max_size=12), max_size=6)


@given(st.sets(names, max_size=80), changes)
def test_updating_gives_what_building_gives(first: set[bytes], rounds: list[dict[bytes, int | None]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trees, "BITS_A_LEVEL", 2)
        nodes = Nodes()
        entries = {name: entry(name) for name in first}
        tree = nodes.build(entries)
        for round_ in rounds:
            change = {name: None if version is None else entry(name, version) for name, version in round_.items()}
            tree = update_directory(tree, change, nodes.load, nodes.emit)
            for name, changed in change.items():
                if changed is None:
                    entries.pop(name, None)
                else:
                    entries[name] = changed
            assert tree == Nodes().build(entries)
        assert list(iter_directory(tree, nodes.load)) == [entries[name] for name in sorted(entries)]


@pytest.mark.usefixtures("deep")
def test_long_random_histories_end_in_the_tree_of_their_state() -> None:
    rng = random.Random(1)
    nodes, entries = Nodes(), directory(600)
    tree = nodes.build(entries)
    assert {type(decode_node(data)) for data in nodes.values()} == {DirectoryLeaf, DirectoryBranch}
    for _ in range(150):
        change: dict[bytes, Entry | None] = {}
        for name in rng.sample(sorted(entries), min(len(entries), rng.randrange(12))):
            change[name] = None if rng.random() < 0.6 else entry(name, rng.randrange(9))
        for _ in range(rng.randrange(6)):
            name = b"new %d" % rng.randrange(1000)
            change[name] = entry(name)
        tree = update_directory(tree, change, nodes.load, nodes.emit)
        entries = {name: e for name, e in (entries | change).items() if e is not None}
        assert tree == Nodes().build(entries)


@pytest.mark.usefixtures("deep")
def test_removing_the_entry_that_ends_a_node_joins_it_with_the_next() -> None:
    """The case an update gets wrong first, so each such name is removed once, and all of them at once."""
    entries = directory(200)
    ends = [name for name in entries if boundary_level(name)]
    nodes = Nodes()
    tree = nodes.build(entries)
    for gone in [*([name] for name in ends), ends]:
        left = {name: e for name, e in entries.items() if name not in gone}
        assert update_directory(tree, dict.fromkeys(gone), nodes.load, nodes.emit) == Nodes().build(left)


def test_an_update_loads_and_emits_only_the_nodes_on_the_way_to_a_change() -> None:
    nodes, entries = Nodes(), directory(30_000)
    tree = nodes.build(entries)
    nodes.loaded.clear()
    emitted = Nodes()
    update_directory(tree, {b"file 77": entry(b"file 77", 1), b"new": entry(b"new")}, nodes.load, emitted.emit)
    assert len(nodes.leaves(nodes.loaded)) <= 3
    fresh = [decode_node(data) for name, data in emitted.items() if name not in nodes]
    assert sum(isinstance(node, DirectoryLeaf) for node in fresh) <= 3 and len(fresh) <= 5


def test_a_name_is_found_by_one_node_a_level() -> None:
    nodes, entries = Nodes(), directory(30_000)
    tree = nodes.build(entries)
    nodes.loaded.clear()
    assert find_entry(tree, b"file 12345", nodes.load) == entries[b"file 12345"]
    assert len(nodes.loaded) <= 3
    for missing in (b"", b"file", b"file 30000", b"zzz"):
        assert find_entry(tree, missing, nodes.load) is None


# --- extents ----------------------------------------------------------------------------------------------------


def consecutive(count: int, seed: int = 0, length: int = 1000) -> list[Extent]:
    return [Extent(n * length, length, blake3(b"%d %d" % (seed, n)).digest(), 0) for n in range(count)]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3), st.integers(0, 6), st.integers(0, 2)), max_size=200))
def test_extents_and_the_holes_between_them_come_back(parts: list[tuple[int, int, int, int]]) -> None:
    extents, position = [], 0
    for hole, length, block, offset in parts:
        position += hole
        extents.append(Extent(position, length, blake3(bytes([block])).digest(), offset))
        position += length
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trees, "BITS_A_LEVEL", 2)
        patch.setattr(trees, "EXTENTS_A_LEAF", 8)
        nodes = Nodes()
        assert list(iter_extents(build_extents(extents, nodes.emit), nodes.load)) == extents


def test_bytes_inserted_at_the_front_change_few_nodes() -> None:
    before, extents = Nodes(), consecutive(30_000)
    build_extents(extents, before.emit)
    grown = [Extent(0, 1001, blake3(b"the first block, a byte longer").digest(), 0)]
    grown += [Extent(e.start + 1, e.length, e.block, e.offset) for e in extents[1:]]
    after = Nodes()
    tree = build_extents(grown, after.emit)
    assert len(after) > 80 and len(after.keys() - before.keys()) <= 3
    assert list(iter_extents(tree, after.load)) == grown


def test_one_block_repeated_for_ever_still_makes_small_nodes() -> None:
    """Whether its id ends a node (each extent a leaf) or never does (the limit ends them)."""
    ends = next(b for b in (blake3(b"%d" % n).digest() for n in range(100_000)) if trees._levels(b))
    for block in (BLOCK, ends):
        nodes = Nodes()
        extents = [Extent(n * 2000, 1000, block, 0) for n in range(20_000)]
        tree = build_extents(extents, nodes.emit)
        assert max(map(len, nodes.values())) < 1024 * 1024
        assert list(iter_extents(tree, nodes.load)) == extents


def test_a_file_without_extents_has_a_tree_too() -> None:
    nodes = Nodes()
    assert list(iter_extents(build_extents([], nodes.emit), nodes.load)) == []


# --- damage -----------------------------------------------------------------------------------------------------

LEAF = DirectoryLeaf(
    VERSION, (entry(b"a"), entry(b"b", xattrs=((b"user.x", b"1"),), extents=(Extent(0, 5, BLOCK, 0),)))
)
SOUND = [
    LEAF,
    DirectoryBranch(VERSION, 1, (NameChild(b"b", BLOCK, 2), NameChild(b"d", BLOCK, 2))),
    ExtentLeaf(VERSION, (Extent(0, 5, BLOCK, 3),)),
    ExtentBranch(VERSION, 1, (SpanChild(5, BLOCK, 1),)),
    Root(VERSION, entry(b"", inode=1, mode=0o40755, tree=BLOCK)),
]


@pytest.mark.parametrize("node", SOUND, ids=lambda node: type(node).__name__)
def test_a_sound_node_is_decoded(node: trees.Node) -> None:
    assert decode_node(encode(node)) == node


@pytest.mark.parametrize(
    "fields",
    [
        {"inode": 0},
        {"inode": 2**63},
        {"mode": -1},
        {"mode": 2**16},
        {"uid": -1},
        {"gid": 2**32},
        {"mtime_ns": 2**63},
        {"nlink": 0},
        {"size": -1},
        {"size": 2**63},
        {"rdev": -1},
        {"tree": BLOCK[1:]},
        {"tree": BLOCK + b"x"},
        {"xattrs": ((b"a",),)},
        {"extents": (Extent(-1, 5, BLOCK, 0),)},
        {"extents": (Extent(0, 0, BLOCK, 0),)},
        {"extents": (Extent(0, 5, BLOCK[1:], 0),)},
        {"extents": (Extent(0, 5, BLOCK, -1),)},
        {"name": b""},
        {"name": b"."},
        {"name": b".."},
        {"name": b"../etc/passwd"},
        {"name": b"a\0b"},
        {"name": b"x" * 256},
        {"name": "text"},
    ],
    ids=str,
)
def test_an_impossible_entry_is_corrupt(fields: dict[str, object]) -> None:
    with pytest.raises(ObjectCorrupt):
        decode_node(encode(DirectoryLeaf(VERSION, (entry(b"name", **fields),))))


@pytest.mark.parametrize(
    "node",
    [
        DirectoryLeaf(VERSION + 1, ()),
        DirectoryLeaf(VERSION, (entry(b"b"), entry(b"a"))),
        DirectoryLeaf(VERSION, (entry(b"a"), entry(b"a"))),
        DirectoryBranch(VERSION, 0, ()),
        DirectoryBranch(VERSION, 1, (NameChild(b"b", BLOCK, 2), NameChild(b"a", BLOCK, 2))),
        DirectoryBranch(VERSION, 1, (NameChild(b"b", BLOCK, -1),)),
        ExtentBranch(VERSION, 1, (SpanChild(-5, BLOCK, 1),)),
        ["xx", VERSION, []],
        ["dl", VERSION, [], "one field more"],
        [],
        {},
        None,
    ],
    ids=repr,
)
def test_an_impossible_node_is_corrupt(node: object) -> None:
    with pytest.raises(ObjectCorrupt):
        decode_node(encode(node))


def test_a_node_that_is_too_long_or_nested_too_deep_is_corrupt() -> None:
    with pytest.raises(ObjectCorrupt, match="impossibly long"):
        decode_node(bytes(NODE_MAX_BYTES + 1))
    with pytest.raises(ObjectCorrupt):
        decode_node(b"\x91" * 200_000)


@pytest.mark.parametrize("claim", [b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xdd\x10\x00\x00\x00"])
def test_a_claimed_length_takes_no_memory(claim: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ObjectCorrupt):
            decode_node(b"\x93\xa2dl\x01" + claim)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@given(st.binary(max_size=200))
def test_noise_is_corrupt_and_nothing_else(noise: bytes) -> None:
    for data in (noise, b"\x93\xa2dl\x01" + noise):
        try:
            decode_node(data)
        except ObjectCorrupt:
            continue
        assert data == noise or noise.startswith(b"\x90")  # a leaf without entries, and bytes behind it


@given(st.data())
def test_mutated_nodes_are_corrupt_or_nodes(data: st.DataObject) -> None:
    damaged = bytearray(encode(data.draw(st.sampled_from(SOUND))))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        decode_node(bytes(damaged))
    except ObjectCorrupt:
        return


def walk_directory(tree: TreeId, nodes: Nodes) -> object:
    return list(iter_directory(tree, nodes.load))


def walk_extents(tree: TreeId, nodes: Nodes) -> object:
    return list(iter_extents(tree, nodes.load))


def look_up(tree: TreeId, nodes: Nodes) -> object:
    return find_entry(tree, b"a", nodes.load)


@pytest.mark.parametrize("walk", [walk_directory, walk_extents, look_up])
@pytest.mark.parametrize("levels", [1, DEPTH_MAX + 3])
def test_a_tree_with_another_kind_of_node_or_without_an_end_is_corrupt(walk: object, levels: int) -> None:
    assert callable(walk)
    nodes = Nodes()

    def stored(node: object) -> TreeId:
        data = encode(node)
        nodes.emit(node_id(data), data)
        return node_id(data)

    tree = stored(SOUND[4])
    for _ in range(levels):
        if walk is walk_extents:
            tree = stored(ExtentBranch(VERSION, 2, (SpanChild(5, tree, 1),)))
        else:
            tree = stored(DirectoryBranch(VERSION, 2, (NameChild(b"a", tree, 1),)))
    with pytest.raises(ObjectCorrupt):
        walk(tree, nodes)


def test_the_root_of_a_snapshot() -> None:
    root = entry(b"", inode=1, mode=0o40755, tree=BLOCK)
    data = encode_root(root)
    assert load_root(node_id(data), lambda tree: data) == root
    with pytest.raises(ObjectCorrupt, match="no root"):
        load_root(node_id(data), lambda tree: encode(LEAF))
