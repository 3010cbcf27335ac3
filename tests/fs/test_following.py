"""A mount that follows the writer, without FUSE: a kernel's caches are played, and everything is compared."""

import contextlib
import errno
import itertools
import random
import shutil
import stat
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import trio

from syncer.backends.base import ObjectInfo
from syncer.engine import Engine
from syncer.errors import RemoteUnreachable
from syncer.following import Follower
from syncer.fs.following import FollowingTree
from syncer.fs.history import PAST, Seen
from syncer.meta.store import MetaStore
from syncer.snapshots import repository
from syncer.snapshots.repository import follow
from syncer.snapshots.watch import Watch
from syncer.values import ROOT_INODE
from tests.snapshots.pruning import prune
from tests.snapshots.rig import SETTINGS, Peer, Remote, opened
from tests.snapshots.rig import Seen as State
from tests.support.long_form import LONG
from tests.support.opened import evict_all


@contextlib.asynccontextmanager
async def following(data: Path, remote: Remote) -> AsyncIterator[Follower]:
    """A DATA that follows what is on *remote*; `step` has it look for what is new."""
    for name in ("cache", "dirty", "journal"):
        (data / name).mkdir(parents=True, exist_ok=True)
    meta = MetaStore(data)
    await follow(meta, remote)
    async with Engine.open(data, meta, remote, SETTINGS, read_only=True, publishing=False) as engine:
        follower = Follower(engine, remote)
        await follower.begin()
        yield follower
        await follower.end(10.0)


@dataclass
class Handle:
    """An open file, and what it held when it was opened."""

    number: int
    handle: int
    content: bytes


class Kernel:
    """Believes what it is told until it is told that it is not so any more, as a real one does: by names and numbers.

    Attributes:
        asked: how many look-ups and attributes the tree was asked for.
        fetched: how many files were read from the tree, and not from pages.
    """

    def __init__(self, follower: Follower) -> None:
        self.tree: FollowingTree = follower.tree
        follower.notify = self.notified
        self.names: dict[tuple[int, bytes], int] = {}
        self.attributes: dict[int, Seen] = {}
        self.pages: dict[int, bytes] = {}
        self.counts: dict[int, int] = {}
        self.asked = self.fetched = 0

    async def notified(self, entries: Sequence[tuple[int, bytes]], inodes: Sequence[int]) -> None:
        for entry in entries:
            self.names.pop(entry, None)
        for number in inodes:
            self.attributes.pop(number, None)

    def _took(self, seen: Seen) -> int:
        self.tree.looked_up(seen.number)
        self.counts[seen.number] = self.counts.get(seen.number, 0) + 1
        if seen.stat_s:
            self.attributes[seen.number] = seen
        return seen.number

    async def find(self, path: bytes, *, anew: bool = False) -> int | None:
        """The number at *path*; *anew* as after ESTALE: each name is asked for."""
        number: int = ROOT_INODE
        for name in path.split(b"/")[1:]:
            found = self.names.get((number, name))
            if found is None or anew:
                self.asked += 1
                seen = await self.tree.lookup(number, name)
                self.names.pop((number, name), None)
                if seen is None:
                    assert not self.tree.absence_s(number)
                    return None
                found = self._took(seen)
                if seen.name_s:
                    self.names[number, name] = found
            number = found
        return number

    async def stat(self, number: int) -> Seen:
        if number not in self.attributes:
            self.asked += 1
            seen = await self.tree.getattr(number)
            if not seen.stat_s:
                return seen
            self.attributes[number] = seen
        return self.attributes[number]

    async def open(self, path: bytes) -> Handle:
        number = await self.find(path)
        assert number is not None
        try:
            handle = await self.tree.open(number, 0)
        except OSError as error:
            assert error.errno == errno.ESTALE
            number = await self.find(path, anew=True)
            assert number is not None
            handle = await self.tree.open(number, 0)
        if not self.tree.keeps_pages(handle):
            self.pages.pop(number, None)
        return Handle(number, handle, b"")

    async def read(self, handle: Handle) -> bytes:
        """All of it, up to the size that is believed."""
        size = (await self.stat(handle.number)).size
        if handle.number not in self.pages:
            self.fetched += 1
            self.pages[handle.number] = await self.tree.read(handle.handle, 0, size)
        return self.pages[handle.number][:size]

    async def content(self, path: bytes) -> bytes:
        handle = await self.open(path)
        try:
            return await self.read(handle)
        finally:
            self.tree.release(handle.handle)

    async def list(self, number: int, page: int = 5) -> set[bytes]:
        handle = await self.tree.opendir(number)
        found, cookie = list[bytes](), 0
        while entries := await self.tree.entries(handle, cookie, page):
            for name, seen, cookie in entries:  # noqa: B007 - the last one goes on
                found.append(name)
                assert isinstance(seen, Seen)
                self.names[number, name] = self._took(seen)
        self.tree.releasedir(handle)
        assert len(found) == len(set(found))
        return set(found)

    async def states(self, picture: dict[bytes, State]) -> None:
        """Assert that everything is as in *picture*, through what is believed. Listings bring news: last."""
        for path, state in sorted(picture.items(), key=lambda item: stat.S_ISDIR(item[1].attributes[1])):
            number = await self.find(path)
            assert number is not None, path
            seen = await self.stat(number)
            attributes = (seen.number, seen.mode, seen.uid, seen.gid, seen.nlink, seen.size)
            other = (number, *state.attributes[1:6]) if number >= PAST else state.attributes[:6]
            assert attributes == other, path
            assert (seen.mtime_ns, seen.ctime_ns, seen.rdev) == state.attributes[6:], path
            assert sorted((await self.tree.xattrs(number)).items()) == list(state.xattrs), path
            if stat.S_ISLNK(seen.mode):
                assert await self.tree.readlink(number) == state.target
            elif stat.S_ISREG(seen.mode):
                assert await self.content(path) == state.content, path
            elif stat.S_ISDIR(seen.mode):
                names = {other.rpartition(b"/")[2] for other in picture if other and other.rpartition(b"/")[0] == path}
                assert await self.list(number) == names, path

    def forget_all(self) -> None:
        """Give everything back: nothing of it may be kept then but the root."""
        for number, count in reversed(self.counts.items()):
            self.tree.forget([(number, count)])
        nodes = self.tree.nodes
        assert list(nodes) == [nodes.root] and not nodes._others and not nodes._between and not self.tree._open


def followers_of(remote: Remote) -> list[str]:
    return [key for key in remote.objects if key.startswith("followers/")]


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


@contextlib.asynccontextmanager
async def writer_and_follower(folder: Path, remote: Remote) -> AsyncIterator[tuple[Peer, Follower, Kernel]]:
    """A writer that has published two directories with a file in each, and who follows it."""
    async with opened(folder / "writer", remote) as writer:
        for name in (b"one", b"two"):
            await writer.file(b"file", name * 50_000, writer.directory(name))
        await writer.publish()
        async with following(folder / "follower", remote) as follower:
            yield writer, follower, Kernel(follower)


def number_of(writer: Peer, *names: bytes) -> int:
    number: int = ROOT_INODE
    for name in names:
        inode = writer.file_system.names.lookup(number, name)
        assert inode is not None
        number = inode.number
    return number


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


def look_at_all(follower: Follower) -> None:
    """Have the next step list everything."""
    follower._watch._list_at = -float("inf")


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


async def out_of_reach(watch: Watch) -> None:
    raise RemoteUnreachable("it is out of reach")


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
