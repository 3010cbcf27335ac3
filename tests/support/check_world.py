"""A DATA with a bit of everything in it, closed in good order, and a remote in a folder: to be damaged and checked."""

import contextlib
import os
import random
import shutil
import sqlite3
import stat
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import trio

from syncer import app, checking, config, datadir
from syncer.backends.folder import FolderBackend
from syncer.checking import CheckRequest, Report
from syncer.config import Config
from syncer.datadir import DataDirectory
from syncer.engine import Engine, Settings
from syncer.errors import SyncerError
from syncer.fs.namespace import Caller
from syncer.meta.store import MetaStore
from syncer.snapshots.repository import Wish, join
from tests.support.core_data import make_data
from tests.support.core_world import WISH, read_whole, write_file

BUDGET_BYTES = 200_000_000
ROOT = Caller(0, 0)


@dataclass(slots=True)
class CheckWorld:
    """DATA and remote below *place*; *files* has what each path holds."""

    place: Path
    files: dict[str, bytes]

    @property
    def data(self) -> Path:
        return self.place / "data"

    @property
    def remote(self) -> Path:
        return self.place / "remote"

    def copy(self, place: Path) -> "CheckWorld":
        shutil.copytree(self.place, place)
        copied = CheckWorld(place, dict(self.files))
        config.save(copied.data / datadir.CONFIG, Config(remote=str(copied.remote), budget_bytes=BUDGET_BYTES))
        return copied

    @contextlib.contextmanager
    def database(self) -> Iterator[sqlite3.Connection]:
        """meta.db, to be looked at or changed by hand."""
        connection = sqlite3.connect(self.data / "meta.db", isolation_level=None)
        try:
            yield connection
        finally:
            connection.close()

    def change(self, *statements: str) -> None:
        """Change meta.db behind syncer's back: no trigger fires."""
        with self.database() as connection:
            triggers = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
            for name, _ in triggers:
                connection.execute(f"DROP TRIGGER {name}")
            for statement in statements:
                assert connection.execute(statement).rowcount, f"{statement}: no such row"
            for _, sql in triggers:
                connection.execute(sql)

    def value(self, query: str) -> int:
        with self.database() as connection:
            row = connection.execute(query).fetchone()
            assert row is not None, query
            return int(row[0])

    def block_file(self, where: str) -> Path:
        """The cache file of a block that is one."""
        with self.database() as connection:
            row = connection.execute(f"SELECT hex(id) FROM blocks WHERE cached = 1 AND {where} LIMIT 1").fetchone()
        name = str(row[0]).lower()
        return self.data / "cache" / name[:2] / name

    def check(self, *, percent: float = 0.0, remote: bool = False, repair: bool = False) -> Report:
        settings = config.load(self.data / datadir.CONFIG)
        request = CheckRequest(data=self.data, config=settings, percent=percent, remote=remote, repair=repair)
        return checking.check(request, app.backend_of, lambda what, done, total: None)

    @contextlib.asynccontextmanager
    async def opened(self, wish: Wish = WISH, budget_bytes: int = BUDGET_BYTES) -> AsyncIterator[Engine]:
        """The engine on DATA and its remote."""
        meta, backend = MetaStore(self.data), FolderBackend(self.remote)
        try:
            await join(meta, backend, wish)
        except BaseException:
            meta.close()
            raise
        settings = Settings(budget_bytes=budget_bytes, snapshot_interval_s=1e9, upload_delay_s=1e9)
        async with Engine.open(
            self.data, meta, backend, settings, read_only=wish.read_only, publishing=False
        ) as engine:
            yield engine

    def read(self) -> dict[str, bytes | str]:
        """What a mount would show: path -> bytes, or what reading ends in. Everything is on the remote afterwards."""

        async def look() -> dict[str, bytes | str]:
            async with self.opened() as engine:
                found = await _read_all(engine)
                await engine.flush(lambda done, total: None)
            return found

        return trio.run(look)

    def read_elsewhere(self) -> dict[str, bytes | str]:
        """What another machine makes of the remote alone."""
        other = CheckWorld(self.place / "other", {})
        shutil.copytree(self.remote, other.remote)
        make_data(other.data)

        async def look() -> dict[str, bytes | str]:
            async with other.opened(Wish(read_only=True, take_over=False, uid=0, gid=0)) as engine:
                return await _read_all(engine)

        return trio.run(look)


async def _read_all(engine: Engine) -> dict[str, bytes | str]:
    found: dict[str, bytes | str] = {}
    waiting = [(1, "")]
    while waiting:
        number, path = waiting.pop()
        for entry in engine.meta.names.entries(number, 0, 10_000):
            place = f"{path}/{os.fsdecode(entry.name)}"
            if stat.S_ISDIR(entry.inode.mode):
                waiting.append((entry.inode.number, place))
            elif stat.S_ISLNK(entry.inode.mode):
                found[place] = engine.meta.inodes.target(engine.meta.inodes.need(entry.inode.number))
            else:
                try:
                    found[place] = await read_whole(engine, entry.inode.number)
                except (OSError, SyncerError) as error:
                    found[place] = str(error)
    return found


def build(place: Path) -> CheckWorld:
    """Files of every form, some on the remote, some not, some only in a snapshot; a file deleted while open."""
    world = CheckWorld(place, {})
    world.remote.mkdir(parents=True)
    with DataDirectory.open(world.data) as directory:
        config.save(directory.config, Config(remote=str(world.remote), budget_bytes=BUDGET_BYTES))
    trio.run(_fill, world)
    assert not os.path.lexists(world.data / "meta.db-wal")
    return world


async def _fill(world: CheckWorld) -> None:
    make = random.Random(7)
    async with world.opened() as engine:
        fs = engine.file_system
        directory = fs.create(1, b"dir", stat.S_IFDIR | 0o755, ROOT).number
        deep = fs.create(directory, b"deep", stat.S_IFDIR | 0o755, ROOT).number

        async def put(path: str, data: bytes, parent: int = 1, offset: int = 0) -> int:
            number = await write_file(engine, os.fsencode(path.rpartition("/")[2]), data, parent, offset)
            before = world.files.get(path, b"").ljust(offset, b"\0")
            world.files[path] = before[:offset] + data + before[offset + len(data) :]
            return number

        for count in range(20):
            await put(f"/dir/deep/s{count}", make.randbytes(make.randrange(1000, 9000)), deep)
        await put("/gone", make.randbytes(1_500_000))
        await put("/evicted", make.randbytes(2_000_000))
        await engine.flush(lambda done, total: None)
        engine.store.cache.evict(engine.meta.blocks.evictable(1000))
        for count in range(40):
            await put("/holes", make.randbytes(70_000), offset=count * 400_000)
        number = await put("/linked", make.randbytes(1_200_000))
        fs.link(number, directory, b"link")
        world.files["/dir/link"] = world.files["/linked"]
        fs.create(1, b"symlink", stat.S_IFLNK | 0o777, ROOT, target=b"dir/link")
        world.files["/symlink"] = b"dir/link"
        fs.setxattr(number, b"user.colour", b"blue" * 500)
        await put("/changed", make.randbytes(1_000_000))
        await put("/row", make.randbytes(5000))
        fs.unlink(1, b"gone")
        del world.files["/gone"]
        await engine.flush(lambda done, total: None)
        await put("/changed", make.randbytes(100_000), offset=300_000)
        await put("/pending", make.randbytes(2_500_000))
        frozen = await put("/frozen", make.randbytes(120_000))
        fs.setattr(frozen, size=100_000)
        world.files["/frozen"] = world.files["/frozen"][:100_000]
        await put("/small", b"hello, world")
        orphan = await put("/orphan", b"unlinked while open")
        fs.open(orphan, os.O_RDONLY)
        fs.unlink(1, b"orphan")
        del world.files["/orphan"]
