"""readdir(3) and its cursor: every entry once, of the right kind, also while names come, go and move."""

import errno
import itertools
import os
import random
import socket
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.posix import as_root, raises
from tests.support.syscalls_data import (
    DT_BLK,
    DT_CHR,
    DT_DIR,
    DT_FIFO,
    DT_LNK,
    DT_REG,
    DT_SOCK,
    EXT4,
    SYNCER,
    Directory,
    Entry,
    file_system,
    opened,
)

MANY = 5000
SOME = 400
"""More than one call of getdents(2) returns, and less than takes long."""


def filled(folder: Path, count: int) -> set[str]:
    """Make *count* empty files with names of many lengths."""
    names = {f"{number:05}{'-' * (number * 7 % 90)}" for number in range(count)}
    for name in names:
        os.close(os.open(folder / name, os.O_CREAT | os.O_WRONLY, 0o600))
    return names


def listed(directory: Directory) -> list[str]:
    return [entry.name for entry in directory]


# --- entries ---------------------------------------------------------------------------------------------------------


def test_dot_and_dot_dot_are_the_directory_and_its_parent(folder: Path) -> None:
    (folder / "d").mkdir()
    with Directory(folder / "d") as directory:
        entries = {entry.name: entry for entry in iter(directory.read, None)}
    assert entries == {
        ".": Entry(".", (folder / "d").stat().st_ino, DT_DIR),
        "..": Entry("..", folder.stat().st_ino, DT_DIR),
    }


def test_dot_dot_follows_a_directory_that_moves(folder: Path) -> None:
    (folder / "a" / "d").mkdir(parents=True)
    (folder / "b").mkdir()
    (folder / "a" / "d").rename(folder / "b" / "d")
    with Directory(folder / "b" / "d") as directory:
        found = {entry.name: entry.inode for entry in iter(directory.read, None)}
    assert found[".."] == (folder / "b").stat().st_ino
    assert (folder / "b" / "d" / "..").stat().st_ino == (folder / "b").stat().st_ino


@as_root
def test_types_and_inode_numbers_are_those_of_lstat(folder: Path) -> None:
    (folder / "file").touch()
    os.link(folder / "file", folder / "another name")
    (folder / "directory").mkdir()
    (folder / "link").symlink_to("directory")
    os.mkfifo(folder / "fifo")
    os.mknod(folder / "char", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.mknod(folder / "block", stat.S_IFBLK | 0o600, os.makedev(7, 200))
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "socket"))
    with Directory(folder) as directory:
        entries = list(directory)
    assert {entry.name: entry.type for entry in entries} == {
        "file": DT_REG,
        "another name": DT_REG,
        "directory": DT_DIR,
        "link": DT_LNK,
        "fifo": DT_FIFO,
        "char": DT_CHR,
        "block": DT_BLK,
        "socket": DT_SOCK,
    }
    assert all(entry.inode == (folder / entry.name).lstat().st_ino for entry in entries)


def test_the_type_follows_what_takes_the_name(folder: Path) -> None:
    path = folder / "x"
    makers: list[tuple[Callable[[], None], int]] = [
        (path.touch, DT_REG),
        (path.mkdir, DT_DIR),
        (lambda: path.symlink_to("x"), DT_LNK),
        (lambda: os.mkfifo(path), DT_FIFO),
    ]
    for make, kind in makers:
        make()
        with Directory(folder) as directory:
            assert [entry.type for entry in directory] == [kind]
        if kind == DT_DIR:
            path.rmdir()
        else:
            path.unlink()


@pytest.mark.parametrize("length", [1, 8, 100, 254, 255])
def test_names_of_any_length_are_listed_whole(folder: Path, length: int) -> None:
    names = {(f"{number:03}" + "é" * 200).encode()[:length] for number in range(300)}
    names = {name for name in names if name not in (b".", b"..")}
    for name in names:
        with open(os.path.join(os.fsencode(folder), name), "wb"):
            pass
    with Directory(folder) as directory:
        found = [os.fsencode(name) for name in listed(directory)]
    assert len(found) == len(names) and set(found) == names


def test_what_is_no_directory_cannot_be_listed(folder: Path) -> None:
    (folder / "x").touch()
    (folder / "loop").symlink_to("loop")
    raises(errno.ENOTDIR, Directory, folder / "x")
    raises(errno.ENOENT, Directory, folder / "nothing")
    raises(errno.ELOOP, Directory, folder / "loop")
    raises(errno.ENOTDIR, os.open, folder / "x", os.O_RDONLY | os.O_DIRECTORY)


def test_a_removed_directory_that_is_open_is_empty_and_takes_no_names(folder: Path) -> None:
    (folder / "d").mkdir()
    with Directory(folder / "d") as directory:
        (folder / "d").rmdir()
        assert listed(directory) == []
        raises(errno.ENOENT, os.open, "x", os.O_CREAT | os.O_WRONLY, dir_fd=directory.fileno())
        raises(errno.ENOENT, os.mkdir, "x", dir_fd=directory.fileno())
        assert os.fstat(directory.fileno()).st_nlink == 0


# --- the cursor ------------------------------------------------------------------------------------------------------


def test_a_place_that_was_told_leads_back_to_the_entry_after_it(folder: Path) -> None:
    filled(folder, SOME)
    with Directory(folder) as directory:
        places = []
        while entry := directory.read():
            places.append((entry, directory.tell()))
        following = {place: after for (_, place), (after, _) in itertools.pairwise(places)}
        chance = random.Random(1)
        for place in chance.sample(sorted(following), 40):
            directory.seek(place)
            assert directory.read() == following[place]
        directory.seek(places[-1][1])
        assert directory.read() is None


def test_a_place_stays_good_while_others_are_removed(folder: Path) -> None:
    names = filled(folder, SOME)
    with Directory(folder) as directory:
        first = [entry.name for _, entry in zip(range(100), directory, strict=False)]
        place = directory.tell()
        rest = set(listed(directory))
        removed = {*first[::3], *sorted(rest)[::3]}
        for name in removed:
            os.unlink(folder / name)
        directory.seek(place)
        found = listed(directory)
    assert len(found) == len(set(found))
    assert rest - removed <= set(found) <= names - set(first)


def test_rewinding_shows_what_came_and_went(folder: Path) -> None:
    names = filled(folder, 50)
    with Directory(folder) as directory:
        assert set(listed(directory)) == names
        os.unlink(folder / min(names))
        (folder / "new").touch()
        directory.rewind()
        assert set(listed(directory)) == names - {min(names)} | {"new"}
        (folder / "newer").touch()
        directory.rewind()
        assert "newer" in listed(directory)


def test_every_descriptor_of_a_directory_has_a_cursor_of_its_own(folder: Path) -> None:
    names = filled(folder, SOME)
    with Directory(folder) as one, Directory(folder) as other:
        first = [one.read() for _ in range(300)]
        assert set(listed(other)) == names
        assert len(set(listed(one)) | {entry.name for entry in first if entry}) >= len(names)


def test_a_descriptor_lists_again_from_its_start(folder: Path) -> None:
    names = filled(folder, 20)
    with opened(folder, os.O_RDONLY | os.O_DIRECTORY) as descriptor:
        for _ in range(3):
            assert set(os.listdir(descriptor)) == names


# --- while it changes ------------------------------------------------------------------------------------------------


def create_more(folder: Path, name: str, number: int) -> set[str]:
    (folder / f"new-{number}").touch()
    return set()


def remove_it(folder: Path, name: str, number: int) -> set[str]:
    os.unlink(folder / name)
    return {name}


def rename_within(folder: Path, name: str, number: int) -> set[str]:
    (folder / name).rename(folder / f"moved-{number}")
    return {name}


def rename_away_and_back(folder: Path, name: str, number: int) -> set[str]:
    (folder / name).rename(folder.parent / f"{folder.name}-away")
    (folder.parent / f"{folder.name}-away").rename(folder / name)
    return {name}


def replace_by_rename(folder: Path, name: str, number: int) -> set[str]:
    (folder.parent / f"{folder.name}-new").touch()
    (folder.parent / f"{folder.name}-new").rename(folder / name)
    return set() if file_system(folder) in (EXT4, SYNCER) else {name}  # POSIX leaves this open


def write_into(folder: Path, name: str, number: int) -> set[str]:
    (folder / name).write_bytes(b"x")
    (folder / name).chmod(0o644)
    return set()


def link_and_unlink(folder: Path, name: str, number: int) -> set[str]:
    os.link(folder / name, folder / f"link-{number}")
    os.unlink(folder / f"link-{number}")
    return set()


CHANGES = [
    create_more,
    remove_it,
    rename_within,
    rename_away_and_back,
    replace_by_rename,
    write_into,
    link_and_unlink,
]


@pytest.mark.parametrize("change", CHANGES)
def test_what_stays_is_listed_exactly_once(folder: Path, change: Callable[[Path, str, int], set[str]]) -> None:
    place = folder / "d"
    place.mkdir()
    names = filled(place, SOME)
    untouched = sorted(names)
    random.Random(2).shuffle(untouched)
    touched: set[str] = set()
    found = []
    with Directory(place) as directory:
        for number, entry in enumerate(directory):
            found.append(entry.name)
            if number % 3 == 0 and number < SOME:
                touched |= change(place, untouched.pop(), number)
    assert sorted(name for name in found if name in names - touched) == sorted(names - touched)
    assert len(found) == len(set(found)) or change in (rename_away_and_back, replace_by_rename)


def test_five_thousand_entries_are_unlinked_while_they_are_listed(folder: Path) -> None:
    filled(folder, MANY)
    with Directory(folder) as directory:
        for entry in directory:
            os.unlink(folder / entry.name)
    assert os.listdir(folder) == []


def test_another_thread_changes_a_directory_that_is_listed_over_and_over(folder: Path) -> None:
    names = filled(folder, SOME)
    ended = threading.Event()

    def churn() -> None:
        number = 0
        while not ended.is_set():
            number += 1
            (folder / f"new-{number}").touch()
            (folder / f"new-{number}").rename(folder / f"newer-{number}")
            (folder / f"newer-{number}").unlink()

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(15):
            with Directory(folder) as directory:
                found = [name for name in listed(directory) if name in names]
            assert len(found) == len(names) and set(found) == names
    finally:
        ended.set()
        thread.join()
