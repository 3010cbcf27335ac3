"""Sealed blocks: what is sealed opens to the same bytes, and nothing else opens."""

import os
import random
import struct
import threading
import tracemalloc

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from syncer.blocks.codec import HEADER, PLAIN, ZSTD, block_id, open_sealed, seal
from syncer.errors import ObjectCorrupt
from syncer.values import PLAIN_MAX_BYTES

TEXT = b"".join(b"line %d of a text that repeats itself\n" % number for number in range(5000))


@given(st.binary(max_size=300), st.integers(0, 400), st.sampled_from([1, 3, 9]))
def test_what_is_sealed_opens_to_the_same_bytes(seed: bytes, repeats: int, level: int) -> None:
    plain = seed * repeats
    sealed = seal(plain, level)
    assert open_sealed(sealed, block_id(plain)) == plain
    assert len(sealed) <= HEADER.size + len(plain)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_buffer_is_sealed_and_opened(kind: type) -> None:
    sealed = seal(kind(TEXT))
    assert sealed == seal(TEXT)
    opened = open_sealed(kind(sealed), block_id(kind(TEXT)))
    assert type(opened) is bytes and opened == TEXT


@pytest.mark.parametrize("level", [1, 3, 9, 19])
def test_text_shrinks_and_noise_costs_only_its_header(level: int) -> None:
    noise = random.Random(level).randbytes(100_000)
    assert len(seal(TEXT, level)) < len(TEXT) // 5
    assert seal(TEXT, level)[0] == ZSTD
    assert seal(noise, level) == HEADER.pack(PLAIN, len(noise)) + noise


def test_a_saving_too_small_to_be_worth_undoing_is_not_made() -> None:
    plain = random.Random(1).randbytes(1024 * 1024) + bytes(10_000)
    assert len(zstandard.ZstdCompressor(level=1).compress(plain)) < len(plain)
    assert seal(plain)[0] == PLAIN


def test_a_higher_level_is_used() -> None:
    words = random.Random(2).choices([b"alpha ", b"beta ", b"gamma\n", b"delta, "], k=20_000)
    assert len(seal(b"".join(words), 19)) < len(seal(b"".join(words), 1))


def test_the_longest_block_and_one_byte_more() -> None:
    longest = bytes(PLAIN_MAX_BYTES)
    assert open_sealed(seal(longest), block_id(longest)) == longest
    with pytest.raises(ValueError, match="too long"):
        seal(bytes(PLAIN_MAX_BYTES + 1))


def test_threads_do_not_share_compressors() -> None:
    """Sharing one corrupts its output or raises: zstd contexts are not safe for concurrent use."""
    plains = [random.Random(number).randbytes(50) * 2000 + os.urandom(1000) for number in range(8)]
    failures: list[object] = []

    def work(plain: bytes) -> None:
        for _ in range(50):
            if open_sealed(seal(plain), block_id(plain)) != plain:
                failures.append(plain)

    threads = [threading.Thread(target=work, args=(plain,)) for plain in plains]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures and not any(thread.is_alive() for thread in threads)


# --- damage -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plain", [TEXT, random.Random(3).randbytes(500), b""], ids=["zstd", "plain", "empty"])
def test_any_changed_byte_cut_or_addition_is_corrupt(plain: bytes) -> None:
    sealed = seal(plain)
    rng = random.Random(4)
    for position in {*range(min(len(sealed), 40)), *rng.sample(range(len(sealed)), min(60, len(sealed)))}:
        damaged = bytearray(sealed)
        damaged[position] ^= 1 << rng.randrange(8)
        if opens_to_something_else(bytes(damaged), plain):
            pytest.fail(f"a flipped bit at {position} was not noticed")
        with pytest.raises(ObjectCorrupt):
            open_sealed(sealed[:position], block_id(plain))
    with pytest.raises(ObjectCorrupt):
        open_sealed(sealed + b"\0", block_id(plain))


def opens_to_something_else(sealed: bytes, plain: bytes) -> bool:
    """A bit of a zstd frame may have no meaning; what opens must be right all the same."""
    try:
        return open_sealed(sealed, block_id(plain)) != plain
    except ObjectCorrupt:
        return False


@pytest.mark.parametrize("plain", [TEXT, random.Random(3).randbytes(500)], ids=["zstd", "plain"])
@pytest.mark.parametrize("off_by", [-1, 1, 100])
def test_a_header_with_another_length_is_corrupt_although_the_bytes_are_right(plain: bytes, off_by: int) -> None:
    kind, body = seal(plain)[0], seal(plain)[HEADER.size :]
    with pytest.raises(ObjectCorrupt, match="header says"):
        open_sealed(HEADER.pack(kind, len(plain) + off_by) + body, block_id(plain))


def test_another_blocks_bytes_are_corrupt() -> None:
    with pytest.raises(ObjectCorrupt, match="its id names"):
        open_sealed(seal(TEXT), block_id(b"another"))


@pytest.mark.parametrize("kind", [2, 0x10, 0x80, 0x81, 0xFF])
def test_kinds_of_the_future_are_refused(kind: int) -> None:
    with pytest.raises(ObjectCorrupt, match="unknown"):
        open_sealed(bytes([kind]) + seal(b"abc")[1:], block_id(b"abc"))


def frame(plain: bytes, *, sized: bool = True) -> bytes:
    return zstandard.ZstdCompressor(level=1, write_content_size=sized).compress(plain)


BOMB = bytes(8 * PLAIN_MAX_BYTES)


@pytest.mark.parametrize(
    "claimed",
    [10, PLAIN_MAX_BYTES, PLAIN_MAX_BYTES + 1, len(BOMB), 2**32 - 1],
)
@pytest.mark.parametrize("sized", [True, False])
def test_a_decompression_bomb_is_refused_before_it_takes_memory(claimed: int, sized: bool) -> None:
    bomb = HEADER.pack(ZSTD, claimed) + frame(BOMB, sized=sized)
    tracemalloc.start()
    try:
        with pytest.raises(ObjectCorrupt):
            open_sealed(bomb, block_id(BOMB))
        assert tracemalloc.get_traced_memory()[1] < 2 * PLAIN_MAX_BYTES
    finally:
        tracemalloc.stop()


def test_a_frame_that_claims_less_than_it_holds_is_refused() -> None:
    """Frame header of 10 bytes, blocks of 8 MiB: RFC 8878, 3.1.1.1.4."""
    lying = bytearray(frame(bytes(PLAIN_MAX_BYTES)))
    content_size = struct.pack("<I", PLAIN_MAX_BYTES)
    position = bytes(lying).index(content_size)
    lying[position : position + 4] = struct.pack("<I", 10)
    with pytest.raises(ObjectCorrupt):
        open_sealed(HEADER.pack(ZSTD, 10) + bytes(lying), block_id(bytes(10)))


def test_a_frame_that_needs_a_dictionary_is_corrupt() -> None:
    dictionary = zstandard.train_dictionary(4096, [b"sample %d of many" % number for number in range(2000)])
    with_dictionary = zstandard.ZstdCompressor(dict_data=dictionary).compress(TEXT)
    with pytest.raises(ObjectCorrupt):
        open_sealed(HEADER.pack(ZSTD, len(TEXT)) + with_dictionary, block_id(TEXT))


@given(st.binary(max_size=200), st.binary(min_size=32, max_size=32))
def test_noise_is_corrupt_and_nothing_else(sealed: bytes, expected: bytes) -> None:
    with pytest.raises(ObjectCorrupt):
        open_sealed(sealed, expected)


@given(st.data())
def test_mutated_objects_are_corrupt_or_right(data: st.DataObject) -> None:
    plain = data.draw(st.sampled_from([TEXT[:2000], b"short", random.Random(5).randbytes(100)]))
    damaged = bytearray(seal(plain))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    assert not opens_to_something_else(bytes(damaged), plain)
