"""Records and their keys: what is encoded comes back, and whatever else a remote holds is ObjectCorrupt."""

import itertools
import json
import tracemalloc

import msgspec
import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from syncer.backends.base import check_key
from syncer.errors import ObjectCorrupt
from syncer.snapshots.records import (
    VERSION,
    Format,
    IndexRecord,
    PackListing,
    PeerRecord,
    SnapshotRecord,
    current_writer,
    decode,
    decode_format,
    encode,
    encode_format,
    index_key,
    parse_peer_key,
    parse_seq_key,
    peer_key,
    snapshot_key,
)

Record = PeerRecord | IndexRecord | SnapshotRecord
ID = bytes(range(32))
MACHINE = bytes(range(16))
PEER = PeerRecord(VERSION, 3, MACHINE, "höst", 1, ((2, 17),), True)
INDEX = IndexRecord(VERSION, 3, 9, (PackListing(ID, 1000, 0, ((ID, 0, 20, 30), (ID[::-1], 20, 40, 100))),))
SNAPSHOT = SnapshotRecord(VERSION, 3, 12, ID, ((2, 17),), 5, "host", 1, 2, 3, 4, 5, None, False, "auto")
RECORDS: list[Record] = [PEER, INDEX, SNAPSHOT]
FORMAT = Format(VERSION, "0123456789abcdef" * 2, 5)


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_what_is_encoded_comes_back(record: Record) -> None:
    assert decode(encode(record), type(record)) == record


def test_a_field_that_a_later_version_adds_is_passed_over() -> None:
    body = msgspec.msgpack.encode(["peer", VERSION, 3, MACHINE, "höst", 1, [[2, 17]], True, "a later field"])
    assert decode(framed(encode(PEER)[:8], body), PeerRecord) == PEER


def test_the_format_is_json_that_a_person_can_read() -> None:
    data = encode_format(FORMAT)
    assert decode_format(data) == FORMAT
    assert json.loads(data) == {"version": 1, "repository": "0123456789abcdef" * 2, "created_ns": 5}
    assert data.count(b"\n") == 5


# --- damage -----------------------------------------------------------------------------------------------------


def framed(magic: bytes, body: bytes) -> bytes:
    return magic + blake3(body).digest() + body


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_any_changed_byte_and_any_cut_is_corrupt(record: Record) -> None:
    data = encode(record)
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 1 << position % 8
        for wrong in (bytes(damaged), data[:position]):
            with pytest.raises(ObjectCorrupt):
                decode(wrong, type(record))
    with pytest.raises(ObjectCorrupt):
        decode(data + b"\0", type(record))


@pytest.mark.parametrize(("record", "kind"), list(itertools.permutations(RECORDS, 2)))
def test_one_record_is_not_taken_for_another(record: Record, kind: Record) -> None:
    with pytest.raises(ObjectCorrupt):
        decode(encode(record), type(kind))


def replaced(record: Record, **fields: object) -> Record:
    return msgspec.structs.replace(record, **fields)


LISTING = INDEX.packs[0]


def listing(*blocks: tuple[bytes, int, int, int], **fields: object) -> IndexRecord:
    changed = msgspec.structs.replace(LISTING, **({"blocks": blocks} if blocks else {}), **fields)
    return msgspec.structs.replace(INDEX, packs=(changed,))


@pytest.mark.parametrize(
    "record",
    [
        *(replaced(record, version=VERSION + 1) for record in RECORDS),
        *(replaced(record, peer=peer) for record in RECORDS for peer in (0, -1, 2**23)),
        *(replaced(record, seq=seq) for record in (INDEX, SNAPSHOT) for seq in (-1, 2**63)),
        replaced(PEER, machine=MACHINE[1:]),
        replaced(PEER, after=((0, 1),)),
        replaced(PEER, joined_ns=2**63),
        replaced(SNAPSHOT, root=ID[1:]),
        replaced(SNAPSHOT, parents=((1, -1),)),
        replaced(SNAPSHOT, next_inode=2**63),
        replaced(SNAPSHOT, files=-1),
        listing(id=ID + b"x"),
        listing(size=-1),
        listing(kind=2),
        listing((ID[1:], 0, 20, 30)),
        listing((ID, -1, 20, 30)),
        listing((ID, 0, 4, 0)),
        listing((ID, 0, 20, 2**31)),
        listing((ID, 0, 2**40, 30)),
    ],
    ids=repr,
)
def test_an_impossible_record_is_corrupt(record: Record) -> None:
    with pytest.raises(ObjectCorrupt):
        decode(encode(record), type(record))


@pytest.mark.parametrize("body", [b"", b"\x91" * 100_000, b"\x95\xa5index\x01\x01\x01\xdd\xff\xff\xff\xff", b"\xc1"])
def test_a_body_that_lies_takes_no_memory_and_is_corrupt(body: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ObjectCorrupt):
            decode(framed(b"syncix01", body), IndexRecord)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_nesting_in_a_field_of_a_later_version_is_corrupt() -> None:
    body = msgspec.msgpack.encode(["peer", VERSION, 3, MACHINE, "host", 1, [], True])
    with pytest.raises(ObjectCorrupt):
        decode(framed(b"syncpe01", b"\x99" + body[1:] + b"\x91" * 100_000), PeerRecord)


@given(st.binary(max_size=200))
def test_noise_is_corrupt_and_nothing_else(noise: bytes) -> None:
    for record in RECORDS:
        for data in (noise, framed(encode(record)[:8], noise)):
            with pytest.raises(ObjectCorrupt):
                decode(data, type(record))


@given(st.sampled_from(RECORDS), st.data())
def test_mutated_bodies_under_a_right_checksum_are_corrupt_or_records(record: Record, data: st.DataObject) -> None:
    body = bytearray(encode(record)[40:])
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        decoded = decode(framed(encode(record)[:8], bytes(body)), type(record))
    except ObjectCorrupt:
        return
    assert type(decoded) is type(record)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[" * 100_000,
        b'{"later": ' + b"[" * 100_000,
        b"\xff\xfe",
        b'{"version": 2, "repository": "0123456789abcdef0123456789abcdef", "created_ns": 5}',
        b'{"version": 1, "repository": "0123456789abcdef", "created_ns": 5}',
        b'{"version": 1, "repository": "", "created_ns": 5}',
        b'{"version": 1, "repository": "01234567 89abcdef0123456789abcdef", "created_ns": 5}',
        b'{"version": 1, "repository": "0123456789abcdef0123456789abcdeg", "created_ns": 5}',
        b'{"version": 1, "repository": "0123456789ABCDEF0123456789ABCDEF", "created_ns": 5}',
        b'{"version": 1, "repository": 5, "created_ns": 5}',
        encode_format(FORMAT)[:-5],
    ],
    ids=lambda data: repr(data[:90]),
)
def test_a_format_that_is_none_is_corrupt(data: bytes) -> None:
    with pytest.raises(ObjectCorrupt):
        decode_format(data)


@given(st.binary(max_size=100))
def test_noise_is_no_format(noise: bytes) -> None:
    with pytest.raises(ObjectCorrupt):
        decode_format(noise)


@given(st.data())
def test_mutated_formats_are_corrupt_or_formats(data: st.DataObject) -> None:
    damaged = bytearray(encode_format(FORMAT))
    damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert len(bytes.fromhex(decode_format(bytes(damaged)).repository)) == 16
    except ObjectCorrupt:
        return


# --- keys -------------------------------------------------------------------------------------------------------

peers = st.integers(1, 2**24 - 1)


@given(peers, st.integers(0, 10**12 - 1))
def test_keys_are_formed_and_read(peer: int, seq: int) -> None:
    assert parse_peer_key(check_key(peer_key(peer))) == peer
    assert parse_seq_key(check_key(index_key(peer, seq))) == (peer, seq)
    assert parse_seq_key(check_key(snapshot_key(peer, seq))) == (peer, seq)


@given(peers, st.lists(st.integers(0, 10**12 - 1), min_size=2, max_size=2))
def test_the_order_of_keys_is_that_of_their_numbers(peer: int, numbers: list[int]) -> None:
    one, other = numbers
    assert (snapshot_key(peer, one) < snapshot_key(peer, other)) == (one < other)


def test_keys_as_they_are_on_the_remote() -> None:
    assert peer_key(0xABC) == "peers/000abc"
    assert index_key(1, 7) == "index/000001/000000000007"
    assert snapshot_key(1, 7) == "snapshots/000001/000000000007"


@pytest.mark.parametrize(
    "key",
    [
        "",
        "peers",
        "peers/",
        "peers/000000",
        "peers/00001",
        "peers/0000001",
        "peers/00000G",
        "peers/00000A",
        "peers/000001/x",
        "peers/000001\n",
        "other/000001",
        "index/000001",
        "index/000001/7",
        "index/000001/00000000000x",
        "index/000001/" + "\N{ARABIC-INDIC DIGIT SEVEN}" * 12,
        "index/000001/000000000007/x",
        "index/000000/000000000007",
        "packs/000001/000000000007",
    ],
)
def test_what_is_no_key_of_ours_is_passed_over(key: str) -> None:
    assert parse_peer_key(key) is None
    assert parse_seq_key(key) is None


# --- who writes -------------------------------------------------------------------------------------------------


def peer(number: int, *after: int) -> PeerRecord:
    return PeerRecord(VERSION, number, MACHINE, "host", 0, tuple((before, 1) for before in after), False)


@pytest.mark.parametrize(
    ("known", "writer"),
    [
        ([], None),
        ([peer(1)], 1),
        ([peer(1), peer(2, 1)], 2),
        ([peer(1), peer(2, 1), peer(3, 2)], 3),
        ([peer(1), peer(2, 1), peer(3, 1)], 3),  # two took over from the same: the one that came last
        ([peer(1), peer(2, 1), peer(3, 1), peer(4, 2)], 4),
        ([peer(1), peer(2, 1), peer(3, 1), peer(4, 3)], 4),
        ([peer(1), peer(2)], 2),
        ([peer(2, 1)], 2),  # the first peer's record is lost
        ([peer(1, 2), peer(2, 1)], None),  # nonsense, but no endless loop
    ],
)
def test_the_writer_is_the_peer_that_no_other_goes_on_from(known: list[PeerRecord], writer: int | None) -> None:
    for order in itertools.permutations(known):
        found = current_writer(order)
        assert (None if found is None else found.peer) == writer
