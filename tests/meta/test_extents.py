"""Overlays: what they hold over the extents and over each other, and when nobody needs them any more."""

import random
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from syncer.meta.extent import Extent
from syncer.meta.store import MetaStore
from syncer.values import ROOT_INODE, BlockId, PeerId
from tests.support.core_check import check_tables
from tests.support.core_data import make_data

FILE = 1 << 40 | 7


@pytest.fixture
def meta(tmp_path: Path) -> Iterator[MetaStore]:
    meta = MetaStore(make_data(tmp_path / "data"))
    meta.become(PeerId(1))
    meta.ensure_root(0, 0)
    meta.names.create(ROOT_INODE, b"file", FILE, stat.S_IFREG | 0o644, 0, 0, 0, None, 1)
    yield meta
    meta.close()


@pytest.mark.parametrize("gone", ["truncated", "erased", "sealed"])
def test_an_overlay_without_a_byte_is_dropped(meta: MetaStore, gone: str) -> None:
    overlay, piece = meta.extents.new_dirty(), meta.extents.new_dirty()
    meta.extents.write_overlay(FILE, 100_000, 2_000_000, overlay, 1)
    meta.extents.write_overlay(FILE, 5_000_000, 1, overlay, 1)
    meta.extents.retire_overlay(FILE)
    if gone == "truncated":
        meta.extents.truncate(FILE, 0, 2)
    elif gone == "erased":
        meta.names.unlink(ROOT_INODE, b"file", 2)
        meta.extents.erase(FILE)
    else:
        meta.extents.seal(FILE, 100_000, 5_000_001, overlay, [(100_000, 99_000, BlockId(bytes(32)), piece)], 1)
    meta.commit()
    assert meta.extents.dropped == [overlay]
    assert not meta.overlays.of(FILE) and not meta.overlays.has(overlay)
    if gone == "sealed":
        assert [(found.start, found.end) for found in meta.extents.find(FILE, 0, 1 << 40)] == [(100_000, 199_000)]
    meta.blocks.execute("DELETE FROM settling")
    check_tables(meta, set())


def test_a_newer_overlay_stays_when_what_is_below_it_is_sealed(meta: MetaStore) -> None:
    older, newer, piece = (meta.extents.new_dirty() for _ in range(3))
    meta.extents.write_overlay(FILE, 0, 300_000, older, 1)
    meta.extents.retire_overlay(FILE)
    meta.extents.write_overlay(FILE, 1000, 500, newer, 2)
    frozen = meta.extents.view(FILE, 0, 300_000, frozen=True)
    assert frozen == [Extent(0, 300_000, -older, 0)]
    meta.extents.seal(FILE, 0, 300_000, older, [(0, 300_000, BlockId(bytes(32)), piece)], 3)
    block = meta.blocks.find(BlockId(bytes(32)))
    assert block is not None
    assert meta.extents.view(FILE, 0, 2000) == [
        Extent(0, 1000, block.number, 0),
        Extent(1000, 500, -newer, 1000),
        Extent(1500, 500, block.number, 1500),
    ]
    assert meta.extents.next_frozen(FILE, 0) is None
    meta.extents.retire_overlay(FILE)
    assert meta.extents.next_frozen(FILE, 1200) == 1200


@pytest.mark.parametrize("seed", range(10))
def test_overlays_over_each_other_against_bytes(meta: MetaStore, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Each byte says which dirty file has it; ranges of the file are written, frozen and cut off at random."""
    for module in ("syncer.meta.overlays", "syncer.meta.extents", "syncer.meta.tablecheck", "tests.support.core_check"):
        monkeypatch.setattr(f"{module}.REGION_BYTES", 64)
    chance = random.Random(seed)
    size = 4 * 64
    model = [0] * size
    end = 0
    for _ in range(300):
        inode = meta.inodes.need(FILE)
        match chance.randrange(8):
            case 0:
                meta.extents.retire_overlay(FILE)
            case 1:
                meta.extents.truncate(FILE, cut := chance.randrange(size), 1)
                model[cut:] = [0] * (size - cut)
            case 2:
                meta.commit()
            case 3:
                meta.overlays.flush()
                for overlay in meta.overlays._overlays.values():
                    overlay.regions.clear()
            case _:
                start = chance.randrange(size)
                length = min(chance.choice((1, 4, 30, 150)), size - start)
                dirty = inode.overlay or meta.extents.new_dirty()
                meta.extents.write_overlay(FILE, start, length, dirty, 1)
                model[start : start + length] = [dirty] * length
        low = chance.randrange(size)
        end = min(size, low + chance.choice((1, 20, size)))
        seen = [0] * size
        for extent in meta.extents.view(FILE, low, end):
            assert low <= extent.start and extent.end <= end and extent.source_offset == extent.start
            assert not any(seen[extent.start : extent.end])
            seen[extent.start : extent.end] = [-extent.source] * extent.length
        assert seen[low:end] == model[low:end]
        covering = meta.extents.find(FILE, low, end)
        clipped = [extent.part(max(extent.start, low), min(extent.end, end)) for extent in covering]
        assert clipped == meta.extents.view(FILE, low, end)
        assert all(extent.length > 0 for extent in clipped)
        first = meta.extents.next_frozen(FILE, low)
        newest = meta.inodes.need(FILE).overlay
        frozen = [extent.start for extent in meta.extents.view(FILE, low, size, frozen=True)]
        assert first == (frozen[0] if frozen else None)
        assert all(extent.source != -newest for extent in meta.extents.view(FILE, 0, size, frozen=True))
    meta.commit()
    meta.extents.dropped.clear()
    check_tables(meta, set())
