"""Large files that are deleted or cut off: gone at once for everybody, and removed a few extents at a time."""

import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from syncer.backends.memory import MemoryBackend
from syncer.engine import Engine
from syncer.meta.extents import REMOVED_AT_ONCE
from syncer.values import ROOT_INODE
from tests.support.core_check import check_tables
from tests.support.core_world import eventually, read_whole
from tests.support.opened import create, flush, opened

PIECE = 4096
MANY = 5 * REMOVED_AT_ONCE
BLOCK = os.urandom(256 * PIECE)


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Engine]:
    async with opened(tmp_path / "data", MemoryBackend()) as engine:
        yield engine


async def large_file(engine: Engine, name: bytes) -> int:
    """A file of MANY extents, in which the pieces of one block stand over and over."""
    number, handle = create(engine, name)
    await engine.file_system.write(handle, 0, BLOCK)
    await engine.sealer.seal_quiet(0.0)
    extents = engine.meta.extents
    blocks = [part for part in extents.find(number, 0, len(BLOCK)) if part.length >= PIECE]
    extents.truncate(number, 0, 1)
    extents.truncate(number, MANY * PIECE, 1)
    for at in range(MANY):
        part = blocks[at % len(blocks)]
        extents._insert(number, at * PIECE, PIECE, part.source, 0)
    engine.file_system.release(handle)
    engine.meta.commit()
    return number


def rows(engine: Engine, number: int) -> int:
    found = engine.meta.database.connection.execute("SELECT count(*) FROM extents WHERE inode = ?", (number,))
    return int(found.fetchone()[0])


def check(engine: Engine) -> None:
    engine.meta.commit()
    check_tables(engine.meta, set())


async def removed_in_steps(engine: Engine, number: int, left: int = 0) -> None:
    """Others get their turn after every few extents."""
    before, steps = rows(engine, number), 0
    with trio.fail_after(30):
        while before > left:
            await trio.lowlevel.checkpoint()
            now = rows(engine, number)
            assert before - now <= 2 * REMOVED_AT_ONCE, "too many without a turn for others"  # who is next is chance
            steps += now < before
            before = now
    assert steps >= MANY // REMOVED_AT_ONCE // 2


async def test_a_deleted_file_goes_in_steps(engine: Engine) -> None:
    number = await large_file(engine, b"large")
    engine.file_system.unlink(ROOT_INODE, b"large")
    assert engine.meta.inodes.totals.files == 0
    await removed_in_steps(engine, number)
    await eventually(lambda: engine.meta.inodes.get(number) is None)
    check(engine)


async def test_a_file_cut_off_has_its_size_at_once_and_goes_in_steps(engine: Engine) -> None:
    number = await large_file(engine, b"large")
    begun = await read_whole(engine, number, MANY * PIECE)
    size = 10 * PIECE + 100
    engine.file_system.setattr(number, size=size)
    assert engine.file_system.getattr(number).size == size
    assert await read_whole(engine, number) == begun[:size]
    await removed_in_steps(engine, number, 11)
    assert await read_whole(engine, number) == begun[:size]
    check(engine)


@pytest.mark.parametrize("how", ["waits", "at once", "by its size"])
async def test_what_was_cut_off_does_not_come_back_when_the_file_grows(engine: Engine, how: str) -> None:
    number = await large_file(engine, b"large")
    begun = await read_whole(engine, number, MANY * PIECE)
    handle = engine.file_system.open(number, os.O_RDWR)
    engine.file_system.setattr(number, size=PIECE)
    if how == "waits":
        await engine.file_system.write(handle, 3 * PIECE, b"x")
        assert not engine.meta.extents.cuts
    elif how == "at once":
        engine.file_system.io._write(engine.meta.inodes.need(number), 3 * PIECE, b"x", 1)
    else:
        engine.file_system.setattr(number, size=3 * PIECE)
        await engine.file_system.write(handle, 3 * PIECE, b"x")
    assert await read_whole(engine, number) == begun[:PIECE] + bytes(2 * PIECE) + b"x"
    assert rows(engine, number) <= 3
    engine.file_system.release(handle)
    await engine.sealer.seal_quiet(0.0)
    assert await read_whole(engine, number) == begun[:PIECE] + bytes(2 * PIECE) + b"x"
    check(engine)


async def test_a_snapshot_shows_nothing_that_was_cut_off(tmp_path: Path) -> None:
    remote = MemoryBackend()
    async with opened(tmp_path / "data", remote) as engine:
        number = await large_file(engine, b"large")
        await flush(engine)
        begun = await read_whole(engine, number, MANY * PIECE)
        engine.file_system.setattr(number, size=100 * PIECE)
        await flush(engine)
        assert not engine.meta.extents.has_cut_files()
        await engine.put_down(20.0)
    async with opened(tmp_path / "other", remote) as engine:
        found = engine.file_system.names.lookup(ROOT_INODE, b"large")
        assert found is not None
        assert await read_whole(engine, found.number) == begun[: 100 * PIECE]
        assert rows(engine, found.number) == 100


@pytest.mark.parametrize("deleted", [True, False])
async def test_a_kill_at_any_step_leaves_the_rest_to_the_next_start(tmp_path: Path, deleted: bool) -> None:
    remote = MemoryBackend()
    async with opened(tmp_path / "data", remote) as engine:
        number = await large_file(engine, b"large")
        begun = await read_whole(engine, number, MANY * PIECE)
        if deleted:
            engine.file_system.unlink(ROOT_INODE, b"large")
        else:
            engine.file_system.setattr(number, size=PIECE)
        copies: list[Path] = []
        while not copies or engine.meta.extents.cuts:
            copies.append(shutil.copytree(tmp_path / "data", tmp_path / str(len(copies))))
            left = rows(engine, number)
            while rows(engine, number) == left and engine.meta.extents.cuts:
                await trio.lowlevel.checkpoint()
    assert len(copies) >= 3
    for copy in copies:
        async with opened(copy, remote) as engine:
            await eventually(lambda engine=engine: not engine.meta.extents.cuts)  # type: ignore[misc]
            assert engine.recovered.startswith("recovered after a crash: ")
            assert (engine.meta.inodes.get(number) is None) == deleted
            if not deleted:
                assert await read_whole(engine, number) == begun[:PIECE]
            check(engine)
