"""Sparse files: a terabyte that is nearly all hole, and holes of every shape."""

import os
import random
from pathlib import Path

import pytest

from tests.support.syscalls_data import EXT4, SYNCER, file_system, opened

KIB, MIB, TIB = 1024, 2**20, 2**40
PIECE = 100_000
PLACES = (0, TIB // 2 - 50_000, TIB // 2 + 3 * MIB, TIB - PIECE)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)])
def test_a_terabyte_with_a_little_at_the_start_the_middle_and_the_end(folder: Path, order: tuple[int, ...]) -> None:
    pieces = [random.Random(number).randbytes(PIECE) for number in range(4)]
    with opened(folder / "x", os.O_RDWR | os.O_CREAT) as file:
        for number in order:
            assert os.pwrite(file, pieces[number], PLACES[number]) == PIECE
        assert os.fstat(file).st_size == TIB
        for number in range(4):
            assert os.pread(file, PIECE, PLACES[number]) == pieces[number]
        for start, end in zip([place + PIECE for place in PLACES[:3]], PLACES[1:], strict=True):
            for place in (start, (start + end) // 2, end - 70_000):
                assert os.pread(file, 70_000, place) == bytes(70_000)
        assert os.pread(file, 20, PLACES[1] - 10) == bytes(10) + pieces[1][:10]
        os.ftruncate(file, PLACES[1] + 10)
        assert os.pread(file, 20, PLACES[1] - 5) == bytes(5) + pieces[1][:10]
        os.ftruncate(file, TIB)
        assert os.pread(file, 20, PLACES[1]) == pieces[1][:10] + bytes(10)
        assert os.pread(file, PIECE, PLACES[3]) == bytes(PIECE)


def test_a_file_that_is_all_hole_grows_and_shrinks(folder: Path) -> None:
    with opened(folder / "x", os.O_RDWR | os.O_CREAT) as file:
        for size in (TIB, 3 * TIB, 10, TIB + 1, 4097, 0, 2**33):
            os.ftruncate(file, size)
            assert os.fstat(file).st_size == size
            assert os.pread(file, 100, max(0, size - 100)) == bytes(min(size, 100))
            assert os.pread(file, 100, size // 2) == bytes(min(size - size // 2, 100))


def test_how_much_a_hole_takes(folder: Path) -> None:
    """The mount cannot say what is local: st_blocks is the size."""
    with opened(folder / "x", os.O_RDWR | os.O_CREAT) as file:
        os.pwrite(file, b"x" * MIB, TIB)
        os.fsync(file)
        blocks = os.fstat(file).st_blocks
    if file_system(folder) == SYNCER:
        assert blocks == (TIB + MIB) // 512
    elif file_system(folder) == EXT4:
        assert MIB // 512 <= blocks < 2 * MIB // 512


@pytest.mark.parametrize("distance", [1, 4096, 65_535, 65_536, 65_537, MIB, 5 * MIB])
def test_islands_at_any_distance_stay_where_they_are(folder: Path, distance: int) -> None:
    chance = random.Random(distance)
    places = [number * (distance + 7) for number in range(12)]
    chance.shuffle(places)
    model: dict[int, bytes] = {}
    with opened(folder / "x", os.O_RDWR | os.O_CREAT) as file:
        for place in places:
            model[place] = chance.randbytes(7)
            os.pwrite(file, model[place], place)
        end = 0
        for place, island in sorted(model.items()):
            assert os.pread(file, place - end + 7, end) == bytes(place - end) + island
            end = place + 7
        assert os.fstat(file).st_size == end


def test_zeros_that_are_written_read_like_a_hole(folder: Path) -> None:
    data = b"".join(random.Random(number).randbytes(MIB) + bytes(MIB) for number in range(3))
    (folder / "x").write_bytes(data)
    with opened(folder / "x", os.O_RDWR) as file:
        os.fsync(file)
        assert os.fstat(file).st_size == 6 * MIB
        assert os.pread(file, 6 * MIB, 0) == data
        os.pwrite(file, bytes(MIB), 0)
        os.pwrite(file, b"x" * KIB, MIB + 500 * KIB)
    expected = bytes(MIB + 500 * KIB) + b"x" * KIB + data[MIB + 501 * KIB :]
    assert (folder / "x").read_bytes() == expected
