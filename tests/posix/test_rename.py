"""rename and renameat2: what goes over what, link counts, and the flags."""

import errno
import os
import stat
from pathlib import Path

import pytest

from tests.support.kinds import KINDS, NO_DIRECTORY, make
from tests.support.posix import as_root, raises
from tests.support.syscalls import RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_WHITEOUT, renameat2, status

ALL_KINDS = ["regular", "directory", "symlink", "fifo", "socket"]


def identity(path: Path) -> tuple[int, int]:
    """What a rename does not change."""
    found = status(path)
    return found.number, found.mode


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", [".", "other"])
def test_every_kind_moves(folder: Path, kind: str, where: str) -> None:
    make("directory", folder / "other")
    path = make(kind, folder / "x")
    before = identity(path)
    links = status(path).nlink
    new = folder / where / "y"
    path.rename(new)
    raises(errno.ENOENT, os.lstat, path)
    assert (identity(new), status(new).nlink) == (before, links)
    assert os.listdir(new.parent).count("y") == 1 and "x" not in os.listdir(folder)
    new.rename(path)
    raises(errno.ENOENT, os.lstat, new)
    assert identity(path) == before


@pytest.mark.parametrize("old", ALL_KINDS)
@pytest.mark.parametrize("new", ALL_KINDS)
@pytest.mark.parametrize("where", [".", "other"])
def test_what_goes_over_what(folder: Path, old: str, new: str, where: str) -> None:
    make("directory", folder / "other")
    source, target = make(old, folder / "x"), make(new, folder / where / "y")
    before, victim = identity(source), identity(target)
    if (old == "directory") == (new == "directory"):
        source.rename(target)
        assert identity(target) == before
        raises(errno.ENOENT, os.lstat, source)
    else:
        raises(errno.ENOTDIR if old == "directory" else errno.EISDIR, os.rename, source, target)
        assert (identity(source), identity(target)) == (before, victim)


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_a_directory_that_is_not_empty_is_not_replaced(folder: Path, kind: str) -> None:
    make("directory", folder / "x")
    make(kind, make("directory", folder / "y") / "inside")
    raises(errno.ENOTEMPTY, os.rename, folder / "x", folder / "y")
    make("regular", folder / "x" / "own")
    raises(errno.ENOTEMPTY, os.rename, folder / "x", folder / "y")
    assert (os.listdir(folder / "x"), os.listdir(folder / "y")) == (["own"], ["inside"])


def test_a_directory_takes_what_is_in_it_along(folder: Path) -> None:
    (folder / "a" / "b" / "c").mkdir(parents=True)
    (folder / "a" / "b" / "x").write_bytes(b"x")
    make("directory", folder / "empty")
    with open(folder / "a" / "b" / "x", "ab") as file:
        (folder / "a").rename(folder / "empty")
        file.write(b"y")
    assert (folder / "empty" / "b" / "x").read_bytes() == b"xy"
    assert os.listdir(folder) == ["empty"]
    raises(errno.ENOENT, os.stat, folder / "a" / "b" / "x")


@pytest.mark.parametrize("kind", KINDS)
def test_onto_itself_nothing_happens(folder: Path, kind: str) -> None:
    path = make(kind, folder / "x")
    before = status(path)
    path.rename(path)
    assert status(path) == before
    assert os.listdir(folder) == ["x"]


@pytest.mark.parametrize("kind", NO_DIRECTORY)
@pytest.mark.parametrize("where", [".", "other"])
def test_onto_another_name_of_itself_nothing_happens(folder: Path, kind: str, where: str) -> None:
    make("directory", folder / "other")
    path = make(kind, folder / "x")
    os.link(path, folder / where / "y", follow_symlinks=False)
    before = status(path)
    path.rename(folder / where / "y")
    assert status(path) == status(folder / where / "y") == before


@pytest.mark.parametrize("below", ["d/x", "d/sub/x", "d/sub", "d/sub/deep/x"])
def test_not_into_itself(folder: Path, below: str) -> None:
    (folder / "d" / "sub" / "deep").mkdir(parents=True)
    raises(errno.EINVAL, os.rename, folder / "d", folder / below)
    assert (folder / "d" / "sub" / "deep").is_dir()


@pytest.mark.parametrize("above", ["a", "a/b"])
def test_not_over_what_it_is_in(folder: Path, above: str) -> None:
    (folder / "a" / "b" / "c").mkdir(parents=True)
    raises(errno.ENOTEMPTY, os.rename, folder / "a" / "b" / "c", folder / above)
    make("regular", folder / "a" / "b" / "x")
    raises(errno.ENOTEMPTY, os.rename, folder / "a" / "b" / "x", folder / above)


def test_a_directory_that_just_looks_like_the_parent(folder: Path) -> None:
    make("directory", folder / "d")
    (folder / "d").rename(folder / "dd")
    make("directory", folder / "d")
    (folder / "d").rename(folder / "dd" / "d")
    assert os.listdir(folder / "dd") == ["d"]


def test_not_into_another_file_system(folder: Path) -> None:
    for kind in ("regular", "directory"):
        raises(errno.EXDEV, os.rename, make(kind, folder / kind), "/dev/shm/never-made")
        raises(errno.EXDEV, renameat2, folder / kind, "/dev/shm", RENAME_EXCHANGE)
    assert sorted(os.listdir(folder)) == ["directory", "regular"]


def test_symlinks_are_renamed_themselves(folder: Path) -> None:
    make("regular", folder / "x")
    make("directory", folder / "d")
    (folder / "to-file").symlink_to("x")
    (folder / "to-directory").symlink_to("d")
    (folder / "to-file").rename(folder / "to-directory")
    assert os.readlink(folder / "to-directory") == "x"
    make("regular", folder / "y")
    (folder / "y").rename(folder / "to-directory")
    assert stat.S_ISREG(status(folder / "to-directory").mode)
    raises(errno.ENOTDIR, os.rename, folder / "d", folder / "to-directory")


# --- link counts -----------------------------------------------------------------------------------------------------


def test_the_parents_of_a_directory_count_it(folder: Path) -> None:
    a, b = make("directory", folder / "a"), make("directory", folder / "b")
    make("directory", a / "d")
    assert (status(a).nlink, status(b).nlink) == (3, 2)
    (a / "d").rename(a / "e")
    assert (status(a).nlink, status(b).nlink) == (3, 2)
    (a / "e").rename(b / "d")
    assert (status(a).nlink, status(b).nlink, status(b / "d").nlink) == (2, 3, 2)
    assert os.stat(b / "d" / "..").st_ino == status(b).number
    make("directory", a / "d")
    (a / "d").rename(b / "d")  # over the other
    assert (status(a).nlink, status(b).nlink) == (2, 3)
    make("directory", b / "e")
    (b / "e").rename(b / "d")
    assert status(b).nlink == 3


def test_the_one_that_is_replaced_loses_a_link(folder: Path) -> None:
    make("regular", folder / "x")
    make("regular", folder / "y")
    os.link(folder / "y", folder / "z")
    with open(folder / "y", "rb") as file:
        (folder / "x").rename(folder / "y")
        assert status(file.fileno()).nlink == status(folder / "z").nlink == 1
        make("regular", folder / "w")
        (folder / "w").rename(folder / "z")
        assert status(file.fileno()).nlink == 0


# --- flags -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("old", ALL_KINDS)
@pytest.mark.parametrize("new", ALL_KINDS)
def test_replacing_nothing(folder: Path, old: str, new: str) -> None:
    source = make(old, folder / "x")
    renameat2(source, folder / "y", RENAME_NOREPLACE)
    before = identity(folder / "y")
    victim = identity(make(new, folder / "z"))
    raises(errno.EEXIST, renameat2, folder / "y", folder / "z", RENAME_NOREPLACE)
    raises(errno.EEXIST, renameat2, folder / "y", folder / "y", RENAME_NOREPLACE)
    assert (identity(folder / "y"), identity(folder / "z")) == (before, victim)
    raises(errno.ENOENT, renameat2, folder / "x", folder / "z", RENAME_NOREPLACE)


@pytest.mark.parametrize("one", ALL_KINDS)
@pytest.mark.parametrize("other", ALL_KINDS)
@pytest.mark.parametrize("where", [".", "there"])
def test_exchanging(folder: Path, one: str, other: str, where: str) -> None:
    """Link counts of the parents follow the directories."""
    there = make("directory", folder / "there")
    first, second = make(one, folder / "x"), make(other, folder / where / "y")
    links = status(folder).nlink, status(there).nlink
    before = identity(first), identity(second)
    renameat2(first, second, RENAME_EXCHANGE)
    assert (identity(second), identity(first)) == before
    moved = ((one == "directory") - (other == "directory")) * (where == "there")
    assert (status(folder).nlink, status(there).nlink) == (links[0] - moved, links[1] + moved)
    if other == "directory":
        assert os.stat(first / "..").st_ino == status(folder).number
    renameat2(first, second, RENAME_EXCHANGE)
    assert (identity(first), identity(second)) == before
    assert (status(folder).nlink, status(there).nlink) == links


def test_exchanging_full_directories(folder: Path) -> None:
    for name in "ab":
        (folder / name / name).mkdir(parents=True)
    renameat2(folder / "a", folder / "b", RENAME_EXCHANGE)
    assert (os.listdir(folder / "a"), os.listdir(folder / "b")) == (["b"], ["a"])


def test_exchanging_what_cannot_be(folder: Path) -> None:
    (folder / "d" / "sub").mkdir(parents=True)
    make("regular", folder / "d" / "x")
    raises(errno.EINVAL, renameat2, folder / "d", folder / "d" / "sub", RENAME_EXCHANGE)
    raises(errno.EINVAL, renameat2, folder / "d" / "sub", folder / "d", RENAME_EXCHANGE)
    raises(errno.EINVAL, renameat2, folder / "d", folder / "d" / "x", RENAME_EXCHANGE)
    raises(errno.EINVAL, renameat2, folder / "d" / "x", folder / "d", RENAME_EXCHANGE)
    raises(errno.ENOENT, renameat2, folder / "d", folder / "nothing", RENAME_EXCHANGE)
    raises(errno.ENOENT, renameat2, folder / "nothing", folder / "d", RENAME_EXCHANGE)
    assert sorted(os.listdir(folder / "d")) == ["sub", "x"]


def test_exchanging_a_file_with_itself(folder: Path) -> None:
    make("regular", folder / "x")
    os.link(folder / "x", folder / "y")
    before = status(folder / "x")
    renameat2(folder / "x", folder / "x", RENAME_EXCHANGE)
    renameat2(folder / "x", folder / "y", RENAME_EXCHANGE)
    assert identity(folder / "x") == identity(folder / "y") == (before.number, before.mode)
    assert status(folder / "x").nlink == 2


@pytest.mark.parametrize(
    "flags",
    [
        RENAME_NOREPLACE | RENAME_EXCHANGE,
        RENAME_EXCHANGE | RENAME_WHITEOUT,
        8,
        8 | RENAME_NOREPLACE,
        1 << 31,
        2**32 - 1,
    ],
)
def test_flags_that_do_not_exist_or_do_not_go_together(folder: Path, flags: int) -> None:
    make("regular", folder / "x")
    make("regular", folder / "y")
    raises(errno.EINVAL, renameat2, folder / "x", folder / "y", flags)
    raises(errno.EINVAL, renameat2, folder / "x", folder / "z", flags)
    assert sorted(os.listdir(folder)) == ["x", "y"]


@as_root
def test_leaving_a_whiteout(top: Path, folder: Path) -> None:
    """For the upper layer of an overlay. A mount of ours cannot be one."""
    make("regular", folder / "x")
    if os.path.ismount(top):
        raises(errno.EINVAL, renameat2, folder / "x", folder / "y", RENAME_WHITEOUT)
        assert os.listdir(folder) == ["x"]
    else:
        renameat2(folder / "x", folder / "y", RENAME_WHITEOUT)
        found = status(folder / "x")
        assert stat.S_ISCHR(found.mode) and found.rdev == 0
