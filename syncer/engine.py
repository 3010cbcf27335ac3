"""Everything between the file system calls and the remote, built and run for one DATA: no FUSE, no command line.

`Engine.open` is an async context manager: inside it the file system works, its tasks run, and leaving it puts
everything down cleanly. `app.py` adds the mount; tests and offline commands use the engine alone.
"""

import contextlib
import errno
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import trio

from syncer.backends.base import Backend
from syncer.blocks.porter import Porter
from syncer.blocks.sealer import Sealer
from syncer.blocks.store import BlockStore
from syncer.blocks.syncing import Durability
from syncer.blocks.tails import Tails
from syncer.blocks.uploader import Uploader
from syncer.disk import give_back_memory
from syncer.errors import DeadlinePassed, LocalDamage, SyncerError, WrongRepository, some_of
from syncer.fs.eraser import Eraser
from syncer.fs.fileio import FileIO
from syncer.fs.filesystem import FileSystem
from syncer.fs.history import HistoryTree
from syncer.fs.pastfile import PastFiles
from syncer.fs.readahead import Limits
from syncer.fs.restoring import Restoring
from syncer.meta.database import CACHE_BYTES, SHRINK_PAGES
from syncer.meta.store import MetaStore
from syncer.snapshots import retention
from syncer.snapshots.elsewhere import Elsewhere
from syncer.snapshots.history import History, Snapshot
from syncer.snapshots.housekeeping import Housekeeper
from syncer.snapshots.listing import Lister
from syncer.snapshots.merging import IndexMerger
from syncer.snapshots.prune import Pruner
from syncer.snapshots.publisher import Publisher
from syncer.snapshots.thinning import Thinner
from syncer.values import InodeNumber

log = logging.getLogger(__name__)

COMMIT_S = 0.1
CHECKPOINT_SHARE = 32
CHECKPOINT_MAX_BYTES = 16_000_000
"""A checkpoint comes when the WAL or the journal holds this share of the budget, or so many bytes."""
CACHE_SHARE = 16
"""As much of meta.db is kept in memory as this part of the budget, at most CACHE_BYTES: who has room for little on the
disk has little memory too. Random look-ups among 200,000 files take a tenth longer with 12 MB than with 32."""
CHECKPOINT_S = 60.0
TROUBLE_S = 2.0
"""How long to leave a local disk alone that has just refused something."""
CHECKPOINT_LOOK_S = 0.5
GIVE_BACK_S = 15.0
"""How often, at most, memory that is free between what is in use is given back: under load, a quarter of all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the engine needs to know; sizes in bytes, times in seconds."""

    budget_bytes: int
    snapshot_interval_s: float = 60.0
    upload_delay_s: float = 5.0
    network_deadline_s: float = 60.0
    upload_parallelism: int = 4
    read_ahead_bytes: int = 24 * 1024 * 1024
    compression_level: int = 1
    history_name: bytes | None = b".snapshots"
    keep: str = retention.DEFAULT
    prune_dead_percent: int = 20


class Following(Protocol):
    """What a mount that follows tells of itself (following.py)."""

    @property
    def shown(self) -> Snapshot | None: ...
    @property
    def away(self) -> bool: ...
    def age_s(self) -> float | None: ...


class Engine:
    """See the module's text. Attributes are the parts, for whoever serves or tests them."""

    def __init__(
        self,
        data: Path,
        meta: MetaStore,
        backend: Backend,
        settings: Settings,
        nursery: trio.Nursery,
        *,
        read_only: bool,
        porter: Porter | None = None,
    ) -> None:
        self._data = data
        self._pending = trio.Event()
        self._checkpoint_wanted = trio.Event()
        self._checkpointing = trio.Lock()
        self._checkpointed_journal = 0
        self._checkpointed_at = time.monotonic()
        self.recovered = ""
        """What was done because the last run did not end cleanly; empty when it did."""
        self.settings = settings
        self.meta = meta
        meta.database.keep_in_memory(min(CACHE_BYTES, settings.budget_bytes // CACHE_SHARE))
        self.backend = backend
        self.read_only = read_only
        self.store = BlockStore(data, meta, backend, settings.budget_bytes, nursery)
        self.tails = Tails(self.store)
        self.durability = Durability(meta.database, self.store.dirty, self.store.names, self.store.renewal)
        self.sealer = Sealer(self.store, self.tails, self.durability, quiet_s=settings.upload_delay_s / 2)
        self.uploader = Uploader(
            self.store,
            backend,
            self.durability,
            delay_s=settings.upload_delay_s,
            parallelism=settings.upload_parallelism,
            level=settings.compression_level,
            porter=porter,
        )
        self._porter = porter
        self.eraser = Eraser(meta, self.commit)
        deadline_s = settings.network_deadline_s
        read_ahead_bytes = min(settings.read_ahead_bytes, settings.budget_bytes // 8)
        self._limits = Limits(deadline_s, deadline_s, read_ahead_bytes)
        self.file_system = FileSystem(
            self.store, self._make_io, read_only=read_only, history_name=settings.history_name
        )
        self.publisher = Publisher(
            meta,
            backend,
            self.sealer,
            self.uploader,
            self.durability,
            interval_s=settings.snapshot_interval_s,
        )
        self.history = History(self.store, backend, nursery, deadline_s=deadline_s)
        self.lister = Lister(self.history)
        parts = self.history, self.publisher
        self.thinner = Thinner(meta, backend, *parts, self.durability)
        self.pruner = Pruner(self.store, backend, *parts, self.thinner, self.durability)
        self.merger = IndexMerger(meta, backend, self.publisher, self.thinner, self.pruner.turn)
        self.housekeeper = Housekeeper(
            meta, self.publisher, self.thinner, self.pruner, self.merger, retention.parse(settings.keep)
        )
        self.files = PastFiles(self.store, self.history, self._limits)
        self.past = HistoryTree(self.history, self.files, self.file_system.names.inode, self.file_system.names.path)
        self.follower: Following | None = None
        """Who looks for the writer's snapshots, where this is a mount that follows."""
        self.restoring = Restoring(self.file_system, meta, self.history, self.publisher, pace=self.pace)
        self._wire()

    def _make_io(self) -> FileIO:
        return FileIO(self.store, self.tails, self.sealer, self.durability, self.eraser, self._limits, self.commit)

    def _wire(self) -> None:
        def hurry() -> None:
            self.sealer.wake()
            self.uploader.wake()
            self._checkpoint_wanted.set()
            if self.store.budget.is_log_long:
                self.publisher.give_way()

        self.meta.database.on_pending = lambda: self._pending.set()
        self.store.budget.on_pressure = hurry
        self.durability.on_durable = self.store.delete_retired
        self.sealer.on_sealed = self.uploader.wake
        self.store.fetcher.on_damage = self.uploader.wake
        self.store.fetcher.sends_again = not self.read_only
        if self.read_only:  # then others prune, and one look tells where all is that they have moved
            self.store.fetcher.on_missing = lambda: self.history.learn_indexes(0)
        self.store.fetcher.elsewhere = Elsewhere(self.meta, self.backend).find
        self.uploader.on_stored = self.store.budget.changed
        self.sealer.pace = self.eraser.pace = self.pruner.pace = self.pace
        self.pruner.dead_percent = self.settings.prune_dead_percent
        self.publisher.removed = self.eraser.removed
        self.uploader.verify = self.publisher.check_writer
        self.publisher.catch_up = self.checkpoint
        self.publisher.on_refused = self._refused
        self.publisher.on_published = self.housekeeper.wake
        self.thinner.in_use = self.past.in_use
        self.uploader.pressed = lambda: self.store.budget.waiting > 0

    def _refused(self) -> None:
        self.read_only = self.file_system.read_only = True

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls,
        data: Path,
        meta: MetaStore,
        backend: Backend,
        settings: Settings,
        *,
        read_only: bool = False,
        publishing: bool = True,
        porter: Porter | None = None,
    ) -> AsyncIterator["Engine"]:
        """Run the engine of an opened, joined DATA. Leaving ends its tasks and commits; *meta* is closed too.

        Without *publishing* snapshots are taken only when asked for. *porter*, which goes to the same remote as
        *backend*, takes over the packs when there are many.
        """
        engine: Engine | None = None
        try:
            async with trio.open_nursery() as nursery:
                engine = cls(data, meta, backend, settings, nursery, read_only=read_only, porter=porter)
                engine._start(nursery, publishing=publishing)
                try:
                    yield engine
                finally:
                    nursery.cancel_scope.cancel()
        finally:
            if engine is not None:
                engine.durability.close()
                engine.store.finish()
            meta.close()

    def _start(self, nursery: trio.Nursery, *, publishing: bool) -> None:
        erased = self.file_system.handles.erase_orphans()
        self.meta.damage.try_again()
        self.meta.commit()
        if self.meta.crashed:
            self.recovered = _recovered(self.meta.replayed, self.sealer.unsealed, erased)
            log.info("%s", self.recovered)
        tasks: list[Callable[[], Awaitable[None]]] = [
            *(self._commit_loop, self._checkpoint_loop, self.eraser.run, self.past.prepare)
        ]
        if not self.read_only:
            tasks += [self.sealer.run, self.uploader.run]
        if self._porter is not None and not self.read_only:
            tasks.append(self._porter.run)
        if publishing and not self.read_only:
            tasks += [self.publisher.run, self.housekeeper.run]
        for task in tasks:
            nursery.start_soon(self._keep_running, task)

    async def _keep_running(self, task: Callable[[], Awaitable[None]]) -> None:
        """A defect in one task must not take the mount away from its users: log it and begin the task anew."""
        while True:
            try:
                await task()
                return
            except Exception:  # whatever it is
                log.exception("a task failed unexpectedly and is started again")
                await trio.sleep(TROUBLE_S)

    @property
    def remote_ok(self) -> bool | None:
        """What the last attempt to reach the remote showed; None before the first."""
        follows = None if self.follower is None else not self.follower.away
        parts = self.uploader.remote_ok, self.store.fetcher.remote_ok, follows
        seen = [part for part in parts if part is not None]
        return all(seen) if seen else None

    def unsealed_bytes(self) -> int:
        """Bytes written that are in no block yet."""
        return self.store.dirty.total_bytes + self.meta.inodes.content_bytes()

    # --- commits and checkpoints ---------------------------------------------------------------------------------

    def commit(self) -> None:
        """Commit, with the small files that nobody has open as blocks. Between two operations only. ATOMIC.

        Raises: LocalDamage.
        """
        self.sealer.seal_closed()
        self.meta.commit()

    async def _commit_loop(self) -> None:
        """Commit a little after the first operation that waits for it. Trouble with the disk is tried again."""
        while True:
            if not self.meta.database.pending:
                self._pending = trio.Event()
                await self._pending.wait()
            await trio.sleep(COMMIT_S)
            try:
                self.commit()
                if self.store.budget.is_much_retired:
                    await self.durability.sync()
            except (LocalDamage, OSError) as error:
                log.error("commit: %s", error)
                await trio.sleep(TROUBLE_S)
            if self._checkpoint_due():
                self._checkpoint_wanted.set()

    async def _checkpoint_loop(self) -> None:
        """Checkpoint when it is due, and give memory back after it: there was work that may have taken some."""
        given_back_at = time.monotonic()
        while True:
            with trio.move_on_after(CHECKPOINT_LOOK_S):
                await self._checkpoint_wanted.wait()
            if self._checkpoint_due():
                try:
                    await self.checkpoint()
                except (LocalDamage, OSError) as error:
                    log.error("checkpoint: %s", error)
                    await trio.sleep(TROUBLE_S)
                if time.monotonic() - given_back_at > GIVE_BACK_S:
                    await trio.to_thread.run_sync(give_back_memory)
                    given_back_at = time.monotonic()
            self._checkpoint_wanted = trio.Event()

    @property
    def _checkpoint_limit(self) -> int:
        return min(CHECKPOINT_MAX_BYTES, self.settings.budget_bytes // CHECKPOINT_SHARE)

    def _checkpoint_due(self) -> bool:
        database = self.meta.database
        grown = database.committed_position - self._checkpointed_journal
        if not grown and not self.store.renewal.failures and database.free_pages() < SHRINK_PAGES:
            return False
        limit = self._checkpoint_limit
        return (
            grown > limit
            or database.wal_bytes() > limit
            or time.monotonic() - self._checkpointed_at > CHECKPOINT_S
            or self.store.budget.waiting > 0
        )

    async def pace(self) -> None:
        """Wait for a checkpoint if one is due: for tasks that write much to meta.db on their own account."""
        if self._checkpoint_due():
            await self.checkpoint()
        else:
            await trio.lowlevel.checkpoint()

    async def checkpoint(self) -> None:
        """Make everything committed durable in meta.db, let the WAL start over, and drop the journal before it."""
        async with self._checkpointing:
            await self._checkpoint()

    async def _checkpoint(self) -> None:
        database, renewal = self.meta.database, self.store.renewal
        failures = renewal.failures
        all_renewed = await renewal.renew_all() if failures else True
        database.turn_over()
        self.meta.commit()
        position = database.committed_position
        unsynced = self.store.unsynced()
        try:
            await trio.to_thread.run_sync(self.store.names.sync_all, self._data)
        except OSError:
            renewal.doubt()
            database.doubt()
            raise
        self.store.synced(unsynced)
        database.synced(position)
        self.store.delete_retired()
        await trio.to_thread.run_sync(database.checkpoint)
        self.meta.commit()
        whole = database.checkpoint_here()
        if whole:
            database.is_in_meta_db(position)
            if failures and all_renewed and failures == renewal.failures:
                renewal.end()
        elif database.is_doubted:
            raise OSError(errno.EIO, "the log of meta.db may lack what the disk did not take")
        if whole and database.free_pages() >= SHRINK_PAGES:
            database.shrink(SHRINK_PAGES)  # writes to the WAL; while a reader keeps that from starting over, it waits
        database.kept_bytes = 0 if self.store.budget.waiting else self._checkpoint_limit
        database.discard_journal(position)
        database.reserve.renew()
        self._checkpointed_journal, self._checkpointed_at = position, time.monotonic()
        self.store.budget.measure()

    # --- the promise of the remote -------------------------------------------------------------------------------

    async def flush(
        self,
        progress: Callable[[int, int], None] = lambda done, total: None,
        timeout_s: float | None = None,
        *,
        released: bool = False,
    ) -> None:
        """Return when everything written before is on the remote, in a snapshot. *progress*: (done, total) bytes.

        *released* says in it that nobody writes from here any more.

        Raises:
            DeadlinePassed: not within *timeout_s*.
            BackendError: the remote will not have it.
            LocalDamage: everything else is there, in a snapshot; it lacks blocks whose only copy, here, is bad.
            WrongRepository: nothing may be written from here, and something waits.
        """
        if self.read_only:
            return self._check_nothing_waits()
        lacking: frozenset[int] = frozenset()
        with trio.move_on_after(float("inf") if timeout_s is None else timeout_s) as scope:
            lacking = await self.publisher.publish("manual", released=released, progress=progress)
        if scope.cancelled_caught:
            raise DeadlinePassed(f"not everything reached the remote within {timeout_s:g} s")
        if lacking:
            paths = [os.fsdecode(path) for path in self.meta.damage.paths(lacking)]
            raise LocalDamage(
                f"all is on the remote but {len(lacking)} block{'' if len(lacking) == 1 else 's'} of {some_of(paths)},"
                " damaged here before they got there",
                hint="write these files again from another copy, or delete them",
            )

    async def flush_file(self, number: InodeNumber) -> None:
        """Return when the inode, and everything written before, is on the remote, in a snapshot.

        Raises: as `flush`; LocalDamage only when bytes of this inode are damaged.
        """
        if self.read_only:
            return self._check_nothing_waits()
        lacking = await self.publisher.publish("manual")
        if lacking and self.meta.extents.names_any(number, lacking):
            raise LocalDamage(f"inode {number} has blocks that are damaged here and not on the remote")

    def _check_nothing_waits(self) -> None:
        waiting = self.meta.blocks.pending_totals()[0] + self.unsealed_bytes()
        if waiting:
            raise WrongRepository(
                f"mounted read-only, and {waiting} bytes from before are not on the remote",
                hint="mount it for writing, where nobody else has taken over the repository",
            )

    async def put_down(self, deadline_s: float) -> None:
        """Before a clean end: publish what can be published in *deadline_s*. What cannot waits for the next time."""
        if self.read_only:
            return
        with trio.move_on_after(deadline_s if self.remote_ok is not False else 1.0):
            try:
                await self.publisher.publish("unmount", released=True)
            except SyncerError as error:
                log.warning("nothing was published at the end: %s", error)


def _recovered(replayed: int, unsealed: int, erased: int) -> str:
    parts = [(replayed, "operation", "replayed"), (unsealed, "file", "with unsealed bytes")]
    parts.append((erased, "unlinked file", "erased"))
    return "recovered after a crash: " + ", ".join(
        f"{count:,} {noun}{'' if count == 1 else 's'} {what}" for count, noun, what in parts
    )
