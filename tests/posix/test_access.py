"""access and faccessat: what a user is told about his rights, and that the real user is asked for."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.kinds import KINDS, WITH_MODE, make
from tests.support.posix import ALICE, BOB, User, acting_as, as_root, raises
from tests.support.syscalls import AT_EACCESS, AT_FDCWD, AT_SYMLINK_NOFOLLOW, access, faccessat, setresgid, setresuid


@contextlib.contextmanager
def started_by(user: User) -> Iterator[None]:
    """The real user is *user*; the effective one stays root, as in a set-user-ID program."""
    setresgid(user.gid, -1, -1)
    setresuid(user.uid, -1, -1)
    try:
        yield
    finally:
        setresuid(0, -1, -1)
        setresgid(0, -1, -1)


def granted(path: Path, mode: int, flags: int) -> bool:
    """Raises: AssertionError: it was refused with anything but EACCES."""
    try:
        faccessat(path, mode, flags)
    except OSError as error:
        assert error.errno == errno.EACCES
        return False
    return True


@as_root
@pytest.mark.parametrize("kind", WITH_MODE)
@pytest.mark.parametrize("bits", range(8))
@pytest.mark.parametrize("shift", [6, 3, 0], ids=["owner", "group", "other"])
def test_each_class_is_told_its_own_rights(folder: Path, kind: str, bits: int, shift: int) -> None:
    others = 0o777 & ~(7 << shift) if bits != 7 else 0  # which must not count
    path = make(kind, folder / "x", others | bits << shift)
    os.chown(path, ALICE.uid if shift == 6 else 0, ALICE.gid if shift == 3 else 0)
    for asked in range(1, 8):
        expected = bits & asked == asked
        with acting_as(ALICE):
            assert granted(path, asked, AT_EACCESS) == expected
        with started_by(ALICE):
            assert granted(path, asked, 0) == expected


@as_root
@pytest.mark.parametrize("mode", [0o000, 0o001, 0o010, 0o100, 0o666], ids=oct)
def test_root_may_do_all_but_run_what_nobody_may_run(folder: Path, mode: int) -> None:
    for kind in ("regular", "directory", "fifo"):
        path = make(kind, folder / kind, mode)
        access(path, os.F_OK)
        access(path, os.R_OK | os.W_OK)
        if kind == "directory" or mode & 0o111:
            access(path, os.X_OK)
        else:
            raises(errno.EACCES, access, path, os.X_OK)
            raises(errno.EACCES, access, path, os.R_OK | os.X_OK)


@as_root
def test_the_real_user_is_asked_for_unless_one_says_otherwise(folder: Path) -> None:
    path = make("regular", folder / "x", 0o600)
    with started_by(BOB):
        raises(errno.EACCES, access, path, os.R_OK)
        raises(errno.EACCES, faccessat, path, os.R_OK, 0)
        faccessat(path, os.R_OK, AT_EACCESS)
        path.read_bytes()
    with acting_as(BOB):
        access(path, os.R_OK)
        raises(errno.EACCES, faccessat, path, os.R_OK, AT_EACCESS)
        raises(errno.EACCES, path.read_bytes)


@pytest.mark.parametrize("kind", KINDS)
def test_that_something_is_there(folder: Path, kind: str) -> None:
    path = make(kind, folder / "x")
    faccessat(path, os.F_OK, AT_SYMLINK_NOFOLLOW)
    if kind == "symlink":
        raises(errno.ENOENT, access, path, os.F_OK)
    raises(errno.ENOENT, access, folder / "y", os.F_OK)


def test_modes_and_flags_that_do_not_exist(folder: Path) -> None:
    raises(errno.EINVAL, access, folder, 8)
    raises(errno.EINVAL, access, folder, -1)
    raises(errno.EINVAL, faccessat, folder, os.R_OK, 0x10000)


def test_from_an_open_directory(folder: Path) -> None:
    (folder / "x").touch()
    directory = os.open(folder, os.O_RDONLY)
    try:
        faccessat("x", os.R_OK, 0, directory=directory)
        faccessat(folder / "x", os.R_OK, 0, directory=-1)
        raises(errno.ENOENT, faccessat, "y", os.R_OK, 0, directory=directory)
        raises(errno.EBADF, faccessat, "x", os.R_OK, 0, directory=-1)
        raises(errno.ENOENT, faccessat, "x", os.R_OK, 0, directory=AT_FDCWD)
    finally:
        os.close(directory)


@as_root
def test_changes_of_the_mode_count_at_once(folder: Path) -> None:
    path = make("regular", folder / "x", 0o600)
    for mode, may in ((0o600, False), (0o604, True), (0o600, False)):
        path.chmod(mode)
        with acting_as(BOB):
            assert granted(path, os.R_OK, AT_EACCESS) == may


@as_root
def test_the_way_counts_too(folder: Path) -> None:
    path = make("regular", make("directory", folder / "d", 0o700) / "x", 0o777)
    with acting_as(BOB):
        raises(errno.EACCES, faccessat, path, os.F_OK, AT_EACCESS)
    (folder / "d").chmod(0o701)
    with acting_as(BOB):
        faccessat(path, os.F_OK, AT_EACCESS)
        raises(errno.EACCES, faccessat, folder / "d", os.R_OK, AT_EACCESS)
