"""Builds the live tree of an empty DATA from a snapshot, without fetching the contents of files.

The trees are walked in a thread, which asks the event loop for packs of nodes and for the rows to be written: SQLite
belongs to the event loop, and so do the backends.
"""

import contextlib
import itertools
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Sequence

import trio
from blake3 import blake3

from syncer.backends.base import Backend
from syncer.blocks.codec import open_sealed
from syncer.blocks.pack import pack_key
from syncer.errors import ObjectCorrupt, ObjectMissing
from syncer.meta.importer import ImportedInode, Importer
from syncer.meta.store import MetaStore
from syncer.snapshots.elsewhere import Elsewhere
from syncer.snapshots.extenttree import iter_extents
from syncer.snapshots.nodes import Entry
from syncer.snapshots.planter import LARGE_ENTRIES
from syncer.snapshots.reading import LIST_TRIES, Place, each_index, read_bounded, read_index
from syncer.snapshots.records import IndexRecord, SnapshotRecord, index_key, parse_seq_key
from syncer.snapshots.tree import iter_directory, load_root
from syncer.values import ROOT_INODE, BlockId, Location, PackId, PeerId, TreeId

log = logging.getLogger(__name__)

PACKS_KEPT = 4
TREE_PACK_MAX_BYTES = 32 * 1024 * 1024
"""A pack is closed at 8 MiB; its last node and its list come on top."""
ENTRIES_AT_ONCE = 2000
DIRECTORY = 0o040000
SEQS_AHEAD = (1, 2, 3, 4, 8, 16, 32, 64)
"""So far after the newest object of a peer that a listing shows it is asked for more: it may have left some out, and
numbers may have been skipped. From each that is there on again."""
LEFT_OUT_MAX = 10_000
"""More objects in a row than any listing leaves out: such a remote says yes to whatever it is asked for."""
GAPS_ASKED = 256
"""So many indexes of a peer that no listing shows are asked for by name."""


INDEXES = "indexes"
"""Key of the state: which index objects what is known here was learned from."""


async def listed_indexes(backend: Backend) -> list[str]:
    """The keys of all index objects, in their order. Raises: BackendError."""
    return sorted([info.key async for info in backend.list("index/") if parse_seq_key(info.key) is not None])


def digest_of(keys: Sequence[str]) -> bytes:
    """What tells one list of index objects from another."""
    return blake3("\n".join(keys).encode()).digest()


async def learn_packs(meta: MetaStore, backend: Backend) -> set[Place]:
    """Read every index object that the remote lists into tables that know of no packs; returns which.

    Raises: BackendError, ObjectCorrupt among them.
    """
    importer = Importer(meta.database)

    async def learn(_place: Place, record: IndexRecord) -> None:
        await _learn_index(importer, record)

    for tries_left in reversed(range(LIST_TRIES)):
        keys = await listed_indexes(backend)
        meta.database.set_state(INDEXES, digest_of(keys))
        places = [place for key in keys if (place := parse_seq_key(key)) is not None]
        try:
            await each_index(backend, places, learn)
            break
        except ObjectMissing:
            # The writer has put another in its place meanwhile. What was read until now may list packs that went with
            # it, so it does not count.
            if not tries_left:
                raise
            importer.forget_packs()
    meta.commit()
    return set(places)


async def _learn_index(importer: Importer, record: IndexRecord, *, late: bool = False) -> None:
    for pack in record.packs:
        importer.add_pack(
            PackId(pack.id),
            pack.size,
            pack.kind,
            record.seq,
            [(BlockId(block_id), offset, sealed, plain) for block_id, offset, sealed, plain in pack.blocks],
            late=late,
        )
    await trio.lowlevel.checkpoint()


async def newest_left_out(newest: int, is_there: Callable[[int], Awaitable[bool]]) -> int:
    """The newest sequence number, from *newest* on, that *is_there* although no listing may show it.

    Raises: ObjectCorrupt: there is no end of them.
    """
    for _ in range(LEFT_OUT_MAX):
        for ahead in SEQS_AHEAD:
            if await is_there(newest + ahead):
                newest += ahead
                break
        else:
            return newest
    raise ObjectCorrupt(f"the remote's listing shows none of {LEFT_OUT_MAX} objects that it says it has")


async def exists(backend: Backend, key: str) -> bool:
    """Whether the object is there, whatever a listing says. Raises: BackendError."""
    try:
        await backend.stat(key)
    except ObjectMissing:
        return False
    return True


async def _learn_left_out(importer: Importer, backend: Backend, snapshot: SnapshotRecord, known: set[Place]) -> None:
    """Ask by name for the indexes that a listing may have left out: those that are not *known*, between the others of
    each peer and after them, the newest first.

    Raises: BackendError.
    """
    newest = {PeerId(snapshot.peer): 0}
    for peer, seq in known:
        newest[peer] = max(seq, newest.get(peer, 0))
    for peer, listed in newest.items():

        async def is_there(seq: int, peer: PeerId = peer) -> bool:
            return await exists(backend, index_key(peer, seq))

        last = await newest_left_out(listed, is_there)
        gaps = (seq for seq in range(last, 0, -1) if (peer, seq) not in known)
        for seq in itertools.islice(gaps, GAPS_ASKED):
            with contextlib.suppress(ObjectMissing):
                await _learn_index(importer, await read_index(backend, PeerId(peer), seq), late=True)
    importer.list_again()


async def build_tree(meta: MetaStore, backend: Backend, snapshot: SnapshotRecord, known: set[Place]) -> None:
    """Fill the empty tables with the tree of *snapshot*; *known* is what `learn_packs` has read.

    A block that no index lists is damaged from then on: whoever published the snapshot could not read it any more.

    Raises: BackendError, ObjectCorrupt among them.
    """
    importer = Importer(meta.database)
    walker = _Walker(meta, backend, importer)
    await trio.to_thread.run_sync(walker.walk, TreeId(snapshot.root))
    if importer.unlisted:
        await _learn_left_out(importer, backend, snapshot, known)
    if importer.unlisted:
        log.warning("the snapshot names %d blocks that are in no index: they are damaged", len(importer.unlisted))
    meta.inodes.set_totals(importer.finish())
    meta.commit()
    meta.names.forget_cached()  # which directories are large


class _Walker:
    """Walks a snapshot's trees in a thread, one directory after the other."""

    def __init__(self, meta: MetaStore, backend: Backend, importer: Importer) -> None:
        self._meta = meta
        self._backend = backend
        self._importer = importer
        self._packs: OrderedDict[PackId, bytes] = OrderedDict()
        self._elsewhere = Elsewhere(meta, backend)

    def walk(self, root: TreeId) -> None:
        entry = load_root(root, self._load)
        if entry.tree is None or entry.inode != ROOT_INODE:
            raise ObjectCorrupt("the root of the snapshot is no directory")
        top = TreeId(entry.tree)
        # How many entries the root has is not known yet: it is published whole the first time, which is right too.
        self._on_loop(self._importer.add_root, self._inode(entry), top)
        pending = [(int(ROOT_INODE), top)]
        while pending:
            number, tree = pending.pop()
            count = 0
            batch: list[Entry] = []
            for entry in iter_directory(tree, self._load):
                batch.append(entry)
                count += 1
                if len(batch) >= ENTRIES_AT_ONCE:
                    pending.extend(self._add(number, batch))
                    batch = []
            pending.extend(self._add(number, batch))
            if count > LARGE_ENTRIES:
                self._on_loop(self._importer.mark_large, number)

    def _add(self, parent: int, entries: Sequence[Entry]) -> list[tuple[int, TreeId]]:
        rows = [(entry.name, self._inode(entry)) for entry in entries]
        trees = [(entry.inode, TreeId(entry.tree)) for entry in entries if entry.tree]
        self._on_loop(self._importer.add_entries, parent, rows, trees)
        directories = {entry.inode for entry in entries if _is_directory(entry)}
        return [(number, tree) for number, tree in trees if number in directories]

    def _inode(self, entry: Entry) -> ImportedInode:
        extents: Iterable[tuple[int, int, BlockId, int]] = (
            (e.start, e.length, BlockId(e.block), e.offset) for e in entry.extents
        )
        if entry.tree is not None and not _is_directory(entry):
            found = iter_extents(TreeId(entry.tree), self._load)
            extents = ((e.start, e.length, BlockId(e.block), e.offset) for e in found)
        return ImportedInode(
            *(entry.inode, entry.mode, entry.uid, entry.gid, entry.nlink, entry.size, entry.mtime_ns, entry.ctime_ns),
            *(entry.rdev, entry.target, entry.xattrs, tuple(extents)),
        )

    def _on_loop(self, function: object, *arguments: object) -> None:
        trio.from_thread.run_sync(function, *arguments)  # type: ignore[arg-type]

    def _load(self, tree: TreeId) -> bytes:
        location: Location | None = trio.from_thread.run_sync(self._locate, tree)
        if location is None:
            raise ObjectCorrupt(
                f"tree node {tree.hex()} is in no index", hint="some index objects are missing from the remote"
            )
        try:
            return self._open(tree, location)
        except (ObjectCorrupt, ObjectMissing):
            if not trio.from_thread.run(self._elsewhere.find, location.pack, [BlockId(tree)]):
                raise
        return self._load(tree)

    def _open(self, tree: TreeId, location: Location) -> bytes:
        """Raises: BackendError, ObjectCorrupt among them."""
        pack = self._packs.get(location.pack)
        if pack is None:
            pack = trio.from_thread.run(read_bounded, self._backend, pack_key(location.pack), TREE_PACK_MAX_BYTES)
            self._packs[location.pack] = pack
            if len(self._packs) > PACKS_KEPT:
                self._packs.popitem(last=False)
        self._packs.move_to_end(location.pack)
        return bytes(open_sealed(memoryview(pack)[location.offset : location.offset + location.length], tree))

    def _locate(self, tree: TreeId) -> Location | None:
        block = self._meta.blocks.find(BlockId(tree))
        return None if block is None else block.location


def _is_directory(entry: Entry) -> bool:
    return entry.mode & 0o170000 == DIRECTORY


async def newest_snapshots(backend: Backend) -> dict[PeerId, int]:
    """The highest sequence number of each peer's snapshots. Raises: BackendError."""
    newest: dict[PeerId, int] = {}
    async for info in backend.list("snapshots/"):
        found = parse_seq_key(info.key)
        if found is not None:
            peer, seq = found
            newest[peer] = max(seq, newest.get(peer, 0))
    return newest
