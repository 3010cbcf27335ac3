"""What comes in between, or has come long before: a prune must still know all that is needed."""

import random
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
import trio

from syncer.backends.base import ObjectInfo
from syncer.backends.faulty import Fault, FaultyBackend
from syncer.blocks.pack import pack_key
from syncer.errors import ObjectCorrupt, ObjectMissing, RemoteRefused, RemoteUnreachable
from syncer.snapshots.history import Snapshot
from syncer.snapshots.inventory import take_inventory
from syncer.snapshots.prune import _Run
from syncer.snapshots.records import PackListing
from syncer.snapshots.retention import parse
from syncer.values import ROOT_INODE, BlockId, PackId
from tests.snapshots.pruning import World, prune
from tests.snapshots.rig import ME, Peer, Remote, opened
from tests.support.opened import evict_all
from tests.support.remote_view import RemoteView


def _came_back(peer: Peer, directory_tree: bytes) -> int:
    """Have a node another number, as if it had been forgotten and stored again; returns that."""
    execute = peer.meta.nodes.execute
    peer.meta.database.begin()
    old = execute("SELECT number FROM blocks WHERE id = ?", (directory_tree,)).fetchone()[0]
    new = int(execute("SELECT max(number) + 1000 FROM blocks").fetchone()[0])
    execute("UPDATE node_refs SET node = ? WHERE node = ?", (new, old))
    execute("UPDATE read_nodes SET node = ? WHERE node = ?", (new, old))
    execute("UPDATE blocks SET number = ? WHERE number = ?", (new, old))
    peer.meta.commit()
    return new


async def test_nodes_that_came_back_one_below_the_other_are_all_found(tmp_path: Path) -> None:
    """What names a node knows its old number; what it names then may know old numbers in turn."""
    remote = Remote()
    async with opened(tmp_path / "data", remote) as peer:
        world = World(peer, remote, tmp_path)
        chain: list[int] = [ROOT_INODE]
        for name in (b"a", b"b", b"c"):
            chain.append(peer.directory(name, chain[-1]))
        parent = chain[-1]
        await peer.file(b"x", b"x" * 300_000, parent)
        await world.publish()
        execute = peer.meta.nodes.execute
        trees = [execute("SELECT id FROM trees WHERE inode = ?", (inode,)).fetchone()[0] for inode in chain[1:]]
        peer.file_system.unlink(parent, b"x")
        await world.publish()
        numbers = [_came_back(peer, tree) for tree in reversed(trees)]
        pruner = peer.engine.pruner
        async with pruner._marks() as marks:
            await take_inventory(
                peer.meta, remote, peer.engine.history, marks, lambda what, count: None, listing_only=False
            )
            await _Run(pruner, marks, [], lambda event: None).plan(0)
            assert all(marks.any_kept([number]) for number in numbers)


async def test_a_snapshot_that_is_about_to_be_deleted_is_not_learned_again(tmp_path: Path) -> None:
    remote = Remote()
    async with opened(tmp_path / "data", remote) as peer:
        world = World(peer, remote, tmp_path)
        await peer.file(b"f", b"1" * 100_000)
        await world.publish("labelled")
        await peer.file(b"g", b"2" * 100_000)
        await world.publish()
        history = peer.engine.history
        error = RemoteRefused("no permission")
        async with FaultyBackend(remote, Fault(operation="delete", prefix="snapshots/", error=error)) as faulty:
            peer.engine.thinner._backend = faulty
            with pytest.raises(RemoteRefused):
                await peer.engine.thinner.delete(history.known()[0])
        peer.engine.thinner._backend = remote
        await history.refresh()
        assert [one.label for one in history.known()] == [None]
        await prune(peer, "last=forever")
        await world.check()
        await prune(peer, "last=forever")


async def test_a_snapshot_that_is_thinned_out_while_a_prune_lists_does_not_stop_it(tmp_path: Path) -> None:
    """The listing shows it still, and it is gone when it is looked for."""

    class Thinned(Remote):
        def list(self, prefix: str = "") -> AsyncIterator[ObjectInfo]:  # type: ignore[override]
            return self._listed(prefix)

        async def _listed(self, prefix: str) -> AsyncIterator[ObjectInfo]:
            found = [info async for info in Remote.list(self, prefix)]
            if prefix == "snapshots/":
                await peer.engine.thinner.thin(parse("none"))
            for info in found:
                yield info

    remote = Remote()
    async with opened(tmp_path / "data", remote) as peer:
        world = World(peer, remote, tmp_path)
        for number in range(3):
            await peer.file(b"f%d" % number, b"%d" % number * 100_000)
            await world.publish()
        thinned = Thinned()
        thinned.objects = remote.objects
        peer.engine.pruner._backend = thinned
        await prune(peer, "none")
        peer.engine.pruner._backend = remote
        assert len(peer.meta.snapshots.places()) == 1
        await world.check()


async def test_a_lost_index_stops_it(tmp_path: Path) -> None:
    """What a node names that nobody knows may still lie in a pack that no index lists any more."""
    remote = Remote()
    async with opened(tmp_path / "data", remote) as peer:
        world = World(peer, remote, tmp_path)
        directory = peer.directory(b"d")
        number = await peer.file(b"x", b"x" * 300_000, directory)
        await world.publish()
        first = next(key for key in remote.objects if key.startswith("index/"))
        peer.file_system.create(ROOT_INODE, b"z", 0o100644, ME)
        await world.publish()
        await peer.engine.thinner.delete(peer.engine.history.known()[0])
        peer.file_system.unlink(directory, b"x")
        await peer.file(b"other", b"y" * 300_000, directory)
        del peer.contents[number]
        await peer.publish(released=True)
    lost = remote.objects.pop(first)
    async with opened(tmp_path / "other", remote) as other:
        for name in (b"f", b"g"):
            await other.file(name, name * 100_000)
            await other.publish()
            with pytest.raises(ObjectCorrupt):
                await prune(other, "last=forever")
    remote.objects[first] = lost
    view = RemoteView(remote.objects)
    for record in view.snapshots().values():
        view.picture(record.root)


async def test_a_snapshot_that_may_have_arrived_is_kept_whole(tmp_path: Path) -> None:
    """Its put ended in an error, and it is there all the same: what it names must not go."""
    remote = Remote()
    async with opened(tmp_path / "data", remote) as peer:
        world = World(peer, remote, tmp_path)
        content = b"x" * 300_000
        await peer.file(b"stays", b"s" * 200_000)
        await peer.file(b"first", content)
        await world.publish()
        peer.file_system.unlink(ROOT_INODE, b"first")
        await world.publish()
        drop = peer.engine.pruner._thinner.drop

        async def come_between(going: Sequence[Snapshot]) -> None:
            again = await peer.file(b"again", content)
            picture = peer.picture()
            fault = Fault(operation="get", prefix="snapshots/", error=RemoteUnreachable("the line is cut"), times=1)
            async with FaultyBackend(remote, fault) as faulty:
                peer.engine.publisher._backend = faulty
                with pytest.raises(RemoteUnreachable):
                    await peer.publish()
            peer.engine.publisher._backend = remote
            world.pictures[max(RemoteView(remote.objects).snapshots())] = picture
            peer.file_system.unlink(ROOT_INODE, b"again")
            peer.contents.pop(again)
            await drop(going)

        peer.engine.pruner._thinner.drop = come_between  # type: ignore[method-assign]
        await prune(peer)
        peer.engine.pruner._thinner.drop = drop  # type: ignore[method-assign]
        await world.publish()
        await peer.engine.history.refresh()
        await world.check()


async def test_a_block_that_moves_while_it_is_asked_for_is_read_from_its_new_pack(tmp_path: Path) -> None:
    remote = Remote()
    async with opened(tmp_path / "data", remote) as peer:
        world = World(peer, remote, tmp_path)
        for n in range(12):
            await peer.file(b"f%d" % n, random.Random(n).randbytes(100_000))
        await world.publish()
        for n in range(9):
            peer.file_system.unlink(ROOT_INODE, b"f%d" % n)
        await world.publish()
        evict_all(peer.engine)
        get = remote.get
        pruned = False

        async def late(key: str, offset: int = 0, length: int | None = None) -> bytes:
            nonlocal pruned
            if not pruned:
                pruned = True
                plan = await prune(peer)
                assert plan.rewritten_packs
            return await get(key, offset, length)

        fetcher = peer.engine.store.fetcher
        slow = Remote()
        slow.objects = remote.objects
        slow.get = late  # type: ignore[method-assign]
        fetcher._backend = slow
        number = peer.meta.names.lookup(ROOT_INODE, b"f10")
        assert number is not None
        handle = peer.file_system.open(number, 0)
        with trio.fail_after(30):
            assert await peer.file_system.read(handle, 0, 200_000) == random.Random(10).randbytes(100_000)
        peer.file_system.release(handle)
        assert pruned
        await world.check()


async def test_a_pack_that_was_doomed_while_room_was_made_for_it_is_not_relied_on(tmp_path: Path) -> None:
    remote = Remote()
    async with opened(tmp_path / "data", remote) as peer:
        await peer.file(b"f", b"1" * 100_000)
        await peer.publish()
        pack, block = PackId(b"p" * 32), BlockId(b"b" * 32)
        reserve = peer.engine.store.budget.reserve

        async def doomed(*arguments: object, **more: object) -> None:
            peer.meta.doomed.doom_packs([(pack_key(pack), pack)])
            await reserve(*arguments, **more)  # type: ignore[arg-type]

        peer.engine.store.budget.reserve = doomed  # type: ignore[method-assign]
        await peer.engine.history._learn_pack(PackListing(pack, 100, 0, ((block, 0, 10, 5),)), 1)
        assert not peer.meta.blocks.knows_pack(pack)
        assert peer.meta.blocks.find(block) is None


async def test_a_remote_that_is_empty_for_a_moment_makes_no_snapshot_unneeded(tmp_path: Path) -> None:
    """Its disk is unplugged after everything was listed, somebody looks at history, and it is plugged in again."""
    remote = Remote()
    async with opened(tmp_path / "data", remote) as peer, trio.open_nursery() as nursery:
        world = World(peer, remote, tmp_path)
        number = await peer.file(b"f", b"1" * 100_000)
        await world.publish("labelled")
        await peer.write(number, 0, random.Random(2).randbytes(100_000))
        await world.publish()
        unplugged: dict[str, bytes] = {}

        async def look() -> None:
            await peer.engine.history.refresh()
            remote.objects.update(unplugged)

        def tell(event: object) -> None:
            if "indexes" in str(event) and not unplugged:
                for key in [key for key in remote.objects if key.startswith("snapshots/")]:
                    unplugged[key] = remote.objects.pop(key)
                nursery.start_soon(look)

        await peer.engine.pruner.prune(parse("none"), tell)
        assert unplugged
        await world.check()


async def test_who_only_reads_finds_what_was_moved(tmp_path: Path) -> None:
    """Its view is that of its mount; the packs are those of now."""
    remote = Remote()
    async with opened(tmp_path / "data", remote) as peer:
        numbers = [await peer.file(b"f%d" % n, random.Random(n).randbytes(90_000)) for n in range(8)]
        world = World(peer, remote, tmp_path)
        await world.publish()
        async with opened(tmp_path / "reader", remote, read_only=True) as reader:
            for n in range(1, 8):
                peer.file_system.unlink(ROOT_INODE, b"f%d" % n)
            await world.publish()
            before = {key for key in remote.objects if key.startswith("packs/")}
            plan = await prune(peer)
            assert plan.rewritten_packs and before - remote.objects.keys()
            handle = reader.file_system.open(numbers[0], 0)
            assert await reader.file_system.read(handle, 0, 90_000) == random.Random(0).randbytes(90_000)
            moved = reader.meta.blocks.get(reader.meta.extents.find(numbers[0], 0, 90_000)[0].source).location
            assert moved is not None and pack_key(moved.pack) in remote.objects
            gone = reader.file_system.open(numbers[1], 0)
            with pytest.raises(ObjectMissing):
                await reader.file_system.read(gone, 0, 90_000)
