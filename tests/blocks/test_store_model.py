"""The block store against a dict: random puts, gets, evictions, flushes and damage, and each promise by itself.

In virtual time: a deadline of a minute passes at once when nothing else can happen.
"""

import errno
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from syncer.backends.faulty import Fault, FaultyBackend
from syncer.backends.memory import MemoryBackend
from syncer.engine import Engine, Settings
from syncer.errors import DeadlinePassed, ObjectCorrupt, RemoteUnreachable, SyncerError
from syncer.meta.blocktable import CACHED_FILE, CACHED_ROW, Block
from syncer.values import BLOCK_MAX_BYTES, BLOCK_MIN_BYTES, SMALL_BYTES
from tests.support.core_check import check_engine, check_remote
from tests.support.core_world import NEVER_S, World, open_world, read_whole, threads_as_awaits, write_file

DEADLINE_S, ROUNDING_S = 60.0, 1e-6
AMPLE_BYTES = 400_000_000
TIGHT_BYTES = 26_000_000


class Counting(MemoryBackend):
    """Counts how often blocks are asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.gets = 0

    async def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        self.gets += key.startswith("packs/")
        return await super().get(key, offset, length)


@asynccontextmanager
async def store(
    folder: Path, *faults: Fault, budget_bytes: int = AMPLE_BYTES, delay_s: float = 0.0
) -> AsyncIterator[tuple[World, FaultyBackend, Counting]]:
    memory = Counting()
    settings = Settings(
        budget_bytes=budget_bytes,
        snapshot_interval_s=NEVER_S,
        upload_delay_s=delay_s,
        network_deadline_s=DEADLINE_S,
        read_ahead_bytes=0,
    )
    async with FaultyBackend(memory, *faults) as backend:
        with threads_as_awaits():
            async with open_world(folder, backend, settings) as world:
                yield world, backend, memory


def blocks_of(world: World, number: int) -> list[Block]:
    extents = world.meta.extents.find(number, 0, 1 << 60)
    return [world.meta.blocks.get(extent.source) for extent in extents]


async def flush(engine: Engine) -> None:
    """Return when every byte written is in a block on the remote, and may be evicted."""
    await engine.sealer.seal_everything()
    engine.uploader.drain += 1
    engine.uploader.wake()
    with trio.fail_after(1000):
        while engine.meta.blocks.pending_totals()[1]:
            await engine.uploader.progressed.wait()
        while engine.store.budget.pinned:  # until the records are durable
            await engine.uploader.progressed.wait()
    engine.uploader.drain -= 1


def evict_all(world: World) -> None:
    pinned = world.engine.store.budget.pinned
    blocks = [block for block in world.meta.blocks.evictable(10_000) if block.number not in pinned]
    if blocks:
        world.engine.store.cache.evict(blocks)


def damage_cached(world: World, block: Block) -> None:
    """Flip a bit of the local copy, as a bad disk does."""
    world.engine.store.cache.close()  # a copy that is open was verified, and is not looked at again
    if block.cached == CACHED_FILE:
        path = world.engine.store.cache.path(block.id)
        path.write_bytes(flipped(path.read_bytes(), block.size // 2))
    else:
        data = world.meta.blocks.data(block.number)
        assert data is not None
        world.meta.database.begin()
        world.meta.database.connection.execute(
            "UPDATE block_data SET data = ? WHERE number = ?", (flipped(data, 0), block.number)
        )


def damage_remote(memory: MemoryBackend, block: Block) -> None:
    assert block.location is not None
    key = f"packs/{block.location.pack.hex()[:2]}/{block.location.pack.hex()}"
    memory.objects[key] = flipped(memory.objects[key], block.location.offset + block.location.length // 2)


def flipped(data: bytes, index: int) -> bytes:
    return data[:index] + bytes([data[index] ^ 1]) + data[index + 1 :]


async def cold_file(world: World, name: bytes, data: bytes) -> int:
    """A file whose blocks are on the remote alone."""
    number = await write_file(world.engine, name, data)
    await flush(world.engine)
    evict_all(world)
    return number


# --- random operations ------------------------------------------------------------------------------------------------

SIZES = (1, 5_000, SMALL_BYTES, SMALL_BYTES + 1, BLOCK_MIN_BYTES, 700_000, BLOCK_MAX_BYTES + 70_000)


@pytest.mark.parametrize("seed", range(6))
async def test_whatever_happens_what_was_put_is_what_is_got(
    tmp_path: Path, autojump_clock: MockClock, seed: int
) -> None:
    choose = random.Random(seed)
    kept: dict[bytes, bytes] = {}
    pool = [choose.randbytes(size) for size in SIZES]
    async with store(tmp_path, budget_bytes=AMPLE_BYTES if seed % 2 else TIGHT_BYTES) as (world, _, memory):
        engine = world.engine

        async def get(name: bytes) -> None:
            inode = engine.file_system.names.lookup(1, name)
            assert inode is not None
            assert await read_whole(engine, inode.number) == kept[name], name

        for _ in range(60):
            name = b"%d" % choose.randrange(8)
            match choose.choice(("put", "put", "get", "get", "evict", "flush", "seal", "remove", "damage", "wait")):
                case "put" if name not in kept:
                    data = choose.choice(pool) if choose.random() < 0.5 else choose.randbytes(choose.choice(SIZES))
                    kept[name] = data
                    await write_file(engine, name, data)
                case "get" if name in kept:
                    await get(name)
                case "evict":
                    evict_all(world)
                case "flush":
                    await flush(engine)
                case "seal":
                    await engine.sealer.seal_quiet(0.0)
                case "remove" if name in kept:
                    engine.file_system.unlink(1, name)
                    del kept[name]
                case "damage" if clean := engine.meta.blocks.evictable(5):
                    damage_cached(world, choose.choice(clean))
                case "wait":
                    await trio.sleep(choose.choice((0.0, 0.2, 5.0)))
            assert engine.store.budget.used_bytes <= engine.store.budget.limit_bytes
        for name in kept:
            await get(name)
        await flush(engine)
        engine.store.cache.close()
        for block in engine.meta.blocks.evictable(10_000):  # a damaged copy that nobody has read yet
            if engine.store.cache.read(block, 0, 1) is None:
                continue
        check_engine(engine, world.data, set())
        check_remote(engine.meta, memory)
        evict_all(world)
        for name in kept:
            await get(name)


# --- copies here and there --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "kind"), [(5_000, CACHED_ROW), (900_000, CACHED_FILE)])
async def test_a_damaged_cached_copy_is_fetched_again(
    tmp_path: Path, autojump_clock: MockClock, size: int, kind: int
) -> None:
    data = random.Random(1).randbytes(size)
    async with store(tmp_path) as (world, _, remote):
        number = await write_file(world.engine, b"file", data)
        await flush(world.engine)
        first = blocks_of(world, number)[0]
        assert first.cached == kind
        damage_cached(world, first)
        assert await read_whole(world.engine, number) == data
        assert (world.engine.store.cache.replaced, remote.gets) == (1, 1)
        check_engine(world.engine, world.data, set())


async def test_a_damaged_copy_that_is_the_only_one_is_an_error_and_is_kept(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with store(tmp_path, delay_s=NEVER_S) as (world, _, _):
        number = await write_file(world.engine, b"file", random.Random(1).randbytes(900_000))
        await world.engine.sealer.seal_everything()
        first = blocks_of(world, number)[0]
        damage_cached(world, first)
        with pytest.raises(SyncerError, match="the remote has none yet"):
            await read_whole(world.engine, number)
        assert world.engine.store.cache.path(first.id).exists()


async def test_a_damaged_remote_block_is_an_error_for_just_its_bytes(tmp_path: Path, autojump_clock: MockClock) -> None:
    data = random.Random(2).randbytes(3 * BLOCK_MAX_BYTES)
    async with store(tmp_path) as (world, _, memory):
        number = await cold_file(world, b"file", data)
        blocks = blocks_of(world, number)
        bad = world.meta.extents.find(number, 0, 1 << 60)[len(blocks) // 2]
        damage_remote(memory, world.meta.blocks.get(bad.source))
        handle = world.engine.file_system.open(number, 0)
        failed = set()
        for offset in range(0, len(data), 65_536):
            try:
                part = await world.engine.file_system.read(handle, offset, 65_536)
            except ObjectCorrupt:
                failed.add(offset)
            else:
                assert part == data[offset : offset + 65_536]
        world.engine.file_system.release(handle)
        touched = {offset for offset in range(0, len(data), 65_536) if offset < bad.end and offset + 65_536 > bad.start}
        assert failed == touched


async def test_a_damaged_small_block_costs_its_neighbours_nothing(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Small blocks of a pack come together; the one that is bad must not take the others with it."""
    async with store(tmp_path) as (world, _, memory):
        numbers = [await write_file(world.engine, b"%d" % n, b"%d" % n * 3000) for n in range(9)]
        await flush(world.engine)
        evict_all(world)
        damage_remote(memory, blocks_of(world, numbers[4])[0])
        for n, number in enumerate(numbers):
            if n == 4:
                with pytest.raises(ObjectCorrupt):
                    await read_whole(world.engine, number)
            else:
                assert await read_whole(world.engine, number) == b"%d" % n * 3000


async def test_a_block_that_the_remote_lacks_is_never_evicted(tmp_path: Path, autojump_clock: MockClock) -> None:
    data = random.Random(3).randbytes(900_000)
    unreachable = Fault(operation="put", prefix="packs/", error=RemoteUnreachable("no answer"), times=3)
    async with store(tmp_path, unreachable) as (world, faulty, _):
        joining = faulty.calls["put"]
        number = await write_file(world.engine, b"file", data)
        await world.engine.sealer.seal_everything()
        while faulty.calls["put"] < 3 + joining:
            await world.engine.uploader.progressed.wait()
            assert not world.meta.blocks.evictable(100)
            assert not world.engine.store.budget.make_room(AMPLE_BYTES)
            assert await read_whole(world.engine, number) == data
        await flush(world.engine)
        assert len(world.meta.blocks.evictable(100)) == len(blocks_of(world, number))


async def test_bytes_written_again_are_among_the_last_to_go(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Whoever writes what some block has already, and reads it back, must not need the remote for it."""
    async with store(tmp_path) as (world, _, _):
        random_bytes = random.Random(4).randbytes
        older, newer = random_bytes(BLOCK_MIN_BYTES), random_bytes(BLOCK_MIN_BYTES)
        for name, data in ((b"older", older), (b"newer", newer)):
            await write_file(world.engine, name, data)
            await flush(world.engine)
        world.meta.database.begin()
        world.meta.blocks.execute("UPDATE blocks SET used = number")
        again = await write_file(world.engine, b"again", older)
        await world.engine.sealer.seal_everything()
        assert [block.id for block in world.meta.blocks.evictable(100)][-1] == blocks_of(world, again)[0].id


async def test_evicting_one_all_the_same_is_refused(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with store(tmp_path, delay_s=NEVER_S) as (world, _, _):
        number = await write_file(world.engine, b"file", random.Random(3).randbytes(900_000))
        await world.engine.sealer.seal_everything()
        (first, *_) = blocks_of(world, number)
        with pytest.raises(ValueError, match="must not be evicted"):
            world.engine.store.cache.evict([first])
        assert world.engine.store.cache.path(first.id).exists()


# --- fetching ---------------------------------------------------------------------------------------------------------


async def test_however_many_wait_for_a_block_it_is_fetched_once(tmp_path: Path, autojump_clock: MockClock) -> None:
    data = random.Random(4).randbytes(BLOCK_MIN_BYTES)
    async with store(tmp_path) as (world, _, remote):
        number = await cold_file(world, b"file", data)
        results: list[bytes] = []

        async def read() -> None:
            results.append(await read_whole(world.engine, number))

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(read)
        assert results == [data] * 20
        assert remote.gets == 1


async def test_a_reader_that_gives_up_does_not_end_what_others_wait_for(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    data = random.Random(4).randbytes(BLOCK_MIN_BYTES)
    async with store(tmp_path) as (world, _, remote):
        number = await cold_file(world, b"file", data)
        async with trio.open_nursery() as nursery:
            impatient = trio.CancelScope()

            async def give_up() -> None:
                with impatient:
                    await read_whole(world.engine, number)
                assert impatient.cancelled_caught

            nursery.start_soon(give_up)
            while not remote.gets:
                await trio.lowlevel.checkpoint()
            impatient.cancel()
            assert await read_whole(world.engine, number) == data
        assert remote.gets == 1


async def test_neighbouring_ranges_are_one_request(tmp_path: Path, autojump_clock: MockClock) -> None:
    data = random.Random(5).randbytes(3 * 1024 * 1024)
    async with store(tmp_path, delay_s=NEVER_S) as (world, _, remote):
        number = await cold_file(world, b"file", data)
        blocks = blocks_of(world, number)
        assert len(blocks) > 2
        await world.engine.store.fetch([block.number for block in blocks], DEADLINE_S)
        assert remote.gets == 1
        assert await read_whole(world.engine, number) == data
        assert remote.gets == 1


async def test_a_small_block_brings_its_small_neighbours_along(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with store(tmp_path) as (world, _, remote):
        numbers = [await write_file(world.engine, b"%d" % n, b"%d" % n * 4000) for n in range(30)]
        await flush(world.engine)
        evict_all(world)
        for n, number in enumerate(numbers):
            assert await read_whole(world.engine, number) == b"%d" % n * 4000
        assert remote.gets == 1


async def test_a_remote_that_does_not_answer_is_an_error_when_the_deadline_passes(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    data = random.Random(6).randbytes(900_000)
    async with store(tmp_path, Fault(operation="get", prefix="packs/")) as (world, _, _):
        number = await cold_file(world, b"file", data)
        handle = world.engine.file_system.open(number, 0)
        began = trio.current_time()
        with pytest.raises(DeadlinePassed):
            await world.engine.file_system.read(handle, 0, 4096)
        assert DEADLINE_S - ROUNDING_S <= trio.current_time() - began < DEADLINE_S + 5
        world.engine.file_system.release(handle)
        await trio.sleep(30)
        assert await read_whole(world.engine, number) == data, "it answers again"
        check_engine(world.engine, world.data, set())


# --- the budget -------------------------------------------------------------------------------------------------------


async def test_writers_wait_for_uploads_and_never_pass_the_budget(tmp_path: Path, autojump_clock: MockClock) -> None:
    choose = random.Random(7)
    async with store(tmp_path, budget_bytes=TIGHT_BYTES) as (world, _, _):
        contents = [choose.randbytes(3_000_000) for _ in range(20)]
        numbers = []
        for count, content in enumerate(contents):
            for offset in range(0, len(content), 128 * 1024):
                part = content[offset : offset + 128 * 1024]
                number = await write_file(world.engine, b"%d" % count, part, offset=offset)
                assert world.engine.store.budget.used_bytes <= TIGHT_BYTES
            numbers.append(number)
        for number, content in zip(numbers, contents, strict=True):
            assert await read_whole(world.engine, number) == content
            assert world.engine.store.budget.used_bytes <= TIGHT_BYTES
        await flush(world.engine)
        check_engine(world.engine, world.data, set())


async def test_a_writer_gets_enospc_when_nothing_can_be_uploaded_in_time(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    content = random.Random(8).randbytes(TIGHT_BYTES)
    async with store(tmp_path, budget_bytes=TIGHT_BYTES) as (world, _, memory):
        memory.capacity_bytes = 0
        number = await write_file(world.engine, b"file", b"")
        written = 0
        with pytest.raises(OSError) as failure:
            while written < len(content):
                began = trio.current_time()
                await write_file(world.engine, b"file", content[written : written + 100_000], offset=written)
                written += 100_000
        assert failure.value.errno == errno.ENOSPC
        assert DEADLINE_S - ROUNDING_S <= trio.current_time() - began < DEADLINE_S + 5
        assert written > 4_000_000
        assert world.engine.store.budget.used_bytes <= TIGHT_BYTES
        assert await read_whole(world.engine, number) == content[:written], "what was there before is untouched"
        memory.capacity_bytes = None
        await flush(world.engine)
        await write_file(world.engine, b"file", content[written : written + 100_000], offset=written)
        assert await read_whole(world.engine, number) == content[: written + 100_000], "there is room again"
