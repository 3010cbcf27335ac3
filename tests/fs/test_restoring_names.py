"""Bringing back what was moved, replaced, or had several names."""

import stat
from pathlib import Path

import pytest

from syncer.values import ROOT_INODE
from tests.fs.restoration import album, assert_same, remove, restore, snapshot
from tests.snapshots.rig import ME, Remote, opened


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
