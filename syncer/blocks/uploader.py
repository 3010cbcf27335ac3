"""Sends sealed blocks to the remote: oldest first, in packs, several at once.

One task plans (`run`), each pack is a task of its own. A block counts as stored only when its pack is.
"""

import errno
import logging
import random
import time
from collections.abc import Awaitable, Callable

import trio

from syncer.backends.base import Backend
from syncer.backends.confirmed import put_seen
from syncer.blocks.codec import block_id, seal
from syncer.blocks.pack import PACK_BLOCKS, Pack, PackBuilder, pack_key
from syncer.blocks.store import BlockStore
from syncer.blocks.syncing import Durability
from syncer.errors import BackendError, LocalDamage, SyncerError
from syncer.meta.blocktable import CACHED_ROW, Block
from syncer.values import CONTENT, PACK_BYTES

log = logging.getLogger(__name__)

PATIENCE = 3
"""A pack that is not full leaves when its oldest block has waited this many times the upload delay."""
PACKERS = 1
"""Packs are made by so many threads at most (each holds its pack twice meanwhile); one is faster than most networks."""
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
    ) -> None:
        self._meta = store.meta
        self._backend = backend
        self._cache = store.cache
        self._budget = store.budget
        self._durability = durability
        self._delay_s = delay_s
        self._level = level
        self._parallelism = self._limit = max(1, min(parallelism, backend.parallelism))
        self._running = 0
        self._packers = trio.CapacityLimiter(PACKERS)
        self._flying: set[int] = set()
        self._wake = trio.Event()
        self._failed_until = 0.0
        self._pause_s = FIRST_PAUSE_S
        self.hurry = 0
        """While above 0, whatever is sealed leaves at once."""
        self.uploaded_bytes = 0
        """Bytes sent: packs, indexes and snapshots."""
        self.stored_bytes = 0
        """Plain bytes of the blocks that the remote has got."""
        self.progressed = trio.Event()
        """Set, and made anew, whenever a pack was stored or could not be."""
        self.remote_ok: bool | None = None
        self.error: BackendError | None = None
        """Why the last pack could not be stored; None once one could."""
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
        hurry = self.hurry or self.pressed()
        born_before = now_s if hurry else now_s - int(self._delay_s)
        without = self._flying | self._meta.damage.numbers()
        batch = self._meta.blocks.pending(PACK_BYTES, PACK_BLOCKS, born_before, now_s, without)
        if not batch or hurry:
            return batch
        full = sum(block.size for block in batch) >= PACK_BYTES // 2 or len(batch) >= PACK_BLOCKS
        is_young = now_s - PATIENCE * self._delay_s < self._meta.blocks.born(batch[0].number) <= now_s
        return batch if full or not is_young else []

    async def _send(self, batch: list[Block]) -> None:
        try:
            async with self._packers:  # before the rows are read: they take memory too
                rows = {b.number: self._meta.blocks.data(b.number) for b in batch if b.cached == CACHED_ROW}
                pack, unreadable = await trio.to_thread.run_sync(self._pack, batch, rows)
            self._set_aside(unreadable)
            if pack is None:
                return
            await put_seen(self._backend, pack_key(pack.id), pack.data)
            with self._budget.pin([block.number for block in batch]):  # until it is sure that we shall know where
                self._meta.blocks.stored(pack.id, len(pack.data), CONTENT, pack.locations())
                await self._sync()
            self._limit = min(self._parallelism, self._limit + 1)
            self.uploaded_bytes += len(pack.data)
            self.stored_bytes += sum(entry.plain_bytes for entry in pack.entries)
            self.remote_ok, self.error = True, None
            self._pause_s = FIRST_PAUSE_S
        except BackendError as error:
            self.remote_ok, self.error = False, error
            self._limit = 1  # a slow line carries one pack in the time in which four would all fail
            if trio.current_time() >= self._failed_until:  # packs that were sent together fail together
                self._failed_until = trio.current_time() + self._next_pause_s()
            log.warning("upload: %s; it is tried again", error)
        except (LocalDamage, OSError) as error:
            self._failed_until = trio.current_time() + RETRY_S
            log.error("upload: %s", error)
        finally:
            self._flying.difference_update(block.number for block in batch)
            self._running -= 1
            self.progressed.set()
            self.progressed = trio.Event()
            self.on_stored()
            self.wake()

    async def _sync(self) -> None:
        """Make what is recorded durable, however long the disk takes to be of use again."""
        while True:
            try:
                return await self._durability.sync()
            except OSError as error:
                log.error("upload: what was stored cannot be made durable here: %s", error)
                await trio.sleep(RETRY_S)

    @property
    def is_sending(self) -> bool:
        """Whether packs are on their way and the last one that ended got there. Each has a deadline of its own."""
        return self._running > 0 and self.error is None

    def _set_aside(self, blocks: list[Block]) -> None:
        """Blocks whose only copy cannot be read must not keep the others from leaving."""
        for block in blocks:
            try:
                current = self._meta.blocks.get(block.number)
            except KeyError:
                continue  # released after it was chosen
            if current.location is None and current.cached:
                log.error("upload: block %s is damaged here, and the remote has none", block.id.hex())
                self._meta.damage.lost(block.number)

    def _read_file(self, block: Block) -> bytes | None:
        try:
            return self._cache.read_file(block.id)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return None  # this one is lost; the others must not be kept from leaving

    def _pack(self, batch: list[Block], rows: dict[int, bytes | None]) -> tuple[Pack | None, list[Block]]:
        """In a thread: verify, seal and pack the blocks; returns those that cannot be read apart."""
        builder = PackBuilder()
        unreadable: list[Block] = []
        for block in batch:
            data = rows.pop(block.number) if block.number in rows else self._read_file(block)
            if data is None or block_id(data) != block.id:
                unreadable.append(block)
            else:
                builder.add(block.id, seal(data, self._level), len(data))
        return (builder.finish() if len(unreadable) < len(batch) else None), unreadable
