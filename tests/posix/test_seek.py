"""lseek(2): where a descriptor stands, and what SEEK_DATA and SEEK_HOLE say of holes."""

import errno
import os
from pathlib import Path

import pytest

from tests.support.posix import raises
from tests.support.syscalls_data import NO_LIMIT, SYNCER, file_system, largest_file_bytes, opened

MIB = 1024 * 1024


@pytest.mark.parametrize("size", [0, 1, 10, 65_536, 65_537])
def test_from_the_start_the_place_and_the_end(folder: Path, size: int) -> None:
    (folder / "x").write_bytes(b"x" * size)
    with opened(folder / "x", os.O_RDWR) as file:
        assert os.lseek(file, 0, os.SEEK_END) == size
        assert os.lseek(file, 5, os.SEEK_SET) == 5
        assert os.lseek(file, 7, os.SEEK_CUR) == 12
        assert os.lseek(file, -2, os.SEEK_CUR) == 10
        assert os.lseek(file, 100, os.SEEK_END) == size + 100
        assert os.lseek(file, -size, os.SEEK_END) == 0
        assert os.fstat(file).st_size == size  # to seek beyond the end does not extend


def test_a_seek_that_fails_leaves_the_place_alone(folder: Path) -> None:
    (folder / "x").write_bytes(b"0123456789")
    with opened(folder / "x", os.O_RDONLY) as file:
        os.lseek(file, 4, os.SEEK_SET)
        raises(errno.EINVAL, os.lseek, file, -1, os.SEEK_SET)
        raises(errno.EINVAL, os.lseek, file, -5, os.SEEK_CUR)
        raises(errno.EINVAL, os.lseek, file, -11, os.SEEK_END)
        raises(errno.EINVAL, os.lseek, file, 0, 99)
        assert os.read(file, 2) == b"45"


def test_the_end_is_where_another_descriptor_put_it(folder: Path) -> None:
    with opened(folder / "x", os.O_RDWR | os.O_CREAT) as file, opened(folder / "x", os.O_RDWR) as other:
        for size in (10, 70_000, 3, 1_000_000):
            os.ftruncate(other, size)
            assert os.lseek(file, 0, os.SEEK_END) == size
            os.pwrite(other, b"x", size + 10)
            assert os.lseek(file, 0, os.SEEK_END) == size + 11


def test_a_seek_to_the_largest_offset(folder: Path) -> None:
    largest = min(largest_file_bytes(folder), NO_LIMIT - 1)
    (folder / "x").write_bytes(b"data")
    with opened(folder / "x", os.O_RDONLY) as file:
        assert os.lseek(file, largest, os.SEEK_SET) == largest
        assert os.read(file, 1) == b""
        raises(errno.EINVAL, os.lseek, file, 2**63 - 1, os.SEEK_CUR)


def test_what_cannot_be_sought_in(folder: Path) -> None:
    os.mkfifo(folder / "fifo")
    with opened(folder / "fifo", os.O_RDWR) as fifo:
        raises(errno.ESPIPE, os.lseek, fifo, 0, os.SEEK_SET)
    (folder / "x").touch()
    with opened(folder / "x", os.O_PATH) as name_only:
        raises(errno.EBADF, os.lseek, name_only, 0, os.SEEK_SET)


# --- holes -----------------------------------------------------------------------------------------------------------


def test_data_and_holes(folder: Path) -> None:
    """A file system may call all of it data, as a mount does: nobody passes the question on to it."""
    with opened(folder / "x", os.O_RDWR | os.O_CREAT) as file:
        os.pwrite(file, b"1" * MIB, 0)
        os.pwrite(file, b"2" * MIB, 4 * MIB)
        os.ftruncate(file, 8 * MIB)
        os.fsync(file)
        found = [os.lseek(file, place, os.SEEK_DATA) for place in (0, 10, 4 * MIB)]
        assert found == [0, 10, 4 * MIB]
        data, hole = os.lseek(file, 2 * MIB, os.SEEK_DATA), os.lseek(file, 0, os.SEEK_HOLE)
        if file_system(folder) == SYNCER:
            assert (data, hole) == (2 * MIB, 8 * MIB)
            assert os.lseek(file, 5 * MIB, os.SEEK_DATA) == 5 * MIB
        else:
            assert (data, hole) in ((4 * MIB, MIB), (2 * MIB, 8 * MIB))
        for place in (8 * MIB, 9 * MIB, 2**40):
            raises(errno.ENXIO, os.lseek, file, place, os.SEEK_DATA)
            raises(errno.ENXIO, os.lseek, file, place, os.SEEK_HOLE)
        assert os.lseek(file, 8 * MIB - 1, os.SEEK_HOLE) in (8 * MIB - 1, 8 * MIB)


def test_an_empty_file_has_neither(folder: Path) -> None:
    with opened(folder / "x", os.O_RDWR | os.O_CREAT) as file:
        raises(errno.ENXIO, os.lseek, file, 0, os.SEEK_DATA)
        raises(errno.ENXIO, os.lseek, file, 0, os.SEEK_HOLE)


def test_a_full_file_ends_in_the_one_hole_it_has(folder: Path) -> None:
    (folder / "x").write_bytes(b"x" * 100_000)
    with opened(folder / "x", os.O_RDONLY) as file:
        os.fsync(file)
        assert os.lseek(file, 50_000, os.SEEK_HOLE) == 100_000
        assert os.lseek(file, 50_000, os.SEEK_DATA) == 50_000
