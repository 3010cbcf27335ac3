"""Times: which of the three each call changes, of what it is called on and of the directories; and setting them."""

import errno
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.kinds import KINDS, make
from tests.support.mounted import wait_until
from tests.support.posix import ALICE, BOB, User, acting_as, as_root, raises
from tests.support.syscalls import (
    AT_SYMLINK_NOFOLLOW,
    RENAME_EXCHANGE,
    UTIME_NOW,
    UTIME_OMIT,
    linkat,
    renameat2,
    status,
    utimensat,
)

SECOND_NS = 10**9
ATIME_NS = 1_000_000_000 * SECOND_NS + 1
MTIME_NS = 1_000_000_001 * SECOND_NS + 2
CLOCK_REALTIME_COARSE = 5
"""What a file system may take for the time."""


def coarse_now_ns() -> int:
    return time.clock_gettime_ns(CLOCK_REALTIME_COARSE)


@dataclass(frozen=True, slots=True)
class Case:
    """A call in the tree of `tree`, and which times of which files it changes: a letter each of a, m, c.

    What is not named must not change.
    """

    name: str
    act: Callable[[Path], object]
    changed: dict[str, str] = field(default_factory=dict)


WATCHED = ("d", "e", "d/file", "d/sub", "d/link", "d/fifo", "d/twice", "e/other", "e/full")


def tree(folder: Path) -> dict[str, int]:
    """Two directories, d and e, and files of several kinds in them. Returns a descriptor of each, O_PATH."""
    for name in ("d", "e", "d/sub", "e/full", "e/full/sub"):
        make("directory", folder / name)
    for name in ("d/file", "d/twice", "e/other"):
        (folder / name).write_bytes(b"0123456789")
    os.link(folder / "d" / "twice", folder / "e" / "twice")
    os.setxattr(folder / "d" / "file", "user.old", b"old")
    (folder / "d" / "link").symlink_to("file")
    os.mkfifo(folder / "d" / "fifo")
    return {name.rsplit("/")[-1]: os.open(folder / name, os.O_PATH | os.O_NOFOLLOW) for name in WATCHED}


def opened(path: Path, flags: int, act: Callable[[int], object] = lambda _: None) -> None:
    descriptor = os.open(path, flags, 0o600)
    act(descriptor)
    os.close(descriptor)


CASES = [
    # looking
    Case("stat", lambda top: os.stat(top / "d/file")),
    Case("lstat", lambda top: os.lstat(top / "d/link")),
    Case("access", lambda top: os.access(top / "d/file", os.R_OK)),
    Case("getxattr", lambda top: os.getxattr(top / "d/file", "user.old")),
    Case("listxattr", lambda top: os.listxattr(top / "d/file")),
    Case("open-and-close", lambda top: opened(top / "d/file", os.O_RDWR)),
    Case("open-a-directory", lambda top: opened(top / "d", os.O_RDONLY)),
    Case("open-O_CREAT-what-is-there", lambda top: opened(top / "d/file", os.O_RDWR | os.O_CREAT)),
    Case("fsync", lambda top: opened(top / "d/file", os.O_RDWR, os.fsync)),
    Case("read", lambda top: (top / "d/file").read_bytes(), {"file": "a"}),
    Case("listdir", lambda top: os.listdir(top / "d"), {"d": "a"}),
    Case("listdir-of-an-empty-one", lambda top: os.listdir(top / "d/sub"), {"sub": "a"}),
    Case("readlink", lambda top: os.readlink(top / "d/link"), {"link": "a"}),
    Case("stat-through-a-symlink", lambda top: os.stat(top / "d/link"), {"link": "a"}),
    # bytes
    Case("write", lambda top: opened(top / "d/file", os.O_WRONLY, lambda fd: os.write(fd, b"x")), {"file": "mc"}),
    Case("O_TRUNC", lambda top: opened(top / "d/file", os.O_WRONLY | os.O_TRUNC), {"file": "mc"}),
    Case("truncate", lambda top: os.truncate(top / "d/file", 3), {"file": "mc"}),
    Case("extend", lambda top: os.truncate(top / "d/file", 30), {"file": "mc"}),
    # attributes
    Case("chmod", lambda top: os.chmod(top / "d/file", 0o600), {"file": "c"}),
    Case("chmod-to-what-it-is", lambda top: os.chmod(top / "d/fifo", os.stat(top / "d/fifo").st_mode), {"fifo": "c"}),
    Case("chmod-of-a-directory", lambda top: os.chmod(top / "d/sub", 0o700), {"sub": "c"}),
    Case("chmod-through-a-symlink", lambda top: os.chmod(top / "d/link", 0o600), {"file": "c", "link": "a"}),
    Case("chown-to-who-it-is", lambda top: os.chown(top / "d/file", os.getuid(), os.getgid()), {"file": "c"}),
    Case("chown-to-nobody", lambda top: os.chown(top / "d/file", -1, -1), {"file": "c"}),
    Case("chown-a-directory-to-nobody", lambda top: os.chown(top / "d/sub", -1, -1), {"sub": "c"}),
    Case("lchown-to-nobody", lambda top: os.lchown(top / "d/link", -1, -1), {"link": "c"}),
    Case("lchown", lambda top: os.lchown(top / "d/link", os.getuid(), -1), {"link": "c"}),
    Case("setxattr", lambda top: os.setxattr(top / "d/file", "user.new", b"x"), {"file": "c"}),
    Case("setxattr-of-a-directory", lambda top: os.setxattr(top / "d/sub", "user.new", b"x"), {"sub": "c"}),
    Case("removexattr", lambda top: os.removexattr(top / "d/file", "user.old"), {"file": "c"}),
    Case("utime", lambda top: os.utime(top / "d/file"), {"file": "amc"}),
    Case("utime-of-a-symlink", lambda top: os.utime(top / "d/link", follow_symlinks=False), {"link": "amc"}),
    Case("utime-omitting-atime", lambda top: utimensat(top / "d/sub", (0, UTIME_OMIT), (5, 5)), {"sub": "mc"}),
    Case("utime-omitting-mtime", lambda top: utimensat(top / "d/sub", (5, 5), (0, UTIME_OMIT)), {"sub": "ac"}),
    Case("utime-omitting-both", lambda top: utimensat(top / "d/sub", (5, UTIME_OMIT), (5, UTIME_OMIT))),
    # new names
    Case("creat", lambda top: opened(top / "d/new", os.O_CREAT | os.O_WRONLY), {"d": "mc"}),
    Case("mkdir", lambda top: os.mkdir(top / "d/new"), {"d": "mc"}),
    Case("mkfifo", lambda top: os.mkfifo(top / "d/new"), {"d": "mc"}),
    Case("mknod", lambda top: os.mknod(top / "d/new"), {"d": "mc"}),
    Case("symlink", lambda top: os.symlink("x", top / "d/new"), {"d": "mc"}),
    Case("link", lambda top: os.link(top / "d/file", top / "e/new"), {"file": "c", "e": "mc"}),
    Case("link-of-a-symlink", lambda top: linkat(top / "d/link", top / "d/new", 0), {"link": "c", "d": "mc"}),
    Case("mkdir-deeper", lambda top: os.mkdir(top / "d/sub/new"), {"sub": "mc"}),
    # names that go
    Case("unlink", lambda top: os.unlink(top / "d/file"), {"file": "c", "d": "mc"}),
    Case("unlink-one-of-two", lambda top: os.unlink(top / "d/twice"), {"twice": "c", "d": "mc"}),
    Case("unlink-a-fifo", lambda top: os.unlink(top / "d/fifo"), {"fifo": "c", "d": "mc"}),
    Case("unlink-a-symlink", lambda top: os.unlink(top / "d/link"), {"link": "c", "d": "mc"}),
    Case("rmdir", lambda top: os.rmdir(top / "d/sub"), {"sub": "c", "d": "mc"}),
    # names that change
    Case("rename", lambda top: os.rename(top / "d/file", top / "d/new"), {"file": "c", "d": "mc"}),
    Case("rename-away", lambda top: os.rename(top / "d/file", top / "e/new"), {"file": "c", "d": "mc", "e": "mc"}),
    Case("rename-a-directory", lambda top: os.rename(top / "d/sub", top / "d/new"), {"sub": "c", "d": "mc"}),
    Case(
        "rename-a-directory-away",
        lambda top: os.rename(top / "d/sub", top / "e/new"),
        {"sub": "c", "d": "mc", "e": "mc"},
    ),
    Case(
        "rename-over",
        lambda top: os.rename(top / "d/file", top / "e/other"),
        {"file": "c", "other": "c", "d": "mc", "e": "mc"},
    ),
    Case(
        "rename-over-one-of-two",
        lambda top: os.rename(top / "d/file", top / "d/twice"),
        {"file": "c", "twice": "c", "d": "mc"},
    ),
    Case(
        "exchange",
        lambda top: renameat2(top / "d/file", top / "e/other", RENAME_EXCHANGE),
        {"file": "c", "other": "c", "d": "mc", "e": "mc"},
    ),
    Case(
        "exchange-with-a-directory",
        lambda top: renameat2(top / "d/file", top / "e/full", RENAME_EXCHANGE),
        {"file": "c", "full": "c", "d": "mc", "e": "mc"},
    ),
    Case("rename-onto-itself", lambda top: os.rename(top / "d/file", top / "d/file")),
    Case("rename-onto-its-other-name", lambda top: os.rename(top / "d/twice", top / "e/twice")),
    # what fails
    Case("mkdir-of-what-is-there", lambda top: raises(errno.EEXIST, os.mkdir, top / "d/file")),
    Case("rmdir-of-a-full-one", lambda top: raises(errno.ENOTEMPTY, os.rmdir, top / "e/full")),
    Case("rmdir-of-a-file", lambda top: raises(errno.ENOTDIR, os.rmdir, top / "d/file")),
    Case("unlink-of-a-directory", lambda top: raises(errno.EISDIR, os.unlink, top / "d/sub")),
    Case("link-to-what-is-there", lambda top: raises(errno.EEXIST, os.link, top / "d/file", top / "e/other")),
    Case("rename-over-a-full-one", lambda top: raises(errno.ENOTEMPTY, os.rename, top / "d/sub", top / "e/full")),
    Case("rename-into-itself", lambda top: raises(errno.EINVAL, os.rename, top / "d", top / "d/sub/x")),
    Case("open-O_EXCL", lambda top: raises(errno.EEXIST, os.open, top / "d/file", os.O_CREAT | os.O_EXCL)),
]


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_which_times_change(folder: Path, case: Case) -> None:
    descriptors = tree(folder)
    for name in WATCHED:
        os.utime(folder / name, ns=(ATIME_NS, MTIME_NS), follow_symlinks=False)
    before = {name: status(descriptor) for name, descriptor in descriptors.items()}
    last_ns = max(found.ctime_ns for found in before.values())
    wait_until(lambda: coarse_now_ns() > last_ns, "the clock has moved on")
    case.act(folder)
    changed = {}
    for name, descriptor in descriptors.items():
        old, new = before[name], status(descriptor)
        letters = "a" * (new.atime_ns != old.atime_ns)
        letters += "m" * (new.mtime_ns != old.mtime_ns)
        letters += "c" * (new.ctime_ns > old.ctime_ns)
        if letters:
            changed[name] = letters
        os.close(descriptor)
    assert changed == case.changed


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_new_has_the_time_of_now(folder: Path, kind: str) -> None:
    before_ns = coarse_now_ns()
    if kind == "directory":
        (folder / "x").mkdir()
    elif kind == "symlink":
        (folder / "x").symlink_to("y")
    else:
        make(kind, folder / "x")
    found, directory = status(folder / "x"), status(folder)
    assert before_ns <= found.mtime_ns == found.atime_ns <= found.ctime_ns <= time.time_ns()
    assert before_ns <= directory.mtime_ns == directory.ctime_ns <= time.time_ns()


def test_a_second_reading_leaves_no_new_trace(folder: Path) -> None:
    """relatime, as everywhere: once after each change."""
    path = folder / "x"
    path.write_bytes(b"x")
    os.utime(path, ns=(time.time_ns() - 3600 * SECOND_NS, MTIME_NS))
    wait_until(lambda: coarse_now_ns() > status(path).ctime_ns, "the clock has moved on")
    path.read_bytes()
    first = status(path)
    path.read_bytes()
    assert status(path) == first


# --- setting them ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("times", [(0, 0), (1, 999_999_999), (1_234_567_890, 123_456_789), (-5, 7), (2**32 + 5, 9)])
def test_every_kind_takes_every_time(folder: Path, kind: str, times: tuple[int, int]) -> None:
    path = make(kind, folder / "x")
    utimensat(path, times, (times[0] + 1, 1), AT_SYMLINK_NOFOLLOW)
    found = status(path)
    assert (found.atime_ns, found.mtime_ns) == (times[0] * SECOND_NS + times[1], (times[0] + 1) * SECOND_NS + 1)


def test_a_time_of_now(folder: Path) -> None:
    path = make("regular", folder / "x")
    utimensat(path, (1, 1), (2, 2))
    before_ns = coarse_now_ns()
    utimensat(path, (123, UTIME_NOW), (0, UTIME_OMIT))
    assert before_ns <= status(path).atime_ns <= time.time_ns()
    assert status(path).mtime_ns == 2 * SECOND_NS + 2
    utimensat(path, (3, 3), (0, UTIME_NOW))
    assert status(path).atime_ns == 3 * SECOND_NS + 3
    assert before_ns <= status(path).mtime_ns <= time.time_ns()


@pytest.mark.parametrize("nanoseconds", [SECOND_NS, 2**31, -1])
def test_nanoseconds_that_are_none(folder: Path, nanoseconds: int) -> None:
    path = make("regular", folder / "x")
    before = status(path)
    raises(errno.EINVAL, utimensat, path, (1, nanoseconds), (1, 1))
    raises(errno.EINVAL, utimensat, path, (1, 1), (1, nanoseconds))
    assert status(path) == before


def test_unknown_flags(folder: Path) -> None:
    raises(errno.EINVAL, utimensat, folder, (1, 1), (1, 1), 0x8000)


def test_the_times_of_what_is_open(folder: Path) -> None:
    for kind in ("regular", "directory"):
        path = make(kind, folder / kind)
        descriptor = os.open(path, os.O_RDONLY)
        os.utime(descriptor, ns=(5, 6))
        assert (status(path).atime_ns, status(path).mtime_ns) == (5, 6)
        os.close(descriptor)


def test_set_times_outlive_writing_with_the_file_still_open(folder: Path) -> None:
    """What tar and rsync do before they close a file."""
    with open(folder / "x", "wb", buffering=0) as file:
        file.write(b"x" * 100_000)
        os.utime(file.fileno(), ns=(ATIME_NS, MTIME_NS))
    assert status(folder / "x").mtime_ns == MTIME_NS
    (folder / "x").rename(folder / "y")
    assert (status(folder / "y").atime_ns, status(folder / "y").mtime_ns) == (ATIME_NS, MTIME_NS)


NOW, OMIT, PAST = (0, UTIME_NOW), (0, UTIME_OMIT), (5, 5)
# The file is Alice's. 0: allowed.
RULES: list[tuple[tuple[int, int], tuple[int, int], int, int, int]] = [
    # atime, mtime; for the owner; for who may write; for who may only read
    (NOW, NOW, 0, 0, errno.EACCES),
    (PAST, PAST, 0, errno.EPERM, errno.EPERM),
    (NOW, PAST, 0, errno.EPERM, errno.EPERM),
    (NOW, OMIT, 0, errno.EPERM, errno.EPERM),
    (OMIT, NOW, 0, errno.EPERM, errno.EPERM),
    (OMIT, PAST, 0, errno.EPERM, errno.EPERM),
    (OMIT, OMIT, 0, 0, 0),
]


@as_root
@pytest.mark.parametrize("kind", ["regular", "directory", "fifo"])
@pytest.mark.parametrize(("atime", "mtime", "owner", "writer", "reader"), RULES)
def test_who_may_set_which(
    folder: Path, kind: str, atime: tuple[int, int], mtime: tuple[int, int], owner: int, writer: int, reader: int
) -> None:
    path = make(kind, folder / "x")
    os.chown(path, ALICE.uid, ALICE.gid)
    rules: list[tuple[User | None, int, int]] = [
        (None, 0o000, 0),
        (ALICE, 0o000, owner),
        (BOB, 0o006, writer),
        (BOB, 0o664, reader),
    ]
    for user, mode, number in rules:
        path.chmod(mode)
        with acting_as(user):
            if number:
                raises(number, utimensat, path, atime, mtime)
            else:
                utimensat(path, atime, mtime)
