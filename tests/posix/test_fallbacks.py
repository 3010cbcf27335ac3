"""Calls that a file system may lack, and what programs and the C library do instead.

pyfuse3 passes none of fallocate, O_TMPFILE and ioctl on: there a mount says EOPNOTSUPP or ENOTTY, as POSIX allows.
"""

import errno
import fcntl
import os
import random
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.posix import raises
from tests.support.syscalls_data import (
    EXT4,
    FALLOC_FL_COLLAPSE_RANGE,
    FALLOC_FL_KEEP_SIZE,
    FALLOC_FL_PUNCH_HOLE,
    FALLOC_FL_ZERO_RANGE,
    SYNCER,
    fallocate,
    file_system,
    opened,
)

KIB, MIB = 1024, 1024 * 1024
DATA = random.Random(1).randbytes(300_000)
FS_IOC_GETFLAGS = 0x80086601
FICLONE = 0x40049409


# --- room ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "offset", "length", "expected"),
    [
        (0, 0, 400_000, DATA + bytes(100_000)),
        (0, 0, 1000, DATA),
        (FALLOC_FL_KEEP_SIZE, 0, 400_000, DATA),
        (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 100, 70_000, DATA[:100] + bytes(70_000) + DATA[70_100:]),
        (FALLOC_FL_ZERO_RANGE, 299_999, 10, DATA[:-1] + bytes(10)),
        (FALLOC_FL_COLLAPSE_RANGE, 64 * KIB, 64 * KIB, DATA[: 64 * KIB] + DATA[128 * KIB :]),
    ],
)
def test_fallocate_does_it_or_says_that_it_does_not(
    folder: Path, mode: int, offset: int, length: int, expected: bytes
) -> None:
    (folder / "x").write_bytes(DATA)
    with opened(folder / "x", os.O_RDWR) as file:
        if file_system(folder) == SYNCER:
            raises(errno.EOPNOTSUPP, fallocate, file, mode, offset, length)
            expected = DATA
        elif file_system(folder) == EXT4:
            fallocate(file, mode, offset, length)
        else:
            try:
                fallocate(file, mode, offset, length)
            except OSError as error:
                assert error.errno == errno.EOPNOTSUPP
                expected = DATA
    assert (folder / "x").read_bytes() == expected


def test_ranges_that_cannot_be_allocated(folder: Path) -> None:
    (folder / "x").write_bytes(DATA)
    with opened(folder / "x", os.O_RDWR) as file, opened(folder / "x", os.O_RDONLY) as reader:
        for call in (os.posix_fallocate, lambda *numbers: fallocate(numbers[0], 0, numbers[1], numbers[2])):
            raises(errno.EINVAL, call, file, 0, 0)
            raises(errno.EINVAL, call, file, 0, -1)
            raises(errno.EINVAL, call, file, -1, 1)
            raises(errno.EBADF, call, reader, 0, 1)
        raises(errno.EFBIG, os.posix_fallocate, file, 2**63 - 10, 100)
    assert (folder / "x").read_bytes() == DATA


@pytest.mark.parametrize(("offset", "length"), [(0, 10), (0, 300_001), (300_000, 5000), (700_000, 1), (4095, 300_000)])
def test_posix_fallocate_makes_the_file_as_long_as_asked_and_keeps_its_bytes(
    folder: Path, offset: int, length: int
) -> None:
    (folder / "x").write_bytes(DATA)
    with opened(folder / "x", os.O_RDWR) as file:
        os.posix_fallocate(file, offset, length)
    assert (folder / "x").read_bytes() == DATA.ljust(offset + length, b"\0")


# --- files without a name --------------------------------------------------------------------------------------------


def test_a_file_without_a_name(folder: Path) -> None:
    if file_system(folder) == SYNCER:
        raises(errno.EOPNOTSUPP, os.open, folder, os.O_TMPFILE | os.O_RDWR, 0o600)
    elif file_system(folder) == EXT4:
        with opened(folder, os.O_TMPFILE | os.O_RDWR, 0o600) as file, opened(folder, os.O_RDONLY) as directory:
            os.write(file, DATA)
            os.link(f"/proc/self/fd/{file}", "named", src_dir_fd=directory, dst_dir_fd=directory)  # follows the link
        assert (folder / "named").read_bytes() == DATA
        (folder / "named").unlink()
    assert os.listdir(folder) == []


def test_temporary_files_have_no_name_either_way(folder: Path) -> None:
    with tempfile.TemporaryFile(dir=folder) as file:
        assert os.listdir(folder) == []
        file.write(DATA)
        file.seek(0)
        assert file.read() == DATA
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        assert os.listdir(folder) == [os.path.basename(file.name)]
    assert os.listdir(folder) == []


# --- copies inside the kernel ----------------------------------------------------------------------------------------


def test_copy_file_range_copies_any_part(folder: Path) -> None:
    (folder / "x").write_bytes(DATA)
    with opened(folder / "x", os.O_RDONLY) as source, opened(folder / "y", os.O_RDWR | os.O_CREAT) as target:
        copied = 0
        while count := os.copy_file_range(source, target, MIB):
            copied += count
        assert copied == len(DATA) == os.lseek(source, 0, os.SEEK_CUR) == os.lseek(target, 0, os.SEEK_CUR)
        assert (folder / "y").read_bytes() == DATA
        assert os.copy_file_range(source, target, 5000, 295_500, 1_000_001) == 4500
        assert os.pread(target, 10_000, 1_000_000) == b"\0" + DATA[295_500:]
        assert os.copy_file_range(source, target, 10, len(DATA), 0) == 0
        assert os.copy_file_range(source, target, 0) == 0
        raises(errno.EBADF, os.copy_file_range, target, source, 10)


def test_copy_file_range_within_one_file(folder: Path) -> None:
    (folder / "x").write_bytes(DATA)
    with opened(folder / "x", os.O_RDWR) as file:
        raises(errno.EINVAL, os.copy_file_range, file, file, 1000, 0, 500)
        assert os.copy_file_range(file, file, 1000, 0, 100_000) == 1000
    assert (folder / "x").read_bytes() == DATA[:100_000] + DATA[:1000] + DATA[101_000:]


def test_sendfile_to_a_file_and_to_a_socket(folder: Path) -> None:
    (folder / "x").write_bytes(DATA)
    with opened(folder / "x", os.O_RDONLY) as source, opened(folder / "y", os.O_WRONLY | os.O_CREAT) as target:
        sent = 0
        while count := os.sendfile(target, source, sent, 100_000):
            sent += count
        assert (folder / "y").read_bytes() == DATA
        here, there = socket.socketpair()
        with here, there:
            assert os.sendfile(here.fileno(), source, 1000, 5000) == 5000
            assert there.recv(6000) == DATA[1000:6000]


def test_splice_through_a_pipe(folder: Path) -> None:
    (folder / "x").write_bytes(DATA)
    reader, writer = os.pipe()
    with opened(folder / "x", os.O_RDONLY) as source, opened(folder / "y", os.O_RDWR | os.O_CREAT) as target:
        done = 0
        while count := os.splice(source, writer, 64 * KIB, offset_src=done):
            left = count
            while left:
                moved = os.splice(reader, target, left, offset_dst=done + 7)
                left, done = left - moved, done + moved
        raises(errno.EINVAL, os.splice, source, target, 10)  # one of them must be a pipe
    os.close(reader)
    os.close(writer)
    assert (folder / "y").read_bytes() == bytes(7) + DATA


@pytest.mark.parametrize("copy", [shutil.copyfile, shutil.copy, shutil.copy2])
def test_python_copies_to_and_from_another_file_system(
    folder: Path, tmp_path: Path, copy: Callable[[Path, Path], Path]
) -> None:
    (tmp_path / "x").write_bytes(DATA)
    copy(tmp_path / "x", folder / "y")
    copy(folder / "y", folder / "z")
    copy(folder / "z", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == DATA


# --- what cp asks for ------------------------------------------------------------------------------------------------

HOLEY = b"".join(random.Random(number).randbytes(100_000) + bytes(500_000) for number in range(3))


@pytest.mark.parametrize(
    "command",
    [
        ["cp", "--sparse=always"],
        ["cp", "--sparse=never"],
        ["cp", "--reflink=auto"],
        ["cp", "--preserve=all"],
        ["install", "-m", "600"],
        ["rsync", "--sparse"],
        ["rsync", "--inplace"],
        ["rsync", "--preallocate"],
        ["dd", "bs=64k", "conv=sparse", "status=none"],
        ["dd", "bs=1M", "oflag=direct", "iflag=fullblock", "status=none"],
    ],
    ids=" ".join,
)
def test_programs_copy_a_file_with_holes(folder: Path, tmp_path: Path, command: list[str]) -> None:
    """From another file system, on this one, and back."""
    start = tmp_path / "start"
    with opened(start, os.O_WRONLY | os.O_CREAT) as file:
        for number in range(3):
            os.pwrite(file, HOLEY[number * 600_000 : number * 600_000 + 100_000], number * 600_000)
        os.ftruncate(file, len(HOLEY))
    for source, target in [(start, folder / "a"), (folder / "a", folder / "b"), (folder / "b", tmp_path / "end")]:
        paths = (f"if={source}", f"of={target}") if command[0] == "dd" else (f"{source}", f"{target}")
        subprocess.run([*command, *paths], check=True, timeout=60)
        assert target.read_bytes() == HOLEY


def test_a_clone_is_refused_and_leaves_nothing(folder: Path) -> None:
    if file_system(folder) not in (SYNCER, EXT4):
        pytest.skip("this file system may have clones")
    (folder / "x").write_bytes(DATA)
    command = ["cp", "--reflink=always", str(folder / "x"), str(folder / "y")]
    outcome = subprocess.run(command, capture_output=True, check=False, timeout=60)
    assert outcome.returncode == 1
    assert not (folder / "y").exists() or not (folder / "y").stat().st_size
    with opened(folder / "x", os.O_RDONLY) as source, opened(folder / "z", os.O_WRONLY | os.O_CREAT) as target:
        raises(errno.EOPNOTSUPP, fcntl.ioctl, target, FICLONE, source)


def test_flags_of_files_are_a_matter_of_ext4(folder: Path) -> None:
    """lsattr(1) and chattr(1)."""
    with opened(folder / "x", os.O_RDWR | os.O_CREAT) as file:
        if file_system(folder) == SYNCER:
            raises(errno.ENOTTY, fcntl.ioctl, file, FS_IOC_GETFLAGS, bytes(8))
        elif file_system(folder) == EXT4:
            assert fcntl.ioctl(file, FS_IOC_GETFLAGS, bytes(8)) != bytes(8)
        raises(errno.ENOTTY, fcntl.ioctl, file, 0x1234, bytes(8))
