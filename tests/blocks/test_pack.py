"""Packs: what goes in is listed at the right place, from the whole object or its end, and damage is noticed."""

import random
import tracemalloc

import msgspec
import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from syncer.blocks.codec import HEADER, SEALED_MAX_BYTES, block_id, open_sealed, seal
from syncer.blocks.pack import (
    FOOTER,
    LIST_MAX_BYTES,
    MAGIC,
    PACK_BLOCKS,
    Pack,
    PackBuilder,
    pack_key,
    parse_pack_key,
    read_list,
    tail_bytes,
)
from syncer.errors import ObjectCorrupt
from syncer.values import CONTENT, PACK_BYTES, PLAIN_MAX_BYTES, TREE, PackId


def packed(plains: list[bytes], kind: int = CONTENT) -> Pack:
    builder = PackBuilder(kind)
    for plain in plains:
        builder.add(block_id(plain), seal(plain), len(plain))
    return builder.finish()


PLAINS = [random.Random(number).randbytes(10 * number) + bytes(number) for number in range(30)]


@given(st.lists(st.binary(max_size=500), max_size=30), st.sampled_from([CONTENT, TREE]))
def test_every_block_is_found_through_the_list(plains: list[bytes], kind: int) -> None:
    pack = packed(plains, kind)
    assert pack.id == blake3(pack.data).digest()
    assert read_list(pack.data) == (kind, list(pack.entries))
    assert [entry.id for entry in pack.entries] == [block_id(plain) for plain in plains]
    for entry, plain in zip(pack.entries, plains, strict=True):
        assert entry.plain_bytes == len(plain)
        assert open_sealed(pack.data[entry.offset : entry.offset + entry.length], entry.id) == plain
    assert pack.locations() == [(e.id, e.offset, e.length, e.plain_bytes) for e in pack.entries]


def test_the_list_is_read_from_the_end_of_the_object_alone() -> None:
    pack = packed(PLAINS)
    wanted = tail_bytes(pack.data[-FOOTER.size :])
    tail = pack.data[-wanted:]
    assert read_list(tail, len(pack.data)) == (CONTENT, list(pack.entries))
    assert read_list(pack.data[-wanted - 100 :], len(pack.data)) == (CONTENT, list(pack.entries))
    with pytest.raises(ObjectCorrupt, match="shorter than its list"):
        read_list(tail[1:], len(pack.data))
    for wrong in (len(pack.data) - 1, len(pack.data) + 1):
        with pytest.raises(ObjectCorrupt, match="add up"):
            read_list(tail, wrong)


def blocks_until_full(builder: PackBuilder, sealed: bytes) -> int:
    while not builder.is_full:
        builder.add(block_id(b"x"), sealed, 1)
    assert builder.size_bytes == len(builder) * len(sealed)
    return len(builder)


def test_a_builder_is_full_by_bytes_or_by_blocks_and_empty_again_after_finish() -> None:
    builder = PackBuilder()
    assert blocks_until_full(builder, bytes(PACK_BYTES // 4)) == 4
    first = builder.finish()
    assert (len(builder), builder.size_bytes, builder.is_full) == (0, 0, False)
    assert blocks_until_full(builder, bytes(6)) == PACK_BLOCKS
    second = builder.finish()
    assert len(first.entries) == 4 and second.entries[0].offset == 0
    assert len(second.data) < 60 * PACK_BLOCKS


def test_finishing_takes_one_further_copy() -> None:
    builder = PackBuilder()
    for number in range(8):
        builder.add(block_id(bytes([number])), random.Random(number).randbytes(PACK_BYTES // 8), 1)
    tracemalloc.start()
    try:
        builder.finish()
        assert tracemalloc.get_traced_memory()[1] < PACK_BYTES * 5 // 4
    finally:
        tracemalloc.stop()


def test_keys_name_packs_and_only_packs() -> None:
    pack_id = PackId(bytes(range(32)))
    key = pack_key(pack_id)
    assert key == "packs/00/000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
    assert parse_pack_key(key) == pack_id
    for wrong in (
        "",
        "packs/01/" + key[9:],
        key[:-1],
        key + "0",
        key.upper(),
        "packs/" + key[9:],
        "x" + key,
        key + "\n",
    ):
        assert parse_pack_key(wrong) is None, wrong


# --- damage -----------------------------------------------------------------------------------------------------


def with_list(blocks: bytes, listed: object, magic: bytes = MAGIC) -> bytes:
    encoded = msgspec.msgpack.encode(listed)
    return blocks + encoded + FOOTER.pack(blake3(encoded).digest(), len(encoded), magic)


ID = block_id(b"a")
GOOD = (CONTENT, [(ID, 6, 1), (ID, 7, 2)])


def test_the_hand_made_pack_that_the_next_test_damages_is_sound() -> None:
    assert [entry.offset for entry in read_list(with_list(bytes(13), GOOD))[1]] == [0, 6]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        with_list(bytes(13), GOOD)[1:],
        b"x" + with_list(bytes(13), GOOD),
        with_list(bytes(13), GOOD, b"syncpk02"),
        with_list(bytes(13), (2, GOOD[1])),
        with_list(bytes(13), (-1, GOOD[1])),
        with_list(bytes(13), (CONTENT, [(ID[:31], 6, 1), (ID, 7, 2)])),
        with_list(bytes(13), (CONTENT, [(ID + b"x", 6, 1), (ID, 7, 2)])),
        with_list(bytes(13), (CONTENT, [(ID, -6, 1), (ID, 19, 2)])),
        with_list(bytes(9), (CONTENT, [(ID, HEADER.size - 1, 0), (ID, 5, 2)])),
        with_list(bytes(13), (CONTENT, [(ID, 6, -1), (ID, 7, 2)])),
        with_list(bytes(13), (CONTENT, [(ID, 6, PLAIN_MAX_BYTES + 1), (ID, 7, 2)])),
        with_list(bytes(SEALED_MAX_BYTES + 1), (CONTENT, [(ID, SEALED_MAX_BYTES + 1, 1)])),
        with_list(bytes(13), (CONTENT, [(ID, 2**64 - 1, 1), (ID, 7, 2)])),
        with_list(bytes(13), (CONTENT, [("a" * 32, 6, 1), (ID, 7, 2)])),
        with_list(bytes(13), (CONTENT, [(ID, 6), (ID, 7)])),
        with_list(bytes(13), (*GOOD, 1)),
        with_list(bytes(13), {}),
        bytes(13) + FOOTER.pack(blake3(b"").digest(), 0, MAGIC),
        bytes(13) + FOOTER.pack(blake3(b"").digest(), 2**32 - 1, MAGIC),
    ],
)
def test_impossible_lists_are_corrupt(data: bytes) -> None:
    with pytest.raises(ObjectCorrupt):
        read_list(data)


def test_a_list_too_long_to_be_fetched_is_corrupt() -> None:
    assert tail_bytes(FOOTER.pack(bytes(32), LIST_MAX_BYTES, MAGIC)) == LIST_MAX_BYTES + FOOTER.size
    with pytest.raises(ObjectCorrupt):
        tail_bytes(FOOTER.pack(bytes(32), LIST_MAX_BYTES + 1, MAGIC))


def test_any_changed_byte_of_list_or_footer_is_corrupt() -> None:
    pack = packed(PLAINS)
    tail = tail_bytes(pack.data)
    for position in range(len(pack.data) - tail, len(pack.data)):
        damaged = bytearray(pack.data)
        damaged[position] ^= 1 << position % 8
        with pytest.raises(ObjectCorrupt):
            read_list(bytes(damaged))


@given(st.binary(max_size=300))
def test_noise_is_corrupt_and_nothing_else(noise: bytes) -> None:
    for data in (noise, noise + FOOTER.pack(blake3(noise).digest(), len(noise), MAGIC)):
        with pytest.raises(ObjectCorrupt):
            read_list(data)
