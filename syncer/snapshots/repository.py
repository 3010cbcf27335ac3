"""Joins a DATA to the repository on its remote: creates it, builds DATA from it, or makes sure that we may write.

One machine writes at a time. Who it is, is decided from the immutable objects under `peers/` alone (records.py).
"""

import contextlib
import logging
import secrets
import socket
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import trio

from syncer.backends.base import Backend, ObjectInfo
from syncer.backends.confirmed import put_read_back
from syncer.backends.together import for_each
from syncer.blocks.pack import pack_key
from syncer.errors import BackendError, DataUnusable, ObjectCorrupt, ObjectMissing, RemoteUnreachable, WrongRepository
from syncer.meta.store import MetaStore
from syncer.snapshots.build import (
    INDEXES,
    build_tree,
    digest_of,
    exists,
    learn_packs,
    listed_indexes,
    newest_left_out,
    newest_snapshots,
)
from syncer.snapshots.needs import MACHINE, PUT, TAKEN
from syncer.snapshots.reading import (
    INDEXES_GONE,
    INDEXES_READ,
    LISTED,
    decode_places,
    encode_places,
    listed_places,
    read_format,
    read_record,
    read_snapshot,
)
from syncer.snapshots.records import (
    FORMAT_KEY,
    VERSION,
    Format,
    PeerRecord,
    SnapshotRecord,
    current_writer,
    encode,
    encode_format,
    parse_peer_key,
    peer_key,
    snapshot_key,
)
from syncer.values import ROOT_INODE, PackId, PeerId, TreeId

log = logging.getLogger(__name__)

PEERS_MAX = 1024
"""Machines that ever wrote to a repository, one after the other: more are not believed."""
FOLLOWS = "follows"
"""Key of the state, see `is_follower`."""
OUTDATED_MIN = 64
"""So few indexes may be gone all of them: little is known from them."""
PACKS_ASKED = 64
"""So many packs tell how much of what is known here is gone."""
CHECK_S = 5.0
"""How long a mount of a known DATA looks at the remote before it goes on without. Publications look again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What the user wants of a repository. *uid* and *gid* own the root of a new one."""

    read_only: bool
    take_over: bool
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Membership:
    """How DATA stands to its repository; *read_only_reason* says why it must not write, if so."""

    read_only_reason: str | None


async def join(meta: MetaStore, backend: Backend, wish: Wish) -> Membership:
    """Make *meta* part of the repository on the remote.

    A DATA that belongs to it already needs no network. An empty one does: the repository is created, or the live tree
    is built from its newest snapshot.

    Raises:
        DataUnusable: DATA follows a writer.
        WrongRepository: DATA belongs to another repository, or there is none and *wish* is to read only.
        BackendError: an empty DATA, and the remote cannot be used.
    """
    if is_follower(meta):
        raise DataUnusable("DATA follows what another machine writes", hint="give --follow, or name an empty DATA")
    if meta.peer:
        with trio.move_on_after(CHECK_S):
            try:
                return Membership(await check_writer(meta, backend))
            except BackendError as error:
                log.warning("the remote cannot be asked now: %s", error)
        return Membership(None)
    try:
        repository = (await read_format(backend)).repository
    except ObjectMissing:
        repository = await _create(backend, wish)
    except BackendError as error:
        if not meta.snapshots.is_built():
            raise
        return Membership(f"the remote cannot be asked ({error}), and this DATA has not joined as a writer")
    _take_repository(meta, backend, bytes.fromhex(repository))
    return await _join_existing(meta, backend, await read_peers(backend), wish)


async def visit(meta: MetaStore, backend: Backend) -> Membership:
    """Make an empty *meta* know where the repository has its blocks, without its live tree: for who looks at history.

    Raises:
        WrongRepository: there is none.
        BackendError: the remote cannot be read.
    """
    try:
        repository = (await read_format(backend)).repository
    except ObjectMissing as error:
        raise _no_repository(backend, "see whether that is the place that was mounted") from error
    _take_repository(meta, backend, bytes.fromhex(repository))
    await learn_packs(meta, backend)
    return Membership(None)


def is_follower(meta: MetaStore) -> bool:
    """Whether DATA shows what another machine writes, and has nothing of its own."""
    return bool(meta.database.state_integer(FOLLOWS))


async def follow(meta: MetaStore, backend: Backend) -> Membership:
    """Make *meta* belong to the repository without a live tree, for who follows its writer.

    The remote need not be there: what was shown last can be shown again.

    Raises:
        DataUnusable: DATA has a file system of its own.
        WrongRepository: the remote has none, or another one.
        BackendError: the remote refuses us.
    """
    if meta.peer or meta.snapshots.is_built() or meta.inodes.get(ROOT_INODE) is not None:
        raise DataUnusable(
            "DATA holds a file system of its own", hint="give --follow an empty DATA, or mount this one without it"
        )
    known = meta.database.state_bytes("repository")
    meta.database.set_state(FOLLOWS, 1)
    with trio.move_on_after(CHECK_S):
        try:
            _take_repository(meta, backend, bytes.fromhex((await read_format(backend)).repository))
        except ObjectMissing as error:
            if known is None:
                raise _no_repository(backend, "mount it for writing on another machine first") from error
            log.warning("the repository is not at %s now", backend.name)
        except BackendError as error:
            if not error.retry:
                raise
            log.warning("the remote cannot be asked now: %s", error)
        else:
            await _forget_outdated(meta, backend)
    meta.commit()
    return Membership(None)


async def _forget_outdated(meta: MetaStore, backend: Backend) -> None:
    """Begin anew where most of the indexes are gone from which it is known what is where: prunes have replaced them.

    Else what is known of packs that are gone would be kept for ever.
    """
    known = decode_places(meta.database.state_bytes(INDEXES_READ))
    try:
        gone = known - await listed_places(backend, "index/")
    except BackendError as error:
        log.info("whether much of what is known is outdated cannot be told: %s", error)
        return
    count = meta.database.state_integer(INDEXES_GONE) + len(gone)
    if 2 * count <= max(len(known), OUTDATED_MIN):
        return
    missing, asked = await _gone_packs(meta, backend)
    if 2 * missing <= asked:  # they were merged
        meta.database.set_state(INDEXES_GONE, 0)
        meta.database.set_state(INDEXES_READ, encode_places(known - gone))
        return
    log.info("%d of %d packs that are known here are gone: the indexes are read anew", missing, asked)
    kept = {key: meta.database.state_bytes(key) for key in ("repository", MACHINE, PUT)}
    taken = meta.database.state_integer(TAKEN)
    meta.wipe()
    meta.database.set_state(FOLLOWS, 1)
    meta.database.set_state(TAKEN, taken)
    for key, value in kept.items():
        if value is not None:
            meta.database.set_state(key, value)


async def _gone_packs(meta: MetaStore, backend: Backend) -> tuple[int, int]:
    """How many of some packs that are known here are gone, and of how many. Raises: BackendError."""
    packs = meta.blocks.some_packs(PACKS_ASKED)
    missing = 0

    async def ask(pack_id: PackId) -> None:
        nonlocal missing
        if not await exists(backend, pack_key(pack_id)):
            missing += 1

    await for_each(backend, packs, ask)
    return missing, len(packs)


def _no_repository(backend: Backend, hint: str = "mount it once without --read-only") -> WrongRepository:
    return WrongRepository(f"there is no repository at {backend.name} to read", hint=hint)


def _take_repository(meta: MetaStore, backend: Backend, repository: bytes) -> None:
    known = meta.database.state_bytes("repository")
    if known is not None and known != repository:
        raise _another(backend)
    meta.database.set_state("repository", repository)


def _another(backend: Backend) -> WrongRepository:
    return WrongRepository(
        f"DATA belongs to another repository than the one at {backend.name}",
        hint="give the remote it was made with, or an empty DATA",
    )


async def _create(backend: Backend, wish: Wish) -> str:
    """Write the `format` of a new repository, in a place where nothing of one is."""
    if wish.read_only:
        raise _no_repository(backend)
    found = [info.key for prefix in ("packs/", "peers/", "snapshots/") async for info in _first(backend, prefix)]
    if not found and await exists(backend, peer_key(1)):
        found = [peer_key(1)]  # a listing may leave something out
    if found:
        raise WrongRepository(
            f"the remote has {found[0]} but no format object",
            hint="bring the object `format` back, or use an empty remote",
        )
    repository = secrets.token_hex(16)
    await put_read_back(backend, FORMAT_KEY, encode_format(Format(VERSION, repository, time.time_ns())))
    return repository


async def _first(backend: Backend, prefix: str) -> AsyncIterator[ObjectInfo]:
    """One object under *prefix*, if there is any."""
    async for info in backend.list(prefix):
        yield info
        return


async def read_peers(backend: Backend) -> list[PeerRecord]:
    """Every peer of the repository. Raises: BackendError.

    A listing may leave one out. Peers are numbered one after the other, so those between the ones it shows are asked
    for, and the one that would come next.
    """
    listed = {peer for peer in [parse_peer_key(info.key) async for info in backend.list("peers/")] if peer is not None}
    if len(listed) > PEERS_MAX:
        raise ObjectCorrupt(f"{backend.name} lists {len(listed)} machines; no repository has so many")
    records = [await _read_peer(backend, peer) for peer in sorted(listed)]
    peer = PeerId(1)
    while peer <= min(max(listed, default=0) + 1, PEERS_MAX):
        if peer not in listed:
            with contextlib.suppress(ObjectMissing):
                records.append(await _read_peer(backend, peer))
                listed.add(peer)
        peer = PeerId(peer + 1)
    return records


async def _read_peer(backend: Backend, peer: PeerId) -> PeerRecord:
    key = peer_key(peer)
    record = await read_record(backend, key, PeerRecord)
    if record.peer != peer:
        raise ObjectCorrupt(f"{key} is the record of another peer")
    return record


async def check_writer(meta: MetaStore, backend: Backend) -> str | None:
    """Why *meta*'s peer must not write to the repository on the remote; None when it may.

    Raises:
        WrongRepository: it is another repository.
        BackendError: the remote cannot tell.
    """
    try:
        repository = (await read_format(backend)).repository
    except ObjectMissing as error:
        raise RemoteUnreachable(
            f"the repository is not at {backend.name} now", hint="plug in its disk, or bring it back"
        ) from error
    if bytes.fromhex(repository) != meta.database.state_bytes("repository"):
        raise _another(backend)
    writer = current_writer(await read_peers(backend))
    if writer is not None and writer.machine != meta.database.state_bytes("machine"):
        return f"{writer.host} has taken over this repository; an empty DATA can join it"
    return None


async def _join_existing(meta: MetaStore, backend: Backend, peers: list[PeerRecord], wish: Wish) -> Membership:
    writer = current_writer(peers)
    snapshot = None if writer is None else await newest_of(backend, peers, writer)
    if snapshot is None:
        meta.ensure_root(wish.uid, wish.gid)
    else:
        await _build(meta, backend, snapshot)
    meta.commit()
    if wish.read_only:
        return Membership(None)
    if writer is not None and writer.machine == meta.database.state_bytes("machine"):
        await _check_indexes(meta, backend)
        meta.become(PeerId(writer.peer))  # we joined, and were stopped before we could note it
        meta.commit()
        return Membership(None)
    if writer is not None and not wish.take_over and not _is_released(writer, snapshot):
        return Membership(f"{writer.host} writes to this repository; unmount it there, or give --take-over")
    await _become_peer(meta, backend, peers, writer, snapshot)
    return Membership(None)


async def _build(meta: MetaStore, backend: Backend, snapshot: SnapshotRecord) -> None:
    """Fill *meta* from the snapshot, unless it shows that one already."""
    head = meta.snapshots.head()
    same = head is not None and (head.peer, head.seq) == (snapshot.peer, snapshot.seq)
    if same and meta.snapshots.is_built() and await _are_indexes_known(meta, backend):
        return
    kept = {key: meta.database.state_bytes(key) for key in ("repository", "machine")}
    meta.wipe()  # of an older view, or a build that was interrupted
    for key, value in kept.items():
        if value is not None:
            meta.database.set_state(key, value)
    await build_tree(meta, backend, snapshot, await learn_packs(meta, backend))
    place = PeerId(snapshot.peer), snapshot.seq
    meta.snapshots.learn(*place, TreeId(snapshot.root), snapshot.time_ns, encode(snapshot))
    meta.snapshots.built()
    log.info("built from snapshot %d/%d of %s", *place, snapshot.host)


async def _are_indexes_known(meta: MetaStore, backend: Backend) -> bool:
    """Whether the remote has just the index objects that what is known here was learned from."""
    known = meta.database.state_bytes(INDEXES)
    return known is None or digest_of(await listed_indexes(backend)) == known


async def _check_indexes(meta: MetaStore, backend: Backend) -> None:
    """Right after we have become the writer: what we know of packs must still be so.

    The writer before may have deleted packs until just then. It looks who writes once the last index that lists them is
    gone, and before it deletes them; so if the indexes are those that were read, all packs they list stay.

    Raises: RemoteUnreachable: they are others; the next try begins with those.
    """
    if not await _are_indexes_known(meta, backend):
        meta.database.set_state("built", 0)
        meta.commit()
        raise RemoteUnreachable(f"{backend.name} was changed at the same moment", hint="try again")


def _is_released(writer: PeerRecord, snapshot: SnapshotRecord | None) -> bool:
    """Whether the writer has put the repository down: it alone can, so what it began with does not count."""
    return snapshot is not None and snapshot.released and snapshot.peer == writer.peer


async def newest_of(backend: Backend, peers: list[PeerRecord], writer: PeerRecord) -> SnapshotRecord | None:
    """The snapshot the repository is at: the writer's newest, or the one it began with. None when there is none.

    A writer that published nothing may have followed one that published nothing either, and so on.
    """
    known = {record.peer: record for record in peers}
    place = writer.peer, await _newest_seq(backend, writer.peer)
    while not place[1]:
        record = known.pop(place[0], None)  # popped, so that a circle ends
        if record is None or not record.after:
            return None
        place = record.after[0]
    return (await read_snapshot(backend, PeerId(place[0]), place[1]))[0]


async def _newest_seq(backend: Backend, peer: int) -> int:
    """The number of the peer's newest snapshot, 0 without one, also if a listing leaves it out."""

    async def is_there(seq: int) -> bool:
        return await exists(backend, snapshot_key(peer, seq))

    return await newest_left_out((await newest_snapshots(backend)).get(PeerId(peer), 0), is_there)


async def _become_peer(
    meta: MetaStore,
    backend: Backend,
    peers: list[PeerRecord],
    writer: PeerRecord | None,
    snapshot: SnapshotRecord | None,
) -> None:
    """Claim the next inode prefix, and with it the right to write."""
    peer = PeerId(max((record.peer for record in peers), default=0) + 1)
    machine = secrets.token_bytes(16)
    after: tuple[tuple[int, int], ...] = ()
    if writer is not None:
        after = ((writer.peer, snapshot.seq if snapshot is not None and snapshot.peer == writer.peer else 0),)
    forced = writer is not None and not _is_released(writer, snapshot)
    record = PeerRecord(VERSION, peer, machine, socket.gethostname(), time.time_ns(), after, forced)
    meta.database.set_state("machine", machine)
    meta.commit()
    meta.database.checkpoint_here()  # durable before the put: whatever happens then, we know our own record
    await backend.put(peer_key(peer), encode(record))
    if (await read_record(backend, peer_key(peer), PeerRecord)).machine != machine:
        raise WrongRepository("another machine joined the repository at the same moment", hint="try again")
    await _check_indexes(meta, backend)
    meta.become(peer)
    if writer is None:
        meta.database.set_state(LISTED, 1)  # nobody has taken a snapshot before
    meta.commit()
