"""Plays steps on a file system and on the model, and compares: results, errors, and in the end everything.

A step is a tuple: the name of a `do_` method of Driver and its arguments, plain numbers that mean something in every
state ("the third file, counted round"). So a failing sequence shrinks well and can be kept as a test as it is.
"""

import copy
import errno
import os
import random
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import trio

from syncer.fs.namespace import Caller
from syncer.meta.inodes import Inode
from syncer.values import ROOT_INODE
from tests.support.core_scale import Scale
from tests.support.core_world import World, read_whole
from tests.support.model import Model, Node

T = TypeVar("T")
Step = tuple[Any, ...]

NAMES = (b"a", b"b", b"c", b"\xff\xfe odd", b"n" * 255)
PART_BYTES = 128 * 1024


@dataclass(slots=True)
class Scan:
    """A directory that is being listed while it changes."""

    directory: Node
    cookie: int = 0
    seen: list[bytes] = field(default_factory=list)
    throughout: set[bytes] = field(default_factory=set)
    """Names that were there all the time: each is listed once."""
    ever: set[bytes] = field(default_factory=set)


@dataclass(slots=True)
class State:
    """What should be: the tree, and which inode is which node. Copied as one, so that both stay in step."""

    model: Model = field(default_factory=Model)
    numbers: dict[Node, int] = field(default_factory=dict)
    half: tuple[Node, bytes] | None = None
    """A file that is being written, and what it was before: a crash may leave any part of the write."""


class Driver:
    def __init__(self, world: World, scale: Scale) -> None:
        self.world = world
        self.scale = scale
        self.state = State()
        self.state.numbers[self.model.root] = ROOT_INODE
        self.handles: list[tuple[int, Node]] = []
        self.known: list[Node] = []
        """Nodes that the kernel was told of and has not forgotten."""
        self.scans: list[Scan] = []

    @property
    def model(self) -> Model:
        return self.state.model

    @property
    def fs(self) -> Any:
        return self.world.engine.file_system

    async def play(self, steps: list[Step]) -> None:
        for step in steps:
            before = copy.deepcopy(self.state) if self.world.camera.armed else self.state
            self.fs.names.lookup(ROOT_INODE, NAMES[0])  # as the kernel does before each call
            await getattr(self, f"do_{step[0]}")(*step[1:])
            self._watch_scans()
            if self.world.camera.taken:
                await self._resume(before)
            self.state.half = None

    # --- choosing ------------------------------------------------------------------------------------------------

    def _kept(self) -> list[Node]:
        """Nodes without a name that somebody still uses."""
        used = [node for _, node in self.handles] + self.known
        return list(dict.fromkeys(node for node in used if not node.nlink))

    def _node(self, index: int, *, regular: bool = False) -> Node | None:
        nodes = [node for node in [*self.model.nodes(), *self._kept()] if node.is_regular or not regular]
        return nodes[index % len(nodes)] if nodes else None

    def _directory(self, index: int) -> Node:
        directories = self.model.directories()
        return directories[index % len(directories)]

    def _place(self, index: int) -> tuple[Node, bytes]:
        """A name that exists where there is one; else one that does not."""
        places = [(node, name) for node in self.model.directories() for name in node.entries]
        return places[index % len(places)] if places else (self.model.root, NAMES[0])

    def _size(self, border: int, delta: int) -> int:
        return min(max(0, self.scale.borders[border % len(self.scale.borders)] + delta), self.scale.end_bytes)

    def number(self, node: Node) -> int:
        return self.state.numbers[node]

    def both(self, expected: Callable[[], T], actual: Callable[[], Any]) -> tuple[T | None, Any]:
        """Do it on the model and on the file system: the same error, or none."""
        wanted, model_error = _outcome(expected)
        got, error = _outcome(actual)
        assert error == model_error, f"error {_name(error)}, and it should be {_name(model_error)}"
        return wanted, got

    # --- names ---------------------------------------------------------------------------------------------------

    async def do_create(self, directory: int, name: int, kind: int) -> None:
        parent, text = self._directory(directory), NAMES[name % len(NAMES)]
        mode, rdev, target = (
            (stat.S_IFREG | 0o644, 0, None),
            (stat.S_IFDIR | 0o750, 0, None),
            (stat.S_IFLNK | 0o777, 0, b"to/\xfe"),
            (stat.S_IFIFO | 0o600, 0, None),
            (stat.S_IFCHR | 0o600, os.makedev(1, 3), None),
        )[kind % 5]
        node, inode = self.both(
            lambda: self.model.create(parent, text, mode, 7, 8, rdev=rdev, target=target),
            lambda: self.fs.create(self.number(parent), text, mode, Caller(7, 8), rdev=rdev, target=target),
        )
        if node is not None:
            self.state.numbers[node] = inode.number

    async def do_link(self, source: int, directory: int, name: int) -> None:
        node, parent, text = self._node(source), self._directory(directory), NAMES[name % len(NAMES)]
        assert node is not None
        self.both(
            lambda: self.model.link(node, parent, text),
            lambda: self.fs.link(self.number(node), self.number(parent), text),
        )

    async def do_unlink(self, place: int) -> None:
        parent, name = self._place(place)
        self.both(lambda: self.model.unlink(parent, name), lambda: self.fs.unlink(self.number(parent), name))

    async def do_rmdir(self, place: int) -> None:
        parent, name = self._place(place)
        self.both(lambda: self.model.rmdir(parent, name), lambda: self.fs.rmdir(self.number(parent), name))

    async def do_rename(self, place: int, directory: int, name: int, replace: bool) -> None:
        old, old_name = self._place(place)
        new, new_name = self._directory(directory), NAMES[name % len(NAMES)]
        self.both(
            lambda: self.model.rename(old, old_name, new, new_name, replace=replace),
            lambda: self.fs.rename(self.number(old), old_name, self.number(new), new_name, replace=replace),
        )

    async def do_exchange(self, place: int, other: int) -> None:
        old, old_name = self._place(place)
        new, new_name = self._place(other)
        self.both(
            lambda: self.model.exchange(old, old_name, new, new_name),
            lambda: self.fs.exchange(self.number(old), old_name, self.number(new), new_name),
        )

    async def do_scan(self, directory: int, limit: int) -> None:
        """Go on listing a directory, or begin to."""
        node = self._directory(directory)
        scan = next((scan for scan in self.scans if scan.directory is node), None)
        if scan is None:
            scan = Scan(node, throughout=set(node.entries), ever=set(node.entries))
            self.scans.append(scan)
        entries = self.fs.names.entries(self.number(node), scan.cookie, limit)
        for entry in entries:
            assert node.entries.get(entry.name) is not None, f"{entry.name!r} is listed and does not exist"
            assert entry.inode.number == self.number(node.entries[entry.name]), entry
            assert entry.cookie > scan.cookie
            scan.cookie = entry.cookie
            scan.seen.append(entry.name)
        if len(entries) < limit:
            self.scans.remove(scan)
            once = [name for name in scan.seen if name in scan.throughout]
            assert sorted(once) == sorted(scan.throughout), f"{once} was listed of {scan.throughout}"
            assert set(scan.seen) <= scan.ever

    def _watch_scans(self) -> None:
        for scan in self.scans:
            scan.throughout &= set(scan.directory.entries)
            scan.ever |= set(scan.directory.entries)
        self.scans = [scan for scan in self.scans if scan.directory.nlink]

    # --- bytes ---------------------------------------------------------------------------------------------------

    async def do_write(self, index: int, place: int, start: int, border: int, delta: int, fill: int) -> None:
        """Write about a border's size at the end (place 0), at a border, or in the middle of what is there."""
        node = self._node(index, regular=True)
        if node is None:
            return
        data = fill_bytes(fill, self._size(border, delta) or 1)
        offset = (len(node.data), self._size(start, delta), len(node.data) // 2 + delta)[place % 3]
        offset = max(0, min(offset, self.scale.end_bytes - len(data)))
        if self.world.camera.armed:
            self.state.half = (node, bytes(node.data))
        await self._write(node, offset, data)

    async def _write(self, node: Node, offset: int, data: bytes) -> None:
        """In requests as the kernel makes them; the model is always as far as the file system is."""
        handle = next((handle for handle, opened in self.handles if opened is node), None)
        mine = handle if handle is not None else self.fs.open(self.number(node), os.O_WRONLY)
        for position in range(0, len(data), PART_BYTES):
            part = data[position : position + PART_BYTES]
            assert await self.fs.write(mine, offset + position, memoryview(part)) == len(part)
            self.model.write(node, offset + position, part)
        if handle is None:
            self.fs.release(mine)

    async def do_truncate(self, index: int, border: int, delta: int) -> None:
        node = self._node(index)
        assert node is not None
        size = self._size(border, delta)
        self.both(lambda: self.model.truncate(node, size), lambda: self.fs.setattr(self.number(node), size=size))

    async def do_read(self, index: int, border: int, delta: int) -> None:
        node = self._node(index, regular=True)
        if node is None:
            return
        handle = self.fs.open(self.number(node), os.O_RDONLY)
        offset = self._size(border, delta)
        for position in (offset, offset + 5000, max(0, offset - 700)):
            data = await self.fs.read(handle, position, 5000)
            assert data == node.data[position : position + 5000], f"wrong bytes at {position}"
        self.fs.release(handle)

    async def do_open(self, index: int, truncate: bool) -> None:
        node = self._node(index, regular=True)
        if node is None:
            return
        flags = os.O_RDWR | (os.O_TRUNC if truncate else 0)
        if truncate:
            self.model.truncate(node, 0)
        self.handles.append((self.fs.open(self.number(node), flags), node))

    async def do_close(self, index: int) -> None:
        if self.handles:
            self.fs.release(self.handles.pop(index % len(self.handles))[0])

    async def do_look(self, index: int) -> None:
        """The kernel learns of an inode: it stays, whatever becomes of its names."""
        node = self._node(index)
        assert node is not None
        self.fs.looked_up(self.number(node))
        self.known.append(node)

    async def do_forget(self, index: int) -> None:
        if self.known:
            self.fs.forget([(self.number(self.known.pop(index % len(self.known))), 1)])

    async def do_fsync(self, index: int) -> None:
        node = self._node(index, regular=True)
        if node is not None:
            await self.fs.io.fsync(self.number(node))

    # --- attributes ----------------------------------------------------------------------------------------------

    async def do_chmod(self, index: int, mode: int) -> None:
        node = self._node(index)
        assert node is not None
        self.fs.setattr(self.number(node), mode=mode)
        node.mode = stat.S_IFMT(node.mode) | mode

    async def do_chown(self, index: int, uid: int, gid: int) -> None:
        node = self._node(index)
        assert node is not None
        self.fs.setattr(self.number(node), uid=uid, gid=gid)
        node.uid, node.gid = uid, gid
        if not stat.S_ISDIR(node.mode):  # by root: a set-group-id bit without execution by the group stays
            node.mode &= ~(stat.S_ISUID | (stat.S_ISGID if node.mode & stat.S_IXGRP else 0))

    async def do_utimens(self, index: int, mtime_ns: int) -> None:
        node = self._node(index)
        assert node is not None
        self.fs.setattr(self.number(node), mtime_ns=mtime_ns, atime_ns=1)
        node.mtime_ns = mtime_ns

    async def do_setxattr(self, index: int, name: int, length: int) -> None:
        node = self._node(index)
        assert node is not None
        key, value = b"user.%d" % (name % 3), bytes([length % 256]) * length
        self.fs.setxattr(self.number(node), key, value)
        self.model.set_xattr(node, key, value)

    async def do_removexattr(self, index: int, name: int) -> None:
        node = self._node(index)
        assert node is not None
        key = b"user.%d" % (name % 3)
        self.both(lambda: self.model.remove_xattr(node, key), lambda: self.fs.removexattr(self.number(node), key))

    # --- what goes on behind -------------------------------------------------------------------------------------

    async def do_commit(self) -> None:
        self.world.meta.commit()

    async def do_checkpoint(self) -> None:
        await self.world.engine.checkpoint()

    async def do_seal(self) -> None:
        await self.world.engine.sealer.seal_quiet(0.0)

    async def do_seal_beside(self) -> None:
        """Seal in a task of its own: what the next steps do comes in between."""
        self.world.tasks.start_soon(self.world.engine.sealer.seal_quiet, 0.0)

    async def do_yield(self, times: int) -> None:
        for _ in range(times):
            await trio.lowlevel.checkpoint()

    async def do_wait(self, seconds: float) -> None:
        """Let the file system's own tasks seal, commit and upload."""
        await trio.sleep(seconds)

    async def do_evict(self, share: int) -> None:
        """Drop every block that may go, or every *share*th."""
        pinned = self.world.engine.store.budget.pinned
        blocks = [block for block in self.world.meta.blocks.evictable(10_000) if block.number not in pinned]
        if chosen := blocks[:: max(1, share)]:
            self.world.engine.store.cache.evict(chosen)

    async def do_publish(self) -> None:
        await self.world.engine.flush(lambda done, total: None, 60.0)

    async def do_restart(self) -> None:
        times = self._times()
        await self.world.restart()
        self._forget_users()
        assert self._times() == times
        await self.compare()

    async def do_crash(self, calls: int) -> None:
        """Kill it now (0), or before one of the next system calls that change something."""
        if self.world.camera.armed:
            return
        if calls:
            self.world.camera.arm(self.world.data, self.world.fresh_folder(), calls - 1)
            return
        times = self._times()
        await self.world.crash()
        self._forget_users()
        assert self._times() == times
        await self.compare()

    async def _resume(self, before: State) -> None:
        """Go on from the picture: every finished step is there, the one it was taken in wholly or not at all."""
        half = self.state.half
        await self.world.crash()
        self._forget_users()
        after = self.state
        try:
            await self.compare(half)
        except AssertionError:
            self.state = before
            await self.compare()
        self.state.numbers = {node: number for node, number in self.state.numbers.items() if node.nlink}
        if half is not None and self.state is after and half[0].nlink:
            half[0].data[:] = await read_whole(self.world.engine, self.number(half[0]))

    def _forget_users(self) -> None:
        self.handles.clear()
        self.known.clear()
        self.scans.clear()

    def _times(self) -> dict[int, tuple[int, int]]:
        inodes = [self.fs.getattr(self.number(node)) for node in self.model.nodes()]
        return {inode.number: (inode.mtime_ns, inode.ctime_ns) for inode in inodes}

    # --- comparing -----------------------------------------------------------------------------------------------

    def in_use(self) -> set[int]:
        """The inodes without a name that somebody still uses."""
        return {self.number(node) for node in self._kept()}

    async def compare(self, half: tuple[Node, bytes] | None = None) -> None:
        """Everything that has a name, and every open file, against the model."""
        for path, node in self.model.walk():
            inode = self.fs.getattr(self.number(node))
            if node.is_directory:
                entries = self.fs.names.entries(inode.number, 0, 10_000)
                listed = {entry.name: entry.inode.number for entry in entries}
                expected = {name: self.number(child) for name, child in node.entries.items()}
                assert listed == expected, f"{path!r} has {listed}, and should have {expected}"
            self._compare_attributes(path, node, inode, sized=half is None or node is not half[0])
        for path, node in self.model.walk():
            if node.is_regular:
                await self._compare_bytes(path, node, half[1] if half is not None and half[0] is node else None)
        for node in self._kept():
            if node.is_regular:
                await self._compare_bytes(b"(no name)", node, None)

    def _compare_attributes(self, path: bytes, node: Node, inode: Inode, *, sized: bool) -> None:
        got = (inode.mode, inode.uid, inode.gid, inode.rdev, inode.nlink)
        assert got == (node.mode, node.uid, node.gid, node.rdev, node.nlink), f"{path!r}: {got}"
        if not node.is_directory and sized:
            assert inode.size == node.size, f"{path!r}: size {inode.size}, and it should be {node.size}"
        if node.target is not None:
            assert self.fs.names.readlink(inode.number) == node.target
        if node.mtime_ns is not None:
            assert inode.mtime_ns == node.mtime_ns, f"{path!r}: mtime {inode.mtime_ns}"
        xattrs = {name: self.fs.getxattr(inode.number, name) for name in self.fs.listxattr(inode.number)}
        assert xattrs == node.xattrs, f"{path!r}: {xattrs}"

    async def _compare_bytes(self, path: bytes, node: Node, before: bytes | None) -> None:
        data = await read_whole(self.world.engine, self.number(node))
        if before is not None:
            assert is_mixture(data, before, bytes(node.data)), f"{path!r} has bytes that nobody wrote"
        elif data != node.data:
            shorter = min(len(data), len(node.data))
            first = next((i for i in range(shorter) if data[i] != node.data[i]), shorter)
            raise AssertionError(f"{path!r}: {len(data)} of {len(node.data)} bytes, wrong from {first}")


def is_mixture(data: bytes, before: bytes, after: bytes) -> bool:
    """Whether a write from *before* to *after* that was cut short may have left *data*."""
    if not min(len(before), len(after)) <= len(data) <= max(len(before), len(after)):
        return False
    padded = before.ljust(len(data), b"\0")
    if data in (padded[: len(data)], after[: len(data)]):
        return True
    return all(byte in pair for byte, *pair in zip(data, padded, after, strict=False))


def fill_bytes(fill: int, length: int) -> bytes:
    """Zeros (0), one byte over and over (1), random bytes (2), or random bytes with a long hole in them (3)."""
    match fill % 4:
        case 0:
            return bytes(length)
        case 1:
            return bytes([1 + fill % 255]) * length
        case 2:
            return random.Random(fill).randbytes(length)
    data = bytearray(random.Random(fill).randbytes(length))
    data[length // 3 : length * 2 // 3] = bytes(length * 2 // 3 - length // 3)
    return bytes(data)


def _outcome(call: Callable[[], T]) -> tuple[T | None, int | None]:
    try:
        return call(), None
    except OSError as error:
        assert error.errno is not None
        return None, error.errno


def _name(code: int | None) -> str:
    return "none" if code is None else errno.errorcode[code]
