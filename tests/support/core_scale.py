"""The sizes that the file system goes by, as they are or small enough to meet every border within a few KiB."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

from syncer import values

_SMALL_SIZES = {
    "SMALL_BYTES": 512,
    "BLOCK_MIN_BYTES": 1024,
    "BLOCK_MEAN_BYTES": 2048,
    "BLOCK_MAX_BYTES": 4096,
    "ZERO_RUN_BYTES": 512,
    "PACK_BYTES": 16 * 1024,
    "BATCH_BYTES": 8 * 1024,
    "MARGIN_BYTES": 2048,
    "FRAGMENTS_PER_MIB": 3,
    "RANGE_BYTES": 8 * 1024,
    "LEAST_BYTES": 2 * 1024,
    "GAP_BYTES": 256,
    "NEIGHBOUR_BYTES": 4 * 1024,
    "READ_AHEAD_START_BYTES": 2048,
    "CACHED_INODES": 4,
    "UNCOMMITTED_OPERATIONS": 10,
    "SEGMENT_BYTES": 8 * 1024,
    "KEPT_TAILS": 2,
    "OPEN_FILES": 3,
    "REMOVED_AT_ONCE": 2,
}


@dataclass(frozen=True, slots=True)
class Scale:
    """Sizes around which something changes, and the farthest that a test writes."""

    borders: tuple[int, ...]
    end_bytes: int
    read_ahead_bytes: int


def real_scale() -> Scale:
    borders = (
        *(0, 4096, values.SMALL_BYTES, values.ZERO_RUN_BYTES, values.BLOCK_MIN_BYTES),
        *(values.BLOCK_MEAN_BYTES, values.BLOCK_MAX_BYTES, 128 * 1024),
    )
    return Scale(borders, 9 * 1024 * 1024, 16 * 1024 * 1024)


@contextmanager
def small_scale() -> Iterator[Scale]:
    """Every size of `_SMALL_SIZES` in whichever module of syncer has it by that name."""
    sizes: dict[str, Any] = {name: size for name, size in _SMALL_SIZES.items() if hasattr(values, name)}
    with mock.patch.multiple("syncer.values", **sizes):
        patches = [
            mock.patch.object(module, name, value)
            for key, module in list(sys.modules.items())
            if key.startswith("syncer.") and key != "syncer.values"
            for name, value in _SMALL_SIZES.items()
            if hasattr(module, name)
        ]
        for patch in patches:
            patch.start()
        try:
            yield Scale((0, 16, 256, 512, 1024, 2048, 4096, 8192), 40_000, 16 * 1024)
        finally:
            for patch in patches:
                patch.stop()
