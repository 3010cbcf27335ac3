"""Orphans: what lost its last name while somebody had it open lives on until it is closed."""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.kinds import KINDS, make, remove
from tests.support.posix import ALICE, BOB, acting_as, as_root, raises
from tests.support.syscalls import AT_EMPTY_PATH, AT_SYMLINK_FOLLOW, fchownat, linkat, status


@pytest.fixture
def orphan(folder: Path) -> Iterator[int]:
    """A descriptor of a regular file without a name, with ten bytes in it."""
    path = folder / "x"
    path.write_bytes(b"0123456789")
    descriptor = os.open(path, os.O_RDWR)
    path.unlink()
    yield descriptor
    os.close(descriptor)


def test_its_bytes_can_be_changed(orphan: int) -> None:
    assert os.pread(orphan, 100, 0) == b"0123456789"
    os.pwrite(orphan, b"xyz", 8)
    os.ftruncate(orphan, 9)
    assert os.pread(orphan, 100, 0) == b"01234567x"
    os.ftruncate(orphan, 300_000)
    os.pwrite(orphan, b"far", 2_000_000)
    os.fsync(orphan)
    assert status(orphan).size == 2_000_003
    assert os.pread(orphan, 10, 1_999_998) == b"\0\0far"
    assert os.pread(orphan, 10, 4) == b"4567x" + bytes(5)


def test_its_attributes_can_be_changed(orphan: int) -> None:
    os.fchmod(orphan, 0o640)
    os.utime(orphan, ns=(10**18, 2 * 10**18))
    os.setxattr(orphan, "user.name", b"value")
    if os.geteuid() == 0:
        os.fchown(orphan, 11, 12)
        assert (status(orphan).uid, status(orphan).gid) == (11, 12)
    found = status(orphan)
    assert (stat.S_IMODE(found.mode), found.nlink) == (0o640, 0)
    assert (found.atime_ns, found.mtime_ns) == (10**18, 2 * 10**18)
    assert os.getxattr(orphan, "user.name") == b"value"


def test_it_can_be_opened_again_but_not_named_again(folder: Path, orphan: int) -> None:
    """Unlike a file of O_TMPFILE (linkat(2))."""
    raises(errno.ENOENT, linkat, f"/proc/self/fd/{orphan}", folder / "y", AT_SYMLINK_FOLLOW)
    if os.geteuid() == 0:
        raises(errno.ENOENT, linkat, "", folder / "y", AT_EMPTY_PATH, directory=orphan)
    again = os.open(f"/proc/self/fd/{orphan}", os.O_RDONLY)
    assert os.read(again, 3) == b"012"
    os.close(again)
    assert os.listdir(folder) == []


def test_a_new_file_of_its_name_is_another(folder: Path, orphan: int) -> None:
    (folder / "x").write_bytes(b"new")
    assert status(folder / "x").number != status(orphan).number
    assert os.pread(orphan, 100, 0) == b"0123456789"
    os.pwrite(orphan, b"OLD", 0)
    assert (folder / "x").read_bytes() == b"new"


def test_several_have_it_open(folder: Path) -> None:
    (folder / "x").write_bytes(b"shared")
    first, second = (os.open(folder / "x", os.O_RDWR) for _ in range(2))
    os.unlink(folder / "x")
    os.pwrite(first, b"S", 0)
    os.close(first)
    assert os.pread(second, 10, 0) == b"Shared"
    third = os.dup(second)
    os.close(second)
    assert os.pread(third, 10, 0) == b"Shared"
    assert status(third).nlink == 0
    os.close(third)


@pytest.mark.parametrize("size", [10, 100_000])
def test_a_mapping_keeps_it(folder: Path, size: int) -> None:
    import mmap

    (folder / "x").write_bytes(b"m" * size)
    with open(folder / "x", "r+b") as file:
        mapped = mmap.mmap(file.fileno(), 0)
        os.unlink(folder / "x")
    with mapped:
        mapped[:3] = b"abc"
        mapped.flush()
        assert mapped[:] == b"abc" + b"m" * (size - 3)


def test_one_name_less_is_no_orphan(folder: Path) -> None:
    with open(folder / "x", "w+b", buffering=0) as file:
        os.link(folder / "x", folder / "y")
        os.unlink(folder / "x")
        assert status(file.fileno()).nlink == 1
        file.write(b"by the other name")
    assert (folder / "y").read_bytes() == b"by the other name"


@pytest.mark.parametrize("kind", KINDS)
def test_a_place_of_every_kind(folder: Path, kind: str) -> None:
    path = make(kind, folder / "x")
    number = status(path).number
    descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW)
    try:
        remove(kind, path)
        found = status(descriptor)
        assert (found.number, found.nlink) == (number, 0)
        if kind == "symlink":
            assert os.readlink("", dir_fd=descriptor) == "a target that is not there"
        if os.geteuid() == 0:
            fchownat("", 11, 12, AT_EMPTY_PATH, directory=descriptor)
            assert (status(descriptor).uid, status(descriptor).gid) == (11, 12)
        if kind not in ("symlink", "directory"):
            raises(errno.ENOENT, linkat, f"/proc/self/fd/{descriptor}", folder / "y", AT_SYMLINK_FOLLOW)
    finally:
        os.close(descriptor)


def test_a_fifo_still_carries(folder: Path) -> None:
    os.mkfifo(folder / "f")
    descriptor = os.open(folder / "f", os.O_RDWR | os.O_NONBLOCK)
    os.unlink(folder / "f")
    os.write(descriptor, b"through")
    assert os.read(descriptor, 10) == b"through"
    os.fchmod(descriptor, 0o640)
    found = status(descriptor)
    assert (found.nlink, stat.S_IMODE(found.mode)) == (0, 0o640)
    os.close(descriptor)


# --- directories -----------------------------------------------------------------------------------------------------


@pytest.fixture
def removed(folder: Path) -> Iterator[int]:
    """A descriptor of a directory without a name."""
    path = make("directory", folder / "d")
    make("regular", path / "was")
    descriptor = os.open(path, os.O_RDONLY)
    os.unlink(path / "was")
    path.rmdir()
    yield descriptor
    os.close(descriptor)


def test_nothing_is_in_a_removed_directory(removed: int) -> None:
    assert status(removed).nlink == 0
    assert os.listdir(removed) == []
    raises(errno.ENOENT, os.stat, "was", dir_fd=removed)
    assert os.stat(".", dir_fd=removed).st_ino == status(removed).number


def test_nothing_gets_into_a_removed_directory(folder: Path, removed: int) -> None:
    make("regular", folder / "x")
    raises(errno.ENOENT, os.open, "x", os.O_CREAT | os.O_WRONLY, dir_fd=removed)
    raises(errno.ENOENT, os.mkdir, "x", dir_fd=removed)
    raises(errno.ENOENT, os.mkfifo, "x", dir_fd=removed)
    raises(errno.ENOENT, os.symlink, "y", "x", dir_fd=removed)
    raises(errno.ENOENT, os.link, folder / "x", "x", dst_dir_fd=removed)
    raises(errno.ENOENT, os.rename, folder / "x", "x", dst_dir_fd=removed)


def test_a_removed_directory_still_has_attributes(removed: int) -> None:
    os.fchmod(removed, 0o700)
    os.utime(removed, ns=(10**18, 10**18))
    os.setxattr(removed, "user.name", b"value")
    found = status(removed)
    assert (stat.S_IMODE(found.mode), found.mtime_ns) == (0o700, 10**18)
    assert os.getxattr(removed, "user.name") == b"value"
    os.fsync(removed)


def test_a_new_directory_of_its_name_is_another(folder: Path, removed: int) -> None:
    make("regular", make("directory", folder / "d") / "x")
    assert os.listdir(removed) == []
    raises(errno.ENOENT, os.stat, "x", dir_fd=removed)


def test_a_directory_that_another_replaced(folder: Path) -> None:
    path = make("directory", folder / "old")
    make("regular", make("directory", folder / "new") / "x")
    descriptor = os.open(path, os.O_RDONLY)
    (folder / "new").rename(path)
    assert (status(descriptor).nlink, os.listdir(descriptor), os.listdir(path)) == (0, [], ["x"])
    raises(errno.ENOENT, os.mkdir, "y", dir_fd=descriptor)
    os.close(descriptor)


@as_root
def test_rights_are_asked_for_as_before(folder: Path) -> None:
    path = make("regular", folder / "x", 0o600)
    os.chown(path, ALICE.uid, ALICE.gid)
    descriptor = os.open(path, os.O_RDONLY)
    path.unlink()
    with acting_as(BOB):
        raises(errno.EACCES, os.open, f"/proc/self/fd/{descriptor}", os.O_RDONLY)
        raises(errno.EPERM, os.fchmod, descriptor, 0o666)
    with acting_as(ALICE):
        os.fchmod(descriptor, 0o666)
    with acting_as(BOB):
        os.close(os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR))
    os.close(descriptor)


def test_many_at_once(folder: Path) -> None:
    descriptors = []
    for number in range(200):
        descriptors.append(os.open(folder / "x", os.O_CREAT | os.O_EXCL | os.O_RDWR))
        os.write(descriptors[-1], b"%d" % number)
        os.unlink(folder / "x")
    assert [os.pread(descriptor, 10, 0) for descriptor in descriptors] == [b"%d" % number for number in range(200)]
    for descriptor in descriptors:
        os.close(descriptor)
    assert os.listdir(folder) == []
