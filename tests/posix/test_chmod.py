"""Modes: chmod, fchmod and their kin, who may call them, and what the umask leaves of a new file's mode."""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.kinds import KINDS, WITH_MODE, make
from tests.support.posix import ALICE, BOB, User, acting_as, as_root, raises
from tests.support.syscalls import AT_SYMLINK_NOFOLLOW, fchmodat, status

MODES = [0o000, 0o001, 0o070, 0o111, 0o222, 0o444, 0o644, 0o777, 0o1000, 0o1755, 0o2070, 0o2755, 0o4711, 0o6755, 0o7777]


@pytest.mark.parametrize("kind", WITH_MODE)
def test_every_mode_of_every_kind(folder: Path, kind: str) -> None:
    path = make(kind, folder / "x")
    before = status(path)
    for mode in MODES:
        path.chmod(mode)
        found = status(path)
        assert stat.S_IMODE(found.mode) == mode
        assert stat.S_IFMT(found.mode) == stat.S_IFMT(before.mode)
        assert (found.uid, found.gid, found.nlink, found.number) == (
            before.uid,
            before.gid,
            before.nlink,
            before.number,
        )


@pytest.mark.parametrize("kind", ["regular", "directory"])
def test_the_mode_of_what_is_open(folder: Path, kind: str) -> None:
    path = make(kind, folder / "x")
    descriptor = os.open(path, os.O_RDONLY)
    try:
        for mode in MODES:
            os.fchmod(descriptor, mode)
            assert stat.S_IMODE(status(path).mode) == stat.S_IMODE(status(descriptor).mode) == mode
    finally:
        os.close(descriptor)
    raises(errno.EBADF, os.fchmod, descriptor, 0o644)


def test_an_open_file_stays_open_whatever_its_mode_becomes(folder: Path) -> None:
    with open(folder / "x", "w+b", buffering=0) as file:
        os.fchmod(file.fileno(), 0o000)
        file.write(b"still")
        assert os.pread(file.fileno(), 5, 0) == b"still"


def test_the_mode_behind_a_symlink(folder: Path) -> None:
    (folder / "x").touch()
    (folder / "link").symlink_to("x")
    (folder / "link").chmod(0o600)
    assert stat.S_IMODE(status(folder / "x").mode) == 0o600
    assert stat.S_IMODE(status(folder / "link").mode) == 0o777


def test_a_symlink_has_no_mode_to_change(folder: Path) -> None:
    make("regular", folder / "x")
    (folder / "link").symlink_to("x")
    raises(errno.EOPNOTSUPP, fchmodat, folder / "link", 0o600, AT_SYMLINK_NOFOLLOW)
    fchmodat(folder / "x", 0o640, AT_SYMLINK_NOFOLLOW)
    raises(errno.EINVAL, fchmodat, folder / "x", 0o600, 0x8000)
    assert [stat.S_IMODE(status(folder / name).mode) for name in ("link", "x")] == [0o777, 0o640]


def test_a_descriptor_that_is_only_a_place_cannot_change_it(folder: Path) -> None:
    (folder / "x").touch()
    descriptor = os.open(folder / "x", os.O_PATH)
    try:
        raises(errno.EBADF, os.fchmod, descriptor, 0o600)
        os.chmod(f"/proc/self/fd/{descriptor}", 0o600)
    finally:
        os.close(descriptor)
    assert stat.S_IMODE(status(folder / "x").mode) == 0o600


def test_all_names_of_a_file_have_its_mode(folder: Path) -> None:
    (folder / "x").touch()
    os.link(folder / "x", folder / "y")
    (folder / "y").chmod(0o640)
    assert stat.S_IMODE(status(folder / "x").mode) == 0o640


def test_bits_beyond_the_mode_are_ignored(folder: Path) -> None:
    (folder / "x").touch()
    os.chmod(folder / "x", stat.S_IFDIR | 0o640)
    assert status(folder / "x").mode == stat.S_IFREG | 0o640


@as_root
@pytest.mark.parametrize("kind", WITH_MODE)
@pytest.mark.parametrize(("user", "may"), [(None, True), (ALICE, True), (BOB, False)], ids=["root", "owner", "other"])
def test_who_may_change_it(folder: Path, kind: str, user: User | None, may: bool) -> None:
    path = make(kind, folder / "x", 0o666)
    os.chown(path, ALICE.uid, BOB.gid)  # being in the group does not help
    with acting_as(user):
        if may:
            path.chmod(0o640)
        else:
            raises(errno.EPERM, path.chmod, 0o640)
            raises(errno.EPERM, path.chmod, 0o666)  # not even into what it is
    assert stat.S_IMODE(status(path).mode) == (0o640 if may else 0o666)


@as_root
def test_who_may_change_the_mode_of_what_is_open(folder: Path) -> None:
    with open(folder / "x", "w+b") as file, acting_as(ALICE):
        raises(errno.EPERM, os.fchmod, file.fileno(), 0o666)


@as_root
@pytest.mark.parametrize("kind", ["regular", "directory"])
def test_on_linux_the_owner_may_set_the_sticky_bit_on_anything(folder: Path, kind: str) -> None:
    path = make(kind, folder / "x")
    os.chown(path, ALICE.uid, ALICE.gid)
    with acting_as(ALICE):
        path.chmod(0o1755)
    assert stat.S_IMODE(status(path).mode) == 0o1755


# --- the mode of what is new -----------------------------------------------------------------------------------------


@pytest.fixture
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o151, 0o345, 0o501, 0o777], indirect=True)
def test_the_umask_takes_bits_away(folder: Path, umask: int) -> None:
    for mode in (0o000, 0o151, 0o345, 0o501, 0o644, 0o755, 0o777):
        paths = [folder / f"{kind}-{mode}" for kind in ("file", "directory", "fifo", "node")]
        os.close(os.open(paths[0], os.O_CREAT | os.O_WRONLY, mode))
        os.mkdir(paths[1], mode)
        os.mkfifo(paths[2], mode)
        os.mknod(paths[3], stat.S_IFREG | mode)
        for path in paths:
            assert stat.S_IMODE(status(path).mode) == mode & ~umask, path


@pytest.mark.parametrize("umask", [0o000, 0o777], indirect=True)
def test_the_umask_does_not_touch_symlinks(folder: Path, umask: int) -> None:
    (folder / "link").symlink_to("x")
    assert stat.S_IMODE(status(folder / "link").mode) == 0o777


@pytest.mark.parametrize("umask", [0o777], indirect=True)
def test_the_umask_does_not_touch_chmod(folder: Path, umask: int) -> None:
    os.close(os.open(folder / "x", os.O_CREAT | os.O_WRONLY, 0o777))
    (folder / "x").chmod(0o777)
    assert stat.S_IMODE(status(folder / "x").mode) == 0o777


@pytest.mark.parametrize("umask", [0o022], indirect=True)
@pytest.mark.parametrize(
    ("kind", "asked", "given"),
    [("file", 0o7777, 0o7755), ("directory", 0o7777, 0o1755), ("node", 0o7777, 0o7755), ("fifo", 0o7777, 0o7755)],
)
def test_special_bits_of_a_new_file(folder: Path, umask: int, kind: str, asked: int, given: int) -> None:
    path = folder / "x"
    match kind:
        case "file":
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY, asked))
        case "directory":
            os.mkdir(path, asked)
        case "node":
            os.mknod(path, stat.S_IFREG | asked)
        case "fifo":
            os.mkfifo(path, asked)
    assert stat.S_IMODE(status(path).mode) == given


@pytest.mark.parametrize("umask", [0o022], indirect=True)
def test_the_mode_counts_only_when_the_file_is_new(folder: Path, umask: int) -> None:
    make("regular", folder / "x", 0o600)
    os.close(os.open(folder / "x", os.O_CREAT | os.O_WRONLY, 0o777))
    assert stat.S_IMODE(status(folder / "x").mode) == 0o600


@pytest.mark.parametrize("umask", [0o022], indirect=True)
@pytest.mark.parametrize("mode", [0o000, 0o200, 0o400, 0o444])
def test_who_makes_a_file_may_use_it_whatever_its_mode(folder: Path, umask: int, mode: int) -> None:
    with acting_as(ALICE if os.geteuid() == 0 else None):
        descriptor = os.open(folder / "x", os.O_CREAT | os.O_EXCL | os.O_RDWR, mode)
    os.write(descriptor, b"mine")
    assert os.pread(descriptor, 4, 0) == b"mine"
    os.close(descriptor)


@as_root
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_new_belongs_to_its_maker(folder: Path, kind: str) -> None:
    if kind in ("character", "block"):
        with acting_as(ALICE):
            raises(errno.EPERM, make, kind, folder / "x")
        return
    with acting_as(ALICE):
        make(kind, folder / "x")
    found = status(folder / "x")
    assert (found.uid, found.gid) == (ALICE.uid, ALICE.gid)
