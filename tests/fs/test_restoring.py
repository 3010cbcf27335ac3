"""Bringing back states of the past, on an engine without a mount."""

import random
from pathlib import Path

import pytest

from syncer.errors import UsageError
from syncer.snapshots.history import Snapshot
from syncer.values import ROOT_INODE
from tests.fs.restoration import album, assert_same, links, remove, restore, snapshot
from tests.snapshots.pruning import prune
from tests.snapshots.rig import Picture, Remote, Seen, built_from, opened
from tests.support.opened import evict_all


async def test_a_deleted_album_comes_back_as_it_was(tmp_path: Path) -> None:
    remote = Remote()
    async with opened(tmp_path / "data", remote) as peer:
        await album(peer)
        before = peer.picture()
        shot = await snapshot(peer)
        remove(peer, b"/photos/2019")
        await peer.publish()
        evict_all(peer.engine)
        packs = [key for key in remote.taken if key.startswith("packs/")]
        report = await restore(peer, shot, b"photos")
        assert not report.problems
        assert_same(await peer.picture_as_read(), before)
        await peer.publish()
        new = [key for key in remote.taken if key.startswith("packs/") and key not in packs]
        assert sum(len(remote.objects[key]) for key in new) < 20_000, "bytes of files were sent again"
    assert_same(await built_from(remote, tmp_path / "other"), before)


async def test_a_second_restoration_has_nothing_to_do(tmp_path: Path) -> None:
    async with opened(tmp_path / "data", Remote()) as peer:
        await album(peer)
        shot = await snapshot(peer)
        remove(peer, b"/photos")
        assert (await restore(peer, shot)).made == 10
        again = await restore(peer, shot)
        assert (again.made, again.changed, again.removed) == (0, 0, 0)


async def test_what_is_newer_stays_unless_it_is_to_go(tmp_path: Path) -> None:
    async with opened(tmp_path / "data", Remote()) as peer:
        year = await album(peer)
        before = peer.picture()
        shot = await snapshot(peer)
        newer = peer.directory(b"newer", year)
        await peer.file(b"inside", b"1", newer)
        remove(peer, b"/photos/2019/small")
        report = await restore(peer, shot, b"photos")
        assert (report.made, report.left, report.removed) == (1, 1, 0)
        assert set(peer.picture()) == {*before, b"/photos/2019/newer", b"/photos/2019/newer/inside"}
        report = await restore(peer, shot, b"photos", delete=True)
        assert (report.made, report.left, report.removed) == (0, 0, 2)
        assert_same(peer.picture(), before)


async def test_an_open_file_has_its_old_bytes_again(tmp_path: Path) -> None:
    async with opened(tmp_path / "data", Remote()) as peer:
        number = await peer.file(b"file", b"x" * 200_000)
        small = await peer.file(b"note", b"first")
        shot = await snapshot(peer)
        handles = [peer.file_system.open(number, 2), peer.file_system.open(small, 2)]
        await peer.file_system.write(handles[0], 100, b"written over")
        await peer.file_system.write(handles[0], 200_000, b"appended")
        await peer.file_system.write(handles[1], 0, b"second, and longer")
        report = await restore(peer, shot)
        assert report.changed == 2
        assert await peer.file_system.read(handles[0], 0, 300_000) == b"x" * 200_000
        assert await peer.file_system.read(handles[1], 0, 100) == b"first"
        await peer.file_system.write(handles[1], 5, b" again")
        assert await peer.file_system.read(handles[1], 0, 100) == b"first again"


async def test_it_can_be_undone(tmp_path: Path) -> None:
    async with opened(tmp_path / "data", Remote()) as peer:
        number = await peer.file(b"file", b"old")
        shot = await snapshot(peer)
        await peer.write(number, 0, b"new and better")
        await peer.file(b"other", b"1")
        before = peer.picture()
        report = await restore(peer, shot, delete=True)
        known = peer.engine.history.known()
        assert report.before == known[-1].place and known[-1].reason == "before restore"
        undone = await restore(peer, known[-1], delete=True)
        assert not undone.problems
        assert_same(await peer.picture_as_read(), before)


async def test_what_is_written_while_the_snapshot_before_is_taken_can_be_brought_back_too(tmp_path: Path) -> None:
    """That may take long: it waits for all that is not on the remote yet."""
    async with opened(tmp_path / "data", Remote()) as peer:
        number = await peer.file(b"f", b"old")
        first = await snapshot(peer)
        await peer.write(number, 0, b"new")
        publish = peer.engine.publisher.publish

        async def slow(reason: str) -> frozenset[int]:
            lacking = await publish(reason)
            if peer.contents[number] == b"new":
                await peer.write(number, 0, b"newest")
            return lacking

        peer.engine.publisher.publish = slow  # type: ignore[method-assign, assignment]
        report = await restore(peer, first, b"f")
        assert (await peer.picture_as_read())[b"/f"].content == b"old"
        before = next(one for one in peer.engine.history.known() if one.place == report.before)
        await restore(peer, before, b"f", snapshot_first=False)
        assert (await peer.picture_as_read())[b"/f"].content == b"newest"


async def test_what_goes_on_being_written_while_snapshots_are_taken_before_is_left(tmp_path: Path) -> None:
    """The last of them lacks it, so nobody could bring it back."""
    async with opened(tmp_path / "data", Remote()) as peer:
        number = await peer.file(b"f", b"old")
        await peer.file(b"g", b"old")
        first = await snapshot(peer)
        publish, versions = peer.engine.publisher.publish, 0

        async def beside(reason: str) -> frozenset[int]:
            nonlocal versions
            lacking = await publish(reason)
            versions += 1
            await peer.write(number, 0, b"version %d" % versions)
            await peer.file(b"new %d" % versions, b"1")
            return lacking

        await peer.write(number, 0, b"version 0")
        remove(peer, b"/g")
        peer.engine.publisher.publish = beside  # type: ignore[method-assign, assignment]
        report = await restore(peer, first, delete=True)
        assert versions > 1
        assert [problem.path for problem in report.problems] == [b"f", b"new %d" % versions]
        now = {path: seen.content for path, seen in (await peer.picture_as_read()).items() if path}
        assert now == {b"/f": b"version %d" % versions, b"/g": b"old", b"/new %d" % versions: b"1"}


async def test_what_the_past_does_not_know_goes_when_that_is_asked_for(tmp_path: Path) -> None:
    """So bringing back what was deleted can be undone by the same path."""
    async with opened(tmp_path / "data", Remote()) as peer:
        await album(peer)
        shot = await snapshot(peer)
        remove(peer, b"/photos/2019")
        before = peer.picture()
        report = await restore(peer, shot, b"photos/2019")
        assert report.made == 8
        known = {one.place: one for one in peer.engine.history.known()}
        assert report.before is not None
        undo = known[report.before]
        with pytest.raises(UsageError, match="not in that snapshot"):
            await restore(peer, undo, b"photos/2019")
        with pytest.raises(UsageError, match="not in that snapshot"):
            await restore(peer, undo, b"photos/2020", delete=True)
        with pytest.raises(UsageError, match="not in that snapshot"):
            await restore(peer, undo, b"photos/2019", to=b"other", delete=True)
        with pytest.raises(UsageError, match="not in that snapshot"):
            await restore(peer, undo, b"photos/2019", delete=True, snapshot_first=False)
        planned = (await restore(peer, undo, b"photos/2019", delete=True, dry_run=True)).planned
        assert [(step.path, step.action, step.files) for step in planned] == [(b"photos/2019", "remove", 7)]
        undone = await restore(peer, undo, b"photos/2019", delete=True)
        assert (undone.removed, undone.problems) == (8, [])
        assert peer.picture().keys() == before.keys()


async def test_only_a_snapshot_that_shows_it_is_said_to_be_how_it_was(tmp_path: Path) -> None:
    async with opened(tmp_path / "data", Remote()) as peer:
        number = await peer.file(b"f", b"old")
        first = await snapshot(peer)
        await peer.write(number, 0, b"new")
        second = await snapshot(peer)
        assert (await restore(peer, first, snapshot_first=False)).before == second.place
        assert (await restore(peer, second, snapshot_first=False)).before is None


async def test_the_snapshot_that_is_being_restored_is_not_thinned_out(tmp_path: Path) -> None:
    async with opened(tmp_path / "data", Remote()) as peer:
        await peer.file(b"f", b"1" * 300_000)
        await peer.file(b"g", b"2" * 300_000)
        first = await snapshot(peer)
        peer.file_system.unlink(ROOT_INODE, b"f")
        peer.file_system.unlink(ROOT_INODE, b"g")
        await snapshot(peer)
        pace = peer.engine.restoring._fs.room
        pruned = False

        async def between(amount: int) -> None:
            nonlocal pruned
            if not pruned:
                pruned = True
                await prune(peer)
            await pace(amount)

        peer.engine.restoring._fs.room = between  # type: ignore[method-assign, assignment]
        report = await restore(peer, first)
        assert pruned and report.made == 2 and not report.problems
        assert first in peer.engine.history.known()
        plan = await prune(peer)
        assert [one.id for one in plan.going] == [first.id]


async def test_a_copy_elsewhere_shares_blocks_and_has_numbers_of_its_own(tmp_path: Path) -> None:
    remote = Remote()
    async with opened(tmp_path / "data", remote) as peer:
        await album(peer)
        shot = await snapshot(peer)
        before = peer.picture()
        await restore(peer, shot, b"photos/2019", to=b"copies/of 2019")
        after = await peer.picture_as_read()
        assert {path: after[path] for path in before if path} == {path: before[path] for path in before if path}
        copied = {path.removeprefix(b"/copies/of 2019"): s for path, s in after.items() if b"/of 2019" in path}
        source = {path.removeprefix(b"/photos/2019"): s for path, s in before.items() if b"/2019" in path}
        source[b"/one"] = Seen(
            (*source[b"/one"].attributes[:4], 1, *source[b"/one"].attributes[5:]), *_rest(source[b"/one"])
        )
        assert_same(copied, source, numbers=False)
        assert not {s.attributes[0] for s in copied.values()} & {s.attributes[0] for s in before.values()}
        again = await restore(peer, shot, b"photos/2019", to=b"copies/of 2019")
        assert (again.made, again.changed) == (0, 0)
        await restore(peer, shot, b"photos/2019/small", to=b"copies")
        assert (await peer.picture_as_read())[b"/copies/small"].content == b"a small picture"


def _rest(seen: Seen) -> tuple[bytes | None, tuple[tuple[bytes, bytes], ...], bytes | None]:
    return seen.target, seen.xattrs, seen.content


async def test_a_place_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    async with opened(tmp_path / "data", Remote()) as peer:
        await album(peer)
        shot = await snapshot(peer)
        other = peer.directory(b"other")
        await peer.file(b"mine", b"1", other)
        await peer.file(b"small", b"another one", other)
        with pytest.raises(UsageError, match="holds 'mine'"):
            await restore(peer, shot, b"photos/2019", to=b"other")
        with pytest.raises(UsageError, match="small is there already"):
            await restore(peer, shot, b"photos/2019/small", to=b"other")
        with pytest.raises(UsageError, match="not in that snapshot"):
            await restore(peer, shot, b"photos/2020")


async def test_a_file_on_the_way_is_named(tmp_path: Path) -> None:
    async with opened(tmp_path / "data", Remote()) as peer:
        await album(peer)
        shot = await snapshot(peer)
        await peer.file(b"file", b"1")
        for dry_run in (True, False):
            with pytest.raises(UsageError, match="file is not a directory now"):
                await restore(peer, shot, b"photos/2019/small", to=b"file", dry_run=dry_run)
            with pytest.raises(UsageError, match="file is not a directory now"):
                await restore(peer, shot, b"photos/2019", to=b"file/deep/below", dry_run=dry_run)
        peer.file_system.rename(ROOT_INODE, b"photos", ROOT_INODE, b"moved")
        peer.file_system.rename(ROOT_INODE, b"file", ROOT_INODE, b"photos")
        with pytest.raises(UsageError, match="photos is not a directory now"):
            await restore(peer, shot, b"photos/2019/small")
        await restore(peer, shot, b"photos")
        assert (await peer.picture_as_read())[b"/photos/2019/small"].content == b"a small picture"


@pytest.mark.parametrize("place", [b".snapshots", b"photos/.snapshots", b"photos/.snapshots/latest/x"])
async def test_nothing_is_made_where_the_past_is_shown(tmp_path: Path, place: bytes) -> None:
    async with opened(tmp_path / "data", Remote()) as peer:
        await album(peer)
        shot = await snapshot(peer)
        for dry_run in (True, False):
            with pytest.raises(UsageError, match="past"):
                await restore(peer, shot, b"photos/2019", to=place, dry_run=dry_run)
        assert not [name for name, _ in peer.walk() if b".snapshots" in name]


async def test_a_dry_run_says_what_would_be_done_and_does_nothing(tmp_path: Path) -> None:
    remote = Remote()
    async with opened(tmp_path / "data", remote) as peer:
        year = await album(peer)
        shot = await snapshot(peer)
        remove(peer, b"/photos/2019/large")
        await peer.file(b"newer", b"123", year)
        peer.file_system.setattr(peer.file_system.names.lookup(year, b"pipe").number, mode=0o600)  # type: ignore[union-attr]
        before, objects = peer.picture(), len(remote.objects)
        report = await restore(peer, shot, b"photos", dry_run=True, delete=True)
        planned = {step.path: (step.action, step.files, step.size_bytes) for step in report.planned}
        assert planned == {
            b"photos/2019/large": ("make", 1, 3_000_000),
            b"photos/2019/newer": ("remove", 1, 3),
            b"photos/2019/pipe": ("change", 1, 0),
        }
        assert peer.picture() == before and len(remote.objects) == objects


@pytest.mark.parametrize("seed", range(4))
async def test_any_state_comes_back(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    remote = Remote()
    async with opened(tmp_path / "data", remote) as peer:
        shots: list[tuple[Snapshot, Picture]] = []
        for _ in range(4):
            for _ in range(25):
                await peer.change(rng)
            await peer.engine.sealer.seal_everything()
            picture = peer.picture()
            shots.append((await snapshot(peer), picture))
        for _ in range(6):
            if rng.random() < 0.5:
                for _ in range(10):
                    await peer.change(rng)
            shot, picture = rng.choice(shots)
            report = await restore(peer, shot, delete=True)
            assert not report.problems
            now = await peer.picture_as_read()
            assert_same(now, picture, numbers=False)
            assert links(now) == links(picture)
            peer.contents = {s.attributes[0]: bytearray(s.content) for s in now.values() if s.content is not None}
            if rng.random() < 0.5:
                evict_all(peer.engine)
        expected = await peer.picture_as_read()
        await peer.publish(released=True)
    assert_same(await built_from(remote, tmp_path / "other"), expected)


async def test_a_name_that_stands_for_another_file_is_changed_and_not_made(tmp_path: Path) -> None:
    """As the plan says, and what others did with the old file under another name stays."""
    async with opened(tmp_path / "data", Remote()) as peer:
        year = await album(peer)
        shot = await snapshot(peer)
        peer.file_system.rename(year, b"small", ROOT_INODE, b"kept")
        await peer.file(b"small", b"another", year)
        planned = (await restore(peer, shot, b"photos", dry_run=True)).planned
        report = await restore(peer, shot, b"photos")
        assert (report.made, report.changed) == (
            sum(one.action == "make" for one in planned),
            sum(one.action == "change" for one in planned),
        )
        assert report.changed and not report.made and not report.problems
