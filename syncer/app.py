"""The composition root: builds the engine for one DATA, mounts it, serves the control socket, closes everything.

The only module beside `fs/fuse.py` that knows pyfuse3. Called by the command line; `mount` blocks until the mount
has ended.
"""

import contextlib
import functools
import gc
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pyfuse3
import trio

from syncer import control, mounts, timetravel
from syncer.backends.open import open_backend
from syncer.backends.retry import RetryingBackend
from syncer.blocks.porter import Porter, PorterSettings
from syncer.config import Config
from syncer.control import Progress, Status
from syncer.datadir import DataDirectory, need_database
from syncer.disk import allow_open_files, sync_file_system, tune_allocator
from syncer.engine import Engine, Settings
from syncer.errors import DeadlinePassed, FuseUnavailable, WrongRepository, alone
from syncer.following import Follower
from syncer.fs import device, fuse
from syncer.fs.fusehistory import HistoryAdapter, ReadOnlyAdapter
from syncer.fs.interrupts import Interrupts
from syncer.meta.store import MetaStore
from syncer.snapshots import recovery
from syncer.snapshots.records import FORMAT_KEY
from syncer.snapshots.repository import Membership, Wish, follow, is_follower, join, visit

R = TypeVar("R")
log = logging.getLogger(__name__)

TAKE_S = 10.0
"""How long a clean end waits for written pages that the kernel still holds."""
LOOK_S = 0.005
PUT_DOWN_S = 10.0
"""How long a clean end may go on publishing; what is not on the remote by then waits in DATA."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MountRequest:
    """What the command line asks for, checked as far as it can be checked without opening DATA.

    *history_only*: the snapshots instead of the live tree. *visiting*: from a DATA that does not join the repository.
    *following*: what the writer has published last, from such a DATA too.
    """

    data: Path
    mountpoint: Path
    config: Config
    read_only: bool = False
    allow_other: bool = False
    writeback: bool = False
    sync_remote: bool = False
    mount_options: tuple[str, ...] = ()
    take_over: bool = False
    history_only: bool = False
    visiting: bool = False
    following: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class MountResult:
    """How a mount ended: what still waits for the remote, and why it was read-only if that was not asked for."""

    pending_bytes: int
    pending_blocks: int
    read_only_reason: str | None


def mount(request: MountRequest, lock: DataDirectory, on_ready: Callable[[str], None]) -> MountResult:
    """Mount and serve until the mount ends; *on_ready* is called once it is usable, with a note or "".

    SIGINT, SIGTERM and an unmount from outside end it cleanly. *lock* is held by the caller for all that time.

    Raises: SyncerError.
    """
    tune_allocator()
    allow_open_files()
    gc.set_threshold(20_000, 20, 20)  # loading the SDK of a remote makes a million objects that stay
    return _run(functools.partial(_mount, request, lock, on_ready))


def _run(function: Callable[[], Awaitable[R]]) -> R:
    """trio.run, but an error that was alone in the groups that nurseries make of it comes out as itself."""
    try:
        return trio.run(function, restrict_keyboard_interrupt_to_checkpoints=True)
    except BaseExceptionGroup as group:
        raise alone(group) from None


async def _mount(request: MountRequest, lock: DataDirectory, on_ready: Callable[[str], None]) -> MountResult:
    async with _opened(
        request.data,
        request.config,
        take_over=request.take_over,
        read_only=request.read_only,
        visiting=request.visiting,
        following=request.following,
        looking=request.history_only,
        with_porter=not request.following,
    ) as opened:
        engine, membership = opened
        follower = await _followed(engine) if request.following else None
        service = _Service(request, engine, _begin_session(request, engine, follower))
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(control.serve, lock.socket, service)
                nursery.start_soon(service.watch_signals)
                nursery.start_soon(service.end_when_asked)
                nursery.start_soon(service.announce, on_ready, _note(engine, membership))
                if follower is not None:
                    nursery.start_soon(follower.run)
                await pyfuse3.main()
                nursery.cancel_scope.cancel()
        finally:
            pyfuse3.close(unmount=True)
        await engine.put_down(PUT_DOWN_S)
        if follower is not None:
            await follower.end(PUT_DOWN_S)
        engine.meta.commit()
        pending_bytes, pending_blocks, _ = engine.meta.blocks.pending_totals()
        pending_bytes += engine.unsealed_bytes()
        return MountResult(
            pending_bytes=pending_bytes, pending_blocks=pending_blocks, read_only_reason=membership.read_only_reason
        )


async def _followed(engine: Engine) -> Follower:
    """What has the newest snapshot to show, or the one that it showed last."""
    follower = Follower(engine, engine.backend)
    await follower.begin()
    return follower


def _begin_session(request: MountRequest, engine: Engine, follower: Follower | None) -> Callable[[], bool]:
    """Mount. Returns what tells whether the kernel has nothing more for us just now. Raises: FuseUnavailable."""
    options = {"default_permissions", f"fsname={mounts.mount_source(request.data)}", "subtype=syncer"}
    options.update(request.mount_options)
    if request.allow_other:
        options.add("allow_other")
    if engine.read_only:
        options.add("ro")
    waiter = device.prepare(engine.file_system.settle)
    adapter = _adapter(request, engine, follower, waiter.interrupts)
    try:
        pyfuse3.init(adapter, str(request.mountpoint), options)
    except RuntimeError as error:
        raise FuseUnavailable(
            f"the kernel refused to mount {request.mountpoint}: {error}",
            hint="see whether user_allow_other is set in /etc/fuse.conf, and /dev/fuse is yours to open",
        ) from error
    if follower is not None:
        follower.notify = fuse.moved_on
    return lambda: not (isinstance(adapter, fuse.Adapter) and adapter.writing) and waiter.is_quiet()


def _adapter(
    request: MountRequest, engine: Engine, follower: Follower | None, interrupts: Interrupts
) -> pyfuse3.Operations:
    """What answers the kernel: the live tree with its past, the past alone, or what the writer has published."""
    if follower is not None:
        return ReadOnlyAdapter(follower.tree, interrupts)
    if request.history_only:
        engine.past.become_root(os.getuid(), os.getgid())
        return HistoryAdapter(engine.past, interrupts)
    adapter = fuse.Adapter(engine.file_system, engine.past, interrupts, writeback=request.writeback)
    if request.sync_remote:
        adapter.flush_remote = engine.flush_file
    return adapter


class _Service:
    """What the control socket may ask of a mount."""

    def __init__(self, request: MountRequest, engine: Engine, is_quiet: Callable[[], bool]) -> None:
        """*is_quiet*: whether the kernel has nothing for us."""
        self._request = request
        self._engine = engine
        self._is_quiet = is_quiet
        self._stop = trio.Event()

    def status(self) -> Status:
        return status_of(self._engine, self._request.config, self._request.mountpoint)

    async def flush(self, progress: Callable[[Progress], None]) -> None:
        await self._take_all_pages()
        await self._engine.flush(lambda done, total: progress(Progress(done, total)))

    async def travel(
        self, what: str, arguments: dict[str, Any], progress: Callable[[Progress], None]
    ) -> dict[str, Any]:
        await self._take_all_pages()
        return await timetravel.answer(
            self._engine, what, arguments, lambda done, total: progress(Progress(done, total))
        )

    async def _take_all_pages(self) -> None:
        """`_take_written_pages` within the network deadline. Raises: DeadlinePassed."""
        with trio.move_on_after(self._engine.settings.network_deadline_s) as scope:
            await self._take_written_pages()
        if scope.cancelled_caught:
            raise DeadlinePassed("the kernel holds written pages that could not be taken over in time")

    async def _take_written_pages(self) -> None:
        """Return when what the kernel alone knew to be written, by mmap(2) or in the writeback cache, is here.

        syncfs(2) has the kernel send it, and does not wait for our answers (Linux 6.18); as one is taken the next
        request is there, so when there is none all have been answered.
        """
        await trio.to_thread.run_sync(sync_file_system, self._request.mountpoint, abandon_on_cancel=True)
        while not self._is_quiet():  # noqa: ASYNC110 - nobody is told when the kernel has nothing more
            await trio.sleep(LOOK_S)

    def stop(self) -> None:
        self._stop.set()

    async def end_when_asked(self) -> None:
        """End the session, after the kernel has given what it holds: nobody else would take it."""
        await self._stop.wait()
        with trio.move_on_after(TAKE_S):
            try:
                await self._take_written_pages()
            except OSError as error:
                log.warning("the last written pages: %s", error)
        pyfuse3.terminate()

    async def watch_signals(self) -> None:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
            async for number in signals:
                log.info("%s: unmounting", signal.Signals(number).name)
                self.stop()

    async def announce(self, on_ready: Callable[[str], None], note: str) -> None:
        """Say that the mount is usable, once the kernel has had its first answer."""
        path = os.fsencode(self._request.mountpoint)  # in threads that nobody waits for: the mount may end meanwhile
        await trio.to_thread.run_sync(os.stat, path, abandon_on_cancel=True)
        await trio.to_thread.run_sync(device.raise_read_ahead, path, abandon_on_cancel=True)
        on_ready(note)


def _note(engine: Engine, membership: Membership) -> str:
    """What the line that says a mount is usable says besides."""
    reason = membership.read_only_reason
    return "; ".join(filter(None, [reason and f"read-only: {reason}", _follows(engine), engine.recovered]))


def _follows(engine: Engine) -> str:
    if engine.follower is None:
        return ""
    shown = engine.follower.shown
    return f"it follows {shown.host} and shows {shown.peer}/{shown.seq}" if shown else "it follows, and has nothing yet"


@contextlib.asynccontextmanager
async def _opened(
    data: Path,
    config: Config,
    *,
    take_over: bool = False,
    read_only: bool = False,
    publishing: bool = True,
    visiting: bool = False,
    following: bool = False,
    looking: bool = False,
    with_porter: bool = False,
) -> AsyncIterator[tuple[Engine, Membership]]:
    """The engine of DATA, which is locked, joined to the repository on its remote, or only *visiting* or *following*.

    *looking* is enough for what is asked, so a DATA that follows will do.

    *with_porter* leaves processors to whoever uses the files while much is uploaded.
    """
    settings = Settings(
        budget_bytes=config.budget_bytes,
        snapshot_interval_s=config.snapshot_interval_s,
        upload_delay_s=config.upload_delay_s,
        network_deadline_s=config.network_deadline_s,
        upload_parallelism=config.upload_parallelism,
        read_ahead_bytes=config.read_ahead_bytes,
        compression_level=config.compression_level,
        history_name=config.history_name.encode() or None,
        keep=config.keep,
        prune_dead_percent=config.prune_dead_percent,
    )
    async with backend_of(config) as backend:
        meta = MetaStore(data)
        try:
            wish = Wish(read_only=read_only, take_over=take_over, uid=os.getuid(), gid=os.getgid())
            if following or (looking and is_follower(meta)):
                membership, read_only = await follow(meta, backend), True
            else:
                with backend.not_waiting_for_a_server():
                    membership = await (visit(meta, backend) if visiting else join(meta, backend, wish))
            recovery.note_peer(data, meta)
        except BaseException:
            meta.close()
            raise
        if membership.read_only_reason:
            log.warning("read-only: %s", membership.read_only_reason)
        read_only = read_only or membership.read_only_reason is not None
        porter = _porter(data, config, backend) if with_porter else None
        running = Engine.open(data, meta, backend, settings, read_only=read_only, publishing=publishing, porter=porter)
        async with running as engine:
            yield engine, membership


def _porter(data: Path, config: Config, backend: RetryingBackend) -> Porter:
    settings = PorterSettings(
        url=config.remote,
        password_file=config.password_file,
        proof_key=FORMAT_KEY,
        level=config.compression_level,
    )
    return Porter(data / "cache", backend, settings)


@contextlib.asynccontextmanager
async def backend_of(config: Config) -> AsyncIterator[RetryingBackend]:
    """The remote of *config*, with retries and deadlines."""
    password_file = Path(config.password_file) if config.password_file else None
    inner = open_backend(config.remote, password_file=password_file)
    async with RetryingBackend(inner, total_s=config.network_deadline_s) as backend:
        yield backend


def status_of(engine: Engine, config: Config, mountpoint: Path | None) -> Status:
    """The figures of an open engine, from memory and the local database alone."""
    meta, budget = engine.meta, engine.store.budget
    meta.commit()
    pending_bytes, pending_blocks, oldest = meta.blocks.pending_totals()
    totals = meta.inodes.totals
    unique_bytes, remote_bytes = meta.blocks.content_totals()
    damaged, count = meta.damage.numbers(), meta.blocks.last_count()
    follower = engine.follower
    shown = None if follower is None else follower.shown
    return Status(
        mounted=mountpoint is not None,
        mountpoint=None if mountpoint is None else str(mountpoint),
        remote=config.remote,
        remote_ok=engine.remote_ok,
        budget_bytes=config.budget_bytes,
        used_bytes=budget.used_bytes,
        clean_bytes=budget.clean_bytes,
        dirty_bytes=budget.dirty_bytes,
        metadata_bytes=budget.metadata_bytes,
        pending_upload_bytes=pending_bytes + engine.unsealed_bytes(),
        pending_upload_blocks=pending_blocks,
        oldest_pending_s=None if oldest is None else max(0.0, time.time() - oldest),
        uploaded_bytes=engine.uploader.uploaded_bytes,
        fetched_bytes=engine.store.fetcher.fetched_bytes,
        files=totals.files if shown is None else shown.files,
        directories=totals.directories if shown is None else shown.directories,
        logical_bytes=totals.logical_bytes if shown is None else shown.logical_bytes,
        unique_bytes=unique_bytes if shown is None else shown.unique_bytes,
        remote_bytes=remote_bytes,
        head=meta.snapshots.head_name() if shown is None else f"{shown.peer}/{shown.seq}",
        remote_error=None if engine.uploader.error is None else str(engine.uploader.error),
        replaced_copies=engine.store.cache.replaced,
        damaged_blocks=len(damaged),
        damaged_paths=[os.fsdecode(path) for path in meta.damage.paths(damaged)],
        history_bytes=count.history_bytes,
        dead_bytes=count.dead_bytes,
        follows=follower is not None,
        shown_age_s=None if follower is None else follower.age_s(),
        snapshot_due=meta.snapshots.has_changes(),
    )


def offline_status(data: Path, config: Config) -> Status:
    """The status of a DATA that is not mounted; no network. The caller holds its lock.

    Raises: SyncerError.
    """

    async def ask() -> Status:
        need_database(data)
        meta, idle = MetaStore(data), Settings(budget_bytes=config.budget_bytes)
        async with (
            backend_of(config) as backend,
            Engine.open(data, meta, backend, idle, read_only=True) as engine,
        ):
            return status_of(engine, config, None)

    return _run(ask)


def offline_flush(data: Path, config: Config, progress: Callable[[Progress], None], timeout_s: float | None) -> None:
    """Upload what waits in a DATA that is not mounted. The caller holds its lock.

    Raises: SyncerError.
    """

    async def flush() -> None:
        need_database(data)
        async with _opened(data, config, publishing=False, looking=True) as (engine, membership):
            if membership.read_only_reason:
                raise WrongRepository(membership.read_only_reason)
            await engine.flush(lambda done, total: progress(Progress(done, total)), timeout_s, released=True)

    _run(flush)


def offline_travel(
    data: Path,
    config: Config,
    what: str,
    arguments: dict[str, object],
    progress: Callable[[Progress], None],
    *,
    visiting: bool = False,
    timeout_s: float | None = None,
) -> dict[str, Any]:
    """The answer to a question to history (timetravel.py) of a DATA that is not mounted. The caller holds its lock.

    *visiting*: DATA is new, and only looks at the repository.

    Raises: DeadlinePassed: not within *timeout_s*; SyncerError.
    """

    async def ask() -> dict[str, Any]:
        if not visiting:
            need_database(data)
        looking = timetravel.only_looks(what, arguments)
        opening = _opened(
            *(data, config),
            publishing=False,
            read_only=visiting or what == "list",
            visiting=visiting,
            looking=looking,
        )
        async with opening as (engine, membership):
            if membership.read_only_reason and not looking:
                raise WrongRepository(membership.read_only_reason)
            with trio.move_on_after(float("inf") if timeout_s is None else timeout_s) as scope:
                found = await timetravel.answer(
                    engine, what, arguments, lambda done, total: progress(Progress(done, total)), released=True
                )
            if scope.cancelled_caught:
                raise control.flush_late(timeout_s or 0)
            if what == "restore":
                await engine.put_down(PUT_DOWN_S)
            return found

    return _run(ask)


def recover(data: Path, config: Config, *, force: bool, say: Callable[[str], None]) -> recovery.Summary:
    """Rebuild meta.db of a DATA from the remote and from what DATA holds. The caller holds its lock.

    Raises: SyncerError.
    """

    async def rebuild() -> recovery.Summary:
        async with backend_of(config) as backend:
            return await recovery.recover(data, backend, force=force, uid=os.getuid(), gid=os.getgid(), say=say)

    tune_allocator()
    return _run(rebuild)
