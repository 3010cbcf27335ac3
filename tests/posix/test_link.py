"""Hard links: several names of one file, of every kind but directories."""

import contextlib
import errno
import os
import shutil
from pathlib import Path

import pytest

from tests.support.kinds import KINDS, NO_DIRECTORY, TARGET, make
from tests.support.long_form import LONG
from tests.support.posix import ALICE, acting_as, as_root, raises
from tests.support.syscalls import AT_EMPTY_PATH, AT_SYMLINK_FOLLOW, linkat, status
from tests.support.syscalls_data import EXT4, file_system

MANY_NAMES = 65_000 if LONG else 2_000
"""The most that ext4 takes."""


def only_links(path: Path, nlink: int) -> None:
    assert status(path).nlink == nlink


@pytest.mark.parametrize("kind", NO_DIRECTORY)
def test_every_name_is_the_same_file(folder: Path, kind: str) -> None:
    paths = [folder / "x", folder / "y", make("directory", folder / "d") / "z"]
    make(kind, paths[0])
    only_links(paths[0], 1)
    os.link(paths[0], paths[1], follow_symlinks=False)
    os.link(paths[1], paths[2], follow_symlinks=False)
    assert len({status(path) for path in paths}) == 1
    only_links(paths[0], 3)
    if kind != "symlink":
        paths[1].chmod(0o600)
    os.utime(paths[2], ns=(1, 2), follow_symlinks=False)
    assert len({status(path) for path in paths}) == 1
    for left, path in ((2, paths[0]), (1, paths[1])):
        path.unlink()
        raises(errno.ENOENT, os.lstat, path)
        only_links(paths[2], left)
    paths[2].unlink()


def test_what_one_name_writes_the_other_reads(folder: Path) -> None:
    (folder / "x").write_bytes(b"first")
    os.link(folder / "x", folder / "y")
    with open(folder / "x", "r+b", buffering=0) as file:
        (folder / "y").write_bytes(b"second one")
        assert file.read() == b"second one"
        os.truncate(folder / "x", 3)
        assert status(folder / "y").size == 3


@pytest.mark.parametrize("kind", KINDS)
def test_the_new_name_must_be_free(folder: Path, kind: str) -> None:
    make("regular", folder / "x")
    make(kind, folder / "y")
    raises(errno.EEXIST, os.link, folder / "x", folder / "y")
    raises(errno.EEXIST, os.link, folder / "x", folder / "x")
    only_links(folder / "x", 1)


def test_directories_have_one_name(folder: Path) -> None:
    make("directory", folder / "d")
    raises(errno.EPERM, os.link, folder / "d", folder / "e")
    raises(errno.EPERM, os.link, folder / "d", folder / "d" / "inside")
    raises(errno.EEXIST, os.link, folder / "d", folder / "d")
    only_links(folder / "d", 2)
    if os.geteuid() == 0:
        with acting_as(ALICE):
            raises(errno.EPERM, os.link, folder / "d", folder / "e")


def test_not_into_another_file_system(folder: Path) -> None:
    (folder / "x").touch()
    raises(errno.EXDEV, os.link, folder / "x", "/dev/shm/never-made")
    raises(errno.EXDEV, os.link, "/proc/self/status", folder / "y")
    assert os.listdir(folder) == ["x"]


def test_a_symlink_is_linked_itself_unless_one_says_otherwise(folder: Path) -> None:
    make("regular", folder / "x")
    (folder / "s").symlink_to("x")
    os.link(folder / "s", folder / "a")
    linkat(folder / "s", folder / "b", 0)
    linkat(folder / "s", folder / "c", AT_SYMLINK_FOLLOW)
    assert status(folder / "s") == status(folder / "a") == status(folder / "b")
    assert os.readlink(folder / "b") == "x"
    assert status(folder / "x") == status(folder / "c")
    (folder / "dangling").symlink_to(TARGET)
    os.link(folder / "dangling", folder / "d")
    raises(errno.ENOENT, linkat, folder / "dangling", folder / "e", AT_SYMLINK_FOLLOW)


def test_unknown_flags(folder: Path) -> None:
    make("regular", folder / "x")
    raises(errno.EINVAL, linkat, folder / "x", folder / "y", 0x10000)


def test_an_open_file_gets_another_name(folder: Path) -> None:
    with open(folder / "x", "wb") as file:
        linkat(f"/proc/self/fd/{file.fileno()}", folder / "y", AT_SYMLINK_FOLLOW)
        if os.geteuid() == 0:
            linkat("", folder / "z", AT_EMPTY_PATH, directory=file.fileno())
            only_links(folder / "z", 3)
            os.unlink(folder / "z")
    only_links(folder / "y", 2)


@as_root
def test_a_file_one_cannot_reach_is_not_linked(folder: Path) -> None:
    make("regular", make("directory", folder / "closed", 0o700) / "x", 0o666)
    with acting_as(ALICE):
        raises(errno.EACCES, os.link, folder / "closed" / "x", folder / "y")


def test_many_names_in_many_directories(folder: Path) -> None:
    make("regular", folder / "x")
    for number in range(20):
        make("directory", folder / f"{number}")
        for name in range(10):
            os.link(folder / "x", folder / f"{number}" / f"{name}")
    only_links(folder / "x", 201)
    only_links(folder / "7", 2)  # files in a directory are no links to it
    for number in range(20):
        for name in range(10):
            os.unlink(folder / f"{number}" / f"{name}")
    only_links(folder / "x", 1)


@pytest.mark.slow
def test_as_many_names_as_a_file_may_have(folder: Path) -> None:
    """ext4 counts them in 16 bits. A mount takes more than anybody has."""
    make("regular", folder / "x")
    make("directory", folder / "d")
    with contextlib.ExitStack() as stack:
        directory = os.open(folder / "d", os.O_RDONLY)
        stack.callback(os.close, directory)
        for number in range(MANY_NAMES - 1):
            os.link(folder / "x", f"{number}", dst_dir_fd=directory)
        only_links(folder / "x", MANY_NAMES)
        if file_system(folder) == EXT4 and LONG:
            raises(errno.EMLINK, os.link, folder / "x", "one more", dst_dir_fd=directory)
            os.unlink("0", dir_fd=directory)
        os.link(folder / "x", "one more", dst_dir_fd=directory)
        assert len(os.listdir(directory)) == status(folder / "x").nlink - 1
    shutil.rmtree(folder / "d")
    only_links(folder / "x", 1)


@pytest.mark.parametrize("victim", ["regular", "fifo", "symlink"])
def test_renaming_over_one_of_several_names_takes_one_link(folder: Path, victim: str) -> None:
    make(victim, folder / "x")
    os.link(folder / "x", folder / "y", follow_symlinks=False)
    make("regular", folder / "new")
    (folder / "new").rename(folder / "y")
    only_links(folder / "x", 1)
    only_links(folder / "y", 1)
    assert sorted(os.listdir(folder)) == ["x", "y"]
