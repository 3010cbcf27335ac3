"""A mount that follows, while its remote is away, pruned, or written by others."""

import itertools
import shutil
from pathlib import Path

import pytest
import trio

from syncer.backends.base import ObjectInfo
from syncer.errors import RemoteUnreachable
from syncer.snapshots import merging, repository
from syncer.snapshots.reading import INDEXES_GONE
from syncer.snapshots.watch import Watch
from syncer.values import ROOT_INODE
from tests.fs.follower import Kernel, followers_of, following, look_at_all, number_of, out_of_reach, writer_and_follower
from tests.snapshots.pruning import prune
from tests.snapshots.rig import Remote, opened
from tests.support.opened import evict_all


async def test_another_writer_is_followed(tmp_path: Path) -> None:
    remote = Remote()
    async with (
        writer_and_follower(tmp_path, remote) as (_, follower, kernel),
        opened(tmp_path / "other", remote, take_over=True) as other,
    ):
        await other.file(b"another", b"machine")
        await other.publish()
        look_at_all(follower)
        await follower.step()
        assert follower.shown is not None and follower.shown.peer == 2
        await kernel.states(await other.picture_as_read())
        await other.file(b"more", b"of it")
        await other.publish()
        await follower.step()
        assert await kernel.content(b"/more") == b"of it"


async def test_a_snapshot_that_is_deleted_while_it_is_shown_is_left(tmp_path: Path) -> None:
    """Its record was deleted by somebody who took this machine for gone, and then all that it needed."""
    remote = Remote()
    async with writer_and_follower(tmp_path, remote) as (writer, follower, kernel):
        await kernel.states(writer.picture())
        for key in followers_of(remote):
            del remote.objects[key]
        writer.truncate(number_of(writer, b"one", b"file"), 0)
        await writer.write(number_of(writer, b"one", b"file"), 0, b"new")
        await writer.publish()
        await prune(writer)
        evict_all(follower._engine)
        follower._history._decoded._nodes.clear()
        look_at_all(follower)
        await follower.step()
        await kernel.states(writer.picture())
        assert len(followers_of(remote)) == 1


async def test_a_record_that_somebody_deleted_is_put_again(tmp_path: Path) -> None:
    remote = Remote()
    async with writer_and_follower(tmp_path, remote) as (_, follower, _):
        (record,) = followers_of(remote)
        del remote.objects[record]
        look_at_all(follower)
        await follower.step()
        assert len(followers_of(remote)) == 1 and record not in followers_of(remote)


async def test_what_a_prune_has_moved_is_found(tmp_path: Path) -> None:
    remote = Remote()
    async with writer_and_follower(tmp_path, remote) as (writer, follower, kernel):
        for n in range(30):
            await writer.file(b"n%02d" % n, bytes([n]) * 30_000)
        await writer.publish()
        await follower.step()
        for n in range(0, 30, 2):
            writer.file_system.unlink(ROOT_INODE, b"n%02d" % n)
        await writer.publish()
        await follower.step()
        packs = {key for key in remote.objects if key.startswith("packs/")}
        assert (await prune(writer)).rewritten_packs
        assert not packs <= set(remote.objects)
        evict_all(follower._engine)
        await kernel.states(writer.picture())


async def test_without_a_snapshot_the_mount_is_empty_until_there_is_one(tmp_path: Path) -> None:
    remote = Remote()
    async with opened(tmp_path / "writer", remote) as writer, following(tmp_path / "follower", remote) as follower:
        kernel = Kernel(follower)
        assert await kernel.list(ROOT_INODE) == set() and await kernel.find(b"/file") is None
        await kernel.stat(ROOT_INODE)
        await writer.file(b"file", b"at last")
        await writer.publish()
        look_at_all(follower)
        await follower.step()
        await kernel.states(writer.picture())
        assert await kernel.content(b"/file") == b"at last"


async def test_a_follower_begins_anew_where_most_of_what_it_knew_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repository, "OUTDATED_MIN", 2)
    remote = Remote()
    async with opened(tmp_path / "writer", remote) as writer:
        for n in range(6):
            await writer.file(b"n%d" % n, bytes([n]) * 100_000)
            await writer.publish()
        async with following(tmp_path / "follower", remote) as follower:
            await Kernel(follower).states(writer.picture())
            known = follower._engine.meta.blocks.content_totals()[1]
            machine = follower._needs._machine
        for n in range(5):
            writer.file_system.unlink(ROOT_INODE, b"n%d" % n)
        await writer.publish()
        await prune(writer)
        async with following(tmp_path / "follower", remote) as follower:
            await Kernel(follower).states(writer.picture())
            assert follower._engine.meta.blocks.content_totals()[1] < known / 2
            assert follower._needs._machine == machine
            assert len(followers_of(remote)) == 1
        assert followers_of(remote) == []


async def test_a_follower_keeps_what_it_knows_where_index_objects_were_only_merged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repository, "OUTDATED_MIN", 2)
    monkeypatch.setattr(merging, "MANY", 4)
    remote = Remote()
    async with opened(tmp_path / "writer", remote) as writer:
        for n in range(6):
            await writer.file(b"n%d" % n, bytes([n]) * 100_000)
            await writer.publish()
        async with following(tmp_path / "follower", remote) as follower:
            kernel = Kernel(follower)
            await kernel.states(writer.picture())
            assert await writer.engine.merger.merge() == 6
            await writer.file(b"more", b"of it")
            await writer.publish()
            look_at_all(follower)
            await follower.step()
            await kernel.states(writer.picture())
            state = follower._engine.meta.database
            assert state.state_integer(INDEXES_GONE) == 6
            state.set_state("here since", 1)
        async with following(tmp_path / "follower", remote) as follower:
            state = follower._engine.meta.database
            assert state.state_integer("here since"), "it has begun anew"
            assert state.state_integer(INDEXES_GONE) == 0
            await Kernel(follower).states(writer.picture())


async def test_records_that_somebody_deleted_are_put_again_after_an_attempt_that_failed(tmp_path: Path) -> None:
    remote = Remote()
    async with writer_and_follower(tmp_path, remote) as (writer, follower, kernel):
        file = await kernel.open(b"/one/file")
        await writer.write(file.number, 0, b"new")
        await writer.publish()
        await follower.step()
        assert len(followers_of(remote)) == 2
        for key in followers_of(remote):
            del remote.objects[key]

        def refuse(key: str) -> None:
            raise RemoteUnreachable("it went away")

        remote.on_put = refuse
        look_at_all(follower)
        with pytest.raises(RemoteUnreachable):
            await follower.step()
        remote.on_put = lambda key: None
        look_at_all(follower)
        await follower.step()
        assert len(followers_of(remote)) == 2, "one for what is shown, one for the open file"
        kernel.tree.release(file.handle)


async def test_what_was_opened_without_the_remote_is_needed_as_soon_as_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = Remote()
    async with writer_and_follower(tmp_path, remote) as (writer, follower, _):
        await follower.end(10.0)
        follower._engine.meta.commit()
        with monkeypatch.context() as patch:
            patch.setattr(Watch, "first", out_of_reach)
            shutil.copytree(tmp_path / "follower", tmp_path / "again")
            async with following(tmp_path / "again", remote) as again:
                kernel = Kernel(again)
                file = await kernel.open(b"/one/file")
                await writer.write(file.number, 0, b"new")
                await writer.publish()
                await again.step()
                assert len(followers_of(remote)) == 2, "one for what is shown, one for the open file"
                kernel.tree.release(file.handle)


async def test_what_is_not_known_is_an_error_and_not_an_empty_mount(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who copies a mount with what copies deletions would lose everything."""
    remote = Remote()
    async with opened(tmp_path / "writer", remote) as writer:
        await writer.file(b"file", b"content")
        await writer.publish()
        with monkeypatch.context() as patch:
            patch.setattr(Watch, "first", out_of_reach)
            async with following(tmp_path / "follower", remote) as follower:
                kernel = Kernel(follower)
                await kernel.stat(ROOT_INODE)
                with pytest.raises(RemoteUnreachable):
                    await kernel.list(ROOT_INODE)
                with pytest.raises(RemoteUnreachable):
                    await kernel.find(b"/file")
                await follower.step()
                await kernel.states(writer.picture())


async def test_an_index_that_a_prune_replaces_while_they_are_read_is_no_trouble(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = Remote()
    async with opened(tmp_path / "writer", remote) as writer:
        for n in range(4):
            await writer.file(b"n%d" % n, bytes([n]) * 100_000)
            await writer.publish()
        stat_of, asked = remote.stat, list[str]()

        async def stat_of_what_just_went(key: str) -> ObjectInfo:
            if key.startswith("index/") and not asked:
                asked.append(key)
                await prune(writer)
                assert key not in remote.objects
            return await stat_of(key)

        monkeypatch.setattr(remote, "stat", stat_of_what_just_went)
        async with following(tmp_path / "follower", remote) as follower:
            assert asked and follower.shown is not None
            await Kernel(follower).states(writer.picture())


async def test_a_defect_is_logged_once_and_tried_again_ever_more_seldom(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mock_clock: trio.testing.MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    mock_clock.rate = 1.0
    remote = Remote()
    async with opened(tmp_path / "writer", remote) as writer:
        await writer.publish()
    async with following(tmp_path / "follower", remote) as follower, trio.open_nursery() as nursery:
        steps: list[float] = []
        enough = trio.Event()

        async def step() -> None:
            steps.append(trio.current_time())
            if len(steps) > 7:
                enough.set()
            if len(steps) != 6:
                raise ZeroDivisionError(f"planned {len(steps) % 2}")

        monkeypatch.setattr(follower, "step", step)
        mock_clock.rate = 0.0
        mock_clock.autojump_threshold = 0
        nursery.start_soon(follower.run)
        await enough.wait()
        nursery.cancel_scope.cancel()
    pauses = [round(after - before) for before, after in itertools.pairwise(steps)]
    assert pauses == [4, 8, 8, 8, 8, 2, 4]
    assert caplog.text.count("ZeroDivisionError: planned 0") == 2, "again after one that went well"
    assert caplog.text.count("ZeroDivisionError: planned 1") == 2
