"""A remote's answer is not believed blindly: what it says that it did, what it leaves out, what the time is."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import trio

from syncer.backends.base import ObjectInfo
from syncer.backends.faulty import Fault, FaultyBackend
from syncer.backends.memory import MemoryBackend
from syncer.backends.pages import Pages
from syncer.engine import Engine
from syncer.errors import BackendError, ObjectCorrupt, RemoteUnreachable, WrongRepository
from syncer.snapshots.build import newest_left_out
from syncer.snapshots.records import snapshot_key
from syncer.snapshots.repository import read_peers
from tests.engine.test_damage import DATA, block_of, content, written
from tests.support.opened import READER, create, evict_all, flush, landed, opened

YEARS_S = 5 * 365 * 86_400


@pytest.mark.parametrize("prefix", ["packs/", "index/", "snapshots/"])
async def test_a_put_that_stores_nothing_is_no_put(tmp_path: Path, prefix: str) -> None:
    memory = MemoryBackend()
    lie = Fault(operation="put", prefix=prefix, lie=True)
    async with FaultyBackend(memory, lie) as remote, opened(tmp_path, remote) as engine:
        number, handle = await written(engine, b"f")
        if prefix == "packs/":
            await engine.sealer.seal_everything()
            engine.uploader.drain += 1
            await _pack_refused(engine)
            assert block_of(engine, number).location is None
        else:
            with pytest.raises(RemoteUnreachable, match="said that it had stored"):
                await flush(engine)
        await flush(engine)
        evict_all(engine)
        assert await content(engine, handle) == DATA
        assert block_of(engine, number).location is not None
    async with opened(tmp_path / "new machine", memory) as engine:
        assert engine.meta.names.lookup(1, b"f") is not None


@pytest.mark.parametrize("prefix", ["index/", "snapshots/"])
async def test_a_small_object_is_read_back(tmp_path: Path, prefix: str) -> None:
    memory = MemoryBackend()
    wrong = Fault(operation="put", prefix=prefix, damage=lambda data: data[:-1] + bytes([data[-1] ^ 1]))
    async with FaultyBackend(memory, wrong) as remote, opened(tmp_path, remote) as engine:
        create(engine, b"f")
        with pytest.raises(RemoteUnreachable, match="said that it had stored"):
            await flush(engine)
        await flush(engine)


async def test_nothing_is_evicted_before_the_remote_shows_it(tmp_path: Path) -> None:
    short = Fault(operation="stat", prefix="packs/", error=RemoteUnreachable("cut"), times=2)
    async with FaultyBackend(MemoryBackend(), short) as remote, opened(tmp_path, remote) as engine:
        number, _ = await written(engine, b"f")
        await engine.sealer.seal_everything()
        engine.uploader.drain += 1
        for _ in range(2):
            await _pack_refused(engine)
            assert not engine.meta.blocks.evictable(10)
        with trio.fail_after(20):
            while block_of(engine, number).location is None:
                await engine.uploader.progressed.wait()


async def _pack_refused(engine: Engine) -> None:
    progressed = engine.uploader.progressed
    engine.uploader.wake()
    with trio.fail_after(20):
        await progressed.wait()
    assert isinstance(engine.uploader.error, RemoteUnreachable)


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "short": lambda data: data[:-1],
    "long": lambda data: data + b"?",
    "empty": lambda data: b"",
    "another range": lambda data: data[1:] + data[:1],
    "zeros": lambda data: bytes(len(data)),
}


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_wrong_answer_costs_one_read(tmp_path: Path, damage: str) -> None:
    fault = Fault(operation="get", prefix="packs/", damage=DAMAGES[damage])
    async with FaultyBackend(MemoryBackend()) as remote, opened(tmp_path, remote) as engine:
        _, handle = await written(engine, b"f")
        await flush(engine)
        evict_all(engine)
        remote.plan(fault)
        try:
            assert await content(engine, handle) == DATA  # what comes behind the bytes that were asked for is no harm
        except ObjectCorrupt:
            engine.store.fetcher._failures.clear()
            assert await content(engine, handle) == DATA
        await landed(engine)
        assert not engine.meta.damage.numbers()


@pytest.mark.parametrize("left_out", ["peers/", "snapshots/"])
async def test_a_listing_that_leaves_out_the_newest(tmp_path: Path, left_out: str) -> None:
    """Who joins must go on from the newest state, and must not take the place of a machine that is there."""
    memory = MemoryBackend()
    for place in ("one", "two"):
        async with opened(tmp_path / place, memory) as engine:
            for name in (b"a", b"b"):
                create(engine, name + place.encode())
                await flush(engine)
            await engine.flush(lambda done, total: None, released=True)
    before = dict(memory.objects)
    skip = 1 if left_out == "peers/" else len([key for key in before if key.startswith("snapshots/")]) - 1
    lie = Fault(operation="list", prefix=left_out, lie=True, skip=skip)
    async with FaultyBackend(memory, lie) as remote:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(FaultyBackend, "next_item", _tolerant)
            async with opened(tmp_path / "three", remote) as engine:
                assert engine.meta.names.lookup(1, b"btwo") is not None
                assert engine.meta.peer == 3
    assert {key: memory.objects[key] for key in before} == before


async def test_an_index_that_a_listing_leaves_out_is_asked_for_by_name(tmp_path: Path) -> None:
    """Nothing counts as damaged because a listing has no index of it."""
    memory = MemoryBackend()
    async with opened(tmp_path / "one", memory) as engine:
        await written(engine, b"f")
        engine.uploader.drain += 1
        with trio.fail_after(20):
            while not engine.meta.blocks.has_unindexed_packs():
                await engine.sealer.seal_everything()
                engine.uploader.wake()
                await engine.uploader.progressed.wait()
        await engine.publisher.publish_index()  # of the blocks alone: the trees come in another
        await engine.flush(lambda done, total: None, released=True)
    assert len([key for key in memory.objects if key.startswith("index/")]) == 2
    for skip in (0, 1):
        lie = Fault(operation="list", prefix="index/", lie=True, skip=skip)
        async with FaultyBackend(memory, lie) as remote:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(FaultyBackend, "next_item", _tolerant)
                if skip:
                    with pytest.raises(ObjectCorrupt, match="in no index"):
                        async with opened(tmp_path / str(skip), remote, wish=READER):
                            pass
                    continue
                async with opened(tmp_path / str(skip), remote, wish=READER) as engine:
                    assert not engine.meta.damage.numbers()
                    number = engine.meta.names.lookup(1, b"f")
                    assert number is not None
                    assert (
                        await content(engine, engine.file_system.handles.open(engine.meta.inodes.need(number))) == DATA
                    )


class Forgetful(MemoryBackend):
    """Lists the first snapshot alone."""

    def list(self, prefix: str = "") -> Pages:
        pages = super().list(prefix)
        listed = False

        async def first() -> Sequence[ObjectInfo] | None:
            nonlocal listed
            infos = [] if listed else [info async for info in pages]
            listed = True
            return (infos[:1] if prefix == "snapshots/" else infos) or None

        return Pages(first)


async def test_a_listing_that_leaves_out_all_after_those_that_were_forgotten(tmp_path: Path) -> None:
    """Thinning leaves a few of many numbers in a row."""
    memory = MemoryBackend()
    async with opened(tmp_path / "one", memory) as engine:
        for count in range(8):
            create(engine, b"%d" % count)
            await flush(engine)
        await engine.flush(lambda done, total: None, released=True)
    remote = Forgetful()
    remote.objects.update(memory.objects)
    for seq in range(2, 9):
        del remote.objects[snapshot_key(1, seq)]
    async with opened(tmp_path / "two", remote) as engine:
        assert engine.meta.names.lookup(1, b"7") is not None


@pytest.mark.parametrize(("there", "found"), [((), 3), ((4, 5, 9), 9), ((7, 15, 79), 79), ((3 + 65,), 3)])
async def test_how_far_a_listing_is_not_believed(there: tuple[int, ...], found: int) -> None:
    asked: list[int] = []

    async def is_there(seq: int) -> bool:
        asked.append(seq)
        return seq in there

    assert await newest_left_out(3, is_there) == found
    assert len(asked) <= 8 * (1 + len(there))


async def test_a_remote_that_says_yes_to_everything_is_not_asked_for_ever() -> None:
    async def is_there(_: int) -> bool:
        await trio.lowlevel.checkpoint()
        return True

    with trio.fail_after(60), pytest.raises(ObjectCorrupt, match="shows none of"):
        await newest_left_out(3, is_there)


async def _tolerant(self: FaultyBackend, prefix: str, inner):  # type: ignore[no-untyped-def]
    """As `next_item`; the object left out may be the last."""
    fault = self._next_fault("list", prefix)
    item = await inner.__anext__()
    return await inner.__anext__() if fault is not None else item


async def test_a_listing_that_fails_half_way_is_no_end(tmp_path: Path) -> None:
    memory = MemoryBackend()
    for place in ("one", "two"):
        async with opened(tmp_path / place, memory) as engine:
            create(engine, place.encode())
            await engine.flush(lambda done, total: None, released=True)
    fault = Fault(operation="list", prefix="peers/", error=RemoteUnreachable("cut"), skip=1)
    async with FaultyBackend(memory, fault) as remote:
        with pytest.raises(RemoteUnreachable):
            await read_peers(remote)
        assert [record.peer for record in await read_peers(remote)] == [1, 2]


async def test_a_remote_that_shows_nothing_at_first_is_not_made_anew(tmp_path: Path) -> None:
    memory = MemoryBackend()
    async with opened(tmp_path / "one", memory) as engine:
        create(engine, b"precious")
        await flush(engine)
    kept = dict(memory.objects)
    format_object = memory.objects.pop("format")

    class Silent(MemoryBackend):
        def list(self, prefix: str = ""):  # type: ignore[no-untyped-def]
            return MemoryBackend().list(prefix)

    silent = Silent()
    silent.objects = memory.objects
    with pytest.raises(WrongRepository, match="no format object"):
        async with opened(tmp_path / "two", silent):
            pass
    memory.objects["format"] = format_object
    assert memory.objects == kept


@pytest.mark.parametrize("years", [-1, 1])
async def test_a_clock_that_was_wrong_by_years_holds_up_nothing(
    tmp_path: Path, years: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sealed under one time, sent under another."""
    wrong = time.time() + years * YEARS_S
    async with opened(tmp_path, MemoryBackend(), upload_delay_s=0.2) as engine:
        with monkeypatch.context() as patch:
            patch.setattr(time, "time", lambda: wrong)
            number, _ = await written(engine, b"f", DATA)
            await engine.sealer.seal_everything()
        with trio.fail_after(10):
            while block_of(engine, number).location is None:
                await engine.uploader.progressed.wait()
        await _stays_sound(engine)


async def _stays_sound(engine: Engine) -> None:
    try:
        await flush(engine)
    except BackendError as error:
        pytest.fail(str(error))
