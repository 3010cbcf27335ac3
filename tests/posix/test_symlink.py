"""Symbolic links: what they hold, byte for byte, and who follows them."""

import errno
import os
import stat
from pathlib import Path

import pytest

from tests.support.kinds import KINDS, NO_DIRECTORY, make
from tests.support.posix import ALICE, acting_as, as_root, raises
from tests.support.syscalls import status

TARGET_MAX = 4095


@pytest.mark.parametrize(
    "target",
    [b".", b"..", b"/", b"a//b/./", b"x" * 255, b"x" * 256, b"trailing/", b" ", b"\n", bytes(range(1, 256))],
    ids=lambda target: repr(target)[:20],
)
def test_the_target_is_kept_byte_for_byte(folder: Path, target: bytes) -> None:
    link = folder / "link"
    os.symlink(target, os.fsencode(link))
    assert os.readlink(os.fsencode(link)) == target
    found = status(link)
    assert (stat.S_IFMT(found.mode), found.size, found.nlink) == (stat.S_IFLNK, len(target), 1)


@pytest.mark.parametrize("length", [1, 59, 60, 61, 1023, 4094, TARGET_MAX])
def test_targets_of_every_length(folder: Path, length: int) -> None:
    target = "t/" * (length // 2) + "t" * (length % 2)
    (folder / "link").symlink_to(target)
    assert os.readlink(folder / "link") == target
    assert status(folder / "link").size == length


def test_targets_that_cannot_be(folder: Path) -> None:
    raises(errno.ENOENT, os.symlink, "", folder / "link")
    raises(errno.ENAMETOOLONG, os.symlink, "x" * (TARGET_MAX + 1), folder / "link")
    assert os.listdir(folder) == []


@pytest.mark.parametrize("kind", KINDS)
def test_the_name_must_be_free(folder: Path, kind: str) -> None:
    make(kind, folder / "x")
    before = status(folder / "x")
    raises(errno.EEXIST, os.symlink, "target", folder / "x")
    assert status(folder / "x") == before


@pytest.mark.parametrize("kind", [*NO_DIRECTORY, "directory"])
def test_only_symlinks_are_read_as_such(folder: Path, kind: str) -> None:
    make(kind, folder / "x")
    if kind == "symlink":
        os.readlink(folder / "x")
    else:
        raises(errno.EINVAL, os.readlink, folder / "x")


@pytest.mark.parametrize("kind", KINDS)
def test_it_leads_to_every_kind(folder: Path, kind: str) -> None:
    make(kind, folder / "x")
    (folder / "link").symlink_to("x")
    (folder / "second").symlink_to(folder / "link")
    if kind == "symlink":
        raises(errno.ENOENT, os.stat, folder / "second")
    else:
        assert os.stat(folder / "second").st_ino == status(folder / "x").number


def test_a_relative_target_starts_where_the_link_is(folder: Path) -> None:
    (folder / "a" / "b").mkdir(parents=True)
    (folder / "x").write_bytes(b"top")
    (folder / "a" / "x").write_bytes(b"a")
    (folder / "a" / "b" / "link").symlink_to("../x")
    assert (folder / "a" / "b" / "link").read_bytes() == b"a"
    (folder / "a" / "b" / "link").rename(folder / "a" / "link")
    assert (folder / "a" / "link").read_bytes() == b"top"


def test_a_link_that_dangled_leads_somewhere_once_there_is_something(folder: Path) -> None:
    (folder / "link").symlink_to("x")
    raises(errno.ENOENT, os.stat, folder / "link")
    (folder / "x").write_bytes(b"now")
    assert (folder / "link").read_bytes() == b"now"
    (folder / "x").unlink()
    raises(errno.ENOENT, os.stat, folder / "link")


def test_a_new_link_of_the_same_name_leads_to_its_own_target(folder: Path) -> None:
    for target in ("one", "another", "one"):
        (folder / "link").symlink_to(target)
        assert os.readlink(folder / "link") == target
        (folder / "link").unlink()
    (folder / "link").symlink_to("one")
    (folder / "new").symlink_to("another")
    (folder / "new").rename(folder / "link")
    assert os.readlink(folder / "link") == "another"


def test_writing_through_it(folder: Path) -> None:
    (folder / "link").symlink_to("x")
    (folder / "link").write_bytes(b"through")
    assert (folder / "x").read_bytes() == b"through"
    os.truncate(folder / "link", 4)
    assert status(folder / "x").size == 4
    assert os.readlink(folder / "link") == "x"


def test_making_a_directory_through_it_is_refused(folder: Path) -> None:
    (folder / "link").symlink_to("d")
    raises(errno.EEXIST, os.mkdir, folder / "link")
    raises(errno.EEXIST, os.mkdir, f"{folder}/link/")
    (folder / "d").mkdir()
    (folder / "link" / "inside").mkdir()
    assert os.listdir(folder / "d") == ["inside"]


@as_root
def test_anybody_may_read_where_it_leads(folder: Path) -> None:
    (folder / "link").symlink_to("x")
    os.lchown(folder / "link", 0, 0)
    with acting_as(ALICE):
        assert os.readlink(folder / "link") == "x"


def test_programs_meet_symlinks_out_of_the_file_system_and_back(folder: Path) -> None:
    (folder / "out").symlink_to("/proc/self/cwd")
    assert os.stat(folder / "out").st_ino == os.stat(".").st_ino
    (folder / "in").symlink_to(folder)
    (folder / "x").write_bytes(b"x")
    assert (folder / "in" / "in" / "in" / "x").read_bytes() == b"x"
