"""The small objects of a repository: format, peers, indexes, snapshots; their keys and encodings. docs/format.md.

    object = magic (8 bytes), BLAKE3-256 of the body, body         body = msgpack, arrays in the order of the fields

`format` alone is JSON. Pure functions; whatever a remote answers, only ObjectCorrupt comes out.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, TypeVar

import msgspec
from blake3 import blake3

from syncer.blocks.codec import HEADER, SEALED_MAX_BYTES
from syncer.errors import ObjectCorrupt
from syncer.values import CONTENT, ID_BYTES, PEER_SHIFT, PLAIN_MAX_BYTES, TREE, PeerId

VERSION = 1
FORMAT_KEY = "format"
OBJECT_MAX_BYTES = 16 * 1024 * 1024
"""No peer, index or snapshot is nearly as long: an index of the most blocks it may list has 4 MiB."""
FORMAT_MAX_BYTES = 64 * 1024
SEQ_DIGITS = 12
MACHINE_BYTES = 16
_Record = TypeVar("_Record", bound=msgspec.Struct)

# What is checked when a record is decoded: whatever a remote holds, the numbers fit the tables they go into.
_Id = Annotated[bytes, msgspec.Meta(min_length=ID_BYTES, max_length=ID_BYTES)]
_Machine = Annotated[bytes, msgspec.Meta(min_length=MACHINE_BYTES, max_length=MACHINE_BYTES)]
_Peer = Annotated[int, msgspec.Meta(ge=1, lt=2 ** (64 - PEER_SHIFT - 1))]
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
_Time = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
_Kind = Annotated[int, msgspec.Meta(ge=CONTENT, le=TREE)]
_SealedBytes = Annotated[int, msgspec.Meta(ge=HEADER.size, le=SEALED_MAX_BYTES)]
_PlainBytes = Annotated[int, msgspec.Meta(ge=0, le=PLAIN_MAX_BYTES)]


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
    peer: _Peer
    machine: _Machine
    host: str
    joined_ns: _Time
    after: tuple[tuple[_Peer, _Count], ...]
    forced: bool


class PackListing(msgspec.Struct, array_like=True, frozen=True):
    """A pack and its blocks: (id, offset, sealed bytes, plain bytes)."""

    id: _Id
    size: _Count
    kind: _Kind
    blocks: tuple[tuple[_Id, _Count, _SealedBytes, _PlainBytes], ...]


class IndexRecord(msgspec.Struct, array_like=True, frozen=True, tag="index"):
    version: int
    peer: _Peer
    seq: _Count
    packs: tuple[PackListing, ...]


class SnapshotRecord(msgspec.Struct, array_like=True, frozen=True, tag="snapshot"):
    """A state of the whole file system. *parents* are (peer, seq); *next_inode* is the lowest number never given out.

    *released* says that the writer put the repository down after it. *reason* is auto, manual, unmount or `before
    restore`.
    """

    version: int
    peer: _Peer
    seq: _Count
    root: _Id
    parents: tuple[tuple[_Peer, _Count], ...]
    time_ns: _Time
    host: str
    files: _Count
    directories: _Count
    logical_bytes: _Count
    unique_bytes: _Count
    next_inode: _Count
    label: str | None
    released: bool
    reason: str


class FollowerRecord(msgspec.Struct, array_like=True, frozen=True, tag="follower"):
    """A snapshot (peer, seq) that a machine which only reads needs until it deletes this. *host* is for people."""

    version: int
    peer: _Peer
    seq: _Count
    host: str


_MAGIC: Mapping[type[msgspec.Struct], bytes] = {
    PeerRecord: b"syncpe01",
    IndexRecord: b"syncix01",
    SnapshotRecord: b"syncsn01",
    FollowerRecord: b"syncfo01",
}
_HEAD_BYTES = 8 + 32


def encode(record: PeerRecord | IndexRecord | SnapshotRecord | FollowerRecord) -> bytes:
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
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ObjectCorrupt(f"{name}: {error}") from error
    if getattr(record, "version", None) != VERSION:
        raise ObjectCorrupt(f"{name}: its version is not known here", hint="use a newer syncer")
    return record


def record_id(data: bytes) -> bytes:
    """What names a record for people: the BLAKE3-256 of its body, which its head has."""
    return data[8:_HEAD_BYTES]


def encode_format(record: Format) -> bytes:
    return msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n"


def decode_format(data: bytes) -> Format:
    """Raises: ObjectCorrupt."""
    try:
        record = msgspec.json.decode(data, type=Format)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ObjectCorrupt(
            f"format: {error}", hint="this is no syncer repository, or its format object is damaged"
        ) from error
    if record.version != VERSION:
        raise ObjectCorrupt(f"format: version {record.version} is not known here", hint="use a newer syncer")
    if not re.fullmatch("[0-9a-f]{32}", record.repository):
        raise ObjectCorrupt("format: it names no repository", hint="its format object is damaged")
    return record


# --- keys -------------------------------------------------------------------------------------------------------


def peer_key(peer: int) -> str:
    return f"peers/{peer:06x}"


def index_key(peer: int, seq: int) -> str:
    return f"index/{peer:06x}/{seq:0{SEQ_DIGITS}d}"


def snapshot_key(peer: int, seq: int) -> str:
    return f"snapshots/{peer:06x}/{seq:0{SEQ_DIGITS}d}"


def follower_key(machine: bytes, seq: int) -> str:
    return f"followers/{machine.hex()}/{seq:0{SEQ_DIGITS}d}"


def parse_peer_key(key: str) -> PeerId | None:
    """The peer a key under `peers/` is of; None for a key that is no such."""
    head, _, text = key.partition("/")
    return _peer(text) if head == "peers" else None


def parse_seq_key(key: str) -> tuple[PeerId, int] | None:
    """(peer, seq) of a key under `index/` or `snapshots/`; None for a key that is no such."""
    parts = key.split("/")
    if len(parts) != 3 or parts[0] not in ("index", "snapshots"):
        return None
    peer, seq = _peer(parts[1]), _seq(parts[2])
    return None if peer is None or seq is None else (peer, seq)


def parse_follower_key(key: str) -> tuple[bytes, int] | None:
    """(machine, seq) of a key under `followers/`; None for a key that is no such."""
    parts = key.split("/")
    if len(parts) != 3 or parts[0] != "followers" or not re.fullmatch(f"[0-9a-f]{{{2 * MACHINE_BYTES}}}", parts[1]):
        return None
    seq = _seq(parts[2])
    return None if seq is None else (bytes.fromhex(parts[1]), seq)


def _seq(text: str) -> int | None:
    return int(text) if re.fullmatch(f"[0-9]{{{SEQ_DIGITS}}}", text) else None


def _peer(text: str) -> PeerId | None:
    if not re.fullmatch("[0-9a-f]{6}", text):
        return None
    return PeerId(int(text, 16)) or None


# --- who writes -------------------------------------------------------------------------------------------------


def current_writer(peers: Sequence[PeerRecord]) -> PeerRecord | None:
    """The peer that writes: the one no other goes on from. None in a repository that nobody has joined.

    Two machines that took over from the same one at once leave two such; everybody chooses the one that came last.
    """
    succeeded = {peer for record in peers for peer, _ in record.after}
    candidates = [record for record in peers if record.peer not in succeeded]
    return max(candidates, key=lambda record: record.peer, default=None)
