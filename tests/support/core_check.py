"""The whole consistency check of a DATA: tables against each other, against what is in memory, and against the disk.

Every function raises an AssertionError that names what does not fit.
"""

import itertools
import os
import stat
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from blake3 import blake3

from syncer.backends.memory import MemoryBackend
from syncer.blocks.codec import open_sealed
from syncer.blocks.pack import pack_key
from syncer.meta.blocktable import CacheTotals, file_bytes
from syncer.meta.overlays import REGION_BYTES
from syncer.meta.store import MetaStore
from syncer.values import ROOT_INODE, PackId

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
    _check_names(meta, in_use)
    _check_forms(meta)
    _check_extents(meta)
    _check_overlays(meta)
    _check_blocks(meta)


def _rows(meta: MetaStore, query: str, *arguments: object) -> list[tuple[Any, ...]]:
    return meta.database.connection.execute(query, arguments).fetchall()


def _check_names(meta: MetaStore, in_use: set[int]) -> None:
    modes = dict(_rows(meta, "SELECT inode, mode FROM inodes"))
    links = dict(_rows(meta, "SELECT inode, nlink FROM inodes"))
    orphans = {number for number, nlink in links.items() if not nlink}
    erased = set(meta.extents.cuts)  # by and by
    assert orphans - erased == in_use - erased, f"orphans {orphans}, in use {in_use}"
    names: Counter[int] = Counter()
    subdirectories: Counter[int] = Counter()
    for parent, number in _rows(meta, "SELECT parent, inode FROM dentries"):
        assert number in modes, f"a name of inode {number}, which does not exist"
        assert stat.S_ISDIR(modes[parent]) and links[parent], f"inode {parent} has entries"
        names[number] += 1
        subdirectories[parent] += stat.S_ISDIR(modes[number])
    for number, mode in modes.items():
        if stat.S_ISDIR(mode):
            assert names[number] == bool(links[number] and number != ROOT_INODE), f"directory {number}"
            expected = 2 + subdirectories[number] if links[number] else 0
        else:
            expected = names[number]
        assert links[number] == expected, f"inode {number} has {links[number]} links, not {expected}"
    live = _rows(meta, "SELECT mode, size FROM inodes WHERE nlink > 0")
    others = [size for mode, size in live if not stat.S_ISDIR(mode)]
    totals = meta.inodes.totals
    assert (totals.files, totals.directories, totals.logical_bytes) == (
        *(len(others), len(live) - len(others), sum(others)),
    ), totals
    for table in ("xattrs", "symlinks", "contents", "extents"):
        assert {row[0] for row in _rows(meta, f"SELECT inode FROM {table}")} <= set(modes), f"{table} of no inode"


def _check_forms(meta: MetaStore) -> None:
    """Each file is in one of its two forms, and of the size that its parts say."""
    contents = dict(_rows(meta, "SELECT inode, length(data) FROM contents"))
    columns = "inode, mode, size, tail, tail_start, overlay, content"
    for number, mode, size, tail, tail_start, overlay, content in _rows(meta, f"SELECT {columns} FROM inodes"):
        assert bool(content) == (number in contents), f"inode {number}: content {content}"
        if content or not stat.S_ISREG(mode):
            assert not (tail or overlay), f"inode {number} has a tail or an overlay"
            assert not meta.extents.find(number, 0, 1 << 62), f"inode {number} has extents or an overlay"
        if content:
            assert contents[number] == size, f"inode {number}: {contents[number]} bytes, size {size}"
        if tail:
            assert 0 <= tail_start <= size, f"inode {number}: tail from {tail_start}, size {size}"


def _check_extents(meta: MetaStore) -> None:
    sizes = {row[0]: row[1:] for row in _rows(meta, "SELECT inode, size, tail, tail_start FROM inodes")}
    blocks = dict(_rows(meta, "SELECT number, size FROM blocks"))
    assert meta.extents.cuts == dict(_rows(meta, "SELECT inode, start FROM cuts"))
    assert all(sizes[number][0] <= start for number, start in meta.extents.cuts.items()), meta.extents.cuts
    position, last = 0, 0
    for number, start, length, source, offset in _rows(
        meta, "SELECT inode, start, length, source, source_offset FROM extents ORDER BY inode, start"
    ):
        what = f"inode {number}: extent {start}+{length} from {source}+{offset}"
        if start >= meta.extents.cuts.get(number, start + 1):
            assert source > 0, f"{what} is cut off, and dirty"
            continue
        size, tail, tail_start = sizes[number]
        assert length > 0 and offset >= 0 and source, what
        assert last != number or start >= position, f"{what} overlaps"
        assert start + length <= (tail_start if tail else size), f"{what}, size {size}, tail {tail} at {tail_start}"
        if source > 0:
            assert offset + length <= blocks[source], f"{what}, the block has {blocks[source]} bytes"
        position, last = start + length, number


def _overlay_ranges(meta: MetaStore) -> list[tuple[int, int, int, int]]:
    """(overlay, inode, start, end) of all that overlays hold, from the table."""
    found = []
    for dirty, region, number, bounds in _rows(meta, "SELECT dirty, region, inode, bounds FROM overlays ORDER BY 1, 2"):
        base, offsets = region * REGION_BYTES, msgspec.msgpack.decode(bounds, type=list[int])
        assert offsets and not len(offsets) % 2, f"overlay {dirty}: region {region} has {offsets}"
        assert all(low < high for low, high in itertools.pairwise(offsets)), f"overlay {dirty}: {offsets}"
        assert offsets[0] >= 0 and offsets[-1] <= REGION_BYTES, f"overlay {dirty}: {offsets}"
        found += [
            (dirty, number, base + low, base + high) for low, high in zip(offsets[::2], offsets[1::2], strict=True)
        ]
    return found


def _check_overlays(meta: MetaStore) -> None:
    files = {row[0]: row[1:] for row in _rows(meta, "SELECT inode, size, tail, tail_start, overlay FROM inodes")}
    held = set()
    for dirty, number, start, end in _overlay_ranges(meta):
        size, tail, tail_start, newest = files[number]
        what = f"inode {number}: overlay {dirty} has [{start}, {end})"
        assert end <= (tail_start if tail else size), f"{what}, size {size}, tail {tail} at {tail_start}"
        assert not newest or dirty <= newest, f"{what}, but {newest} takes writes"
        held.add((number, dirty))
    assert held == {(number, dirty) for number in meta.overlays.inodes() for dirty in meta.overlays.of(number)}


def _check_blocks(meta: MetaStore) -> None:
    used = Counter(dict(_rows(meta, "SELECT source, count(*) FROM extents WHERE source > 0 GROUP BY source")))
    assert set(used) <= {row[0] for row in _rows(meta, "SELECT number FROM blocks")}
    for number, refs, pack in _rows(meta, "SELECT number, refs, pack FROM blocks"):
        assert refs == used[number], f"block {number} has {refs} refs, not {used[number]}"
        assert refs or pack, f"block {number} is needed by nothing, and not on the remote: it stays for ever"
    for table in ("settling", "released"):
        assert not _rows(meta, f"SELECT * FROM {table}"), f"something is left in {table}"
    stored = _rows(meta, "SELECT count(*) FROM block_data x LEFT JOIN blocks b USING (number) WHERE b.cached IS NOT 2")
    assert stored == [(0,)], "rows of blocks that do not count as cached"
    sums = _rows(
        meta, "SELECT ifnull(sum(size), 0) FROM blocks WHERE refs > 0 UNION ALL SELECT ifnull(sum(size), 0) FROM packs"
    )
    assert meta.blocks.content_totals() == (sums[0][0], sums[1][0])
    now = meta.blocks.totals
    assert now == _totals(meta), f"{now}, and the tables say {_totals(meta)}"


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
