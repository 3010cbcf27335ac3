"""Bytes that are wrong, here or on the remote: never served, replaced where there is another copy, named otherwise."""

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest

from syncer.backends.memory import MemoryBackend
from syncer.blocks.pack import pack_key
from syncer.engine import Engine
from syncer.errors import LocalDamage, ObjectCorrupt, ObjectMissing
from syncer.meta import rules
from syncer.meta.blocktable import CACHED_ROW, Block
from syncer.meta.extent import Extent
from tests.support.opened import READER, WRITER, create, evict_all, flush, landed, opened

DATA = os.urandom(200_000)
"""One block, and a file of the cache."""
NO_DISK = "/proc/self/mem"
"""A file whose first bytes cannot be read: EIO, as from a bad disk."""


def block_of(engine: Engine, number: int) -> Block:
    (extent,) = engine.meta.extents.find(number, 0, 1 << 60)
    return engine.meta.blocks.get(extent.source)


def key_of(block: Block) -> str:
    assert block.location is not None
    return pack_key(block.location.pack)


def flip(remote: MemoryBackend, block: Block) -> None:
    assert block.location is not None
    data = bytearray(remote.objects[key_of(block)])
    data[block.location.offset + block.location.length // 2] ^= 1
    remote.objects[key_of(block)] = bytes(data)


async def written(engine: Engine, name: bytes, data: bytes = DATA) -> tuple[int, int]:
    number, handle = create(engine, name)
    for offset in range(0, len(data), 131_072):
        await engine.file_system.write(handle, offset, data[offset : offset + 131_072])
    return number, handle


async def content(engine: Engine, handle: int, size: int = len(DATA)) -> bytes:
    parts = [await engine.file_system.read(handle, offset, 131_072) for offset in range(0, size, 131_072)]
    return b"".join(parts)


@pytest.mark.parametrize("opened_before", [False, True])
async def test_a_cached_copy_that_the_disk_does_not_give_is_fetched_again(tmp_path: Path, opened_before: bool) -> None:
    async with opened(tmp_path, MemoryBackend()) as engine:
        number, handle = await written(engine, b"f")
        await flush(engine)
        cache, block = engine.store.cache, block_of(engine, number)
        cache.close()
        cache.path(block.id).unlink()
        cache.path(block.id).symlink_to(NO_DISK)
        if opened_before:
            cache.keep_open(block.number, os.open(NO_DISK, os.O_RDONLY))
        assert await content(engine, handle) == DATA
        assert cache.replaced == 1
        assert not cache.path(block.id).is_symlink()


async def test_a_block_that_the_disk_does_not_give_keeps_no_other_from_leaving(tmp_path: Path) -> None:
    remote = MemoryBackend()
    async with opened(tmp_path, remote) as engine:
        bad, _ = await written(engine, b"bad")
        good, _ = await written(engine, b"good", DATA[::-1])
        await engine.sealer.seal_everything()
        block = block_of(engine, bad)
        engine.store.cache.path(block.id).unlink()
        engine.store.cache.path(block.id).symlink_to(NO_DISK)
        with pytest.raises(LocalDamage, match="but 1 block of bad, damaged here"):
            await flush(engine)
        assert block_of(engine, good).location is not None
        assert engine.meta.damage.paths(engine.meta.damage.numbers()) == [b"bad"]


async def test_a_snapshot_that_lacks_a_block_is_a_snapshot(tmp_path: Path) -> None:
    """One bad block must not keep all that is written after it from the remote."""
    remote = MemoryBackend()
    data, large = tmp_path / "data", os.urandom(3_000_000)
    async with opened(data, remote) as engine:
        bad, _ = await written(engine, b"bad", large)
        await written(engine, b"good", DATA)
        await engine.sealer.seal_everything()
        lost = engine.meta.extents.find(bad, 0, len(large))[1]
        block = engine.meta.blocks.get(lost.source)
        engine.store.cache.path(block.id).write_bytes(bytes(block.size))
        with pytest.raises(LocalDamage, match="1 block of bad, damaged here"):
            await flush(engine)
        with pytest.raises(LocalDamage, match="1 block of bad, damaged here"):
            await flush(engine)  # and there is nothing new to publish
        assert engine.meta.snapshots.head_name() == "1/1"
        await written(engine, b"later")
        await engine.publisher.publish("auto")
        assert engine.meta.snapshots.head_name() == "1/2"
    async with opened(tmp_path / "reader", remote, wish=READER) as engine:
        await _has_all_but(engine, large, lost)
        assert engine.meta.damage.paths(engine.meta.damage.numbers()) == [b"bad"]
    async with opened(tmp_path / "next", remote, wish=replace(WRITER, take_over=True)) as engine:
        await _has_all_but(engine, large, lost)
        await written(engine, b"restored", large)
        await flush(engine)
        assert not engine.meta.damage.numbers()
        assert await content(engine, _opened(engine, b"bad"), len(large)) == large
        assert engine.meta.database.connection.execute(rules.SUMS).fetchone()[0] == len(large) + len(DATA)
        assert engine.meta.blocks.content_totals()[0] == len(large) + len(DATA)
    async with opened(tmp_path / "last", remote, wish=READER) as engine:
        assert await content(engine, _opened(engine, b"bad"), len(large)) == large


def _opened(engine: Engine, name: bytes) -> int:
    number = engine.meta.names.lookup(1, name)
    assert number is not None
    return engine.file_system.handles.open(engine.meta.inodes.need(number))


async def _has_all_but(engine: Engine, large: bytes, lost: Extent) -> None:
    """Every byte of the files, and EIO for those of *lost*."""
    for name in (b"good", b"later"):
        assert await content(engine, _opened(engine, name)) == DATA
    bad = _opened(engine, b"bad")
    for start, end in ((0, lost.start), (lost.end, len(large))):
        for offset in range(start, end, 131_072):
            length = min(131_072, end - offset)
            assert await engine.file_system.read(bad, offset, length) == large[offset : offset + length]
    for offset in (lost.start, lost.end - 1):
        with pytest.raises(LocalDamage):
            await engine.file_system.read(bad, offset, 1)


async def test_a_block_that_comes_after_its_snapshot_is_listed(tmp_path: Path) -> None:
    """A repair has found its bytes: nothing has changed, and yet there is something to publish."""
    remote = MemoryBackend()
    async with opened(tmp_path / "data", remote) as engine:
        number, _ = await written(engine, b"f")
        await engine.sealer.seal_everything()
        path = engine.store.cache.path(block_of(engine, number).id)
        path.write_bytes(DATA[::-1])
        with pytest.raises(LocalDamage):
            await flush(engine)
        path.write_bytes(DATA)
    async with opened(tmp_path / "data", remote) as engine:
        await flush(engine)
        await flush(engine)
    assert len([key for key in remote.objects if key.startswith("snapshots/")]) == 1
    async with opened(tmp_path / "new machine", remote, wish=READER) as engine:
        assert await content(engine, _opened(engine, b"f")) == DATA


async def test_automatic_snapshots_tell_of_damage_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with opened(tmp_path, MemoryBackend()) as engine:
        for name in (b"one", b"two"):
            number, _ = await written(engine, name, os.urandom(200_000))
            await engine.sealer.seal_everything()
            engine.store.cache.path(block_of(engine, number).id).write_bytes(DATA)
            for count in range(2):
                create(engine, name + b" %d" % count)
                await engine.publisher.publish("auto")
    told = [record.getMessage() for record in caplog.records if record.name.endswith("publisher")]
    assert [text.split()[3] for text in told] == ["1", "2"], told


@pytest.mark.parametrize("gone", [False, True])
async def test_what_is_damaged_on_the_remote_is_named_and_its_neighbours_are_sent_anew(
    tmp_path: Path, gone: bool
) -> None:
    remote = MemoryBackend()
    async with opened(tmp_path, remote) as engine:
        bad, handle = await written(engine, b"bad")
        here, _ = await written(engine, b"here", DATA[::-1])
        await flush(engine)
        block, neighbour = block_of(engine, bad), block_of(engine, here)
        assert key_of(block) == key_of(neighbour)
        engine.store.cache.evict([block])
        if gone:
            del remote.objects[key_of(block)]
        else:
            flip(remote, block)
        with pytest.raises(ObjectMissing if gone else ObjectCorrupt):
            await content(engine, handle)
        assert engine.meta.damage.numbers() == {block.number}
        assert engine.meta.damage.paths([block.number]) == [b"bad"]
        evictable = {each.number for each in engine.meta.blocks.evictable(10)}
        assert neighbour.number not in evictable, "the last sound copy must not go"
        create(engine, b"another change")
        await flush(engine)
        assert key_of(block_of(engine, here)) not in {key_of(block)}
        assert key_of(block_of(engine, here)) in remote.objects
    async with opened(tmp_path, remote) as engine:
        assert engine.meta.damage.numbers() == {block.number}, "it is still known"


async def test_the_bytes_written_again_are_a_new_copy(tmp_path: Path) -> None:
    """Restored from elsewhere: the block must not count as stored because it once was."""
    remote = MemoryBackend()
    async with opened(tmp_path, remote) as engine:
        number, handle = await written(engine, b"f")
        await flush(engine)
        block = block_of(engine, number)
        engine.store.cache.evict([block])
        flip(remote, block)
        with pytest.raises(ObjectCorrupt):
            await content(engine, handle)
        again, other = await written(engine, b"restored")
        await engine.sealer.seal_everything()
        assert block_of(engine, again).number == block.number
        assert block_of(engine, again).location is None
        await flush(engine)
        assert not engine.meta.damage.numbers()
        evict_all(engine)
        engine.store.fetcher._failures.clear()
        assert await content(engine, handle) == await content(engine, other) == DATA
    async with opened(tmp_path / "new machine", remote) as engine:
        found = engine.meta.names.lookup(1, b"f")
        assert found is not None
        assert await content(engine, engine.file_system.handles.open(engine.meta.inodes.need(found))) == DATA


async def test_the_bytes_written_again_replace_a_bad_copy_here(tmp_path: Path) -> None:
    remote = MemoryBackend()
    async with opened(tmp_path, remote) as engine:
        number, handle = await written(engine, b"f")
        await engine.sealer.seal_everything()
        block = block_of(engine, number)
        path = engine.store.cache.path(block.id)
        engine.store.cache.close()
        path.write_bytes(b"?" + path.read_bytes()[1:])
        with pytest.raises(LocalDamage):
            await content(engine, handle)
        _, other = await written(engine, b"restored")
        await flush(engine)
        assert await content(engine, handle) == await content(engine, other) == DATA
        used = sum(file.stat().st_blocks * 512 for file in (tmp_path / "cache").rglob("*") if file.is_file())
        totals = engine.meta.blocks.totals
        assert used == totals.clean_files + totals.pending_files


async def test_an_object_that_comes_back_is_no_damage_any_more(tmp_path: Path) -> None:
    remote = MemoryBackend()
    async with opened(tmp_path, remote) as engine:
        number, handle = await written(engine, b"f")
        await flush(engine)
        block = block_of(engine, number)
        evict_all(engine)
        pack = remote.objects.pop(key_of(block))
        with pytest.raises(ObjectMissing):
            await content(engine, handle)
        remote.objects[key_of(block)] = pack
        engine.store.fetcher._failures.clear()
        assert await content(engine, handle) == DATA
        await landed(engine)
        assert not engine.meta.damage.numbers()


def test_what_stands_for_a_bad_disk() -> None:
    with open(NO_DISK, "rb", buffering=0) as file, pytest.raises(OSError) as caught:
        file.read(10)
    assert caught.value.errno == errno.EIO


@pytest.mark.parametrize("size", [10_000, 200_000])
async def test_a_file_that_has_lost_bytes_here_takes_new_ones(tmp_path: Path, size: int) -> None:
    """All of a file, and a part of it: what else is lost of it must keep neither from being written and sent."""
    async with opened(tmp_path, MemoryBackend()) as engine:
        whole, part = [(await written(engine, name, os.urandom(size))) for name in (b"whole", b"part")]
        await engine.sealer.seal_everything()
        for number, _ in (whole, part):
            spoil_here(engine, block_of(engine, number))
        new = os.urandom(size)
        assert await engine.file_system.write(whole[1], 0, new) == size
        assert await engine.file_system.write(part[1], 0, b"x" * 100) == 100
        assert await engine.file_system.write(part[1], 300, b"y" * 100) == 100
        await engine.sealer.seal_quiet(0.0)
        assert not engine.sealer.unsealed
        assert await content(engine, whole[1], size) == new
        assert await engine.file_system.read(part[1], 0, 100) == b"x" * 100
        with pytest.raises(LocalDamage):
            await engine.file_system.read(part[1], 200, 50)
        with pytest.raises(LocalDamage, match="part"):
            await flush(engine)


def spoil_here(engine: Engine, block: Block) -> None:
    """Have other bytes in the local copy of the block."""
    if block.cached == CACHED_ROW:
        engine.meta.database.begin()
        wrong = bytes(block.size)
        engine.meta.blocks.execute("UPDATE block_data SET data = ? WHERE number = ?", (wrong, block.number))
    else:
        path = engine.store.cache.path(block.id)
        engine.store.cache.close()
        path.write_bytes(bytes(block.size))
