"""Identifiers and small frozen values shared by every layer. No I/O, no behaviour beyond formatting."""

from dataclasses import dataclass
from typing import NewType

BlockId = NewType("BlockId", bytes)
"""BLAKE3-256 of a block's plain bytes (32 bytes)."""

PackId = NewType("PackId", bytes)
"""BLAKE3-256 of a whole pack object (32 bytes)."""

TreeId = NewType("TreeId", bytes)
"""BLAKE3-256 of an encoded tree node (32 bytes); trees are stored like blocks."""

InodeNumber = NewType("InodeNumber", int)
"""64 bits: the upper 24 name the peer that created the inode, the lower 40 count. The root is always 1."""

PeerId = NewType("PeerId", int)
"""The 24-bit inode prefix a peer owns, 1 or more."""

ID_BYTES = 32
ROOT_INODE = InodeNumber(1)
PEER_SHIFT = 40
NAME_MAX_BYTES = 255
FILE_END_MAX = 2**63 - 1
"""No byte of a file is at this offset or beyond, whatever a mount allows."""

XATTRS_MAX_BYTES = 32 * 1024 * 1024
"""Names and values of all extended attributes of an inode together: a reader of trees holds them at once."""

BLOCK_MIN_BYTES = 256 * 1024
BLOCK_MEAN_BYTES = 1024 * 1024
BLOCK_MAX_BYTES = 4 * 1024 * 1024
PLAIN_MAX_BYTES = 2 * BLOCK_MAX_BYTES
"""No block and no tree node is longer; a header that says so is damage, and nothing is allocated for it."""
SMALL_BYTES = 64 * 1024
"""Contents and blocks up to this size live in meta.db instead of in files of their own."""
ZERO_RUN_BYTES = 64 * 1024
"""A run of at least this many zero bytes becomes a hole."""
PACK_BYTES = 8 * 1024 * 1024
"""A pack is closed once it holds about this many sealed bytes."""

CONTENT, TREE = 0, 1
"""Kinds of blocks, and of the packs that hold them: bytes of files, nodes of trees."""

MEGABYTE = 1_000_000
BUDGET_MIN_BYTES = 64 * MEGABYTE


@dataclass(frozen=True, slots=True)
class Location:
    """Where the remote keeps a sealed block: *length* bytes at *offset* of the pack *pack*."""

    pack: PackId
    offset: int
    length: int


def peer_of(inode: InodeNumber) -> PeerId:
    """The peer whose prefix *inode* carries (0 for the root, which every peer shares)."""
    return PeerId(inode >> PEER_SHIFT)


def id_of(text: str) -> bytes | None:
    """The id that *text* is, as names of files and keys have them: in lower case. None when it is none."""
    if len(text) != 2 * ID_BYTES or not set(text) <= set("0123456789abcdef"):
        return None
    return bytes.fromhex(text)
