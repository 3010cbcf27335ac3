"""Equal states have equal root trees, however they came to be; one changed bit anywhere makes another one."""

import random
import shutil
import stat
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from syncer.values import PEER_SHIFT, ROOT_INODE
from tests.snapshots.rig import Peer, Remote, opened

FIRST = (1 << PEER_SHIFT) + 1000


@dataclass(frozen=True, slots=True)
class Thing:
    """An inode of the state, under all its names: (parent's index in the state or -1 for the root, name)."""

    mode: int
    names: tuple[tuple[int, bytes], ...]
    content: bytes = b""
    target: bytes | None = None
    rdev: int = 0
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    uid: int = 1000
    mtime_ns: int = 1_600_000_000_000_000_000
    ctime_ns: int = 1_700_000_000_000_000_000


def state() -> list[Thing]:
    rng = random.Random(11)
    return [
        Thing(stat.S_IFDIR | 0o755, ((-1, b"photos"),), xattrs={b"user.long": rng.randbytes(3000)}),
        Thing(stat.S_IFDIR | 0o700, ((0, b"2019"),)),
        Thing(stat.S_IFREG | 0o644, ((1, b"one"), (0, b"best")), content=rng.randbytes(200_000)),
        Thing(stat.S_IFREG | 0o600, ((1, b"small"),), content=b"small", xattrs={b"user.tag": b"sunset"}),
        Thing(stat.S_IFREG | 0o600, ((1, b"large"),), content=rng.randbytes(2_500_000)),
        Thing(stat.S_IFREG | 0o600, ((1, b"sparse"),), content=b"a" * 100 + bytes(300_000) + b"b" * 100),
        Thing(stat.S_IFLNK | 0o777, ((0, b"link"),), target=b"2019/one"),
        Thing(stat.S_IFCHR | 0o600, ((0, b"device"),), rdev=259),
        *(Thing(stat.S_IFREG | 0o644, ((0, b"n%03d" % n),), content=b"%d" % n) for n in range(40)),
    ]


async def build(peer: Peer, wanted: list[Thing], rng: random.Random) -> None:
    """Bring about the state in an order of *rng*'s, with things that come and go in between, and snapshots."""
    made: dict[int, int] = {}
    left = list(range(len(wanted)))
    while left:
        able = [index for index in left if all(parent < 0 or parent in made for parent, _ in wanted[index].names)]
        index = rng.choice(able)
        left.remove(index)
        made[index] = FIRST + index
        await _make(peer, wanted[index], FIRST + index, made, rng)
        if rng.random() < 0.1:
            await _come_and_go(peer, rng)
        if rng.random() < 0.05:
            await peer.publish()
    for index, thing in enumerate(wanted):
        _dress(peer, FIRST + index, thing)
    peer.meta.inodes.set_attributes(ROOT_INODE, 0o755, 0, 0, None, 5, 6)


async def _make(peer: Peer, thing: Thing, number: int, made: dict[int, int], rng: random.Random) -> None:
    names = list(thing.names)
    rng.shuffle(names)
    places = [(ROOT_INODE if parent < 0 else made[parent], name) for parent, name in names]
    peer.meta.names.create(*places[0], number, thing.mode, 0, 0, thing.rdev, thing.target, 1)
    for parent, name in places[1:]:
        peer.file_system.link(number, parent, name)
    if thing.content and rng.random() < 0.3:
        await peer.write(number, 0, b"something else" * rng.randrange(1, 30_000))
        peer.truncate(number, 0)
    if thing.content:
        await peer.write(number, 0, thing.content)
    if rng.random() < 0.3:
        parent, name = places[0]
        peer.file_system.rename(parent, name, ROOT_INODE, b"for a moment")
        peer.file_system.rename(ROOT_INODE, b"for a moment", parent, name)


async def _come_and_go(peer: Peer, rng: random.Random) -> None:
    folder = peer.directory(b"gone")
    await peer.file(b"x", rng.randbytes(rng.choice([10, 100_000])), folder)
    if rng.random() < 0.5:
        await peer.publish()
    peer.file_system.unlink(folder, b"x")
    peer.file_system.rmdir(ROOT_INODE, b"gone")


def _dress(peer: Peer, number: int, thing: Thing) -> None:
    for name, value in thing.xattrs.items():
        peer.file_system.setxattr(number, name, value)
    peer.meta.inodes.set_attributes(number, thing.mode & 0o7777, thing.uid, 100, None, thing.mtime_ns, thing.ctime_ns)


async def root_of(wanted: list[Thing], seed: int, folder: Path) -> bytes:
    """The root of the state, built anew in *folder*."""
    remote = Remote()
    async with opened(folder, remote) as peer:
        await build(peer, wanted, random.Random(seed))
        await peer.publish(released=True)
        return remote.root()


async def roots_of_all_ways(seed: int, place: Path) -> set[bytes]:
    remote = Remote()
    async with opened(place / "data", remote) as peer:
        await build(peer, state(), random.Random(seed))
        shutil.copytree(place / "data", place / "killed")
        away = remote.copy()
        await peer.publish(released=True)
        roots = {remote.root()}
    async with opened(place / "killed", away) as peer:  # what a crash left is replayed
        await peer.publish()
        roots.add(away.root())
    async with opened(place / "other", remote) as peer:  # another machine goes on, and undoes what it did
        thing = state()[3]
        await peer.file(b"new", b"1")
        peer.file_system.setxattr(FIRST + 3, b"user.tag", b"other")
        await peer.publish()
        assert remote.root() not in roots
        peer.file_system.unlink(ROOT_INODE, b"new")
        _dress(peer, FIRST + 3, thing)
        peer.meta.inodes.set_attributes(ROOT_INODE, 0o755, 0, 0, None, 5, 6)
        await peer.publish()
        roots.add(remote.root())
    return roots


@settings(max_examples=2, deadline=None, derandomize=True)
@given(st.integers(0, 1000))
def test_every_way_to_a_state_gives_the_same_root(seed: int) -> None:
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        roots = trio.run(roots_of_all_ways, seed, Path(one))
        roots.add(trio.run(root_of, state(), seed + 1, Path(other)))
        assert len(roots) == 1


def _flip(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


BITS: dict[str, tuple[int, Callable[[Thing], Thing]]] = {
    "content": (4, lambda thing: replace(thing, content=_flip(thing.content))),
    "small content": (3, lambda thing: replace(thing, content=_flip(thing.content))),
    "a name": (3, lambda thing: replace(thing, names=((1, _flip(b"small")),))),
    "a directory": (3, lambda thing: replace(thing, names=((0, b"small"),))),
    "mode": (3, lambda thing: replace(thing, mode=thing.mode ^ 1)),
    "owner": (3, lambda thing: replace(thing, uid=thing.uid ^ 1)),
    "mtime": (3, lambda thing: replace(thing, mtime_ns=thing.mtime_ns ^ 1)),
    "ctime": (3, lambda thing: replace(thing, ctime_ns=thing.ctime_ns ^ 1)),
    "a target": (6, lambda thing: replace(thing, target=_flip(thing.target or b""))),
    "a device": (7, lambda thing: replace(thing, rdev=thing.rdev ^ 1)),
    "an attribute": (3, lambda thing: replace(thing, xattrs={b"user.tag": _flip(b"sunset")})),
    "a long attribute": (0, lambda thing: replace(thing, xattrs={b"user.long": _flip(thing.xattrs[b"user.long"])})),
    "a link": (2, lambda thing: replace(thing, names=((1, b"one"), (0, b"best"), (0, b"third")))),
    "the size": (5, lambda thing: replace(thing, content=thing.content + b"\0")),
}


_plain: list[bytes] = []
"""The root of the state as it is, once it is known."""


@pytest.mark.parametrize("what", BITS)
async def test_one_changed_bit_gives_another_root(tmp_path: Path, what: str) -> None:
    wanted = state()
    index, change = BITS[what]
    wanted[index] = change(wanted[index])
    if not _plain:
        _plain.append(await root_of(state(), 1, tmp_path / "plain"))
    assert await root_of(wanted, 1, tmp_path / "changed") != _plain[0]
