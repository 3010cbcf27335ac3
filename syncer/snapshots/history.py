"""Every state that the file system has had: which snapshots there are, and what is in their trees.

What is known of them is local: a row a snapshot, and the tree nodes that were looked at, which are cached and evicted
like any small block. What is not known is asked of the remote, within a deadline. Made by the engine; everything runs
on the event loop's thread but `load`, which is for worker threads.
"""

import contextlib
import itertools
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from stat import S_ISDIR
from typing import TypeVar

import msgspec
import trio

from syncer.backends.base import Backend
from syncer.backends.together import for_each
from syncer.blocks.fetcher import in_time, too_late
from syncer.blocks.store import BlockStore
from syncer.errors import ObjectCorrupt, ObjectMissing, SyncerError
from syncer.meta.blocktable import Block
from syncer.meta.extent import Extent
from syncer.meta.snapshottable import KnownSnapshot
from syncer.snapshots.decoded import DecodedNodes
from syncer.snapshots.extenttree import iter_extents
from syncer.snapshots.nodes import Entry, Load, Node
from syncer.snapshots.reading import (
    INDEXES_GONE,
    INDEXES_READ,
    LISTED,
    decode_places,
    each_index,
    encode_places,
    listed_places,
    read_snapshot,
)
from syncer.snapshots.records import (
    IndexRecord,
    PackListing,
    SnapshotRecord,
    decode,
    record_id,
    snapshot_key,
)
from syncer.snapshots.tree import find_entry, iter_directory, load_root
from syncer.values import BlockId, PackId, PeerId, TreeId

T = TypeVar("T")
log = logging.getLogger(__name__)

Place = tuple[PeerId, int]
"""(peer, sequence number): where a snapshot stands in history."""

REFRESH_S = 5.0
"""What the remote said is believed for so long before `snapshots` asks again."""
LOOK_AFTER_S = 0.2
"""Who lists the snapshots that are known is not kept by listing those of the remote at the same time."""
READ_AT_ONCE = 100
"""So many snapshots are read before other tasks have their turn: half a millisecond."""
INDEX_TRIES = 3
"""So many times indexes are listed while prunes take away what was listed."""
ROW_BYTES = 256
"""About what a snapshot or a block that becomes known takes in meta.db, with the indexes of its table."""


class Snapshot(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A state of the whole file system. *id* is the hex digits people may type the first of.

    *reason* is auto, manual, unmount or `before restore`. *logical_bytes*: sizes of all files; *unique_bytes*: of the
    blocks they name. A struct, because there may be ten thousand, and who lists them does not want to wait.
    """

    peer: PeerId
    seq: int
    id: str
    root: TreeId
    parents: tuple[tuple[int, int], ...]
    time_ns: int
    label: str | None
    reason: str
    host: str
    files: int
    directories: int
    logical_bytes: int
    unique_bytes: int
    released: bool

    @property
    def place(self) -> Place:
        return self.peer, self.seq


def snapshot_of(record: bytes) -> Snapshot:
    """The snapshot whose object is *record*. Raises: ObjectCorrupt."""
    found = decode(record, SnapshotRecord)
    return Snapshot(
        peer=PeerId(found.peer),
        seq=found.seq,
        id=record_id(record).hex(),
        root=TreeId(found.root),
        parents=found.parents,
        time_ns=found.time_ns,
        label=found.label,
        reason=found.reason,
        host=found.host,
        files=found.files,
        directories=found.directories,
        logical_bytes=found.logical_bytes,
        unique_bytes=found.unique_bytes,
        released=found.released,
    )


class _NotHere(Exception):
    """A node must be fetched before the walk can go on."""

    def __init__(self, tree: TreeId) -> None:
        self.tree = tree


class History:
    def __init__(self, store: BlockStore, backend: Backend, nursery: trio.Nursery, *, deadline_s: float) -> None:
        """*nursery* outlives this and runs what goes on after those who asked for it have left."""
        self._store = store
        self._meta = store.meta
        self._backend = backend
        self._nursery = nursery
        self._deadline_s = deadline_s
        self._snapshots: dict[Place, Snapshot] = {}
        self._in_order: tuple[Snapshot, ...] = ()
        self._revision = -1
        self._unreadable: set[Place] = set()
        """Snapshots whose objects are damaged; they were logged, and are not asked for again."""
        self._held: Counter[Place] = Counter()
        self._keeping = 0
        self._refreshing: trio.Event | None = None
        self._refreshed_at = -float("inf")
        self._turn = trio.Lock()
        self._decoded = DecodedNodes()
        self._indexes_turn = trio.Lock()
        self._indexed_at = -float("inf")
        self._indexes_read: set[Place] = set()
        self._indexes_remembered = False

    # --- which snapshots there are -------------------------------------------------------------------------------

    def known(self) -> Sequence[Snapshot]:
        """The snapshots that are known here, in the order of history: the one that came last is the last."""
        revision = self._meta.snapshots.revision
        if revision != self._revision:
            before, places = self._snapshots, self._meta.snapshots.places()
            found = {place: snapshot_of(record) for place, record in self._records(places, before)}
            self._snapshots = {place: before.get(place) or found[place] for place in places}
            self._revision = revision
            self._in_order = tuple(self._snapshots.values())
        return self._in_order

    def _records(self, places: Sequence[Place], known: Collection[Place]) -> Iterator[tuple[Place, bytes]]:
        """Those of *places* that are not *known* yet: after each publication one, at first all."""
        new = [place for place in places if place not in known]
        if len(new) > READ_AT_ONCE:
            yield from (row for row in self._meta.snapshots.records() if row[0] not in known)
        else:
            yield from ((place, row.record) for place in new if (row := self._meta.snapshots.get(*place)))

    @contextlib.contextmanager
    def hold(self, place: Place) -> Iterator[None]:
        """Within the block the snapshot is not thinned out: somebody needs what it shows to the end."""
        self._held[place] += 1
        try:
            yield
        finally:
            self._held[place] -= 1

    @contextlib.contextmanager
    def keeping(self) -> Iterator[None]:
        """Within the block no snapshot is forgotten because the remote lacks it: a disk may be unplugged there."""
        self._keeping += 1
        try:
            yield
        finally:
            self._keeping -= 1

    @property
    def held(self) -> set[Place]:
        """The snapshots that somebody holds."""
        return {place for place, count in self._held.items() if count}

    async def prepare(self) -> None:
        """Read what is known, a little at a time."""
        for count, (place, record) in enumerate(self._meta.snapshots.records(), 1):
            if place not in self._snapshots:
                self._snapshots[place] = snapshot_of(record)
            if count % READ_AT_ONCE == 0:
                await trio.lowlevel.checkpoint()

    @property
    def revision(self) -> int:
        """Another one when `known` would return something else."""
        return self._meta.snapshots.revision

    @property
    def was_listed(self) -> bool:
        """Whether the remote has ever been asked to the end: then only what is new can be missing in `known`."""
        return bool(self._meta.database.state_integer(LISTED))

    @property
    def is_empty(self) -> bool:
        """Whether the remote was asked to the end, and has no snapshot, nor one that cannot be read."""
        return self.was_listed and not self.known() and not self._unreadable

    def look(self) -> None:
        """Ask the remote for what is new soon, unless that was done a moment ago."""
        self._begin(LOOK_AFTER_S)

    def _begin(self, after_s: float) -> None:
        if self._refreshing is None and trio.current_time() - self._refreshed_at > REFRESH_S:
            self._refreshing = trio.Event()
            self._nursery.start_soon(self._refresh_behind, self._refreshing, after_s)

    async def snapshots(self, wait_s: float | None = None) -> Sequence[Snapshot]:
        """All snapshots of all peers, as `known`, after the remote was asked for those that are not known yet.

        Waits for the remote for *wait_s* at most (the deadline, if it is not given), and not at all when it was asked
        a moment ago. What it has not answered by then is not in the result, and is known later.
        """
        self._begin(0)
        if self._refreshing is not None:
            with trio.move_on_after(self._deadline_s if wait_s is None else wait_s):
                await self._refreshing.wait()
        return self.known()

    async def _refresh_behind(self, done: trio.Event, after_s: float) -> None:
        try:
            await trio.sleep(after_s)
            await self.refresh()
        except (SyncerError, OSError) as error:
            log.warning("the snapshots on the remote cannot be listed: %s", error)
            self._refreshed_at = trio.current_time()
        except Exception:  # whatever it is: it must not take the mount away from its users
            log.exception("the list of snapshots could not be refreshed")
            self._refreshed_at = trio.current_time()
        finally:
            self._refreshing = None
            done.set()

    async def refresh(self) -> None:
        """Make `known` what the remote has now.

        Raises: SyncerError: it could not be read. What was learned until then stays.
        """
        async with self._turn:
            listed = await listed_places(self._backend, "snapshots/")
            known = set(self._meta.snapshots.places())
            await for_each(
                self._backend, sorted(known - listed), self._forget_if_gone
            )  # a listing may leave something out
            unknown = sorted(listed - known - self._unreadable, reverse=True)
            await for_each(self._backend, unknown, self._learn)
            self._refreshed_at = trio.current_time()
            if not self.was_listed:
                self._meta.database.set_state(LISTED, 1)

    async def _forget_if_gone(self, place: Place) -> None:
        head = self._meta.snapshots.head()
        if head is not None and place == (head.peer, head.seq):
            return
        try:
            await self._backend.stat(snapshot_key(*place))
        except ObjectMissing:
            if not self._keeping:
                self._meta.snapshots.forget(*place)

    async def _learn(self, place: Place) -> None:
        key = snapshot_key(*place)
        try:
            found, data = await read_snapshot(self._backend, *place)
        except ObjectMissing:
            return  # deleted meanwhile
        except ObjectCorrupt as error:
            log.warning("a snapshot cannot be shown: %s", error)
            self._unreadable.add(place)
            return
        await self._store.budget.reserve(ROW_BYTES + len(data), self._deadline_s, rows=True)
        if self._meta.doomed.is_listed(key):
            return  # it was dropped, and is still there: whoever saw it again would rely on what is about to go
        self._meta.snapshots.remember(KnownSnapshot(*place, TreeId(found.root), found.time_ns, data))

    async def seek(self, place: Place) -> Snapshot | None:
        """The snapshot at *place*, asked for by name where it is not known; None where there is none that can be read.

        Raises: BackendError.
        """
        if self._meta.snapshots.get(*place) is None and place not in self._unreadable:
            await self._learn(place)
        self.known()
        return self._snapshots.get(place)

    async def is_there(self, snapshot: Snapshot) -> bool:
        """Whether the remote has the snapshot, asked by name. One that it lacks is forgotten. Raises: BackendError."""
        await self._forget_if_gone(snapshot.place)
        return self._meta.snapshots.get(*snapshot.place) is not None

    def in_time(self) -> contextlib.AbstractContextManager[None]:
        """Within the block one deadline holds for everything that is waited for. Raises: DeadlinePassed."""
        return in_time(self._deadline_s)

    # --- what is in them -----------------------------------------------------------------------------------------

    def load(self, tree: TreeId) -> bytes:
        """A node of a tree, for the functions of tree.py in a worker thread of trio's. Raises: as `node`."""
        return trio.from_thread.run(self.node, tree)

    async def node(self, tree: TreeId) -> bytes:
        """The encoded node, verified; fetched where it is not here, and cached then.

        Raises:
            ObjectCorrupt: no index lists it, or every copy is bad.
            SyncerError: it could not be had within the deadline, and why.
        """
        data = self._here(tree)
        if data is not None:
            return data
        block = await self._block(BlockId(tree))
        try:
            with self._store.budget.pin([block.number]):
                arrived = await self._store.fetch([block.number], self._deadline_s)
                data = self._store.read(_whole(block), 0, block.size, arrived)
        except KeyError as error:
            raise ObjectMissing(f"tree node {tree.hex()} has been removed meanwhile") from error
        if data is None:
            raise ObjectCorrupt(f"node {tree.hex()} was damaged here as soon as it had come")
        return data

    def _here(self, tree: TreeId) -> bytes | None:
        """The node, None when it is not cached here."""
        block = self._meta.blocks.find(BlockId(tree))
        return None if block is None or not block.cached else self._store.read_block(block)

    async def ask(self, question: Callable[[Load], T]) -> T:
        """What *question* answers, which is given a `load` and does nothing else that counts.

        It is asked at once, and again each time that a node has come which it needs: it should not need many.

        Raises:
            DeadlinePassed: they did not all come in time.
            SyncerError: as `node`, and what *question* raises.
        """
        arrived: dict[TreeId, Node] = {}

        def load(tree: TreeId) -> Node:
            node = arrived.get(tree) or self._decoded.get(tree)
            if node is None:
                data = self._here(tree)
                if data is None:
                    raise _NotHere(tree)
                node = self._decoded.keep(tree, data)
            return node

        with contextlib.suppress(_NotHere):
            return question(load)
        with trio.move_on_after(self._deadline_s):
            while True:
                try:
                    return question(load)
                except _NotHere as missing:
                    arrived[missing.tree] = self._decoded.keep(missing.tree, await self.node(missing.tree))
        raise too_late(self._deadline_s)

    async def for_each(self, items: Iterable[T], call: Callable[[T], Awaitable[None]]) -> None:
        """Await *call* for each, as many at once as the remote likes. Raises: what the first that failed raised."""
        await for_each(self._backend, items, call)

    async def root(self, snapshot: Snapshot) -> Entry:
        """The root directory's own entry. Raises: SyncerError."""
        return await self.ask(partial(load_root, snapshot.root))

    async def lookup(self, snapshot: Snapshot, path: bytes) -> Entry | None:
        """What was at *path*, from the root on, without following symlinks; None when nothing was.

        Raises: SyncerError.
        """
        entry: Entry | None = await self.root(snapshot)
        for name in path.split(b"/"):
            if name not in (b"", b".") and entry is not None:
                entry = await self.child(entry, name)
        return entry

    async def child(self, directory: Entry, name: bytes) -> Entry | None:
        """The entry *name* of a directory; None when there is none, or *directory* is no directory.

        Raises: SyncerError.
        """
        if not S_ISDIR(directory.mode) or directory.tree is None:
            return None
        return await self.find(TreeId(directory.tree), name)

    async def find(self, tree: TreeId, name: bytes) -> Entry | None:
        """The entry *name* of the directory *tree*; None when there is none. Raises: SyncerError."""
        return await self.ask(partial(find_entry, tree, name))

    async def entries(self, tree: TreeId, skip: int, limit: int) -> list[Entry]:
        """Up to *limit* entries of a directory after the first *skip*, in the order of their names.

        Raises: SyncerError.
        """
        return await self.ask(lambda load: list(itertools.islice(iter_directory(tree, load, skip=skip), limit)))

    async def extents(self, file: Entry, start: int, limit: int) -> list[Extent]:
        """Up to *limit* extents of a regular file, from the one on that has the byte *start* or comes after it.

        As the block store knows them: by the numbers of their blocks. Raises: SyncerError.
        """
        found = [part for part in file.extents if part.start + part.length > start][:limit]
        if file.tree is not None:
            tree = TreeId(file.tree)
            found = await self.ask(lambda load: list(itertools.islice(iter_extents(tree, load, start), limit)))
        blocks = [await self._block(BlockId(part.block)) for part in found]
        return [
            Extent(part.start, part.length, block.number, part.offset)
            for part, block in zip(found, blocks, strict=True)
        ]

    async def _block(self, block_id: BlockId) -> Block:
        """Raises: ObjectCorrupt: no index lists it."""
        block = self._meta.blocks.find(block_id)
        if block is None:
            await self.learn_indexes()
            block = self._meta.blocks.find(block_id)
        if block is None:
            raise ObjectCorrupt(
                f"block {block_id.hex()} is in no index", hint="some index objects are missing from the remote"
            )
        return block

    # --- where things are on the remote --------------------------------------------------------------------------

    def remember_indexes(self) -> None:
        """From now on DATA remembers which index objects were read, so that the next run need not read them again.

        For a DATA that knows of packs what indexes say, and nothing else.
        """
        self._indexes_remembered = True
        self._indexes_read = decode_places(self._meta.database.state_bytes(INDEXES_READ))

    async def learn_indexes(self, within_s: float = REFRESH_S) -> None:
        """Learn where blocks are that index objects list which were not read before.

        Not if that was begun less than *within_s* ago; with 0, if it was begun since the call.

        Raises: SyncerError: the remote could not be read. What was learned until then stays.
        """
        called_at = trio.current_time()
        async with self._indexes_turn:
            if self._indexed_at > called_at - within_s:
                return
            begun_at, before = trio.current_time(), set(self._indexes_read)
            for tries_left in reversed(range(INDEX_TRIES)):
                try:
                    await self._learn_listed()
                    break
                except ObjectMissing:  # the writer has put another in its place meanwhile
                    if not tries_left:
                        raise
            if self._indexes_remembered and self._indexes_read != before:
                gone = self._meta.database.state_integer(INDEXES_GONE) + len(before - self._indexes_read)
                self._meta.database.set_state(INDEXES_GONE, gone)
                self._meta.database.set_state(INDEXES_READ, encode_places(self._indexes_read))
            self._indexed_at = begun_at

    async def _learn_listed(self) -> None:
        async def learn(place: Place, record: IndexRecord) -> None:
            for pack in record.packs:
                await self._learn_pack(pack, record.seq)
            self._indexes_read.add(place)

        listed = await listed_places(self._backend, "index/")
        await each_index(self._backend, sorted(listed - self._indexes_read), learn)
        self._indexes_read &= listed  # those that are gone never come back

    async def _learn_pack(self, pack: PackListing, seq: int) -> None:
        if self._is_settled(PackId(pack.id)):
            return
        await self._store.budget.reserve(ROW_BYTES * len(pack.blocks), self._deadline_s, rows=True)
        if self._is_settled(PackId(pack.id)):  # by now
            return
        # ATOMIC: what was looked at is so until it is recorded.
        blocks = [(BlockId(block_id), offset, sealed, plain) for block_id, offset, sealed, plain in pack.blocks]
        self._meta.blocks.listed(PackId(pack.id), pack.size, pack.kind, seq, blocks)
        await trio.lowlevel.checkpoint()

    def _is_settled(self, pack_id: PackId) -> bool:
        """Whether the pack is known, or must not be: what a prune is about to delete must not be relied on again."""
        return self._meta.blocks.knows_pack(pack_id) or self._meta.doomed.is_doomed(pack_id)


def _whole(block: Block) -> Extent:
    return Extent(0, block.size, block.number, 0)
