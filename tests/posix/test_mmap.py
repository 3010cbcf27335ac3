"""Mapped memory: what reads, writes and truncations of the file do to a mapping, and the other way round."""

import ctypes
import errno
import mmap
import os
import random
import signal
from pathlib import Path

import pytest

from tests.support.child import Child
from tests.support.posix import raises
from tests.support.syscalls_data import opened

PAGE = mmap.PAGESIZE
SIZES = (1, PAGE - 1, PAGE, PAGE + 1, 65_537, 1_048_577)

MAPPER = """
import mmap, os, sys
file = os.open(sys.argv[1], os.O_RDWR)
mapped = mmap.mmap(file, 0)
print("ready")
for line in sys.stdin:
    call, place, value = line.split()
    if call == "get":
        print(mapped[int(place)])
    else:
        mapped[int(place)] = int(value)
        print("done")
"""


MS_ASYNC, MS_INVALIDATE, MS_SYNC = 1, 2, 4

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p


def raw_mmap(length: int, protection: int, flags: int, file: int, offset: int) -> int:
    """mmap(2) with no check of Python's before; the address."""
    address = _libc.mmap(None, ctypes.c_size_t(length), protection, flags, file, ctypes.c_int64(offset))
    if address == 2**64 - 1:
        raise OSError(ctypes.get_errno(), "mmap")
    return int(address)


def raw(name: str, address: int, length: int, *flags: int) -> None:
    """msync(2) and its like."""
    if getattr(_libc, name)(ctypes.c_void_p(address), ctypes.c_size_t(length), *flags):
        raise OSError(ctypes.get_errno(), name)


def contents(file: int) -> bytes:
    return os.pread(file, os.fstat(file).st_size + 1, 0)


# --- one process -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_a_mapping_shows_the_file_and_zeros_to_the_end_of_its_page(folder: Path, size: int) -> None:
    data = random.Random(size).randbytes(size)
    (folder / "x").write_bytes(data + b"more" * PAGE)
    with opened(folder / "x", os.O_RDWR) as file:
        whole = -(-size // PAGE) * PAGE
        with mmap.mmap(file, whole) as mapped:
            os.ftruncate(file, size)
            assert mapped[:] == data + bytes(whole - size)


@pytest.mark.parametrize("size", SIZES)
def test_what_is_stored_behind_the_end_stays_out_of_the_file(folder: Path, size: int) -> None:
    whole = -(-size // PAGE) * PAGE
    with opened(folder / "x", os.O_RDWR | os.O_CREAT) as file:
        os.ftruncate(file, whole)
        with mmap.mmap(file, whole) as mapped:
            os.ftruncate(file, size)
            mapped[size - 1] = 7
            if whole > size:
                mapped[whole - 1] = 8
            mapped.flush()
            assert os.fstat(file).st_size == size
            os.ftruncate(file, whole + 10)
            assert contents(file) == bytes(size - 1) + b"\x07" + bytes(whole + 10 - size)


@pytest.mark.parametrize("size", SIZES)
def test_stores_are_read_at_once_and_writes_are_loaded_at_once(folder: Path, size: int) -> None:
    chance = random.Random(size)
    model = bytearray(chance.randbytes(size))
    (folder / "x").write_bytes(model)
    with (
        opened(folder / "x", os.O_RDWR) as file,
        opened(folder / "x", os.O_RDONLY) as other,
        mmap.mmap(file, 0) as mapped,
        mmap.mmap(other, 0, access=mmap.ACCESS_READ) as watching,
    ):
        for _ in range(60):
            place, value = chance.randrange(size), chance.randrange(256)
            mapped[place] = model[place] = value
            assert os.pread(other, 1, place) == bytes([value])
            place = chance.randrange(size)
            piece = chance.randbytes(min(5000, size - place))
            os.pwrite(file, piece, place)
            model[place : place + len(piece)] = piece
            assert mapped[place : place + len(piece)] == piece
        mapped.flush()
        assert mapped[:] == watching[:] == model
    assert (folder / "x").read_bytes() == model


@pytest.mark.parametrize("descriptor_stays", [True, False])
def test_a_mapping_outlives_its_descriptor_and_its_name(folder: Path, descriptor_stays: bool) -> None:
    data = random.Random(3).randbytes(300_000)
    (folder / "x").write_bytes(data)
    file = os.open(folder / "x", os.O_RDWR)
    with mmap.mmap(file, 0) as mapped:
        if not descriptor_stays:
            os.close(file)
        os.unlink(folder / "x")
        mapped[200_000] = (data[200_000] + 1) % 256
        mapped.flush()
        assert mapped[:200_000] == data[:200_000]
        if descriptor_stays:
            assert os.pread(file, 1, 200_000) == mapped[200_000:200_001] != data[200_000:200_001]
            os.close(file)


def test_stores_reach_the_file_when_the_mapping_ends_without_msync(folder: Path) -> None:
    with opened(folder / "x", os.O_RDWR | os.O_CREAT) as file:
        os.ftruncate(file, 1_000_000)
        with mmap.mmap(file, 0) as mapped:
            for place in range(0, 1_000_000, 3 * PAGE):
                mapped[place] = 1
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        data = contents(file)
    assert [place for place, value in enumerate(data) if value] == list(range(0, 1_000_000, 3 * PAGE))


def test_private_stores_stay_private_and_writes_by_others_show_in_untouched_pages(folder: Path) -> None:
    (folder / "x").write_bytes(b"a" * 4 * PAGE)
    with opened(folder / "x", os.O_RDWR) as file, mmap.mmap(file, 0, flags=mmap.MAP_PRIVATE) as mapped:
        mapped[0] = ord("p")
        os.pwrite(file, b"w", 1)
        assert mapped[:2] == b"pa"  # this page is a copy now
        assert contents(file)[:2] == b"aw"
        mapped.flush()
    assert (folder / "x").read_bytes() == b"aw" + b"a" * (4 * PAGE - 2)


def test_a_mapping_of_a_hole_is_zeros_and_fills_it(folder: Path) -> None:
    with opened(folder / "x", os.O_RDWR | os.O_CREAT) as file:
        os.ftruncate(file, 2**40)
        with mmap.mmap(file, 16 * PAGE, offset=2**39) as mapped:
            assert mapped[:] == bytes(16 * PAGE)
            mapped[5 * PAGE : 5 * PAGE + 4] = b"here"
            mapped.flush()
        assert os.pread(file, 6, 2**39 + 5 * PAGE - 1) == b"\0here\0"


def test_descriptors_that_cannot_be_mapped(folder: Path) -> None:
    (folder / "x").write_bytes(b"x" * PAGE)
    with opened(folder / "x", os.O_RDONLY) as reader:
        raises(errno.EACCES, mmap.mmap, reader, PAGE)  # shared and writable
        with mmap.mmap(reader, PAGE, access=mmap.ACCESS_COPY) as mapped:
            mapped[0] = 1
    with opened(folder / "x", os.O_WRONLY) as writer:
        raises(errno.EACCES, mmap.mmap, writer, PAGE)
    with opened(folder, os.O_RDONLY) as directory:
        raises(errno.ENODEV, mmap.mmap, directory, PAGE, prot=mmap.PROT_READ)


def test_mappings_that_cannot_be(folder: Path) -> None:
    (folder / "x").write_bytes(b"x" * PAGE)
    with opened(folder / "x", os.O_RDWR) as file:
        for number, length, flags, descriptor, offset in [
            (errno.EINVAL, 0, mmap.MAP_SHARED, file, 0),
            (errno.EINVAL, PAGE, mmap.MAP_SHARED, file, 1),
            (errno.EINVAL, PAGE, 0, file, 0),
            (errno.EBADF, PAGE, mmap.MAP_SHARED, 1_000_000, 0),
            (errno.ENOMEM, 2**62, mmap.MAP_SHARED, file, 0),
            (errno.EOVERFLOW, PAGE, mmap.MAP_SHARED, file, 2**63 - PAGE),
        ]:
            raises(number, raw_mmap, length, mmap.PROT_READ, flags, descriptor, offset)


def test_a_mapping_that_is_all_behind_the_end(folder: Path) -> None:
    """To make it is allowed; what it covers later is there."""
    (folder / "x").write_bytes(b"x")
    with opened(folder / "x", os.O_RDWR) as file:
        address = raw_mmap(PAGE, mmap.PROT_READ, mmap.MAP_SHARED, file, 4 * PAGE)
        os.pwrite(file, b"later", 4 * PAGE)
        assert ctypes.string_at(address, 6) == b"later\0"
        raw("munmap", address, PAGE)


def test_what_msync_takes(folder: Path) -> None:
    with opened(folder / "x", os.O_RDWR | os.O_CREAT) as file:
        os.ftruncate(file, 2 * PAGE)
        address = raw_mmap(2 * PAGE, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, file, 0)
        for value, flags in enumerate((0, MS_ASYNC, MS_SYNC, MS_INVALIDATE, MS_SYNC | MS_INVALIDATE), start=1):
            ctypes.memset(address + PAGE, value, 1)
            raw("msync", address, 2 * PAGE, flags)
            assert os.pread(file, 1, PAGE) == bytes([value])
        raises(errno.EINVAL, raw, "msync", address, PAGE, MS_ASYNC | MS_SYNC)
        raises(errno.EINVAL, raw, "msync", address, PAGE, 8)
        raises(errno.EINVAL, raw, "msync", address + 1, PAGE, MS_SYNC)
        raw("mlock", address, PAGE)
        raises(errno.EBUSY, raw, "msync", address, PAGE, MS_INVALIDATE)
        raw("munlock", address, PAGE)
        raw("munmap", address + PAGE, PAGE)
        raises(errno.ENOMEM, raw, "msync", address, 2 * PAGE, MS_SYNC)
        raw("munmap", address, PAGE)
        assert contents(file) == bytes(PAGE) + b"\x05" + bytes(PAGE - 1)


# --- several processes -----------------------------------------------------------------------------------------------


def test_two_processes_see_each_others_stores_and_writes(folder: Path) -> None:
    (folder / "x").write_bytes(bytes(300_000))
    with opened(folder / "x", os.O_RDWR) as file, mmap.mmap(file, 0) as mapped, Child(MAPPER, folder / "x") as child:
        assert child.says() == "ready"
        for number, place in enumerate((0, PAGE - 1, PAGE, 70_000, 299_999), start=1):
            mapped[place] = number
            assert child.ask(f"get {place} 0") == f"{number}"
            assert child.ask(f"set {place} {number + 100}") == "done"
            assert mapped[place] == number + 100
            os.pwrite(file, bytes([number + 50]), place)
            assert child.ask(f"get {place} 0") == f"{number + 50}"


@pytest.mark.parametrize("call", ["get", "set"])
@pytest.mark.parametrize("size", [0, 1, PAGE, PAGE + 1, 65_537])
def test_behind_the_last_page_of_a_truncated_file_there_is_only_a_signal(folder: Path, call: str, size: int) -> None:
    (folder / "x").write_bytes(b"x" * 300_000)
    with Child(MAPPER, folder / "x") as child:
        assert child.says() == "ready"
        assert child.ask("get 299999 0") == f"{ord('x')}"
        os.truncate(folder / "x", size)
        if size:
            assert child.ask(f"get {size - 1} 0") == f"{ord('x')}"
        if size % PAGE:
            assert child.ask(f"get {size} 0") == "0"
        child.tell(f"{call} {-(-size // PAGE) * PAGE} 1")
        assert child.ends() == -signal.SIGBUS
    assert (folder / "x").read_bytes() == b"x" * size


def test_a_truncated_file_that_grows_again_shows_zeros_in_the_mapping(folder: Path) -> None:
    (folder / "x").write_bytes(b"x" * 300_000)
    with Child(MAPPER, folder / "x") as child:
        assert child.says() == "ready"
        assert child.ask("get 200000 0") == f"{ord('x')}"
        os.truncate(folder / "x", 10)
        os.truncate(folder / "x", 300_000)
        assert child.ask("get 200000 0") == "0"
        assert child.ask("get 9 0") == f"{ord('x')}"
        assert child.ask("set 200000 65") == "done"
        assert child.ends() == 0
    assert (folder / "x").read_bytes() == b"x" * 10 + bytes(199_990) + b"A" + bytes(99_999)


def test_a_mapping_ends_with_its_process_and_its_stores_stay(folder: Path) -> None:
    (folder / "x").write_bytes(bytes(300_000))
    with Child(MAPPER, folder / "x") as child:
        assert child.says() == "ready"
        for place in (3, 100_000, 299_999):
            assert child.ask(f"set {place} 9") == "done"
        child.process.kill()
        assert child.ends() == -signal.SIGKILL
    data = (folder / "x").read_bytes()
    assert [place for place, value in enumerate(data) if value] == [3, 100_000, 299_999]
