"""Sealed blocks: a small header, then the block's bytes, compressed where that helps. docs/format.md, "Sealed block".

    sealed = kind (1 byte), plain length (u32, little endian), body
    kind   = 0 plain body, 1 zstd body; the other bits are kept for encryption and must be 0

Pure functions, safe in any thread.
"""

import struct
import threading

import zstandard
from blake3 import blake3

from syncer.errors import ObjectCorrupt
from syncer.values import BLOCK_MAX_BYTES, BlockId

PLAIN, ZSTD = 0, 1
HEADER = struct.Struct("<BI")
PLAIN_MAX_BYTES = 2 * BLOCK_MAX_BYTES
"""No block and no tree node is longer; a header that says so is damage, and nothing is allocated for it."""
_TRIAL_BYTES = 16 * 1024
_local = threading.local()


def block_id(plain: bytes | bytearray | memoryview) -> BlockId:
    """The id of a block: BLAKE3-256 of its bytes."""
    return BlockId(blake3(plain).digest())


def seal(plain: bytes | memoryview, level: int = 1) -> bytes:
    """The sealed form of a block. What zstd does not shrink is stored as it is, at the price of a short trial.

    Raises: ValueError: the block is too long.
    """
    if len(plain) > PLAIN_MAX_BYTES:
        raise ValueError("too long for a block")
    if _is_compressible(plain, level):
        body = _compressor(level).compress(plain)
        if len(body) < len(plain):
            return HEADER.pack(ZSTD, len(plain)) + body
    return b"".join((HEADER.pack(PLAIN, len(plain)), plain))


def _is_compressible(plain: bytes | memoryview, level: int) -> bool:
    """Try a piece from the middle of a long block: media and archives fail there, and are not tried whole."""
    if len(plain) <= 4 * _TRIAL_BYTES:
        return True
    middle = len(plain) // 2
    trial = memoryview(plain)[middle : middle + _TRIAL_BYTES]
    start = memoryview(plain)[:_TRIAL_BYTES]
    compressor = _compressor(level)
    return min(len(compressor.compress(trial)), len(compressor.compress(start))) < _TRIAL_BYTES * 15 // 16


def _compressor(level: int) -> zstandard.ZstdCompressor:
    """One a thread: compressor objects must not be shared."""
    known: dict[int, zstandard.ZstdCompressor] = _local.__dict__.setdefault("compressors", {})
    if level not in known:
        known[level] = zstandard.ZstdCompressor(level=level, write_content_size=True)
    return known[level]


def open_sealed(sealed: bytes | memoryview, expected: bytes) -> bytes:
    """The plain bytes of a sealed block, which are those that the id *expected* names.

    Raises:
        ObjectCorrupt: they are not, or it cannot be decoded. Memory stays within the length that is allowed.
    """
    if len(sealed) < HEADER.size:
        raise ObjectCorrupt("a sealed block is cut short")
    kind, length = HEADER.unpack_from(sealed)
    body = memoryview(sealed)[HEADER.size :]
    if length > PLAIN_MAX_BYTES:
        raise ObjectCorrupt("a sealed block claims an impossible length")
    if kind == PLAIN:
        plain = bytes(body)
    elif kind == ZSTD:
        plain = _decompress(body, length)
    else:
        raise ObjectCorrupt(f"a sealed block is of an unknown kind ({kind})")
    if len(plain) != length or blake3(plain).digest() != expected:
        raise ObjectCorrupt("a sealed block does not hold the bytes its id names")
    return plain


def _decompress(body: memoryview, length: int) -> bytes:
    try:
        parameters = zstandard.get_frame_parameters(body)
        if parameters.content_size != length:
            raise ObjectCorrupt("a sealed block's frame is not as long as its header says")
        return zstandard.ZstdDecompressor(max_window_size=PLAIN_MAX_BYTES).decompress(body, max_output_size=length)
    except zstandard.ZstdError as error:
        raise ObjectCorrupt(f"a sealed block cannot be decompressed: {error}") from error
