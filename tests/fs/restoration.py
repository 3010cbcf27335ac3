"""What the tests of restoring share: an album, and pictures that are compared."""

import random
import stat

import trio

from syncer.fs.restoring import Report, Request
from syncer.snapshots.history import Snapshot
from tests.snapshots.rig import ME, Peer, Picture, Seen


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


async def content(peer: Peer, number: int) -> bytes:
    handle = peer.file_system.open(number, 0)
    data = b"".join([await peer.file_system.read(handle, at, 500_000) for at in range(0, 2_000_000, 500_000)])
    peer.file_system.release(handle)
    return data
