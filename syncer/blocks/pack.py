"""Packs: one remote object with many sealed blocks, their list, and its length. docs/format.md, "Pack".

    pack   = sealed block*, list, u32 length of the list, magic        (little endian)
    list   = msgpack [version, kind, [[block id, sealed length, plain length], ...]]

The blocks stand in the order of the list without gaps. A pack's id is the BLAKE3-256 of the whole object.
"""

import struct
from dataclasses import dataclass

import msgspec
from blake3 import blake3

from syncer.errors import ObjectCorrupt
from syncer.values import CONTENT, ID_BYTES, PACK_BYTES, TREE, BlockId, PackId

MAGIC = b"syncpk01"
VERSION = 1
FOOTER = struct.Struct("<I8s")
LIST_MAX_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class PackEntry:
    """A sealed block in a pack: *length* bytes at *offset*, *plain_bytes* once opened."""

    id: BlockId
    offset: int
    length: int
    plain_bytes: int


@dataclass(frozen=True, slots=True)
class Pack:
    """A finished pack: what `data` holds, and where."""

    id: PackId
    kind: int
    data: bytes
    entries: tuple[PackEntry, ...]

    def locations(self) -> list[tuple[BlockId, int, int, int]]:
        """(block id, offset, sealed length, plain length) of each block."""
        return [(entry.id, entry.offset, entry.length, entry.plain_bytes) for entry in self.entries]


def pack_key(pack_id: PackId) -> str:
    """The object's key on the remote."""
    text = pack_id.hex()
    return f"packs/{text[:2]}/{text}"


class PackBuilder:
    """Collects sealed blocks of one kind until there are enough for a pack."""

    def __init__(self, kind: int = CONTENT) -> None:
        self._kind = kind
        self._parts: list[bytes] = []
        self._entries: list[PackEntry] = []
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def is_full(self) -> bool:
        return self.size_bytes >= PACK_BYTES

    def add(self, block_id: BlockId, sealed: bytes, plain_bytes: int) -> None:
        self._entries.append(PackEntry(block_id, self.size_bytes, len(sealed), plain_bytes))
        self._parts.append(sealed)
        self.size_bytes += len(sealed)

    def finish(self) -> Pack:
        """The pack; the builder is empty afterwards."""
        listed = [[entry.id, entry.length, entry.plain_bytes] for entry in self._entries]
        encoded = msgspec.msgpack.encode([VERSION, self._kind, listed])
        self._parts += [encoded, FOOTER.pack(len(encoded), MAGIC)]
        data = b"".join(self._parts)
        pack = Pack(PackId(blake3(data).digest()), self._kind, data, tuple(self._entries))
        self._parts, self._entries, self.size_bytes = [], [], 0
        return pack


def read_list(data: bytes | memoryview) -> tuple[int, list[PackEntry]]:
    """(kind, entries) of a whole pack, from its end.

    Raises:
        ObjectCorrupt: it is no pack, or its list does not fit its length.
    """
    if len(data) < FOOTER.size:
        raise ObjectCorrupt("a pack is cut short")
    length, magic = FOOTER.unpack_from(data, len(data) - FOOTER.size)
    end = len(data) - FOOTER.size - length
    if magic != MAGIC or length > LIST_MAX_BYTES or end < 0:
        raise ObjectCorrupt("this is not a pack, or its end is damaged")
    try:
        version, kind, listed = msgspec.msgpack.decode(
            memoryview(data)[end : end + length], type=tuple[int, int, list[tuple[bytes, int, int]]]
        )
    except msgspec.MsgspecError as error:
        raise ObjectCorrupt(f"a pack's list cannot be decoded: {error}") from error
    if version != VERSION or kind not in (CONTENT, TREE):
        raise ObjectCorrupt("a pack is of an unknown version or kind")
    entries: list[PackEntry] = []
    offset = 0
    for block_id, sealed_bytes, plain_bytes in listed:
        if len(block_id) != ID_BYTES or sealed_bytes < 0 or plain_bytes < 0:
            raise ObjectCorrupt("a pack's list is damaged")
        entries.append(PackEntry(BlockId(block_id), offset, sealed_bytes, plain_bytes))
        offset += sealed_bytes
    if offset != end:
        raise ObjectCorrupt("a pack's list does not add up to its length")
    return kind, entries
