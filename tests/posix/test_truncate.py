"""truncate(2), ftruncate(2) and O_TRUNC: every size to every other one, and who may not."""

import contextlib
import errno
import os
import random
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.posix import ALICE, BOB, FRIENDS, User, acting_as, as_root, raises
from tests.support.syscalls_data import NO_LIMIT, largest_file_bytes, opened

KIB, MIB = 1024, 1024 * 1024
PAGES = (0, 1, 4095, 4096, 4097, 64 * KIB - 1, 64 * KIB, 64 * KIB + 1)
SIZES = (*PAGES, MIB - 1, MIB, MIB + 1, 4 * MIB)


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """RLIMIT_FSIZE for this process; Python ignores the signal, so that the errno arrives."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def resized(data: bytes, size: int) -> bytes:
    return data[:size] + bytes(max(0, size - len(data)))


# --- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("old", SIZES)
def test_ftruncate_from_every_size_to_every_other(folder: Path, old: int) -> None:
    data = random.Random(old).randbytes(old)
    with opened(folder / "x", os.O_RDWR | os.O_CREAT) as file:
        for new in SIZES:
            os.pwrite(file, data, 0)
            os.ftruncate(file, new)
            assert os.fstat(file).st_size == new
            expected = resized(data, new)
            assert os.pread(file, new + 1, 0) == expected
            os.ftruncate(file, max(old, new) + 10)  # what was cut off does not come back
            assert os.pread(file, 5 * MIB, 0) == resized(expected, max(old, new) + 10)
            os.ftruncate(file, 0)


@pytest.mark.parametrize("old", PAGES)
def test_truncate_by_name_from_every_size_to_every_other(folder: Path, old: int) -> None:
    data = random.Random(old).randbytes(old)
    for new in PAGES:
        path = folder / f"{new}"
        path.write_bytes(data)
        os.truncate(path, new)
        assert path.stat().st_size == new
        assert path.read_bytes() == resized(data, new)


@pytest.mark.parametrize("old", SIZES)
def test_opening_with_o_trunc_empties(folder: Path, old: int) -> None:
    (folder / "x").write_bytes(random.Random(old).randbytes(old))
    with opened(folder / "x", os.O_RDWR | os.O_TRUNC) as file:
        assert os.fstat(file).st_size == 0
        assert os.read(file, 10) == b""
        os.pwrite(file, b"end", 5000)
        assert os.pread(file, 6000, 0) == bytes(5000) + b"end"


def test_a_cut_in_the_middle_of_a_cached_page_leaves_zeros_behind_it(folder: Path) -> None:
    with opened(folder / "x", os.O_RDWR | os.O_CREAT) as file, opened(folder / "x", os.O_RDONLY) as reader:
        os.write(file, b"x" * 10_000)
        assert os.pread(reader, 10_000, 0) == b"x" * 10_000
        os.ftruncate(file, 4100)
        os.pwrite(file, b"y", 9000)
        assert os.pread(reader, 10_000, 0) == b"x" * 4100 + bytes(4900) + b"y"


def test_the_other_descriptors_see_the_new_size_and_keep_their_offsets(folder: Path) -> None:
    with opened(folder / "x", os.O_RDWR | os.O_CREAT) as file, opened(folder / "x", os.O_RDWR) as other:
        os.write(file, b"0123456789")
        os.truncate(folder / "x", 4)
        assert os.fstat(other).st_size == 4
        assert os.lseek(file, 0, os.SEEK_CUR) == 10
        assert os.write(file, b"ab") == 2
        assert os.pread(other, 20, 0) == b"0123" + bytes(6) + b"ab"


def test_truncating_reaches_through_hard_and_symbolic_links(folder: Path) -> None:
    (folder / "x").write_bytes(b"0123456789")
    os.link(folder / "x", folder / "hard")
    (folder / "soft").symlink_to("hard")
    os.truncate(folder / "soft", 3)
    assert (folder / "x").read_bytes() == b"012"
    assert (folder / "soft").is_symlink()


def test_an_unlinked_file_is_truncated(folder: Path) -> None:
    with opened(folder / "x", os.O_RDWR | os.O_CREAT) as file:
        os.write(file, b"x" * 100_000)
        os.unlink(folder / "x")
        os.ftruncate(file, 70_000)
        assert os.pread(file, 100_000, 0) == b"x" * 70_000
        os.ftruncate(file, 0)
        assert os.fstat(file).st_size == 0


# --- what is refused -------------------------------------------------------------------------------------------------


def test_what_cannot_be_truncated(folder: Path) -> None:
    (folder / "x").write_bytes(b"data")
    os.mkfifo(folder / "fifo")
    (folder / "loop").symlink_to("loop")
    (folder / "nowhere").symlink_to("nothing")
    raises(errno.EISDIR, os.truncate, folder, 0)
    raises(errno.EINVAL, os.truncate, folder / "fifo", 0)
    raises(errno.ELOOP, os.truncate, folder / "loop", 0)
    raises(errno.ENOENT, os.truncate, folder / "nowhere", 0)
    raises(errno.ENOENT, os.truncate, folder / "nothing", 0)
    raises(errno.ENOTDIR, os.truncate, folder / "x" / "y", 0)
    raises(errno.ENAMETOOLONG, os.truncate, folder / ("x" * 256), 0)
    raises(errno.EINVAL, os.truncate, folder / "x", -1)
    raises(errno.EISDIR, os.open, folder, os.O_WRONLY | os.O_TRUNC)
    assert (folder / "x").read_bytes() == b"data"


def test_descriptors_that_cannot_truncate(folder: Path) -> None:
    (folder / "x").write_bytes(b"data")
    with opened(folder / "x", os.O_RDONLY) as reader, opened(folder, os.O_RDONLY) as directory:
        raises(errno.EINVAL, os.ftruncate, reader, 0)  # Linux; POSIX allows EBADF too
        raises(errno.EINVAL, os.ftruncate, directory, 0)
    with opened(folder / "x", os.O_PATH) as name_only:
        raises(errno.EBADF, os.ftruncate, name_only, 0)
    raises(errno.EBADF, os.ftruncate, 1_000_000, 0)
    with opened(folder / "x", os.O_WRONLY) as writer:
        raises(errno.EINVAL, os.ftruncate, writer, -1)
    assert (folder / "x").read_bytes() == b"data"


def test_the_largest_size_and_one_more(folder: Path) -> None:
    largest = largest_file_bytes(folder)
    (folder / "x").write_bytes(b"data")
    os.truncate(folder / "x", largest)
    assert (folder / "x").stat().st_size == largest
    with opened(folder / "x", os.O_RDWR) as file:
        if largest < NO_LIMIT:
            raises(errno.EFBIG, os.ftruncate, file, largest + 1)
            raises(errno.EFBIG, os.truncate, folder / "x", 2**63 - 1)
        assert os.pread(file, 10, 0) == b"data" + bytes(6)
        assert os.fstat(file).st_size == largest
        os.ftruncate(file, 2)
    assert (folder / "x").read_bytes() == b"da"


def test_the_limit_of_the_process(folder: Path) -> None:
    (folder / "x").write_bytes(b"x" * 100_000)
    with opened(folder / "x", os.O_RDWR) as file, files_of_at_most(70_000):
        raises(errno.EFBIG, os.ftruncate, file, 100_001)
        raises(errno.EFBIG, os.truncate, folder / "x", 100_001)
        os.ftruncate(file, 80_000)  # above the limit still, but smaller than it was
        raises(errno.EFBIG, os.ftruncate, file, 80_001)
        raises(errno.EFBIG, os.pwrite, file, b"y", 70_000)
        assert os.pwrite(file, b"y" * 100, 69_990) == 10
        os.ftruncate(file, 0)
        os.ftruncate(file, 70_000)
        raises(errno.EFBIG, os.ftruncate, file, 70_001)
    assert (folder / "x").read_bytes() == bytes(70_000)


@as_root
@pytest.mark.parametrize(
    ("mode", "user", "allowed"),
    [
        (0o644, None, True),
        (0o000, None, True),
        (0o200, ALICE, True),
        (0o577, ALICE, False),
        (0o060, BOB, False),
        (0o002, BOB, True),
        (0o775, BOB, False),
    ],
)
def test_who_may_truncate(folder: Path, mode: int, user: User | None, allowed: bool) -> None:
    path = folder / "x"
    path.write_bytes(b"data")
    os.chown(path, ALICE.uid, FRIENDS)
    path.chmod(mode)
    with acting_as(user):
        if allowed:
            os.truncate(path, 2)
            os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))
        else:
            raises(errno.EACCES, os.truncate, path, 2)
            raises(errno.EACCES, os.open, path, os.O_WRONLY | os.O_TRUNC)
            raises(errno.EACCES, os.open, path, os.O_RDONLY | os.O_TRUNC)
    assert path.stat().st_size == (0 if allowed else 4)


@as_root
def test_a_descriptor_truncates_after_the_permission_is_gone(folder: Path) -> None:
    path = folder / "x"
    path.write_bytes(b"data")
    os.chown(path, ALICE.uid, ALICE.gid)
    with acting_as(ALICE), opened(path, os.O_WRONLY) as file:
        path.chmod(0o400)
        raises(errno.EACCES, os.truncate, path, 1)
        os.ftruncate(file, 2)
    assert path.read_bytes() == b"da"


@as_root
def test_no_truncating_behind_a_closed_directory(folder: Path) -> None:
    (folder / "d").mkdir(mode=0o700)
    (folder / "d" / "x").write_bytes(b"data")
    (folder / "d" / "x").chmod(0o666)
    with acting_as(ALICE):
        raises(errno.EACCES, os.truncate, folder / "d" / "x", 0)
    assert (folder / "d" / "x").read_bytes() == b"data"
