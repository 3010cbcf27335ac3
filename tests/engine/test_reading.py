"""What a read returns when the file changes while its bytes are on their way, and when the line is slow."""

import os
import sqlite3
from pathlib import Path

import pytest
import trio

from syncer.backends.memory import MemoryBackend
from syncer.engine import Engine
from syncer.errors import DeadlinePassed, LocalDamage
from syncer.meta.blocktable import Block
from tests.support.collection import random_bytes
from tests.support.opened import GatedBackend, SlowLine, create, evict_all, flush, landed, opened


async def test_a_file_cut_and_written_anew_while_it_is_fetched(tmp_path: Path) -> None:
    remote = GatedBackend()
    async with opened(tmp_path, remote) as engine:
        number, handle = create(engine, b"f")
        await engine.file_system.write(handle, 0, os.urandom(1_000_000))
        await flush(engine)
        evict_all(engine)
        remote.gate, remote.asked = trio.Event(), trio.Event()
        got: list[bytes] = []

        async def read() -> None:
            got.append(await engine.file_system.read(handle, 0, 131_072))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await remote.asked.wait()
            engine.file_system.setattr(number, size=0)
            await engine.file_system.write(handle, 0, b"hello")
            remote.gate.set()
        assert got == [b"hello"]


async def test_a_small_file_that_becomes_a_content_again_in_the_moment_its_block_lands(tmp_path: Path) -> None:
    remote = GatedBackend()
    async with opened(tmp_path, remote) as engine:
        for number_of_try in range(20):  # whether the reader or the writer runs first is for trio to choose
            number, handle = create(engine, b"%d" % number_of_try)
            await engine.file_system.write(handle, 0, b"x" * 20_480)
            await flush(engine)
            evict_all(engine)
            (extent,) = engine.meta.extents.find(number, 0, 1)
            remote.gate, remote.asked = trio.Event(), trio.Event()
            got: list[bytes] = []

            async def read(handle: int = handle, got: list[bytes] = got) -> None:
                got.append(await engine.file_system.read(handle, 0, 4096))

            async def write(handle: int = handle, source: int = extent.source) -> None:
                await remote.asked.wait()
                (flight,) = engine.store.fetcher.start([source], 1.0).values()
                remote.gate.set()
                await flight.done.wait()
                await engine.file_system.write(handle, 16_384, b"y" * 4096)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(read)
                nursery.start_soon(write)
            assert got == [b"x" * 4096]


async def test_a_slow_line_is_not_a_dead_one(tmp_path: Path) -> None:
    """2 Mbit/s with the usual deadline of 60 s, both forty times faster."""
    size, piece = 45_000_000, 131_072
    line = SlowLine()
    async with opened(tmp_path, line, budget_bytes=200_000_000, network_deadline_s=1.5) as engine:
        _, handle = create(engine, b"f")
        data = os.urandom(size)
        for offset in range(0, size, piece):
            await engine.file_system.write(handle, offset, data[offset : offset + piece])
        await flush(engine)
        evict_all(engine)
        line.rate = 10_000_000
        reader = engine.file_system.handles.open(engine.meta.inodes.need(engine.file_system.handles.get(handle).number))
        for offset in range(0, size, piece):
            assert await engine.file_system.read(reader, offset, piece) == data[offset : offset + piece]


async def test_who_has_no_time_left_does_not_fail_what_others_wait_for(tmp_path: Path) -> None:
    """The file is another one when its bytes have come, shortly before the deadline, and has to be fetched again."""
    asked = 0
    release = trio.Event()

    class Slow(MemoryBackend):
        async def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
            nonlocal asked
            if key.startswith("packs/"):
                asked += 1
                if asked == 1:
                    await trio.sleep(1.5)
                    engine.file_system.io.relink(number, 0, 1000, [(0, 1000, other, 0)], 1000)
                else:
                    await release.wait()
            return await super().get(key, offset, length)

    async with opened(tmp_path, Slow(), network_deadline_s=2.0) as engine:
        number, handle = create(engine, b"f")
        second, more = create(engine, b"g")
        await engine.file_system.write(handle, 0, random_bytes(600_000, 1))
        await engine.file_system.write(more, 0, random_bytes(600_000, 2))
        await flush(engine)
        (extent,) = engine.meta.extents.find(second, 0, 1)
        other = engine.meta.blocks.get(extent.source).id
        evict_all(engine)
        with trio.fail_after(10), pytest.raises(DeadlinePassed):
            await engine.file_system.read(handle, 0, 1000)
        assert asked == 2 and engine.store.fetcher.remote_ok is not False
        release.set()
        assert await engine.file_system.read(handle, 0, 1000) == random_bytes(600_000, 2)[:1000]


async def test_trouble_that_nobody_foresaw_costs_one_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(tmp_path, MemoryBackend()) as engine:
        _, handle = create(engine, b"f")
        await engine.file_system.write(handle, 0, b"x" * 20_000)
        await flush(engine)
        evict_all(engine)

        def full(block: Block, data: bytes) -> None:
            raise sqlite3.OperationalError("database or disk is full")

        with monkeypatch.context() as patch:
            patch.setattr(engine.meta.blocks, "keep_row", full)
            with pytest.raises(LocalDamage, match="disk is full"):
                await engine.file_system.read(handle, 0, 100)
        await trio.sleep(1.1)  # a failure answers for the next second
        assert await engine.file_system.read(handle, 0, 3) == b"xxx"


async def test_a_cache_that_takes_nothing_costs_no_read(tmp_path: Path) -> None:
    """Readers get what came before it is written down; a cache folder that cannot be written to is like a full disk."""
    content = random_bytes(3_000_000, 5)
    async with opened(tmp_path, MemoryBackend()) as engine:
        number, handle = create(engine, b"f")
        await engine.file_system.write(handle, 0, content)
        await flush(engine)
        evict_all(engine)
        incoming = tmp_path / "cache" / "incoming"
        incoming.rmdir()
        incoming.touch()
        for offset in range(0, len(content), 131_072):
            assert await engine.file_system.read(handle, offset, 131_072) == content[offset : offset + 131_072]
        await landed(engine)
        assert not cached_sizes(engine, number)
        incoming.unlink()
        incoming.mkdir()
        assert await engine.file_system.read(handle, 5, 7) == content[5:12]
        await landed(engine)
        assert cached_sizes(engine, number)
        assert engine.store.budget._held == 0


def cached_sizes(engine: Engine, number: int) -> list[int]:
    """The lengths of the inode's blocks that are cached."""
    found = (engine.meta.blocks.get(extent.source) for extent in engine.meta.extents.find(number, 0, 1 << 40))
    return [block.size for block in found if block.cached]
