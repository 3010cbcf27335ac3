"""Packs: one remote object with many sealed blocks, then their list, then a footer. docs/format.md, "Pack".

    pack   = sealed block*, list, footer
    list   = msgpack [kind, [[block id, sealed length, plain length], ...]]
    footer = BLAKE3-256 of the list, length of the list (u32, little endian), magic (8 bytes)

The blocks stand in the order of the list without gaps, so their offsets follow. A pack's id is the BLAKE3-256 of the
whole object. Pure functions, safe in any thread.
"""

import struct
from dataclasses import dataclass
from typing import Annotated

import msgspec
from blake3 import blake3

from syncer.blocks.codec import HEADER, SEALED_MAX_BYTES
from syncer.errors import ObjectCorrupt
from syncer.values import CONTENT, ID_BYTES, PACK_BYTES, PLAIN_MAX_BYTES, TREE, BlockId, PackId, id_of

MAGIC = b"syncpk01"
"""Ends every pack; the digits are the version."""
FOOTER = struct.Struct("<32sI8s")
PACK_BLOCKS = 16_384
"""A pack is also full when it has this many blocks: its list, of about 43 bytes a block, must stay the smaller part."""
LIST_MAX_BYTES = 4 * 1024 * 1024

_Id = Annotated[bytes, msgspec.Meta(min_length=ID_BYTES, max_length=ID_BYTES)]
_SealedBytes = Annotated[int, msgspec.Meta(ge=HEADER.size, le=SEALED_MAX_BYTES)]
_PlainBytes = Annotated[int, msgspec.Meta(ge=0, le=PLAIN_MAX_BYTES)]
_Kind = Annotated[int, msgspec.Meta(ge=CONTENT, le=TREE)]
_decoder = msgspec.msgpack.Decoder(tuple[_Kind, list[tuple[_Id, _SealedBytes, _PlainBytes]]])


@dataclass(frozen=True, slots=True)
class PackEntry:
    """A sealed block in a pack: *length* bytes at *offset*, *plain_bytes* once opened."""

    id: BlockId
    offset: int
    length: int
    plain_bytes: int


@dataclass(frozen=True, slots=True)
class Pack:
    """A finished pack: `data` is the object, `entries` says where in it each block is."""

    id: PackId
    kind: int
    data: memoryview
    entries: tuple[PackEntry, ...]

    def locations(self) -> list[tuple[BlockId, int, int, int]]:
        """(block id, offset, sealed length, plain length) of each block."""
        return [(entry.id, entry.offset, entry.length, entry.plain_bytes) for entry in self.entries]


def pack_key(pack_id: PackId) -> str:
    """The object's key on the remote."""
    text = pack_id.hex()
    return f"packs/{text[:2]}/{text}"


def parse_pack_key(key: str) -> PackId | None:
    """The pack that a key under `packs/` is of; None for a key that is no such."""
    found = id_of(key.rpartition("/")[2])
    return PackId(found) if found is not None and pack_key(PackId(found)) == key else None


class PackBuilder:
    """Collects sealed blocks of one kind until there are enough for a pack."""

    def __init__(self, kind: int = CONTENT) -> None:
        self._kind = kind
        self._data = bytearray()
        self._entries: list[PackEntry] = []
        self.size_bytes = 0
        """Sealed bytes collected; the list comes on top."""

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def is_full(self) -> bool:
        return self.size_bytes >= PACK_BYTES or len(self._entries) >= PACK_BLOCKS

    def add(self, block_id: BlockId, sealed: bytes, plain_bytes: int) -> None:
        """Append a block; *plain_bytes* is its length before it was sealed."""
        self._entries.append(PackEntry(block_id, self.size_bytes, len(sealed), plain_bytes))
        self._data += sealed
        self.size_bytes += len(sealed)

    def finish(self) -> Pack:
        """The pack; the builder is empty afterwards."""
        blocks = [(entry.id, entry.length, entry.plain_bytes) for entry in self._entries]
        listed = msgspec.msgpack.encode((self._kind, blocks))
        self._data += listed
        self._data += FOOTER.pack(blake3(listed).digest(), len(listed), MAGIC)
        data = memoryview(self._data).toreadonly()
        entries = tuple(self._entries)
        self._data, self._entries, self.size_bytes = bytearray(), [], 0
        return Pack(PackId(blake3(data).digest()), self._kind, data, entries)


def tail_bytes(footer: bytes | memoryview) -> int:
    """How many bytes at the end of a pack are its list and footer, from its last `FOOTER.size` bytes or more.

    Raises:
        ObjectCorrupt: this is not the end of a pack.
    """
    if len(footer) < FOOTER.size:
        raise ObjectCorrupt("a pack is cut short")
    _, length, magic = FOOTER.unpack_from(footer, len(footer) - FOOTER.size)
    if magic != MAGIC or length > LIST_MAX_BYTES:
        raise ObjectCorrupt("this is no pack of a version known here, or its end is damaged")
    return int(length) + FOOTER.size


def read_list(data: bytes | memoryview, size_bytes: int | None = None) -> tuple[int, list[PackEntry]]:
    """(kind, entries) of a pack, from the whole object or from its end.

    *size_bytes* is the length of the whole object when *data* is only the last `tail_bytes` of it or more.

    Raises:
        ObjectCorrupt: it is no pack, or its list is damaged or does not fit the length of the object.
    """
    tail = tail_bytes(data)
    if tail > len(data):
        raise ObjectCorrupt("a pack is shorter than its list")
    listed = memoryview(data)[len(data) - tail : len(data) - FOOTER.size]
    if blake3(listed).digest() != bytes(data[-FOOTER.size : -FOOTER.size + ID_BYTES]):
        raise ObjectCorrupt("a pack's list does not match its checksum")
    try:
        kind, blocks = _decoder.decode(listed)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ObjectCorrupt(f"a pack's list cannot be decoded: {error}") from error
    entries: list[PackEntry] = []
    offset = 0
    for block_id, sealed_bytes, plain_bytes in blocks:
        entries.append(PackEntry(BlockId(block_id), offset, sealed_bytes, plain_bytes))
        offset += sealed_bytes
    if offset != (len(data) if size_bytes is None else size_bytes) - tail:
        raise ObjectCorrupt("a pack's list does not add up to its length")
    return kind, entries
