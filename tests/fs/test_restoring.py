"""Bringing back states of the past, on an engine without a mount."""

import random
import shutil
import stat
from pathlib import Path

import pytest
import trio

from syncer.blocks.pack import pack_key
from syncer.errors import RemoteUnreachable, SyncerError, UsageError
from syncer.fs.restoring import Report, Request
from syncer.snapshots.history import Snapshot
from syncer.values import ROOT_INODE
from tests.snapshots.pruning import prune
from tests.snapshots.rig import ME, Peer, Picture, Remote, Seen, built_from, opened
from tests.support.core_check import check_tables
from tests.support.opened import evict_all


async def snapshot(peer: Peer) -> Snapshot:
    """Publish, and give what was published."""
    await peer.publish()
    return peer.engine.history.known()[-1]


async def restore(peer: Peer, shot: Snapshot, path: bytes = b"", **wishes: object) -> Report:
    with trio.fail_after(60):
        return await peer.engine.restoring.restore(Request(snapshot=shot, path=path, **wishes))  # type: ignore[arg-type]


def plain(picture: Picture, *, numbers: bool = True) -> dict[bytes, object]:
    """A picture without times of change, which a restoration is one of; and without inode *numbers*, if so wished."""

    def seen(one: Seen) -> object:
        attributes = [value for index, value in enumerate(one.attributes) if index != 7 and (numbers or index)]
        return attributes, one.target, one.xattrs, one.content

    return {path: seen(one) for path, one in picture.items()}


def assert_same(one: Picture, other: Picture, *, numbers: bool = True) -> None:
    a, b = plain(one, numbers=numbers), plain(other, numbers=numbers)
    assert a.keys() == b.keys(), (sorted(a.keys() - b.keys()), sorted(b.keys() - a.keys()))
    different = [path for path in a if a[path] != b[path]]
    assert not different, [(path, a[path], b[path]) for path in different[:2]]


def links(picture: Picture) -> set[frozenset[bytes]]:
    """Which names are names of one file."""
    groups: dict[int, set[bytes]] = {}
    for path, seen in picture.items():
        groups.setdefault(seen.attributes[0], set()).add(path)
    return {frozenset(group) for group in groups.values() if len(group) > 1}


async def album(peer: Peer) -> int:
    """A directory with one of everything; returns its inode."""
    fs = peer.file_system
    photos = peer.directory(b"photos")
    year = peer.directory(b"2019", photos)
    rng = random.Random(7)
    await peer.file(b"small", b"a small picture", year)
    await peer.file(b"large", rng.randbytes(3_000_000), year)
    sparse = await peer.file(b"sparse", b"begin", year)
    await peer.write(sparse, 2_000_000, rng.randbytes(100_000))
    linked = await peer.file(b"one", rng.randbytes(200_000), year)
    fs.link(linked, photos, b"other")
    fs.create(year, b"link", stat.S_IFLNK | 0o777, ME, target=b"../nowhere")
    fs.create(year, b"pipe", stat.S_IFIFO | 0o640, ME)
    fs.create(year, b"device", stat.S_IFCHR | 0o600, ME, rdev=259)
    fs.setxattr(linked, b"user.tag", b"sunset")
    fs.setxattr(year, b"user.long", rng.randbytes(3000))
    fs.setattr(linked, mode=0o4711, uid=12, gid=13, mtime_ns=1_500_000_000_000_000_001)
    fs.setattr(year, mode=0o2750, mtime_ns=-5)
    return year


def remove(peer: Peer, path: bytes) -> None:
    """rm -r."""
    found = {name: inode for name, inode in peer.walk() if name == path or name.startswith(path + b"/")}
    for name in sorted(found, reverse=True):
        parent, last = peer._parent(name)
        (peer.file_system.rmdir if found[name].is_directory else peer.file_system.unlink)(parent, last)


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
        with pytest.raises(UsageError, match="holds mine"):
            await restore(peer, shot, b"photos/2019", to=b"other")
        with pytest.raises(UsageError, match="small is there already"):
            await restore(peer, shot, b"photos/2019/small", to=b"other")
        with pytest.raises(UsageError, match="not in that snapshot"):
            await restore(peer, shot, b"photos/2020")


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


async def test_hard_links_are_found_again(tmp_path: Path) -> None:
    async with opened(tmp_path / "data", Remote()) as peer:
        await album(peer)
        shot = await snapshot(peer)
        before = peer.picture()
        remove(peer, b"/photos/2019/one")
        await restore(peer, shot, b"photos/2019")
        assert_same(peer.picture(), before)
        remove(peer, b"/photos/2019/one")
        remove(peer, b"/photos/other")
        await restore(peer, shot, b"photos")
        assert_same(peer.picture(), before)


@pytest.mark.parametrize("other_directory", [False, True])
async def test_a_copy_that_looks_alike_is_a_name_of_the_same_file_again(tmp_path: Path, other_directory: bool) -> None:
    """Also where the other name is in a directory that is gone, and not compared name by name."""
    async with opened(tmp_path / "data", Remote()) as peer:
        parent = peer.directory(b"d") if other_directory else ROOT_INODE
        number = peer.file_system.create(ROOT_INODE, b"one", stat.S_IFLNK | 0o777, ME, target=b"there").number
        peer.file_system.link(number, parent, b"two")
        shot = await snapshot(peer)
        before = peer.picture()
        remove(peer, b"/one")
        remove(peer, b"/d" if other_directory else b"/two")
        copy = peer.file_system.create(ROOT_INODE, b"one", stat.S_IFLNK | 0o777, ME, target=b"there").number
        peer.file_system.setattr(copy, mtime_ns=before[b"/one"].attributes[6])
        await restore(peer, shot)
        assert_same(peer.picture(), before)


async def test_files_that_were_made_one_are_two_again(tmp_path: Path) -> None:
    """As by a program that looks for equal files and links them."""
    async with opened(tmp_path / "data", Remote()) as peer:
        for name in (b"one", b"two"):
            peer.file_system.setattr(await peer.file(name, b"the same"), mtime_ns=10**18)
        shot = await snapshot(peer)
        before = peer.picture()
        remove(peer, b"/two")
        peer.file_system.link(before[b"/one"].attributes[0], ROOT_INODE, b"two")
        await restore(peer, shot)
        assert_same(await peer.picture_as_read(), before)


async def test_what_was_renamed_is_left_and_gets_a_copy_or_goes_back(tmp_path: Path) -> None:
    async with opened(tmp_path / "data", Remote()) as peer:
        await album(peer)
        shot = await snapshot(peer)
        before = peer.picture()
        photos = peer.file_system.names.lookup(ROOT_INODE, b"photos")
        assert photos is not None
        peer.file_system.rename(photos.number, b"2019", photos.number, b"moved")
        await restore(peer, shot, b"photos")
        after = peer.picture()
        assert after[b"/photos/moved/small"].attributes[0] == before[b"/photos/2019/small"].attributes[0]
        assert after[b"/photos/2019/small"].attributes[0] != before[b"/photos/2019/small"].attributes[0]
        remove(peer, b"/photos/2019")
        await restore(peer, shot, b"photos", delete=True)
        assert_same(peer.picture(), before)


@pytest.mark.parametrize("name", [b"small", b"2019"])
async def test_what_was_moved_out_of_the_path_stays_there(tmp_path: Path, name: bytes) -> None:
    """Only PATH is to be as it was: what lies elsewhere by now is none of it, and PATH gets a copy."""
    async with opened(tmp_path / "data", Remote()) as peer:
        year = await album(peer)
        shot = await snapshot(peer)
        before = peer.picture()
        kept = peer.directory(b"photos-kept")
        photos = peer.file_system.names.lookup(ROOT_INODE, b"photos")
        assert photos is not None
        peer.file_system.rename(photos.number if name == b"2019" else year, name, kept, name)

        def at(top: bytes) -> dict[bytes, tuple[int, bytes | None]]:
            found = {path: seen for path, seen in peer.picture().items() if path.startswith(top)}
            return {path: (seen.attributes[0], seen.content) for path, seen in found.items()}

        moved = at(b"/photos-kept/")
        report = await restore(peer, shot, b"photos", delete=True)
        assert not report.problems and not report.removed
        assert at(b"/photos-kept/") == moved
        assert at(b"/photos/").keys() == {path for path in before if path.startswith(b"/photos/")}
        assert not (await restore(peer, shot, delete=True)).problems
        assert_same(await peer.picture_as_read(), before, numbers=False)


async def test_a_file_that_stands_for_another_one_that_was_just_like_it_is_not_taken_from_there(tmp_path: Path) -> None:
    """It goes back to its old name only from a name that is to go, or that is made anew."""
    async with opened(tmp_path / "data", Remote()) as peer:
        for name in (b"a", b"b", b"z"):
            number = await peer.file(name, b"the same")
            peer.file_system.setattr(number, mtime_ns=5)
        before = peer.picture()
        shot = await snapshot(peer)
        peer.file_system.rename(ROOT_INODE, b"z", ROOT_INODE, b"a")  # which looks as it did
        assert not (await restore(peer, shot, delete=True)).problems
        assert_same(await peer.picture_as_read(), before, numbers=False)


async def test_a_file_that_stands_for_another_one_goes_back(tmp_path: Path) -> None:
    async with opened(tmp_path / "data", Remote()) as peer:
        await peer.file(b"a", b"one")
        await peer.file(b"b", b"another")
        before = peer.picture()
        shot = await snapshot(peer)
        peer.file_system.rename(ROOT_INODE, b"a", ROOT_INODE, b"b")
        assert not (await restore(peer, shot, delete=True)).problems
        assert_same(await peer.picture_as_read(), before)


async def test_a_file_replaced_by_another_is_the_first_one_again(tmp_path: Path) -> None:
    async with opened(tmp_path / "data", Remote()) as peer:
        await peer.file(b"file", b"old" * 30_000)
        shot = await snapshot(peer)
        before = peer.picture()
        await peer.file(b"new", b"new" * 40_000)
        peer.file_system.rename(ROOT_INODE, b"new", ROOT_INODE, b"file")
        await restore(peer, shot)
        assert_same(await peer.picture_as_read(), before)


async def test_a_directory_in_the_way_is_named_and_left(tmp_path: Path) -> None:
    async with opened(tmp_path / "data", Remote()) as peer:
        await peer.file(b"thing", b"file once")
        shot = await snapshot(peer)
        remove(peer, b"/thing")
        await peer.file(b"inside", b"1", peer.directory(b"thing"))
        report = await restore(peer, shot)
        assert [problem.path for problem in report.problems] == [b"thing"]
        assert b"/thing/inside" in peer.picture()


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


# --- long files, damage, crashes ---------------------------------------------------------------------------------


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


async def content(peer: Peer, number: int) -> bytes:
    handle = peer.file_system.open(number, 0)
    data = b"".join([await peer.file_system.read(handle, at, 500_000) for at in range(0, 2_000_000, 500_000)])
    peer.file_system.release(handle)
    return data


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


class _Stop(Exception):
    """The process is killed here."""


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
