"""The redo log: what meta.db has not committed yet, as records that survive the death of the process.

Owned by the Database; appended to on the event loop's thread, made durable (fdatasync) from any thread. A record is
in the page cache when `append` returns, so killing syncer loses nothing that was acknowledged.

Positions are bytes since the journal began, over all segments. A segment is a file named by the position of its
first byte in 16 hex digits:

    segment = record*        record = u32 payload length, u32 CRC-32 of the payload, payload     (little endian)

Reading stops at the first record that is cut short or fails its CRC: that is the write the crash interrupted, and
nobody was told that it had happened.
"""

import contextlib
import errno
import itertools
import os
import struct
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

from syncer.disk import NewNames, start_writing, sync_paths
from syncer.errors import LocalDamage, recover_command

NEW_SEGMENT = "journal.new"
"""A segment that is being made anew. Not in the folder, where only segments are."""
SEGMENT_BYTES = 4 * 1024 * 1024
RECORD_MAX_BYTES = 16 * 1024 * 1024
_HEADER = struct.Struct("<II")


class Journal:
    """Appends records to the newest segment; see the module's text for the format.

    INVARIANT: the segments on disk cover [first needed position, end) without a gap.
    """

    def __init__(self, folder: Path, start: int, *, doubted: bool = False) -> None:
        """Begin a new segment at position *start*; what is in *folder* stays until `discard`.

        *doubted*: that may be in the kernel's memory alone although it was synced, so it is made anew.

        Raises: OSError.
        """
        self._folder = folder
        self._new = folder.with_name(NEW_SEGMENT)
        self._new.unlink(missing_ok=True)
        self._segments = sorted(folder.iterdir(), key=_start_of)
        self.end = start
        self._open: list[tuple[int, int]] = []  # (start, descriptor) of segments maybe not yet durable, newest last
        self._syncing = threading.Lock()
        self._is_torn = False
        """Whether the newest segment ends in a part of a record."""
        self._names = NewNames()
        self._naming = threading.Lock()
        """Held while a segment is deleted, or another file takes its name."""
        self.durable = 0
        """Every record before this position has been made durable."""
        self._doubted = 0
        """Segments with records from `durable` up to here are made anew before a sync may succeed: one has failed, and
        the kernel may take them for written."""
        self._settle_past(start, doubted=doubted)
        self._begin_segment()
        self._names.sync([folder])  # what was deleted must not come back between the segments that follow
        self.total_bytes = sum(path.stat().st_size for path in self._segments)

    def _settle_past(self, start: int, *, doubted: bool) -> None:
        """What is here from before must not be less durable than what follows it, nor be taken for what follows it."""
        while self._segments and _start_of(self._segments[-1]) > start:
            self._segments.pop().unlink()  # a power cut has taken records before it, so it was never read
        if doubted:
            for path in self._segments:
                self._make_anew(path, path.read_bytes())
        else:
            sync_paths(self._segments)
        self.durable = start

    def _begin_segment(self) -> None:
        path = self._folder / f"{self.end:016x}"
        # A segment of that name can only hold the torn record of a crash: nothing was ever read from it.
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_TRUNC | os.O_CLOEXEC
        self._open.append((self.end, os.open(path, flags, 0o600)))
        self._segment_start = self.end
        self._is_torn = False
        self._names.note(self._folder)
        if path not in self._segments:
            self._segments.append(path)

    def append(self, payload: bytes) -> None:
        """Add one record. All of it is in the file when this returns, or none and an OSError is raised.

        Raises: ValueError: it is empty, or longer than a reader takes for a record.
        """
        if not 0 < len(payload) <= RECORD_MAX_BYTES:
            raise ValueError(f"a record of {len(payload)} bytes is empty or too long")
        if self.end - self._segment_start > SEGMENT_BYTES:
            with contextlib.suppress(OSError):  # no room for a new file: the old one grows until there is
                self._begin_segment()
        record = _HEADER.pack(len(payload), zlib.crc32(payload)) + payload
        _, descriptor = self._open[-1]
        if self._is_torn:
            self._cut_torn()
        written = os.write(descriptor, record)
        if written != len(record):
            self._is_torn = True
            with contextlib.suppress(OSError):
                self._cut_torn()
            raise OSError(errno.ENOSPC, "the journal has no room")
        self.end += written
        self.total_bytes += written

    @property
    def newest(self) -> Path:
        """The segment that takes the next record."""
        return self._segments[-1]

    def _cut_torn(self) -> None:
        """Cut off what was written of a record that did not fit: behind it no other would be read. Raises: OSError."""
        os.ftruncate(self._open[-1][1], self.end - self._segment_start)
        self._is_torn = False

    def take_back(self, position: int) -> None:
        """Take the last record, which begins at *position*, out again, so that no power cut brings it back.

        Raises: OSError: it stays. The record is gone when the disk does not say that it will not come back: then what
        is left is in doubt, and made anew without it.
        """
        with self._syncing:
            descriptor = self._open[-1][1]
            os.ftruncate(descriptor, position - self._segment_start)
            self.total_bytes -= self.end - position
            self.end = position
            self.durable = min(self.durable, position)
            self._doubted = min(self._doubted, position)
            try:
                os.fsync(descriptor)  # fdatasync(2) may leave out a size that nothing needs to be read
            except OSError:
                self.durable = min(self.durable, self._segment_start)  # for what is left of it to be made anew
                self.doubt()

    def start_sync(self) -> None:
        """Have the newest records written to the disk, so that `sync` finds that begun. Safe where `sync` is."""
        with self._syncing:
            start_writing(self._open[-1][1])

    def sync(self) -> None:
        """Make every record appended before this call durable. May run in a thread beside `append`.

        One call at a time; whoever calls shares it among all who wait.

        Raises: OSError: the disk does not take them, or has lost what it did not take before.
        """
        with self._syncing:
            end, segments = self.end, list(self._open)
            try:
                if self.is_doubted:
                    self._make_doubted_anew(segments)
                for start, descriptor in segments:
                    if not self._is_in_doubt(start):
                        os.fdatasync(descriptor)
                self._names.sync([self._folder])
            except OSError:
                self.doubt()
                raise
            self._close(segments[:-1])  # complete and durable: never needed again
            self.durable = max(self.durable, end)

    @property
    def is_doubted(self) -> bool:
        """Whether a sync of records has failed, and neither a later one nor a checkpoint has made up for it."""
        return self.durable < self._doubted

    def doubt(self) -> None:
        """The disk has not taken everything: records since the last sync may be lost, whatever it says next."""
        self._doubted = self.end

    def _is_in_doubt(self, start: int) -> bool:
        """Whether the segment that begins at *start* may lack what the disk did not take."""
        return self.is_doubted and start < self._doubted

    def turn_over(self) -> None:
        """Begin a new segment when the newest is in doubt, because only one that does not grow can be made anew.

        On the event loop's thread, before `sync`. Raises: OSError.
        """
        if self._is_in_doubt(self._segment_start):
            self._begin_segment()

    def _make_doubted_anew(self, segments: list[tuple[int, int]]) -> None:
        """Raises: OSError: the kernel has dropped some of it; only what made it durable elsewhere helps then."""
        for (start, _), (stop, _) in itertools.pairwise(segments):
            if not self._is_in_doubt(start):
                continue
            path, offset = self._folder / f"{start:016x}", 0
            try:
                data = path.read_bytes()[: stop - start]
            except FileNotFoundError:  # meta.db has it all by now
                continue
            while (payload := _record_at(data, offset)) is not None:
                offset += _HEADER.size + len(payload)
            if start + offset != stop:
                raise OSError(errno.EIO, "the journal has lost what the disk did not take")
            self._make_anew(path, data)
        if self._is_in_doubt(segments[-1][0]):
            raise OSError(errno.EIO, "the journal may lack what the disk did not take, and had no room to begin anew")

    def _make_anew(self, path: Path, data: bytes) -> None:
        """Put the segment in another file, which takes its name. Raises: OSError.

        Writing it over itself would not do: what ext4 could not write to blocks that were new to a file it never takes
        for written again, and a power cut leaves zeros there.
        """
        descriptor = os.open(self._new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            with open(descriptor, "wb", closefd=False) as file:
                file.write(data)
            os.fdatasync(descriptor)
            self._names.note(self._folder)
            with self._naming:
                if path.exists():
                    self._new.replace(path)
        finally:
            os.close(descriptor)
            self._new.unlink(missing_ok=True)

    def discard(self, position: int) -> None:
        """Delete the segments whose every record lies before *position*."""
        while len(self._segments) > 1 and _start_of(self._segments[1]) <= position:
            path = self._segments.pop(0)
            with self._naming:
                self.total_bytes -= path.stat().st_size
                path.unlink()
            self._names.note(
                self._folder
            )  # a power cut brings it back, and who reads the oldest first would meet a gap
        # Nobody may ever call `sync`, and a deleted file takes its room until it is closed. While a sync runs in its
        # thread the descriptors are its own: it closes them at its end, or the next call here does.
        if self._syncing.acquire(blocking=False):
            try:
                self._close([segment for segment in self._open if segment[0] < _start_of(self._segments[0])])
            finally:
                self._syncing.release()

    def _close(self, segments: list[tuple[int, int]]) -> None:
        for segment in segments:
            self._open.remove(segment)
            os.close(segment[1])

    def close(self) -> None:
        self._close(list(self._open))


def read_records(folder: Path, position: int) -> Iterator[tuple[int, bytes]]:
    """Yield (position after the record, payload) for each whole record from *position* on.

    A segment ends where the next one begins. One that is shorter than that has lost its end to a power cut: nothing
    after that counts.

    Raises:
        LocalDamage: there are segments, and all of them begin after *position*.
    """
    segments = sorted(folder.iterdir(), key=_start_of)
    if segments and _start_of(segments[0]) > position:
        first = _start_of(segments[0])
        raise LocalDamage(
            f"journal: nothing covers position {position:#x}, the first segment starts at {first:#x}",
            hint=f"rebuild meta.db: {recover_command(folder.parent)}",
        )
    for path, follower in itertools.zip_longest(segments, segments[1:]):
        start = _start_of(path)
        data = path.read_bytes()
        if follower is not None:  # a power cut may leave anything behind the end, where another run then went on
            data = data[: _start_of(follower) - start]
        if start + len(data) <= position:
            continue
        if start > position:
            return
        offset = position - start
        while (payload := _record_at(data, offset)) is not None:
            offset += _HEADER.size + len(payload)
            position = start + offset
            yield position, payload
        if follower is None or _start_of(follower) != position:
            return


def positions(folder: Path) -> list[int]:
    """Where the segments begin, the oldest first."""
    return sorted(_start_of(path) for path in folder.iterdir())


def _record_at(data: bytes, offset: int) -> bytes | None:
    """The payload of the record at *offset*, or None where no whole one stands."""
    if offset + _HEADER.size > len(data):
        return None
    length, checksum = _HEADER.unpack_from(data, offset)
    if not 0 < length <= RECORD_MAX_BYTES:  # 0: the zeros that a power cut leaves would pass the CRC
        return None
    payload = data[offset + _HEADER.size : offset + _HEADER.size + length]
    if len(payload) != length or zlib.crc32(payload) != checksum:
        return None
    return payload


def _start_of(path: Path) -> int:
    return int(path.name, 16)
