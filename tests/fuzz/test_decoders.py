"""Every decoder that reads bytes from a remote, given bytes that nobody wrote: only our own errors come out.

The short form tries a few hundred inputs each; SYNCER_TEST_LONG=1 goes on for ten minutes, all decoders together.
Inputs are noise, sound objects with a few bytes changed, and bodies of msgpack whose checksums are right: what somebody
would send who means harm.
"""

import gc
import random
import resource
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
import pytest
import zstandard
from blake3 import blake3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from syncer.blocks.codec import HEADER, ZSTD, block_id, open_sealed, seal
from syncer.blocks.pack import FOOTER, MAGIC, PackBuilder, read_list
from syncer.errors import ObjectCorrupt
from syncer.snapshots.extenttree import build_extents, iter_extents
from syncer.snapshots.nodes import (
    VERSION,
    DirectoryBranch,
    Entry,
    Extent,
    ExtentBranch,
    NameChild,
    SpanChild,
    XattrNode,
    decode_node,
    encode_node,
    node_id,
)
from syncer.snapshots.records import (
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
from syncer.snapshots.tree import build_directory, build_root, iter_directory, load_root
from syncer.values import PLAIN_MAX_BYTES, BlockId, TreeId
from tests.support.long_form import long

LONG_S = 600.0
MEMORY_BYTES = 96 * 2**20
"""What a single input may make the process grow by at most: the limits of the format, and what decoding doubles."""
quick = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))

ID = bytes(range(32))
EXTENTS = tuple(Extent(4096 * i, 4096, ID, 0) for i in range(3))
ENTRY = Entry(b"name", 9, 0o100644, 0, 0, 1, 1, 1, 12_288, 0, None, ((b"user.a", b"v"),), EXTENTS, None)
NODES: dict[TreeId, bytes] = {}
DIRECTORY = build_directory([msgspec.structs.replace(ENTRY, name=b"%04d" % i) for i in range(600)], NODES.__setitem__)
FILE = build_extents([Extent(i * 10, 10, blake3(b"%d" % i).digest(), 0) for i in range(600)], NODES.__setitem__)
ROOT = build_root(msgspec.structs.replace(ENTRY, name=b"", tree=DIRECTORY, extents=()), NODES.__setitem__)


def _pack() -> bytes:
    builder = PackBuilder()
    for plain in (b"one" * 1000, b"two" * 100):
        builder.add(block_id(plain), seal(plain), len(plain))
    return bytes(builder.finish().data)


PEER = PeerRecord(1, 1, bytes(16), "host", 1, ((1, 2),), False)
INDEX = IndexRecord(1, 1, 1, (PackListing(ID, 100, 0, ((ID, 0, 50, 60),)),))
SNAPSHOT = SnapshotRecord(1, 1, 1, ID, ((1, 1),), 1, "host", 1, 1, 1, 1, 1, None, False, "auto")
PLAIN = b"plain bytes " * 500


DECODERS: dict[str, tuple[bytes, Callable[[bytes], object]]] = {
    "sealed block": (seal(PLAIN), lambda data: open_sealed(data, block_id(PLAIN))),
    "pack list": (_pack(), read_list),
    "format": (encode_format(Format(1, "0" * 32, 1)), decode_format),
    "peer": (encode(PEER), lambda data: decode(data, PeerRecord)),
    "index": (encode(INDEX), lambda data: decode(data, IndexRecord)),
    "snapshot": (encode(SNAPSHOT), lambda data: decode(data, SnapshotRecord)),
    "node": (NODES[DIRECTORY], decode_node),
}


def with_right_sums(kind: str, body: bytes) -> bytes:
    """*body* as an object of that kind whose magic and checksum are right."""
    match kind:
        case "peer" | "index" | "snapshot":
            return DECODERS[kind][0][:8] + blake3(body).digest() + body
        case "pack list":
            return body + FOOTER.pack(blake3(body).digest(), len(body), MAGIC)
        case "sealed block":
            return HEADER.pack(ZSTD, len(body)) + zstandard.compress(body)
        case _:
            return body


def refuses(kind: str, data: bytes) -> None:
    with suppress(ObjectCorrupt):
        DECODERS[kind][1](data)


def changed(sound: bytes, chance: random.Random) -> bytes:
    """A few bytes of *sound* flipped, cut out, doubled or put in."""
    data = bytearray(sound)
    for _ in range(chance.randint(1, 6)):
        at = chance.randrange(len(data) + 1)
        match chance.randrange(4):
            case 0 if at < len(data):
                data[at] = chance.randrange(256)
            case 1:
                del data[at : at + chance.randint(1, 9)]
            case 2:
                data[at:at] = data[at : at + chance.randint(1, 40)]
            case _:
                data[at:at] = chance.choice((b"\xdf\xff\xff\xff\xff", b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"))
    return bytes(data)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.binary(max_size=40) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=20,
)
TAGS = ["peer", "index", "snapshot", "dl", "db", "el", "eb", "xa", "ro"]


@pytest.mark.parametrize("kind", DECODERS)
@quick
@given(data=st.data())
def test_only_our_errors_come_out(kind: str, data: st.DataObject) -> None:
    match data.draw(st.integers(0, 2)):
        case 0:
            refuses(kind, data.draw(st.binary(max_size=300)))
        case 1:
            refuses(kind, changed(DECODERS[kind][0], data.draw(st.randoms(use_true_random=False))))
        case _:
            fields = [data.draw(st.sampled_from(TAGS)), 1, *data.draw(st.lists(VALUES, max_size=15))]
            refuses(kind, with_right_sums(kind, msgspec.msgpack.encode(fields)))


def trees_from(nodes: dict[TreeId, bytes], chance: random.Random) -> None:
    """Walk what a remote may hold under the ids of these trees: each node's bytes are any node's."""
    ids = list(nodes)

    def load(tree: TreeId) -> bytes:
        found = nodes.get(tree) or nodes[chance.choice(ids)]
        return found if chance.random() < 0.9 else changed(nodes[chance.choice(ids)], chance)

    for walk in (lambda: iter_directory(DIRECTORY, load), lambda: iter_extents(FILE, load)):
        with suppress(ObjectCorrupt):
            for count, _ in enumerate(walk()):
                assert count < 100_000
    with suppress(ObjectCorrupt):
        load_root(ROOT, load)


def test_trees_of_nodes_that_do_not_belong_together() -> None:
    for seed in range(150):
        trees_from(NODES, random.Random(seed))


@long
def test_for_ten_minutes() -> None:
    chance = random.Random(time.time_ns())
    end = time.monotonic() + LONG_S
    tried = 0
    while time.monotonic() < end:
        for kind, (sound, _) in DECODERS.items():
            refuses(kind, changed(sound, chance))
            refuses(kind, chance.randbytes(chance.randrange(200)))
            if kind in ("peer", "index", "snapshot"):
                refuses(kind, with_right_sums(kind, changed(sound[40:], chance)))
        trees_from(NODES, chance)
        tried += 1
    print(f"{tried} rounds")


# --- memory -----------------------------------------------------------------------------------------------------------


def _zeros_of(length: int, claimed: int) -> bytes:
    """A bomb: *length* zeros in a few bytes, in a sealed block that claims *claimed*."""
    return HEADER.pack(ZSTD, claimed) + zstandard.ZstdCompressor(level=3).compress(bytes(length))


def _window_bomb() -> bytes:
    """A frame that says nothing of its length and asks for a window of 2 GiB."""
    return HEADER.pack(ZSTD, 100) + struct.pack("<IBB", 0xFD2FB528, 0x00, 0xA8) + b"\x01\x00\x00"


HUGE = 2**32 - 1
BOMBS: dict[str, tuple[str, bytes]] = {
    "a block longer than it says": ("sealed block", _zeros_of(256 * 2**20, 100)),
    "a block longer than any": ("sealed block", _zeros_of(256 * 2**20, HUGE)),
    "a block of the most bytes": ("sealed block", _zeros_of(PLAIN_MAX_BYTES, PLAIN_MAX_BYTES)),
    "a window of 2 GiB": ("sealed block", _window_bomb()),
    **{
        f"{name} of {kind}": (kind, with_right_sums(kind, head + struct.pack(">I", HUGE)))
        for kind in ("peer", "index", "snapshot", "pack list", "node")
        for name, head in {"an array": b"\xdd", "a map": b"\xdf", "bytes": b"\xc6", "text": b"\xdb"}.items()
    },
    **{
        f"depth of {kind}": (kind, with_right_sums(kind, b"\x91" * 2**20))
        for kind in ("peer", "index", "snapshot", "pack list", "node")
    },
    "depth of format": ("format", b"[" * 60_000),
    "a number of format": ("format", b'{"version": 1' + b"0" * 60_000 + b"}"),
}


@contextmanager
def little_memory() -> Iterator[None]:
    """Whatever takes more than MEMORY_BYTES in a with block gets a MemoryError."""
    gc.collect()
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def test_what_takes_too_much_memory_is_seen() -> None:
    with little_memory(), pytest.raises(MemoryError):
        bytearray(2 * MEMORY_BYTES)


@pytest.mark.parametrize("bomb", BOMBS)
def test_memory_stays_within_the_limits(bomb: str) -> None:
    kind, data = BOMBS[bomb]
    with little_memory(), pytest.raises(ObjectCorrupt):
        DECODERS[kind][1](data)


def test_trees_that_refer_to_themselves() -> None:
    """An honest id cannot: it is the hash of what refers to it. A remote may give other bytes all the same."""
    child = NameChild(b"z", ID, 1)
    branch = encode_node(DirectoryBranch(VERSION, 64, (child,)))
    with pytest.raises(ObjectCorrupt):
        list(iter_directory(TreeId(ID), lambda tree: branch))
    span = encode_node(ExtentBranch(VERSION, 64, (SpanChild(10, ID, 1),)))
    with pytest.raises(ObjectCorrupt):
        list(iter_extents(TreeId(ID), lambda tree: span))


def test_attributes_without_an_end() -> None:
    nodes: dict[TreeId, bytes] = {}
    rest: TreeId | None = None
    for number in range(200):
        data = encode_node(XattrNode(VERSION, ((b"user.%09d" % number, bytes(2**20)),), rest))
        rest = node_id(data)
        nodes[rest] = data
    entry = msgspec.structs.replace(ENTRY, name=b"", xattrs=(), xattr_tree=rest)
    root = build_root(entry, nodes.__setitem__)
    with little_memory(), pytest.raises(ObjectCorrupt, match="attributes"):
        load_root(root, nodes.__getitem__)


def test_ids_are_checked_before_anything_is_decoded() -> None:
    with pytest.raises(ObjectCorrupt):
        open_sealed(seal(b"something else"), BlockId(ID))
