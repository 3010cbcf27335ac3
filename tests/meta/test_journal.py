"""What `append` returned from is read again, up to the record that a crash cut short, and nothing after it."""

import errno
import os
import struct
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from syncer.errors import LocalDamage
from syncer.meta import journal as journal_module
from syncer.meta.journal import RECORD_MAX_BYTES, Journal, read_records
from tests.support.core_data import fast_folder
from tests.support.refusing_disk import RefusingDisk

PAYLOADS = [b"one", b"2", b"three" * 50, bytes(range(1, 200)), b"five"]


def write(folder: Path, payloads: list[bytes], start: int = 0) -> list[int]:
    """Append *payloads* from position *start*; returns where each ends."""
    journal = Journal(folder, start)
    ends = []
    for payload in payloads:
        journal.append(payload)
        ends.append(journal.end)
    journal.close()
    return ends


def payloads_from(folder: Path, position: int = 0) -> list[bytes]:
    return [payload for _, payload in read_records(folder, position)]


@pytest.fixture
def short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "SEGMENT_BYTES", 100)


def test_reads_from_any_position_it_gave(tmp_path: Path) -> None:
    ends = write(tmp_path, PAYLOADS)
    for count, position in enumerate([0, *ends]):
        assert payloads_from(tmp_path, position) == PAYLOADS[count:]
    assert [end for end, _ in read_records(tmp_path, 0)] == ends


@pytest.mark.parametrize("garbage", [b"", bytes(400), b"\xa5" * 40], ids=["none", "zeros", "others"])
def test_a_record_torn_at_any_byte_ends_the_journal_and_the_next_run_goes_on_there(
    tmp_path: Path, garbage: bytes
) -> None:
    ends = [0, *write(tmp_path, PAYLOADS)]
    whole = (tmp_path / f"{0:016x}").read_bytes()
    for cut in range(len(whole)):
        folder = tmp_path / f"cut {cut}"
        folder.mkdir()
        (folder / f"{0:016x}").write_bytes(whole[:cut] + garbage)
        kept = sum(end <= cut for end in ends[1:])
        assert payloads_from(folder) == PAYLOADS[:kept]
        write(folder, [b"after", b"the crash"], ends[kept])
        assert payloads_from(folder) == [*PAYLOADS[:kept], b"after", b"the crash"]
        assert payloads_from(folder, ends[kept]) == [b"after", b"the crash"]


def test_what_a_power_cut_left_behind_the_end_never_hides_what_came_after(tmp_path: Path) -> None:
    """A file may be longer than what was written to it, and have whole records behind a torn one."""
    ends = write(tmp_path, PAYLOADS)
    path = tmp_path / f"{0:016x}"
    whole = bytearray(path.read_bytes())
    whole[ends[0] + 2 :] = bytes(6) + whole[ends[0] + 8 :] + bytes(4096)
    path.write_bytes(whole)
    assert payloads_from(tmp_path) == PAYLOADS[:1]
    after = [b"n" * 2, *PAYLOADS[::-1]]
    later = write(tmp_path, after, ends[0])
    for count, position in enumerate([ends[0], *later]):
        assert payloads_from(tmp_path, position) == after[count:]


def test_a_flipped_bit_anywhere_is_never_read_as_a_record(tmp_path: Path) -> None:
    ends = write(tmp_path, [b"first", b"second"])
    path = tmp_path / f"{0:016x}"
    whole = path.read_bytes()
    for index in range(ends[0], len(whole)):
        path.write_bytes(whole[:index] + bytes([whole[index] ^ 0x10]) + whole[index + 1 :])
        assert payloads_from(tmp_path) == [b"first"]


def test_crash_upon_crash_before_the_first_record(tmp_path: Path) -> None:
    """The new segment of a run that died at once has the name of the next run's."""
    (end,) = write(tmp_path, [b"kept"])
    for torn in (b"", struct.pack("<I", 9), struct.pack("<II", 3, zlib.crc32(b"abc")) + b"ab"):
        write(tmp_path, [], end)
        (tmp_path / f"{end:016x}").write_bytes(torn)
        assert payloads_from(tmp_path) == [b"kept"]
    journal = Journal(tmp_path, end)
    journal.append(b"next")
    assert journal.total_bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    journal.close()
    assert payloads_from(tmp_path) == [b"kept", b"next"]


@pytest.mark.usefixtures("short_segments")
def test_segments_are_read_in_order_and_discarded_once_they_are_not_needed(tmp_path: Path) -> None:
    payloads = [bytes([number]) * 40 for number in range(20)]
    journal = Journal(tmp_path, 0)
    ends = []
    for payload in payloads:
        journal.append(payload)
        ends.append(journal.end)
    assert len(list(tmp_path.iterdir())) > 5
    for count, position in enumerate(ends, 1):
        journal.discard(position)
        assert payloads_from(tmp_path, position) == payloads[count:]
        assert journal.total_bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
        assert journal.total_bytes < 48 * (len(payloads) - count) + 2 * 150, "what is not needed goes"
    journal.close()


@pytest.mark.usefixtures("short_segments")
def test_a_missing_segment_is_damage_and_not_an_end(tmp_path: Path) -> None:
    write(tmp_path, [bytes(60)] * 6)
    first, *_ = sorted(tmp_path.iterdir())
    first.unlink()
    with pytest.raises(LocalDamage, match="nothing covers position"):
        payloads_from(tmp_path)


@pytest.mark.parametrize("can_truncate", [True, False])
def test_a_write_that_found_no_room_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can_truncate: bool
) -> None:
    def refuse(descriptor: int, length: int) -> None:
        raise OSError(errno.EIO, "the disk refuses")

    journal = Journal(tmp_path, 0)
    journal.append(b"before")
    real = os.write
    with monkeypatch.context() as patch:
        if not can_truncate:
            patch.setattr(os, "ftruncate", refuse)
        with patch.context() as smaller:
            smaller.setattr(os, "write", lambda descriptor, data: real(descriptor, data[: len(data) // 2]))
            with pytest.raises(OSError, match="no room"):
                journal.append(b"does not fit")
        if not can_truncate:
            with pytest.raises(OSError, match="refuses"):
                journal.append(b"would not be read")
    journal.append(b"after")
    journal.close()
    assert payloads_from(tmp_path) == [b"before", b"after"]


def test_a_record_that_could_not_be_read_again_is_refused(tmp_path: Path) -> None:
    journal = Journal(tmp_path, 0)
    journal.append(bytes(RECORD_MAX_BYTES))
    with pytest.raises(ValueError, match="too long"):
        journal.append(bytes(RECORD_MAX_BYTES + 1))
    with pytest.raises(ValueError, match="empty"):
        journal.append(b"")
    journal.append(b"after")
    journal.close()
    assert [len(payload) for payload in payloads_from(tmp_path)] == [RECORD_MAX_BYTES, 5]


@given(st.lists(st.binary(min_size=1, max_size=200), max_size=30), st.integers(0, 7000), st.binary(max_size=30))
@settings(max_examples=60, deadline=None)
def test_whatever_is_torn_what_is_read_is_a_beginning_of_what_was_written(
    payloads: list[bytes], cut: int, garbage: bytes
) -> None:
    folder = fast_folder()
    try:
        ends = write(folder, payloads)
        path = folder / f"{0:016x}"
        data = path.read_bytes()
        path.write_bytes(data[:cut] + garbage if cut < len(data) else data)
        read = payloads_from(folder)
        assert read[: len(payloads)] == payloads[: len(read)] or garbage
        assert len(read) >= sum(end <= cut for end in ends)
    finally:
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


def test_what_a_killed_run_left_is_durable_before_anything_follows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later fsync speaks for all that was recorded before, by whichever run."""
    ends = write(tmp_path, PAYLOADS)
    synced, fdatasync = [], os.fdatasync

    def watched(descriptor: int) -> None:
        fdatasync(descriptor)
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))

    monkeypatch.setattr(os, "fdatasync", watched)
    journal = Journal(tmp_path, ends[-1])
    assert synced == [str(tmp_path / f"{0:016x}")]
    assert journal.durable == ends[-1]
    journal.append(b"more")
    assert journal.durable == ends[-1]
    journal.sync()
    assert journal.durable == journal.end
    journal.close()


@pytest.mark.usefixtures("short_segments")
def test_what_follows_a_segment_that_a_power_cut_has_shortened_never_counts(tmp_path: Path) -> None:
    ends = write(tmp_path, [bytes([1]) * 60] * 6)
    first, second, *_ = sorted(tmp_path.iterdir())
    os.truncate(first, 0)
    assert payloads_from(tmp_path, 0) == payloads_from(tmp_path, ends[0]) == []
    write(tmp_path, [bytes([2]) * 60] * 2, ends[0])
    assert not second.exists() or payloads_from(tmp_path, ends[0]) == [bytes([2]) * 60] * 2
    assert payloads_from(tmp_path, ends[0]) == [bytes([2]) * 60] * 2


def test_a_record_that_is_taken_back_was_never_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path, 0)
    journal.append(b"kept")
    begin = journal.end
    journal.append(b"taken back")
    journal.sync()
    lengths: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: lengths.append(os.fstat(descriptor).st_size))
        journal.take_back(begin)
    assert lengths == [begin], "otherwise a power cut brings it back"
    assert journal.durable == journal.end == begin == journal.total_bytes
    journal.append(b"next")
    journal.close()
    assert payloads_from(tmp_path) == [b"kept", b"next"]


def test_a_record_that_the_disk_may_not_forget_goes_with_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_: int) -> None:
        raise OSError(errno.EIO, "the disk refuses")

    journal = Journal(tmp_path, 0)
    journal.append(b"kept")
    begin = journal.end
    journal.append(b"taken back")
    journal.sync()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refused)
        journal.take_back(begin)
    before = inodes(tmp_path)
    assert journal.is_doubted
    journal.turn_over()
    journal.append(b"next")
    journal.sync()
    assert not before.items() & inodes(tmp_path).items()
    journal.close()
    assert payloads_from(tmp_path) == [b"kept", b"next"]


def inodes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in folder.iterdir()}


@pytest.mark.usefixtures("short_segments")
def test_what_a_failed_sync_left_out_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = RefusingDisk(monkeypatch)
    folder = tmp_path / "journal"
    folder.mkdir()
    journal = Journal(folder, 0)
    journal.append(PAYLOADS[0])
    journal.sync()
    durable = journal.durable
    for payload in PAYLOADS[1:]:
        journal.append(payload)
    disk.refuses = True
    with pytest.raises(OSError, match="refuses"):
        journal.sync()
    disk.refuses = False
    assert journal.durable == durable and disk.lost(folder)
    journal.append(b"after")
    with pytest.raises(OSError, match="begin anew"):
        journal.sync()
    journal.turn_over()
    journal.append(b"in another segment")
    journal.sync()
    assert journal.durable == journal.end and not journal.is_doubted
    assert not disk.lost(tmp_path)
    assert payloads_from(folder) == [*PAYLOADS, b"after", b"in another segment"]
    before = inodes(folder)
    journal.turn_over()
    journal.append(b"more")
    journal.sync()
    assert before.items() <= inodes(folder).items()
    assert journal.total_bytes == sum(path.stat().st_size for path in folder.iterdir())
    journal.close()


def test_a_segment_that_was_deleted_does_not_come_back_when_it_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = RefusingDisk(monkeypatch)
    folder = tmp_path / "journal"
    folder.mkdir()
    journal = Journal(folder, 0)
    journal.append(PAYLOADS[0])
    disk.refuses = True
    with pytest.raises(OSError, match="refuses"):
        journal.sync()
    disk.refuses = False
    journal.turn_over()
    make_anew = Journal._make_anew

    def deleted_meanwhile(self: Journal, path: Path, data: bytes) -> None:
        journal.discard(journal.end)
        make_anew(self, path, data)

    monkeypatch.setattr(Journal, "_make_anew", deleted_meanwhile)
    journal.sync()
    assert [path.name for path in folder.iterdir()] == [f"{journal.end:016x}"]
    journal.close()


def test_what_the_kernel_has_dropped_is_not_called_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = RefusingDisk(monkeypatch)
    folder = tmp_path / "journal"
    folder.mkdir()
    journal = Journal(folder, 0)
    journal.append(PAYLOADS[0])
    disk.refuses = True
    with pytest.raises(OSError, match="refuses"):
        journal.sync()
    disk.refuses = False
    (segment,) = folder.iterdir()
    segment.write_bytes(bytes(segment.stat().st_size))
    journal.turn_over()
    for _ in range(2):
        with pytest.raises(OSError, match="has lost"):
            journal.sync()
    journal.durable = journal.end  # a checkpoint has made up for it
    journal.append(PAYLOADS[1])
    journal.sync()
    assert journal.durable == journal.end
    journal.close()


def test_a_run_begins_by_making_anew_what_the_one_before_could_not_sync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = RefusingDisk(monkeypatch)
    folder = tmp_path / "journal"
    folder.mkdir()
    journal = Journal(folder, 0)
    journal.append(PAYLOADS[0])
    disk.refuses = True
    with pytest.raises(OSError, match="refuses"):
        journal.sync()
    disk.refuses = False
    end = journal.end
    journal.close()
    (tmp_path / "journal.new").write_bytes(b"half of a segment")
    journal = Journal(folder, end, doubted=True)
    assert not disk.lost(folder)
    assert payloads_from(folder) == [PAYLOADS[0]]
    assert [path.name for path in tmp_path.iterdir()] == ["journal"]
    journal.close()
