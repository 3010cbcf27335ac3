"""Directories with the sticky bit, as /tmp: only the owner of the file, of the directory, or root removes a name."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.kinds import make, remove
from tests.support.posix import ALICE, BOB, User, acting_as, as_root, raises
from tests.support.syscalls import RENAME_EXCHANGE, renameat2

CAROL = User(61003, 61003)

pytestmark = as_root

KINDS = ["regular", "directory", "symlink", "fifo", "socket"]
each_kind = pytest.mark.parametrize("kind", KINDS)
# Alice owns the directory, Bob the file.
each_user = pytest.mark.parametrize(
    ("user", "may"),
    [(None, True), (ALICE, True), (BOB, True), (CAROL, False)],
    ids=["root", "owner-of-the-directory", "owner-of-the-file", "somebody"],
)


@pytest.fixture
def sticky(folder: Path) -> Path:
    path = make("directory", folder / "sticky", 0o1777)
    os.chown(path, ALICE.uid, ALICE.gid)
    return path


def bobs(kind: str, path: Path) -> Path:
    make(kind, path, 0o777)
    os.lchown(path, BOB.uid, BOB.gid)
    return path


def expect(may: bool, call: Callable[..., object], *arguments: object) -> None:
    if may:
        call(*arguments)
    else:
        raises(errno.EPERM, call, *arguments)


@each_kind
@each_user
def test_removing(sticky: Path, kind: str, user: User | None, may: bool) -> None:
    path = bobs(kind, sticky / "x")
    with acting_as(user):
        expect(may, remove, kind, path)
    assert os.path.lexists(path) != may


@each_kind
@each_user
def test_renaming(folder: Path, sticky: Path, kind: str, user: User | None, may: bool) -> None:
    path = bobs(kind, sticky / "x")
    with acting_as(user):
        expect(may, os.rename, path, sticky / "y")
        if may:
            os.rename(sticky / "y", path)
        expect(may, os.rename, path, folder / "out")
    assert os.path.lexists(folder / "out") == may


@each_kind
@each_user
def test_replacing(folder: Path, sticky: Path, kind: str, user: User | None, may: bool) -> None:
    bobs(kind, sticky / "x")
    make(kind, folder / "new", 0o777)
    if user:
        os.lchown(folder / "new", user.uid, user.gid)
    with acting_as(user):
        expect(may, os.rename, folder / "new", sticky / "x")
    assert os.path.lexists(folder / "new") != may


@each_user
@pytest.mark.parametrize("order", [1, -1], ids=["out", "in"])
def test_exchanging(folder: Path, sticky: Path, order: int, user: User | None, may: bool) -> None:
    bobs("regular", sticky / "x")
    make("regular", folder / "y", 0o777)
    with acting_as(user):
        expect(may, renameat2, *((sticky / "x", folder / "y")[::order]), RENAME_EXCHANGE)


@each_user
def test_making_and_linking_are_free(sticky: Path, user: User | None, may: bool) -> None:
    path = bobs("regular", sticky / "x")
    with acting_as(user):
        make("regular", sticky / "own")
        os.link(path, sticky / "linked")
        os.rename(sticky / "own", sticky / "own-2")
        os.unlink(sticky / "own-2")


def test_without_the_bit_the_files_owner_does_not_matter(sticky: Path) -> None:
    path = bobs("regular", sticky / "x")
    with acting_as(CAROL):
        raises(errno.EPERM, os.unlink, path)
    sticky.chmod(0o777)
    with acting_as(CAROL):
        os.unlink(path)


def test_owning_the_file_is_not_enough_to_write_the_directory(sticky: Path) -> None:
    path = bobs("regular", sticky / "x")
    sticky.chmod(0o1755)
    with acting_as(BOB):
        raises(errno.EACCES, os.unlink, path)


def test_a_new_owner_counts_at_once(sticky: Path) -> None:
    path = bobs("regular", sticky / "x")
    os.chown(path, CAROL.uid, CAROL.gid)
    with acting_as(BOB):
        raises(errno.EPERM, os.unlink, path)
    os.chown(sticky, BOB.uid, BOB.gid)
    with acting_as(BOB):
        os.unlink(path)


@each_user
def test_only_the_file_that_goes_counts_not_what_is_in_it(sticky: Path, user: User | None, may: bool) -> None:
    path = bobs("directory", sticky / "d")
    make("regular", path / "x")
    with acting_as(user):
        os.unlink(path / "x")
