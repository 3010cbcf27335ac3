"""A collection of any size in a DATA, made straight through the file system layer: no mount, no kernel in between.

DATA must have been mounted once, and nobody may have it mounted. When a function here returns, all of it is on the
remote, as in a mount that has been left alone for a while.
"""

import contextlib
import functools
import os
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import trio

from syncer import config
from syncer.backends.open import open_backend
from syncer.datadir import DataDirectory
from syncer.engine import Engine, Settings
from syncer.fs.namespace import Caller
from syncer.meta.extent import Extent
from syncer.meta.importer import ImportedInode, Importer
from syncer.meta.store import MetaStore
from syncer.snapshots.repository import Wish, join
from syncer.values import ROOT_INODE

FILES, CROWD, LARGE = "files", "crowd", "large/file"
PER_DIRECTORY = 100
CONTENT_BYTES = 24
BLOCK_BYTES = 1024 * 1024
SEED_BYTES = 64 * BLOCK_BYTES
AT_ONCE = 1000
"""So many files or blocks are made before the engine's tasks get their turn."""
ME = Caller(0, 0)
WRITER = Wish(read_only=False, take_over=False, uid=0, gid=0)


def make_files(data: Path, count: int) -> None:
    """*count* files of CONTENT_BYTES each, no two alike: `files/DDDDDD/NN`, PER_DIRECTORY in a directory."""
    _make(data, functools.partial(_files, count))


def make_crowd(data: Path, count: int) -> None:
    """*count* empty files in the one directory `crowd`, named by six digits."""
    _make(data, functools.partial(_crowd, count))


def make_large(data: Path, blocks: int) -> None:
    """The file `large/file` of so many blocks of a mebibyte.

    A few dozen blocks are real, those of the file `seed` beside it: each stands in many places, in no order.
    """
    _make(data, functools.partial(_large, blocks))


def _make(data: Path, fill: Callable[[Engine], Awaitable[None]]) -> None:
    async def run() -> None:
        async with _opened(data) as engine:
            await fill(engine)
            await engine.flush(lambda done, total: None)

    trio.run(run)


@contextlib.asynccontextmanager
async def _opened(data: Path) -> AsyncIterator[Engine]:
    with DataDirectory.open(data) as directory:
        stored = config.load(directory.config)
        async with open_backend(stored.remote) as backend:
            meta = MetaStore(data)
            await join(meta, backend, WRITER)
            settings = Settings(budget_bytes=stored.budget_bytes)
            async with Engine.open(data, meta, backend, settings, publishing=False) as engine:
                yield engine


async def _files(count: int, engine: Engine) -> None:
    system = engine.file_system
    top = system.create(ROOT_INODE, FILES.encode(), 0o40755, ME).number
    for first in range(0, count, PER_DIRECTORY):
        directory = system.create(top, b"%06d" % (first // PER_DIRECTORY), 0o40755, ME).number
        for at in range(min(PER_DIRECTORY, count - first)):
            await system.room()
            number = system.create(directory, b"%02d" % at, 0o100644, ME).number
            await system.io.write(number, 0, os.urandom(CONTENT_BYTES))
        await trio.lowlevel.checkpoint()


async def _crowd(count: int, engine: Engine) -> None:
    system = engine.file_system
    directory = system.create(ROOT_INODE, CROWD.encode(), 0o40755, ME).number
    for at in range(count):
        await system.room()
        system.create(directory, b"%06d" % at, 0o100644, ME)
        if at % AT_ONCE == 0:
            await trio.lowlevel.checkpoint()


async def _large(blocks: int, engine: Engine) -> None:
    meta, system = engine.meta, engine.file_system
    directory = system.create(ROOT_INODE, os.path.dirname(LARGE).encode(), 0o40755, ME).number
    seed = await _seed(engine, directory)
    real = [meta.blocks.get(extent.source).id for extent in seed if extent.length >= BLOCK_BYTES]
    number, now_ns = meta.new_inode(), time.time_ns()
    inode = ImportedInode(
        *(number, 0o100644, 0, 0, 1, blocks * BLOCK_BYTES, now_ns, now_ns, 0, None),
        xattrs=(),
        extents=[(at * BLOCK_BYTES, BLOCK_BYTES, random.choice(real), 0) for at in range(blocks)],
    )
    Importer(meta.database).add_entries(directory, [(os.path.basename(LARGE).encode(), inode)], ())
    meta.inodes.count(meta.inodes.need(number), 1)
    system.setattr(number, mode=0o644)  # have it published, and the directory that got its name
    system.setattr(directory, mode=0o755)


async def _seed(engine: Engine, directory: int) -> list[Extent]:
    """A file of random bytes, sealed and on the remote: its extents."""
    system = engine.file_system
    number = system.create(directory, b"seed", 0o100644, ME).number
    for offset in range(0, SEED_BYTES, BLOCK_BYTES):
        await system.io.write(number, offset, os.urandom(BLOCK_BYTES))
    await engine.flush(lambda done, total: None)
    return engine.meta.extents.find(number, 0, SEED_BYTES)
