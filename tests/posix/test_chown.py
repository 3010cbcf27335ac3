"""Owners: chown, lchown, fchown, and who may give what to whom."""

import errno
import os
from pathlib import Path

import pytest

from tests.support.kinds import KINDS, WITH_MODE, make
from tests.support.posix import ALICE, BOB, FRIENDS, User, acting_as, as_root, raises
from tests.support.syscalls import AT_EMPTY_PATH, AT_SYMLINK_NOFOLLOW, fchownat, status

SAME = -1

pytestmark = as_root


def owners(what: Path | int) -> tuple[int, int]:
    found = status(what)
    return found.uid, found.gid


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ids", [(0, 0), (1, 2), (65534, 65535), (65536, 65537), (2**31 - 1, 2**31), (2**32 - 2,) * 2])
def test_every_kind_takes_every_owner(folder: Path, kind: str, ids: tuple[int, int]) -> None:
    path = make(kind, folder / "x")
    before = status(path)
    os.lchown(path, *ids)
    after = status(path)
    assert (after.uid, after.gid) == ids
    assert (after.mode, after.nlink, after.size) == (before.mode, before.nlink, before.size)


@pytest.mark.parametrize("kind", KINDS)
def test_minus_one_leaves_as_it_is(folder: Path, kind: str) -> None:
    path = make(kind, folder / "x")
    os.lchown(path, 11, 12)
    os.lchown(path, 21, SAME)
    assert owners(path) == (21, 12)
    os.lchown(path, SAME, 22)
    assert owners(path) == (21, 22)
    os.lchown(path, SAME, SAME)
    assert owners(path) == (21, 22)


def test_a_symlink_is_followed_or_not(folder: Path) -> None:
    (folder / "x").touch()
    (folder / "link").symlink_to("x")
    os.chown(folder / "link", 11, 12)
    assert (owners(folder / "x"), owners(folder / "link")) == ((11, 12), (0, 0))
    os.lchown(folder / "link", 21, 22)
    assert (owners(folder / "x"), owners(folder / "link")) == ((11, 12), (21, 22))
    fchownat(folder / "link", 31, 32, AT_SYMLINK_NOFOLLOW)
    assert (owners(folder / "x"), owners(folder / "link")) == ((11, 12), (31, 32))
    fchownat(folder / "link", 41, 42, 0)
    assert (owners(folder / "x"), owners(folder / "link")) == ((41, 42), (31, 32))


def test_the_owner_of_what_is_open(folder: Path) -> None:
    for kind in ("regular", "directory"):
        descriptor = os.open(make(kind, folder / kind), os.O_RDONLY)
        os.fchown(descriptor, 11, 12)
        assert owners(folder / kind) == owners(descriptor) == (11, 12)
        os.close(descriptor)
        raises(errno.EBADF, os.fchown, descriptor, 11, 12)


def test_the_owner_of_an_open_place(folder: Path) -> None:
    (folder / "link").symlink_to("nowhere")
    descriptor = os.open(folder / "link", os.O_PATH | os.O_NOFOLLOW)
    try:
        raises(errno.EBADF, os.fchown, descriptor, 11, 12)
        fchownat("", 21, 22, AT_EMPTY_PATH, directory=descriptor)
    finally:
        os.close(descriptor)
    assert owners(folder / "link") == (21, 22)


def test_all_names_of_a_file_have_its_owner(folder: Path) -> None:
    (folder / "x").touch()
    os.link(folder / "x", folder / "y")
    os.chown(folder / "y", 11, 12)
    assert owners(folder / "x") == (11, 12)


def test_unknown_flags(folder: Path) -> None:
    (folder / "x").touch()
    raises(errno.EINVAL, fchownat, folder / "x", 1, 1, 0x8000)


# The file is Alice's, with her group. -1 leaves as it is. What is not allowed is EPERM.
WHO_MAY: list[tuple[User | None, int, int, bool]] = [
    (None, BOB.uid, BOB.gid, True),
    (ALICE, ALICE.uid, FRIENDS, True),
    (ALICE, SAME, FRIENDS, True),
    (ALICE, ALICE.uid, ALICE.gid, True),
    (ALICE, ALICE.uid, SAME, True),
    (ALICE, SAME, SAME, True),
    (ALICE, SAME, BOB.gid, False),
    (ALICE, ALICE.uid, 0, False),
    (ALICE, BOB.uid, SAME, False),
    (ALICE, 0, SAME, False),
    (ALICE, BOB.uid, FRIENDS, False),
    (BOB, BOB.uid, SAME, False),
    (BOB, BOB.uid, BOB.gid, False),
    (BOB, SAME, BOB.gid, False),
    (BOB, ALICE.uid, SAME, False),
    (BOB, SAME, ALICE.gid, False),
    (BOB, SAME, SAME, True),
]


@pytest.mark.parametrize("kind", ["regular", "directory", "symlink", "fifo"])
@pytest.mark.parametrize(
    ("user", "uid", "gid", "may"),
    WHO_MAY,
    ids=[f"{user.uid if user else 'root'}-gives-{uid}-{gid}" for user, uid, gid, _ in WHO_MAY],
)
def test_who_may_give_it_to_whom(folder: Path, kind: str, user: User | None, uid: int, gid: int, may: bool) -> None:
    path = make(kind, folder / "x", 0o777)
    os.lchown(path, ALICE.uid, ALICE.gid)
    with acting_as(user):
        if may:
            os.lchown(path, uid, gid)
        else:
            raises(errno.EPERM, os.lchown, path, uid, gid)
    given = (ALICE.uid if uid == SAME else uid, ALICE.gid if gid == SAME else gid)
    assert owners(path) == (given if may else (ALICE.uid, ALICE.gid))


@pytest.mark.parametrize("kind", WITH_MODE)
def test_who_gets_a_file_owns_it_at_once(folder: Path, kind: str) -> None:
    path = make(kind, folder / "x", 0o600)
    os.chown(path, ALICE.uid, ALICE.gid)
    with acting_as(ALICE):
        path.chmod(0o640)
    os.chown(path, BOB.uid, BOB.gid)
    with acting_as(ALICE):
        raises(errno.EPERM, path.chmod, 0o600)
    with acting_as(BOB):
        path.chmod(0o600)
