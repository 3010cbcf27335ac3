"""Names, kinds of files and attributes: what an ordinary program does with them, on a plain folder and on a mount."""

import errno
import os
import socket
import stat
import subprocess
import threading
import time
from pathlib import Path

import pytest

from tests.support.posix import as_root, raises

SECOND_NS = 10**9

# --- names -----------------------------------------------------------------------------------------------------------


def test_a_name_that_is_not_there_can_be_made_afterwards(folder: Path) -> None:
    path = folder / "x"
    raises(errno.ENOENT, os.stat, path)
    raises(errno.ENOENT, os.open, path, os.O_RDONLY)
    path.write_bytes(b"now")
    assert path.read_bytes() == b"now"
    path.unlink()
    raises(errno.ENOENT, os.stat, path)
    raises(errno.ENOENT, os.unlink, path)


def test_exclusive_creation(folder: Path) -> None:
    os.close(os.open(folder / "x", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    raises(errno.EEXIST, os.open, folder / "x", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    raises(errno.EEXIST, os.mkdir, folder / "x")
    raises(errno.ENOTDIR, os.stat, folder / "x" / "y")


@pytest.mark.parametrize(
    "name", [b"\xff\xfe", b"new\nline", b" ", b"x" * 255, b"caf\xe9", "é漢".encode(), b"-", b"..."]
)
def test_names_are_bytes(folder: Path, name: bytes) -> None:
    path = os.path.join(os.fsencode(folder), name)
    with open(path, "wb") as file:
        file.write(name)
    assert os.listdir(os.fsencode(folder)) == [name]
    with open(path, "rb") as file:
        assert file.read() == name
    os.unlink(path)
    assert os.listdir(folder) == []


def test_names_that_cannot_be(folder: Path) -> None:
    raises(errno.ENAMETOOLONG, os.mkdir, folder / ("x" * 256))
    raises(errno.ENAMETOOLONG, os.stat, folder / ("x" * 256))
    raises(errno.ENAMETOOLONG, os.rename, folder, folder.parent / ("x" * 256))


def test_directories(folder: Path) -> None:
    links = folder.stat().st_nlink
    (folder / "a").mkdir(mode=0o750)
    assert stat.S_IMODE((folder / "a").stat().st_mode) == 0o750
    assert (folder / "a").stat().st_nlink == 2
    assert folder.stat().st_nlink == links + 1
    (folder / "a" / "b").touch()
    raises(errno.ENOTEMPTY, os.rmdir, folder / "a")
    raises(errno.EISDIR, os.unlink, folder / "a")
    raises(errno.ENOTDIR, os.rmdir, folder / "a" / "b")
    (folder / "a" / "b").unlink()
    (folder / "a").rmdir()
    assert folder.stat().st_nlink == links
    raises(errno.ENOENT, os.stat, folder / "a")


def test_a_large_directory_lists_each_name_once(folder: Path) -> None:
    names = {f"{number:05} {'x' * (number % 50)}" for number in range(3000)}
    for name in names:
        (folder / name).touch()
    listed = os.listdir(folder)
    assert len(listed) == len(names) and set(listed) == names
    with os.scandir(folder) as entries:
        for position, entry in enumerate(entries):
            if position % 2:
                os.unlink(entry.path)  # while it is being listed
    left = os.listdir(folder)
    assert len(left) == 1500 and set(left) < names
    subprocess.run(["rm", "-r", str(folder)], check=True, timeout=60)
    raises(errno.ENOENT, os.stat, folder)


def test_renames(folder: Path) -> None:
    (folder / "a").write_bytes(b"a")
    (folder / "b").write_bytes(b"b" * 100_000)
    number = (folder / "a").stat().st_ino
    (folder / "a").rename(folder / "c")
    assert sorted(os.listdir(folder)) == ["b", "c"]
    (folder / "c").rename(folder / "b")
    assert os.listdir(folder) == ["b"]
    assert (folder / "b").read_bytes() == b"a" and (folder / "b").stat().st_ino == number
    raises(errno.ENOENT, os.rename, folder / "nothing", folder / "x")


def test_renames_over_an_open_file_leave_its_readers_alone(folder: Path) -> None:
    (folder / "old").write_bytes(b"old" * 50_000)
    (folder / "new").write_bytes(b"new")
    with open(folder / "old", "rb") as reader:
        (folder / "new").rename(folder / "old")
        assert reader.read() == b"old" * 50_000
        assert os.fstat(reader.fileno()).st_nlink == 0
    assert (folder / "old").read_bytes() == b"new"


def test_renames_of_directories(folder: Path) -> None:
    (folder / "a" / "inside").mkdir(parents=True)
    (folder / "b").mkdir()
    (folder / "a" / "file").write_bytes(b"1")
    (folder / "a").rename(folder / "b" / "moved")
    assert (folder / "b" / "moved" / "file").read_bytes() == b"1"
    assert (folder / "b" / "moved" / "inside" / ".." / "file").read_bytes() == b"1"
    raises(errno.EINVAL, os.rename, folder / "b", folder / "b" / "moved" / "x")
    (folder / "full").mkdir()
    (folder / "full" / "x").touch()
    raises(errno.ENOTEMPTY, os.rename, folder / "b", folder / "full")
    raises(errno.ENOTDIR, os.rename, folder / "b", folder / "full" / "x")
    raises(errno.EISDIR, os.rename, folder / "full" / "x", folder / "b")
    (folder / "empty").mkdir()
    (folder / "b").rename(folder / "empty")
    assert sorted(os.listdir(folder)) == ["empty", "full"]


def test_hard_links(folder: Path) -> None:
    (folder / "a").write_bytes(b"one")
    os.link(folder / "a", folder / "b")
    raises(errno.EEXIST, os.link, folder / "a", folder / "b")
    raises(errno.EPERM, os.link, folder, folder / "c")
    found = (folder / "a").stat()
    assert found.st_nlink == 2 and (folder / "b").stat().st_ino == found.st_ino
    (folder / "b").write_bytes(b"both")
    assert (folder / "a").read_bytes() == b"both"
    (folder / "a").rename(folder / "b")  # two names of one file: nothing happens
    assert sorted(os.listdir(folder)) == ["a", "b"]
    (folder / "a").unlink()
    assert (folder / "b").stat().st_nlink == 1
    assert (folder / "b").read_bytes() == b"both"


@pytest.mark.parametrize("target", [b"x", b"/absolute/path", b"\xff\xfe", b"y/" * 2000])
def test_symbolic_links(folder: Path, target: bytes) -> None:
    link = folder / "link"
    os.symlink(target, link)
    assert os.readlink(os.fsencode(link)) == target
    found = link.lstat()
    assert stat.S_ISLNK(found.st_mode) and found.st_size == len(target)
    raises(errno.EINVAL, os.readlink, folder)
    os.utime(link, ns=(1, 2), follow_symlinks=False)
    assert link.lstat().st_mtime_ns == 2
    link.unlink()


def test_symbolic_links_lead_somewhere(folder: Path) -> None:
    (folder / "there").mkdir()
    (folder / "link").symlink_to("there")
    (folder / "link" / "x").write_bytes(b"x")
    assert (folder / "there" / "x").read_bytes() == b"x"
    (folder / "loop").symlink_to("loop")
    raises(errno.ELOOP, os.stat, folder / "loop")


# --- attributes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o000, 0o644, 0o777, 0o1777, 0o2755, 0o4711])
def test_modes(folder: Path, mode: int) -> None:
    (folder / "x").touch()
    before = (folder / "x").stat()
    (folder / "x").chmod(mode)
    after = (folder / "x").stat()
    assert stat.S_IMODE(after.st_mode) == mode
    assert after.st_ctime_ns >= before.st_ctime_ns and after.st_mtime_ns == before.st_mtime_ns


def test_the_umask_counts(folder: Path) -> None:
    before = os.umask(0o027)
    try:
        os.close(os.open(folder / "x", os.O_CREAT | os.O_WRONLY, 0o666))
        os.mkdir(folder / "d", 0o777)
        os.mkfifo(folder / "f", 0o666)
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((folder / name).lstat().st_mode) for name in "xdf"]
    assert modes == [0o640, 0o750, 0o640]


@as_root
def test_owners(folder: Path) -> None:
    (folder / "x").touch()
    (folder / "x").chmod(0o6755)
    os.chown(folder / "x", 1234, -1)
    os.chown(folder / "x", -1, 2**32 - 3)
    found = (folder / "x").stat()
    assert (found.st_uid, found.st_gid) == (1234, 2**32 - 3)
    assert stat.S_IMODE(found.st_mode) == 0o755  # a file that was given away runs as nobody special
    (folder / "link").symlink_to("x")
    os.chown(folder / "link", 5, 6, follow_symlinks=False)
    assert ((folder / "link").lstat().st_uid, (folder / "x").stat().st_uid) == (5, 1234)


@as_root
def test_directories_that_hand_on_their_group(folder: Path) -> None:
    os.chown(folder, 0, 4321)
    folder.chmod(0o2775)
    (folder / "file").touch()
    (folder / "directory").mkdir()
    assert [(folder / name).stat().st_gid for name in ("file", "directory")] == [4321, 4321]
    assert (folder / "directory").stat().st_mode & stat.S_ISGID


@pytest.mark.parametrize("time_ns", [0, 1, -1, 1_234_567_890_123_456_789, 2**33 * SECOND_NS + 999_999_999])
def test_times_to_the_nanosecond(folder: Path, time_ns: int) -> None:
    (folder / "x").touch()
    os.utime(folder / "x", ns=(time_ns, time_ns + 1))
    found = (folder / "x").stat()
    assert (found.st_atime_ns, found.st_mtime_ns) == (time_ns, time_ns + 1)
    assert abs(found.st_ctime_ns - time.time_ns()) < 60 * SECOND_NS


def test_times_that_change_by_themselves(folder: Path) -> None:
    past = (1_000_000_000 * SECOND_NS,) * 2
    path = folder / "x"
    path.touch()
    os.utime(path, ns=past)
    os.utime(folder, ns=past)
    path.write_bytes(b"changed")
    assert path.stat().st_mtime_ns > past[0]
    assert folder.stat().st_mtime_ns == past[0]
    (folder / "y").touch()
    assert folder.stat().st_mtime_ns > past[0]
    os.utime(path, ns=past)
    os.truncate(path, 3)
    assert path.stat().st_mtime_ns > past[0]
    os.utime(path)
    assert abs(path.stat().st_mtime_ns - time.time_ns()) < 60 * SECOND_NS


def test_extended_attributes(folder: Path) -> None:
    path = folder / "x"
    path.touch()
    raises(errno.ENODATA, os.getxattr, path, "user.a")
    os.setxattr(path, "user.a", b"1")
    os.setxattr(path, "user.b", b"")
    os.setxattr(path, "user.c", bytes(range(256)) * 10)
    raises(errno.EEXIST, os.setxattr, path, "user.a", b"2", os.XATTR_CREATE)
    raises(errno.ENODATA, os.setxattr, path, "user.d", b"2", os.XATTR_REPLACE)
    os.setxattr(path, "user.a", b"2", os.XATTR_REPLACE)
    assert sorted(os.listxattr(path)) == ["user.a", "user.b", "user.c"]
    assert os.getxattr(path, "user.a") == b"2"
    assert os.getxattr(path, "user.b") == b""
    assert os.getxattr(path, "user.c") == bytes(range(256)) * 10
    os.removexattr(path, "user.a")
    raises(errno.ENODATA, os.removexattr, path, "user.a")
    assert sorted(os.listxattr(path)) == ["user.b", "user.c"]
    path.rename(folder / "y")
    assert os.getxattr(folder / "y", "user.b") == b""
    os.setxattr(folder, "user.d", b"\x00\xff")
    assert os.getxattr(folder, "user.d") == b"\x00\xff"


def test_statvfs(folder: Path) -> None:
    found = os.statvfs(folder)
    assert found.f_namemax == 255
    assert found.f_blocks >= found.f_bfree >= found.f_bavail > 0
    assert found.f_frsize >= 512
    (folder / "x").write_bytes(os.urandom(1_000_000))
    after = os.statvfs(folder)
    assert after.f_files >= after.f_ffree > 0
    assert after.f_blocks >= after.f_bfree


def test_permissions_are_kept(folder: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to become somebody else")
    (folder / "secret").write_bytes(b"x")
    (folder / "secret").chmod(0o600)
    command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "cat", str(folder / "secret")]
    outcome = subprocess.run(command, capture_output=True, check=False, timeout=30)
    assert outcome.returncode != 0 and b"ermission denied" in outcome.stderr


# --- what is no regular file -----------------------------------------------------------------------------------------


def test_a_fifo_between_two_threads(folder: Path) -> None:
    path = folder / "fifo"
    os.mkfifo(path, 0o600)
    assert stat.S_ISFIFO(path.stat().st_mode)
    received = []
    reader = threading.Thread(target=lambda: received.append(path.read_bytes()), daemon=True)
    reader.start()
    path.write_bytes(b"through the pipe")
    reader.join(30)
    assert received == [b"through the pipe"]


def test_a_socket(folder: Path) -> None:
    path = folder / "s"
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.settimeout(30)
        client.settimeout(30)
        server.bind(str(path))
        assert stat.S_ISSOCK(path.stat().st_mode)
        server.listen()
        client.connect(str(path))
        connection, _ = server.accept()
        with connection:
            client.sendall(b"hello")
            assert connection.recv(10) == b"hello"
    path.unlink()


@as_root
def test_device_nodes(folder: Path) -> None:
    os.mknod(folder / "c", stat.S_IFCHR | 0o600, os.makedev(1, 5))
    os.mknod(folder / "b", stat.S_IFBLK | 0o600, os.makedev(4095, 1_048_575))
    os.mknod(folder / "r", stat.S_IFREG | 0o600)
    assert (folder / "c").stat().st_rdev == os.makedev(1, 5)
    found = (folder / "b").stat()
    assert stat.S_ISBLK(found.st_mode) and found.st_rdev == os.makedev(4095, 1_048_575)
    assert (folder / "r").read_bytes() == b""
