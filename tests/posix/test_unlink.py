"""unlink and rmdir: what may go, and what is left behind."""

import errno
import os
from pathlib import Path

import pytest

from tests.support.kinds import KINDS, NO_DIRECTORY, make, remove
from tests.support.posix import ALICE, acting_as, as_root, raises
from tests.support.syscalls import status


@pytest.mark.parametrize("kind", KINDS)
def test_a_name_that_went_is_free_for_any_kind(folder: Path, kind: str) -> None:
    path = folder / "x"
    for other in ("regular", "directory", "symlink", "fifo"):
        make(kind, path)
        remove(kind, path)
        raises(errno.ENOENT, os.lstat, path)
        assert os.listdir(folder) == []
        make(other, path)
        remove(other, path)
    raises(errno.ENOENT, os.unlink, path)
    raises(errno.ENOENT, os.rmdir, path)


@pytest.mark.parametrize("kind", NO_DIRECTORY)
def test_rmdir_is_for_directories(folder: Path, kind: str) -> None:
    path = make(kind, folder / "x")
    raises(errno.ENOTDIR, os.rmdir, path)
    assert os.path.lexists(path)


@pytest.mark.parametrize("where", ["root", "user"])
def test_unlink_is_not_for_directories(folder: Path, where: str) -> None:
    path = make("directory", folder / "d", 0o777)
    if where == "user" and os.geteuid() != 0:
        pytest.skip("one is a user already")
    with acting_as(ALICE if where == "user" else None):
        raises(errno.EISDIR, os.unlink, path)
    assert path.is_dir()


@pytest.mark.parametrize("kind", KINDS)
def test_a_directory_must_be_empty(folder: Path, kind: str) -> None:
    path = make("directory", folder / "d")
    make(kind, path / "x")
    raises(errno.ENOTEMPTY, os.rmdir, path)
    assert os.listdir(path) == ["x"]
    remove(kind, path / "x")
    os.rmdir(path)


def test_a_symlink_to_a_directory_is_no_directory(folder: Path) -> None:
    make("directory", folder / "d")
    (folder / "link").symlink_to("d")
    raises(errno.ENOTDIR, os.rmdir, folder / "link")
    raises(errno.ENOTDIR, os.rmdir, f"{folder}/link/")
    os.unlink(folder / "link")
    assert os.listdir(folder) == ["d"]


def test_the_top_of_a_mount_is_busy(top: Path) -> None:
    """The plain folder is only not empty."""
    (top / "full").touch()
    raises(errno.EBUSY if os.path.ismount(top) else errno.ENOTEMPTY, os.rmdir, top)


def test_a_directory_that_somebody_is_in(folder: Path) -> None:
    """On Linux that hinders nobody."""
    path = make("directory", folder / "d")
    before = os.open(".", os.O_RDONLY)
    os.chdir(path)
    try:
        os.rmdir(path)
        raises(errno.ENOENT, os.mkdir, "x")
        raises(errno.ENOENT, os.getcwd)
        assert os.listdir(".") == []
    finally:
        os.fchdir(before)
        os.close(before)


def test_links_of_directories(folder: Path) -> None:
    """Two of its own, and one of each directory in it."""
    links = status(folder).nlink
    for number in range(5):
        make("directory", folder / f"{number}")
        assert status(folder).nlink == links + number + 1
    for kind in ("regular", "fifo", "symlink"):
        make(kind, folder / kind)
    assert status(folder).nlink == links + 5
    for number in range(5):
        remove("directory", folder / f"{number}")
        assert status(folder).nlink == links + 4 - number


@as_root
def test_a_name_goes_whatever_the_mode_of_the_file(folder: Path) -> None:
    for kind in ("regular", "directory", "fifo"):
        make(kind, folder / kind, 0)
        with acting_as(ALICE):
            remove(kind, folder / kind)
    assert os.listdir(folder) == []


def test_a_file_that_runs_can_be_unlinked(folder: Path) -> None:
    path = folder / "program"
    path.write_bytes(Path("/bin/cat").read_bytes())
    path.chmod(0o755)
    reader, writer = os.pipe()
    child = os.posix_spawn(path, ["cat"], {}, file_actions=[(os.POSIX_SPAWN_DUP2, reader, 0)])
    os.close(reader)
    os.unlink(path)
    os.close(writer)  # where cat ends
    assert os.waitpid(child, 0)[1] == 0
