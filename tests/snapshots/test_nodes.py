"""Nodes: sound ones are read as they were written, and whatever else a remote holds is ObjectCorrupt."""

import tracemalloc

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncer.errors import ObjectCorrupt
from syncer.snapshots.nodes import (
    ITEMS_MAX,
    NODE_MAX_BYTES,
    VERSION,
    DirectoryBranch,
    DirectoryLeaf,
    Entry,
    Extent,
    ExtentBranch,
    ExtentLeaf,
    NameChild,
    Node,
    Root,
    SpanChild,
    XattrNode,
    decode_node,
    encode_node,
)

encode = msgspec.msgpack.encode
BLOCK = bytes(range(32))


def entry(name: object, **fields: object) -> Entry:
    plain = Entry(b"", 2, 0o100644, 0, 0, 0, 0, 1, 0, 0, None, (), (), None)
    return msgspec.structs.replace(plain, name=name, **fields)


SOUND: list[Node] = [
    DirectoryLeaf(VERSION, (entry(b"a"), entry(b"b", xattrs=((b"user.x", b"1"),), extents=(Extent(0, 5, BLOCK, 0),)))),
    DirectoryLeaf(VERSION, ()),
    DirectoryBranch(VERSION, 1, (NameChild(b"b", BLOCK, 2), NameChild(b"d", BLOCK, 2))),
    ExtentLeaf(VERSION, (Extent(0, 5, BLOCK, 3), Extent(5, 2**62, BLOCK, 0))),
    ExtentBranch(VERSION, 1, (SpanChild(5, BLOCK, 1),)),
    XattrNode(VERSION, ((b"user.a", b"1"), (b"user.b", b"")), BLOCK),
    Root(VERSION, entry(b"", inode=1, mode=0o40755, tree=BLOCK)),
]


@pytest.mark.parametrize("node", SOUND, ids=lambda node: type(node).__name__)
def test_a_sound_node_is_read_as_it_was_written(node: Node) -> None:
    assert encode_node(node) == encode(node)
    assert decode_node(encode(node)) == node
    assert decode_node(memoryview(encode(node))) == node


def refused(node: object) -> None:
    """Not readable, and not writable either."""
    with pytest.raises(ObjectCorrupt):
        decode_node(encode(node))
    if isinstance(node, msgspec.Struct):
        with pytest.raises(ValueError):
            encode_node(node)  # type: ignore[arg-type]


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
        {"target": b""},
        {"target": b"x" * 4096},
        {"tree": BLOCK[1:]},
        {"tree": BLOCK + b"x"},
        {"xattr_tree": BLOCK[1:]},
        {"xattrs": ((b"a",),)},
        {"xattrs": ((b"", b""),)},
        {"xattrs": ((b"a" * 256, b""),)},
        {"xattrs": ((b"a", bytes(2**20 + 1)),)},
        {"xattrs": ((b"b", b""), (b"a", b""))},
        {"xattrs": ((b"a", b""), (b"a", b""))},
        {"extents": (Extent(-1, 5, BLOCK, 0),)},
        {"extents": (Extent(0, 0, BLOCK, 0),)},
        {"extents": (Extent(0, 5, BLOCK[1:], 0),)},
        {"extents": (Extent(0, 5, BLOCK, -1),)},
        {"extents": (Extent(0, 5, BLOCK, 0), Extent(4, 5, BLOCK, 0))},
        {"extents": (Extent(2**63 - 1, 1, BLOCK, 0),)},
        {"extents": tuple(Extent(start, 1, BLOCK, 0) for start in range(17))},
    ],
    ids=lambda fields: repr(fields)[:60],
)
def test_an_impossible_entry_is_neither_read_nor_written(fields: dict[str, object]) -> None:
    refused(DirectoryLeaf(VERSION, (entry(b"name", **fields),)))
    refused(Root(VERSION, entry(b"", **fields)))


@pytest.mark.parametrize("name", [b"", b".", b"..", b"../etc/passwd", b"a\0b", b"x" * 256, "text"])
def test_an_impossible_name_is_neither_read_nor_written(name: object) -> None:
    refused(DirectoryLeaf(VERSION, (entry(name),)))


@pytest.mark.parametrize(
    "node",
    [
        DirectoryLeaf(VERSION + 1, ()),
        DirectoryLeaf(VERSION, (entry(b"b"), entry(b"a"))),
        DirectoryLeaf(VERSION, (entry(b"a"), entry(b"a"))),
        DirectoryLeaf(VERSION, tuple(entry(b"%05d" % number) for number in range(ITEMS_MAX + 1))),
        DirectoryBranch(VERSION, 1, ()),
        DirectoryBranch(VERSION, 0, (NameChild(b"b", BLOCK, 2),)),
        DirectoryBranch(VERSION, 65, (NameChild(b"b", BLOCK, 2),)),
        DirectoryBranch(VERSION, 1, (NameChild(b"b", BLOCK, 2), NameChild(b"a", BLOCK, 2))),
        DirectoryBranch(VERSION, 1, (NameChild(b"b", BLOCK, 0),)),
        DirectoryBranch(VERSION, 1, (NameChild(b"b", BLOCK[1:], 2),)),
        ExtentLeaf(VERSION, (Extent(0, 5, BLOCK, 3), Extent(4, 9, BLOCK, 0))),
        ExtentLeaf(VERSION, (Extent(2**63 - 1, 1, BLOCK, 3),)),
        ExtentBranch(VERSION, 1, ()),
        ExtentBranch(VERSION, 1, (SpanChild(0, BLOCK, 1),)),
        ExtentBranch(VERSION, 1, (SpanChild(5, BLOCK, -1),)),
        XattrNode(VERSION, ((b"b", b""), (b"a", b"")), None),
        XattrNode(VERSION, (), BLOCK[1:]),
        ["xx", VERSION, []],
        ["dl", VERSION, [], "one field more"],
        ["dl", VERSION],
        [],
        {},
        None,
    ],
    ids=lambda node: repr(node)[:60],
)
def test_an_impossible_node_is_neither_read_nor_written(node: object) -> None:
    refused(node)


def test_a_number_too_long_for_the_encoding_is_not_written() -> None:
    for number in (-(2**63) - 1, 2**64):
        with pytest.raises(ValueError):
            encode_node(DirectoryLeaf(VERSION, (entry(b"a", ctime_ns=number),)))


def test_a_node_of_a_later_version_says_so() -> None:
    with pytest.raises(ObjectCorrupt, match="version 2") as caught:
        decode_node(encode(DirectoryLeaf(2, ())))
    assert "newer" in caught.value.hint


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


@given(st.binary(max_size=200).filter(lambda noise: not noise.startswith(b"\x90")))
def test_noise_is_corrupt_and_nothing_else(noise: bytes) -> None:
    for data in (noise, b"\x93\xa2dl\x01" + noise):
        with pytest.raises(ObjectCorrupt):
            decode_node(data)


@given(st.sampled_from(SOUND), st.data())
def test_mutated_nodes_are_corrupt_or_nodes_that_could_be_written(node: Node, data: st.DataObject) -> None:
    damaged = bytearray(encode(node))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        decoded = decode_node(bytes(damaged))
    except ObjectCorrupt:
        return
    assert decode_node(encode_node(decoded)) == decoded
