"""fsync(2) and its relatives: on what they work, what they refuse, and that they change nothing one can see."""

import errno
import mmap
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.posix import raises
from tests.support.syscalls_data import (
    SYNC_FILE_RANGE_WAIT_AFTER,
    SYNC_FILE_RANGE_WAIT_BEFORE,
    SYNC_FILE_RANGE_WRITE,
    opened,
    sync_file_range,
    syncfs,
)

ALL = SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER


def whole_range(descriptor: int) -> None:
    sync_file_range(descriptor, 0, 0, ALL)


CALLS: list[Callable[[int], None]] = [os.fsync, os.fdatasync, syncfs, whole_range]
each_call = pytest.mark.parametrize("sync", CALLS)


@each_call
@pytest.mark.parametrize("size", [0, 1, 65_536, 65_537, 3_000_000])
def test_a_file_of_any_size_is_synced_between_its_writes(folder: Path, sync: Callable[[int], None], size: int) -> None:
    data = random.Random(size).randbytes(size)
    with opened(folder / "x", os.O_RDWR | os.O_CREAT) as file:
        sync(file)
        os.write(file, data)
        sync(file)
        sync(file)
        os.pwrite(file, b"changed", size // 2)
        sync(file)
        expected = data[: size // 2] + b"changed" + data[size // 2 + 7 :]
        assert os.pread(file, size + 10, 0) == expected
        os.ftruncate(file, size // 3)
        sync(file)
    assert (folder / "x").read_bytes() == expected[: size // 3]


@each_call
def test_any_descriptor_of_a_file_syncs_it(folder: Path, sync: Callable[[int], None]) -> None:
    with opened(folder / "x", os.O_WRONLY | os.O_CREAT) as writer, opened(folder / "x", os.O_RDONLY) as reader:
        os.write(writer, b"x" * 100_000)
        sync(reader)
        os.unlink(folder / "x")
        os.write(writer, b"y" * 100_000)
        sync(reader)
        sync(writer)
        assert os.pread(reader, 300_000, 0) == b"x" * 100_000 + b"y" * 100_000


@each_call
def test_a_directory_is_synced_while_it_changes(folder: Path, sync: Callable[[int], None]) -> None:
    (folder / "d").mkdir()
    with opened(folder / "d", os.O_RDONLY | os.O_DIRECTORY) as directory:
        sync(directory)
        (folder / "d" / "a").touch()
        sync(directory)
        (folder / "d" / "a").rename(folder / "d" / "b")
        sync(directory)
        assert os.listdir(folder / "d") == ["b"]
        (folder / "d" / "b").unlink()
        (folder / "d").rmdir()
        sync(directory)  # it has no name any more


@each_call
def test_what_is_no_open_file_is_not_synced(folder: Path, sync: Callable[[int], None]) -> None:
    (folder / "x").touch()
    raises(errno.EBADF, sync, 1_000_000)
    with opened(folder / "x", os.O_PATH) as name_only:
        raises(errno.EBADF, sync, name_only)


@pytest.mark.parametrize(
    ("sync", "number"), [(os.fsync, errno.EINVAL), (os.fdatasync, errno.EINVAL), (whole_range, errno.ESPIPE)]
)
def test_a_fifo_has_nothing_to_sync(folder: Path, sync: Callable[[int], None], number: int) -> None:
    os.mkfifo(folder / "fifo")
    with opened(folder / "fifo", os.O_RDWR) as fifo:
        raises(number, sync, fifo)


def test_parts_of_a_file_are_synced(folder: Path) -> None:
    (folder / "x").write_bytes(b"x" * 1_000_000)
    with opened(folder / "x", os.O_RDWR) as file:
        for flags in (0, SYNC_FILE_RANGE_WRITE, ALL):
            os.pwrite(file, b"y", 500_000)
            sync_file_range(file, 400_000, 200_000, flags)
            sync_file_range(file, 2_000_000, 0, flags)  # behind the end
        raises(errno.EINVAL, sync_file_range, file, 0, 1, 8)
        raises(errno.EINVAL, sync_file_range, file, -1, 1, ALL)
        raises(errno.EINVAL, sync_file_range, file, 1, -1, ALL)
        raises(errno.EINVAL, sync_file_range, file, 2**63 - 1, 2, ALL)


@pytest.mark.parametrize("flag", [os.O_SYNC, os.O_DSYNC])
def test_descriptors_that_sync_every_write(folder: Path, flag: int) -> None:
    model = bytearray()
    with opened(folder / "x", os.O_RDWR | os.O_CREAT | flag) as file:
        for number, size in enumerate((1, 10, 65_536, 300_000, 1)):
            piece = random.Random(number).randbytes(size)
            assert os.write(file, piece) == size
            model += piece
        os.pwrite(file, b"in the middle", 70_000)
        model[70_000:70_013] = b"in the middle"
    assert (folder / "x").read_bytes() == model


def test_mapped_stores_are_synced_by_every_call(folder: Path) -> None:
    (folder / "x").write_bytes(bytes(100_000))
    with opened(folder / "x", os.O_RDWR) as file, mmap.mmap(file, 0) as mapped:
        for number, sync in enumerate(CALLS, start=1):
            mapped[number * 20_000] = number
            sync(file)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            assert os.pread(file, 1, number * 20_000) == bytes([number])
        mapped[10] = 77
        mapped.flush(0, 4096)
    assert (folder / "x").read_bytes()[10] == 77
