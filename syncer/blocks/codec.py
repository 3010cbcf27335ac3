"""Sealed blocks: a small header, then the block's bytes, compressed where that helps. docs/format.md, "Sealed block".

    sealed = kind (u8), plain length (u32, little endian), body
    kind   = 0 plain body, 1 zstd body; the other values and bits are kept for compressions and encryption to come

Pure functions, safe in any thread. BLAKE3 and zstd release the GIL and read buffers in place.
"""

import struct
import threading

import zstandard
from blake3 import blake3

from syncer.errors import ObjectCorrupt
from syncer.values import PLAIN_MAX_BYTES, BlockId

PLAIN, ZSTD = 0, 1
HEADER = struct.Struct("<BI")
SEALED_MAX_BYTES = HEADER.size + PLAIN_MAX_BYTES
"""A sealed block is at most its header longer than its plain bytes."""
_GAIN = 64
"""Compression that saves less than one part in this many is not worth undoing at every read."""
_TRIAL_LEVEL, _CHEAP_LEVEL = 1, 3
"""Up to the cheap level zstd passes over incompressible bytes at 4 GB/s, so the whole block is its own trial. Above
it (1 GB/s at level 9, 8 MB/s at level 19) the trial level decides first whether the block compresses at all."""

_local = threading.local()


def block_id(plain: bytes | bytearray | memoryview) -> BlockId:
    """The id of a block: BLAKE3-256 of its bytes."""
    return BlockId(blake3(plain).digest())


def seal(plain: bytes | bytearray | memoryview, level: int = 1) -> bytes:
    """The sealed form of a block. What zstd does not shrink is stored as it is.

    *plain* is contiguous bytes; *level* is zstd's.

    Raises:
        ValueError: the block is too long.
    """
    if len(plain) > PLAIN_MAX_BYTES:
        raise ValueError(f"{len(plain)} bytes are too long for a block")
    if level <= _CHEAP_LEVEL or _compress(plain, _TRIAL_LEVEL) is not None:
        body = _compress(plain, level)
        if body is not None:
            return b"".join((HEADER.pack(ZSTD, len(plain)), body))
    return b"".join((HEADER.pack(PLAIN, len(plain)), plain))


def _compress(plain: bytes | bytearray | memoryview, level: int) -> bytes | None:
    """A zstd frame that is worth having, or None."""
    body = _compressor(level).compress(plain)
    return body if len(body) < len(plain) - len(plain) // _GAIN else None


def _compressor(level: int) -> zstandard.ZstdCompressor:
    """One a thread and level: they must not be shared, and making one costs more than compressing a small block."""
    known: dict[int, zstandard.ZstdCompressor] = _local.__dict__.setdefault("compressors", {})
    if level not in known:
        known[level] = zstandard.ZstdCompressor(level=level, write_content_size=True, write_checksum=False)
    return known[level]


def _decompressor() -> zstandard.ZstdDecompressor:
    known: zstandard.ZstdDecompressor | None = _local.__dict__.get("decompressor")
    if known is None:
        known = _local.decompressor = zstandard.ZstdDecompressor(max_window_size=PLAIN_MAX_BYTES)
    return known


def open_sealed(sealed: bytes | bytearray | memoryview, expected: bytes) -> bytes | memoryview:
    """The plain bytes of a sealed block, which are those that the id *expected* names; in place where they lie there.

    Nothing is allocated before the lengths have been found possible, so a crafted object costs 8 MiB at most.

    Raises:
        ObjectCorrupt: they are not, or it cannot be decoded.
    """
    if len(sealed) < HEADER.size:
        raise ObjectCorrupt("a sealed block is cut short")
    kind, length = HEADER.unpack_from(sealed)
    body = memoryview(sealed)[HEADER.size :]
    if length > PLAIN_MAX_BYTES:
        raise ObjectCorrupt("a sealed block claims an impossible length")
    if kind == PLAIN:
        if len(body) != length:
            raise ObjectCorrupt("a sealed block is not as long as its header says")
        plain: bytes | memoryview = body
    elif kind == ZSTD:
        plain = _decompress(body, length)
    else:
        raise ObjectCorrupt(f"a sealed block is of a kind unknown here ({kind})")
    if blake3(plain).digest() != expected:
        raise ObjectCorrupt("a sealed block does not hold the bytes its id names")
    return plain


def _decompress(body: memoryview, length: int) -> bytes:
    """Exactly *length* bytes out of one zstd frame, which must say so itself: zstd holds it to that.

    Raises: ObjectCorrupt.
    """
    try:
        if zstandard.get_frame_parameters(body).content_size != length:
            raise ObjectCorrupt("a sealed block's frame is not as long as its header says")
        return _decompressor().decompress(body, max_output_size=length, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ObjectCorrupt(f"a sealed block cannot be decompressed: {error}") from error
