"""The whole consistency check of a DATA: tables against each other, against what is in memory, and against the disk.

Every function raises an AssertionError that names what does not fit.
"""

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from blake3 import blake3

from syncer.backends.memory import MemoryBackend
from syncer.blocks.check import check_files
from syncer.blocks.codec import open_sealed
from syncer.blocks.pack import pack_key
from syncer.meta.blocktable import CacheTotals, file_bytes
from syncer.meta.check import CheckReader
from syncer.meta.overlays import REGION_BYTES
from syncer.meta.store import MetaStore
from syncer.meta.tablecheck import table_findings
from syncer.values import PackId

if TYPE_CHECKING:
    from syncer.engine import Engine


def check_engine(engine: "Engine", data: Path, in_use: set[int]) -> None:
    """Of a running engine that seals nothing just now. *in_use*: orphans that are still open."""
    meta = engine.meta
    meta.commit()
    meta.database.sync()
    engine.store.delete_retired()
    meta.commit()
    check_tables(meta, in_use)
    _check_memory(meta)
    check_disk(meta, data)
    _check_accounting(engine, data)


def check_tables(meta: MetaStore, in_use: set[int]) -> None:
    """The product's rules, and that what it keeps in memory is the same."""
    found = table_findings(meta.database.connection)
    assert not found, found
    orphans = set(meta.inodes.orphans())
    erased = set(meta.extents.cuts)  # by and by
    assert orphans - erased == in_use - erased, f"orphans {orphans}, in use {in_use}"
    assert meta.extents.cuts == dict(_rows(meta, "SELECT inode, start FROM cuts"))
    for table in ("settling", "released"):
        assert not _rows(meta, f"SELECT * FROM {table}"), f"something is left in {table}"
    _check_totals(meta)
    held = {(number, dirty) for dirty, number, _, _ in _overlay_ranges(meta)}
    assert held == {(number, dirty) for number in meta.overlays.inodes() for dirty in meta.overlays.of(number)}


def _rows(meta: MetaStore, query: str, *arguments: object) -> list[tuple[Any, ...]]:
    return meta.database.connection.execute(query, arguments).fetchall()


def _check_totals(meta: MetaStore) -> None:
    saved = dict(_rows(meta, "SELECT key, value FROM state WHERE key IN ('files', 'directories', 'logical_bytes')"))
    totals = meta.inodes.totals
    named = {"files": totals.files, "directories": totals.directories, "logical_bytes": totals.logical_bytes}
    assert {**dict.fromkeys(named, 0), **saved} == named, (saved, totals)
    now = meta.blocks.totals
    assert now == _totals(meta), f"{now}, and the tables say {_totals(meta)}"


def _overlay_ranges(meta: MetaStore) -> list[tuple[int, int, int, int]]:
    """(overlay, inode, start, end) of all that overlays hold, from the table."""
    found = []
    for dirty, region, number, bounds in _rows(meta, "SELECT dirty, region, inode, bounds FROM overlays ORDER BY 1, 2"):
        base, offsets = region * REGION_BYTES, msgspec.msgpack.decode(bounds, type=list[int])
        found += [
            (dirty, number, base + low, base + high) for low, high in zip(offsets[::2], offsets[1::2], strict=True)
        ]
    return found


def _totals(meta: MetaStore) -> CacheTotals:
    totals = CacheTotals()
    for size, pack in _rows(meta, "SELECT size, pack FROM blocks WHERE cached = 1"):
        if pack:
            totals.clean_files += file_bytes(size)
        else:
            totals.pending_files += file_bytes(size)
    return totals


def _check_memory(meta: MetaStore) -> None:
    """What is kept of inodes in memory is what was committed."""
    for inode in list(meta.inodes._cache.values()):
        rows = _rows(meta, "SELECT * FROM inodes WHERE inode = ?", inode.number)
        assert rows == [inode.row()], f"in memory {inode.row()}, committed {rows}"
        if inode.content is not None:
            data = _rows(meta, "SELECT data FROM contents WHERE inode = ?", inode.number)
            assert data == [(bytes(inode.content),)], f"inode {inode.number}: another content in memory"


def check_disk(meta: MetaStore, data: Path, *, power_went: bool = False) -> None:
    """Files below cache/ and dirty/ are those that the tables speak of, with the bytes they should have.

    After a power cut what the remote has too may be bad or gone: whoever reads it fetches it again.
    """
    files = {path.name: path for path in (data / "cache").glob("??/*")}
    rows = _rows(
        meta, "SELECT id, size, cached, number FROM blocks WHERE cached > 0 AND (pack IS NULL OR ?)", not power_went
    )
    named = {row[0].hex() for row in rows if row[2] == 1}
    assert named <= set(files) if power_went else named == set(files), "cache files and table differ"
    for block_id, size, cached, number in rows:
        held = files[block_id.hex()].read_bytes() if cached == 1 else meta.blocks.data(number)
        assert held is not None and len(held) == size and blake3(held).digest() == block_id, f"block {number}"
    dirty = {int(path.name): path.stat().st_size for path in (data / "dirty").iterdir()}
    assert set(dirty) == meta.extents.dirty_in_use(), f"dirty files {set(dirty)}, in use {meta.extents.dirty_in_use()}"
    ends = _rows(meta, "SELECT -source, max(source_offset + length) FROM extents WHERE source < 0 GROUP BY source")
    for source, end in [*ends, *((overlay, end) for overlay, _, _, end in _overlay_ranges(meta))]:
        assert dirty[source] >= end, f"dirty file {source} has {dirty[source]} of {end} bytes"
    for tail, length in _rows(meta, "SELECT tail, size - tail_start FROM inodes WHERE tail > 0"):
        assert dirty[tail] >= length, f"dirty file {tail} has {dirty[tail]} of {length} bytes of a tail"


def _check_accounting(engine: "Engine", data: Path) -> None:
    """The budget counts what is on the disk."""
    on_disk = sum(path.stat().st_blocks * 512 for path in (data / "dirty").iterdir())
    assert engine.store.dirty.total_bytes == on_disk, (engine.store.dirty.total_bytes, on_disk)
    journal = engine.meta.database.journal
    assert journal is not None
    written = sum(path.stat().st_size for path in (data / "journal").iterdir())
    assert journal.total_bytes == written, (journal.total_bytes, written)


def check_stopped(data: Path, *, power_went: bool = False) -> None:
    """Of a DATA that was closed in good order: nothing temporary is left, and it opens without a replay."""
    assert not os.listdir(data / "cache" / "incoming"), "a download was left"
    with contextlib.closing(CheckReader(data / "meta.db", mounted=False)) as reader:
        found = reader.integrity() + reader.tables() + check_files(reader, data, leftovers=False)
        if power_went:  # what the remote has too is fetched again by whoever reads it
            found = [finding for finding in found if finding.lost or not finding.code.startswith("cache-")]
        assert not found, reader.with_paths(found)
    meta = MetaStore(data)
    try:
        assert not meta.replayed, "a clean end left something to replay"
        check_tables(meta, set(meta.inodes.orphans()))
        check_disk(meta, data, power_went=power_went)
    finally:
        meta.close()


def check_sealed(meta: MetaStore) -> None:
    """Nothing is dirty: every byte is in a block."""
    meta.commit()
    assert not meta.inodes.unsealed() and not meta.extents.dirty_inodes(), "something is not sealed"
    assert not meta.extents.dirty_in_use()


def check_remote(meta: MetaStore, backend: MemoryBackend) -> None:
    """What counts as stored is on the remote, and is what it should be."""
    rows = meta.database.connection.execute(
        "SELECT b.id, b.size, p.id, b.pack_offset, b.sealed_bytes FROM blocks b JOIN packs p ON p.number = b.pack"
    )
    for block_id, size, pack_id, offset, length in rows.fetchall():
        sealed = backend.objects[pack_key(PackId(pack_id))][offset : offset + length]
        assert len(open_sealed(sealed, block_id)) == size
