"""What a check of every byte of a remote has read so far: a file in DATA, so that it can go on where it was stopped.

    header = magic (8 bytes), BLAKE3 of what is checked (32), seed (16), begun (u64, seconds), CRC-32 of these
    then   = pack id (32), CRC-32 of it, any number of times                                   (little endian)

A pack is named by the hash of its bytes, so what was read and right needs no look again, unless too long has passed:
the remote's disk may have aged. The file is for one remote, repository and share of the packs, and goes when the check
is over.
"""

import os
import secrets
import struct
import time
import zlib
from pathlib import Path

from blake3 import blake3

from syncer.values import ID_BYTES

VALID_S = 7 * 24 * 3600
_MAGIC = b"syncvf01"
_HEADER = struct.Struct("<8s32s16sQI")
_RECORD = struct.Struct("<32sI")


class Verified:
    """Attributes: `seed`, which chooses the sample; `ids`, the packs that were read when this was opened."""

    def __init__(self, path: Path, remote: str, repository: bytes, percent: float) -> None:
        """Open *path* for going on, or begin it. Raises: OSError."""
        self._path = path
        scope = blake3(f"{remote}\0{repository.hex()}\0{percent!r}".encode()).digest()
        self.seed, self.ids = secrets.token_bytes(16), set[bytes]()
        found = _load(path, scope)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        if found is None:
            self._descriptor = os.open(path, flags | os.O_TRUNC, 0o600)
            fields = (_MAGIC, scope, self.seed, int(time.time()))
            os.write(self._descriptor, _HEADER.pack(*fields, zlib.crc32(_HEADER.pack(*fields, 0)[:-4])))
        else:
            self.seed, self.ids = found
            self._descriptor = os.open(path, flags)
            length = _HEADER.size + len(self.ids) * _RECORD.size
            os.ftruncate(self._descriptor, length)  # a record that was cut short

    def add(self, pack_id: bytes) -> None:
        """The pack was read, and every byte is right."""
        self.ids.add(pack_id)
        os.write(self._descriptor, _RECORD.pack(pack_id, zlib.crc32(pack_id)))

    def chooses(self, pack_id: bytes, percent: float) -> bool:
        """Whether the pack is in a sample of *percent* of all."""
        number = int.from_bytes(blake3(self.seed + pack_id).digest(8), "little")
        return number < percent / 100 * 2**64

    def close(self, *, complete: bool) -> None:
        """Keep what was noted, unless the check is *complete*: the next one then reads everything again."""
        os.close(self._descriptor)
        if complete:
            self._path.unlink(missing_ok=True)


def _load(path: Path, scope: bytes) -> tuple[bytes, set[bytes]] | None:
    """(seed, ids) of a file for the same check, which is young and whole; records after a bad one do not count."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    if len(data) < _HEADER.size:
        return None
    magic, noted, seed, begun, checksum = _HEADER.unpack_from(data)
    if (magic, noted) != (_MAGIC, scope) or checksum != zlib.crc32(data[: _HEADER.size - 4]):
        return None
    if not 0 <= time.time() - begun <= VALID_S:
        return None
    ids: set[bytes] = set()
    for offset in range(_HEADER.size, len(data) - _RECORD.size + 1, _RECORD.size):
        pack_id, checksum = _RECORD.unpack_from(data, offset)
        if checksum != zlib.crc32(pack_id) or len(pack_id) != ID_BYTES or pack_id in ids:
            break
        ids.add(pack_id)
    return seed, ids
