"""Rebuilds a lost or damaged meta.db: from the newest snapshot of this peer, and from what DATA still holds.

The new one grows in DATA/recovering, from sources that are not touched. When it is complete a file `done` says so, and
only then things change places: what was there before goes to DATA/recovered-<time>. Killed at any moment, the next run
begins anew before `done`, and finishes the exchange after it.
"""

import contextlib
import itertools
import json
import logging
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import trio

from syncer.backends.base import Backend
from syncer.blocks.pack import pack_key
from syncer.disk import sync_folder, sync_paths, write_private
from syncer.errors import DataUnusable, LocalDamage, ObjectMissing, RemoteUnreachable, WrongRepository
from syncer.meta.journal import positions, read_records
from syncer.meta.leftovers import Leftovers, good_blocks
from syncer.meta.rebuild import Rebuild
from syncer.meta.replayer import MARK, Record, Replayer, after_snapshot, records
from syncer.meta.salvage import Salvaged, is_sound, read_state, salvage, unindexed_packs
from syncer.meta.store import MetaStore
from syncer.snapshots.build import build_tree, learn_packs
from syncer.snapshots.reading import read_format
from syncer.snapshots.records import (
    PeerRecord,
    SnapshotRecord,
    current_writer,
    encode,
    parse_seq_key,
)
from syncer.snapshots.repository import newest_of, read_peers
from syncer.values import PEER_SHIFT, BlockId, PackId, PeerId, TreeId

log = logging.getLogger(__name__)

FOLDER, DONE, ASIDE = "recovering", "done", "recovered-"
PEER_FILE = "peer"
SPARE_INODES = 1 << 20
"""Numbers that are left out, because somebody may have got one of them after what is known here."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What became of the files. *lost*: what could not be had, for people. *aside*: the folder with what was before."""

    from_remote: int
    newer: int
    found: int
    lost: list[str]
    aside: str


@dataclass(frozen=True, slots=True)
class _Base:
    """What the remote has of our past."""

    peer: PeerRecord
    snapshot: SnapshotRecord | None


def note_peer(data: Path, meta: MetaStore) -> None:
    """Write down outside of meta.db which peer of which repository DATA is."""
    repository = meta.database.state_bytes("repository")
    if not meta.peer or repository is None:
        return
    text, path = f"{repository.hex()} {meta.peer}\n".encode(), data / PEER_FILE
    if not path.exists() or path.read_bytes() != text:
        write_private(path, text)


async def recover(
    data: Path, backend: Backend, *, force: bool, uid: int, gid: int, say: Callable[[str], None]
) -> Summary:
    """Rebuild meta.db of DATA, whose lock the caller holds. *uid* and *gid* own what goes to lost+found.

    Raises:
        DataUnusable: nothing is wrong with meta.db, and it is not forced.
        BackendError: the remote cannot be read; DATA is as it was.
        WrongRepository: DATA belongs to another one, or does not say to whom it belonged.
    """
    if not (data / FOLDER / DONE).exists():
        if not force and _is_sound(data):
            with contextlib.suppress(OSError):  # the last thing that one which was killed had to do
                (data / FOLDER).rmdir()
            raise DataUnusable(f"nothing is wrong with {data / 'meta.db'}", hint="mount it, or give --force")
        await _Recovery(data, backend, uid, gid, say).run()
    return _exchange(data)


def _is_sound(data: Path) -> bool:
    if not (data / "meta.db").exists() or not is_sound(data / "meta.db"):
        return False
    try:
        for _ in read_records(data / "journal", int(read_state(data / "meta.db").get("journal_position", 0))):
            pass
    except LocalDamage:
        return False
    return True


class _Recovery:
    def __init__(self, data: Path, backend: Backend, uid: int, gid: int, say: Callable[[str], None]) -> None:
        self._data = data
        self._folder = data / FOLDER
        self._backend = backend
        self._owner = uid, gid
        self._say = say
        self._records, self._positions, self._begins = _journal(data / "journal")

    async def run(self) -> None:
        repository = await self._repository()
        base = await self._base(repository)
        if self._folder.exists():
            shutil.rmtree(self._folder)
        (self._folder / "journal").mkdir(mode=0o700, parents=True)
        os.chmod(self._folder, 0o700)
        meta = MetaStore(self._folder)
        try:
            await self._build(meta, base, repository)
            summary, unused = await self._fill(meta, base)
        finally:
            meta.close()
        self._finish(summary, unused)

    # --- whose DATA ----------------------------------------------------------------------------------------------

    async def _repository(self) -> bytes:
        try:
            repository = bytes.fromhex((await read_format(self._backend)).repository)
        except ObjectMissing as error:
            raise RemoteUnreachable(
                f"the repository is not at {self._backend.name}", hint="bring it back, or give the right remote"
            ) from error
        known, _ = self._noted()
        if known is not None and known != repository:
            raise WrongRepository(
                f"DATA belongs to another repository than the one at {self._backend.name}",
                hint="give the remote it was made with",
            )
        return repository

    def _noted(self) -> tuple[bytes | None, int]:
        """(repository, peer) as DATA says, as far as it does."""
        try:
            text, number = (self._data / PEER_FILE).read_text("ascii").split()
            return bytes.fromhex(text), int(number)
        except (OSError, ValueError):
            pass
        state = read_state(self._data / "meta.db")
        found, peer = state.get("repository"), state.get("peer")
        if isinstance(found, bytes) and isinstance(peer, int) and peer:
            return found, peer
        made = [arguments[2] for operation, arguments in self._records if operation == 10]
        return None, max((number >> PEER_SHIFT for number in made), default=0)

    async def _base(self, repository: bytes) -> _Base:
        """Our peer, and the snapshot to begin with. Raises: WrongRepository."""
        peers = await read_peers(self._backend)
        number = self._noted()[1]
        mine = next((record for record in peers if record.peer == number), None)
        if mine is None:
            writer = current_writer(peers)
            if writer is None or writer.host != socket.gethostname():
                raise WrongRepository(
                    f"nothing in {self._data} says which peer of the repository it was",
                    hint="an empty DATA can join it; keep this one for the bytes in cache/ and dirty/",
                )
            mine = writer
        return _Base(mine, await newest_of(self._backend, peers, mine))

    # --- from the remote -----------------------------------------------------------------------------------------

    async def _build(self, meta: MetaStore, base: _Base, repository: bytes) -> None:
        self._say("reading the index and the newest snapshot from the remote")
        meta.database.set_state("repository", repository)
        meta.database.set_state("machine", base.peer.machine)
        known = await learn_packs(meta, self._backend)
        next_inode = 0
        if base.snapshot is not None:
            shot = base.snapshot
            await build_tree(meta, self._backend, shot, known)
            meta.snapshots.learn(PeerId(shot.peer), shot.seq, TreeId(shot.root), shot.time_ns, encode(shot))
            meta.snapshots.built()
            next_inode = shot.next_inode if shot.peer == base.peer.peer else 0
        made = [arguments[2] + 1 for operation, arguments in self._records if operation == 10]
        peer = PeerId(base.peer.peer)
        ours = [number for number in (*made, next_inode) if number >> PEER_SHIFT == peer]
        meta.become(peer, max(ours, default=(peer << PEER_SHIFT) + 1) + SPARE_INODES)
        meta.commit()

    async def _take_seqs(self, meta: MetaStore, base: _Base, taken: dict[str, int]) -> None:
        """No number that may have been used is used again."""
        seqs = {"snapshot": 0, "index": 0, **taken}
        for kind, folder in (("snapshot", "snapshots/"), ("index", "index/")):
            async for info in self._backend.list(folder):
                found = parse_seq_key(info.key)
                if found is not None and found[0] == base.peer.peer:
                    seqs[kind] = max(seqs[kind], found[1])
            meta.database.set_state(f"{kind}_seq", seqs[kind])

    async def _stored_packs(self, meta: MetaStore) -> set[PackId]:
        """Packs of the journal that are on the remote."""
        stored: set[PackId] = set()
        for operation, arguments in self._records:
            if operation == 30 and await self._is_stored(PackId(arguments[0]), arguments[1]):
                stored.add(PackId(arguments[0]))
        return stored

    async def _is_stored(self, pack_id: PackId, size: int) -> bool:
        try:
            return (await self._backend.stat(pack_key(pack_id))).size_bytes == size
        except ObjectMissing:
            return False

    # --- from here -----------------------------------------------------------------------------------------------

    async def _fill(self, meta: MetaStore, base: _Base) -> tuple[Summary, list[Path]]:
        self._say("verifying the blocks in the cache")
        good, bad = await trio.to_thread.run_sync(good_blocks, self._data / "cache")
        stored = await self._stored_packs(meta)
        ours = base.snapshot is not None and base.snapshot.peer == base.peer.peer
        seq = base.snapshot.seq if base.snapshot is not None and ours else 0
        first = after_snapshot(self._records, seq) if seq else (0 if self._begins == 0 else None)
        self._say("replaying the journal" if first is not None else "salvaging what is newer than the snapshot")
        rebuild = Rebuild(meta)
        if first is not None:
            replayer = Replayer(meta, None, stored)
            replayer.replay(self._records[first:])
        else:
            trusted, start = await self._merge(meta, rebuild, good)
            replayer = Replayer(meta, trusted, stored)
            replayer.replay(self._records[start:])
        await self._take_seqs(meta, base, replayer.seqs)
        meta.ensure_root(*self._owner)
        leftovers = Leftovers(meta, self._data, good, *self._owner)
        self._straighten(meta, rebuild, leftovers)
        certain = first is not None and not replayer.passed_over
        leftovers.adopt_blocks(certain=certain)
        leftovers.mark_lost()
        leftovers.adopt_dirty({int(dirty) for dirty in meta.extents.dropped}, certain=certain)
        rebuild.mend()
        rebuild.count()
        for path in (self._data / "dirty").iterdir():
            if path.name.isdigit():
                meta.extents.skip_dirty(int(path.name))
        meta.commit()
        return self._summary(meta, leftovers), [*bad, *leftovers.placed.unused]

    async def _merge(self, meta: MetaStore, rebuild: Rebuild, good: dict[BlockId, int]) -> tuple[set[int], int]:
        """What is left of meta.db over the snapshot: (the inodes that are known, the first record after its commit)."""
        damaged = self._data / "meta.db"
        if not damaged.exists():
            return set(), 0
        file = self._folder / "salvaged.db"
        salvaged = salvage(damaged, file)
        log.info("salvaged %d rows of %s; not read whole: %s", salvaged.rows, damaged, sorted(salvaged.gaps) or "-")
        for pack_id, size, kind, entries in unindexed_packs(file):
            if await self._is_stored(pack_id, size):
                meta.database.replay(30, (pack_id, size, kind, entries))
        trusted = rebuild.merge(file, salvaged, good, int(time.time()))
        return self._from(salvaged, trusted)

    def _from(self, salvaged: Salvaged, trusted: set[int]) -> tuple[set[int], int]:
        position = salvaged.state.get("journal_position")
        if isinstance(position, int):
            for index, (begin, _) in enumerate(self._positions):
                if begin == position:
                    return trusted, index
            if self._positions and self._positions[-1][1] == position:
                return trusted, len(self._records)
        return set(), 0

    def _straighten(self, meta: MetaStore, rebuild: Rebuild, leftovers: Leftovers) -> None:
        """One tree in which every inode has its name."""
        meta.commit()
        for number in meta.inodes.orphans():
            meta.database.replay(52, (number,))
        tops = rebuild.mend()
        for number in tops:
            leftovers.attach(number)
        if tops:
            rebuild.mend()

    def _summary(self, meta: MetaStore, leftovers: Leftovers) -> Summary:
        changed = meta.inodes.changed_files()
        found, lost = leftovers.placed.found, leftovers.placed.lost
        newer = max(0, changed - found)
        aside = time.strftime(f"{ASIDE}%Y-%m-%dT%H-%M-%SZ", time.gmtime())
        return Summary(max(0, meta.inodes.totals.files - newer - found), newer, found, lost, aside)

    def _finish(self, summary: Summary, unused: list[Path]) -> None:
        """All is there: make it durable, and say so."""
        for name in ("salvaged.db", "meta.db-wal", "meta.db-shm"):
            (self._folder / name).unlink(missing_ok=True)
        moved = [os.fsdecode(path.relative_to(self._data)) for path in unused]
        sync_paths([self._folder / "meta.db"])
        write_private(self._folder / DONE, json.dumps({"summary": asdict(summary), "unused": moved}).encode())


def _journal(folder: Path) -> tuple[list[Record], list[tuple[int, int]], int]:
    """(records, where each begins and ends, where the first begins) of what the journal has without a gap.

    A power cut may bring an old segment back, without those that came between it and the others: what is older than
    the newest snapshot does not count where there is a gap.
    """
    runs = [_run(folder, begin) for begin in _begins_of_runs(folder)]
    marked = [run for run in runs if any(operation == MARK for operation, _ in run[0])]
    return (marked[-1:] or runs[:1] or [([], [], 0)])[0]


def _begins_of_runs(folder: Path) -> Iterator[int]:
    """Where what has no gap begins: at the oldest segment, and behind each gap."""
    end = -1
    for begin in positions(folder):
        if begin > end:
            yield begin
            end = max((position for position, _ in read_records(folder, begin)), default=begin)


def _run(folder: Path, begin: int) -> tuple[list[Record], list[tuple[int, int]], int]:
    payloads: list[bytes] = []
    places: list[tuple[int, int]] = []
    position = begin
    for end, payload in read_records(folder, begin):
        payloads.append(payload)
        places.append((position, end))
        position = end
    return records(payloads), places, begin


# --- changing places --------------------------------------------------------------------------------------------


def _exchange(data: Path) -> Summary:
    """Put the new meta.db in the place of the old one. May be done again after a crash at any point of it."""
    folder = data / FOLDER
    done = json.loads((folder / DONE).read_text())
    summary = Summary(**done["summary"])
    aside = data / summary.aside
    if (folder / "meta.db").exists():
        for source, target in _moves(data, aside, done["unused"]):
            for above in reversed([*itertools.takewhile(lambda place: place != aside, target.parents), aside]):
                above.mkdir(mode=0o700, exist_ok=True)  # one by one: with `parents` those would get another mode
            if source.exists():
                source.rename(target)
        if aside.exists():
            sync_folder(aside)
        sync_folder(data)
        (folder / "meta.db").rename(data / "meta.db")
        sync_folder(data)
    for path in folder.iterdir():
        if path.name != DONE:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    (folder / DONE).unlink()  # last: while it is there this is begun again
    folder.rmdir()
    return summary


def _moves(data: Path, aside: Path, unused: Sequence[str]) -> Iterator[tuple[Path, Path]]:
    for name in ("meta.db", "meta.db-wal", "meta.db-shm", "meta.db-journal"):
        yield data / name, aside / name
    for path in list((data / "journal").iterdir()):
        yield path, aside / "journal" / path.name
    for text in unused:
        yield data / text, aside / text
