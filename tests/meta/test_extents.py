"""Sealing what was written over meanwhile, and whatever else leaves a block or a dirty file without anybody."""

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from blake3 import blake3

from syncer.meta.extents import Piece
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


def block_id(data: bytes) -> BlockId:
    return BlockId(blake3(data).digest())


@pytest.mark.parametrize("gone", ["truncated", "erased", "written over"])
def test_a_block_sealed_from_bytes_that_are_gone_is_not_kept(meta: MetaStore, gone: str) -> None:
    """Sealing reads in a thread, and the file goes on changing meanwhile."""
    overlay, piece = meta.extents.new_dirty(), meta.extents.new_dirty()
    meta.extents.write_overlay(FILE, 0, 100_000, overlay, 1)
    meta.extents.retire_overlay(FILE)
    if gone == "truncated":
        meta.extents.truncate(FILE, 0, 2)
    elif gone == "erased":
        meta.names.unlink(ROOT_INODE, b"file", 2)
        meta.extents.erase(FILE)
    else:
        meta.extents.write_overlay(FILE, 0, 100_000, meta.extents.new_dirty(), 2)
    pieces: list[Piece] = [
        (0, 99_000, block_id(b"large"), piece),
        (99_000, 5, block_id(b"small"), b"small"),
    ]
    meta.extents.seal(FILE, overlay, 0, 100_000, pieces, 1)
    meta.commit()
    assert {overlay, piece} <= set(meta.extents.dropped)
    assert meta.blocks.find(block_id(b"large")) is None and meta.blocks.find(block_id(b"small")) is None
    check_tables(meta, set())
