"""Pruning: what is needed stays, what is not goes, and nothing is deleted when something cannot be told."""

import contextlib
import random
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from syncer.backends.base import ObjectInfo
from syncer.backends.faulty import Fault, FaultyBackend
from syncer.backends.memory import MemoryBackend
from syncer.blocks.pack import pack_key
from syncer.errors import ObjectCorrupt, RemoteRefused, RemoteUnreachable, SyncerError, WrongRepository
from syncer.snapshots.followers import NoSuchFollower
from syncer.snapshots.prune import Plan, Step
from syncer.snapshots.records import VERSION, FollowerRecord, encode, follower_key, snapshot_key
from syncer.snapshots.retention import parse
from syncer.values import ROOT_INODE, PackId
from tests.snapshots.pruning import Moments, World, go_on, packs, prune
from tests.snapshots.rig import Peer, Remote, built_from, opened, same
from tests.support.long_form import LONG
from tests.support.remote_view import RemoteView


async def test_what_nothing_needs_goes(tmp_path: Path) -> None:
    remote = Remote()
    async with opened(tmp_path / "data", remote) as peer:
        world = World(peer, remote, tmp_path)
        for n in range(4):
            await peer.file(b"f%d" % n, random.Random(n).randbytes(300_000))
            await world.publish()
        for n in range(3):
            peer.file_system.unlink(ROOT_INODE, b"f%d" % n)
        await world.publish()
        before = packs(remote)
        plan = await prune(peer, dry_run=True)
        assert packs(remote) == before and len(plan.going) == 4 and plan.kept_snapshots == 1
        assert plan.dead_bytes > 900_000 and plan.freed_bytes > 900_000
        assert sum(going.bytes for going in plan.going) > 900_000
        again = await prune(peer)
        assert again == plan
        assert before - packs(remote) > 900_000
        await world.check()
        assert len(world.peer.meta.snapshots.places()) == 1
        assert not peer.meta.doomed.keys("", -1)
        nothing = await prune(peer)
        assert not nothing.going and not nothing.freed_bytes
    same(await built_from(remote, tmp_path / "new"), list(world.pictures.values())[-1])


async def test_packs_that_are_mostly_dead_are_rewritten(tmp_path: Path) -> None:
    remote = Remote()
    async with opened(tmp_path / "data", remote) as peer:
        world = World(peer, remote, tmp_path)
        for n in range(20):
            await peer.file(b"f%d" % n, random.Random(n).randbytes(100_000))
        await world.publish()
        for n in range(15):
            peer.file_system.unlink(ROOT_INODE, b"f%d" % n)
        await world.publish()
        plan = await prune(peer, rewrite=100_000)
        assert not plan.rewritten_packs, "that would be more than allowed"
        plan = await prune(peer)
        assert plan.rewritten_packs and 500_000 <= plan.rewritten_bytes < 600_000
        assert packs(remote) < 600_000
        await world.check()
        assert RemoteView(remote.objects).dead_share() < 0.2
    same(await built_from(remote, tmp_path / "new"), list(world.pictures.values())[-1])


async def test_many_small_packs_become_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("syncer.meta.marks.SMALL_PACKS", 15)
    remote = Remote()
    async with opened(tmp_path / "data", remote) as peer:
        world = World(peer, remote, tmp_path)
        for n in range(20):
            await peer.file(b"f%d" % n, random.Random(n).randbytes(20_000))
            await world.publish()
        told = await prune(peer, "last=forever", dry_run=True)
        assert told.rewritten_packs == 40 and 400_000 < told.rewritten_bytes < 450_000
        before = packs(remote)
        limited = await prune(peer, "last=forever", rewrite=200_000)
        assert limited.rewritten_packs == 9 + 20 and limited.rewritten_bytes <= 200_000
        await world.check()
        after_limited = packs(remote)
        assert abs(before - after_limited - limited.freed_bytes) < 200
        monkeypatch.setattr("syncer.meta.marks.SMALL_PACKS", 10)
        plan = await prune(peer, "last=forever")
        assert abs(after_limited - packs(remote) - plan.freed_bytes) < 200
        assert sum(key.startswith("packs/") for key in remote.objects) == 2
        await world.check()
        at_rest = dict(remote.objects)
        assert not (await prune(peer, "last=forever")).rewritten_packs
        assert remote.objects == at_rest
        assert len(peer.meta.snapshots.places()) == 20
    same(await built_from(remote, tmp_path / "new"), list(world.pictures.values())[-1])


@pytest.mark.parametrize("seed", range(40 if LONG else 2))
async def test_whatever_is_kept_is_whole(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    remote = Remote()
    async with opened(tmp_path / "data", remote) as peer:
        world = World(peer, remote, tmp_path)
        for _ in range(4):
            await world.churn(rng)
            await world.delete(rng)
            await prune(peer, rng.choice(["none", "last=forever"]))
            await world.check()
            assert RemoteView(remote.objects).dead_share() < 0.2
    same(await built_from(remote, tmp_path / "new"), list(world.pictures.values())[-1])


@contextlib.asynccontextmanager
async def churned(folder: Path) -> AsyncIterator[tuple[Peer, Remote, World]]:
    """A file system with some snapshots, on a remote of its own."""
    remote = Remote()
    async with opened(folder / "data", remote) as peer:
        world = World(peer, remote, folder)
        await world.churn(random.Random(1))
        yield peer, remote, world


async def test_what_a_follower_needs_stays(tmp_path: Path) -> None:
    async with churned(tmp_path) as (peer, remote, world):
        places = peer.meta.snapshots.places()
        for seq, place in enumerate(places[:3], 1):
            record = encode(FollowerRecord(VERSION, *place, "anna"))
            remote.objects[follower_key(b"m" * 16, seq)] = record
        await prune(peer)
        assert peer.meta.snapshots.places() == [*places[:3], places[-1]]
        await world.check()


async def test_a_follower_that_will_not_come_back_is_forgotten(tmp_path: Path) -> None:
    async with churned(tmp_path) as (peer, remote, world):
        places = peer.meta.snapshots.places()
        for machine, host, place in ((b"m" * 16, "anna", places[0]), (b"n" * 16, "bert", places[1])):
            remote.objects[follower_key(machine, 7)] = encode(FollowerRecord(VERSION, *place, host))
        for unknown in ("carl", "6d6", "ff00"):
            with pytest.raises(NoSuchFollower):
                await prune(peer, forget=unknown)
        plan = await prune(peer, dry_run=True, forget="anna")
        assert [one.host for one in plan.followers] == ["bert"] and len(plan.going) == len(places) - 2
        assert peer.meta.snapshots.places() == places
        await prune(peer, forget=b"mm".hex())
        assert peer.meta.snapshots.places() == [places[1], places[-1]]
        assert [key for key in remote.objects if key.startswith("followers/")] == [follower_key(b"n" * 16, 7)]
        await world.check()


async def test_a_follower_whose_record_is_damaged_stops_it_until_it_is_forgotten(tmp_path: Path) -> None:
    async with churned(tmp_path) as (peer, remote, world):
        place = peer.meta.snapshots.places()[0]
        remote.objects[follower_key(b"n" * 16, 1)] = encode(FollowerRecord(VERSION, *place, "bert"))
        remote.objects[follower_key(b"m" * 16, 1)] = b"nothing"
        before = dict(remote.objects)
        for others in (None, "bert"):
            with pytest.raises(ObjectCorrupt) as caught:
                await prune(peer, forget=others)
            assert "--forget-follower 6d6d6d6d" in (caught.value.hint or "")
            assert remote.objects == before
        await prune(peer, forget="6d6d6d6d")
        assert [key for key in remote.objects if key.startswith("followers/")] == [follower_key(b"n" * 16, 1)]
        assert place in peer.meta.snapshots.places()
        await world.check()


async def test_a_follower_that_begins_to_need_what_goes_stops_it(tmp_path: Path) -> None:
    async with churned(tmp_path) as (peer, remote, world):
        place = peer.meta.snapshots.places()[0]

        def follow(event: Step | Plan) -> None:
            if isinstance(event, Step):
                return
            remote.objects[follower_key(b"m" * 16, 1)] = encode(FollowerRecord(VERSION, *place, "anna"))

        before = {key for key in remote.objects if not key.startswith("followers/")}
        with pytest.raises(RemoteUnreachable):
            await peer.engine.pruner.prune(parse("none"), follow)
        assert before <= set(remote.objects)
        await prune(peer)
        assert place in peer.meta.snapshots.places()
        await world.check()


async def test_a_follower_that_found_a_snapshot_just_before_it_went_has_its_blocks(tmp_path: Path) -> None:
    """It says what it needs, and looks whether that is there still."""
    async with churned(tmp_path) as (peer, remote, _):
        place = peer.meta.snapshots.places()[0]
        delete = remote.delete

        async def found_before(key: str) -> None:
            if key == snapshot_key(*place):
                remote.objects[follower_key(b"m" * 16, 1)] = encode(FollowerRecord(VERSION, *place, "anna"))
            await delete(key)

        remote.delete = found_before  # type: ignore[method-assign]
        packs = {key for key in remote.objects if key.startswith(("packs/", "index/"))}
        with pytest.raises(RemoteUnreachable, match="has begun to need"):
            await prune(peer)
        assert packs <= set(remote.objects)
        del remote.objects[follower_key(b"m" * 16, 1)]
        await prune(peer)
        assert not packs <= set(remote.objects)


async def test_a_directory_that_goes_back_to_what_it_was_keeps_its_old_node(tmp_path: Path) -> None:
    """Between the listing and the deletion: the new snapshot names a node that nothing named, and sends nothing."""
    remote = Remote()
    async with opened(tmp_path / "data", remote) as peer:
        world = World(peer, remote, tmp_path)
        directory = peer.directory(b"d")
        await peer.file(b"stays", b"s" * 200_000)
        await peer.file(b"x", b"x" * 300_000, directory)
        await world.publish()
        await peer.file(b"y", b"y" * 300_000, directory)
        await world.publish()

        async def back() -> None:
            peer.file_system.unlink(directory, b"y")
            await world.publish()

        rewriting = peer.engine.pruner._thinner.drop

        async def drop(going: object) -> None:
            await back()
            await rewriting(going)  # type: ignore[arg-type]

        peer.engine.pruner._thinner.drop = drop  # type: ignore[method-assign]
        await prune(peer)
        await world.check()


async def test_bytes_that_come_back_get_a_pack_of_their_own(tmp_path: Path) -> None:
    """The same bytes make the same pack; a delete that is late must not hit the new one."""
    remote = Remote()
    async with opened(tmp_path / "data", remote) as peer:
        world = World(peer, remote, tmp_path)
        content = random.Random(1).randbytes(300_000)
        await peer.file(b"one", content)
        await world.publish()
        before = {key for key in remote.objects if key.startswith("packs/")}
        peer.file_system.unlink(ROOT_INODE, b"one")
        await world.publish()
        await prune(peer)
        await peer.file(b"one", content)
        await world.publish()
        after = {key for key in remote.objects if key.startswith("packs/")}
        assert not before & after
        for key in before:
            await remote.delete(key)
        await world.check()


class Leaving(MemoryBackend):
    """Leaves one object out of its listings."""

    def __init__(self, objects: dict[str, bytes], key: str) -> None:
        super().__init__()
        self.objects = objects
        self.key = key

    def list(self, prefix: str = "") -> "Listing":  # type: ignore[override]
        return Listing(super().list(prefix), self.key)


class Listing:
    def __init__(self, inner: object, key: str) -> None:
        self._inner, self._key = inner, key

    def __aiter__(self) -> "Listing":
        return self

    async def __anext__(self) -> ObjectInfo:
        info: ObjectInfo = await self._inner.__anext__()  # type: ignore[attr-defined]
        return info if info.key != self._key else await self.__anext__()


@pytest.mark.parametrize("prefix", ["packs/", "index/", "snapshots/"])
async def test_a_listing_that_leaves_something_out_stops_it(tmp_path: Path, prefix: str) -> None:
    remote = Remote()
    async with opened(tmp_path / "data", remote) as peer:
        world = World(peer, remote, tmp_path)
        await world.churn(random.Random(2))
        objects = dict(remote.objects)
        for key in [key for key in objects if key.startswith(prefix)]:
            peer.engine.pruner._backend = Leaving(remote.objects, key)
            with pytest.raises(SyncerError) as caught:
                await prune(peer)
            assert "nothing was deleted" in caught.value.hint
            assert remote.objects == objects
        peer.engine.pruner._backend = remote
        await prune(peer)
        await world.check()


@pytest.mark.parametrize("prefix", ["packs/", "index/", "snapshots/", "followers/"])
async def test_a_listing_that_fails_half_way_stops_it(tmp_path: Path, prefix: str) -> None:
    remote = Remote()
    async with opened(tmp_path / "data", remote) as peer:
        await World(peer, remote, tmp_path).churn(random.Random(2))
        record = encode(FollowerRecord(VERSION, *peer.meta.snapshots.places()[0], "anna"))
        remote.objects.update({follower_key(b"m" * 16, 1): record, follower_key(b"n" * 16, 1): record})
        objects = dict(remote.objects)
        error = RemoteUnreachable("the line is cut")
        async with FaultyBackend(remote, Fault(operation="list", prefix=prefix, error=error, skip=1)) as faulty:
            peer.engine.pruner._backend = faulty
            with pytest.raises(RemoteUnreachable):
                await prune(peer)
        assert remote.objects == objects


@pytest.mark.parametrize("prefix", ["index/", "followers/"])
async def test_what_cannot_be_decoded_stops_it(tmp_path: Path, prefix: str) -> None:
    remote = Remote()
    async with opened(tmp_path / "data", remote) as peer:
        await World(peer, remote, tmp_path).churn(random.Random(3))
        remote.objects[follower_key(b"m" * 16, 1)] = encode(FollowerRecord(VERSION, 1, 1, "anna"))
        key = next(key for key in remote.objects if key.startswith(prefix))
        remote.objects[key] = remote.objects[key][:-1] + b"?"
        objects = dict(remote.objects)
        with pytest.raises(ObjectCorrupt):
            await prune(peer)
        assert remote.objects == objects


async def test_who_writes_no_more_deletes_nothing(tmp_path: Path) -> None:
    remote = Remote()
    async with opened(tmp_path / "data", remote) as peer:
        await World(peer, remote, tmp_path).churn(random.Random(4))
        async with opened(tmp_path / "other", remote, take_over=True):
            pass
        objects = dict(remote.objects)
        with pytest.raises(WrongRepository):
            await prune(peer)
        assert remote.objects == objects


async def test_packs_of_a_killed_writer_go_when_seen_twice(tmp_path: Path) -> None:
    remote = Remote()
    async with opened(tmp_path / "data", remote) as peer:
        world = World(peer, remote, tmp_path)
        await peer.file(b"f", b"1" * 100_000)
        await world.publish()
        stray = f"packs/ab/ab{'0' * 62}"
        remote.objects[stray] = b"what a killed machine has sent"
        await prune(peer)
        await prune(peer)
        assert stray in remote.objects, "nothing was published in between"
        await peer.file(b"g", b"2" * 100_000)
        await world.publish()
        await prune(peer)
        assert stray not in remote.objects
        await world.check()


async def test_nodes_that_were_never_read_are_read_once(tmp_path: Path) -> None:
    """On a machine that was built from the remote nothing is known of what nodes name."""
    remote = Remote()
    async with opened(tmp_path / "data", remote) as peer:
        world = World(peer, remote, tmp_path)
        await world.churn(random.Random(5))
        await peer.publish(released=True)
    async with opened(tmp_path / "other", remote) as other:
        world.peer = other
        assert not other.membership.read_only_reason
        other.contents = peer.contents
        seen = world.pictures[max(world.pictures)]
        world.pictures.update(
            {place: seen for place in RemoteView(remote.objects).snapshots() if place not in world.pictures}
        )
        await world.churn(random.Random(6))
        await prune(other, "last=forever")
        fetched: Callable[..., object] = remote.get
        asked: list[str] = []

        async def get(key: str, *arguments: object) -> object:
            asked.append(key)
            return await fetched(key, *arguments)  # type: ignore[misc]

        remote.get = get  # type: ignore[method-assign, assignment]
        planned = await prune(other, dry_run=True)
        assert not asked
        stray = pack_key(PackId(bytes(32)))
        remote.objects[stray] = b"a pack of somebody else"
        assert await prune(other, dry_run=True) == planned
        assert {key.split("/")[0] for key in asked} == {"index"}, "to know whose that is"
        del remote.get, remote.objects[stray]
        assert await prune(other) == planned
        await world.check()


async def test_a_remote_that_refuses_to_delete_is_pruned_later(tmp_path: Path) -> None:
    remote = Remote()
    async with opened(tmp_path / "data", remote) as peer:
        world = World(peer, remote, tmp_path)
        await world.churn(random.Random(7))
        for prefix in ("snapshots/", "index/", "packs/"):
            error = RemoteRefused("no permission")
            async with FaultyBackend(remote, Fault(operation="delete", prefix=prefix, error=error)) as faulty:
                peer.engine.thinner._backend = faulty
                with pytest.raises(RemoteRefused):
                    await prune(peer)
            peer.engine.thinner._backend = remote
            for place, record in RemoteView(remote.objects).snapshots().items():
                same(RemoteView(remote.objects).picture(record.root), world.pictures[place])
        await prune(peer)
        await world.check()
        assert not peer.meta.doomed.keys("", -1)


async def test_it_may_be_killed_anywhere(tmp_path: Path) -> None:
    """What is left at any moment is whole for whoever reads, and the next prune ends it."""
    rng = random.Random(8)
    remote = Remote()
    async with opened(tmp_path / "data", remote) as peer:
        world = World(peer, remote, tmp_path)
        for n in range(8):
            await peer.file(b"f%d" % n, rng.randbytes(100_000))
        await world.publish()
        for n in range(6):
            peer.file_system.unlink(ROOT_INODE, b"f%d" % n)
            await peer.file(b"g%d" % n, rng.randbytes(70_000))
            await world.publish()
        step = 1 if LONG else 19
        moments = Moments(tmp_path / "data", remote, lambda n: n % step == 3 % step)
        with moments.watched():
            plan = await prune(peer)
        assert plan.rewritten_packs and plan.deleted_packs and plan.going
        assert moments.count > 30
        await world.check()
    for moment in moments.kept:
        await go_on(moment, world.pictures, tmp_path)


async def test_one_that_is_killed_leaves_nothing_in_the_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = tmp_path / "data"
    seen: list[list[Path]] = []

    class Watched(Remote):
        async def delete(self, key: str) -> None:
            seen.append([path for path in tmp_path.iterdir() if path != folder])
            await super().delete(key)

    async with opened(folder, Watched()) as peer:
        for n in range(2):
            await peer.file(b"f", random.Random(n).randbytes(100_000))
            await peer.publish()
            peer.file_system.unlink(ROOT_INODE, b"f")
        plan = await prune(peer)
    assert plan.deleted_packs and seen and not any(seen), seen


async def test_who_takes_over_during_a_prune_relies_on_nothing_that_goes(tmp_path: Path) -> None:
    """Its view of the packs is older than the deletion: it must not write with that."""
    remote = Remote()
    content = random.Random(1).randbytes(300_000)
    async with opened(tmp_path / "data", remote) as peer:
        world = World(peer, remote, tmp_path)
        await peer.file(b"goes", content)
        await peer.file(b"stays", b"s" * 1000)
        await world.publish()
        peer.file_system.unlink(ROOT_INODE, b"goes")
        await world.publish()
        done = False

        class Slow(Remote):
            """The index was read; then the other machine prunes."""

            async def put(self, key: str, data: bytes | memoryview) -> None:
                nonlocal done
                if key.startswith("peers/") and not done:
                    done = True
                    await prune(peer)
                await super().put(key, data)

        slow = Slow()
        slow.objects = remote.objects
        with pytest.raises(RemoteUnreachable):
            async with opened(tmp_path / "other", slow, take_over=True):
                pass
    async with opened(tmp_path / "other", slow) as other:
        assert other.membership.read_only_reason is None
        await other.file(b"again", content)
        await other.publish()
        same(await built_from(slow, tmp_path / "new"), await other.picture_as_read())
