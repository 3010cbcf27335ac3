"""The small objects of a repository: format, peers, indexes, snapshots; their keys and encodings. docs/format.md.

    object = magic (8 bytes), BLAKE3-256 of the body, body         body = msgpack, arrays in the order of the fields

`format` alone is JSON. Pure functions; whatever a remote answers, only ObjectCorrupt comes out.
"""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import msgspec
from blake3 import blake3

from syncer.errors import ObjectCorrupt
from syncer.values import PeerId

VERSION = 1
FORMAT_KEY = "format"
OBJECT_MAX_BYTES = 256 * 1024 * 1024
SEQ_DIGITS = 12
_Record = TypeVar("_Record", bound=msgspec.Struct)


class Format(msgspec.Struct, frozen=True, forbid_unknown_fields=False):
    """What `format` says; *repository* is 32 hex digits."""

    version: int
    repository: str
    created_ns: int


class PeerRecord(msgspec.Struct, array_like=True, frozen=True, tag="peer"):
    """Who owns an inode prefix, written once when a machine joins as the writer. *machine* (16 bytes) tells one DATA
    from another.

    *after* is the snapshot (peer, seq) of the writer before that this peer goes on from; empty for the first.
    *forced* says that it did so without that writer's release.
    """

    version: int
    peer: int
    machine: bytes
    host: str
    joined_ns: int
    after: tuple[tuple[int, int], ...]
    forced: bool


class PackListing(msgspec.Struct, array_like=True, frozen=True):
    """A pack and its blocks: (id, offset, sealed bytes, plain bytes)."""

    id: bytes
    size: int
    kind: int
    blocks: tuple[tuple[bytes, int, int, int], ...]


class IndexRecord(msgspec.Struct, array_like=True, frozen=True, tag="index"):
    version: int
    peer: int
    seq: int
    packs: tuple[PackListing, ...]


class SnapshotRecord(msgspec.Struct, array_like=True, frozen=True, tag="snapshot"):
    """A state of the whole file system. *parents* are (peer, seq); *next_inode* is the lowest number never given out.

    *released* says that the writer put the repository down after it. *reason* is auto, manual or unmount.
    """

    version: int
    peer: int
    seq: int
    root: bytes
    parents: tuple[tuple[int, int], ...]
    time_ns: int
    host: str
    files: int
    directories: int
    logical_bytes: int
    unique_bytes: int
    next_inode: int
    label: str | None
    released: bool
    reason: str


_MAGIC: Mapping[type[msgspec.Struct], bytes] = {
    PeerRecord: b"syncpe01",
    IndexRecord: b"syncix01",
    SnapshotRecord: b"syncsn01",
}
_HEAD_BYTES = 8 + 32


def encode(record: PeerRecord | IndexRecord | SnapshotRecord) -> bytes:
    body = msgspec.msgpack.encode(record)
    return _MAGIC[type(record)] + blake3(body).digest() + body


def decode(data: bytes, kind: type[_Record]) -> _Record:
    """The record of type *kind* in *data*.

    Raises: ObjectCorrupt.
    """
    name = kind.__name__
    if len(data) > OBJECT_MAX_BYTES or data[:8] != _MAGIC[kind]:
        raise ObjectCorrupt(f"{name}: this is no such object")
    body = data[_HEAD_BYTES:]
    if blake3(body).digest() != data[8:_HEAD_BYTES]:
        raise ObjectCorrupt(f"{name}: its checksum is wrong")
    try:
        record = msgspec.msgpack.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ObjectCorrupt(f"{name}: {error}") from error
    if getattr(record, "version", None) != VERSION:
        raise ObjectCorrupt(f"{name}: its version is not known here", hint="use a newer syncer")
    return record


def encode_format(record: Format) -> bytes:
    return msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n"


def decode_format(data: bytes) -> Format:
    """Raises: ObjectCorrupt."""
    try:
        record = msgspec.json.decode(data, type=Format)
        bytes.fromhex(record.repository)
    except (msgspec.MsgspecError, UnicodeDecodeError, ValueError) as error:
        raise ObjectCorrupt(
            f"format: {error}", hint="this is no syncer repository, or its format object is damaged"
        ) from error
    if record.version != VERSION:
        raise ObjectCorrupt(f"format: version {record.version} is not known here", hint="use a newer syncer")
    return record


# --- keys -------------------------------------------------------------------------------------------------------


def peer_key(peer: int) -> str:
    return f"peers/{peer:06x}"


def index_key(peer: int, seq: int) -> str:
    return f"index/{peer:06x}/{seq:0{SEQ_DIGITS}d}"


def snapshot_key(peer: int, seq: int) -> str:
    return f"snapshots/{peer:06x}/{seq:0{SEQ_DIGITS}d}"


def parse_peer_key(key: str) -> PeerId | None:
    """The peer a key under `peers/` is of; None for a key that is no such."""
    head, _, text = key.partition("/")
    return _peer(text) if head == "peers" else None


def parse_seq_key(key: str) -> tuple[PeerId, int] | None:
    """(peer, seq) of a key under `index/` or `snapshots/`; None for a key that is no such."""
    parts = key.split("/")
    if len(parts) != 3 or parts[0] not in ("index", "snapshots") or len(parts[2]) != SEQ_DIGITS:
        return None
    peer = _peer(parts[1])
    return None if peer is None or not parts[2].isdecimal() or not parts[2].isascii() else (peer, int(parts[2]))


def _peer(text: str) -> PeerId | None:
    if len(text) != 6 or any(c not in "0123456789abcdef" for c in text):
        return None
    return PeerId(int(text, 16))


# --- who writes -------------------------------------------------------------------------------------------------


def current_writer(peers: Sequence[PeerRecord]) -> PeerRecord | None:
    """The peer that writes: the one no other goes on from. None in a repository that nobody has joined.

    Two machines that took over from the same one at once leave two such; everybody chooses the one that came last.
    """
    succeeded = {peer for record in peers for peer, _ in record.after}
    candidates = [record for record in peers if record.peer not in succeeded]
    return max(candidates, key=lambda record: record.peer, default=None)
