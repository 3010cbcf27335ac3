"""Reads the small objects of a repository, none of them longer than such an object can be.

The length is asked for first: whatever a remote holds under a key, no more of it than the limit comes into memory.
"""

from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import TypeVar

import msgspec
import trio

from syncer.backends.base import Backend
from syncer.backends.together import for_each
from syncer.errors import ObjectCorrupt, ObjectMissing
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
INDEXES_GONE = "indexes_gone"
"""Key of the state: how many of those are gone since it was last looked whether what they list is."""
LISTED_AT_ONCE = 500
"""So many keys are looked at before other tasks have their turn: a millisecond."""
LISTED = "snapshots_listed"
"""Key of the state, see `History.was_listed`."""

AHEAD_BYTES = 16_000_000
"""So much of index objects waits for its turn, or one object."""
LIST_TRIES = 5
"""So often what is listed is listed again because some of it has gone until it was read."""

Place = tuple[PeerId, int]
"""(peer, sequence number) of an object."""
_Record = TypeVar("_Record", bound=msgspec.Struct)


async def read_bounded(backend: Backend, key: str, most_bytes: int) -> bytes:
    """The whole object. Raises: BackendError; ObjectCorrupt when it is longer than *most_bytes*."""
    return await backend.get(key, 0, await _size(backend, key, most_bytes))


async def _size(backend: Backend, key: str, most_bytes: int) -> int:
    size_bytes = (await backend.stat(key)).size_bytes
    if size_bytes > most_bytes:
        raise ObjectCorrupt(f"{key} has {size_bytes} bytes, which no such object has")
    return size_bytes


async def read_record(backend: Backend, key: str, kind: type[_Record]) -> _Record:
    """The record of type *kind* under *key*. Raises: BackendError, ObjectCorrupt among them."""
    return decode(await read_bounded(backend, key, OBJECT_MAX_BYTES), kind)


async def read_index(backend: Backend, peer: PeerId, seq: int) -> IndexRecord:
    """The index object *seq* of a peer, decoded in a thread: it may be long.

    Raises: BackendError, ObjectCorrupt among them.
    """
    return await _decoded(await read_bounded(backend, index_key(peer, seq), OBJECT_MAX_BYTES), (peer, seq))


async def _decoded(data: bytes, place: Place) -> IndexRecord:
    record = await trio.to_thread.run_sync(decode, data, IndexRecord)
    if (record.peer, record.seq) != place:
        raise ObjectCorrupt(f"{index_key(*place)} is another index")
    return record


def _raise(_place: Place, error: ObjectMissing | ObjectCorrupt) -> None:
    raise error


async def each_index(
    backend: Backend,
    places: Sequence[Place],
    use: Callable[[Place, IndexRecord], Awaitable[None]],
    lacking: Callable[[Place, ObjectMissing | ObjectCorrupt], None] = _raise,
) -> None:
    """Await *use* with the index object of each of *places*, one at a time and in their order.

    As many are fetched at once as the remote likes; AHEAD_BYTES wait at most, and one is decoded. *lacking* is called
    instead for one that is gone or damaged.

    Raises: BackendError; what *use* and *lacking* raise. The others end.
    """
    held: dict[int, int] = {}
    turn, moved = 0, trio.Event()

    async def fetch(at: int, key: str) -> bytes:
        size_bytes = await _size(backend, key, OBJECT_MAX_BYTES)
        while at != turn and sum(held.values()) + size_bytes > AHEAD_BYTES:
            await moved.wait()
        held[at] = size_bytes
        return await backend.get(key, 0, size_bytes)

    async def read(item: tuple[int, Place]) -> None:
        nonlocal turn, moved
        at, place = item
        data, error = b"", None
        try:
            data = await fetch(at, index_key(*place))
        except (ObjectMissing, ObjectCorrupt) as trouble:
            error = trouble
        while at != turn:
            await moved.wait()
        try:
            if error is not None:
                raise error
            record = await _decoded(data, place)
        except (ObjectMissing, ObjectCorrupt) as trouble:
            lacking(place, trouble)
        else:
            await use(place, record)
        held.pop(at, None)
        turn += 1
        moved.set()
        moved = trio.Event()

    await for_each(backend, enumerate(places), read)


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
