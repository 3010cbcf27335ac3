"""The native cutter: against its twin in Python, its promises, and the cuts that must never change."""

import array
import contextlib
import itertools
import mmap
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from syncer.blocks.cutter import new_cutter
from syncer.native import CUT, DATA, HOLE, Cutter
from syncer.values import BLOCK_MAX_BYTES, BLOCK_MEAN_BYTES, BLOCK_MIN_BYTES, ZERO_RUN_BYTES
from tests.support.pure_cutter import GEAR, PureCutter

SMALL = (64, 256, 1024, 128)
"""Sizes with which a few KiB hold everything that can happen."""

Events = list[tuple[int, int]]


@st.composite
def sizes(draw: st.DrawFn) -> tuple[int, int, int, int]:
    mean_bytes = draw(st.sampled_from([64, 128, 256, 512]))
    min_bytes = draw(st.integers(64, mean_bytes))
    max_bytes = draw(st.integers(mean_bytes, mean_bytes * 5))
    return min_bytes, mean_bytes, max_bytes, draw(st.integers(1, min(max_bytes, 300)))


def noise(seed: int, length: int) -> bytes:
    return random.Random(seed).randbytes(length)


# Pieces long enough to make blocks, runs around every length that matters, and bytes chosen one by one.
pieces = st.one_of(
    st.builds(noise, st.integers(0, 2**32), st.integers(0, 3000)),
    st.integers(0, 1200).map(bytes),
    st.builds(lambda length, near: bytes(max(0, length + near)), st.sampled_from([64, 128, 256]), st.integers(-2, 2)),
    st.builds(lambda byte, length: bytes([byte]) * length, st.integers(1, 255), st.integers(0, 1200)),
    st.binary(max_size=200),
)
contents = st.lists(pieces, max_size=8).map(b"".join)


def split(data: bytes, points: list[int]) -> list[bytes]:
    edges = [0, *sorted(point % (len(data) + 1) for point in points), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


def feed_all(cutter: Cutter | PureCutter, parts: list[bytes]) -> Events:
    """The events of all parts, with offsets from the start of the first."""
    events = []
    start = 0
    for part in parts:
        events += [(start + offset, kind) for offset, kind in cutter.feed(part)]
        start += len(part)
    return events


# --- against the twin -------------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(sizes(), contents, st.lists(st.integers(0, 10_000), max_size=12))
def test_native_is_the_twin_however_the_bytes_are_split(
    parameters: tuple[int, int, int, int], data: bytes, points: list[int]
) -> None:
    native, pure = Cutter(*parameters), PureCutter(*parameters)
    assert feed_all(native, split(data, points)) == feed_all(pure, [data])
    assert native.position == pure.position


@settings(max_examples=25, deadline=None)
@given(contents)
def test_native_is_the_twin_byte_by_byte(data: bytes) -> None:
    native, pure = Cutter(*SMALL), PureCutter(*SMALL)
    for index in range(len(data)):
        assert native.feed(data[index : index + 1]) == pure.feed(data[index : index + 1])
        assert native.position == pure.position


@settings(max_examples=100, deadline=None)
@given(contents, contents)
def test_reset_forgets_everything(before: bytes, data: bytes) -> None:
    cutter = Cutter(*SMALL)
    cutter.feed(before)
    cutter.reset()
    assert cutter.position == 0
    assert cutter.feed(data) == Cutter(*SMALL).feed(data)


def test_the_twin_sees_everything_happen() -> None:
    """The comparison is worth something only when its inputs reach every kind of event."""
    data = noise(1, 3000) + bytes(128) + b"\1" * 3000 + bytes(127) + noise(2, 500) + bytes(3000) + b"\2"
    kinds = [kind for _, kind in PureCutter(*SMALL).feed(data)]
    assert {CUT, HOLE, DATA} == set(kinds)
    assert Cutter(*SMALL).feed(data) == PureCutter(*SMALL).feed(data)


@pytest.mark.parametrize("length", [65_535, 65_536, 65_537, 300_000])
def test_long_feeds_are_stepped_through_without_a_seam(length: int) -> None:
    """Feeds longer than the extension's inner step, with zeros across its edges, in one piece and in several."""
    data = bytearray(noise(3, length))
    for edge in range(65_536, length, 65_536):
        data[edge - 100 : edge + 60] = bytes(160)
    assert feed_all(Cutter(*SMALL), [bytes(data)]) == feed_all(PureCutter(*SMALL), split(bytes(data), [1, 70_001]))


# --- what the events mean ---------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(contents)
def test_lengths_keep_their_bounds_and_holes_are_zero(data: bytes) -> None:
    min_bytes, _, max_bytes, zero_bytes = SMALL
    start, in_hole = 0, False
    for offset, kind in [*Cutter(*SMALL).feed(data), (len(data), None)]:
        length = offset - start
        if in_hole:
            assert kind in (DATA, None)
            assert length >= zero_bytes and not any(data[start:offset])
            assert kind is None or data[offset]
        elif kind == CUT:
            assert min_bytes <= length <= max_bytes
        else:
            assert 0 <= length <= max_bytes
            assert data[start:offset].find(bytes(zero_bytes)) == -1
        start, in_hole = offset, kind == HOLE


def test_zeros_from_the_first_byte_leave_no_block_to_close() -> None:
    cutter = Cutter(*SMALL)
    assert cutter.feed(bytes(127)) == []
    assert cutter.position == 127
    assert cutter.feed(bytes(1)) == [(-127, HOLE)]
    assert cutter.position == 128
    assert cutter.feed(bytes(1000)) == []
    assert cutter.position == 1128
    assert cutter.feed(b"\0\1") == [(1, DATA)]
    assert cutter.position == 1


def test_a_run_that_began_in_earlier_feeds_has_a_negative_offset() -> None:
    cutter = Cutter(*SMALL)
    assert cutter.feed(b"abc" + bytes(100)) == []
    assert cutter.feed(bytes(27)) == []
    assert cutter.feed(bytes(1)) == [(-127, HOLE)]


def test_a_run_that_is_broken_off_counts_for_nothing() -> None:
    """Zeros at the end of one feed must not be added to a later run of the next."""
    cutter = Cutter(*SMALL)
    assert cutter.feed(b"abc" + bytes(100)) == []
    assert cutter.feed(b"d" + bytes(127) + b"e") == []


def test_a_cut_inside_a_run_restarts_the_count() -> None:
    """64 bytes to the forced end of the block, 50 of them zeros; 14 more zeros than a run needs follow."""
    cutter = Cutter(64, 64, 64, 60)
    assert cutter.feed(b"x" * 14 + bytes(50)) == [(64, CUT)]
    assert cutter.feed(bytes(59)) == []
    assert cutter.feed(bytes(1)) == [(-59, HOLE)]


def test_a_hole_goes_before_a_cut_in_the_same_place() -> None:
    assert Cutter(64, 64, 64, 50).feed(b"x" * 14 + bytes(50)) == [(14, HOLE)]


@pytest.mark.parametrize("byte", range(1, 256))
def test_one_byte_repeated_is_cut_at_max_only(byte: int) -> None:
    """No byte value has a hash under the limits of the real sizes, so repetition never makes smallest blocks."""
    steady = -GEAR[byte] % 2**64
    assert steady >> (64 - (BLOCK_MEAN_BYTES.bit_length() - 1 - 2))
    assert new_cutter().feed(bytes([byte]) * BLOCK_MAX_BYTES) == [(BLOCK_MAX_BYTES, CUT)]


def test_a_byte_more_at_the_front_changes_a_block_or_two() -> None:
    data = noise(4, 200_000)
    before = blocks(data)
    after = blocks(b"\7" + data)
    assert len(before) > 300
    assert len(after - before) <= 3


def blocks(data: bytes) -> set[bytes]:
    edges = [0, *(offset for offset, _ in Cutter(*SMALL).feed(data)), len(data)]
    return {data[start:end] for start, end in itertools.pairwise(edges)}


# --- what must never change -------------------------------------------------------------------------------------


def splitmix(seed: int, length: int) -> bytes:
    """A stream that every language and version can make again, eight bytes at a time, least significant first."""

    def words() -> Iterator[bytes]:
        state = seed
        for _ in range(length // 8):
            state = (state + 0x9E3779B97F4A7C15) % 2**64
            mixed = state
            mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
            mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB % 2**64
            yield (mixed ^ (mixed >> 31)).to_bytes(8, "little")

    return b"".join(words())


def test_golden_cuts_of_the_real_sizes() -> None:
    """Other cuts would make every peer store again what it saves again: never change them for convenience."""
    data = splitmix(0, 12 * 1024 * 1024)
    assert new_cutter().feed(data) == GOLDEN_CUTS


def test_golden_cuts_of_small_sizes() -> None:
    assert Cutter(*SMALL).feed(splitmix(0, 4096)) == GOLDEN_SMALL_CUTS


def test_real_sizes() -> None:
    assert (BLOCK_MIN_BYTES, BLOCK_MEAN_BYTES, BLOCK_MAX_BYTES) == (2**18, 2**20, 2**22)
    assert ZERO_RUN_BYTES == 2**16
    assert new_cutter().feed(bytes(ZERO_RUN_BYTES)) == [(0, HOLE)]
    assert new_cutter().feed(bytes(ZERO_RUN_BYTES - 1) + b"\1") == []


GOLDEN_CUTS: Events = [
    (1718243, 0),
    (3058948, 0),
    (4139799, 0),
    (5226661, 0),
    (6518609, 0),
    (8089978, 0),
    (9184240, 0),
    (10460046, 0),
    (11640075, 0),
]
GOLDEN_SMALL_CUTS: Events = [
    (324, 0),
    (449, 0),
    (757, 0),
    (1081, 0),
    (1395, 0),
    (1588, 0),
    (1971, 0),
    (2235, 0),
    (2398, 0),
    (2800, 0),
    (3118, 0),
    (3379, 0),
    (3919, 0),
]


# --- buffers, parameters, threads -------------------------------------------------------------------------------


def test_any_contiguous_buffer_is_taken() -> None:
    data = noise(5, 8192)
    expected = Cutter(*SMALL).feed(data)
    mapped = mmap.mmap(-1, len(data))
    mapped.write(data)
    words = array.array("Q", data)
    for buffer in (bytearray(data), memoryview(data), mapped, words, memoryview(b"x" + data)[1:]):
        assert Cutter(*SMALL).feed(buffer) == expected
    mapped.close()


def test_what_is_no_contiguous_buffer_is_refused_and_changes_nothing() -> None:
    cutter = Cutter(*SMALL)
    cutter.feed(b"abc")
    with pytest.raises(TypeError):
        cutter.feed("text")  # type: ignore[arg-type]
    with pytest.raises(BufferError):
        cutter.feed(memoryview(b"abcdef")[::2])
    assert cutter.position == 3
    assert cutter.feed(b"") == []


@pytest.mark.parametrize(
    "parameters",
    [
        (63, 256, 1024, 128),
        (-1, 256, 1024, 128),
        (512, 256, 1024, 128),
        (64, 256, 255, 128),
        (64, 255, 1024, 128),
        (64, 256, 1024, 0),
        (64, 256, 1024, 1025),
        (64, 256, 2**31 + 1, 128),
    ],
)
def test_sizes_that_make_no_sense_are_refused(parameters: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="bytes"):
        Cutter(*parameters)


def test_sizes_are_wanted_as_whole_numbers_all_four() -> None:
    with pytest.raises(TypeError):
        Cutter(64, 256, 1024)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        Cutter(64, 256.0, 1024, 128)  # type: ignore[arg-type]
    with pytest.raises(OverflowError):
        Cutter(64, 256, 2**70, 128)
    with pytest.raises(TypeError):
        Cutter.__new__(Cutter)


def test_position_is_read_only() -> None:
    with pytest.raises(AttributeError):
        Cutter(*SMALL).position = 1  # type: ignore[misc]


def test_two_threads_at_once_are_told_so() -> None:
    """A long feed runs in one thread; this one runs meanwhile, so the lock was let go, and is turned away."""
    cutter = new_cutter()
    data = bytes([1]) * (64 * 1024 * 1024)
    refused: set[str] = set()
    uses: dict[str, Callable[[], object]] = {
        "feed": lambda: cutter.feed(b"\1"),
        "reset": cutter.reset,
        "position": lambda: cutter.position,
    }
    deadline = time.monotonic() + 60
    while len(refused) < len(uses) and time.monotonic() < deadline:
        results: list[Events] = []
        feeding = threading.Thread(target=lambda into: into.append(cutter.feed(data)), args=(results,))
        feeding.start()
        while feeding.is_alive():
            for name, use in uses.items():
                try:
                    use()
                except RuntimeError as error:
                    assert "another thread" in str(error)
                    refused.add(name)
        feeding.join()
        assert len(results[0]) >= len(data) // BLOCK_MAX_BYTES - 1
    assert refused == set(uses)


def test_memory_is_given_back() -> None:
    cutter = Cutter(*SMALL)
    data = bytearray(noise(6, 100_000))

    def use(times: int) -> None:
        for _ in range(times):
            assert len(cutter.feed(data)) > 200
            with contextlib.suppress(TypeError):
                cutter.feed(1)  # type: ignore[arg-type]
            Cutter(*SMALL)

    use(50)  # the interpreter's own caches fill
    before, references = sys.getallocatedblocks(), sys.getrefcount(Cutter)
    use(500)
    assert sys.getallocatedblocks() < before + 250
    assert sys.getrefcount(Cutter) < references + 250
    data.append(1)  # a BufferError while anything still holds the buffer
