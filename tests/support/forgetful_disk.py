"""A disk that forgets, on command, what was not flushed: for power cuts.

`PowerCutDisk` is ext4 on a loop device on a file of a file system of ours (this module, run as a process), which keeps
in order what was written to it since the last flush. So ext4 itself decides what an fsync, a rename or a create
means, and this decides only what a real disk may: after a cut all, none or any of the unflushed sectors are there.

    python -m tests.support.forgetful_disk FOLDER IMAGE
"""

import contextlib
import errno
import fcntl
import mmap
import os
import random
import shutil
import stat
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Literal, Self, cast

import pyfuse3
import trio

from tests.support.command import CHECKOUT, environment
from tests.support.core_data import fast_folder

Manner = Literal["none", "all", "some"]
SECTOR_BYTES = 4096
"""What a disk writes whole or not at all."""
DISK = b"disk"
DISK_INODE = 2
WITHIN_S = 60.0
FIBMAP = 1
"""Asks where on the disk a block of a file is (linux/fs.h)."""


class Disk(pyfuse3.Operations):
    """One file, as large as the image, which is what is durable of it."""

    def __init__(self, image: Path) -> None:
        super().__init__()
        with open(image, "r+b") as file:
            self._durable = mmap.mmap(file.fileno(), 0)
        self._now = mmap.mmap(-1, len(self._durable))
        with open(image, "rb") as file:
            _copy_data(file.fileno(), self._now)
        self._unflushed: list[tuple[int, bytes]] = []
        self._is_off = False
        self._bad = range(0)
        """Writes to these bytes fail."""

    def spoil(self, begin: int, end: int) -> int:
        """Writes to [begin, end) fail from now on."""
        self._bad = range(begin, end)
        return len(self._bad)

    def cut(self, manner: Manner, seed: str) -> int:
        """The power goes: decide what of the unflushed is there. Returns how many sectors that were."""
        self._is_off = True
        pieces = [
            (offset + at, data[at : at + SECTOR_BYTES])
            for offset, data in self._unflushed
            for at in range(0, len(data), SECTOR_BYTES)
        ]
        chance = random.Random(seed)
        share = {"none": 0.0, "all": 1.0, "some": chance.random()}[manner]
        for offset, data in pieces:
            if chance.random() < share:
                self._durable[offset : offset + len(data)] = data
        self._durable.flush()
        return len(pieces)

    def _attributes(self, inode: int) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = inode
        entry.st_mode = stat.S_IFREG | 0o600 if inode == DISK_INODE else stat.S_IFDIR | 0o700
        entry.st_size = len(self._durable) if inode == DISK_INODE else 0
        entry.st_nlink = 1
        entry.st_blksize = SECTOR_BYTES
        return entry

    async def getattr(self, inode: int, ctx: object = None) -> pyfuse3.EntryAttributes:
        return self._attributes(inode)

    async def setattr(self, inode: int, *_: object) -> pyfuse3.EntryAttributes:
        return self._attributes(inode)

    async def lookup(self, parent: int, name: bytes, ctx: object = None) -> pyfuse3.EntryAttributes:
        if name != DISK:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return self._attributes(DISK_INODE)

    async def open(self, inode: int, flags: int, ctx: object = None) -> pyfuse3.FileInfo:
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(1), direct_io=True)

    async def read(self, handle: int, offset: int, length: int) -> bytes:
        if self._is_off:
            raise pyfuse3.FUSEError(errno.EIO)
        return self._now[offset : offset + length]

    async def write(self, handle: int, offset: int, data: bytes) -> int:
        if self._is_off or range(max(offset, self._bad.start), min(offset + len(data), self._bad.stop)):
            raise pyfuse3.FUSEError(errno.EIO)
        self._now[offset : offset + len(data)] = data
        self._unflushed.append((offset, bytes(data)))
        return len(data)

    async def fsync(self, handle: int, datasync: bool) -> None:
        if self._is_off:
            raise pyfuse3.FUSEError(errno.EIO)
        for offset, data in self._unflushed:
            self._durable[offset : offset + len(data)] = data
        self._unflushed.clear()


def _copy_data(descriptor: int, target: mmap.mmap) -> None:
    """What is not a hole in the file."""
    position, end = 0, len(target)
    while position < end:
        try:
            begin = os.lseek(descriptor, position, os.SEEK_DATA)
        except OSError:
            return
        position = os.lseek(descriptor, begin, os.SEEK_HOLE)
        target[begin:position] = os.pread(descriptor, position - begin, begin)


async def _serve(folder: str, disk: Disk) -> None:
    pyfuse3.init(disk, folder, {"fsname=forgetful-disk", "allow_other"})
    print("ready", flush=True)
    try:
        async with trio.open_nursery() as nursery:
            token = trio.lowlevel.current_trio_token()
            threading.Thread(target=_obey, args=(disk, token), daemon=True).start()
            await pyfuse3.main()
            nursery.cancel_scope.cancel()
    finally:
        pyfuse3.close(unmount=False)


def _obey(disk: Disk, token: trio.lowlevel.TrioToken) -> None:
    """Cuts and faults, as they are asked for on standard input; its end is ours."""
    for line in sys.stdin:
        match line.split():
            case "spoil", begin, end:
                action = partial(disk.spoil, int(begin), int(end))
            case manner, seed:
                action = partial(disk.cut, cast(Manner, manner), seed)
        print(trio.from_thread.run_sync(action, trio_token=token), flush=True)
    os._exit(0)


class PowerCutDisk:
    """The folder `folder` on a disk whose power can be cut, any number of times. A context manager."""

    def __init__(self, place: Path, size_bytes: int, *, block_bytes: int = SECTOR_BYTES) -> None:
        """*block_bytes*: of ext4."""
        self.folder = place / "disk"
        self._below = place / "below"
        self._memory = fast_folder()
        self._image = self._memory / "image"
        self._process: subprocess.Popen[str] | None = None
        self._loop = ""
        for folder in (self.folder, self._below):
            folder.mkdir()
        with open(self._image, "wb") as file:
            file.truncate(size_bytes)
        options = "lazy_itable_init=0,lazy_journal_init=0,nodiscard"
        subprocess.run(
            ["mkfs.ext4", "-q", "-F", "-b", str(block_bytes), "-m", "0", "-E", options, self._image], check=True
        )

    def __enter__(self) -> Self:
        self.plug_in()
        return self

    def __exit__(self, *_: object) -> None:
        self.pull_out()
        shutil.rmtree(self._memory)

    def plug_in(self) -> None:
        """Mount what the disk holds."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.forgetful_disk", self._below, self._image],
            cwd=CHECKOUT,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._answer() == "ready"
        outcome = subprocess.run(
            ["losetup", "--find", "--show", self._below / os.fsdecode(DISK)],
            capture_output=True, text=True, check=True, timeout=WITHIN_S,
        )  # fmt: skip
        self._loop = outcome.stdout.strip()
        subprocess.run(["mount", "-t", "ext4", "-o", "noatime", self._loop, self.folder], check=True, timeout=WITHIN_S)

    def _answer(self) -> str:
        assert self._process and self._process.stdout
        return self._process.stdout.readline().strip()

    def cut(self, manner: Manner, seed: str) -> int:
        """Cut the power: every call to the disk fails from now on, and it forgets. How many sectors were at stake."""
        return self._do(f"{manner} {seed}")

    @contextlib.contextmanager
    def spoiled(self, path: Path, following_bytes: int = 0) -> Iterator[None]:
        """Within it the disk refuses to write the first block that a file has, which has been synced before.

        And the *following_bytes*: there ext4 puts what the file gets more.
        """
        with open(path, "rb") as file:
            size = os.fstatvfs(file.fileno()).f_bsize
            first = os.lseek(file.fileno(), 0, os.SEEK_DATA) // size
            (block,) = struct.unpack("i", fcntl.ioctl(file.fileno(), FIBMAP, struct.pack("i", first)))
        assert block, "it has no place on the disk yet"
        self._do(f"spoil {block * size} {(block + 1) * size + following_bytes}")
        try:
            yield
        finally:
            self._do("spoil 0 0")

    def _do(self, what: str) -> int:
        assert self._process and self._process.stdin
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()
        return int(self._answer())

    def pull_out(self) -> None:
        """Unmount, after a cut or for good; also when somebody still has a file open there."""
        for command in (
            f"umount {self.folder}",
            f"umount --lazy {self.folder}",
            f"losetup --detach {self._loop}",
            f"umount --lazy {self._below}",
        ):
            subprocess.run(command.split(), timeout=WITHIN_S, check=False, capture_output=True)
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def main(folder: str, image: str) -> None:
    trio.run(_serve, folder, Disk(Path(image)))


if __name__ == "__main__":
    main(*sys.argv[1:])
