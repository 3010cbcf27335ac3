"""O_APPEND: every record at the end, whole, whoever else appends at the same time."""

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.child import Child
from tests.support.posix import raises
from tests.support.syscalls_data import opened

APPENDER = """
import os, sys
path, name, count, length = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
file = os.open(path, os.O_WRONLY | os.O_APPEND)
print("ready")
sys.stdin.readline()
for number in range(count):
    record = f"{name}{number:05}".encode().ljust(length - 1, name.encode()) + b"\\n"
    assert os.write(file, record) == length
print("done")
"""
NAMES = "abcd"


def in_two_pieces(file: int, data: bytes) -> int:
    return os.writev(file, [data[: len(data) // 2], data[len(data) // 2 :]])


def at_an_offset(file: int, data: bytes) -> int:
    return os.pwrite(file, data, 3)


def after_a_seek(file: int, data: bytes) -> int:
    os.lseek(file, 1, os.SEEK_SET)
    return os.write(file, data)


@pytest.mark.parametrize("append", [os.write, in_two_pieces, at_an_offset, after_a_seek])
def test_every_way_of_writing_appends(folder: Path, append: Callable[[int, bytes], int]) -> None:
    model = b""
    with opened(folder / "x", os.O_RDWR | os.O_CREAT | os.O_APPEND) as file:
        for number, size in enumerate((1, 100, 4096, 60_000, 5000, 300_000, 7)):
            piece = random.Random(number).randbytes(size)
            assert append(file, piece) == size
            model += piece
            assert os.fstat(file).st_size == len(model)
        assert os.pread(file, len(model) + 1, 0) == model


def test_the_place_of_an_appender_is_behind_what_it_wrote(folder: Path) -> None:
    (folder / "x").write_bytes(b"0123456789")
    with opened(folder / "x", os.O_RDWR | os.O_APPEND) as file:
        assert os.lseek(file, 0, os.SEEK_CUR) == 0
        assert os.read(file, 2) == b"01"
        os.write(file, b"ab")
        assert os.lseek(file, 0, os.SEEK_CUR) == 12
        assert os.read(file, 10) == b""


def test_appending_goes_on_behind_the_new_end_of_a_truncated_file(folder: Path) -> None:
    with opened(folder / "x", os.O_WRONLY | os.O_CREAT | os.O_APPEND) as file:
        os.write(file, b"x" * 100_000)
        os.truncate(folder / "x", 3)
        os.write(file, b"end")
        os.ftruncate(file, 10)
        os.write(file, b"END")
    assert (folder / "x").read_bytes() == b"xxxend" + bytes(4) + b"END"


@pytest.mark.parametrize(("count", "length"), [(300, 20), (150, 4097), (40, 100_000)])
def test_four_processes_append_whole_records(folder: Path, count: int, length: int) -> None:
    """Records longer than what one FUSE request carries as well."""
    path = folder / "log"
    path.touch()
    children = [Child(APPENDER, path, name, count, length) for name in NAMES]
    try:
        assert [child.says() for child in children] == ["ready"] * len(NAMES)
        for child in children:
            child.tell()
        assert [child.says() for child in children] == ["done"] * len(NAMES)
    finally:
        for child in children:
            child.__exit__()
    records = path.read_bytes().split(b"\n")
    assert records.pop() == b""
    expected = [f"{name}{number:05}".ljust(length - 1, name).encode() for name in NAMES for number in range(count)]
    assert len(records) == len(expected)
    assert sorted(records) == sorted(expected)
    for name in NAMES.encode():
        numbers = [record[1:6] for record in records if record[0] == name]
        assert numbers == sorted(numbers)


def test_reading_and_appending_descriptors_of_one_process(folder: Path) -> None:
    with (
        opened(folder / "x", os.O_WRONLY | os.O_CREAT | os.O_APPEND) as one,
        opened(folder / "x", os.O_WRONLY | os.O_APPEND) as other,
        opened(folder / "x", os.O_RDONLY) as reader,
    ):
        for number in range(100):
            os.write(one if number % 3 else other, f"{number:04}".encode())
        assert os.read(reader, 1000) == b"".join(f"{number:04}".encode() for number in range(100))
        raises(errno.EBADF, os.read, one, 1)
