"""Errnos that any call may give: bad memory, no descriptors left, signals, a read-only view, mount points.

The kernel finds them before, or instead of, asking the file system; a mount must not bring about others.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import resource
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.child import Child
from tests.support.kinds import make
from tests.support.mounted import wait_until
from tests.support.posix import as_root, raises
from tests.support.syscalls import AT_FDCWD, AT_SYMLINK_FOLLOW, RENAME_EXCHANGE, access, linkat, renameat2, utimensat
from tests.support.syscalls_data import opened

NOWHERE = 8
"""An address at which nothing is mapped."""

_libc = ctypes.CDLL(None, use_errno=True)


def libc(name: str, *arguments: object) -> int:
    """Raises: OSError: the call says -1."""
    found: int = getattr(_libc, name)(*arguments)
    if found == -1:
        raise OSError(ctypes.get_errno(), name)
    return found


# --- memory ----------------------------------------------------------------------------------------------------------

POINTER = ctypes.c_void_p(NOWHERE)
FAULTS: dict[str, tuple[object, ...]] = {
    "access": (POINTER, 0),
    "chdir": (POINTER,),
    "chmod": (POINTER, 0o600),
    "chown": (POINTER, 1, 1),
    "getxattr": (POINTER, b"user.x", None, 0),
    "lchown": (POINTER, 1, 1),
    "link": (POINTER, b"y"),
    "listxattr": (POINTER, None, 0),
    "mkdir": (POINTER, 0o700),
    "mkfifo": (POINTER, 0o600),
    "mknod": (POINTER, 0o600, 0),
    "open": (POINTER, os.O_RDONLY),
    "readlink": (POINTER, ctypes.create_string_buffer(8), 8),
    "removexattr": (POINTER, b"user.x"),
    "rename": (POINTER, b"y"),
    "rmdir": (POINTER,),
    "setxattr": (POINTER, b"user.x", b"", 0, 0),
    "statvfs": (POINTER, ctypes.create_string_buffer(256)),
    "statx": (AT_FDCWD, POINTER, 0, 0x7FF, ctypes.create_string_buffer(256)),
    "symlink": (POINTER, b"y"),
    "truncate": (POINTER, ctypes.c_int64(0)),
    "unlink": (POINTER,),
    "utimensat": (AT_FDCWD, POINTER, None, 0),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_path_in_memory_that_is_not_there(name: str) -> None:
    raises(errno.EFAULT, libc, name, *FAULTS[name])


def test_answers_into_memory_that_is_not_there(folder: Path) -> None:
    (folder / "x").write_bytes(b"data")
    (folder / "link").symlink_to("x")
    os.setxattr(folder / "x", "user.x", b"value")
    path = os.fsencode(folder / "x")
    raises(errno.EFAULT, libc, "getxattr", path, b"user.x", POINTER, ctypes.c_size_t(10))
    raises(errno.EFAULT, libc, "listxattr", path, POINTER, ctypes.c_size_t(100))
    raises(errno.EFAULT, libc, "setxattr", path, b"user.x", POINTER, ctypes.c_size_t(10), 0)
    raises(errno.EFAULT, libc, "readlink", os.fsencode(folder / "link"), POINTER, ctypes.c_size_t(10))
    raises(errno.EFAULT, libc, "statx", AT_FDCWD, path, 0, 0x7FF, POINTER)
    raises(errno.EFAULT, libc, "utimensat", AT_FDCWD, path, POINTER, 0)
    with opened(folder, os.O_RDONLY) as directory:
        raises(errno.EFAULT, libc, "getdents64", directory, POINTER, ctypes.c_size_t(1000))
        assert sorted(os.listdir(directory)) == ["link", "x"]
    assert os.getxattr(folder / "x", "user.x") == b"value"


def test_buffers_that_are_too_small(folder: Path) -> None:
    (folder / "x").touch()
    (folder / "link").symlink_to("target")
    os.setxattr(folder / "x", "user.abc", b"")
    path, link = os.fsencode(folder / "x"), os.fsencode(folder / "link")
    buffer = ctypes.create_string_buffer(b"?" * 100)
    raises(errno.ERANGE, libc, "listxattr", path, buffer, ctypes.c_size_t(8))
    assert libc("listxattr", path, None, ctypes.c_size_t(0)) == libc("listxattr", path, buffer, ctypes.c_size_t(9)) == 9
    raises(errno.EINVAL, libc, "readlink", link, buffer, ctypes.c_size_t(0))
    buffer.value = b"?" * 10
    assert libc("readlink", link, buffer, ctypes.c_size_t(3)) == 3
    assert buffer.raw[:4] == b"tar?"
    with opened(folder, os.O_RDONLY) as directory, opened(folder / "x", os.O_RDONLY) as file:
        raises(errno.EINVAL, libc, "getdents64", directory, buffer, ctypes.c_size_t(20))
        raises(errno.ENOTDIR, libc, "getdents64", file, buffer, ctypes.c_size_t(100))
    raises(errno.EBADF, libc, "getdents64", 1_000_000, buffer, ctypes.c_size_t(100))


# --- descriptors and signals -----------------------------------------------------------------------------------------


def test_no_descriptor_is_left(folder: Path) -> None:
    (folder / "x").touch()
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 50, before[1]))
    taken = []
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open(folder / "x", os.O_RDONLY))
        raises(errno.EMFILE, os.open, folder / "x", os.O_RDONLY)
        raises(errno.EMFILE, os.open, folder / "new", os.O_CREAT | os.O_WRONLY)
        raises(errno.EMFILE, os.open, folder, os.O_RDONLY | os.O_DIRECTORY)
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert os.listdir(folder) == ["x"]


WAITER = """
import ctypes, fcntl, os, signal, struct, sys
path, call = sys.argv[1:]
libc = ctypes.CDLL(None, use_errno=True)
signal.signal(signal.SIGUSR1, lambda *_: None)
signal.siginterrupt(signal.SIGUSR1, True)
file = os.open(path, os.O_RDWR) if call != "open" else -1
print("ready")
if call == "open":
    result = libc.open(path.encode(), os.O_WRONLY)
elif call == "flock":
    result = libc.flock(file, fcntl.LOCK_EX)
else:
    result = libc.fcntl(file, fcntl.F_SETLKW, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0))
print(result, ctypes.get_errno())
"""


@pytest.mark.parametrize("call", ["open", "flock", "lockf"])
def test_a_signal_ends_the_wait(folder: Path, call: str) -> None:
    """For somebody who reads a FIFO, and for a lock."""
    path = folder / "x"
    if call == "open":
        os.mkfifo(path)
    else:
        path.touch()
    with contextlib.ExitStack() as stack:
        if call != "open":
            holder = stack.enter_context(opened(path, os.O_RDWR))
            (fcntl.flock if call == "flock" else fcntl.lockf)(holder, fcntl.LOCK_EX)
        child = stack.enter_context(Child(WAITER, path, call))
        assert child.says() == "ready"
        where = Path(f"/proc/{child.process.pid}/wchan")
        wait_until(lambda: any(word in where.read_text() for word in ("fifo", "wait_for", "lock", "setlk")), "it waits")
        child.process.send_signal(signal.SIGUSR1)
        assert child.says() == f"-1 {errno.EINTR}"


# --- a read-only view ------------------------------------------------------------------------------------------------

CHANGES: dict[str, Callable[[Path], object]] = {
    "chmod": lambda top: os.chmod(top / "x", 0o600),
    "chown": lambda top: os.chown(top / "x", 1, 1),
    "chown-to-nobody": lambda top: os.chown(top / "x", -1, -1),
    "lchown": lambda top: os.lchown(top / "link", 1, 1),
    "link": lambda top: os.link(top / "x", top / "new"),
    "linkat": lambda top: linkat(top / "link", top / "new", AT_SYMLINK_FOLLOW),
    "mkdir": lambda top: os.mkdir(top / "new"),
    "mkfifo": lambda top: os.mkfifo(top / "new"),
    "mknod": lambda top: os.mknod(top / "new"),
    "open-to-write": lambda top: os.open(top / "x", os.O_WRONLY),
    "open-to-read-and-write": lambda top: os.open(top / "x", os.O_RDWR),
    "O_TRUNC": lambda top: os.open(top / "x", os.O_RDONLY | os.O_TRUNC),
    "O_CREAT": lambda top: os.open(top / "new", os.O_CREAT | os.O_RDONLY),
    "O_TMPFILE": lambda top: os.open(top, os.O_TMPFILE | os.O_RDWR),
    "rename": lambda top: os.rename(top / "x", top / "new"),
    "exchange": lambda top: renameat2(top / "x", top / "link", RENAME_EXCHANGE),
    "rmdir": lambda top: os.rmdir(top / "d"),
    "symlink": lambda top: os.symlink("x", top / "new"),
    "truncate": lambda top: os.truncate(top / "x", 0),
    "unlink": lambda top: os.unlink(top / "x"),
    "utimensat": lambda top: utimensat(top / "x", (1, 1), (1, 1)),
    "setxattr": lambda top: os.setxattr(top / "x", "user.y", b""),
    "removexattr": lambda top: os.removexattr(top / "x", "user.x"),
    "access": lambda top: access(top / "x", os.W_OK),
}


@contextlib.contextmanager
def bound(source: Path, place: Path, options: str = "bind") -> Iterator[Path]:
    """*source* seen at *place* too, while this lasts."""
    subprocess.run(["mount", "--bind", source, place], check=True, timeout=60)
    try:
        if options != "bind":
            subprocess.run(["mount", "-o", f"remount,{options}", place], check=True, timeout=60)
        yield place
    finally:
        subprocess.run(["umount", place], check=True, timeout=60)


@as_root
def test_nothing_changes_through_a_read_only_view(folder: Path, tmp_path: Path) -> None:
    (folder / "x").write_bytes(b"data")
    os.setxattr(folder / "x", "user.x", b"value")
    (folder / "link").symlink_to("x")
    (folder / "d").mkdir()
    os.mkfifo(folder / "fifo")
    (tmp_path / "view").mkdir()
    with bound(folder, tmp_path / "view", "bind,ro") as view:
        wrong = {}
        for name, call in CHANGES.items():
            try:
                call(view)
                wrong[name] = "done"
            except OSError as error:
                if error.errno != errno.EROFS:
                    wrong[name] = str(error)
        assert wrong == {}
        raises(errno.EEXIST, os.mkdir, view / "x")  # what is there is told first
        raises(errno.ENOENT, os.stat, view / "nothing")
        assert (view / "x").read_bytes() == b"data"
        assert os.statvfs(view).f_flag & os.ST_RDONLY
        with opened(view / "fifo", os.O_RDWR | os.O_NONBLOCK) as fifo:  # which is no change of the file system
            os.write(fifo, b"x")
    assert sorted(os.listdir(folder)) == ["d", "fifo", "link", "x"]
    assert (folder / "x").read_bytes() == b"data"


# --- mount points ----------------------------------------------------------------------------------------------------


@as_root
@pytest.mark.parametrize("kind", ["regular", "directory"])
def test_a_mount_point_stays_where_it_is(folder: Path, tmp_path: Path, kind: str) -> None:
    place, source = make(kind, folder / "x"), make(kind, tmp_path / "source")
    other = make(kind, folder / "y")
    with bound(source, place):
        raises(errno.EBUSY, os.rmdir if kind == "directory" else os.unlink, place)
        raises(errno.EBUSY, os.rename, place, folder / "z")
        raises(errno.EBUSY, os.rename, other, place)
        raises(errno.EBUSY, renameat2, other, place, RENAME_EXCHANGE)
        assert sorted(os.listdir(folder)) == ["x", "y"]
    other.rename(place)
    assert os.listdir(folder) == ["x"]
