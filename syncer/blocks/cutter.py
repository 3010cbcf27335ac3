"""Where file content is cut into blocks: the native cutter with the sizes of this file system.

The sizes and the cut rule are part of what makes two peers cut the same bytes into the same blocks. Changing one of
them loses no data; it makes what is saved again be stored again.
"""

from syncer.native import CUT, DATA, HOLE, Cutter
from syncer.values import BLOCK_MAX_BYTES, BLOCK_MEAN_BYTES, BLOCK_MIN_BYTES, ZERO_RUN_BYTES

__all__ = ["CUT", "DATA", "HOLE", "Cutter", "new_cutter"]


def new_cutter() -> Cutter:
    """A cutter at the start of a block."""
    return Cutter(BLOCK_MIN_BYTES, BLOCK_MEAN_BYTES, BLOCK_MAX_BYTES, ZERO_RUN_BYTES)
