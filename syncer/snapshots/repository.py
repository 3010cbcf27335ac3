"""Joins a DATA to the repository on its remote: creates it, builds DATA from it, or makes sure that we may write.

One machine writes at a time. Who it is, is decided from the immutable objects under `peers/` alone (records.py).
"""

import logging
import secrets
import socket
import time
from dataclasses import dataclass

import trio

from syncer.backends.base import Backend
from syncer.errors import BackendError, ObjectMissing, WrongRepository
from syncer.meta.store import MetaStore
from syncer.snapshots.build import build_tree, learn_packs, newest_snapshots
from syncer.snapshots.records import (
    FORMAT_KEY,
    VERSION,
    Format,
    PeerRecord,
    SnapshotRecord,
    current_writer,
    decode,
    decode_format,
    encode,
    encode_format,
    parse_peer_key,
    peer_key,
    snapshot_key,
)
from syncer.values import PeerId, TreeId

log = logging.getLogger(__name__)

CHECK_S = 5.0
"""How long a mount of a known DATA looks at the remote before it goes on without. Publications look again."""


@dataclass(frozen=True, slots=True)
class Membership:
    """How DATA stands to its repository; *read_only_reason* says why it must not write, if so."""

    read_only_reason: str | None


async def join(meta: MetaStore, backend: Backend, *, take_over: bool, uid: int, gid: int) -> Membership:
    """Make *meta* part of the repository on the remote.

    A DATA that belongs to it already needs no network. An empty one does: the repository is created for the user
    *uid*, *gid*, or the live tree is built from its newest snapshot.

    Raises:
        WrongRepository: DATA belongs to another repository.
        BackendError: an empty DATA, and the remote cannot be used.
    """
    if meta.peer:
        with trio.move_on_after(CHECK_S):
            try:
                return Membership(await check_writer(meta, backend))
            except BackendError as error:
                log.warning("the remote cannot be asked now: %s", error)
        return Membership(None)
    if meta.inodes.totals.directories:
        meta.wipe()  # a build that was interrupted, or a read-only view that may be old
    try:
        repository = decode_format(await backend.get(FORMAT_KEY)).repository
    except ObjectMissing:
        repository = await _create(backend)
    meta.database.set_state("repository", bytes.fromhex(repository))
    peers = await read_peers(backend)
    return await _join_existing(meta, backend, peers, take_over=take_over, uid=uid, gid=gid)


async def _create(backend: Backend) -> str:
    """Write the `format` of a new repository, in a place where nothing of one is."""
    async for info in backend.list("packs/"):
        raise WrongRepository(
            f"the remote has packs ({info.key}) but no format object",
            hint="bring the object `format` back, or use an empty remote",
        )
    repository = secrets.token_hex(16)
    await backend.put(FORMAT_KEY, encode_format(Format(VERSION, repository, time.time_ns())))
    return repository


async def read_peers(backend: Backend) -> list[PeerRecord]:
    """Every peer of the repository. Raises: BackendError."""
    records = []
    async for info in backend.list("peers/"):
        if parse_peer_key(info.key) is not None:
            records.append(decode(await backend.get(info.key), PeerRecord))
    return records


async def check_writer(meta: MetaStore, backend: Backend) -> str | None:
    """Why *meta*'s peer must not write to the repository on the remote; None when it may.

    Raises:
        WrongRepository: it is another repository.
        BackendError: the remote cannot tell.
    """
    try:
        repository = decode_format(await backend.get(FORMAT_KEY)).repository
    except ObjectMissing as error:
        raise WrongRepository(
            f"there is no repository at {backend.name}",
            hint="bring it back, or give an empty DATA to begin a new one",
        ) from error
    if bytes.fromhex(repository) != meta.database.state_bytes("repository"):
        raise WrongRepository(
            f"DATA belongs to another repository than the one at {backend.name}",
            hint="give the remote it was made with, or an empty DATA",
        )
    writer = current_writer(await read_peers(backend))
    if writer is not None and writer.machine != meta.database.state_bytes("machine"):
        return f"{writer.host} has taken over this repository; an empty DATA can join it"
    return None


async def _join_existing(
    meta: MetaStore, backend: Backend, peers: list[PeerRecord], *, take_over: bool, uid: int, gid: int
) -> Membership:
    writer = current_writer(peers)
    snapshot = None
    if writer is not None:
        snapshot = await _newest_of(backend, writer)
    if snapshot is not None:
        await learn_packs(meta, backend)
        await build_tree(meta, backend, snapshot)
        data = encode(snapshot)
        meta.snapshots.learn(PeerId(snapshot.peer), snapshot.seq, TreeId(snapshot.root), snapshot.time_ns, data)
        log.info("built from snapshot %d/%d of %s", snapshot.peer, snapshot.seq, snapshot.host)
    else:
        meta.ensure_root(uid, gid)
    meta.commit()
    if writer is not None and not take_over and not (snapshot is not None and snapshot.released):
        return Membership(f"{writer.host} writes to this repository; unmount it there, or give --take-over")
    await _become_peer(meta, backend, peers, writer, snapshot)
    return Membership(None)


async def _newest_of(backend: Backend, writer: PeerRecord) -> SnapshotRecord | None:
    """The snapshot the repository is at: the writer's newest, or the one it began with."""
    newest = await newest_snapshots(backend)
    seq = newest.get(PeerId(writer.peer))
    place = (writer.peer, seq) if seq is not None else (writer.after[0] if writer.after else None)
    return None if place is None or not place[1] else decode(await backend.get(snapshot_key(*place)), SnapshotRecord)


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
    forced = writer is not None and not (snapshot is not None and snapshot.released)
    record = PeerRecord(VERSION, peer, machine, socket.gethostname(), time.time_ns(), after, forced)
    await backend.put(peer_key(peer), encode(record))
    if decode(await backend.get(peer_key(peer)), PeerRecord).machine != machine:
        raise WrongRepository("another machine joined the repository at the same moment", hint="try again")
    meta.database.set_state("machine", machine)
    meta.become(peer)
    meta.commit()
