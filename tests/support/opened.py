"""An engine without a mount, on a remote whose behaviour the test decides."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import trio

from syncer.backends.base import Backend
from syncer.backends.memory import MemoryBackend
from syncer.blocks.porter import Porter
from syncer.engine import Engine, Settings
from syncer.fs.namespace import Caller
from syncer.meta.store import MetaStore
from syncer.snapshots.repository import Wish, join
from syncer.values import ROOT_INODE

ME = Caller(0, 0)
WRITER = Wish(read_only=False, take_over=False, uid=0, gid=0)
READER = Wish(read_only=True, take_over=False, uid=0, gid=0)
SETTINGS = Settings(budget_bytes=64_000_000, snapshot_interval_s=1e9, network_deadline_s=20.0)


class GatedBackend(MemoryBackend):
    """A remote whose packs come only while `gate` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = trio.Event()
        self.gate.set()
        self.asked = trio.Event()
        """Set once a pack was asked for."""

    async def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        if key.startswith("packs/"):
            self.asked.set()
            await self.gate.wait()
        return await super().get(key, offset, length)


class SlowLine(MemoryBackend):
    """A line of `rate` bytes a second, shared fairly by all that is under way; without limit while it is None."""

    STEP_S = 0.01

    def __init__(self) -> None:
        super().__init__()
        self.rate: float | None = None
        self._active = 0

    async def _carry(self, length: int) -> None:
        if self.rate is None:
            return
        self._active += 1
        try:
            left = float(length)
            while left > 0:
                await trio.sleep(self.STEP_S)
                left -= self.rate * self.STEP_S / self._active
        finally:
            self._active -= 1

    async def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        data = await super().get(key, offset, length)
        await self._carry(len(data))
        return data

    async def put(self, key: str, data: bytes | memoryview) -> None:
        await self._carry(len(data))
        await super().put(key, data)


@contextlib.asynccontextmanager
async def opened(
    data: Path,
    backend: Backend,
    *,
    wish: Wish = WRITER,
    publishing: bool = False,
    porter: Porter | None = None,
    **changes: object,
) -> AsyncIterator[Engine]:
    """The engine of *data* (made when it is not there) on *backend*; *changes* go into its settings."""
    for name in ("cache", "dirty", "journal"):
        (data / name).mkdir(parents=True, exist_ok=True)
    meta = MetaStore(data)
    await join(meta, backend, wish)
    settings = replace(SETTINGS, **changes)  # type: ignore[arg-type]
    async with Engine.open(
        data, meta, backend, settings, read_only=wish.read_only, publishing=publishing, porter=porter
    ) as engine:
        yield engine


def create(engine: Engine, name: bytes) -> tuple[int, int]:
    """A new file in the root: (inode, handle)."""
    number = engine.file_system.create(ROOT_INODE, name, 0o100644, ME).number
    return number, engine.file_system.handles.open(engine.meta.inodes.need(number))


async def flush(engine: Engine) -> None:
    await engine.flush(lambda done, total: None)


def evict_all(engine: Engine) -> None:
    """Drop every cached copy that the remote has too."""
    while found := engine.meta.blocks.evictable(1000):
        engine.store.cache.evict(found)


async def landed(engine: Engine) -> None:
    """Return when all that was fetched is in the cache: readers have it before."""
    with trio.fail_after(10):
        while engine.store.fetcher._flights:
            await trio.sleep(0.001)
