"""Blocks that stand in two packs: when the one they are read from is lost or damaged, they come from the other."""

import os
from pathlib import Path

import pytest

from syncer.backends.memory import MemoryBackend
from syncer.blocks.pack import PackBuilder, pack_key, read_list
from syncer.engine import Engine
from syncer.errors import ObjectCorrupt, ObjectMissing
from syncer.snapshots.records import VERSION, IndexRecord, PackListing, encode, index_key
from syncer.values import ROOT_INODE, TREE
from tests.engine.test_damage import DATA, block_of, content, flip, key_of, written
from tests.support.opened import ME, READER, evict_all, flush, landed, opened

OTHER, LATER = DATA[::-1], DATA[1000:]


class Counting(MemoryBackend):
    """Counts how often an index object is read."""

    def __init__(self) -> None:
        super().__init__()
        self.index_reads = 0

    async def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        self.index_reads += key.startswith("index/")
        return await super().get(key, offset, length)


def spoil(engine: Engine, remote: MemoryBackend, number: int, *, gone: bool) -> str:
    """The pack that the file is read from is gone, or has a wrong bit in the file's block; returns its key."""
    block = block_of(engine, number)
    if gone:
        del remote.objects[key_of(block)]
    else:
        flip(remote, block)
    return key_of(block)


async def sent_twice(engine: Engine) -> tuple[int, int, int]:
    """The files `f` and `g`, which share a pack; `f` and `h` share another, which is listed last."""
    numbers = [(await written(engine, name, data))[0] for name, data in ((b"f", DATA), (b"g", OTHER))]
    await flush(engine)
    first, other = (block_of(engine, number) for number in numbers)
    assert first.location is not None and key_of(first) == key_of(other)
    engine.store.cache.evict([other])
    engine.meta.damage.distrusted(first.location.pack, [])
    later, _ = await written(engine, b"h", LATER)
    await flush(engine)
    assert key_of(block_of(engine, numbers[0])) == key_of(block_of(engine, later)) != key_of(first)
    assert key_of(block_of(engine, numbers[1])) == key_of(first)
    evict_all(engine)
    return numbers[0], numbers[1], later


def handle_of(engine: Engine, number: int) -> int:
    return engine.file_system.handles.open(engine.meta.inodes.need(number))


@pytest.mark.parametrize("gone", [False, True])
@pytest.mark.parametrize("elsewhere", [False, True])
async def test_what_one_pack_has_lost_comes_from_the_other(tmp_path: Path, gone: bool, elsewhere: bool) -> None:
    remote = MemoryBackend()
    async with opened(tmp_path / "data", remote) as engine:
        number, _, _ = await sent_twice(engine)
        if not elsewhere:
            spoil(engine, remote, number, gone=gone)
            assert await content(engine, handle_of(engine, number)) == DATA
            assert not engine.meta.damage.numbers()
    if elsewhere:
        async with opened(tmp_path / "new machine", remote, wish=READER) as engine:
            spoil(engine, remote, number, gone=gone)
            assert await content(engine, handle_of(engine, number)) == DATA
            assert not engine.meta.damage.numbers()


async def test_what_both_have_lost_is_an_error_and_asked_for_no_more(tmp_path: Path) -> None:
    remote = Counting()
    async with opened(tmp_path, remote) as engine:
        number, other, _ = await sent_twice(engine)
        spoil(engine, remote, number, gone=True)
        assert await content(engine, handle_of(engine, number)) == DATA
        await landed(engine)
        evict_all(engine)
        spoil(engine, remote, number, gone=False)
        for _ in range(3):
            engine.store.fetcher._failures.clear()
            with pytest.raises(ObjectCorrupt):
                await content(engine, handle_of(engine, number))
            assert engine.meta.damage.numbers() == {block_of(engine, number).number}
        assert remote.index_reads <= 2 * len([key for key in remote.objects if key.startswith("index/")])
        assert await content(engine, handle_of(engine, other)) == OTHER


async def test_neighbours_that_no_other_pack_has_are_lost_alone(tmp_path: Path) -> None:
    """One request asks for several blocks of a pack that is gone: each has its own fate."""
    remote = MemoryBackend()
    async with opened(tmp_path, remote) as engine:
        number, _, later = await sent_twice(engine)
        spoil(engine, remote, number, gone=True)
        lost = block_of(engine, later).number
        with pytest.raises(ObjectMissing):
            await engine.store.fetcher.fetch([block_of(engine, number).number, lost], 20)
        assert engine.meta.damage.numbers() == {lost}
        assert await content(engine, handle_of(engine, number)) == DATA


async def test_what_is_here_of_the_bad_pack_is_sent_anew(tmp_path: Path) -> None:
    remote = MemoryBackend()
    async with opened(tmp_path, remote) as engine:
        number, _, later = await sent_twice(engine)
        assert await content(engine, handle_of(engine, later), len(LATER)) == LATER
        await landed(engine)
        bad = spoil(engine, remote, number, gone=False)
        assert await content(engine, handle_of(engine, number)) == DATA
        engine.file_system.create(ROOT_INODE, b"a change", 0o100644, ME)
        await flush(engine)
        assert key_of(block_of(engine, later)) != bad


@pytest.mark.parametrize("gone", [False, True])
async def test_a_new_machine_finds_the_nodes_of_trees_too(tmp_path: Path, gone: bool) -> None:
    remote = MemoryBackend()
    async with opened(tmp_path / "data", remote) as engine:
        await written(engine, b"f")
        await flush(engine)
    packs = [(data, *read_list(data)) for key, data in remote.objects.items() if key.startswith("packs/")]
    ((data, _, entries),) = [found for found in packs if found[1] == TREE]
    builder = PackBuilder(TREE)
    for entry in reversed(entries):
        builder.add(entry.id, data[entry.offset : entry.offset + entry.length], entry.plain_bytes)
    copy = builder.finish()
    listing = PackListing(copy.id, len(copy.data), TREE, tuple(copy.locations()))
    remote.objects[index_key(1, 99)] = encode(IndexRecord(VERSION, 1, 99, (listing,)))
    if not gone:
        remote.objects[pack_key(copy.id)] = bytes(len(copy.data))
    async with opened(tmp_path / "new machine", remote, wish=READER) as engine:
        found = engine.meta.names.lookup(ROOT_INODE, b"f")
        assert found is not None
        assert await content(engine, handle_of(engine, found)) == DATA


@pytest.mark.parametrize("gone", [False, True])
async def test_who_only_reads_may_still_evict_what_is_here_of_a_bad_pack(tmp_path: Path, gone: bool) -> None:
    """Nothing is ever sent from there, and the budget would fill up."""
    remote = MemoryBackend()
    async with opened(tmp_path / "data", remote) as engine:
        number, other, later = await sent_twice(engine)
    async with opened(tmp_path / "reader", remote, wish=READER) as engine:
        assert await content(engine, handle_of(engine, later), len(LATER)) == LATER
        await landed(engine)
        spoil(engine, remote, number, gone=gone)
        assert await content(engine, handle_of(engine, number)) == DATA
        spoil(engine, remote, other, gone=gone)
        with pytest.raises(ObjectMissing if gone else ObjectCorrupt):
            await content(engine, handle_of(engine, other))
        assert engine.meta.damage.paths(engine.meta.damage.numbers()) == [b"g"]
        await landed(engine)
        evict_all(engine)
        assert not engine.meta.blocks.cached_files(block_of(engine, later).id[0])


async def test_no_wrong_byte_comes_of_a_listing_that_is_wrong(tmp_path: Path) -> None:
    """The other pack is there, and holds something else in that place."""
    remote = MemoryBackend()
    async with opened(tmp_path, remote) as engine:
        number, other, _ = await sent_twice(engine)
        first = block_of(engine, other).location
        assert first is not None
        spoil(engine, remote, number, gone=True)
        remote.objects[pack_key(first.pack)] = os.urandom(len(remote.objects[pack_key(first.pack)]))
        with pytest.raises(ObjectCorrupt):
            await content(engine, handle_of(engine, number))
