"""Types of the C extension; `_scan.c` holds the algorithm and its sources."""

from typing import Final, final

from typing_extensions import Buffer

CUT: Final = 0
"""The block ends before the offset; the next one starts there."""
HOLE: Final = 1
"""Zeros began at the offset, perhaps in an earlier feed: the block ends there, if it has begun, and a hole starts."""
DATA: Final = 2
"""The hole ends before the offset; a block starts there."""

@final
class Cutter:
    """Finds where the blocks of one stream of bytes end and where holes lie.

    What is found depends on the bytes since the current block began alone, not on how they are split over calls. A
    block is *min_bytes* to *max_bytes* long (shorter before a hole and at the end of the stream) and about
    *mean_bytes* on average; *zero_bytes* zeros in a row inside a block start a hole.

    Fed by one thread at a time. Other threads run meanwhile; one that uses this object then gets a RuntimeError.
    """

    def __init__(self, min_bytes: int, mean_bytes: int, max_bytes: int, zero_bytes: int) -> None:
        """Raises: ValueError unless 64 <= min_bytes <= mean_bytes <= max_bytes <= 2**31, mean_bytes is a power of
        two, and 1 <= zero_bytes <= max_bytes.
        """

    def feed(self, data: Buffer, /) -> list[tuple[int, int]]:
        """Go over *data* and return its events in order: (offset relative to the start of *data*, kind).

        The offset of a HOLE is negative when its zeros began in an earlier call. A call that raises changes nothing.

        Raises: TypeError or BufferError for what is not a contiguous buffer; RuntimeError while another thread feeds.
        """

    def reset(self) -> None:
        """A new block starts with the next byte fed. Raises: RuntimeError while another thread feeds."""

    @property
    def position(self) -> int:
        """Bytes fed since the current block, or hole, started. Raises: RuntimeError while another thread feeds."""
