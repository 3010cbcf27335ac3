"""Names: every byte but `/` and NUL, as long as they may be, as deep and as many as one likes."""

import contextlib
import errno
import os
import random
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.kinds import make
from tests.support.long_form import LONG
from tests.support.posix import raises
from tests.support.syscalls import status

NAME_MAX = 255
SUBDIRECTORIES = 33_000
"""More than a file system could have that counts links in 15 bits."""
ENTRIES = 100_000 if LONG else 40_000
REMOVED = 3000
"""Of either kind. The rest goes with the whole file system: it takes less time."""


@contextlib.contextmanager
def opened_directory(path: Path | bytes, *, dir_fd: int | None = None) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY, dir_fd=dir_fd)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("form", [b"%c", b"a%cb", b"%c%c%c"], ids=["alone", "inside", "thrice"])
def test_every_byte(folder: Path, form: bytes) -> None:
    top = os.fsencode(folder)
    values = [value for value in range(1, 256) if value != ord("/")]
    names = [form.replace(b"%c", bytes([value])) for value in values]
    names = [name for name in names if name != b"."]
    for name in names:
        with open(top + b"/" + name, "xb") as file:
            file.write(name)
    listed = os.listdir(top)
    assert len(listed) == len(names) and set(listed) == set(names)
    for name in names:
        with open(top + b"/" + name, "rb") as file:
            assert file.read() == name
        os.rename(top + b"/" + name, top + b"/renamed " + name)
        os.unlink(top + b"/renamed " + name)
    assert os.listdir(top) == []


@pytest.mark.parametrize(
    "names",
    [
        ["a", "A"],
        ["straße", "strasse", "STRASSE"],
        ["\u00e9", "e\u0301"],
        ["\ufb01", "fi"],
        ["x", "x ", " x", "x.", "x\t", "x\n"],
        ["...", "....", ".x", "..x"],
        ["1", "01", "1.0", "\uff11"],
        ["i", "I", "\u0131", "\u0130"],
        ["ab", "ab\u200b", "\ufeffab"],
    ],
    ids=repr,
)
def test_names_that_only_look_alike_are_different(folder: Path, names: list[str]) -> None:
    for name in names:
        make("directory", folder / name)
        (folder / name / "own").write_bytes(os.fsencode(name))
    assert sorted(os.listdir(folder)) == sorted(names)
    assert [(folder / name / "own").read_bytes() for name in names] == [os.fsencode(name) for name in names]


@pytest.mark.parametrize("character", ["x", "é", "漢", "🙂"])
def test_names_are_limited_in_bytes_not_characters(folder: Path, character: str) -> None:
    length = len(os.fsencode(character))
    name = character * (NAME_MAX // length)
    name += "." * (NAME_MAX - len(os.fsencode(name)))
    make("regular", folder / name)
    assert os.listdir(folder) == [name]
    raises(errno.ENAMETOOLONG, os.mkdir, folder / (name + "."))
    raises(errno.ENAMETOOLONG, os.rename, folder / name, folder / ("." + name))


def test_names_of_every_length(folder: Path) -> None:
    names = {"n" * length for length in range(1, NAME_MAX + 1)}
    for name in names:
        make("regular", folder / name)
    assert set(os.listdir(folder)) == names
    for name in names:
        assert status(folder / name).nlink == 1
        os.unlink(folder / name)
    assert os.listdir(folder) == []


def test_deeper_than_a_path_is_long(folder: Path) -> None:
    """Forty directories with the longest names: ten thousand bytes of path, walked step by step."""
    depth = 40
    name = b"d" * NAME_MAX
    with contextlib.ExitStack() as stack:
        descriptors = [stack.enter_context(opened_directory(folder))]
        for _ in range(depth):
            os.mkdir(name, dir_fd=descriptors[-1])
            descriptors.append(stack.enter_context(opened_directory(name, dir_fd=descriptors[-1])))
        os.mkfifo("f", dir_fd=descriptors[-1])
        assert os.listdir(descriptors[-1]) == ["f"]
        raises(errno.ENAMETOOLONG, os.stat, os.fsencode(folder) + (b"/" + name) * depth)
        assert os.stat("../" * depth, dir_fd=descriptors[-1]).st_ino == status(folder).number
        raises(errno.EINVAL, os.rename, name, b"x", src_dir_fd=descriptors[0], dst_dir_fd=descriptors[-1])
        os.unlink("f", dir_fd=descriptors[-1])
        for descriptor in reversed(descriptors[:-1]):
            os.rmdir(name, dir_fd=descriptor)
    assert os.listdir(folder) == []


def test_deep_trees(folder: Path) -> None:
    path = folder / Path(*["d"] * 200)
    path.mkdir(parents=True)
    (path / "x").write_bytes(b"deep")
    (folder / "d").rename(folder / "e")
    moved = folder / "e" / Path(*["d"] * 199)
    assert (moved / "x").read_bytes() == b"deep"
    assert (moved / Path(*[".."] * 199)).stat().st_ino == status(folder / "e").number
    raises(errno.EINVAL, os.rename, folder / "e", moved / "e")


@pytest.mark.slow
def test_a_directory_of_very_many_names(folder: Path) -> None:
    """Many of them directories, so the link count shows too (ext4 says 1 beyond 65,000: "many")."""
    chance = random.Random(1)
    names = [f"{number:x}-{'n' * chance.randrange(40)}" for number in range(ENTRIES)]
    directories, files = names[:SUBDIRECTORIES], names[SUBDIRECTORIES:]
    links = status(folder).nlink
    with opened_directory(folder) as directory:
        for name in directories:
            os.mkdir(name, dir_fd=directory)
        assert status(folder).nlink == links + SUBDIRECTORIES
        for name in files:
            os.mknod(name, dir_fd=directory)
        assert status(folder).nlink == links + SUBDIRECTORIES
        listed = os.listdir(directory)
        assert len(listed) == ENTRIES and set(listed) == set(names)
        for name in chance.sample(files, 500):
            assert stat.S_ISREG(os.stat(name, dir_fd=directory).st_mode)
        assert status(folder / directories[-1]).nlink == 2
        raises(errno.ENOENT, os.stat, "not among them", dir_fd=directory)
        raises(errno.ENOTEMPTY, os.rmdir, folder)
        gone_directories, gone_files = chance.sample(directories, REMOVED), chance.sample(files, REMOVED)
        for name in gone_directories:
            os.rmdir(name, dir_fd=directory)
        for name in gone_files:
            os.unlink(name, dir_fd=directory)
        assert status(folder).nlink == links + SUBDIRECTORIES - REMOVED
        listed = os.listdir(directory)
        assert len(listed) == ENTRIES - 2 * REMOVED
        assert set(listed) == set(names) - set(gone_directories) - set(gone_files)
