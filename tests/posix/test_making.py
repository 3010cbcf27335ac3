"""Making files without opening them: mkdir, mkfifo and mknod; and what is particular to fifos, sockets and devices."""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.kinds import DEVICE, KINDS, TYPES, make
from tests.support.posix import ALICE, acting_as, as_root, raises
from tests.support.syscalls import status

MAKERS: dict[str, Callable[[Path], object]] = {
    "mkdir": os.mkdir,
    "mkfifo": os.mkfifo,
    "mknod-regular": lambda path: os.mknod(path, stat.S_IFREG | 0o600),
    "mknod-fifo": lambda path: os.mknod(path, stat.S_IFIFO | 0o600),
    "mknod-socket": lambda path: os.mknod(path, stat.S_IFSOCK | 0o600),
    "mknod-without-a-type": lambda path: os.mknod(path, 0o600),
}
MADE = ["directory", "fifo", "regular", "fifo", "socket", "regular"]
each_maker = pytest.mark.parametrize("maker", MAKERS)


@pytest.mark.parametrize(("maker", "kind"), list(zip(MAKERS, MADE, strict=True)))
def test_what_is_new(folder: Path, maker: str, kind: str) -> None:
    MAKERS[maker](folder / "x")
    found = status(folder / "x")
    assert stat.S_IFMT(found.mode) == TYPES[kind]
    assert (found.uid, found.gid) == (os.geteuid(), os.getegid())
    assert found.nlink == (2 if kind == "directory" else 1)
    assert found.rdev == 0
    assert found.size == 0 or kind == "directory"


@each_maker
@pytest.mark.parametrize("kind", KINDS)
def test_the_name_must_be_free(folder: Path, maker: str, kind: str) -> None:
    make(kind, folder / "x")
    before = status(folder / "x")
    raises(errno.EEXIST, MAKERS[maker], folder / "x")
    assert status(folder / "x") == before


@each_maker
def test_not_in_a_directory_that_was_removed(folder: Path, maker: str) -> None:
    path = make("directory", folder / "d")
    descriptor = os.open(path, os.O_RDONLY)
    path.rmdir()
    try:
        raises(errno.ENOENT, MAKERS[maker], Path(f"/proc/self/fd/{descriptor}/x"))
    finally:
        os.close(descriptor)


def test_a_new_directory_is_empty_and_knows_its_parent(folder: Path) -> None:
    path = make("directory", folder / "d")
    assert os.listdir(path) == []
    assert os.stat(path / "..").st_ino == status(folder).number
    assert os.stat(path / ".").st_ino == status(path).number


def test_numbers_of_files_are_their_own(folder: Path) -> None:
    paths = [make(kind, folder / f"{kind}-{number}") for kind in ("regular", "directory") for number in range(50)]
    assert len({status(path).number for path in paths}) == len(paths)


@pytest.mark.parametrize("kind", ["character", "block"])
@pytest.mark.parametrize("numbers", [(0, 0), (1, 3), (255, 255), (256, 256), (4095, 1_048_575)])
@as_root
def test_devices_keep_their_numbers(folder: Path, kind: str, numbers: tuple[int, int]) -> None:
    os.mknod(folder / "x", TYPES[kind] | 0o600, os.makedev(*numbers))
    found = status(folder / "x")
    assert stat.S_IFMT(found.mode) == TYPES[kind]
    assert (os.major(found.rdev), os.minor(found.rdev)) == numbers


@as_root
@pytest.mark.parametrize("kind", ["regular", "fifo", "socket", "character", "block"])
def test_what_a_user_may_make(folder: Path, kind: str) -> None:
    with acting_as(ALICE):
        if kind in ("character", "block"):
            raises(errno.EPERM, os.mknod, folder / "x", TYPES[kind] | 0o600, DEVICE)
        else:
            os.mknod(folder / "x", TYPES[kind] | 0o600)
    assert os.listdir(folder) == ([] if kind in ("character", "block") else ["x"])


@as_root
def test_a_user_may_make_the_one_device_that_leads_nowhere(folder: Path) -> None:
    """A whiteout, as overlays use it (Linux 5.8)."""
    with acting_as(ALICE):
        os.mknod(folder / "x", stat.S_IFCHR, 0)
    assert (status(folder / "x").mode, status(folder / "x").rdev) == (stat.S_IFCHR, 0)


@pytest.mark.parametrize(
    ("kind", "number"), [(stat.S_IFDIR, errno.EPERM), (stat.S_IFLNK, errno.EINVAL), (0o170000, errno.EINVAL)]
)
def test_kinds_that_mknod_does_not_make(folder: Path, kind: int, number: int) -> None:
    raises(number, os.mknod, folder / "x", kind | 0o600)
    assert os.listdir(folder) == []


# --- fifos -----------------------------------------------------------------------------------------------------------


def test_nobody_reads_a_fifo_yet(folder: Path) -> None:
    os.mkfifo(folder / "f")
    raises(errno.ENXIO, os.open, folder / "f", os.O_WRONLY | os.O_NONBLOCK)
    reader = os.open(folder / "f", os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(folder / "f", os.O_WRONLY | os.O_NONBLOCK)
    os.write(writer, b"hello")
    assert os.read(reader, 100) == b"hello"
    raises(errno.EAGAIN, os.read, reader, 100)
    os.close(writer)
    assert os.read(reader, 100) == b""
    os.close(reader)
    assert status(folder / "f").size == 0


def test_nobody_reads_a_fifo_any_more(folder: Path) -> None:
    os.mkfifo(folder / "f")
    reader = os.open(folder / "f", os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(folder / "f", os.O_WRONLY | os.O_NONBLOCK)
    os.close(reader)
    raises(errno.EPIPE, os.write, writer, b"x")
    os.close(writer)


def test_fifos_have_no_place(folder: Path) -> None:
    os.mkfifo(folder / "f")
    descriptor = os.open(folder / "f", os.O_RDWR | os.O_NONBLOCK)
    try:
        raises(errno.ESPIPE, os.lseek, descriptor, 0, os.SEEK_SET)
        raises(errno.ESPIPE, os.pread, descriptor, 1, 0)
        raises(errno.EINVAL, os.ftruncate, descriptor, 0)
    finally:
        os.close(descriptor)
    raises(errno.EINVAL, os.truncate, folder / "f", 0)


def test_sockets_are_not_opened(folder: Path) -> None:
    make("socket", folder / "s", 0o777)
    raises(errno.ENXIO, os.open, folder / "s", os.O_RDONLY)
    raises(errno.ENXIO, os.open, folder / "s", os.O_RDWR | os.O_NONBLOCK)


@as_root
def test_devices_that_are_not_there(folder: Path) -> None:
    """On a mount without `dev` no device is opened at all."""
    os.mknod(folder / "x", stat.S_IFCHR | 0o600, os.makedev(510, 77))
    nodev = bool(os.statvfs(folder).f_flag & os.ST_NODEV)
    raises(errno.EACCES if nodev else errno.ENXIO, os.open, folder / "x", os.O_RDONLY)
