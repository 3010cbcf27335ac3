"""flock(2), the record locks of fcntl(2) and those of open file descriptions: between processes, and in one."""

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.child import Child
from tests.support.mounted import wait_until
from tests.support.posix import raises
from tests.support.syscalls_data import opened

SHARED, EXCLUSIVE, FREE = fcntl.LOCK_SH, fcntl.LOCK_EX, fcntl.LOCK_UN
NOW = fcntl.LOCK_NB
OFD_GETLK, OFD_SETLK = fcntl.F_OFD_GETLK, fcntl.F_OFD_SETLK
RECORD = struct.Struct("hhqqi4x")
"""struct flock on 64-bit Linux: type, whence, start, length, process."""

LOCKER = """
import fcntl, os, sys
files = {}
for line in sys.stdin:
    call, *numbers = line.split()
    name = "x"
    try:
        if call == "open":
            files[numbers[0]] = os.open(sys.argv[1], os.O_RDWR)
        elif call == "close":
            os.close(files.pop(numbers[0]))
        elif call == "flock":
            fcntl.flock(files[numbers[0]], int(numbers[1]))
        else:
            fcntl.lockf(files[numbers[0]], *map(int, numbers[1:]))
        print("yes")
    except OSError as error:
        print({11: "busy", 35: "deadlock"}.get(error.errno, error.errno))
"""


@pytest.fixture
def path(folder: Path) -> Path:
    (folder / "x").write_bytes(bytes(100))
    return folder / "x"


@pytest.fixture
def child(path: Path) -> Iterator[Child]:
    """Another process, with the file open as `0`."""
    with Child(LOCKER, path) as child:
        assert child.ask("open 0") == "yes"
        yield child


def record(call: int, file: int, kind: int, start: int, length: int) -> tuple[int, ...]:
    """fcntl(2) with a struct flock, which comes back."""
    answer = fcntl.fcntl(file, call, RECORD.pack(kind, os.SEEK_SET, start, length, 0))
    return RECORD.unpack(answer)


# --- flock -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("held", "wanted", "outcome"),
    [
        (SHARED, SHARED, "yes"),
        (SHARED, EXCLUSIVE, "busy"),
        (EXCLUSIVE, SHARED, "busy"),
        (EXCLUSIVE, EXCLUSIVE, "busy"),
        (FREE, EXCLUSIVE, "yes"),
    ],
)
@pytest.mark.parametrize("call", ["flock", "lockf"])
def test_what_excludes_what(path: Path, child: Child, call: str, held: int, wanted: int, outcome: str) -> None:
    lock = fcntl.flock if call == "flock" else fcntl.lockf
    with opened(path, os.O_RDWR) as file:
        lock(file, held)
        assert child.ask(f"{call} 0 {wanted | NOW}") == outcome
        lock(file, FREE)
        assert child.ask(f"{call} 0 {wanted | NOW}") == "yes"


def test_flock_is_raised_and_lowered(path: Path, child: Child) -> None:
    with opened(path, os.O_RDWR) as file:
        fcntl.flock(file, SHARED)
        assert child.ask(f"flock 0 {SHARED | NOW}") == "yes"
        raises(errno.EWOULDBLOCK, fcntl.flock, file, EXCLUSIVE | NOW)
        assert child.ask(f"flock 0 {FREE}") == "yes"
        fcntl.flock(file, EXCLUSIVE | NOW)
        assert child.ask(f"flock 0 {SHARED | NOW}") == "busy"
        fcntl.flock(file, SHARED)
        assert child.ask(f"flock 0 {SHARED | NOW}") == "yes"


def test_flock_belongs_to_the_open_file_not_to_the_process(path: Path) -> None:
    with opened(path, os.O_RDWR) as one, opened(path, os.O_RDWR) as other:
        copy = os.dup(one)
        fcntl.flock(one, EXCLUSIVE)
        raises(errno.EWOULDBLOCK, fcntl.flock, other, EXCLUSIVE | NOW)
        fcntl.flock(copy, EXCLUSIVE | NOW)
        os.close(copy)
        raises(errno.EWOULDBLOCK, fcntl.flock, other, SHARED | NOW)


@pytest.mark.parametrize("call", ["flock", "lockf"])
@pytest.mark.parametrize("end", ["close", "kill"])
def test_locks_end_with_their_descriptor_and_their_process(path: Path, child: Child, call: str, end: str) -> None:
    lock = fcntl.flock if call == "flock" else fcntl.lockf
    assert child.ask(f"{call} 0 {EXCLUSIVE}") == "yes"
    with opened(path, os.O_RDWR) as file:
        raises(errno.EAGAIN, lock, file, EXCLUSIVE | NOW)
        if end == "close":
            assert child.ask("close 0") == "yes"
        else:
            child.process.kill()
            child.process.wait()
        lock(file, EXCLUSIVE | NOW)


@pytest.mark.parametrize("call", ["flock", "lockf"])
def test_who_waits_gets_the_lock_when_it_is_free(path: Path, child: Child, call: str) -> None:
    lock = fcntl.flock if call == "flock" else fcntl.lockf
    with opened(path, os.O_RDWR) as file:
        lock(file, EXCLUSIVE)
        child.tell(f"{call} 0 {EXCLUSIVE}")
        wait_until(lambda: is_waiting(path), "the other process waits for the lock")
        lock(file, FREE)
        assert child.says() == "yes"
        raises(errno.EAGAIN, lock, file, SHARED | NOW)


def is_waiting(path: Path) -> bool:
    """Whether /proc/locks shows somebody who waits for a lock on the file."""
    inode = path.stat().st_ino
    lines = Path("/proc/locks").read_text().splitlines()
    return any(" -> " in line and f":{inode} " in line for line in lines)


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY, os.O_RDWR])
def test_flock_needs_no_permission_to_write(path: Path, flags: int) -> None:
    with opened(path, flags) as file:
        fcntl.flock(file, EXCLUSIVE | NOW)
        fcntl.flock(file, SHARED | NOW)


def test_directories_and_fifos_are_locked_too(folder: Path) -> None:
    os.mkfifo(folder / "fifo")
    for path, flags in [(folder, os.O_RDONLY), (folder / "fifo", os.O_RDWR)]:
        with opened(path, flags) as one, opened(path, flags) as other:
            fcntl.flock(one, EXCLUSIVE)
            raises(errno.EWOULDBLOCK, fcntl.flock, other, SHARED | NOW)


# --- records ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "length", "outcome"),
    [
        (0, 10, "yes"),
        (0, 11, "busy"),
        (19, 1, "busy"),
        (20, 10, "yes"),
        (12, 3, "busy"),
        (0, 0, "busy"),
        (20, 0, "yes"),
        (1000, 10, "yes"),
        (2**62, 10, "yes"),
    ],
)
def test_records_exclude_where_they_overlap(path: Path, child: Child, start: int, length: int, outcome: str) -> None:
    with opened(path, os.O_RDWR) as file:
        fcntl.lockf(file, EXCLUSIVE, 10, 10)
        assert child.ask(f"lockf 0 {EXCLUSIVE | NOW} {length} {start}") == outcome


def test_a_record_is_split_and_joined(path: Path, child: Child) -> None:
    with opened(path, os.O_RDWR) as file:
        fcntl.lockf(file, EXCLUSIVE, 30, 0)
        fcntl.lockf(file, FREE, 10, 10)
        fcntl.lockf(file, SHARED, 5, 0)
        for start, wanted, outcome in [
            (0, SHARED, "yes"),
            (0, EXCLUSIVE, "busy"),
            (5, SHARED, "busy"),
            (10, EXCLUSIVE, "yes"),
            (20, SHARED, "busy"),
        ]:
            assert child.ask(f"lockf 0 {wanted | NOW} 5 {start}") == outcome
        assert child.ask(f"lockf 0 {FREE}") == "yes"
        fcntl.lockf(file, EXCLUSIVE, 30, 0)
        assert child.ask(f"lockf 0 {EXCLUSIVE | NOW} 1 10") == "busy"


def test_who_holds_a_record_can_be_asked(path: Path, child: Child) -> None:
    assert child.ask(f"lockf 0 {EXCLUSIVE} 10 20") == "yes"
    assert child.ask(f"lockf 0 {SHARED} 10 50") == "yes"
    with opened(path, os.O_RDWR) as file:
        pid = child.process.pid
        assert record(fcntl.F_GETLK, file, fcntl.F_WRLCK, 0, 0) == (fcntl.F_WRLCK, 0, 20, 10, pid)
        assert record(fcntl.F_GETLK, file, fcntl.F_WRLCK, 55, 1) == (fcntl.F_RDLCK, 0, 50, 10, pid)
        assert record(fcntl.F_GETLK, file, fcntl.F_RDLCK, 55, 1)[0] == fcntl.F_UNLCK
        assert record(fcntl.F_GETLK, file, fcntl.F_WRLCK, 0, 20)[0] == fcntl.F_UNLCK


def test_records_end_when_the_process_closes_any_descriptor_of_the_file(path: Path, child: Child) -> None:
    """fcntl(2): the well-known trap."""
    assert child.ask("open 1") == "yes"
    assert child.ask(f"lockf 0 {EXCLUSIVE}") == "yes"
    with opened(path, os.O_RDWR) as file:
        raises(errno.EAGAIN, fcntl.lockf, file, EXCLUSIVE | NOW)
        assert child.ask("close 1") == "yes"
        fcntl.lockf(file, EXCLUSIVE | NOW)


def test_one_process_does_not_exclude_itself(path: Path) -> None:
    with opened(path, os.O_RDWR) as one, opened(path, os.O_RDWR) as other:
        fcntl.lockf(one, EXCLUSIVE)
        fcntl.lockf(other, EXCLUSIVE | NOW)


def test_records_need_a_descriptor_that_may_do_what_they_exclude(path: Path) -> None:
    with opened(path, os.O_RDONLY) as reader, opened(path, os.O_WRONLY) as writer:
        raises(errno.EBADF, fcntl.lockf, reader, EXCLUSIVE | NOW)
        raises(errno.EBADF, fcntl.lockf, writer, SHARED | NOW)
        fcntl.lockf(reader, SHARED | NOW, 1, 0)
        fcntl.lockf(writer, EXCLUSIVE | NOW, 1, 5)


def test_locks_that_are_none(path: Path) -> None:
    with opened(path, os.O_RDWR) as file:
        raises(errno.EINVAL, fcntl.flock, file, 0)
        raises(errno.EINVAL, fcntl.flock, file, SHARED | EXCLUSIVE)
        raises(errno.EINVAL, record, fcntl.F_SETLK, file, 99, 0, 1)
        raises(errno.EINVAL, record, fcntl.F_SETLK, file, fcntl.F_WRLCK, -1, 1)
        raises(errno.EINVAL, record, fcntl.F_SETLK, file, fcntl.F_WRLCK, 5, -6)
        raises(errno.EOVERFLOW, record, fcntl.F_SETLK, file, fcntl.F_WRLCK, 2**63 - 1, 2)
    raises(errno.EBADF, fcntl.flock, 1_000_000, EXCLUSIVE)
    raises(errno.EBADF, record, fcntl.F_SETLK, 1_000_000, fcntl.F_WRLCK, 0, 1)


def test_two_who_would_wait_for_each_other_for_ever(path: Path, child: Child) -> None:
    with opened(path, os.O_RDWR) as file:
        fcntl.lockf(file, EXCLUSIVE, 1, 0)
        assert child.ask(f"lockf 0 {EXCLUSIVE} 1 1") == "yes"
        child.tell(f"lockf 0 {EXCLUSIVE} 1 0")
        wait_until(lambda: is_waiting(path), "the other process waits for the lock")
        raises(errno.EDEADLK, fcntl.lockf, file, EXCLUSIVE, 1, 1)
        fcntl.lockf(file, FREE, 1, 0)
        assert child.says() == "yes"


def test_flock_and_records_do_not_know_of_each_other(path: Path, child: Child) -> None:
    with opened(path, os.O_RDWR) as file:
        fcntl.flock(file, EXCLUSIVE)
        assert child.ask(f"lockf 0 {EXCLUSIVE | NOW}") == "yes"


def test_locks_stay_while_the_file_is_renamed_and_unlinked(path: Path, child: Child) -> None:
    with opened(path, os.O_RDWR) as file:
        fcntl.lockf(file, EXCLUSIVE)
        path.rename(path.parent / "y")
        assert child.ask(f"lockf 0 {EXCLUSIVE | NOW}") == "busy"
        (path.parent / "y").unlink()
        assert child.ask(f"lockf 0 {EXCLUSIVE | NOW}") == "busy"
        path.touch()
        assert child.ask("open 1") == "yes"
        assert child.ask(f"lockf 1 {EXCLUSIVE | NOW}") == "yes"  # another file of the same name


# --- open file descriptions ------------------------------------------------------------------------------------------


def test_locks_of_open_files_exclude_within_one_process(path: Path) -> None:
    with opened(path, os.O_RDWR) as one, opened(path, os.O_RDWR) as other:
        record(OFD_SETLK, one, fcntl.F_WRLCK, 0, 10)
        raises(errno.EAGAIN, record, OFD_SETLK, other, fcntl.F_RDLCK, 9, 1)
        record(OFD_SETLK, other, fcntl.F_WRLCK, 10, 10)
        assert record(OFD_GETLK, other, fcntl.F_RDLCK, 0, 1) == (fcntl.F_WRLCK, 0, 0, 10, -1)
        third = os.open(path, os.O_RDWR)
        os.close(third)  # takes no lock away
        raises(errno.EAGAIN, record, OFD_SETLK, other, fcntl.F_RDLCK, 9, 1)


def test_locks_of_open_files_and_of_processes_exclude_each_other(path: Path, child: Child) -> None:
    with opened(path, os.O_RDWR) as file:
        record(OFD_SETLK, file, fcntl.F_WRLCK, 0, 10)
        assert child.ask(f"lockf 0 {SHARED | NOW} 1 5") == "busy"
        copy = os.dup(file)
    assert child.ask(f"lockf 0 {SHARED | NOW} 1 5") == "busy"  # the duplicate holds it still
    os.close(copy)
    assert child.ask(f"lockf 0 {SHARED | NOW} 1 5") == "yes"
