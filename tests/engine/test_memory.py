"""What is kept of calls that have failed: the error, and none of the bytes that they were about."""

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from syncer.backends.memory import MemoryBackend
from syncer.blocks.pack import pack_key
from syncer.errors import RemoteFull
from tests.support.collection import random_bytes
from tests.support.opened import create, evict_all, flush, landed, opened

MEBIBYTE = 1 << 20


class FullRemote(MemoryBackend):
    """Refuses packs while `full`, and gives none but the `readable` one, if there is such."""

    full = False
    readable: str | None = None

    async def put(self, key: str, data: bytes | memoryview) -> None:
        if self.full and key.startswith("packs/"):
            raise RemoteFull("there is no room")
        await super().put(key, data)

    async def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        if self.readable not in (None, key):
            raise RemoteFull("nor any for answers")
        return await super().get(key, offset, length)


@pytest.fixture(autouse=True)
def no_collections() -> Iterator[None]:
    """What only a collection of cycles would free stays: among what is old there is hardly ever one."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def views() -> list[int]:
    """The lengths of the packs and fetched blocks in memory."""
    return [found.nbytes for found in gc.get_objects() if isinstance(found, memoryview) and found.nbytes >= MEBIBYTE]


async def test_a_pack_that_could_not_be_put(tmp_path: Path) -> None:
    remote = FullRemote()
    async with opened(tmp_path, remote) as engine:
        _, handle = create(engine, b"f")
        await engine.file_system.write(handle, 0, random_bytes(2 * MEBIBYTE, 1))
        await engine.sealer.seal_everything()
        remote.full = True
        engine.uploader.drain += 1
        engine.uploader.wake()
        with trio.fail_after(10):
            while engine.uploader.error is None:
                await engine.uploader.progressed.wait()
            while views():  # until whoever tried has come to the end
                await trio.sleep(0.01)
        remote.full = False
        await flush(engine)


@pytest.mark.parametrize("reverse", [False, True])
async def test_blocks_that_came_for_a_read_that_failed(tmp_path: Path, reverse: bool) -> None:
    remote = FullRemote()
    async with opened(tmp_path, remote) as engine:
        numbers: list[int] = []
        for at in range(2):
            number, handle = create(engine, b"%d" % at)
            await engine.file_system.write(handle, 0, bytes(random_bytes(2 * MEBIBYTE, at)))
            await flush(engine)
            numbers += [extent.source for extent in engine.meta.extents.find(number, 0, 2 * MEBIBYTE)]
        evict_all(engine)
        first = engine.meta.blocks.get(numbers[0]).location
        assert first is not None
        remote.readable = pack_key(first.pack)
        with pytest.raises(RemoteFull):
            await engine.store.fetch(numbers[::-1] if reverse else numbers, 10.0)
        await landed(engine)
        assert not views()
