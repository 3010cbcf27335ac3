"""Sealing while a file goes on being written: what comes in between is the next round's, and never forgotten."""

import random
from pathlib import Path

import pytest
import trio
import trio.testing

from syncer.backends.memory import MemoryBackend
from syncer.engine import Engine, Settings
from syncer.meta.extent import Extent
from syncer.values import ROOT_INODE
from tests.support.core_check import check_engine, check_sealed
from tests.support.core_world import NEVER_S, open_world, read_whole, threads_as_awaits, write_file

SETTINGS = Settings(budget_bytes=200_000_000, snapshot_interval_s=NEVER_S, upload_delay_s=NEVER_S)


async def test_a_write_during_sealing_is_sealed_too_although_no_time_has_passed(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    with threads_as_awaits():
        async with open_world(tmp_path, MemoryBackend(), SETTINGS) as world:
            number = await write_file(world.engine, b"file", bytes(range(256)) * 2000)
            await write_file(world.engine, b"file", b"over it", offset=1000)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(world.engine.sealer.seal_quiet, 0.0)
                await trio.lowlevel.checkpoint()
                await trio.lowlevel.checkpoint()
                await write_file(world.engine, b"file", b"again", offset=2000)
            await world.engine.sealer.seal_everything()
            check_sealed(world.meta)
            data = await read_whole(world.engine, number)
            assert (data[1000:1007], data[2000:2005]) == (b"over it", b"again")


async def test_an_overlay_that_holds_nothing_any_more_goes_after_a_restart_too(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """Its disk space counts as dirty, and nobody would ever have given it back."""
    with threads_as_awaits():
        async with open_world(tmp_path, MemoryBackend(), SETTINGS) as world:
            number = await write_file(world.engine, b"file", bytes(range(256)) * 2000)
            await world.engine.sealer.seal_everything()
            await write_file(world.engine, b"file", b"o" * 200_000, offset=100_000)
            world.engine.file_system.setattr(number, size=5)
            await world.restart()
            await world.engine.sealer.seal_everything()
            check_sealed(world.meta)
            assert world.engine.store.dirty.total_bytes == 0


@pytest.mark.parametrize("what", ["truncated", "truncated and grown", "erased", "written over", "written whole"])
async def test_what_changes_while_it_is_being_sealed(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, what: str
) -> None:
    """Sealing reads in a thread, and the file goes on changing meanwhile."""
    chance = random.Random(5)
    data = bytearray(chance.randbytes(600_000))
    with threads_as_awaits():
        async with open_world(tmp_path, MemoryBackend(), SETTINGS) as world:
            engine = world.engine
            number = await write_file(engine, b"file", bytes(data))
            await engine.sealer.seal_everything()
            await _edit(engine, data, [(1000, 5), (200_000, 150_000), (370_000, 10), (500_000, 10)])
            async with trio.open_nursery() as nursery:
                nursery.start_soon(engine.sealer.seal_quiet, 0.0)
                for _ in range(6):
                    await trio.lowlevel.checkpoint()
                match what:
                    case "truncated":
                        engine.file_system.setattr(number, size=210_000)
                        del data[210_000:]
                    case "truncated and grown":
                        engine.file_system.setattr(number, size=210_000)
                        engine.file_system.setattr(number, size=600_000)
                        data[210_000:] = bytes(390_000)
                    case "erased":
                        engine.file_system.unlink(ROOT_INODE, b"file")
                    case "written over":
                        await _edit(engine, data, [(230_000, 7), (370_003, 100)])
                    case _:
                        await _edit(engine, data, [(0, 600_000)])
            if what != "erased":
                assert await read_whole(engine, number) == data
            await engine.sealer.seal_everything()
            check_sealed(world.meta)
            check_engine(engine, world.data, set())
            if what != "erased":
                assert await read_whole(engine, number) == data
                await world.restart()
                assert await read_whole(world.engine, number) == data


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 7, 9, 12])
async def test_a_tail_that_ends_during_sealing_takes_nothing_along_that_was_written_over_it(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, steps: int
) -> None:
    """Its dirty file is younger than the overlay that has the newest bytes."""
    data = bytearray(random.Random(8).randbytes(9_000_000))
    with threads_as_awaits():
        async with open_world(tmp_path, MemoryBackend(), SETTINGS) as world:
            engine = world.engine
            number = await write_file(engine, b"file", bytes(data))
            await engine.sealer.seal_everything()
            await _edit(engine, data, [(1000, 5)])
            async with trio.open_nursery() as nursery:
                nursery.start_soon(engine.sealer.seal_quiet, 0.0)
                for _ in range(steps):
                    await trio.lowlevel.checkpoint()
                await _edit(engine, data, [(2000, 5), (9_000_000, 100_000), (9_050_000, 1000)])
            assert await read_whole(engine, number) == data
            await engine.sealer.seal_everything()
            assert await read_whole(engine, number) == data
            check_sealed(world.meta)


async def _edit(engine: Engine, data: bytearray, places: list[tuple[int, int]]) -> None:
    for offset, length in places:
        written = random.Random(offset + length).randbytes(length)
        data[offset : offset + length] = written
        await write_file(engine, b"file", written, offset=offset)


async def test_many_small_ranges_become_few_blocks_and_lone_ones_stay_small(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    data = bytearray(random.Random(6).randbytes(6_000_000))
    with threads_as_awaits():
        async with open_world(tmp_path, MemoryBackend(), SETTINGS) as world:
            number = await write_file(world.engine, b"file", bytes(data))
            await world.engine.sealer.seal_everything()
            before = world.meta.blocks.newest()
            dense = [(1_000_000 + 10_000 * index, 4096) for index in range(100)]
            await _edit(world.engine, data, [*dense, (4_000_000, 4096), (5_000_000, 4096)])
            await world.engine.sealer.seal_everything()
            sizes = [world.meta.blocks.get(at).size for at in range(before + 1, world.meta.blocks.newest() + 1)]
            assert sizes.count(4096) == 2
            assert len(sizes) <= 2 + 4 and 990_000 < sum(sizes) < 1_010_000 + 3 * 4096
            assert await read_whole(world.engine, number) == data


async def test_sealing_scattered_ranges_looks_at_each_of_them_a_few_times(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looking for fragments around each of them anew would cost their square."""
    looks = 0
    with threads_as_awaits():
        async with open_world(tmp_path, MemoryBackend(), SETTINGS) as world:
            data = bytearray(50_100_000)
            number = await write_file(world.engine, b"file", b"x", offset=len(data) - 1)
            data[-1:] = b"x"
            await _edit(world.engine, data, [(100_000 * index, 10) for index in range(500)])
            rows = world.meta.extents._rows

            def counted(number: int, start: int, end: int) -> list[Extent]:
                nonlocal looks
                found = rows(number, start, end)
                looks += 1 + len(found)
                return found

            monkeypatch.setattr(world.meta.extents, "_rows", counted)
            await world.engine.sealer.seal_everything()
            assert looks < 10 * 500
            check_sealed(world.meta)
            assert await read_whole(world.engine, number, 4_000_000) == data
