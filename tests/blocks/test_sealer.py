"""Sealing while a file goes on being written: what comes in between is the next round's, and never forgotten."""

from pathlib import Path

import trio
import trio.testing

from syncer.backends.memory import MemoryBackend
from syncer.engine import Settings
from tests.support.core_check import check_sealed
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
