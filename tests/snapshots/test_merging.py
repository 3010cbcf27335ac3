"""Index objects are merged while snapshots are published: few of them remain, and nothing of what they say is lost."""

import random
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from syncer.backends.base import ObjectInfo
from syncer.backends.faulty import Fault, FaultyBackend, Operation
from syncer.backends.memory import MemoryBackend
from syncer.blocks.pack import pack_key
from syncer.errors import ObjectCorrupt, RemoteRefused, WrongRepository
from syncer.snapshots import merging
from syncer.snapshots.elsewhere import Elsewhere
from syncer.snapshots.merging import FULL_BYTES, LOOK_EVERY, MANY, how_many
from syncer.snapshots.reading import AHEAD_BYTES, each_index, listed_places
from syncer.snapshots.records import VERSION, IndexRecord, PackListing, decode, encode, index_key
from syncer.snapshots.retention import parse
from syncer.values import ROOT_INODE, PackId
from tests.snapshots.pruning import Moments, World, check_whole, prune
from tests.snapshots.rig import Peer, Remote, built_from, opened, same
from tests.support.long_form import LONG
from tests.support.remote_view import RemoteView, remote_findings

MINUTE_NS = 60 * 10**9
BOUND = MANY + LOOK_EVERY + 8
DEFAULT = "last=2h,hourly=2d,daily=60d,weekly=2y,monthly=forever"


def indexes(remote: MemoryBackend) -> list[str]:
    return sorted(key for key in remote.objects if key.startswith("index/"))


@pytest.fixture
def early(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few index objects are many."""
    monkeypatch.setattr(merging, "MANY", 6)
    monkeypatch.setattr(merging, "NEWEST", 3)
    monkeypatch.setattr(merging, "LOOK_EVERY", 1)


async def publish(world: World, count: int) -> None:
    """As many snapshots, each with an index object of its own."""
    begin = len(world.pictures)
    for number in range(begin, begin + count):
        await world.peer.file(b"f%05d" % number, random.Random(number).randbytes(3000))
        await world.publish()


# --- how many there are ------------------------------------------------------------------------------------------


async def test_a_few_hundred_publications_leave_few_objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A minute apart, with what the housekeeper does after each; no prune."""
    remote = Remote()
    async with opened(tmp_path / "data", remote) as peer:
        world = World(peer, remote, tmp_path)
        most = 0
        for number in range(1200 if LONG else 260):
            now = 1_700_000_000 * 10**9 + number * MINUTE_NS
            monkeypatch.setattr("syncer.snapshots.publisher.time.time_ns", lambda now=now: now)
            await publish(world, 1)
            await peer.engine.thinner.thin(parse(DEFAULT))
            await peer.engine.merger.merge()
            most = max(most, len(indexes(remote)))
        assert most <= BOUND, "the index objects grow with the publications"
        assert len(peer.meta.snapshots.places()) < 150
        await world.check()
        same(await built_from(remote, tmp_path / "new"), peer.picture())
        assert sum(key.startswith("packs/") for key in remote.objects) > 128
        await prune(peer, DEFAULT)
        assert sum(key.startswith("packs/") for key in remote.objects) < 128, "so do the packs"
        await world.check()
        same(await built_from(remote, tmp_path / "new"), peer.picture())


@pytest.mark.parametrize("seed", range(20 if LONG else 5))
def test_the_count_is_bounded_and_each_listing_is_rewritten_seldom(seed: int) -> None:
    rng = random.Random(seed)
    usual = rng.choice([400, 1500, 20_000, 60_000])
    sizes: list[int] = []
    written = rewritten = 0
    for number in range(20_000 if LONG else 5000):
        sizes.append(min(FULL_BYTES, int(usual * rng.lognormvariate(0, 1))))
        written += sizes[-1]
        if number % LOOK_EVERY == 0 and (count := how_many(sizes)):
            assert sum(sizes[-count:]) <= FULL_BYTES
            rewritten += sum(sizes[-count:])
            sizes[-count:] = [sum(sizes[-count:])]
        assert len(sizes) <= BOUND + 3 * written / FULL_BYTES
    assert rewritten < 10 * written


async def test_prune_merges_small_objects_of_former_writers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("syncer.meta.marks.SMALL_INDEXES", 5)
    remote = Remote()
    async with opened(tmp_path / "one", remote) as peer:
        world = World(peer, remote, tmp_path)
        await publish(world, 10)
    async with opened(tmp_path / "two", remote, take_over=True) as peer:
        await peer.engine.history.refresh()
        peer.contents = {one.attributes[0]: bytearray(one.content or b"") for one in world.pictures[1, 10].values()}
        world.peer = peer
        await publish(world, 3)
        assert len(indexes(remote)) == 13
        await prune(peer, "last=forever")
        assert len(indexes(remote)) == 1
        await world.check()
        before = dict(remote.objects)
        await prune(peer, "last=forever")
        assert remote.objects == before
    same(await built_from(remote, tmp_path / "new"), world.pictures[2, 3])


# --- whatever happens meanwhile ----------------------------------------------------------------------------------


async def test_killed_at_any_point_nothing_is_lost(
    tmp_path: Path, early: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merging, "MANY", 3)
    remote = Remote()
    async with opened(tmp_path / "data", remote) as peer:
        world = World(peer, remote, tmp_path)
        await publish(world, 5)
        moments = Moments(tmp_path / "data", remote, lambda count: True)
        with moments.watched():
            assert await peer.engine.merger.merge() == 5
        assert len(indexes(remote)) == 1
        await world.check()
    assert len(moments.kept) > 15
    for moment in moments.kept:
        check_whole(moment.objects, world.pictures)
        left = Remote()
        left.objects = dict(moment.objects)
        same(await built_from(left, tmp_path / "new"), world.pictures[1, 5])
        async with opened(moment.data, left) as peer:
            peer.contents = {one.attributes[0]: bytearray(one.content or b"") for one in world.pictures[1, 5].values()}
            again = World(peer, left, tmp_path)
            again.pictures = dict(world.pictures)
            peer.meta.commit()
            assert not await remote_findings(left, peer.meta.database.path, tmp_path), moment.what
            await publish(again, 4)
            await peer.engine.merger.merge()
            assert len(indexes(left)) == 1 and not peer.meta.doomed.keys("", -1), moment.what
            (only,) = (decode(left.objects[key], IndexRecord) for key in indexes(left))
            assert len({pack.id for pack in only.packs}) == len(only.packs), moment.what
            await again.check()
        shutil.rmtree(moment.data)


@pytest.mark.parametrize("operation", ["list", "stat", "get", "put"])
async def test_an_error_stops_it_before_the_first_deletion(tmp_path: Path, operation: Operation, early: None) -> None:
    remote = Remote()
    async with opened(tmp_path / "data", remote) as peer:
        world = World(peer, remote, tmp_path)
        await publish(world, 9)
        merger, before = peer.engine.merger, dict(remote.objects)
        for skip in range(40):
            fault = Fault(operation=operation, prefix="index/", error=RemoteRefused("no permission"), skip=skip)
            faulty = FaultyBackend(remote, fault)
            merger._backend = peer.engine.publisher._backend = faulty
            merger._look_at = 0
            try:
                await merger.merge()
            except RemoteRefused:
                assert before.items() <= remote.objects.items(), skip
                remote.objects = dict(before)
            else:
                assert skip, "the fault was not hit"
                break
        merger._backend = peer.engine.publisher._backend = remote
        assert len(indexes(remote)) == 1
        await world.check()


async def test_a_damaged_index_object_is_left_for_a_repair(tmp_path: Path, early: None) -> None:
    remote = Remote()
    async with opened(tmp_path / "data", remote) as peer:
        world = World(peer, remote, tmp_path)
        await publish(world, 9)
        whole = remote.objects[index_key(1, 7)]
        remote.objects[index_key(1, 7)] = whole[:-1] + bytes([whole[-1] ^ 1])
        before = dict(remote.objects)
        with pytest.raises(ObjectCorrupt):
            await peer.engine.merger.merge()
        assert remote.objects == before
        assert await peer.engine.merger.merge() == 0, "it is not read again at once"
        remote.objects[index_key(1, 7)] = whole
        await publish(world, 1)
        assert await peer.engine.merger.merge() == 10
        await world.check()


async def test_another_machine_that_writes_by_now_stops_it(tmp_path: Path, early: None) -> None:
    remote = Remote()
    async with opened(tmp_path / "one", remote) as peer:
        await publish(World(peer, remote, tmp_path), 9)
        async with opened(tmp_path / "two", remote, take_over=True):
            before = dict(remote.objects)
            with pytest.raises(WrongRepository):
                await peer.engine.merger.merge()
            assert remote.objects == before


async def test_what_is_published_while_the_old_ones_are_read_comes_last(tmp_path: Path, early: None) -> None:
    remote = Remote()
    async with opened(tmp_path / "data", remote) as peer:
        world = World(peer, remote, tmp_path)
        await publish(world, 9)
        merger = peer.engine.merger
        read = merger._read

        async def read_slowly(places: list[tuple[int, int]]) -> list[IndexRecord]:
            found = await read(places)  # type: ignore[arg-type]
            if len(places) == 9:
                await publish(world, 1)
            return found

        merger._read = read_slowly  # type: ignore[method-assign, assignment]
        assert await merger.merge() == 10
        assert indexes(remote) == [index_key(1, 11)]
        order = [pack.id for pack in decode(remote.objects[index_key(1, 11)], IndexRecord).packs]
        assert set(order[-2:]) == {
            row[0] for row in peer.meta.blocks.execute("SELECT id FROM packs ORDER BY number DESC LIMIT 2")
        }
        await world.check()


async def test_of_two_listings_of_a_block_the_last_still_counts(tmp_path: Path, early: None) -> None:
    """A copy that was sent anew has taken the place of one that had turned out bad."""
    remote = Remote()
    async with opened(tmp_path / "data", remote) as peer:
        world = World(peer, remote, tmp_path)
        await publish(world, 2)
        block = peer.meta.blocks.execute("SELECT id FROM blocks WHERE kind = 0 ORDER BY number LIMIT 1").fetchone()[0]
        old = RemoteView(remote.objects)._places[block]
        copy = remote.objects[old[0]]
        other = PackId(bytes(31) + b"\x01")
        remote.objects[pack_key(other)] = copy
        listing = PackListing(other, len(copy), 0, ((block, old[1], old[2], 3000),))
        seq = peer.meta.snapshots.next_seq("index")
        peer.meta.snapshots.take_seq("index", seq)
        remote.objects[index_key(1, seq)] = encode(IndexRecord(VERSION, 1, seq, (listing,)))
        await publish(world, 6)
        assert await peer.engine.merger.merge() == 9
        assert RemoteView(remote.objects)._places[block][0] == pack_key(other)
        packs = decode(remote.objects[indexes(remote)[0]], IndexRecord).packs
        assert sum(block in {entry[0] for entry in pack.blocks} for pack in packs) == 2, "the other is still known"


async def test_what_a_prune_has_begun_to_delete_is_not_listed_again(
    tmp_path: Path, early: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was killed before it had put newer index objects."""
    remote = Remote()
    async with opened(tmp_path / "data", remote) as peer:
        world = World(peer, remote, tmp_path)
        await publish(world, 9)
        for number in range(4):
            peer.file_system.unlink(ROOT_INODE, b"f%05d" % number)
        await world.publish()

        def killed(*_: object) -> None:
            raise RemoteRefused("here it ends")

        with monkeypatch.context() as patch:
            patch.setattr("syncer.meta.doomtable.DoomTable.list_again", killed)
            with pytest.raises(RemoteRefused):
                await prune(peer)
        doomed = set(peer.meta.doomed.keys("packs/", -1))
        assert doomed
        assert await peer.engine.merger.merge() == 10
        (only,) = (decode(remote.objects[key], IndexRecord) for key in indexes(remote))
        assert not doomed & {pack_key(PackId(pack.id)) for pack in only.packs}
        assert doomed <= remote.objects.keys()
        await prune(peer)
        assert not doomed & remote.objects.keys()
        await world.check()


async def test_it_is_known_which_one_lists_a_pack(tmp_path: Path, early: None) -> None:
    """A repair makes an index object anew from that. What waits to be listed again still does."""
    remote = Remote()
    async with opened(tmp_path / "data", remote) as peer:
        world = World(peer, remote, tmp_path)
        await publish(world, 9)
        waiting = peer.meta.blocks.execute("SELECT id FROM packs ORDER BY number LIMIT 1").fetchone()[0]
        peer.meta.doomed.list_again([PackId(waiting)])
        assert await peer.engine.merger.merge() == 9
        rows = peer.meta.blocks.execute("SELECT indexed, count(*) FROM packs GROUP BY 1").fetchall()
        assert rows == [(None, 1), (10, 17)]
        await publish(world, 1)
        assert not peer.meta.blocks.has_unindexed_packs()
        await world.check()


async def test_none_is_merged_while_a_prune_goes_by_what_it_has_read(tmp_path: Path, early: None) -> None:
    remote = Remote()
    async with opened(tmp_path / "data", remote) as peer:
        world = World(peer, remote, tmp_path)
        await publish(world, 9)
        merged: list[int] = []
        take = peer.engine.pruner._thinner.drop

        async def drop(going: object) -> None:
            merged.append(await peer.engine.merger.merge())
            await take(going)  # type: ignore[arg-type]

        peer.engine.pruner._thinner.drop = drop  # type: ignore[method-assign]
        await prune(peer)
        assert merged == [0]
        await world.check()


async def test_data_that_was_brought_back_from_a_copy_is_noticed(tmp_path: Path, early: None) -> None:
    """The numbers that it would use next are free again."""
    remote = Remote()
    async with opened(tmp_path / "data", remote) as peer:
        world = World(peer, remote, tmp_path)
        await publish(world, 3)
    shutil.copytree(tmp_path / "data", tmp_path / "copy")
    async with opened(tmp_path / "data", remote) as peer:
        world.peer = peer
        peer.contents = {one.attributes[0]: bytearray(one.content or b"") for one in world.pictures[1, 3].values()}
        await publish(world, 9)
        await peer.engine.merger.merge()
        await peer.engine.thinner.thin(parse("none"))
    before = dict(remote.objects)
    async with opened(tmp_path / "copy", remote) as peer:
        await peer.file(b"other", b"o" * 3000)
        with pytest.raises(WrongRepository, match="brought back from a copy"):
            await peer.publish()
    assert {key for key in remote.objects if not key.startswith("packs/")} <= set(before)


# --- who reads meanwhile -----------------------------------------------------------------------------------------


class Merging(Remote):
    """A remote on which index objects are merged right after they were listed for the first time."""

    def __init__(self, remote: Remote, peer: Peer) -> None:
        super().__init__()
        self.objects = remote.objects
        self._peer = peer
        self.merged = 0

    def list(self, prefix: str = "") -> AsyncIterator[ObjectInfo]:  # type: ignore[override]
        return self._listed(prefix)

    async def _listed(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        found = [info async for info in Remote.list(self, prefix)]
        if prefix == "index/" and not self.merged:
            self.merged = await self._peer.engine.merger.merge()
        for info in found:
            yield info


async def test_a_new_machine_that_has_listed_the_old_ones_finds_everything(tmp_path: Path, early: None) -> None:
    remote = Remote()
    async with opened(tmp_path / "data", remote) as peer:
        await publish(World(peer, remote, tmp_path), 9)
        there = Merging(remote, peer)
        same(await built_from(there, tmp_path / "new"), peer.picture())
        assert there.merged == 9
        async with opened(tmp_path / "new", there, read_only=True) as other:  # what it knows is what is there
            assert other.meta.blocks.content_totals()[1] == peer.meta.blocks.content_totals()[1]


async def test_who_reads_history_finds_what_was_listed_elsewhere_meanwhile(tmp_path: Path, early: None) -> None:
    remote = Remote()
    async with opened(tmp_path / "data", remote) as peer:
        world = World(peer, remote, tmp_path)
        await publish(world, 3)
        async with opened(tmp_path / "other", remote, read_only=True) as other:
            await publish(world, 9)
            there = Merging(remote, peer)
            other.engine.history._backend = there
            await other.engine.history.learn_indexes(0)
            assert there.merged
            assert other.meta.blocks.content_totals()[1] == peer.meta.blocks.content_totals()[1]
            assert other.engine.history._indexes_read == await listed_places(remote, "index/")


async def test_a_copy_is_looked_for_in_what_took_their_place(tmp_path: Path, early: None) -> None:
    remote = Remote()
    async with opened(tmp_path / "data", remote) as peer:
        await publish(World(peer, remote, tmp_path), 9)
        async with opened(tmp_path / "other", remote, read_only=True) as other:
            there = Merging(remote, peer)
            pack, block = other.meta.blocks.execute(
                "SELECT p.id, b.id FROM blocks b JOIN packs p ON p.number = b.pack LIMIT 1"
            ).fetchone()
            assert not await Elsewhere(other.meta, there).find(pack, [block])
            assert there.merged == 9


async def test_a_check_meanwhile_finds_nothing(tmp_path: Path, early: None) -> None:
    remote = Remote()
    async with opened(tmp_path / "data", remote) as peer:
        await publish(World(peer, remote, tmp_path), 9)
        there = Merging(remote, peer)
        peer.meta.commit()
        assert not await remote_findings(there, peer.meta.database.path, tmp_path)
        assert there.merged == 9


# --- reading many ------------------------------------------------------------------------------------------------


class Slow(MemoryBackend):
    """A remote that answers a get when everybody else waits, the last asked first."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[trio.Event] = []
        self.most = 0

    async def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        answered = trio.Event()
        self.waiting.append(answered)
        self.most = max(self.most, len(self.waiting))
        await answered.wait()
        return await super().get(key, offset, length)

    async def answer(self) -> None:
        while True:
            await trio.testing.wait_all_tasks_blocked()
            if self.waiting:
                self.waiting.pop().set()


def _record(seq: int, blocks: int = 0) -> bytes:
    entries = tuple((bytes(24) + at.to_bytes(8), at, 9, 9) for at in range(blocks))
    return encode(IndexRecord(VERSION, 1, seq, (PackListing(bytes(32), 100, 0, entries),)))


async def _read(remote: Slow, use: Callable[[int], None]) -> None:
    async def used(place: tuple[int, int], _record: IndexRecord) -> None:
        use(place[1])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(remote.answer)
        await each_index(remote, sorted(await listed_places(remote, "index/")), used)
        nursery.cancel_scope.cancel()


async def test_index_objects_are_fetched_several_at_a_time_and_used_in_order() -> None:
    remote = Slow()
    for seq in range(1, 41):
        remote.objects[index_key(1, seq)] = _record(seq)
    used: list[int] = []
    await _read(remote, used.append)
    assert used == list(range(1, 41))
    assert remote.most == remote.parallelism


async def test_long_ones_do_not_all_wait_in_memory() -> None:
    remote = Slow()
    for seq in range(1, 6):
        remote.objects[index_key(1, seq)] = _record(seq, 150_000)
    assert 5_000_000 < len(remote.objects[index_key(1, 1)]) < AHEAD_BYTES < 4 * len(remote.objects[index_key(1, 1)])
    used: list[int] = []
    await _read(remote, used.append)
    assert used == [1, 2, 3, 4, 5]
    assert (remote.most - 1) * len(remote.objects[index_key(1, 1)]) <= AHEAD_BYTES  # and the one whose turn it is
