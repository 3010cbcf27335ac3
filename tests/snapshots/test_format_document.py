"""docs/format.md says what the code does, as far as that can be compared."""

import re
from pathlib import Path

import msgspec
import pytest

from syncer.blocks.pack import FOOTER, LIST_MAX_BYTES, MAGIC, PACK_BLOCKS
from syncer.snapshots import records
from syncer.snapshots.levels import SHAPE
from syncer.snapshots.nodes import (
    EXTENTS_INLINE,
    ITEMS_MAX,
    NODE_MAX_BYTES,
    XATTRS_A_NODE_BYTES,
    XATTRS_INLINE_BYTES,
    Entry,
    Extent,
    Node,
)
from syncer.values import BLOCK_MAX_BYTES, BLOCK_MEAN_BYTES, BLOCK_MIN_BYTES, PACK_BYTES, PLAIN_MAX_BYTES

TEXT = (Path(__file__).parents[2] / "docs" / "format.md").read_text()
KIB, MIB = 1024, 1024 * 1024


def section(title: str) -> str:
    found = re.search(rf"^(#+) {re.escape(title)}\n(.*?)(?=^#+ |\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert found, f"no section {title}"
    return found[2]


@pytest.mark.parametrize(
    ("title", "struct"),
    [
        ("Peer", records.PeerRecord),
        ("Index", records.IndexRecord),
        ("Pack listing", records.PackListing),
        ("Snapshot", records.SnapshotRecord),
        ("Follower", records.FollowerRecord),
        ("Entry", Entry),
        ("Extent", Extent),
    ],
)
def test_every_field_stands_in_its_place(title: str, struct: type[msgspec.Struct]) -> None:
    assert re.findall(r"^\| `(\w+)` \|", section(title), re.MULTILINE) == list(struct.__struct_fields__)


@pytest.mark.parametrize(
    ("title", "struct"),
    [
        ("Peer", records.PeerRecord),
        ("Index", records.IndexRecord),
        ("Snapshot", records.SnapshotRecord),
        ("Follower", records.FollowerRecord),
    ],
)
def test_magics_and_tags(title: str, struct: type[msgspec.Struct]) -> None:
    magic = records._MAGIC[struct].decode()
    assert f"Magic `{magic}`, tag `{struct.__struct_config__.tag}`." in section(title)


def test_every_kind_of_node_is_there() -> None:
    kinds = {kind.__struct_config__.tag for kind in Node.__args__}
    assert set(re.findall(r"^\| `(\w\w)` \|", section("Trees"), re.MULTILINE)) == kinds


def test_figures() -> None:
    assert PLAIN_MAX_BYTES == NODE_MAX_BYTES == PACK_BYTES == 8 * MIB
    assert (BLOCK_MIN_BYTES, BLOCK_MEAN_BYTES, BLOCK_MAX_BYTES) == (256 * KIB, MIB, 4 * MIB)
    assert "256 KiB at least, 1 MiB on average, 4 MiB at most" in section("Sealed block")
    assert (PACK_BLOCKS, LIST_MAX_BYTES, FOOTER.size) == (16_384, 4 * MIB, 44)
    assert "16,384 of them" in section("Pack") and "the last 44 bytes" in section("Pack")
    assert MAGIC.decode() in section("Pack")
    assert (ITEMS_MAX, SHAPE.items_max, SHAPE.bits) == (1024, 1024, 8)
    assert (EXTENTS_INLINE, XATTRS_INLINE_BYTES, XATTRS_A_NODE_BYTES) == (16, 1024, MIB)
    assert records.OBJECT_MAX_BYTES == 16 * MIB and "at most 16 MiB" in section("Records")
