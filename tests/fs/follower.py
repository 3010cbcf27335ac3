"""A mount that follows the writer, without FUSE, and a kernel that believes what it is told."""

import contextlib
import errno
import stat
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from syncer.engine import Engine
from syncer.errors import RemoteUnreachable
from syncer.following import Follower
from syncer.fs.following import FollowingTree
from syncer.fs.history import PAST, Seen
from syncer.meta.store import MetaStore
from syncer.snapshots.repository import follow
from syncer.snapshots.watch import Watch
from syncer.values import ROOT_INODE
from tests.snapshots.rig import SETTINGS, Peer, Remote, opened
from tests.snapshots.rig import Seen as State


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


def look_at_all(follower: Follower) -> None:
    """Have the next step list everything."""
    follower._watch._list_at = -float("inf")


async def out_of_reach(watch: Watch) -> None:
    raise RemoteUnreachable("it is out of reach")
