"""Bringing back the past with damage, kills, others at work, and no remote; and long files."""

import random
import shutil
import stat
from pathlib import Path

import pytest
import trio

from syncer.blocks.pack import pack_key
from syncer.errors import RemoteUnreachable, SyncerError, UsageError
from syncer.values import ROOT_INODE
from tests.fs.restoration import album, assert_same, content, remove, restore, snapshot
from tests.snapshots.rig import ME, Peer, Remote, built_from, opened
from tests.support.core_check import check_tables
from tests.support.opened import evict_all


class _Stop(Exception):
    """The process is killed here."""


async def long_file(peer: Peer) -> int:
    """A file of 1,500 extents, all of one block."""
    source = await peer.file(b"source", random.Random(3).randbytes(60_000))
    await peer.publish()
    (found,) = peer.meta.extents.find(source, 0, 60_000)
    block = peer.meta.blocks.get(found.source).id
    number = peer.file_system.create(ROOT_INODE, b"long", stat.S_IFREG | 0o644, ME).number
    parts = [(index * 1000, 500, block, index) for index in range(1500)]
    peer.file_system.io.relink(number, 0, 0, parts, 1_600_000)
    return number


async def test_without_the_remote_what_is_known_here_is_restored(tmp_path: Path) -> None:
    remote = Remote()
    async with opened(tmp_path / "data", remote) as peer:
        await album(peer)
        shot = await snapshot(peer)
        before = peer.picture()
        await restore(peer, shot, dry_run=True)
        remove(peer, b"/photos/2019")
        await restore(peer, shot, dry_run=True)  # brings the nodes
        remote.get = remote.list = remote.put = None  # type: ignore[assignment, method-assign]
        report = await restore(peer, shot, b"photos", snapshot_first=False)
        assert not report.problems
        assert_same(peer.picture(), before)


@pytest.mark.parametrize("change", ["deleted", "cut off", "written over", "longer", "emptied"])
async def test_long_files(tmp_path: Path, change: str) -> None:
    remote = Remote()
    async with opened(tmp_path / "data", remote) as peer:
        number = await long_file(peer)
        before = await content(peer, number)
        shot = await snapshot(peer)
        match change:
            case "deleted":
                remove(peer, b"/long")
            case "cut off":
                peer.truncate(number, 700_300)
            case "written over":
                await peer.write(number, 700_300, b"x" * 30_000)
            case "longer":
                await peer.write(number, 1_600_000, b"x" * 300_000)
            case _:
                peer.truncate(number, 0)
                await peer.write(number, 0, b"small")
        report = await restore(peer, shot)
        assert not report.problems
        assert await content(peer, number) == before
        assert peer.file_system.getattr(number).size == 1_600_000
        after = await snapshot(peer)
        assert shot.unique_bytes == after.unique_bytes
    async with opened(tmp_path / "other", remote, read_only=True) as peer:
        assert await content(peer, number) == before


@pytest.mark.parametrize("after", [1, 2, 3])
async def test_a_long_copy_that_was_killed_is_finished_by_the_next(tmp_path: Path, after: int) -> None:
    remote = Remote()
    async with opened(tmp_path / "alive", remote) as peer:
        before = await content(peer, await long_file(peer))
        shot = await snapshot(peer)
        relink, count = peer.file_system.io.relink, 0

        def counted(*arguments: object) -> None:
            nonlocal count
            relink(*arguments)  # type: ignore[arg-type]
            count += 1
            if count == after:
                peer.meta.commit()
                shutil.copytree(tmp_path / "alive", tmp_path / "killed")
                raise _Stop

        peer.file_system.io.relink = counted  # type: ignore[method-assign, assignment]
        with pytest.raises(_Stop):
            await restore(peer, shot, b"long", to=b"copies")
    async with opened(tmp_path / "killed", remote.copy()) as peer:
        for dry_run in (True, False):
            await restore(peer, shot, b"long", to=b"copies", dry_run=dry_run)
        copies = peer.file_system.names.lookup(ROOT_INODE, b"copies")
        assert copies is not None
        copy = peer.file_system.names.lookup(copies.number, b"long")
        assert copy is not None and await content(peer, copy.number) == before
        await peer.write(copy.number, 1_300_000, b"x")
        with pytest.raises(UsageError, match="long is there already"):
            await restore(peer, shot, b"long", to=b"copies")
        peer.truncate(copy.number, 1_200_000)
        await peer.write(copy.number, 100, b"x")
        with pytest.raises(UsageError, match="long is there already"):
            await restore(peer, shot, b"long", to=b"copies")


@pytest.mark.parametrize("what", ["zeros", "the begin, and zeros"])
async def test_a_file_that_no_killed_copy_leaves_is_not_replaced(tmp_path: Path, what: str) -> None:
    async with opened(tmp_path / "data", Remote()) as peer:
        number = await long_file(peer)
        shot = await snapshot(peer)
        copies = peer.directory(b"copies")
        if what == "zeros":
            mine = await peer.file(b"long", b"", copies)
        else:
            await restore(peer, shot, b"long", to=b"copies")
            found = peer.file_system.names.lookup(copies, b"long")
            assert found is not None
            mine = found.number
            peer.truncate(mine, 700_500)
        peer.truncate(mine, 1_500_000)
        before = await content(peer, mine)
        with pytest.raises(UsageError, match="long is there already"):
            await restore(peer, shot, b"long", to=b"copies")
        assert await content(peer, mine) == before != await content(peer, number)


async def test_an_empty_file_is_no_copy_of_what_is_no_file(tmp_path: Path) -> None:
    async with opened(tmp_path / "data", Remote()) as peer:
        peer.file_system.create(ROOT_INODE, b"pipe", stat.S_IFIFO | 0o640, ME)
        peer.file_system.create(ROOT_INODE, b"device", stat.S_IFCHR | 0o600, ME, rdev=259)
        shot = await snapshot(peer)
        copies = peer.directory(b"copies")
        await peer.file(b"pipe", b"", copies)
        peer.file_system.create(copies, b"device", stat.S_IFCHR | 0o600, ME, rdev=260)
        for name in (b"pipe", b"device"):
            with pytest.raises(UsageError, match="is there already"):
                await restore(peer, shot, name, to=b"copies")
            found = peer.file_system.names.lookup(copies, name)
            assert found is not None and (name == b"pipe") == stat.S_ISREG(found.mode)


async def test_a_block_that_is_damaged_is_named_and_its_file_is_there(tmp_path: Path) -> None:
    remote = Remote()
    async with opened(tmp_path / "data", remote) as peer:
        number = await peer.file(b"file", b"x" * 100_000)
        await peer.file(b"other", b"y" * 100_000)
        shot = await snapshot(peer)
        evict_all(peer.engine)
        block = peer.meta.blocks.get(peer.meta.extents.find(number, 0, 1)[0].source)
        assert block.location is not None
        del remote.objects[pack_key(block.location.pack)]
        handle = peer.file_system.open(number, 0)
        with pytest.raises(SyncerError):
            await peer.file_system.read(handle, 0, 10)
        peer.file_system.release(handle)
        peer.file_system.unlink(ROOT_INODE, b"file")
        report = await restore(peer, shot, snapshot_first=False)
        assert [problem.path for problem in report.problems] == [b"file"]
        handle = peer.file_system.open(number, 0)
        with pytest.raises(SyncerError):
            await peer.file_system.read(handle, 0, 10)
        peer.file_system.release(handle)


async def test_a_block_that_nobody_knows_leaves_the_file_as_it_is(tmp_path: Path) -> None:
    remote = Remote()
    async with opened(tmp_path / "data", remote) as peer:
        await peer.file(b"file", b"x" * 100_000)
        await peer.file(b"small", b"sound")
        shot = await snapshot(peer)
        remove(peer, b"/file")
        remove(peer, b"/small")
        await peer.publish()
        peer.meta.commit()
        peer.meta.database.connection.execute("DELETE FROM blocks WHERE kind = 0 AND size = 100000")
        for key in [key for key in remote.objects if key.startswith("index/")]:
            del remote.objects[key]
        report = await restore(peer, shot)
        assert [problem.path for problem in report.problems] == [b"file"]
        assert "is in no index" in report.problems[0].reason
        assert set(peer.picture()) == {b"", b"/small"}


@pytest.mark.parametrize("after", [1, 4, 9])
async def test_one_that_was_killed_is_finished_by_the_next(tmp_path: Path, after: int) -> None:
    remote = Remote()
    async with opened(tmp_path / "alive", remote) as peer:
        year = await album(peer)
        before = peer.picture()
        shot = await snapshot(peer)
        remove(peer, b"/photos/2019/large")
        remove(peer, b"/photos/2019/one")
        remove(peer, b"/photos/other")
        await peer.write(await peer.file(b"newer", b"1", year), 0, b"22")
        room, count = peer.file_system.room, 0

        async def counted(amount: int = 0) -> None:
            nonlocal count
            count += 1
            if count > after:
                shutil.copytree(tmp_path / "alive", tmp_path / "killed")
                raise _Stop
            await room(amount)

        peer.file_system.room = counted  # type: ignore[method-assign]
        try:
            await restore(peer, shot, delete=True)
        except _Stop:
            pass
        else:
            shutil.copytree(tmp_path / "alive", tmp_path / "killed")
        peer.file_system.room = room  # type: ignore[method-assign]
    async with opened(tmp_path / "killed", remote) as peer:
        report = await restore(peer, shot, delete=True)
        assert not report.problems
        assert_same(await peer.picture_as_read(), before)


async def test_a_read_only_file_system_is_not_restored(tmp_path: Path) -> None:
    remote = Remote()
    async with opened(tmp_path / "data", remote) as peer:
        await album(peer)
        shot = await snapshot(peer)
    async with opened(tmp_path / "other", remote, read_only=True) as peer:
        with pytest.raises(OSError, match="read-only"):
            await restore(peer, shot)
        assert (await restore(peer, shot, dry_run=True)).planned == []


@pytest.mark.parametrize("seed", range(2))
async def test_others_go_on_changing_things_meanwhile(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    remote = Remote()
    async with opened(tmp_path / "data", remote) as peer:
        await album(peer)
        for _ in range(60):
            await peer.change(rng)
        shot = await snapshot(peer)
        for _ in range(60):
            await peer.change(rng)
        done = False

        async def change() -> None:
            for _ in range(300):
                if not done:
                    await peer.change(rng)
                    await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(change)
            for delete in (True, False, True):
                await restore(peer, shot, delete=delete)
            done = True
        report = await restore(peer, shot, delete=True)
        assert not report.problems
        peer.meta.commit()
        check_tables(peer.meta, set(peer.meta.inodes.orphans()))
        expected = await peer.picture_as_read()
        await peer.publish(released=True)
        assert remote.snapshots()[-1].files == shot.files
    assert_same(await built_from(remote, tmp_path / "other"), expected)


async def test_a_remote_that_is_away_is_no_reason_to_lose_what_is_new(tmp_path: Path) -> None:
    remote = Remote()
    async with opened(tmp_path / "data", remote) as peer:
        number = await peer.file(b"file", b"old")
        shot = await snapshot(peer)
        await peer.write(number, 0, b"new")

        async def away(key: str, *_: object) -> bytes:
            raise RemoteUnreachable("the line is cut")

        remote.put = remote.stat = away  # type: ignore[assignment, method-assign]
        with pytest.raises(RemoteUnreachable, match="no snapshot can be taken before") as caught:
            await restore(peer, shot)
        assert "--no-snapshot" in caught.value.hint
        handle = peer.file_system.open(number, 0)
        assert await peer.file_system.read(handle, 0, 10) == b"new"
        peer.file_system.release(handle)


async def test_what_is_not_sealed_gives_way_too(tmp_path: Path) -> None:
    async with opened(tmp_path / "data", Remote()) as peer:
        number = await peer.file(b"file", b"old" * 60_000)
        small = await peer.file(b"small", b"old")
        await peer.publish()
        parts = [
            (extent.start, extent.length, peer.meta.blocks.get(extent.source).id, extent.source_offset)
            for extent in peer.meta.extents.find(number, 0, 180_000)
        ]
        await peer.write(number, 70_000, b"over" * 5000)
        await peer.write(number, 180_000, b"behind" * 5000)
        await peer.write(small, 0, b"content")
        for one in (number, small):
            peer.file_system.io.relink(one, 0, 300_000, parts, 180_000)
            assert (await content(peer, one)) == b"old" * 60_000
        peer.meta.commit()
        check_tables(peer.meta, set())
        await peer.publish()
        assert peer.file_system.state(peer.file_system.getattr(number)) == b"uploaded"
