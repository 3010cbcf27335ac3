"""read(2), write(2) and their positioned and scattered forms: at, around and beyond the end of the file."""

import errno
import os
import random
from pathlib import Path

import pytest

from tests.support.posix import raises
from tests.support.syscalls_data import NO_LIMIT, largest_file_bytes, opened, read_to, write_from

SIZES = (0, 1, 4096, 65_536, 65_537, 1_048_577)
AROUND = (-4097, -4096, -1, 0, 1, 4096, 10**12)
"""Where a read begins, seen from the end of the file."""
LENGTHS = (0, 1, 4095, 4097, 200_000)
NOWHERE = 8
"""An address at which nothing is mapped."""
MANY_BUFFERS = 1024
"""IOV_MAX."""


# --- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_reads_around_the_end_return_what_is_there(folder: Path, size: int) -> None:
    data = random.Random(size).randbytes(size)
    (folder / "x").write_bytes(data)
    with opened(folder / "x", os.O_RDONLY) as file:
        for offset in (max(0, size + distance) for distance in AROUND):
            for length in LENGTHS:
                expected = data[offset : offset + length]
                assert os.pread(file, length, offset) == expected
                os.lseek(file, offset, os.SEEK_SET)
                assert os.read(file, length) == expected
                assert os.lseek(file, 0, os.SEEK_CUR) == offset + len(expected)


def test_reading_on_at_the_end_finds_what_is_appended_meanwhile(folder: Path) -> None:
    with opened(folder / "x", os.O_WRONLY | os.O_CREAT) as writer, opened(folder / "x", os.O_RDONLY) as reader:
        for number in range(20):
            piece = random.Random(number).randbytes(1 + number * 500)
            assert os.read(reader, 100) == b""
            os.write(writer, piece)
            assert os.read(reader, 100_000) == piece


def test_scattered_reads_fill_one_buffer_after_the_other(folder: Path) -> None:
    data = random.Random(1).randbytes(100_000)
    (folder / "x").write_bytes(data)
    buffers = [bytearray(length) for length in (1, 0, 4095, 1, 65_536, 50_000)]
    with opened(folder / "x", os.O_RDONLY) as file:
        assert os.readv(file, buffers) == 100_000
        assert b"".join(buffers)[:100_000] == data
        assert os.readv(file, [bytearray(10)]) == 0
        few = [bytearray(3), bytearray(5)]
        assert os.preadv(file, few, 99_994) == 6
        assert few == [data[99_994:99_997], data[99_997:] + bytes(2)]
        assert os.preadv(file, few, 100_000) == 0
        assert os.preadv(file, [bytearray(1) for _ in range(MANY_BUFFERS)], 0) == MANY_BUFFERS
        raises(errno.EINVAL, os.preadv, file, [bytearray(1) for _ in range(MANY_BUFFERS + 1)], 0)


# --- writing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_writes_around_the_end_extend_the_file(folder: Path, size: int) -> None:
    model = bytearray(random.Random(size).randbytes(size))
    with opened(folder / "x", os.O_RDWR | os.O_CREAT) as file:
        os.write(file, model)
        for distance in (-4097, -4096, -1, 0, 1, 4096, 70_000):
            for length in LENGTHS:
                offset = max(0, len(model) + distance)
                piece = random.Random(length + distance).randbytes(length)
                assert os.pwrite(file, piece, offset) == length
                if length:
                    model.extend(bytes(max(0, offset - len(model))))
                    model[offset : offset + length] = piece
                assert os.fstat(file).st_size == len(model)
        assert os.lseek(file, 0, os.SEEK_CUR) == size
    assert (folder / "x").read_bytes() == model


def test_gathered_writes_take_one_buffer_after_the_other(folder: Path) -> None:
    buffers = [random.Random(length).randbytes(length) for length in (1, 0, 4095, 1, 65_536, 50_000)]
    data = b"".join(buffers)
    with opened(folder / "x", os.O_RDWR | os.O_CREAT) as file:
        assert os.writev(file, buffers) == len(data)
        assert os.pwritev(file, buffers, 10) == len(data)
        assert os.lseek(file, 0, os.SEEK_CUR) == len(data)
        assert os.pwritev(file, [b"1"] * MANY_BUFFERS, 200_000) == MANY_BUFFERS
        raises(errno.EINVAL, os.pwritev, file, [b"1"] * (MANY_BUFFERS + 1), 0)
    expected = (data[:10] + data).ljust(200_000, b"\0") + b"1" * MANY_BUFFERS
    assert (folder / "x").read_bytes() == expected


def test_nothing_written_beyond_the_end_adds_nothing(folder: Path) -> None:
    with opened(folder / "x", os.O_RDWR | os.O_CREAT) as file:
        assert os.write(file, b"") == 0
        assert os.pwrite(file, b"", 1000) == 0
        assert os.writev(file, [b"", b""]) == 0
        os.lseek(file, 5000, os.SEEK_SET)
        assert os.write(file, b"") == 0
        assert os.fstat(file).st_size == 0
        assert os.lseek(file, 0, os.SEEK_CUR) == 5000


@pytest.mark.parametrize("flag", [os.RWF_DSYNC, os.RWF_SYNC, os.RWF_HIPRI])
def test_writes_with_a_flag_of_their_own(folder: Path, flag: int) -> None:
    with opened(folder / "x", os.O_RDWR | os.O_CREAT) as file:
        assert os.pwritev(file, [b"one", b"two"], 3, flag) == 6
        assert os.pread(file, 10, 0) == b"\0\0\0onetwo"


def test_a_write_that_appends_by_its_own_flag(folder: Path) -> None:
    (folder / "x").write_bytes(b"start")
    with opened(folder / "x", os.O_RDWR) as file:
        assert os.pwritev(file, [b"-end"], 0, os.RWF_APPEND) == 4
        assert os.pread(file, 20, 0) == b"start-end"


def test_positioned_writes_append_where_the_descriptor_does(folder: Path) -> None:
    """pwrite(2), BUGS: on Linux O_APPEND wins over the offset."""
    (folder / "x").write_bytes(b"start")
    with opened(folder / "x", os.O_RDWR | os.O_APPEND) as file:
        assert os.pwrite(file, b"-end", 0) == 4
        assert os.pread(file, 20, 0) == b"start-end"


# --- several descriptors ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [100, 65_000, 500_000])
def test_each_descriptor_reads_what_the_others_wrote(folder: Path, size: int) -> None:
    chance = random.Random(size)
    model = bytearray(chance.randbytes(size))
    (folder / "x").write_bytes(model)
    os.link(folder / "x", folder / "y")
    files = [os.open(folder / name, os.O_RDWR) for name in "xyxy"]
    try:
        for _ in range(100):
            offset = chance.randrange(size)
            piece = chance.randbytes(min(chance.randrange(1, 5000), size - offset))
            assert os.pwrite(chance.choice(files), piece, offset) == len(piece)
            model[offset : offset + len(piece)] = piece
            start = max(0, offset - 100)
            assert os.pread(chance.choice(files), 10_000, start) == model[start : start + 10_000]
    finally:
        for file in files:
            os.close(file)
    assert (folder / "x").read_bytes() == model


def test_duplicates_share_their_offset_and_others_do_not(folder: Path) -> None:
    (folder / "x").write_bytes(b"0123456789")
    with opened(folder / "x", os.O_RDONLY) as file, opened(folder / "x", os.O_RDONLY) as other:
        copy = os.dup(file)
        assert [os.read(descriptor, 2) for descriptor in (file, copy, file, other)] == [b"01", b"23", b"45", b"01"]
        os.close(copy)
        assert os.read(file, 2) == b"67"


# --- limits and errors -----------------------------------------------------------------------------------------------


def test_the_last_byte_a_file_may_have(folder: Path) -> None:
    largest = min(largest_file_bytes(folder), NO_LIMIT - 1)
    with opened(folder / "x", os.O_RDWR | os.O_CREAT) as file:
        os.write(file, b"first")
        assert os.pwrite(file, b"last", largest - 4) == 4
        assert os.fstat(file).st_size == largest
        assert os.pread(file, 10, largest - 6) == b"\0\0last"
        assert os.pread(file, 10, largest) == b""
        assert os.pread(file, 10, largest // 2) == bytes(10)
        assert os.pread(file, 7, 0) == b"first\0\0"
        os.lseek(file, -1, os.SEEK_END)
        assert os.read(file, 10) == b"t"


def test_a_write_ends_where_the_largest_file_does(folder: Path) -> None:
    largest = largest_file_bytes(folder)
    if largest >= NO_LIMIT:
        pytest.skip("files have no limit of their own here")
    with opened(folder / "x", os.O_RDWR | os.O_CREAT) as file:
        raises(errno.EFBIG, os.pwrite, file, b"x", largest)
        assert os.fstat(file).st_size == 0
        assert os.pwrite(file, b"12345678", largest - 3) == 3
        assert os.fstat(file).st_size == largest
        assert os.pread(file, 10, largest - 5) == b"\0\0" + b"123"


def test_offsets_that_are_none(folder: Path) -> None:
    (folder / "x").write_bytes(b"data")
    with opened(folder / "x", os.O_RDWR) as file:
        raises(errno.EINVAL, os.pread, file, 1, -1)
        raises(errno.EINVAL, os.pwrite, file, b"x", -1)
        raises(errno.EINVAL, os.preadv, file, [bytearray(1)], -2)
        assert os.pread(file, 10, 0) == b"data"


def test_descriptors_that_cannot(folder: Path) -> None:
    (folder / "x").write_bytes(b"data")
    with opened(folder, os.O_RDONLY) as directory:
        raises(errno.EISDIR, os.read, directory, 1)
        raises(errno.EISDIR, os.pread, directory, 1, 0)
        raises(errno.EBADF, os.write, directory, b"x")
    with opened(folder / "x", os.O_PATH) as name_only:
        raises(errno.EBADF, os.read, name_only, 1)
        raises(errno.EBADF, os.write, name_only, b"x")
    with opened(folder / "x", os.O_RDONLY) as reader, opened(folder / "x", os.O_WRONLY) as writer:
        raises(errno.EBADF, os.pwrite, reader, b"x", 0)
        raises(errno.EBADF, os.writev, reader, [b"x"])
        raises(errno.EBADF, os.pread, writer, 1, 0)
        raises(errno.EBADF, os.readv, writer, [bytearray(1)])
    raises(errno.EBADF, os.read, 1_000_000, 1)
    raises(errno.EISDIR, os.open, folder, os.O_RDWR)


def test_memory_that_is_not_there(folder: Path) -> None:
    (folder / "x").write_bytes(b"data")
    with opened(folder / "x", os.O_RDWR) as file:
        raises(errno.EFAULT, read_to, file, NOWHERE, 4)
        raises(errno.EFAULT, write_from, file, NOWHERE, 4)
        assert os.lseek(file, 0, os.SEEK_CUR) == 0
        assert os.fstat(file).st_size == 4
        assert os.read(file, 10) == b"data"
