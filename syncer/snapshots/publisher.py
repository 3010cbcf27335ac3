"""Publishes snapshots: makes the remote complete up to a moment, while the file system goes on.

The order is the promise: packs, then the index that lists them, then the snapshot. Whoever sees a snapshot finds
everything it names. One publication at a time; all on the event loop's thread but the building of trees.
"""

import contextlib
import logging
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import trio

from syncer.backends.base import Backend
from syncer.backends.confirmed import put_read_back
from syncer.blocks.pack import Pack
from syncer.blocks.sealer import Sealer
from syncer.blocks.syncing import Durability
from syncer.blocks.uploader import Uploader
from syncer.errors import (
    BudgetExhausted,
    ObjectMissing,
    RemoteUnreachable,
    SyncerError,
    WrongRepository,
)
from syncer.meta.store import MetaStore
from syncer.meta.treereader import TreeReader
from syncer.snapshots.live import LiveTree
from syncer.snapshots.planter import GaveWay, Names, Planted, Planter
from syncer.snapshots.reading import listed_places
from syncer.snapshots.records import (
    VERSION,
    IndexRecord,
    PackListing,
    SnapshotRecord,
    decode,
    encode,
    index_key,
    snapshot_key,
)
from syncer.snapshots.references import note_names
from syncer.snapshots.repository import check_writer
from syncer.values import TREE, BlockId, TreeId

T = TypeVar("T")
log = logging.getLogger(__name__)

Progress = Callable[[int, int], None] | None
"""Is told (done, total) bytes now and then."""

INDEX_ENTRIES = 50_000
"""An index object lists about this many blocks at most."""
PROGRESS_S = 0.5
TRIES = 20
GIVE_UP_S = 120.0
"""A publication ends with an error when the remote has taken nothing for this long."""


@dataclass(frozen=True, slots=True)
class _Wish:
    """What a snapshot is to say of itself."""

    reason: str
    label: str | None
    released: bool


class Publisher:
    def __init__(
        self,
        meta: MetaStore,
        backend: Backend,
        sealer: Sealer,
        uploader: Uploader,
        durability: Durability,
        *,
        interval_s: float,
    ) -> None:
        self._durability = durability
        self._meta = meta
        self._backend = backend
        self._sealer = sealer
        self._uploader = uploader
        self._interval_s = interval_s
        self.turn = trio.Lock()
        """Held by a publication, and by whoever must have none come in between."""
        self._told: frozenset[int] = frozenset()
        """The blocks that the newest snapshot names and the remote lacks, when the log said so last."""
        self.unsure: set[TreeId] = set()
        """Roots of snapshots of which it is not known whether they arrived: somebody may see them, now or later."""
        self._are_numbers_checked = False
        self.host = socket.gethostname()
        self.give_way: Callable[[], None] = lambda: None
        """Has the building of trees end and begin anew: meanwhile the WAL may start over, which its reader prevents."""
        self.catch_up: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint
        """Awaited after that: returns when the WAL has started over."""
        self.removed: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint
        """Awaited before: returns when no file has extents left that were cut off."""
        self.on_published: Callable[[], None] = lambda: None
        """Called when there is a new snapshot."""
        self.on_refused: Callable[[], None] = lambda: None
        """Called when another machine writes by now: nothing more may change here."""
        head = meta.snapshots.head()
        self.released = head is not None and (
            decode(head.record, SnapshotRecord).released
            or (head.peer == meta.peer and meta.snapshots.next_seq("snapshot") > head.seq + 1)
        )
        """Whether the remote says, or may say because the end of a publication was not seen, that nobody writes; a
        writer must say otherwise soon."""

    async def run(self) -> None:
        """Publish every interval when something changed, and at once to claim a released repository.

        Trouble is logged and tried again.
        """
        while True:
            await trio.sleep(0 if self.released else self._interval_s)
            try:
                if self.released or self.has_changes():
                    await self.publish("auto")
            except WrongRepository as error:
                log.error("%s; nothing more is written here", error)
                self.on_refused()
                return
            except (SyncerError, OSError) as error:
                log.warning("snapshot: %s; it is tried again", error)
                await trio.sleep(self._interval_s)

    async def publish(
        self,
        reason: str,
        *,
        label: str | None = None,
        released: bool = False,
        progress: Progress = None,
        check: Callable[[], None] = lambda: None,
    ) -> frozenset[int]:
        """Return when everything written before the call is on the remote, in a snapshot.

        A block whose only copy is here and bad keeps nothing else from being published: the snapshot names it, and it
        follows when the same bytes are written again. Returns the numbers of such blocks.

        One with a *label* is taken even if nothing has changed. *check* is called when nobody else publishes any more,
        and may refuse. Cancelled or failed, nothing is lost: what was uploaded stays, and the next publication goes on
        from there.

        Raises:
            BackendError: the remote would not take it.
            BudgetExhausted: there are more changes all the time than the budget has room for while a snapshot is made.
        """
        wish = _Wish(reason, label, released)
        async with self.turn:
            check()
            self._uploader.hurry += 1
            try:
                return self._tell(await self._again_while_it_gives_way(lambda: self._publish(wish, progress)))
            finally:
                self._uploader.hurry -= 1
                self._meta.blocks.held_up_to = 0

    async def examine(self, question: Callable[[LiveTree], T]) -> T:
        """What *question* answers about the live tree as it is now. Nothing is published; the remote is not needed.

        It is asked in a thread, and again of a later moment if that must not be held any longer: it should be quick.

        Raises: BudgetExhausted, as `publish`; what *question* raises.
        """

        async def ask() -> T:
            await self._be_still()
            with LiveTree(self._meta) as live:
                return await self._in_thread(live, lambda: question(live))

        async with self.turn:
            return await self._again_while_it_gives_way(ask)

    async def _again_while_it_gives_way(self, attempt: Callable[[], Awaitable[T]]) -> T:
        for _ in range(TRIES):
            with contextlib.suppress(GaveWay):
                return await attempt()
            log.info("the snapshot gave way to changes, and is begun anew")
            await self.catch_up()
        raise BudgetExhausted("more changes than a snapshot of them can keep up with")

    def has_changes(self) -> bool:
        """Whether something is not in the newest snapshot."""
        self._meta.commit()
        snapshots, blocks = self._meta.snapshots, self._meta.blocks
        if self._sealer.unsealed or snapshots.head() is None or snapshots.has_changes():
            return True
        return blocks.has_unindexed_packs()  # the bytes of a block that an older snapshot lacks have come

    def _tell(self, lacking: frozenset[int]) -> frozenset[int]:
        """Log what a snapshot lacks, once. Returns the same."""
        if lacking - self._told:
            log.error("the snapshot names %d blocks that are damaged here and not on the remote", len(lacking))
        self._told = lacking
        return lacking

    async def _be_still(self) -> None:
        """Return at a moment when nothing is dirty, nor left of what was cut off."""
        while True:
            await self.removed()
            await self._sealer.seal_everything()
            if not self._meta.extents.has_cut_files() and not self._sealer.has_overlooked():
                return

    async def _publish(self, wish: "_Wish", progress: Progress) -> frozenset[int]:
        await self.check_writer()  # before the first pack: what is put in a wrong place would count as stored
        await self._check_numbers()
        await self._be_still()
        self._uploader.drain += 1
        self._uploader.wake()
        try:
            return await self._publish_this_moment(wish, progress)
        finally:
            self._uploader.drain -= 1

    async def _publish_this_moment(self, wish: "_Wish", progress: Progress) -> frozenset[int]:
        """Nothing is dirty. ATOMIC until the reader is open: it sees this moment."""
        self._meta.commit()
        if wish.label is None and self._is_published(wish.released):
            lacking = await self._content_stored(self._meta.blocks.newest(), progress)
            await self.publish_index()
            return lacking
        generation = self._meta.snapshots.begin_generation()
        self._meta.snapshots.mark(generation)
        self._meta.commit()
        marked = self._meta.database.committed_position
        newest = self._meta.blocks.held_up_to = self._meta.blocks.newest()
        reader = TreeReader(self._meta.database)
        time_ns = time.time_ns()
        try:
            planter = Planter(reader, generation, self._store_from_thread)
            planted = await self._in_thread(planter, planter.plant)
        finally:
            reader.close()
        lacking = await self._content_stored(newest, progress)
        await self.check_writer()
        await self.publish_index()
        await self._publish_snapshot(wish, planted, time_ns)
        self._meta.snapshots.published(generation, planted.trees, planted.extents)
        self._meta.database.set_state("marked_position", marked)
        self._keep_nodes(planted)
        self.released = wish.released
        self.on_published()
        return lacking

    async def _in_thread(self, planter: Planter, function: Callable[[], T]) -> T:
        """What *function* returns, which works with the *planter*. Raises: GaveWay."""
        with trio.CancelScope() as scope:

            def give_way() -> None:
                planter.unwanted = True
                scope.cancel()  # it may be waiting for the remote

            self.give_way = give_way
            try:
                return await trio.to_thread.run_sync(function)
            finally:
                self.give_way = lambda: None
        raise GaveWay

    def _is_published(self, released: bool) -> bool:
        """Whether our newest snapshot says it all. One of another peer does not speak for us."""
        head = self._meta.snapshots.head()
        if head is None or head.peer != self._meta.peer or released != self.released:
            return False
        return not self._meta.snapshots.has_changes()

    def _store_from_thread(self, pack: Pack, named: Names) -> None:
        """Upload a pack of tree nodes; the building thread waits for it, so few are in memory at once.

        Without a token of its own the call is cancelled with the publication.
        """
        trio.from_thread.run(self._store_trees, pack, named)

    async def _store_trees(self, pack: Pack, named: Names) -> None:
        async with self._uploader.packs.put(pack) as pack:
            self._meta.blocks.stored(pack.id, len(pack.data), TREE, pack.locations())
        self._uploader.uploaded_bytes += len(pack.data)
        for tree, names in named.items():
            await note_names(self._meta, tree, names)

    async def _content_stored(self, newest: int, progress: Progress) -> frozenset[int]:
        """Wait until the remote has every block up to number *newest*; returns those that it cannot get."""
        begin = stored = self._uploader.stored_bytes
        patience = trio.current_time() + GIVE_UP_S
        while self._meta.blocks.has_pending(newest, self._meta.damage.numbers()):
            if self._uploader.stored_bytes != stored or self._uploader.is_sending:
                stored, patience = self._uploader.stored_bytes, trio.current_time() + GIVE_UP_S
            elif trio.current_time() > patience:
                reason = self._uploader.error or self._uploader.local_error
                raise reason or RemoteUnreachable("the remote has taken nothing for too long")
            if progress is not None:
                progress(stored - begin, stored - begin + self._meta.blocks.pending_totals()[0])
            with trio.move_on_after(PROGRESS_S):
                await self._uploader.progressed.wait()
        return frozenset(number for number in self._meta.damage.unsendable() if number <= newest)

    async def check_writer(self) -> None:
        """Make sure that the repository is there and that we write to it.

        Raises:
            WrongRepository: it is another one, or somebody else writes by now: nothing of ours may be published.
            BackendError: the remote cannot tell.
        """
        reason = await check_writer(self._meta, self._backend)
        if reason is not None:
            raise WrongRepository(reason)

    def _keep_nodes(self, planted: Planted) -> None:
        """Cache the nodes that the next publication changes: it loads no others."""
        for tree, data in planted.nodes.items():
            block = self._meta.blocks.find(BlockId(tree))
            if block is not None and not block.cached:
                self._meta.blocks.keep_row(block, data)

    async def publish_index(self) -> None:
        """List the packs that no index lists yet; the caller holds the turn. Raises: BackendError, WrongRepository."""
        while packs := self._meta.blocks.unindexed_packs(INDEX_ENTRIES):
            listings = tuple(PackListing(pack_id, size, kind, tuple(blocks)) for pack_id, size, kind, blocks in packs)
            seq = await self.put_index(listings)
            self._meta.blocks.indexed([pack[0] for pack in packs], seq)

    async def put_index(self, listings: tuple[PackListing, ...]) -> int:
        """Put an index object that lists these packs, and return its number when the remote has given it back.

        The caller holds the turn. Raises: BackendError, WrongRepository.
        """
        await self._check_numbers()
        seq = self._meta.snapshots.next_seq("index")
        self._meta.snapshots.take_seq("index", seq)
        record = IndexRecord(VERSION, self._meta.peer, seq, listings)
        await self._put(index_key(self._meta.peer, seq), await trio.to_thread.run_sync(encode, record))
        return seq

    async def _check_numbers(self) -> None:
        """Once in a run: nobody has used numbers of ours that are not taken here.

        The next one may be free all the same: merging and pruning delete index objects, but never the newest.

        Raises: BackendError, WrongRepository.
        """
        if self._are_numbers_checked:
            return
        next_seq = self._meta.snapshots.next_seq("index")
        for place in await listed_places(self._backend, f"index/{self._meta.peer:06x}/"):
            if place[1] >= next_seq:
                raise _brought_back(index_key(*place))
        self._are_numbers_checked = True

    async def _publish_snapshot(self, wish: "_Wish", planted: Planted, time_ns: int) -> None:
        head = self._meta.snapshots.head()
        seq = self._meta.snapshots.next_seq("snapshot")
        self._meta.snapshots.take_seq("snapshot", seq)
        record = SnapshotRecord(
            version=VERSION,
            peer=self._meta.peer,
            seq=seq,
            root=planted.root,
            parents=() if head is None else ((head.peer, head.seq),),
            time_ns=time_ns,
            host=self.host,
            files=planted.files,
            directories=planted.directories,
            logical_bytes=planted.logical_bytes,
            unique_bytes=planted.unique_bytes,
            next_inode=self._meta.next_inode,
            label=wish.label,
            released=wish.released,
            reason=wish.reason,
        )
        data = encode(record)
        self.released |= wish.released
        self.unsure.add(planted.root)
        await self._put(snapshot_key(self._meta.peer, seq), data)
        self._meta.snapshots.learn(self._meta.peer, seq, TreeId(planted.root), time_ns, data)
        self.unsure.discard(planted.root)

    async def _put(self, key: str, data: bytes) -> None:
        """Put an object under a number that was just taken; return when the remote has given it back.

        Raises: WrongRepository: it has been used before, so DATA is older than what it published.
        """
        await self._durability.sync()  # the number is ours for good before its key is
        try:
            await self._backend.stat(key)
        except ObjectMissing:
            await put_read_back(self._backend, key, data)
            self._uploader.uploaded_bytes += len(data)
            return
        raise _brought_back(key)


def _brought_back(key: str) -> WrongRepository:
    return WrongRepository(
        f"the remote has a newer state than DATA ({key} is there already): DATA was brought back from a copy",
        hint="an empty DATA can join the repository",
    )
