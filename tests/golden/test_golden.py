"""Golden files: one object of every kind as a remote holds it. What was written once must be readable for ever.

A difference here is a change of the format: it needs a new version, a page in docs/format.md and readers for both.
Files of a new kind are written by deleting the old ones and running with SYNCER_WRITE_GOLDEN=1.
"""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from blake3 import blake3

from syncer.blocks.codec import PLAIN, ZSTD, block_id, open_sealed, seal
from syncer.blocks.pack import PackBuilder, pack_key, read_list
from syncer.snapshots.nodes import (
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
from syncer.snapshots.records import (
    FollowerRecord,
    Format,
    IndexRecord,
    PackListing,
    PeerRecord,
    SnapshotRecord,
    decode,
    decode_format,
    encode,
    encode_format,
)
from syncer.values import CONTENT, TREE, BlockId, PackId

FOLDER = Path(__file__).parent
WRITE = bool(os.environ.get("SYNCER_WRITE_GOLDEN"))
TIME_NS = 1_700_000_000_123_456_789


def some_id(text: str) -> bytes:
    return blake3(text.encode()).digest()


NOISE = blake3(b"content").digest(300)
TEXT = b"what repeats itself gets shorter, " * 40

FILE = Entry(
    *(b"caf\xe9.txt", 2**40 + 7, 0o100644, 1000, 100, TIME_NS, TIME_NS + 1, 2, 5_000_000, 0, None),
    xattrs=((b"user.empty", b""), (b"user.tag", b"\x00\xff")),
    extents=(Extent(0, 1_000_000, some_id("one"), 0), Extent(2_000_000, 300, some_id("two"), 77)),
    tree=None,
)
LONG_FILE = Entry(
    *(b"film.mkv", 2**40 + 8, 0o100600, 0, 0, -1, 0, 1, 2**40, 0, None), xattrs=(), extents=(), tree=some_id("film")
)
LINK = Entry(
    *(b"link", 2**41 + 1, 0o120777, 0, 0, TIME_NS, TIME_NS, 1, 9, 0, b"../target"), xattrs=(), extents=(), tree=None
)
DEVICE = Entry(*(b"null", 9, 0o020666, 0, 0, 0, 0, 1, 0, 259, None), xattrs=(), extents=(), tree=None)
FOLDER_ENTRY = Entry(
    *(b"photos", 10, 0o042775, 0, 100, TIME_NS, TIME_NS, 3, 0, 0, None),
    xattrs=(),
    extents=(),
    tree=some_id("photos"),
    xattr_tree=some_id("long attributes"),
)
ROOT_ENTRY = Entry(
    *(b"", 1, 0o040755, 0, 0, TIME_NS, TIME_NS, 3, 0, 0, None), xattrs=(), extents=(), tree=some_id("top")
)

NODES: dict[str, Node] = {
    "directory-leaf": DirectoryLeaf(1, (FILE, LONG_FILE, LINK, DEVICE, FOLDER_ENTRY)),
    "directory-leaf-empty": DirectoryLeaf(1, ()),
    "directory-branch": DirectoryBranch(1, 1, (NameChild(b"m", some_id("a"), 250), NameChild(b"z", some_id("b"), 3))),
    "extent-leaf": ExtentLeaf(1, (Extent(0, 1_000_000, some_id("one"), 0), Extent(70_000_000, 9, some_id("two"), 3))),
    "extent-branch": ExtentBranch(1, 2, (SpanChild(2**33, some_id("a"), 300), SpanChild(7, some_id("b"), 1))),
    "xattrs": XattrNode(1, ((b"user.a", b"\0" * 9), (b"user.b", b"")), some_id("the rest")),
    "root": Root(1, ROOT_ENTRY),
}
LISTED = (
    PackListing(some_id("pack"), 1200, CONTENT, ((some_id("one"), 0, 305, 300), (some_id("two"), 305, 40, 4000))),
    PackListing(some_id("trees"), 90, TREE, ()),
)
RECORDS: dict[str, PeerRecord | IndexRecord | SnapshotRecord | FollowerRecord] = {
    "peer-first": PeerRecord(1, 1, some_id("machine")[:16], "laptop", TIME_NS, (), False),
    "peer": PeerRecord(1, 2, some_id("other")[:16], "bücher", TIME_NS, ((1, 12),), True),
    "index": IndexRecord(1, 1, 3, LISTED),
    "snapshot-first": SnapshotRecord(
        *(1, 1, 1, some_id("root"), (), TIME_NS, "laptop", 0, 1, 0, 0, 2**40 + 1, None, False, "auto")
    ),
    "snapshot": SnapshotRecord(
        *(1, 2, 7, some_id("root"), ((1, 12),), TIME_NS, "bücher", 5, 2, 2**42, 2**41, 2**41 + 99, None, True),
        "unmount",
    ),
    "follower": FollowerRecord(1, 2, 7, "anna"),
}
FORMAT = Format(1, some_id("repository")[:16].hex(), TIME_NS)


def packed(kind: int, plains: list[bytes]) -> bytes:
    builder = PackBuilder(kind)
    for plain in plains:
        sealed = seal(plain)
        assert sealed[0] == PLAIN, "the golden pack must not depend on zstd's version"
        builder.add(block_id(plain), sealed, len(plain))
    return bytes(builder.finish().data)


TREE_NODES = [encode_node(NODES[name]) for name in ("extent-leaf", "root")]
SAMPLES: dict[str, Callable[[], bytes]] = {
    "sealed-plain": lambda: seal(NOISE),
    "pack-content": lambda: packed(CONTENT, [NOISE, NOISE[:7], b""]),
    "pack-tree": lambda: packed(TREE, TREE_NODES),
    **{name: partial(encode_node, node) for name, node in NODES.items()},
    **{name: partial(encode, record) for name, record in RECORDS.items()},
    "format": lambda: encode_format(FORMAT),
}


def golden(name: str, make: Callable[[], bytes]) -> bytes:
    path = FOLDER / f"{name}.bin"
    if WRITE and not path.exists():
        path.write_bytes(make())
        pytest.fail(f"{path} was written; read it, commit it, and run again without SYNCER_WRITE_GOLDEN")
    return path.read_bytes()


@pytest.mark.parametrize("name", SAMPLES)
def test_the_same_bytes_are_written_as_ever(name: str) -> None:
    assert SAMPLES[name]() == golden(name, SAMPLES[name])


@pytest.mark.parametrize("name", NODES)
def test_a_node_is_read(name: str) -> None:
    assert decode_node(golden(name, SAMPLES[name])) == NODES[name]


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_is_read(name: str) -> None:
    assert decode(golden(name, SAMPLES[name]), type(RECORDS[name])) == RECORDS[name]


def test_the_format_is_read() -> None:
    assert decode_format(golden("format", SAMPLES["format"])) == FORMAT


def test_sealed_blocks_are_opened() -> None:
    """What zstd writes may differ from version to version; every version must read it."""
    compressed = golden("sealed-zstd", lambda: seal(TEXT))
    assert compressed[0] == ZSTD
    assert open_sealed(compressed, block_id(TEXT)) == TEXT
    assert open_sealed(golden("sealed-plain", SAMPLES["sealed-plain"]), block_id(NOISE)) == NOISE


@pytest.mark.parametrize(
    ("name", "kind", "plains"),
    [("pack-content", CONTENT, [NOISE, NOISE[:7], b""]), ("pack-tree", TREE, TREE_NODES)],
)
def test_packs_are_read(name: str, kind: int, plains: list[bytes]) -> None:
    data = golden(name, SAMPLES[name])
    found, entries = read_list(data)
    assert (found, [entry.id for entry in entries]) == (kind, [block_id(plain) for plain in plains])
    for entry, plain in zip(entries, plains, strict=True):
        assert open_sealed(data[entry.offset : entry.offset + entry.length], BlockId(entry.id)) == plain
    assert pack_key(PackId(blake3(data).digest())).startswith("packs/")


def test_no_file_is_left_over() -> None:
    assert {path.stem for path in FOLDER.glob("*.bin")} == {*SAMPLES, "sealed-zstd"}
