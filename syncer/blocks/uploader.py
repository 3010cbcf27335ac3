"""Sends sealed blocks to the remote: oldest first, in packs, several at once.

One task plans (`run`), each pack is a task of its own. A block counts as stored only when its pack is. Packs are made
and put here, and by the porter while there are many.
"""

import logging
import random
import time
from collections.abc import Awaitable, Callable

import trio

from syncer.backends.base import Backend
from syncer.blocks.pack import PACK_BLOCKS
from syncer.blocks.packer import LocalPacker, MadePack, Packer, Parcel
from syncer.blocks.packwriter import filler
from syncer.blocks.porter import Porter
from syncer.blocks.store import BlockStore
from syncer.blocks.syncing import Durability
from syncer.errors import BackendError, DataUnusable, LocalDamage, PorterLost, SyncerError, forget_way
from syncer.meta.blocktable import CACHED_ROW, Block
from syncer.values import CONTENT, PACK_BYTES

log = logging.getLogger(__name__)

PATIENCE = 3
"""A pack that is not full leaves when its oldest block has waited this many times the upload delay."""
PACKERS = 1
"""Packs are made by so many threads at most (each holds its pack twice meanwhile); one is faster than most networks."""
BULK_PACKS = 4
"""So many packs in a row, each at least half full, have the porter started. That takes the time of some four packs, and
is time that whoever uses the files does not lose; what is over before that is over sooner without it."""
RETRY_S = 5.0
"""How long to leave the local disk alone that has just refused something."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 15.0
"""How long to leave a remote alone that has failed in spite of the retries of its backend: twice as long each time, up
to the second of these, each give or take half, so that many machines do not come back at once."""


class Uploader:
    def __init__(
        self,
        store: BlockStore,
        backend: Backend,
        durability: Durability,
        *,
        delay_s: float,
        parallelism: int,
        level: int,
        porter: Porter | None = None,
    ) -> None:
        self._meta = store.meta
        self.packs = store.packs
        self._local = LocalPacker(store.cache.folder, backend, level)
        self._porter = porter
        self._bulk = 0
        """Packs, each at least half full, that were sent one after the other."""
        self._budget = store.budget
        self._durability = durability
        self._delay_s = delay_s
        self._parallelism = self._limit = max(1, min(parallelism, backend.parallelism))
        self._running = 0
        self._stuck = 0
        """Of those that run: so many packs are on the remote, and the disk here refuses to take that down."""
        self._packers = trio.CapacityLimiter(PACKERS)
        self._flying: set[int] = set()
        self._wake = trio.Event()
        self._failed_until = 0.0
        self._pause_s = FIRST_PAUSE_S
        self.hurry = 0
        """While above 0, full packs leave at once: somebody waits for it."""
        self.drain = 0
        """While above 0, whatever is sealed leaves at once, in packs however small: nothing more comes."""
        self.uploaded_bytes = 0
        """Bytes sent: packs, indexes and snapshots."""
        self.stored_bytes = 0
        """Plain bytes of the blocks that the remote has got."""
        self.progressed = trio.Event()
        """Set, and made anew, whenever a pack was stored or could not be."""
        self.remote_ok: bool | None = None
        self.error: BackendError | None = None
        """Why the last pack could not be stored; None once one could."""
        self.local_error: SyncerError | None = None
        """Why the last pack could not be made here, or noted as stored; None once one could."""
        self.verify: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint
        """Raises a SyncerError unless the repository is there and ours to write. A disk that is not plugged in leaves
        an empty folder: what is put there would count as stored, and be evicted here."""
        self.pressed: Callable[[], bool] = lambda: False
        """Whether writers wait for room, so that nothing may wait for company."""
        self.on_stored: Callable[[], None] = lambda: None

    def wake(self) -> None:
        """Look at the queue again: something was sealed, or somebody is in a hurry."""
        self._wake.set()

    async def run(self) -> None:
        """For as long as the file system is open. Nothing is sent before `verify` has passed."""
        while not await self._verified():
            with trio.move_on_after(self._next_pause_s()):
                await self._wake.wait()
            self._wake = trio.Event()
        self._pause_s = FIRST_PAUSE_S
        async with trio.open_nursery() as nursery:
            while True:
                wait_s = self._launch(nursery)
                with trio.move_on_after(wait_s):
                    await self._wake.wait()
                self._wake = trio.Event()

    def _next_pause_s(self) -> float:
        """How long to wait after one more failure."""
        pause_s, self._pause_s = self._pause_s, min(2 * self._pause_s, LONGEST_PAUSE_S)
        return pause_s * random.uniform(0.5, 1.5)

    async def _verified(self) -> bool:
        try:
            await self.verify()
        except SyncerError as error:
            self.remote_ok = False
            self.error = error if isinstance(error, BackendError) else None
            log.warning("nothing is uploaded: %s", error)
            return False
        return True

    def _launch(self, nursery: trio.Nursery) -> float:
        """Start as many packs as are due and as there are slots; returns how long nothing more will be due."""
        now = trio.current_time()
        if now < self._failed_until:
            return self._failed_until - now
        while self._running < self._limit:
            batch = self._due()
            if not batch:
                break
            self._running += 1
            self._flying.update(block.number for block in batch)
            nursery.start_soon(self._send, batch)
        return max(0.5, self._delay_s / 2)

    def _due(self) -> list[Block]:
        """The next pack's blocks; empty when none is due."""
        now_s = int(time.time())
        drain = self.drain or self.pressed()
        born_before = now_s if drain or self.hurry else now_s - int(self._delay_s)
        without = self._flying | self._meta.damage.numbers()
        batch, is_all = self._meta.blocks.pending(PACK_BYTES, PACK_BLOCKS, born_before, now_s, without)
        if not batch or drain or not is_all:
            return batch
        is_young = now_s - PATIENCE * self._delay_s < self._meta.blocks.born(batch[0].number) <= now_s
        return [] if is_young else batch

    async def _send(self, batch: list[Block]) -> None:
        try:
            if not await self._on_remote(batch):
                return
            self._limit = min(self._parallelism, self._limit + 1)
            self.remote_ok, self.error, self.local_error = True, None, None
            self._pause_s = FIRST_PAUSE_S
        except BackendError as error:
            forget_way(error)
            self.remote_ok, self.error = False, error
            self._limit = 1  # a slow line carries one pack in the time in which four would all fail
            if trio.current_time() >= self._failed_until:  # packs that were sent together fail together
                self._failed_until = trio.current_time() + self._next_pause_s()
            log.warning("upload: %s; it is tried again", error)
        except (LocalDamage, OSError) as error:
            self._failed_until = trio.current_time() + RETRY_S
            self._blame_disk(error)
            log.error("upload: %s", error)
        finally:
            self._flying.difference_update(block.number for block in batch)
            self._running -= 1
            self.progressed.set()
            self.progressed = trio.Event()
            self.on_stored()
            self.wake()

    async def _on_remote(self, batch: list[Block]) -> bool:
        """Have the remote take what can be read of the batch, and record that; whether it has taken anything.

        What the porter cannot read was deleted meanwhile, mostly. The rest of it is judged here.
        """
        packer = await self._packer(batch)
        taken = False
        if packer is not self._local:
            try:
                taken, unreadable = await self._carry(batch, packer)
                batch = [block for block in unreadable if self._is_only_copy(block)]
            except PorterLost as error:
                log.info("upload: the porter: %s; the pack is made without it", error)
        if batch:
            taken_here, _ = await self._carry(batch, self._local)
            taken = taken or taken_here
        return taken

    async def _packer(self, batch: list[Block]) -> Packer:
        """Who is to make the pack. After a failure not the porter: it has connections of its own, which may be why."""
        is_bulk = sum(block.size for block in batch) >= PACK_BYTES // 2
        self._bulk = self._bulk + 1 if is_bulk else 0
        if self._porter is None or not is_bulk or self.error is not None:
            return self._local
        worth_it = self._porter.is_ready or self._bulk >= BULK_PACKS
        return self._porter if worth_it and await self._porter.come() else self._local

    async def _carry(self, batch: list[Block], packer: Packer) -> tuple[bool, list[Block]]:
        """Whether the remote has taken a pack, of which that is recorded; and what of the batch cannot be read."""
        pack, unreadable = await self._pack(batch, packer)
        if pack is not None and self._meta.doomed.is_doomed(pack.id):  # its key is about to be deleted
            pack.drop()
            pack, unreadable = await self._pack(batch, packer, filler())
        if pack is None:
            return False, unreadable
        with self.packs.flying(pack.id):
            try:
                await pack.put()
            finally:
                pack.drop()
            with self._budget.pin([block.number for block in batch]):  # until it is sure that we shall know where
                self._meta.blocks.stored(pack.id, pack.size_bytes, CONTENT, pack.locations)
                await self._sync()
        self.uploaded_bytes += pack.size_bytes
        self.stored_bytes += sum(plain_bytes for _, _, _, plain_bytes in pack.locations)
        return True, unreadable

    async def _pack(self, batch: list[Block], packer: Packer, *more: Parcel) -> tuple[MadePack | None, list[Block]]:
        async with self._packers:  # before the rows are read: they take memory too
            parcels = [Parcel(block.id, block.size, self._row(block)) for block in batch]
            pack, places = await packer.make([*parcels, *more])
        unreadable = [batch[place] for place in places if place < len(batch)]
        if packer is self._local:
            self._set_aside(unreadable)
        return pack, unreadable

    def _row(self, block: Block) -> bytes | None:
        return self._meta.blocks.data(block.number) if block.cached == CACHED_ROW else None

    def _blame_disk(self, error: LocalDamage | OSError) -> None:
        self.local_error = error if isinstance(error, LocalDamage) else DataUnusable(f"the local disk refuses: {error}")

    async def _sync(self) -> None:
        """Make what is recorded durable, however long the disk takes to be of use again."""
        stuck = 0
        try:
            while True:
                try:
                    return await self._durability.sync()
                except OSError as error:
                    log.error("upload: what was stored cannot be made durable here: %s", error)
                    self._blame_disk(error)
                    self._stuck += 1 - stuck
                    stuck = 1
                    await trio.sleep(RETRY_S)
        finally:
            self._stuck -= stuck

    @property
    def is_sending(self) -> bool:
        """Whether packs are on their way and the last one that ended got there. Each has a deadline of its own."""
        return self._running > self._stuck and self.error is None

    def _set_aside(self, blocks: list[Block]) -> None:
        """Blocks whose only copy cannot be read must not keep the others from leaving."""
        for block in blocks:
            if self._is_only_copy(block):
                log.error("upload: block %s is damaged here, and the remote has none", block.id.hex())
                self._meta.damage.lost(block.number)

    def _is_only_copy(self, block: Block) -> bool:
        """Whether what is here of the block is still all there is of it. It may have been released meanwhile."""
        try:
            current = self._meta.blocks.get(block.number)
        except KeyError:
            return False
        return current.location is None and bool(current.cached)
