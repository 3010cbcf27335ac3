"""Paths: every call that takes one fails the same way when there is no walking it, with the errno of its man page."""

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.posix import ALICE, acting_as, as_root, raises
from tests.support.syscalls import AT_FDCWD, RENAME_EXCHANGE, access, fchownat, linkat, renameat2, setresuid, utimensat

NAME_MAX = 255
PATH_MAX = 4095
"""Without the byte that ends it."""
SYMLINKS_MAX = 40


def opened(path: str, flags: int) -> None:
    os.close(os.open(path, flags, 0o600))


@dataclass(frozen=True, slots=True)
class Call:
    """A call on a path. Each is given another one too, of a regular file beside it."""

    name: str
    run: Callable[[str, str], object]
    new: bool = False
    """It makes the name, which must not be there."""
    follows: bool = False
    """A symlink at the end of the path is followed."""


CALLS = [
    Call("stat", lambda path, _: os.stat(path), follows=True),
    Call("lstat", lambda path, _: os.lstat(path)),
    Call("statvfs", lambda path, _: os.statvfs(path), follows=True),
    Call("open", lambda path, _: opened(path, os.O_RDONLY), follows=True),
    Call("open-O_PATH", lambda path, _: opened(path, os.O_PATH), follows=True),
    Call("open-O_CREAT", lambda path, _: opened(path, os.O_CREAT | os.O_WRONLY), new=True, follows=True),
    Call("open-O_EXCL", lambda path, _: opened(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY), new=True),
    Call("truncate", lambda path, _: os.truncate(path, 5), follows=True),
    Call("access", lambda path, _: access(path, os.F_OK), follows=True),
    Call("chmod", lambda path, _: os.chmod(path, 0o600), follows=True),
    Call("chown", lambda path, _: os.chown(path, -1, -1), follows=True),
    Call("lchown", lambda path, _: os.lchown(path, -1, -1)),
    Call("fchownat", lambda path, _: fchownat(path, 2**32 - 1, 2**32 - 1, 0, directory=AT_FDCWD), follows=True),
    Call("utimensat", lambda path, _: utimensat(path, (1, 2), (3, 4)), follows=True),
    Call("getxattr", lambda path, _: os.listxattr(path), follows=True),
    Call("setxattr", lambda path, _: os.setxattr(path, "user.x", b""), follows=True),
    Call("unlink", lambda path, _: os.unlink(path)),
    Call("mkdir", lambda path, _: os.mkdir(path), new=True),
    Call("mkfifo", lambda path, _: os.mkfifo(path), new=True),
    Call("mknod", lambda path, _: os.mknod(path), new=True),
    Call("symlink", lambda path, _: os.symlink("x", path), new=True),
    Call("link-from", lambda path, other: os.link(path, other + ".new")),
    Call("link-to", lambda path, other: os.link(other, path), new=True),
    Call("linkat-following", lambda path, other: linkat(path, other + ".new", 0x400), follows=True),
    Call("rename-from", lambda path, other: os.rename(path, other + ".new")),
    Call("rename-to", lambda path, other: os.rename(other, path), new=True),
    Call("exchange", lambda path, other: renameat2(other, path, RENAME_EXCHANGE)),
]
DIRECTORY_CALLS = [
    Call("rmdir", lambda path, _: os.rmdir(path)),
    Call("listdir", lambda path, _: os.listdir(path), follows=True),
    Call("open-O_DIRECTORY", lambda path, _: opened(path, os.O_RDONLY | os.O_DIRECTORY), follows=True),
    Call("readlink", lambda path, _: os.readlink(path)),
]
ALL = CALLS + DIRECTORY_CALLS


def calls(which: list[Call]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("call", which, ids=[call.name for call in which])


@pytest.fixture
def other(folder: Path) -> str:
    path = folder / "other"
    path.write_bytes(b"other")
    return str(path)


@calls(ALL)
def test_a_directory_on_the_way_is_missing(folder: Path, other: str, call: Call) -> None:
    raises(errno.ENOENT, call.run, f"{folder}/nothing/x", other)


@calls(ALL)
def test_a_file_on_the_way_is_no_directory(folder: Path, other: str, call: Call) -> None:
    raises(errno.ENOTDIR, call.run, f"{other}/x", other)
    raises(errno.ENOTDIR, call.run, f"{other}/../x", other)


@calls(ALL)
def test_a_dangling_symlink_is_on_the_way(folder: Path, other: str, call: Call) -> None:
    (folder / "link").symlink_to("nothing")
    raises(errno.ENOENT, call.run, f"{folder}/link/x", other)


@calls([call for call in ALL if not call.new])
def test_the_name_is_missing(folder: Path, other: str, call: Call) -> None:
    raises(errno.ENOENT, call.run, f"{folder}/nothing", other)


@calls(ALL)
def test_the_path_is_empty(other: str, call: Call) -> None:
    raises(errno.ENOENT, call.run, "", other)


@calls(CALLS)
def test_the_longest_name(folder: Path, other: str, call: Call) -> None:
    path = folder / ("n" * NAME_MAX)
    if not call.new:
        path.touch()
    call.run(str(path), other)


@calls(ALL)
def test_a_name_that_is_too_long(folder: Path, other: str, call: Call) -> None:
    raises(errno.ENAMETOOLONG, call.run, f"{folder}/{'n' * (NAME_MAX + 1)}", other)
    raises(errno.ENAMETOOLONG, call.run, f"{folder}/{'n' * (NAME_MAX + 1)}/x", other)


def long_path(folder: Path, length: int) -> str:
    """A path of that many bytes, for the name x or xx in *folder*."""
    steps, odd = divmod(length - len(str(folder)) - 2, 2)
    return f"{folder}/{'./' * steps}x{'x' * odd}"


@calls(CALLS)
def test_the_longest_path(folder: Path, other: str, call: Call) -> None:
    path = long_path(folder, PATH_MAX)
    assert len(path) == PATH_MAX
    if not call.new:
        Path(path).touch()
    call.run(path, other)


@calls(ALL)
def test_a_path_that_is_too_long(folder: Path, other: str, call: Call) -> None:
    raises(errno.ENAMETOOLONG, call.run, long_path(folder, PATH_MAX + 1), other)


@calls(ALL)
def test_symlinks_on_the_way_that_go_round(folder: Path, other: str, call: Call) -> None:
    (folder / "one").symlink_to("two")
    (folder / "two").symlink_to("one")
    raises(errno.ELOOP, call.run, f"{folder}/one/x", other)


@calls([call for call in ALL if call.follows])
def test_a_symlink_at_the_end_that_goes_round(folder: Path, other: str, call: Call) -> None:
    (folder / "one").symlink_to("one")
    raises(errno.ELOOP, call.run, f"{folder}/one", other)


@calls([call for call in CALLS if call.follows and not call.new])
def test_a_symlink_at_the_end_is_followed(folder: Path, other: str, call: Call) -> None:
    (folder / "link").symlink_to("dangling")
    raises(errno.ENOENT, call.run, f"{folder}/link", other)
    (folder / "dangling").touch()
    call.run(f"{folder}/link", other)
    assert (folder / "link").is_symlink()


@calls([call for call in CALLS if call.new and call.name not in ("open-O_CREAT", "rename-to")])
def test_a_dangling_symlink_takes_a_name(folder: Path, other: str, call: Call) -> None:
    (folder / "link").symlink_to("dangling")
    raises(errno.EEXIST, call.run, f"{folder}/link", other)
    assert not (folder / "dangling").exists()


def test_creation_follows_a_dangling_symlink(folder: Path) -> None:
    (folder / "link").symlink_to("dangling")
    opened(str(folder / "link"), os.O_CREAT | os.O_WRONLY)
    assert (folder / "dangling").is_file()


def test_a_chain_of_symlinks_may_be_forty_long(folder: Path) -> None:
    (folder / "0").write_bytes(b"the end")
    for number in range(1, SYMLINKS_MAX + 2):
        (folder / str(number)).symlink_to(str(number - 1))
    assert (folder / str(SYMLINKS_MAX)).read_bytes() == b"the end"
    raises(errno.ELOOP, os.stat, folder / str(SYMLINKS_MAX + 1))


@as_root
@calls(ALL)
def test_a_directory_on_the_way_may_not_be_searched(folder: Path, other: str, call: Call) -> None:
    closed = folder / "closed"
    closed.mkdir()
    (closed / "x").touch()
    closed.chmod(0o666)
    os.chown(other, ALICE.uid, ALICE.gid)
    setresuid(ALICE.uid, -1, -1)  # whom access(2) asks for
    try:
        with acting_as(ALICE):
            raises(errno.EACCES, call.run, f"{closed}/x", other)
            raises(errno.EACCES, call.run, f"{closed}/nothing", other)
    finally:
        setresuid(0, -1, -1)


@calls([call for call in CALLS if not call.new])
def test_a_slash_after_a_file(folder: Path, other: str, call: Call) -> None:
    (folder / "x").touch()
    raises(errno.ENOTDIR, call.run, f"{folder}/x/", other)


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("open-O_CREAT", errno.EISDIR),
        ("mkfifo", errno.ENOENT),
        ("mknod", errno.ENOENT),
        ("symlink", errno.ENOENT),
        ("link-to", errno.ENOENT),
        ("rename-to", errno.ENOTDIR),
    ],
)
def test_a_slash_after_a_new_name_asks_for_a_directory(folder: Path, other: str, name: str, number: int) -> None:
    call = next(call for call in CALLS if call.name == name)
    raises(number, call.run, f"{folder}/new/", other)
    (folder / "new").mkdir()  # which nothing above has left there
    (folder / "directory").mkdir()
    (folder / "directory").rename(f"{folder}/new/")


def test_slashes_and_dots_do_not_matter(folder: Path) -> None:
    os.mkdir(f"{folder}/a///")
    Path(f"{folder}//a/.//x").write_bytes(b"x")
    assert Path(f"{folder}/a/../a/./../a/x").read_bytes() == b"x"
    assert os.stat(f"{folder}/a/..").st_ino == folder.stat().st_ino
    assert os.stat(f"{folder}/a/.").st_ino == (folder / "a").stat().st_ino
    assert os.listdir(folder) == ["a"]


@pytest.mark.parametrize(
    ("last", "outcomes"),
    [
        (".", {"mkdir": errno.EEXIST, "rmdir": errno.EINVAL, "unlink": errno.EISDIR, "rename-from": errno.EBUSY}),
        ("..", {"mkdir": errno.EEXIST, "rmdir": errno.ENOTEMPTY, "unlink": errno.EISDIR, "rename-from": errno.EBUSY}),
    ],
)
def test_dots_are_no_names_to_change(folder: Path, other: str, last: str, outcomes: dict[str, int]) -> None:
    (folder / "a" / "b").mkdir(parents=True)
    for call in ALL:
        if call.name in outcomes:
            raises(outcomes[call.name], call.run, f"{folder}/a/b/{last}", other)
    raises(errno.EBUSY, os.rename, folder / "a", f"{folder}/a/b/{last}")
    assert os.listdir(folder / "a") == ["b"]


def test_paths_from_an_open_directory(folder: Path) -> None:
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.mkdir("a", dir_fd=directory)
        os.close(os.open("a/x", os.O_CREAT | os.O_WRONLY, dir_fd=directory))
        os.link("a/x", "y", src_dir_fd=directory, dst_dir_fd=directory)
        os.rename("y", "z", src_dir_fd=directory, dst_dir_fd=directory)
        os.symlink("z", "link", dir_fd=directory)
        assert os.readlink("link", dir_fd=directory) == "z"
        assert os.stat("link", dir_fd=directory).st_ino == (folder / "a" / "x").stat().st_ino
        os.unlink("a/x", dir_fd=directory)
        os.rmdir("a", dir_fd=directory)
        assert sorted(os.listdir(directory)) == ["link", "z"]
        assert os.stat(f"{folder}/z", dir_fd=directory).st_nlink == 1  # an absolute path has no need of it
    finally:
        os.close(directory)


def test_paths_from_what_is_no_directory(folder: Path) -> None:
    (folder / "x").touch()
    descriptor = os.open(folder / "x", os.O_RDONLY)
    try:
        raises(errno.ENOTDIR, os.stat, "y", dir_fd=descriptor)
        raises(errno.ENOTDIR, os.mkdir, "y", dir_fd=descriptor)
        raises(errno.ENOTDIR, os.unlink, "y", dir_fd=descriptor)
        raises(errno.ENOTDIR, os.rename, "y", "z", src_dir_fd=descriptor, dst_dir_fd=descriptor)
    finally:
        os.close(descriptor)
    raises(errno.EBADF, os.stat, "y", dir_fd=descriptor)
