"""Reads the small objects of a repository, none of them longer than such an object can be.

The length is asked for first: whatever a remote holds under a key, no more of it than the limit comes into memory.
"""

from collections.abc import Collection
from typing import TypeVar

import msgspec
import trio

from syncer.backends.base import Backend
from syncer.errors import ObjectCorrupt
from syncer.snapshots.records import (
    FORMAT_KEY,
    FORMAT_MAX_BYTES,
    OBJECT_MAX_BYTES,
    Format,
    IndexRecord,
    SnapshotRecord,
    decode,
    decode_format,
    index_key,
    parse_seq_key,
    snapshot_key,
)
from syncer.values import PeerId

INDEXES_READ = "indexes_read"
"""Key of the state, see `History.remember_indexes`."""
LISTED_AT_ONCE = 500
"""So many keys are looked at before other tasks have their turn: a millisecond."""
LISTED = "snapshots_listed"
"""Key of the state, see `History.was_listed`."""

_Record = TypeVar("_Record", bound=msgspec.Struct)


async def read_bounded(backend: Backend, key: str, most_bytes: int) -> bytes:
    """The whole object. Raises: BackendError; ObjectCorrupt when it is longer than *most_bytes*."""
    size_bytes = (await backend.stat(key)).size_bytes
    if size_bytes > most_bytes:
        raise ObjectCorrupt(f"{key} has {size_bytes} bytes, which no such object has")
    return await backend.get(key, 0, size_bytes)


async def read_record(backend: Backend, key: str, kind: type[_Record]) -> _Record:
    """The record of type *kind* under *key*. Raises: BackendError, ObjectCorrupt among them."""
    return decode(await read_bounded(backend, key, OBJECT_MAX_BYTES), kind)


async def read_index(backend: Backend, peer: PeerId, seq: int) -> IndexRecord:
    """The index object *seq* of a peer, decoded in a thread: it may be long.

    Raises: BackendError, ObjectCorrupt among them.
    """
    key = index_key(peer, seq)
    data = await read_bounded(backend, key, OBJECT_MAX_BYTES)
    record = await trio.to_thread.run_sync(decode, data, IndexRecord)
    if (record.peer, record.seq) != (peer, seq):
        raise ObjectCorrupt(f"{key} is another index")
    return record


async def read_snapshot(backend: Backend, peer: PeerId, seq: int) -> tuple[SnapshotRecord, bytes]:
    """The snapshot object *seq* of a peer, and its bytes. Raises: BackendError, ObjectCorrupt among them."""
    key = snapshot_key(peer, seq)
    data = await read_bounded(backend, key, OBJECT_MAX_BYTES)
    record = decode(data, SnapshotRecord)
    if (record.peer, record.seq) != (peer, seq):
        raise ObjectCorrupt(f"{key} is another snapshot")
    return record, data


async def listed_places(backend: Backend, prefix: str) -> set[tuple[PeerId, int]]:
    """(peer, sequence number) of each object under `snapshots/` or `index/`. Raises: BackendError."""
    found = set[tuple[PeerId, int]]()
    async for info in backend.list(prefix):
        if (place := parse_seq_key(info.key)) is not None:
            found.add(place)
            if len(found) % LISTED_AT_ONCE == 0:  # a page may hold all of them
                await trio.lowlevel.checkpoint()
    return found


def encode_places(places: Collection[tuple[PeerId, int]]) -> bytes:
    """*places* for the state of meta.db."""
    return msgspec.msgpack.encode(sorted(places))


def decode_places(data: bytes | None) -> set[tuple[PeerId, int]]:
    """What `encode_places` has made; none of nothing."""
    return set() if data is None else {(PeerId(peer), seq) for peer, seq in msgspec.msgpack.decode(data)}


async def read_format(backend: Backend) -> Format:
    """The object that says which repository this is. Raises: BackendError, ObjectCorrupt among them."""
    return decode_format(await read_bounded(backend, FORMAT_KEY, FORMAT_MAX_BYTES))
