"""open: each of its flags."""

import contextlib
import errno
import fcntl
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.kinds import KINDS, NO_DIRECTORY, make
from tests.support.posix import ALICE, BOB, User, acting_as, as_root, raises
from tests.support.syscalls import status

PAST_NS = 10**18


@contextlib.contextmanager
def opened(path: Path | str, flags: int, mode: int = 0o600) -> Iterator[int]:
    descriptor = os.open(path, flags, mode)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def full(folder: Path) -> Path:
    path = folder / "x"
    path.write_bytes(b"0123456789")
    return path


# --- reading and writing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "reads", "writes"),
    [(os.O_RDONLY, True, False), (os.O_WRONLY, False, True), (os.O_RDWR, True, True)],
    ids=["O_RDONLY", "O_WRONLY", "O_RDWR"],
)
def test_what_a_descriptor_is_for(folder: Path, flags: int, reads: bool, writes: bool) -> None:
    with opened(full(folder), flags) as descriptor:
        assert fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == flags
        if reads:
            assert os.pread(descriptor, 4, 2) == b"2345"
        else:
            raises(errno.EBADF, os.pread, descriptor, 4, 2)
        if writes:
            assert os.pwrite(descriptor, b"xx", 2) == 2
            os.ftruncate(descriptor, 5)
        else:
            raises(errno.EBADF, os.pwrite, descriptor, b"xx", 2)
            raises(errno.EINVAL, os.ftruncate, descriptor, 5)
    assert (folder / "x").read_bytes() == (b"01xx4" if writes else b"0123456789")


@pytest.mark.parametrize(
    "flags", [os.O_WRONLY, os.O_RDWR, os.O_CREAT, os.O_RDONLY | os.O_TRUNC, os.O_WRONLY | os.O_APPEND]
)
def test_directories_are_not_written(folder: Path, flags: int) -> None:
    make("directory", folder / "d")
    raises(errno.EISDIR, os.open, folder / "d", flags)
    with opened(folder / "d", os.O_RDONLY) as descriptor:
        raises(errno.EISDIR, os.read, descriptor, 1)
        raises(errno.EBADF, os.write, descriptor, b"x")


def test_appending_goes_to_the_end_wherever_one_is(folder: Path) -> None:
    with opened(full(folder), os.O_RDWR | os.O_APPEND) as descriptor, opened(folder / "x", os.O_WRONLY) as other:
        os.lseek(descriptor, 2, os.SEEK_SET)
        os.write(descriptor, b"A")
        assert os.lseek(descriptor, 0, os.SEEK_CUR) == 11
        os.pwrite(other, b"B", 11)
        os.write(descriptor, b"C")
        assert os.pread(descriptor, 100, 0) == b"0123456789ABC"
        os.pwrite(descriptor, b"D", 0)  # on Linux pwrite appends too (BUGS of pwrite(2))
    assert (folder / "x").read_bytes() == b"0123456789ABCD"


def test_appending_switched_on_and_off(folder: Path) -> None:
    with opened(full(folder), os.O_RDWR) as descriptor:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, os.O_APPEND)
        os.write(descriptor, b"A")
        fcntl.fcntl(descriptor, fcntl.F_SETFL, 0)
        os.pwrite(descriptor, b"x", 0)
    assert (folder / "x").read_bytes() == b"x123456789A"


@pytest.mark.parametrize(
    "flag",
    [
        *(os.O_SYNC, os.O_DSYNC, os.O_RSYNC, os.O_NONBLOCK, os.O_NDELAY, os.O_NOCTTY, os.O_LARGEFILE, os.O_ASYNC),
        os.O_EXCL,  # means nothing without O_CREAT
    ],
)
def test_flags_that_do_not_change_what_is_seen(folder: Path, flag: int) -> None:
    with opened(full(folder), os.O_RDWR | flag) as descriptor:
        os.write(descriptor, b"xyz")
        assert os.pread(descriptor, 5, 0) == b"xyz34"


# --- making ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC])
def test_creation(folder: Path, flags: int) -> None:
    with opened(folder / "x", flags | os.O_CREAT, 0o640) as descriptor:
        assert status(descriptor) == status(folder / "x")
        assert (status(descriptor).size, status(descriptor).nlink) == (0, 1)
    with opened(folder / "x", flags | os.O_CREAT) as descriptor:
        assert status(descriptor).mode == 0o100640
    assert os.listdir(folder) == ["x"]


def test_creation_leaves_what_is_there(folder: Path) -> None:
    with opened(full(folder), os.O_CREAT | os.O_RDWR) as descriptor:
        assert os.read(descriptor, 100) == b"0123456789"


@pytest.mark.parametrize("kind", KINDS)
def test_exclusive_creation_wants_a_free_name(folder: Path, kind: str) -> None:
    make(kind, folder / "x")
    raises(errno.EEXIST, os.open, folder / "x", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    raises(errno.EEXIST, os.open, folder / "x", os.O_CREAT | os.O_EXCL | os.O_RDONLY | os.O_NOFOLLOW)


def test_a_name_that_is_seen_missing_is_not_missing_once_made(folder: Path) -> None:
    for _ in range(3):
        raises(errno.ENOENT, os.open, folder / "x", os.O_RDONLY)
        with opened(folder / "x", os.O_CREAT | os.O_EXCL | os.O_WRONLY):
            os.stat(folder / "x")
        os.unlink(folder / "x")


def test_a_directory_is_not_created_by_open(folder: Path) -> None:
    raises(errno.EINVAL, os.open, folder / "x", os.O_CREAT | os.O_DIRECTORY)
    assert os.listdir(folder) == []


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_RDWR, os.O_RDONLY], ids=["O_WRONLY", "O_RDWR", "O_RDONLY"])
@pytest.mark.parametrize("create", [0, os.O_CREAT], ids=["", "O_CREAT"])
def test_truncation(folder: Path, flags: int, create: int) -> None:
    with opened(full(folder), os.O_RDONLY) as reader:
        with opened(folder / "x", flags | create | os.O_TRUNC) as descriptor:
            assert status(descriptor).size == 0
        assert os.read(reader, 10) == b""
    assert status(folder / "x").size == 0


@pytest.mark.parametrize("size", [0, 10, 100_000])
def test_truncation_stamps_the_file_even_if_it_was_empty(folder: Path, size: int) -> None:
    path = folder / "x"
    path.write_bytes(bytes(size))
    os.utime(path, ns=(PAST_NS, PAST_NS))
    with opened(path, os.O_WRONLY | os.O_TRUNC):
        pass
    assert status(path).mtime_ns > PAST_NS


def test_truncation_leaves_what_is_no_regular_file(folder: Path) -> None:
    make("fifo", folder / "f")
    with opened(folder / "f", os.O_RDWR | os.O_TRUNC | os.O_NONBLOCK) as descriptor:
        assert status(descriptor).size == 0


# --- which file ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", NO_DIRECTORY)
def test_only_a_directory(folder: Path, kind: str) -> None:
    make(kind, folder / "x")
    raises(errno.ENOENT if kind == "symlink" else errno.ENOTDIR, os.open, folder / "x", os.O_DIRECTORY)
    raises(errno.ENOTDIR, os.open, folder / "x", os.O_DIRECTORY | os.O_PATH | os.O_NOFOLLOW)


def test_a_directory_behind_a_symlink(folder: Path) -> None:
    make("directory", folder / "d")
    (folder / "link").symlink_to("d")
    with opened(folder / "link", os.O_DIRECTORY) as descriptor:
        assert status(descriptor) == status(folder / "d")
    raises(errno.ENOTDIR, os.open, folder / "link", os.O_DIRECTORY | os.O_NOFOLLOW)


def test_no_symlink_at_the_end(folder: Path) -> None:
    make("directory", folder / "d")
    make("regular", folder / "d" / "x")
    (folder / "link").symlink_to("d")
    (folder / "d" / "link").symlink_to("x")
    raises(errno.ELOOP, os.open, folder / "d" / "link", os.O_NOFOLLOW)
    raises(errno.ELOOP, os.open, folder / "d" / "link", os.O_NOFOLLOW | os.O_WRONLY | os.O_CREAT)
    with opened(folder / "link" / "x", os.O_NOFOLLOW) as descriptor:  # but on the way
        assert status(descriptor) == status(folder / "d" / "x")


@pytest.mark.parametrize("kind", KINDS)
def test_a_place_without_opening_it(folder: Path, kind: str) -> None:
    make(kind, folder / "x", 0)
    with opened(folder / "x", os.O_PATH | os.O_NOFOLLOW) as descriptor:
        assert status(descriptor) == status(folder / "x")
        raises(errno.EBADF, os.read, descriptor, 1)
        raises(errno.EBADF, os.write, descriptor, b"x")
        raises(errno.EBADF, os.ftruncate, descriptor, 0)
        raises(errno.EBADF, fcntl.flock, descriptor, fcntl.LOCK_EX)
        raises(errno.EBADF, os.fsync, descriptor)
        os.rename(folder / "x", folder / "y")
        assert status(descriptor) == status(folder / "y")
        assert os.readlink(f"/proc/self/fd/{descriptor}") == str(folder / "y")
        if kind == "symlink":
            assert os.readlink("", dir_fd=descriptor)


def test_a_place_to_start_from(folder: Path) -> None:
    make("directory", folder / "d")
    with opened(folder / "d", os.O_PATH) as descriptor:
        os.close(os.open("x", os.O_CREAT | os.O_WRONLY, dir_fd=descriptor))
        raises(errno.EBADF, os.listdir, descriptor)
    assert os.listdir(folder / "d") == ["x"]


# --- how -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [True, False])
def test_descriptors_end_with_exec_or_not(folder: Path, kept: bool) -> None:
    with opened(full(folder), os.O_RDONLY | os.O_CLOEXEC) as descriptor:
        assert fcntl.fcntl(descriptor, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        os.set_inheritable(descriptor, kept)
        command = ["sh", "-c", f"test -e /proc/self/fd/{descriptor}"]
        child = os.posix_spawn("/bin/sh", command, dict(os.environ))
        assert (os.waitpid(child, 0)[1] == 0) == kept


@pytest.mark.parametrize(("flags", "traced"), [(os.O_NOATIME, False), (0, True)], ids=["O_NOATIME", ""])
def test_reading_without_a_trace(folder: Path, flags: int, traced: bool) -> None:
    path = folder / "x"
    path.write_bytes(b"x")
    os.utime(path, ns=(PAST_NS, PAST_NS))
    with opened(path, os.O_RDONLY | flags) as descriptor:
        assert os.read(descriptor, 10) == b"x"
    assert (status(path).atime_ns > PAST_NS) == traced


@as_root
@pytest.mark.parametrize(("user", "may"), [(ALICE, True), (BOB, False), (None, True)], ids=["owner", "other", "root"])
def test_who_may_read_without_a_trace(folder: Path, user: User | None, may: bool) -> None:
    path = make("regular", folder / "x", 0o666)
    os.chown(path, ALICE.uid, ALICE.gid)
    with acting_as(user):
        if may:
            os.close(os.open(path, os.O_RDONLY | os.O_NOATIME))
        else:
            raises(errno.EPERM, os.open, path, os.O_RDONLY | os.O_NOATIME)
            with opened(path, os.O_RDONLY) as descriptor:
                raises(errno.EPERM, fcntl.fcntl, descriptor, fcntl.F_SETFL, os.O_NOATIME)


@contextlib.contextmanager
def running(path: Path) -> Iterator[None]:
    """A copy of cat, which has begun and waits for more input."""
    path.write_bytes(Path("/bin/cat").read_bytes())
    path.chmod(0o755)
    with subprocess.Popen([path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as cat:
        assert cat.stdin and cat.stdout
        cat.stdin.write(b"x")
        assert cat.stdout.read(1) == b"x"
        yield


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC])
def test_a_program_that_runs_is_not_written(folder: Path, flags: int) -> None:
    path = folder / "program"
    with running(path):
        raises(errno.ETXTBSY, os.open, path, flags)
        raises(errno.ETXTBSY, os.truncate, path, 0)
        assert path.read_bytes() == Path("/bin/cat").read_bytes()
    os.close(os.open(path, flags))


def test_a_program_that_runs_opened_for_reading_and_truncated(top: Path, folder: Path) -> None:
    """POSIX leaves open to what this combination leads. In FUSE the kernel has the file truncated before it refuses."""
    path = folder / "program"
    with running(path):
        raises(errno.ETXTBSY, os.open, path, os.O_RDONLY | os.O_TRUNC)
        assert (status(path).size == 0) == os.path.ismount(top)


def test_a_program_that_is_written_does_not_run(folder: Path) -> None:
    path = folder / "program"
    path.write_bytes(Path("/bin/true").read_bytes())
    path.chmod(0o755)
    with opened(path, os.O_WRONLY):
        raises(errno.ETXTBSY, os.posix_spawn, path, ["program"], {})
    assert os.waitpid(os.posix_spawn(path, ["program"], {}), 0)[1] == 0


def test_a_lease_is_asked_back(folder: Path) -> None:
    """fcntl(2), F_SETLEASE: who does not want to wait for its holder is told so."""
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    try:
        with opened(full(folder), os.O_RDONLY) as holder:
            assert fcntl.fcntl(holder, fcntl.F_SETLEASE, fcntl.F_RDLCK) == 0
            with opened(folder / "x", os.O_RDONLY):
                pass
            raises(errno.EWOULDBLOCK, os.open, folder / "x", os.O_WRONLY | os.O_NONBLOCK)
            assert fcntl.fcntl(holder, fcntl.F_SETLEASE, fcntl.F_UNLCK) == 0
            with opened(folder / "x", os.O_WRONLY | os.O_NONBLOCK) as writer:
                raises(errno.EAGAIN, fcntl.fcntl, writer, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    finally:
        signal.signal(signal.SIGIO, before)


@pytest.mark.parametrize("kind", ["regular", "directory"])
def test_opening_again_what_is_open(folder: Path, kind: str) -> None:
    path = make(kind, folder / "x")
    with opened(path, os.O_RDONLY) as descriptor:
        path.rename(folder / "y")
        with opened(f"/proc/self/fd/{descriptor}", os.O_RDONLY) as again:
            assert status(again) == status(folder / "y")


def test_many_descriptors_of_one_file(folder: Path) -> None:
    path = full(folder)
    with contextlib.ExitStack() as stack:
        descriptors = [stack.enter_context(opened(path, os.O_RDWR)) for _ in range(100)]
        for number, descriptor in enumerate(descriptors):
            os.pwrite(descriptor, bytes([number]), number)
        assert {os.pread(descriptor, 200, 0) for descriptor in descriptors} == {bytes(range(100))}
        assert os.lseek(descriptors[0], 5, os.SEEK_SET) == 5
        assert os.lseek(descriptors[1], 0, os.SEEK_CUR) == 0
