"""Permissions: what each class of users may do with a file or a directory, for each of its permission bits.

The bits of the other two classes are always the opposite, so that asking the wrong class shows.
"""

import errno
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.kinds import make
from tests.support.posix import ALICE, BOB, FRIENDS, User, acting_as, as_root, put_program, raises
from tests.support.syscalls import RENAME_EXCHANGE, renameat2

pytestmark = as_root

READ, WRITE, SEARCH = 4, 2, 1
CLASSES = ["owner", "group", "second-group", "other"]
bits_of_a_class = pytest.mark.parametrize("bits", range(8), ids=lambda bits: f"{bits:03b}")
each_class = pytest.mark.parametrize("who", CLASSES)


def allow(path: Path, who: str, bits: int) -> None:
    """Give Alice, as *who*, these bits on *path*, and everybody else the opposite."""
    shift = {"owner": 6, "other": 0}.get(who, 3)
    group = {"group": ALICE.gid, "second-group": FRIENDS}.get(who, BOB.gid)
    os.chown(path, ALICE.uid if who == "owner" else BOB.uid, group)
    path.chmod(0o777 ^ (0o7 ^ bits) << shift if bits == 0 else bits << shift | ((7 ^ bits) * 0o111 & ~(7 << shift)))


def expect(may: bool, call: Callable[..., object], *arguments: object) -> None:
    if may:
        call(*arguments)
    else:
        raises(errno.EACCES, call, *arguments)


def opened(path: Path, flags: int) -> None:
    os.close(os.open(path, flags))


# --- files -----------------------------------------------------------------------------------------------------------


@each_class
@bits_of_a_class
def test_files(folder: Path, who: str, bits: int) -> None:
    path = folder / "x"
    path.write_bytes(b"data")
    allow(path, who, bits)
    with acting_as(ALICE):
        expect(bool(bits & READ), opened, path, os.O_RDONLY)
        expect(bool(bits & WRITE), opened, path, os.O_WRONLY)
        expect(bool(bits & WRITE), opened, path, os.O_WRONLY | os.O_APPEND)
        expect(bits & 6 == 6, opened, path, os.O_RDWR)
        expect(bool(bits & WRITE), os.truncate, path, 2)
        expect(bits & 6 == 6, opened, path, os.O_RDONLY | os.O_TRUNC)
        expect(bool(bits & WRITE), opened, path, os.O_WRONLY | os.O_TRUNC)
        opened(path, os.O_PATH)
        os.stat(path)


@each_class
@pytest.mark.parametrize("kind", ["fifo", "character"])
@bits_of_a_class
def test_other_kinds(folder: Path, kind: str, who: str, bits: int) -> None:
    path = make(kind, folder / "x")
    allow(path, who, bits)
    with acting_as(ALICE):
        if kind == "fifo":
            expect(bool(bits & READ), opened, path, os.O_RDONLY | os.O_NONBLOCK)
            expect(bits & 6 == 6, opened, path, os.O_RDWR | os.O_NONBLOCK)
        elif not bits & READ:  # otherwise it depends on the mount's `dev`
            raises(errno.EACCES, opened, path, os.O_RDONLY)


@each_class
@bits_of_a_class
def test_programs(folder: Path, who: str, bits: int) -> None:
    """To run a binary takes no right to read it."""
    path = folder / "program"
    put_program(path)
    allow(path, who, bits)
    with acting_as(ALICE):
        if bits & SEARCH:
            assert os.waitpid(os.posix_spawn(path, ["program"], {}), 0)[1] == 0
        else:
            raises(errno.EACCES, os.posix_spawn, path, ["program"], {})


@pytest.mark.parametrize(("bits", "may"), [(0o000, False), (0o666, False), (0o001, True), (0o100, True)])
def test_root_runs_what_somebody_may_run(folder: Path, bits: int, may: bool) -> None:
    path = folder / "program"
    put_program(path)
    path.chmod(bits)
    if may:
        subprocess.run([path], check=True, timeout=30)
    else:
        raises(errno.EACCES, os.posix_spawn, path, ["program"], {})


def test_a_script_must_be_read_by_who_runs_it(folder: Path) -> None:
    path = folder / "script"
    path.write_text("#!/bin/sh\nexit 7\n")
    for mode, code in ((0o111, 126), (0o555, 7)):
        path.chmod(mode)
        outcome = subprocess.run(["/bin/sh", "-c", path], user=BOB.uid, capture_output=True, check=False, timeout=30)
        assert (outcome.returncode in (2, 126, 127)) if code == 126 else outcome.returncode == code


# --- directories -----------------------------------------------------------------------------------------------------


@pytest.fixture
def directory(folder: Path) -> Path:
    """With a file, a directory and a symlink of Alice's in it, and one file of Bob's."""
    directory = folder / "d"
    directory.mkdir()
    for name in ("file", "second", "link"):
        make("regular" if name != "link" else "symlink", directory / name)
        os.lchown(directory / name, ALICE.uid, ALICE.gid)
    make("directory", directory / "sub", 0o755)
    os.chown(directory / "sub", ALICE.uid, ALICE.gid)
    make("regular", directory / "bobs", 0o600)
    os.chown(directory / "bobs", BOB.uid, BOB.gid)
    make("regular", folder / "outside")
    os.chown(folder / "outside", ALICE.uid, ALICE.gid)
    return directory


@each_class
@bits_of_a_class
def test_directories_that_are_read_and_searched(directory: Path, who: str, bits: int) -> None:
    allow(directory, who, bits)
    search = bool(bits & SEARCH)
    with acting_as(ALICE):
        expect(bool(bits & READ), os.listdir, directory)
        expect(search, os.stat, directory / "file")
        expect(search, opened, directory / "file", os.O_RDONLY)
        expect(search, os.readlink, directory / "link")
        expect(search, os.chmod, directory / "file", 0o600)
        expect(search, os.utime, directory / "file")
        expect(search, os.truncate, directory / "file", 0)
        expect(search, os.listdir, directory / "sub")
        expect(search, os.stat, directory / "sub" / "..")
        expect(search, os.link, directory / "file", directory.parent / "linked")
        if search:
            raises(errno.ENOENT, os.stat, directory / "nothing")
            raises(errno.EACCES, opened, directory / "bobs", os.O_RDONLY)
        else:
            raises(errno.EACCES, os.stat, directory / "nothing")


@each_class
@bits_of_a_class
def test_directories_whose_names_change(directory: Path, who: str, bits: int) -> None:
    """It takes the right to write and to search the directory; whose the file is does not matter."""
    allow(directory, who, bits)
    may = bits & 3 == 3
    outside = directory.parent / "outside"
    with acting_as(ALICE):
        expect(may, opened, directory / "new", os.O_CREAT | os.O_WRONLY)
        expect(may, os.mkdir, directory / "new-sub")
        expect(may, os.mkfifo, directory / "new-fifo")
        expect(may, os.mknod, directory / "new-node")
        expect(may, os.symlink, "x", directory / "new-link")
        expect(may, os.link, outside, directory / "linked")
        expect(may, os.rename, directory / "second", directory / "renamed")
        expect(may, os.rename, outside, directory / "came")
        if may:
            os.rename(directory / "came", outside)
        expect(may, os.rename, directory / "sub", directory.parent / "went")
        expect(may, renameat2, directory / "file", outside, RENAME_EXCHANGE)
        expect(may, os.unlink, directory / "file")
        expect(may, os.unlink, directory / "bobs")
        expect(may, os.unlink, directory / "link")
        if may:
            os.rename(directory.parent / "went", directory / "sub")
        expect(may, os.rmdir, directory / "sub")


@pytest.mark.parametrize("bits", [0o000, 0o111, 0o444])
def test_root_needs_no_bits(directory: Path, bits: int) -> None:
    directory.chmod(bits)
    assert len(os.listdir(directory)) == 5
    (directory / "bobs").chmod(0)
    assert (directory / "bobs").read_bytes() == b""
    (directory / "bobs").write_bytes(b"x")
    (directory / "new").mkdir()
    (directory / "new").rename(directory / "moved")
    (directory / "moved").rmdir()


@pytest.mark.parametrize("bits", [0o555, 0o755, 0o333], ids=oct)
def test_a_directory_that_changes_its_parent_must_be_writable_itself(folder: Path, bits: int) -> None:
    """Its `..` changes. Within one parent it need not."""
    path = make("directory", folder / "d", bits)
    os.chown(path, BOB.uid, BOB.gid)
    make("directory", folder / "to", 0o777)
    with acting_as(ALICE):
        path.rename(folder / "e")
        expect(bits == 0o333, os.rename, folder / "e", folder / "to" / "e")


def test_both_directories_of_a_rename_must_be_writable(folder: Path) -> None:
    make("directory", folder / "from", 0o777)
    make("directory", folder / "to", 0o755)
    make("regular", folder / "from" / "x")
    make("regular", folder / "to" / "y")
    with acting_as(ALICE):
        raises(errno.EACCES, os.rename, folder / "from" / "x", folder / "to" / "x")
        raises(errno.EACCES, os.rename, folder / "from" / "x", folder / "to" / "y")
        raises(errno.EACCES, os.rename, folder / "to" / "y", folder / "from" / "y")
        raises(errno.EACCES, renameat2, folder / "from" / "x", folder / "to" / "y", RENAME_EXCHANGE)


@pytest.mark.parametrize(("user", "may"), [(None, True), (ALICE, False), (BOB, True)], ids=["root", "other", "owner"])
def test_protected_hard_links(folder: Path, user: User | None, may: bool) -> None:
    """With fs.protected_hardlinks nobody links what he could not read and write (proc_sys_fs(5))."""
    if Path("/proc/sys/fs/protected_hardlinks").read_text().strip() != "1":
        pytest.skip("this machine lets everybody link everything (fs.protected_hardlinks)")
    path = make("regular", folder / "x", 0o644)
    os.chown(path, BOB.uid, BOB.gid)
    with acting_as(user):
        if may:
            os.link(path, folder / "y")
        else:
            raises(errno.EPERM, os.link, path, folder / "y")


def test_what_exists_is_told_before_what_is_forbidden(folder: Path) -> None:
    closed = make("directory", folder / "closed", 0o755)
    make("regular", closed / "x", 0o644)
    make("directory", closed / "d", 0o755)
    with acting_as(ALICE):
        raises(errno.EEXIST, os.mkdir, closed / "d")
        raises(errno.EEXIST, os.mkfifo, closed / "x")
        raises(errno.EEXIST, os.symlink, "x", closed / "x")
        raises(errno.EEXIST, opened, closed / "x", os.O_CREAT | os.O_EXCL | os.O_RDONLY)
        opened(closed / "x", os.O_CREAT | os.O_RDONLY)  # which makes nothing
        raises(errno.ENOENT, os.unlink, closed / "nothing")
        raises(errno.EACCES, os.unlink, closed / "x")
        raises(errno.EACCES, os.rmdir, closed / "d")


def test_a_handle_keeps_the_rights_it_was_opened_with(folder: Path) -> None:
    path = make("regular", folder / "x", 0o666)
    with acting_as(ALICE):
        descriptor = os.open(path, os.O_RDWR)
    path.chmod(0)
    os.chown(path, BOB.uid, BOB.gid)
    with acting_as(ALICE):
        os.write(descriptor, b"kept")
        os.ftruncate(descriptor, 3)
        assert os.pread(descriptor, 10, 0) == b"kep"
        raises(errno.EACCES, os.open, f"/proc/self/fd/{descriptor}", os.O_RDONLY)
    os.close(descriptor)
