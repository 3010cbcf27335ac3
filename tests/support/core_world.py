"""A DATA with its engine and a remote in memory: opened, restarted, killed at any moment and looked at."""

import contextlib
import logging
import os
import shutil
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import trio

from syncer.backends.base import Backend
from syncer.engine import Engine, Settings
from syncer.errors import SyncerError
from syncer.meta.store import MetaStore
from syncer.snapshots.repository import Wish, join
from tests.support.core_data import make_data

T = TypeVar("T")
NEVER_S = 1e9
WISH = Wish(read_only=False, take_over=False, uid=0, gid=0)


@contextlib.contextmanager
def threads_as_awaits() -> Iterator[None]:
    """Run what should run in a thread here, between two checkpoints: the same overlap each time, with a mock clock.

    The tests that use this look for what happens to the event loop's state meanwhile, not for races in the threads.
    """

    async def run_sync(call: Callable[..., T], *arguments: Any, **options: Any) -> T:
        await trio.lowlevel.checkpoint()
        result = call(*arguments)
        await trio.lowlevel.checkpoint()
        return result

    with mock.patch.object(trio.to_thread, "run_sync", run_sync):
        yield


class Camera:
    """Takes a picture of DATA as a kill would leave it just before a chosen system call.

    The calls are those that change what is below DATA, SQLite's commits (from the moment they are over) included.
    """

    CALLS = ("write", "pwrite", "ftruncate", "rename", "unlink")

    def __init__(self) -> None:
        self._left: int | None = None
        self._source = self._target = Path()
        self.taken = False

    @property
    def armed(self) -> bool:
        return self._left is not None

    def arm(self, source: Path, target: Path, calls: int) -> None:
        """Take the picture before the call after *calls* more."""
        self._left, self._source, self._target, self.taken = calls, source, target, False

    def tick(self) -> None:
        if self._left is not None:
            self._left -= 1
            if self._left < 0:
                self.shoot()

    def shoot(self) -> None:
        self._left = None
        shutil.copytree(self._source, self._target)
        self.taken = True

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """See the system calls of this process."""
        with contextlib.ExitStack() as stack:
            for name in self.CALLS:
                stack.enter_context(mock.patch.object(os, name, self._watched(getattr(os, name))))
            yield

    def _watched(self, call: Callable[..., T]) -> Callable[..., T]:
        def watched(*arguments: Any, **options: Any) -> T:
            self.tick()
            return call(*arguments, **options)

        return watched


class Complaints(logging.Handler):
    """Collects what the code under test logs at WARNING or above."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        logger = logging.getLogger("syncer")
        logger.addHandler(self)
        try:
            yield
        finally:
            logger.removeHandler(self)


class World:
    """One repository on *backend* with one peer, whose DATA is a folder below *folder*."""

    def __init__(self, folder: Path, backend: Backend, settings: Settings) -> None:
        self._folder = folder
        self._count = 0
        self._stack = contextlib.AsyncExitStack()
        self.backend = backend
        self.settings = settings
        self.camera = Camera()
        self.killed_inside = 0
        """How many kills came between the system calls of one operation."""
        self.data = make_data(folder / "0")
        self.engine: Engine
        self.tasks: trio.Nursery

    @property
    def meta(self) -> MetaStore:
        return self.engine.meta

    def fresh_folder(self) -> Path:
        self._count += 1
        return self._folder / str(self._count)

    async def start(self) -> None:
        self._stack = contextlib.AsyncExitStack()
        await self._stack.__aenter__()
        meta = MetaStore(self.data)
        try:
            await join(meta, self.backend, WISH)
        except BaseException:
            meta.close()
            raise
        self.engine = await self._stack.enter_async_context(Engine.open(self.data, meta, self.backend, self.settings))
        meta.database.on_commit.insert(0, self.camera.tick)
        self.tasks = await self._stack.enter_async_context(trio.open_nursery())
        self._stack.callback(lambda: self.tasks.cancel_scope.cancel())

    async def stop(self) -> None:
        """As a clean end does."""
        await self._stack.aclose()

    async def restart(self) -> None:
        await self.stop()
        await self.start()

    async def crash(self) -> None:
        """Go on from the picture, or from this moment: nothing of what happened later counts."""
        if not self.camera.taken:
            self.camera.arm(self.data, self.fresh_folder(), 0)
            self.camera.shoot()
        else:
            self.killed_inside += 1
        self.camera.taken = False
        old, self.data = self.data, self._folder / str(self._count)
        await self.stop()
        shutil.rmtree(old)
        await self.start()

    async def settle(self) -> None:
        """Return when nothing is being sealed."""
        await self.engine.sealer.seal_quiet(0.0)
        self.meta.commit()


@contextlib.asynccontextmanager
async def open_world(folder: Path, backend: Backend, settings: Settings) -> AsyncIterator[World]:
    """A started world, stopped at the end; `world.camera` sees what it does."""
    world = World(folder, backend, settings)
    with world.camera.watching():
        await world.start()
        try:
            yield world
        except BaseException:
            with contextlib.suppress(SyncerError, OSError):  # the first failure is the one to tell
                await world.stop()
            raise
        await world.stop()


async def eventually(check: Callable[[], bool], within_s: float = 20.0) -> None:
    """Return once *check* holds. Raises: AssertionError when it does not in time."""
    with trio.move_on_after(within_s):
        while not check():
            await trio.sleep(0.005)
        return
    raise AssertionError("it did not happen in time")


async def read_whole(engine: Engine, number: int, step_bytes: int = 128 * 1024) -> bytes:
    """All bytes of a file, read from its start in requests of *step_bytes*."""
    handle = engine.file_system.open(number, os.O_RDONLY)
    parts = []
    try:
        position = 0
        while part := await engine.file_system.read(handle, position, step_bytes):
            parts.append(part)
            position += len(part)
    finally:
        engine.file_system.release(handle)
    return b"".join(parts)


async def write_file(engine: Engine, name: bytes, data: bytes, parent: int = 1, offset: int = 0) -> int:
    """Write *data* into the file *name*, which is made where it is missing; returns its inode number."""
    from syncer.fs.namespace import Caller

    fs = engine.file_system
    inode = fs.names.lookup(parent, name) or fs.create(parent, name, stat.S_IFREG | 0o644, Caller(0, 0))
    handle = fs.open(inode.number, os.O_RDWR)
    try:
        await fs.write(handle, offset, data)
    finally:
        fs.release(handle)
    return inode.number


async def within(seconds: float, call: Awaitable[T]) -> T:
    """The result of *call*, which must come in time. Raises: trio.TooSlowError."""
    with trio.fail_after(seconds):
        return await call
