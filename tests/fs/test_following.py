"""A mount that follows the writer, without FUSE: a kernel's caches are played, and everything is compared."""

import errno
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from syncer.fs.history import Seen
from syncer.values import ROOT_INODE
from tests.fs.follower import (
    Handle,
    Kernel,
    followers_of,
    following,
    number_of,
    writer_and_follower,
)
from tests.snapshots.rig import Remote, opened
from tests.support.long_form import LONG


@pytest.mark.parametrize("seed", range(60 if LONG else 4))
async def test_whatever_the_writer_does_is_shown_and_open_files_keep_their_content(tmp_path: Path, seed: int) -> None:
    rng, remote = random.Random(seed), Remote()
    async with opened(tmp_path / "writer", remote) as writer:
        for _ in range(60):
            await writer.change(rng)
        await writer.publish()
        async with following(tmp_path / "follower", remote) as follower:
            kernel, handles = Kernel(follower), list[Handle]()
            await kernel.states(writer.picture())
            for _ in range(8):
                for _ in range(rng.choice([1, 3, 30])):
                    await writer.change(rng)
                known = {inode.number for _, inode in writer.walk()}
                for handle in handles:
                    if handle.number in known and rng.randrange(2):
                        await writer.write(handle.number, 0, rng.randbytes(100))
                picture = writer.picture()
                await writer.publish()
                await follower.step()
                assert follower.shown is not None and follower.shown.root == remote.root()
                for handle in handles:
                    if rng.randrange(2):
                        kernel.pages.pop(handle.number, None)
                    assert await kernel.read(handle) == handle.content
                await kernel.states(picture)
                files = [path for path, state in picture.items() if state.content is not None]
                for path in rng.sample(files, min(4, len(files))):
                    handle = await kernel.open(path)
                    handles.append(replace(handle, content=picture[path].content or b""))
                    assert await kernel.read(handle) == picture[path].content
                rng.shuffle(handles)
                for handle in handles[6:]:
                    kernel.tree.release(handle.handle)
                del handles[6:]
            for handle in handles:
                assert await kernel.read(handle) == handle.content
                kernel.tree.release(handle.handle)
            await follower.step()
            assert len(followers_of(remote)) == 1
            kernel.forget_all()
    assert followers_of(remote) == []


async def test_what_has_not_changed_is_not_asked_for_again(tmp_path: Path) -> None:
    async with writer_and_follower(tmp_path, Remote()) as (writer, follower, kernel):
        await kernel.states(writer.picture())
        unchanged = {path: state for path, state in writer.picture().items() if path.startswith(b"/one")}
        asked, fetched = kernel.asked, kernel.fetched
        for path, state in unchanged.items():
            assert (await kernel.stat(await kernel.find(path) or 0)).mtime_ns == state.attributes[6]
        assert kernel.asked == asked
        await writer.write(number_of(writer, b"two", b"file"), 0, b"changed")
        await writer.publish()
        await follower.step()
        for path in unchanged:
            await kernel.stat(await kernel.find(path) or 0)
        assert await kernel.content(b"/one/file") == b"one" * 50_000
        assert (kernel.asked, kernel.fetched) == (asked, fetched)
        assert (await kernel.content(b"/two/file")).startswith(b"changed")
        assert kernel.fetched == fetched + 1 and kernel.asked > asked


async def test_what_moves_into_a_directory_that_nobody_knows_is_found(tmp_path: Path) -> None:
    async with writer_and_follower(tmp_path, Remote()) as (writer, follower, kernel):
        file = replace(await kernel.open(b"/one/file"), content=b"one" * 50_000)
        directory = await kernel.find(b"/one")
        assert directory is not None
        above = writer.directory(b"new", writer.directory(b"above"))
        writer.file_system.rename(ROOT_INODE, b"one", above, b"moved")
        await writer.publish()
        await follower.step()
        assert await kernel.list(directory) == {b"file"}
        assert (await kernel.stat(file.number)).nlink == 1
        assert await kernel.read(file) == file.content
        assert await kernel.find(b"/one") is None
        assert await kernel.find(b"/above/new/moved") == directory
        kernel.tree.release(file.handle)


async def test_what_is_gone_is_stale_and_what_is_open_of_it_stays(tmp_path: Path) -> None:
    async with writer_and_follower(tmp_path, Remote()) as (writer, follower, kernel):
        file = replace(await kernel.open(b"/one/file"), content=b"one" * 50_000)
        directory = await kernel.find(b"/one")
        assert directory is not None
        writer.file_system.unlink(number_of(writer, b"one"), b"file")
        writer.file_system.rmdir(ROOT_INODE, b"one")
        await writer.publish()
        await follower.step()
        with pytest.raises(OSError) as caught:
            await kernel.stat(directory)
        assert caught.value.errno == errno.ESTALE
        seen = await kernel.stat(file.number)
        assert (seen.nlink, seen.size) == (0, 150_000)
        assert await kernel.read(file) == file.content
        kernel.tree.release(file.handle)
        with pytest.raises(OSError, match="not there any more"):
            await kernel.tree.getattr(file.number)


async def test_a_listing_keeps_its_order_and_shows_what_is_there_now(tmp_path: Path) -> None:
    remote = Remote()
    async with writer_and_follower(tmp_path, remote) as (writer, follower, kernel):
        one = number_of(writer, b"one")
        for n in range(20):
            await writer.file(b"n%02d" % n, b"", one)
        await writer.publish()
        await follower.step()
        number = await kernel.find(b"/one")
        assert number is not None
        handle = await kernel.tree.opendir(number)
        first = await kernel.tree.entries(handle, 0, 5)
        assert [name for name, _, _ in first] == [b"file", b"n00", b"n01", b"n02", b"n03"]
        writer.file_system.unlink(one, b"n05")
        await writer.file(b"n02b", b"", one)
        await writer.write(number_of(writer, b"one", b"n19"), 0, b"longer")
        await writer.publish()
        await follower.step()
        assert len(followers_of(remote)) == 2, "the listing needs its snapshot"
        rest = await kernel.tree.entries(handle, first[-1][2], 100)
        assert [name for name, _, _ in rest] == [b"n%02d" % n for n in range(4, 20) if n != 5]
        assert isinstance(rest[-1][1], Seen) and rest[-1][1].size == 6
        again = await kernel.tree.entries(handle, 0, 100)
        assert {name for name, _, _ in again} == {b"file", b"n02b", *(b"n%02d" % n for n in range(20) if n != 5)}
        kernel.tree.releasedir(handle)


async def test_a_file_is_not_cut_off_by_a_size_of_before(tmp_path: Path) -> None:
    """Between the move and the kernel's having been told it has the new content under an old size."""
    async with writer_and_follower(tmp_path, Remote()) as (writer, follower, kernel):
        await kernel.states(writer.picture())

        async def not_yet(entries: Sequence[tuple[int, bytes]], inodes: Sequence[int]) -> None:
            """The kernel is still busy."""

        follower.notify = not_yet
        number = number_of(writer, b"one", b"file")
        await writer.write(number, 0, b"new" * 70_000)
        await writer.publish()
        await follower.step()
        assert await kernel.content(b"/one/file") == b"new" * 70_000
        writer.truncate(number, 6)
        await writer.publish()
        await follower.step()
        assert await kernel.content(b"/one/file") == b"newnew"


async def test_where_somebody_stands_among_directories_that_nobody_knows_it_is_told_what_changes(
    tmp_path: Path,
) -> None:
    async with writer_and_follower(tmp_path, Remote()) as (writer, follower, kernel):
        await kernel.states(writer.picture())
        directory, file = number_of(writer, b"one"), number_of(writer, b"one", b"file")
        above = writer.directory(b"above")
        writer.file_system.rename(ROOT_INODE, b"one", writer.directory(b"new", above), b"moved")
        await writer.publish()
        await follower.step()
        assert await kernel.list(directory) == {b"file"}
        await writer.write(file, 0, b"new" * 70_000)
        await writer.publish()
        await follower.step()
        assert (await kernel.stat(file)).size == 210_000
        writer.file_system.rename(ROOT_INODE, b"above", number_of(writer, b"two"), b"below")
        await writer.publish()
        await follower.step()
        assert await kernel.list(directory) == {b"file"}
        assert await kernel.content(b"/two/below/new/moved/file") == b"new" * 70_000
        kernel.forget_all()


async def test_only_a_listing_under_way_needs_an_old_directory(tmp_path: Path) -> None:
    remote = Remote()
    async with writer_and_follower(tmp_path, remote) as (writer, follower, kernel):
        number = await kernel.find(b"/one")
        assert number is not None
        handles = [await kernel.tree.opendir(number) for _ in range(2)]
        cookie = 0
        while entries := await kernel.tree.entries(handles[0], cookie, 5):
            cookie = entries[-1][2]
        await writer.file(b"another", b"", number)
        await writer.publish()
        await follower.step()
        assert len(followers_of(remote)) == 1
        for handle in handles:
            names = [name for name, _, _ in await kernel.tree.entries(handle, 0, 5)]
            assert names == [b"another", b"file"]
            kernel.tree.releasedir(handle)


async def test_files_that_nobody_met_otherwise_are_not_remembered(tmp_path: Path) -> None:
    """A remote may be away for long, and nobody asks for what was closed then."""
    async with writer_and_follower(tmp_path, Remote()) as (writer, follower, kernel):
        for _ in range(2):
            await kernel.states(writer.picture())
        assert not follower.tree._freed
