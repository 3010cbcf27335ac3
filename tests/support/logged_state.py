"""What must be there after a crash, from the log of a process (logged_work.py): and whether it is."""

import copy
import errno
import itertools
import json
import os
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.core_driver import is_mixture
from tests.support.logged_work import OK, Operation, bytes_of


@dataclass(slots=True)
class File:
    content: bytearray = field(default_factory=bytearray)
    synced: bytes | None = None
    """What it held at its last fsync; None before the first."""
    touched: list[tuple[int, int]] = field(default_factory=list)
    """Where it was written to, or cut off, since then."""

    def write(self, offset: int, data: bytes) -> None:
        if offset > len(self.content):
            self.content.extend(bytes(offset - len(self.content)))
        self.content[offset : offset + len(data)] = data
        self.touched.append((offset, offset + len(data)))

    def truncate(self, length: int) -> None:
        if length < len(self.content):
            self.touched.append((length, len(self.content)))
            del self.content[length:]
        else:
            self.content.extend(bytes(length - len(self.content)))

    def sync(self) -> None:
        self.synced, self.touched = bytes(self.content), []

    def promised(self) -> list[tuple[int, bytes]]:
        """(offset, bytes) that a power cut must leave."""
        parts, position = [], 0
        for low, high in sorted(self.touched):
            if self.synced and position < min(low, len(self.synced)):
                parts.append((position, self.synced[position : min(low, len(self.synced))]))
            position = max(position, high)
        if self.synced and position < len(self.synced):
            parts.append((position, self.synced[position:]))
        return parts


@dataclass(slots=True)
class State:
    """Names in the folder, and the files behind them by a number."""

    names: dict[str, int] = field(default_factory=dict)
    files: dict[int, File] = field(default_factory=dict)
    next_file: int = 1

    def apply(self, operation: Operation) -> None:
        kind, *arguments = operation
        match kind, arguments:
            case "create", [str(name)]:
                self.names[name] = self.next_file
                self.files[self.next_file] = File()
                self.next_file += 1
            case "append", [str(name), int(seed), int(length)]:
                file = self.files[self.names[name]]
                file.write(len(file.content), bytes_of(seed, length))
            case "overwrite", [str(name), int(seed), int(length), int(offset)]:
                self.files[self.names[name]].write(offset, bytes_of(seed, length))
            case "truncate", [str(name), int(length)]:
                self.files[self.names[name]].truncate(length)
            case "rename", [str(name), str(other)]:
                if self.names.get(other) != self.names[name]:  # rename(2) leaves two names of one file as they are
                    self.names[other] = self.names.pop(name)
            case "link", [str(name), str(other)]:
                self.names[other] = self.names[name]
            case "unlink", [str(name)]:
                del self.names[name]
            case "fsync", [str(name)]:
                self.files[self.names[name]].sync()


@dataclass(frozen=True, slots=True)
class Log:
    done: list[Operation]
    doing: Operation | None
    """Begun, and it is not known what became of it."""

    @classmethod
    def read(cls, path: Path) -> "Log":
        lines = path.read_text().splitlines() if path.exists() else []
        done = [json.loads(line) for line, answer in itertools.pairwise(lines) if answer == OK]
        return cls(done, json.loads(lines[-1]) if lines and lines[-1] != OK else None)

    @property
    def all(self) -> list[Operation]:
        """What was begun; an fsync that did not return promises nothing."""
        return self.done + ([self.doing] if self.doing and self.doing[0] != "fsync" else [])


def _listing(folder: Path) -> dict[str, int]:
    """Names with the inode number of each."""
    return {entry.name: entry.inode() for entry in os.scandir(folder)}


def _same_files(names: dict[str, int], listing: dict[str, int]) -> bool:
    """Whether the same names are there, and two of them mean one file in both or in none."""
    pairs = {(names[name], listing.get(name)) for name in names}
    return names.keys() == listing.keys() and len(pairs) == len(set(names.values())) == len(set(listing.values()))


def after_a_kill(before: State, log: Log, folder: Path) -> State:
    """All that had returned is there, and of what had not, some or all. Returns what is there now.

    Raises: AssertionError.
    """
    done = copy.deepcopy(before)
    for operation in log.done:
        done.apply(operation)
    states = [done]
    if log.doing:
        states.append(copy.deepcopy(done))
        states[1].apply(log.doing)
    listing = _listing(folder)
    found = next((state for state in states if _same_files(state.names, listing)), None)
    assert found, f"{folder.name}: there is {listing}, and should be {done.names} after {log.all[-3:]}"
    for name, number in found.names.items():
        data = (folder / name).read_bytes()
        wanted = [bytes(state.files[number].content) for state in states if number in state.files]
        if data not in wanted:
            wrong = _difference(folder / name, data, wanted[0], log)
            assert log.doing and is_mixture(data, wanted[0], wanted[-1]), wrong
        found.files[number].content = bytearray(data)
    return found


def after_a_power_cut(before: State, log: Log, folder: Path) -> State:
    """What was fsynced is there, and the names are those of one moment at or after the last fsync.

    Raises: AssertionError.
    """
    syncs = [count for count, operation in enumerate(log.done, 1) if str(operation[0]).startswith("fsync")]
    least, listing = max(syncs, default=0), _listing(folder)
    final, names = copy.deepcopy(before), []
    for operation in log.all:
        names.append(dict(final.names))
        final.apply(operation)
    names.append(dict(final.names))
    moments = [count for count in range(least, len(names)) if _same_files(names[count], listing)]
    assert moments, f"{folder.name}: {listing} was there at no time since {names[least]}; after {log.all[least:]}"
    for moment in moments:  # the same names may have meant other files at another moment
        try:
            return _found(names[moment], final, folder, log)
        except AssertionError as error:
            wrong = error
    raise wrong


def _found(names: dict[str, int], final: State, folder: Path, log: Log) -> State:
    """What is there, when *names* are those that should be. Raises: AssertionError: a promise was broken."""
    found = State({}, {}, final.next_file)
    given_up: set[int] = set()
    for name, number in names.items():
        path, file = folder / name, final.files[number]
        try:
            data = path.read_bytes()
        except OSError as error:  # a block of bytes that nobody fsynced reached the disk in part
            assert error.errno == errno.EIO, f"{path}: {error}"
            data = None
        if data is None:
            for offset, part in file.promised():
                have = _direct(path, offset, len(part))
                assert have == part, _difference(path, bytes(offset) + have, bytes(offset) + part, log, offset)
            os.truncate(path, 0)  # as its owner would
            given_up.add(number)
            data = b""
        for offset, part in file.promised() if number not in given_up else ():
            have = data[offset : offset + len(part)]
            assert have == part, _difference(path, data, bytes(offset) + part, log, offset)
        found.names[name] = number
        kept = file.synced if file.synced == data and not file.touched else None
        found.files[number] = File(bytearray(data), kept)
    return found


def _direct(path: Path, offset: int, length: int) -> bytes:
    """Just these bytes: the kernel's cache asks for whole pages, which may hold others."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        return os.pread(descriptor, length, offset)
    finally:
        os.close(descriptor)


def _difference(path: Path, data: bytes, wanted: bytes, log: Log, offset: int = 0) -> str:
    shorter = min(len(data), len(wanted))
    first = next((at for at in range(offset, shorter) if data[at] != wanted[at]), shorter)
    about = log.all
    return f"{path}: {len(data)} bytes, should be {len(wanted)}, wrong from {first}; what was done to it: {about}"
