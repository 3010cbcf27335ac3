"""The cache folder: what is verified when."""

import os
from pathlib import Path

import pytest
from blake3 import blake3

from syncer.backends.memory import MemoryBackend
from syncer.blocks import background, cache
from syncer.engine import Engine
from syncer.values import BLOCK_MIN_BYTES
from tests.support.opened import create, opened

FILES = 5


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of what the cache has hashed, in order. It keeps two files open."""
    seen: list[int] = []

    def counting(data: bytes) -> blake3:
        seen.append(len(data))
        return blake3(data)

    monkeypatch.setattr(background, "blake3", counting)
    monkeypatch.setattr(cache, "OPEN_FILES", 2)
    return seen


async def _files(engine: Engine) -> list[int]:
    """Handles of files of one block each, which are in the cache and closed there."""
    handles = []
    for index in range(FILES):
        _, handle = create(engine, b"%d" % index)
        await engine.file_system.write(handle, 0, os.urandom(BLOCK_MIN_BYTES - index))
        handles.append(handle)
    await engine.sealer.seal_quiet(0.0)
    engine.store.cache.close()
    return handles


async def test_a_good_copy_is_verified_once_however_often_it_is_opened(tmp_path: Path, hashed: list[int]) -> None:
    async with opened(tmp_path, MemoryBackend()) as engine:
        handles = await _files(engine)
        for _ in range(3):
            for handle in handles:
                await engine.file_system.read(handle, 1000, 100)
        assert hashed
        assert len(hashed) == len(set(hashed)), "what was written here, or hashed once, is hashed again"


async def test_a_copy_that_was_changed_while_it_was_closed_is_verified_again(tmp_path: Path, hashed: list[int]) -> None:
    async with opened(tmp_path, MemoryBackend()) as engine:
        handles = await _files(engine)
        for handle in handles:
            await engine.file_system.read(handle, 0, 100)
        (extent,) = engine.meta.extents.find(engine.file_system.handles.get(handles[0]).number, 0, 1)
        path = engine.store.cache.path(engine.meta.blocks.get(extent.source).id)
        data = path.read_bytes()
        status = path.stat()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        with pytest.raises(Exception, match="damaged"):
            await engine.file_system.read(handles[0], 0, 100)
