"""What a power cut has taken of files: bytes that were recorded, never fsynced, and did not reach the disk.

Looked for at the first start after the machine's, in what the remote lacks. What is lost reads as if it had never been
written: a file is shorter, or has what was below, or a hole; as on any local file system. Each is a line in the log.
"""

import contextlib
import itertools
import logging
import os
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence

from blake3 import blake3

from syncer.blocks.cache import BlockCache
from syncer.blocks.dirty import DirtyFiles
from syncer.disk import data_ranges
from syncer.errors import LocalDamage
from syncer.meta.blocktable import Block
from syncer.meta.store import MetaStore
from syncer.values import FILE_END_MAX

log = logging.getLogger(__name__)

Range = tuple[int, int]
"""(first byte, one after the last)."""


def mend_losses(meta: MetaStore, dirty: DirtyFiles, cache: BlockCache) -> None:
    """Take what is lost out of the files that name it. May be done again. What became a block is in the cache."""
    _move_back(meta, dirty, cache)
    for number in meta.inodes.unsealed():
        inode = meta.inodes.need(number)
        if inode.tail and _missing(dirty, inode.tail, [(0, inode.size - inode.tail_start)]):
            meta.extents.finish_tail(number)  # an extent like others now
    lost: dict[int, list[Range]] = defaultdict(list)
    for number, extent in meta.extents.of_sources(_lost_blocks(meta, cache)):
        lost[number].append((extent.start, extent.end))
    for number, extent in meta.extents.dirty_rows():
        shift = extent.start - extent.source_offset
        held = (extent.source_offset, extent.source_offset + extent.length)
        lost[number] += [(low + shift, high + shift) for low, high in _missing(dirty, -extent.source, [held])]
    for number in meta.overlays.inodes():
        _mend_overlays(meta, dirty, number)
    for number, ranges in lost.items():
        _take_out(meta, number, ranges)
    meta.commit()


def _move_back(meta: MetaStore, dirty: DirtyFiles, cache: BlockCache) -> None:
    """Blocks that are in the cache, as it was recorded, and in truth are dirty files still: file systems that keep no
    order among names may forget that one has moved, and not that this was recorded.
    """
    missing = [block for block in meta.blocks.pending_files() if not cache.path(block.id).exists()]
    unused = dirty.unused(meta.extents.dirty_in_use()) if missing else []
    for block, number in itertools.product(missing, unused):
        if _begins_with(dirty, number, block):
            descriptor = dirty.release(number, block.size)
            try:
                cache.adopt(block.id, dirty.path(number))
                os.fsync(descriptor)  # it may have become shorter
            finally:
                os.close(descriptor)


def _begins_with(dirty: DirtyFiles, number: int, block: Block) -> bool:
    with contextlib.suppress(OSError, LocalDamage):
        return blake3(dirty.read(number, 0, block.size)).digest() == block.id
    return False


def _missing(dirty: DirtyFiles, number: int, ranges: Sequence[Range]) -> list[Range]:
    return _without(ranges, data_ranges(dirty.path(number)))


def _lost_blocks(meta: MetaStore, cache: BlockCache) -> set[int]:
    """Numbers of the blocks of which neither the remote nor the cache has all bytes."""
    return {
        block.number
        for block in meta.blocks.pending_files()
        if _without([(0, block.size)], data_ranges(cache.path(block.id)))
    }


def _mend_overlays(meta: MetaStore, dirty: DirtyFiles, number: int) -> None:
    for overlay in list(meta.overlays.of(number)):
        lost = _missing(dirty, overlay, meta.overlays.ranges(overlay, 0, FILE_END_MAX))
        for low, high in lost:
            _tell(number, low, high)
            meta.extents.lose_overlay(number, overlay, low, high)
        if lost:
            meta.extents.retire_overlay(number)


def _take_out(meta: MetaStore, number: int, ranges: Iterable[Range]) -> None:
    for low, high in sorted(ranges, reverse=True):
        _tell(number, low, high)
        if high >= meta.inodes.need(number).size:
            meta.extents.truncate(number, low, time.time_ns())
        else:
            meta.extents.lose(number, low, high)


def _tell(number: int, low: int, high: int) -> None:
    log.warning("inode %d: %d bytes from %d on did not reach the disk before the power went", number, high - low, low)


def _without(ranges: Sequence[Range], present: Sequence[Range]) -> list[Range]:
    """What of *ranges* is not in *present*; both are in order and without overlaps."""
    left: list[Range] = []
    for low, high in ranges:
        for begin, end in present:
            if begin >= high:
                break
            if end > low:
                if begin > low:
                    left.append((low, begin))
                low = end
        if low < high:
            left.append((low, high))
    return left
