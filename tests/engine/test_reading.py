"""What a read returns when the file changes while its bytes are on their way, and when the line is slow."""

import os
from pathlib import Path

import trio

from tests.support.opened import GatedBackend, create, evict_all, flush, opened


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
                (flight,) = engine.store.fetcher.start([source], 1.0)
                remote.gate.set()
                await flight.done.wait()
                await engine.file_system.write(handle, 16_384, b"y" * 4096)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(read)
                nursery.start_soon(write)
            assert got == [b"x" * 4096]
