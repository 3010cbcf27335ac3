"""O_DIRECT: past the page cache, and one with what others see through it."""

import errno
import fcntl
import mmap
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.posix import raises
from tests.support.syscalls_data import EXT4, SYNCER, file_system, opened

MIB = 1024 * 1024
BLOCK = 4096


class Aligned:
    """Memory at the start of a page, as O_DIRECT wants it."""

    def __init__(self, size: int) -> None:
        self.memory = mmap.mmap(-1, size)

    def write(self, file: int, data: bytes, offset: int) -> int:
        self.memory[: len(data)] = data
        with memoryview(self.memory) as view, view[: len(data)] as part:
            return os.pwritev(file, [part], offset)

    def read(self, file: int, length: int, offset: int) -> bytes:
        with memoryview(self.memory) as view, view[:length] as part:
            count = os.preadv(file, [part], offset)
        return self.memory[:count]


@pytest.fixture
def aligned() -> Iterator[Aligned]:
    buffer = Aligned(8 * MIB)
    yield buffer
    buffer.memory.close()


@pytest.mark.parametrize("length", [BLOCK, 16 * BLOCK, 17 * BLOCK, MIB, 3 * MIB])
def test_direct_writes_are_read_directly_and_through_the_cache(folder: Path, aligned: Aligned, length: int) -> None:
    data = random.Random(length).randbytes(length)
    with opened(folder / "x", os.O_RDWR | os.O_CREAT | os.O_DIRECT) as file:
        assert aligned.write(file, data, 0) == length
        assert aligned.read(file, length, 0) == data
        assert aligned.write(file, data, 2 * length) == length
        assert aligned.read(file, 8 * MIB, length) == bytes(length) + data
        assert aligned.read(file, BLOCK, 3 * length) == b""
    assert (folder / "x").read_bytes() == data + bytes(length) + data


def test_direct_and_cached_descriptors_agree_after_every_write(folder: Path, aligned: Aligned) -> None:
    chance = random.Random(4)
    model = bytearray(chance.randbytes(64 * BLOCK))
    (folder / "x").write_bytes(model)
    with opened(folder / "x", os.O_RDWR | os.O_DIRECT) as direct, opened(folder / "x", os.O_RDWR) as cached:
        for _ in range(60):
            offset = chance.randrange(64) * BLOCK
            piece = chance.randbytes(min(chance.randrange(1, 20) * BLOCK, len(model) - offset))
            if chance.randrange(2):
                assert aligned.write(direct, piece, offset) == len(piece)
            else:
                assert os.pwrite(cached, piece, offset) == len(piece)
            model[offset : offset + len(piece)] = piece
            assert os.pread(cached, len(model), 0) == model
            assert aligned.read(direct, len(model), 0) == model


def test_a_mapping_and_a_direct_descriptor_agree(folder: Path, aligned: Aligned) -> None:
    (folder / "x").write_bytes(bytes(16 * BLOCK))
    with opened(folder / "x", os.O_RDWR | os.O_DIRECT) as direct, mmap.mmap(direct, 0) as mapped:
        mapped[5 * BLOCK : 5 * BLOCK + 6] = b"stored"
        mapped.flush()
        assert aligned.read(direct, BLOCK, 5 * BLOCK)[:6] == b"stored"
        aligned.write(direct, b"w" * BLOCK, 5 * BLOCK)
        assert mapped[5 * BLOCK : 5 * BLOCK + 6] == b"wwwwww"


def test_the_last_bytes_of_a_file_that_ends_within_a_block(folder: Path, aligned: Aligned) -> None:
    data = random.Random(5).randbytes(3 * BLOCK + 100)
    (folder / "x").write_bytes(data)
    with opened(folder / "x", os.O_RDONLY | os.O_DIRECT) as file:
        assert aligned.read(file, 8 * BLOCK, 0) == data
        assert aligned.read(file, BLOCK, 3 * BLOCK) == data[3 * BLOCK :]


def test_appending_directly(folder: Path, aligned: Aligned) -> None:
    with opened(folder / "x", os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_DIRECT) as file:
        for letter in b"abc":
            assert aligned.write(file, bytes([letter]) * BLOCK, 0) == BLOCK
    assert (folder / "x").read_bytes() == b"a" * BLOCK + b"b" * BLOCK + b"c" * BLOCK


@pytest.mark.parametrize(("offset", "length"), [(1, BLOCK), (0, 100), (300, 7)])
def test_what_is_not_aligned(folder: Path, aligned: Aligned, offset: int, length: int) -> None:
    """ext4 refuses it; the mount has no blocks of its own, and takes it."""
    data = random.Random(6).randbytes(4 * BLOCK)
    (folder / "x").write_bytes(data)
    with opened(folder / "x", os.O_RDWR | os.O_DIRECT) as file:
        if file_system(folder) == EXT4:
            raises(errno.EINVAL, aligned.read, file, length, offset)
            raises(errno.EINVAL, aligned.write, file, b"w" * length, offset)
        elif file_system(folder) == SYNCER:
            assert aligned.read(file, length, offset) == data[offset : offset + length]
            assert aligned.write(file, b"w" * length, offset) == length
            data = data[:offset] + b"w" * length + data[offset + length :]
    assert (folder / "x").read_bytes() == data


def test_the_flag_can_be_set_on_an_open_descriptor(folder: Path, aligned: Aligned) -> None:
    with opened(folder / "x", os.O_RDWR | os.O_CREAT) as file:
        os.write(file, b"c" * BLOCK)
        fcntl.fcntl(file, fcntl.F_SETFL, fcntl.fcntl(file, fcntl.F_GETFL) | os.O_DIRECT)
        assert fcntl.fcntl(file, fcntl.F_GETFL) & os.O_DIRECT
        assert aligned.read(file, BLOCK, 0) == b"c" * BLOCK
        assert aligned.write(file, b"d" * BLOCK, 0) == BLOCK
        fcntl.fcntl(file, fcntl.F_SETFL, 0)
        assert os.pread(file, BLOCK, 0) == b"d" * BLOCK
