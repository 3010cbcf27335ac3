"""Random work with snapshots, deletions, restorations, prunes, merges of index objects, evictions, crashes and lost
machines: every snapshot stays what it was.

The model is a picture taken at the moment of each snapshot. After every prune what the remote alone says is compared
with it, byte for byte, and the check finds nothing.
"""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from syncer.backends.memory import MemoryBackend
from syncer.snapshots.retention import parse
from syncer.values import ROOT_INODE
from tests.snapshots.pruning import Moments, World, check_whole, packs, prune
from tests.snapshots.rig import Picture, Remote, built_from, opened, same
from tests.support.long_form import LONG
from tests.support.opened import evict_all
from tests.support.remote_view import RemoteView, remote_findings

STEPS = 10_000 if LONG else 60
LIVES = 40 if LONG else 3
END_MOMENTS = 60
"""About so many moments a prune has at which it may be killed."""


@pytest.mark.parametrize("seed", [1] if not LONG else [1, 2])
async def test_random_work_with_prunes_and_crashes(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("merging.MANY", 4), ("merging.NEWEST", 3), ("merging.LOOK_EVERY", 2)):
        monkeypatch.setattr(f"syncer.snapshots.{name}", value)
    for name, value in (("SMALL_PACKS", 12), ("SMALL_INDEXES", 5)):
        monkeypatch.setattr(f"syncer.meta.marks.{name}", value)
    rng = random.Random(seed)
    remote = Remote()
    pictures: dict[tuple[int, int], Picture] = {}
    contents: dict[int, bytearray] = {}
    for life in range(LIVES):
        data = tmp_path / f"data{life}"
        async with opened(data, remote, take_over=True) as peer:
            await peer.engine.history.refresh()  # of a machine that was built from the remote
            peer.contents = contents
            world = World(peer, remote, tmp_path)
            world.pictures = pictures
            for step in range(STEPS // LIVES):
                await _step(world, rng, f"l{life}-{step}")
            contents = peer.contents
            await world.publish()
            remote = await _end(world, rng, data, tmp_path / f"data{life + 1}")
        shutil.rmtree(data)
    same(await built_from(remote, tmp_path / "new"), pictures[max(RemoteView(remote.objects).snapshots())])


async def _end(world: World, rng: random.Random, data: Path, following: Path) -> Remote:
    """Prune, and end as by a kill: at rest, in the middle of the prune, or with DATA lost.

    What the next life finds of it is in the folder *following*, if anything, and on the remote that is returned.
    """
    at = rng.randrange(END_MOMENTS)
    moments = Moments(data, world.remote, lambda count: count == at)
    with moments.watched():
        await world.peer.engine.merger.merge()
        await prune(world.peer, rng.choice(["none", "last=forever"]))
    await world.check()
    same(await world.peer.picture_as_read(), world.peer.picture())
    remote = Remote()
    remote.objects = world.remote.objects
    match rng.randrange(3):
        case 0 if moments.kept:
            check_whole(moments.kept[0].objects, world.pictures)
            moments.kept[0].data.rename(following)
            remote.objects = dict(moments.kept[0].objects)
        case 1:
            shutil.copytree(data, following)
    for moment in moments.kept:
        shutil.rmtree(moment.data, ignore_errors=True)
    return remote


async def _step(world: World, rng: random.Random, label: str) -> None:
    await world.peer.change(rng)
    match rng.randrange(20):
        case 0 | 1 | 2:
            await world.publish()
        case 3:
            await world.publish(label)
        case 4 if len(world.peer.meta.snapshots.places()) > 1:
            await world.delete(rng)
        case 5 if world.peer.meta.snapshots.head() is not None:
            await prune(world.peer, rng.choice(["none", "last=forever", "hourly=1h"]))
            await world.check()
        case 6:
            evict_all(world.peer.engine)
        case 7 if world.peer.meta.snapshots.head() is not None:
            await world.restore(rng)
        case 8 | 9 if await world.peer.engine.merger.merge():
            await world.check()


async def test_writing_and_publishing_go_on_meanwhile(tmp_path: Path) -> None:
    """Several prunes while files are written, bytes come back that were just forgotten, and snapshots are taken."""
    rng = random.Random(3)
    remote = Remote()
    contents = [rng.randbytes(90_000) for _ in range(6)]
    async with opened(tmp_path / "data", remote) as peer:
        world = World(peer, remote, tmp_path)
        await world.churn(rng, 3)
        stop = False

        async def write() -> None:
            count = 0
            while not stop:
                count += 1
                await peer.file(b"w%d" % count, rng.choice(contents))
                for _ in range(3):
                    await peer.change(rng)
                if count % 3 == 0:
                    await world.publish()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            for _ in range(20 if LONG else 4):
                await prune(peer)
            stop = True
        await world.publish()
        await world.check()
        await prune(peer)
        await world.check()
        same(await peer.picture_as_read(), peer.picture())
    same(await built_from(remote, tmp_path / "new"), world.pictures[max(world.pictures)])


async def test_it_is_pruned_by_itself(tmp_path: Path) -> None:
    """Once more is dead than should be, and it has not been counted for long."""
    remote = MemoryBackend()
    async with opened(tmp_path / "data", remote) as peer:
        world = World(peer, remote, tmp_path)
        engine = peer.engine
        engine.housekeeper.policy = parse("none")
        engine.publisher.on_published = engine.housekeeper.wake
        async with trio.open_nursery() as nursery:
            nursery.start_soon(engine.housekeeper.run)
            number = await peer.file(b"f", b"")
            for n in range(75):
                await peer.write(number, 0, random.Random(n).randbytes(80_000))
                await world.publish()
            await _until(lambda: len(remote.objects) < 120 and packs(remote) < 40 * 80_000)
            await _until(lambda: set(RemoteView(remote.objects).snapshots()) == set(peer.meta.snapshots.places()))
            nursery.cancel_scope.cancel()  # not between the removal of a snapshot and the note of it
        await world.check()


async def _until(holds: Callable[[], bool]) -> None:
    with trio.fail_after(60):
        while not holds():
            await trio.sleep(0.01)


async def test_a_check_meanwhile_finds_nothing(tmp_path: Path) -> None:
    remote = Remote()
    rng = random.Random(4)
    async with opened(tmp_path / "data", remote) as peer:
        world = World(peer, remote, tmp_path)
        for round_ in range(3):
            for n in range(4):
                await peer.file(b"f%d-%d" % (round_, n), rng.randbytes(90_000))
                await world.publish()
            for n in range(3):
                peer.file_system.unlink(ROOT_INODE, b"f%d-%d" % (round_, n))
            await world.publish()
            found: list[str] = []
            async with trio.open_nursery() as nursery:
                nursery.start_soon(prune, peer)
                for _ in range(3):
                    found += await remote_findings(remote, peer.meta.database.path, tmp_path)
            assert not found, found
