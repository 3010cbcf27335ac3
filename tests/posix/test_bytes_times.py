"""Which of a file's times a call changes, and which it leaves alone. Access times are those of relatime (mount(8))."""

import errno
import mmap
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.posix import raises
from tests.support.syscalls_data import SYNCER, file_system, opened, pass_time

PAST_NS = 1_000_000_000 * 10**9
SIZE = 10_000


def forget_pages(file: int) -> None:
    os.fsync(file)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)


def changed(path: Path, call: Callable[[], object], *, past_ns: int | None = PAST_NS) -> str:
    """Which times *call* changes, of the letters a, m and c; before it the first two lie in the past."""
    if past_ns is not None:
        os.utime(path, ns=(past_ns, past_ns), follow_symlinks=False)
    before = path.lstat()
    pass_time(before.st_ctime_ns)
    call()
    after = path.lstat()
    times = [(getattr(before, f"st_{letter}time_ns"), getattr(after, f"st_{letter}time_ns")) for letter in "amc"]
    for earlier, later in times:
        assert earlier == later or later > before.st_ctime_ns  # nothing but the present is put there
    return "".join(letter for letter, (earlier, later) in zip("amc", times, strict=True) if earlier != later)


def seen(folder: Path) -> str:
    """What a read changes here."""
    return "" if os.statvfs(folder).f_flag & os.ST_NOATIME else "a"


# --- the calls -------------------------------------------------------------------------------------------------------


def store(file: int) -> None:
    with mmap.mmap(file, 0) as mapped:
        mapped[5] = 1
        mapped.flush()


def look_at_a_mapping(file: int) -> None:
    with mmap.mmap(file, 0, access=mmap.ACCESS_READ) as mapped:
        assert mapped[0] == ord("x")


def copy_into(file: int) -> None:
    assert os.copy_file_range(file, file, 10, 0, SIZE // 2) == 10


WRITES: dict[str, Callable[[int], object]] = {
    "write": lambda file: os.write(file, b"new"),
    "the same bytes": lambda file: os.pwrite(file, b"x", 0),
    "write behind the end": lambda file: os.pwrite(file, b"new", SIZE + 10),
    "writev": lambda file: os.writev(file, [b"1", b"2"]),
    "shrink": lambda file: os.ftruncate(file, 10),
    "grow": lambda file: os.ftruncate(file, SIZE * 10),
    "the same size": lambda file: os.ftruncate(file, SIZE),
    "store in a mapping": store,
    "copy_file_range": copy_into,
    "posix_fallocate": lambda file: os.posix_fallocate(file, 0, SIZE + 1),
}
READS: dict[str, Callable[[int], object]] = {
    "read": lambda file: os.read(file, 10),
    "pread": lambda file: os.pread(file, 10, 5000),
    "readv": lambda file: os.readv(file, [bytearray(1), bytearray(5)]),
    "load from a mapping": look_at_a_mapping,
}
NEITHER: dict[str, Callable[[int], object]] = {
    "write nothing": lambda file: os.write(file, b""),
    "write nothing behind the end": lambda file: os.pwrite(file, b"", 2 * SIZE),
    "read nothing": lambda file: os.read(file, 0),
    "fsync": os.fsync,
    "lseek": lambda file: os.lseek(file, 10, os.SEEK_END),
    "fstat": os.fstat,
    "dup and close": lambda file: os.close(os.dup(file)),
    "a write that fails": lambda file: raises(errno.EINVAL, os.pwrite, file, b"x", -1),
    "a truncation that fails": lambda file: raises(errno.EINVAL, os.ftruncate, file, -1),
}


def each(table: dict[str, Callable[[int], object]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("call", table.values(), ids=table.keys())


@each(WRITES)
def test_what_writes(folder: Path, call: Callable[[int], object]) -> None:
    (folder / "x").write_bytes(b"x" * SIZE)
    with opened(folder / "x", os.O_RDWR) as file:
        assert changed(folder / "x", lambda: call(file)).removeprefix("a") == "mc"


@each(READS)
def test_what_reads(folder: Path, call: Callable[[int], object]) -> None:
    (folder / "x").write_bytes(b"x" * SIZE)
    with opened(folder / "x", os.O_RDWR) as file:
        forget_pages(file)
        assert changed(folder / "x", lambda: call(file)) == seen(folder)


@each(NEITHER)
def test_what_does_neither(folder: Path, call: Callable[[int], object]) -> None:
    (folder / "x").write_bytes(b"x" * SIZE)
    with opened(folder / "x", os.O_RDWR) as file:
        assert changed(folder / "x", lambda: call(file)) == ""


@pytest.mark.parametrize("size", [0, 10, 100_000])
@pytest.mark.parametrize("new", [0, 10, 100_000])
def test_truncating_by_name(folder: Path, size: int, new: int) -> None:
    (folder / "x").write_bytes(b"x" * size)
    assert changed(folder / "x", lambda: os.truncate(folder / "x", new)) == "mc"


# --- accesses --------------------------------------------------------------------------------------------------------


def test_the_first_read_after_a_change_is_noted_and_no_other(folder: Path) -> None:
    path = folder / "x"
    path.write_bytes(b"x" * SIZE)

    def read() -> None:
        with opened(path, os.O_RDONLY) as file:
            forget_pages(file)
            assert os.read(file, 10)

    assert changed(path, read) == seen(folder)
    assert changed(path, read, past_ns=None) == ""
    changes: list[Callable[[], None]] = [lambda: path.chmod(0o600), lambda: os.truncate(path, 5000)]
    for change in changes:
        pass_time(path.stat().st_atime_ns)
        change()
        assert changed(path, read, past_ns=None) == seen(folder)
        assert changed(path, read, past_ns=None) == ""


def test_a_read_that_the_kernel_answers_from_its_cache(folder: Path) -> None:
    """A mount does not hear of it, and cannot note it."""
    (folder / "x").write_bytes(b"x" * SIZE)
    with opened(folder / "x", os.O_RDONLY) as file:
        forget_pages(file)
        os.pread(file, SIZE, 0)
        found = changed(folder / "x", lambda: os.pread(file, SIZE, 0))
    assert found == ("" if file_system(folder) == SYNCER else seen(folder))
