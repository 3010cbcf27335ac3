"""Appends: whatever their sizes, the blocks are those of the content; what comes after the answer may come late."""

import errno
import os
import random
import shutil
from itertools import accumulate
from pathlib import Path

import pytest
import trio

from syncer.backends.memory import MemoryBackend
from syncer.blocks.sealer import cut_stretch
from syncer.engine import Engine
from syncer.values import BLOCK_MAX_BYTES, ZERO_RUN_BYTES
from tests.support.opened import create, opened

MIB = 1024 * 1024


def contents() -> dict[str, bytes]:
    noise = random.Random(5).randbytes
    return {
        "noise": noise(9 * MIB),
        "holes": noise(3 * MIB) + bytes(2 * MIB) + noise(MIB // 2) + bytes(ZERO_RUN_BYTES) + noise(2 * MIB),
        "a hole that goes on for less than a run": noise(MIB) + bytes(ZERO_RUN_BYTES + 20_000) + noise(MIB),
        "zeros at both ends": bytes(MIB) + noise(3 * MIB) + bytes(3 * MIB),
        "one byte over and over": b"a" * (2 * BLOCK_MAX_BYTES + 5),
        "nearly a hole": noise(2 * MIB) + bytes(ZERO_RUN_BYTES - 1) + noise(MIB),
    }


async def append(engine: Engine, handle: int, data: bytes, sizes: list[int]) -> None:
    """Write *data* from front to end in pieces of *sizes*, again and again."""
    offset = 0
    while offset < len(data):
        for size in sizes:
            piece = data[offset : offset + size]
            assert await engine.file_system.write(handle, offset, piece) == len(piece)
            offset += len(piece)


def blocks(engine: Engine, number: int) -> list[tuple[int, int, str]]:
    """(start, length, block id) of each extent."""
    found = engine.meta.extents.find(number, 0, 2**44)
    return [(e.start, e.length, engine.meta.blocks.get(e.source).id.hex()) for e in found]


async def read(engine: Engine, handle: int, size: int) -> bytes:
    parts = [await engine.file_system.read(handle, offset, MIB) for offset in range(0, size, MIB)]
    return b"".join(parts)


@pytest.mark.parametrize("sizes", [[4096], [131_072], [MIB], [5 * MIB], [100_000, 1, 3 * MIB, 65_537]])
@pytest.mark.parametrize("name", contents())
async def test_the_blocks_do_not_depend_on_the_sizes_of_the_appends(
    tmp_path: Path, name: str, sizes: list[int]
) -> None:
    data = contents()[name]
    async with opened(tmp_path, MemoryBackend(), budget_bytes=200_000_000) as engine:
        number, handle = create(engine, b"f")
        await append(engine, handle, data, sizes)
        assert await read(engine, handle, len(data)) == data
        await engine.sealer.seal_everything()
        assert await read(engine, handle, len(data)) == data
        assert blocks(engine, number) == [(c.start, c.length, c.block_id.hex()) for c in cut_stretch(0, [data])]
        engine.meta.commit()
        assert engine.store.dirty.total_bytes == 0


@pytest.mark.parametrize("sizes", [[4096], [MIB], [5 * MIB]])
async def test_what_was_appended_survives_a_crash_before_it_was_looked_at(tmp_path: Path, sizes: list[int]) -> None:
    data = contents()["holes"]
    ends = [end for end in accumulate(sizes * (len(data) // sum(sizes) + 1)) if end < len(data)]
    for end in random.Random(1).sample(ends, min(3, len(ends))):
        folder = tmp_path / str(end)
        async with opened(folder, MemoryBackend(), budget_bytes=200_000_000) as engine:
            _, handle = create(engine, b"f")
            await append(engine, handle, data[:end], sizes)
            await trio.to_thread.run_sync(shutil.copytree, folder, f"{folder}.crashed")
        async with opened(Path(f"{folder}.crashed"), MemoryBackend(), budget_bytes=200_000_000) as engine:
            inode = engine.file_system.names.lookup(1, b"f")
            assert inode is not None
            handle = engine.file_system.open(inode.number, os.O_RDWR)
            assert await read(engine, handle, len(data)) == data[:end]
            await append(engine, handle, b"", [1])
            assert await engine.file_system.write(handle, end, data[end:]) == len(data) - end
            await engine.sealer.seal_everything()
            assert await read(engine, handle, len(data)) == data
            engine.meta.commit()
            assert engine.store.dirty.total_bytes == 0


async def test_a_tail_that_cannot_be_cut_for_want_of_room_is_cut_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = contents()["noise"]
    async with opened(tmp_path, MemoryBackend(), budget_bytes=200_000_000) as engine:
        _, handle = create(engine, b"f")

        def full(descriptor: int, part: bytes | memoryview, offset: int) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        for offset in range(0, len(data), 3 * MIB):
            await engine.file_system.write(handle, offset, data[offset : offset + 3 * MIB])
            with monkeypatch.context() as patch:
                patch.setattr(os, "pwrite", full)
                engine.file_system.settle()
        assert await read(engine, handle, len(data)) == data
        await engine.sealer.seal_everything()
        assert await read(engine, handle, len(data)) == data
        engine.meta.commit()
        assert engine.store.dirty.total_bytes == 0
