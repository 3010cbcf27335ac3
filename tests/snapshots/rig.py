"""Peers of a repository in memory: file systems that are changed at random, published, and built again elsewhere."""

import contextlib
import random
import shutil
import stat
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import trio

from syncer.backends.memory import MemoryBackend
from syncer.engine import Engine, Settings
from syncer.fs.filesystem import FileSystem
from syncer.fs.namespace import Caller
from syncer.meta.inodes import Inode
from syncer.meta.store import MetaStore
from syncer.snapshots.records import SnapshotRecord, decode, parse_seq_key
from syncer.snapshots.repository import Membership, Wish, join
from syncer.values import ROOT_INODE

NEVER_S = 1e9
SETTINGS = Settings(budget_bytes=400_000_000, snapshot_interval_s=NEVER_S)
ME = Caller(1000, 100)


class Remote(MemoryBackend):
    """A remote that keeps account of what it takes, holds its callers to write-once, and can go away.

    Attributes:
        taken: the keys that were put, in order.
        uploaded_bytes: all bytes that were put.
        on_put: called with each key before its object is stored.
        gone: set once the remote is away: whoever calls it then waits for ever.
    """

    def __init__(self) -> None:
        super().__init__()
        self.taken: list[str] = []
        self.uploaded_bytes = 0
        self.on_put: Callable[[str], None] = lambda key: None
        self.gone = trio.Event()
        self._puts_left: float = float("inf")
        self._stores_last = False

    def go_away_after(self, puts: int, *, stored: bool = False) -> None:
        """Take *puts* more objects; the next is never answered, whether it is *stored* or not."""
        self._puts_left, self._stores_last = puts, stored

    async def put(self, key: str, data: bytes | memoryview) -> None:
        here = self._puts_left >= 1
        self._puts_left -= 1
        if here or self._stores_last:
            self.on_put(key)
            assert self.objects.get(key, data) == data, f"{key} was put again with other bytes"
            await super().put(key, data)
            self.taken.append(key)
            self.uploaded_bytes += len(data)
        if not here:
            self._stores_last = False
            self.gone.set()
            await trio.sleep_forever()

    def returned(self) -> "Remote":
        """The same objects, within reach again."""
        remote = Remote()
        remote.objects = self.objects
        return remote

    def copy(self) -> "Remote":
        """Another remote with the same objects."""
        remote = Remote()
        remote.objects = dict(self.objects)
        return remote

    def snapshots(self) -> list[SnapshotRecord]:
        """Every snapshot, the oldest first."""
        keys = sorted(key for key in self.objects if key.startswith("snapshots/"))
        return [decode(self.objects[key], SnapshotRecord) for key in keys if parse_seq_key(key)]

    def root(self) -> bytes:
        """The newest snapshot's root tree."""
        return self.snapshots()[-1].root


@dataclass(frozen=True, slots=True)
class Seen:
    """All that a snapshot must keep of one name.

    *attributes*: inode, mode, uid, gid, nlink, size, mtime_ns, ctime_ns, rdev.
    """

    attributes: tuple[int, ...]
    target: bytes | None
    xattrs: tuple[tuple[bytes, bytes], ...]
    content: bytes | None


CROWD, LARGE_BYTES = 80, 2_000_000
"""Random changes go on for long without more names than that, or files much larger."""

Picture = dict[bytes, Seen]
"""A whole file system, path by path."""


class Peer:
    """One DATA with its engine running; changed through `file_system`, or at random by `change`.

    Attributes:
        contents: what the regular files must hold, by inode number, as far as they were written through here.
    """

    def __init__(self, engine: Engine, membership: Membership) -> None:
        self.engine = engine
        self.membership = membership
        self.contents: dict[int, bytearray] = {}

    @property
    def file_system(self) -> FileSystem:
        return self.engine.file_system

    @property
    def meta(self) -> MetaStore:
        return self.engine.meta

    async def publish(self, *, released: bool = False) -> None:
        with trio.fail_after(60):
            await self.engine.publisher.publish("manual", released=released)

    # --- looking -------------------------------------------------------------------------------------------------

    def walk(self) -> list[tuple[bytes, Inode]]:
        """Every path with its inode, parents first."""
        found = [(b"", self.file_system.getattr(ROOT_INODE))]
        for path, inode in found:
            if inode.is_directory:
                entries = self.file_system.names.entries(inode.number, 0, 1_000_000)
                need = self.meta.inodes.need
                found.extend((path + b"/" + entry.name, need(entry.inode.number)) for entry in entries)
        return found

    def picture(self) -> Picture:
        """ATOMIC: as it is now, with the contents that were written."""
        return {path: self._seen(inode, bytes(self.contents.get(inode.number, b""))) for path, inode in self.walk()}

    async def picture_as_read(self) -> Picture:
        """With the contents that are read, fetched where they are not local."""
        picture = {}
        for path, inode in self.walk():
            content = b""
            if inode.is_regular:
                handle = self.file_system.open(inode.number, 0)
                content = await self.file_system.read(handle, 0, inode.size + 1)
                self.file_system.release(handle)
            picture[path] = self._seen(inode, content)
        return picture

    def _seen(self, inode: Inode, content: bytes) -> Seen:
        attributes = (
            *(inode.number, inode.mode, inode.uid, inode.gid, inode.nlink, inode.size, inode.mtime_ns),
            *(inode.ctime_ns, inode.rdev),
        )
        return Seen(
            attributes,
            self.file_system.names.readlink(inode.number) if stat.S_ISLNK(inode.mode) else None,
            tuple((name, self.file_system.getxattr(inode.number, name)) for name in self._xattrs(inode)),
            content if inode.is_regular else None,
        )

    def _xattrs(self, inode: Inode) -> list[bytes]:
        return self.file_system.listxattr(inode.number)

    # --- changing ------------------------------------------------------------------------------------------------

    def directory(self, name: bytes, parent: int = ROOT_INODE) -> int:
        return self.file_system.create(parent, name, stat.S_IFDIR | 0o755, ME).number

    async def file(self, name: bytes, content: bytes, parent: int = ROOT_INODE) -> int:
        number = self.file_system.create(parent, name, stat.S_IFREG | 0o644, ME).number
        await self.write(number, 0, content)
        return number

    async def write(self, number: int, offset: int, data: bytes) -> None:
        handle = self.file_system.open(number, 2)
        content = self.contents.setdefault(number, bytearray())
        if data:
            await self.file_system.write(handle, offset, data)
            content.extend(bytes(max(0, offset - len(content))))
            content[offset : offset + len(data)] = data
        self.file_system.release(handle)

    def truncate(self, number: int, size: int) -> None:
        self.file_system.setattr(number, size=size)
        content = self.contents.setdefault(number, bytearray())
        del content[size:]
        content.extend(bytes(size - len(content)))

    async def change(self, rng: random.Random) -> None:
        """Do one thing at random. What POSIX forbids just then is not done."""
        found = self.walk()
        path, inode = rng.choice(found)
        with contextlib.suppress(OSError):
            if path and len(found) > CROWD:
                parent, name = self._parent(path)
                (self.file_system.rmdir if inode.is_directory else self.file_system.unlink)(parent, name)
                return
            match rng.randrange(4):
                case 0:
                    await self._make(rng, rng.choice([i for _, i in found if i.is_directory]).number)
                case 1:
                    self._change_attributes(rng, inode.number)
                case 2:
                    if inode.is_regular:
                        await self._change_content(rng, inode)
                case _:
                    if path:
                        self.change_names(rng)

    async def _make(self, rng: random.Random, parent: int) -> None:
        name = b"n%d\xff" % rng.randrange(30)
        match rng.randrange(9):
            case 0 | 1:
                self.directory(name, parent)
            case 2:
                self.file_system.create(parent, name, stat.S_IFLNK | 0o777, ME, target=b"../" + name * 3)
            case 3:
                kind = rng.choice([stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK])
                self.file_system.create(parent, name, kind | 0o600, ME, rdev=rng.randrange(1000))
            case _:
                await self.file(name, rng.randbytes(rng.choice([0, 10, 5000, 66_000, 300_000])), parent)

    def _change_attributes(self, rng: random.Random, number: int) -> None:
        match rng.randrange(5):
            case 0:
                self.file_system.setattr(number, mode=rng.choice([0o600, 0o4755, 0o2775, 0]))
            case 1:
                self.file_system.setattr(number, uid=rng.randrange(2**32 - 1), gid=rng.randrange(5))
            case 2:
                self.file_system.setattr(number, mtime_ns=rng.randrange(-(10**18), 4 * 10**18))
            case 3:
                value = rng.randbytes(rng.choice([0, 40, 3000]))
                self.file_system.setxattr(number, b"user.%d" % rng.randrange(3), value)
            case _:
                self.file_system.removexattr(number, b"user.%d" % rng.randrange(3))

    async def _change_content(self, rng: random.Random, inode: Inode) -> None:
        if inode.size > LARGE_BYTES:
            self.truncate(inode.number, 0)
            return
        match rng.randrange(4):
            case 0:
                self.truncate(inode.number, rng.choice([0, inode.size // 2, inode.size + 100_000]))
            case 1:
                await self.write(inode.number, inode.size, rng.randbytes(rng.choice([100, 70_000])))
            case 2:
                await self.write(inode.number, inode.size + 200_000, b"beyond")
            case _:
                await self.write(inode.number, rng.randrange(inode.size + 1), rng.randbytes(3000))

    def change_names(self, rng: random.Random) -> None:
        """ATOMIC: link, unlink, remove, rename or exchange something at random."""
        names = [(path, inode) for path, inode in self.walk() if path]
        if not names:
            return
        (path, inode), (other, _) = rng.choice(names), rng.choice(names)
        parent, name = self._parent(path)
        new_parent, new_name = self._parent(other)
        with contextlib.suppress(OSError):
            match rng.randrange(6):
                case 0:
                    self.file_system.link(inode.number, new_parent, b"link%d" % rng.randrange(9))
                case 1 | 2:
                    remove = self.file_system.rmdir if inode.is_directory else self.file_system.unlink
                    remove(parent, name)
                case 3:
                    self.file_system.rename(parent, name, new_parent, b"moved%d" % rng.randrange(9))
                case 4:
                    self.file_system.rename(parent, name, new_parent, new_name)
                case _:
                    self.file_system.exchange(parent, name, new_parent, new_name)

    def _parent(self, path: bytes) -> tuple[int, bytes]:
        number: int = ROOT_INODE
        *above, name = path.split(b"/")[1:]
        for part in above:
            inode = self.file_system.names.lookup(number, part)
            assert inode is not None
            number = inode.number
        return number, name


@contextlib.asynccontextmanager
async def opened(
    data: Path, remote: MemoryBackend, *, take_over: bool = False, read_only: bool = False
) -> AsyncIterator[Peer]:
    """DATA in the folder *data*, made where there is none, joined to *remote*, with its engine running."""
    for name in ("cache", "dirty", "journal"):
        (data / name).mkdir(parents=True, exist_ok=True)
    meta = MetaStore(data)
    try:
        membership = await join(meta, remote, Wish(read_only=read_only, take_over=take_over, uid=0, gid=0))
    except BaseException:
        meta.close()
        raise
    read_only = read_only or membership.read_only_reason is not None
    async with Engine.open(data, meta, remote, SETTINGS, read_only=read_only, publishing=False) as engine:
        yield Peer(engine, membership)


async def built_from(remote: MemoryBackend, data: Path) -> Picture:
    """What a new machine sees that has nothing but the remote."""
    shutil.rmtree(data, ignore_errors=True)
    async with opened(data, remote, read_only=True) as peer:
        return await peer.picture_as_read()


def same(one: Picture, other: Picture) -> None:
    """Assert that two pictures are equal, naming the first paths that differ."""
    assert one.keys() == other.keys(), (sorted(one.keys() - other.keys()), sorted(other.keys() - one.keys()))
    different = [path for path in one if one[path] != other[path]]
    assert not different, [(path, one[path].attributes, other[path].attributes) for path in different[:3]]


async def publish_until_gone(peer: Peer, remote: Remote, folder: Path) -> None:
    """Publish; the peer's DATA, `alive` in *folder*, is copied to `killed` at the moment the remote is gone."""
    async with trio.open_nursery() as nursery:

        async def watch() -> None:
            await remote.gone.wait()
            shutil.copytree(folder / "alive", folder / "killed")
            nursery.cancel_scope.cancel()

        nursery.start_soon(watch)
        await peer.publish()
        nursery.cancel_scope.cancel()
