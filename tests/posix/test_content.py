"""The bytes of files: reading and writing in every way, mapped memory, locks, several processes at once.

On a plain folder and on a mount. Sizes go around the ones at which a file changes its form inside.
"""

import errno
import fcntl
import mmap
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.posix import put_program

SIZES = (0, 1, 4095, 4097, 65535, 65536, 65537, 300_000, 5_000_000)
PROCESS_S = 60.0


def python(code: str, *arguments: object) -> "subprocess.Popen[str]":
    """Another process; it talks through its standard input and output."""
    return subprocess.Popen(
        [sys.executable, "-u", "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("size", SIZES)
def test_what_is_written_is_read(folder: Path, size: int) -> None:
    data = random.Random(size).randbytes(size)
    path = folder / "x"
    path.write_bytes(data)
    assert path.stat().st_size == size
    assert path.read_bytes() == data
    path.write_bytes(data[: size // 2])  # O_TRUNC
    assert path.read_bytes() == data[: size // 2]


@pytest.mark.parametrize("seed", range(4))
def test_writes_anywhere_in_any_order(folder: Path, seed: int) -> None:
    chance = random.Random(seed)
    model = bytearray()
    with open(folder / "x", "w+b", buffering=0) as file:
        for _ in range(150):
            length = chance.choice((1, 100, 4096, 70_000, 300_000))
            offset = chance.randrange(0, len(model) + chance.choice((1, 10_000, 500_000)))
            data = chance.choice((chance.randbytes(length), bytes(length)))
            match chance.randrange(8):
                case 0:
                    size = chance.randrange(0, len(model) + 100_000)
                    os.ftruncate(file.fileno(), size)
                    del model[size:]
                    model.extend(bytes(size - len(model)))
                case 1:
                    assert os.pread(file.fileno(), length, offset) == model[offset : offset + length]
                case _:
                    assert os.pwrite(file.fileno(), data, offset) == length
                    model.extend(bytes(max(0, offset - len(model))))
                    model[offset : offset + length] = data
            assert os.fstat(file.fileno()).st_size == len(model)
        assert os.pread(file.fileno(), len(model) + 1, 0) == model
    assert (folder / "x").read_bytes() == model


def test_reading_and_writing_past_the_end(folder: Path) -> None:
    with open(folder / "x", "w+b", buffering=0) as file:
        assert os.pread(file.fileno(), 10, 100) == b""
        os.pwrite(file.fileno(), b"end", 1_000_000)
        assert os.pread(file.fileno(), 10, 999_998) == b"\0\0end"
        assert os.pread(file.fileno(), 10, 1_000_003) == b""
        assert os.pread(file.fileno(), 1_000_000, 0) == bytes(1_000_000)


@pytest.mark.parametrize("size", [10, 70_000, 1_000_000])
def test_truncating_both_ways(folder: Path, size: int) -> None:
    data = random.Random(size).randbytes(size)
    path = folder / "x"
    path.write_bytes(data)
    os.truncate(path, size // 3)
    assert path.read_bytes() == data[: size // 3]
    os.truncate(path, size)
    assert path.read_bytes() == data[: size // 3] + bytes(size - size // 3)
    os.truncate(path, 0)
    assert path.read_bytes() == b""
    with pytest.raises(OSError) as caught:
        os.truncate(folder, 0)
    assert caught.value.errno == errno.EISDIR


def test_appending(folder: Path) -> None:
    path = folder / "x"
    pieces = [random.Random(number).randbytes(number * 700) for number in range(60)]
    for piece in pieces:
        with open(path, "ab") as file:
            file.write(piece)
    assert path.read_bytes() == b"".join(pieces)


def test_appending_from_several_processes_loses_no_line(folder: Path) -> None:
    code = """
import os, sys
file = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
for number in range(400):
    os.write(file, f"{sys.argv[2]} {number:04} {'x' * 200}\\n".encode())
"""
    writers = [python(code, folder / "log", name) for name in "abcd"]
    for writer in writers:
        writer.communicate(timeout=PROCESS_S)
        assert writer.returncode == 0
    lines = (folder / "log").read_text().splitlines()
    expected = {f"{name} {number:04} {'x' * 200}" for name in "abcd" for number in range(400)}
    assert len(lines) == len(expected) and set(lines) == expected


def test_a_file_larger_than_four_gigabytes_that_is_nearly_all_hole(folder: Path) -> None:
    place = 5 * 2**30
    with open(folder / "x", "w+b", buffering=0) as file:
        os.pwrite(file.fileno(), b"far", place)
        os.pwrite(file.fileno(), b"near", 10)
        assert os.fstat(file.fileno()).st_size == place + 3
        assert os.pread(file.fileno(), 16, place - 5) == bytes(5) + b"far"
        assert os.pread(file.fileno(), 16, 2**32 - 8) == bytes(16)
        assert os.pread(file.fileno(), 20, 0) == bytes(10) + b"near" + bytes(6)


def test_files_too_large_are_refused(folder: Path) -> None:
    with open(folder / "x", "w+b", buffering=0) as file:
        with pytest.raises(OSError) as caught:
            os.pwrite(file.fileno(), b"x", 2**63 - 1)
        assert caught.value.errno in (errno.EFBIG, errno.EINVAL)
        assert os.fstat(file.fileno()).st_size == 0


@pytest.mark.parametrize("size", [10, 2_000_000])
def test_unlinked_while_open(folder: Path, size: int) -> None:
    data = random.Random(size).randbytes(size)
    with open(folder / "x", "w+b", buffering=0) as file:
        file.write(data)
        os.unlink(folder / "x")
        assert os.listdir(folder) == []
        assert os.fstat(file.fileno()).st_nlink == 0
        assert os.pread(file.fileno(), size, 0) == data
        os.pwrite(file.fileno(), b"more", size)
        assert os.pread(file.fileno(), 4, size) == b"more"
        os.fsync(file.fileno())
    (folder / "x").touch()
    assert (folder / "x").stat().st_size == 0


def test_what_a_handle_may_not_do(folder: Path) -> None:
    (folder / "x").write_bytes(b"data")
    reader = os.open(folder / "x", os.O_RDONLY)
    writer = os.open(folder / "x", os.O_WRONLY)
    try:
        with pytest.raises(OSError) as caught:
            os.write(reader, b"x")
        assert caught.value.errno == errno.EBADF
        with pytest.raises(OSError) as caught:
            os.read(writer, 1)
        assert caught.value.errno == errno.EBADF
    finally:
        os.close(reader)
        os.close(writer)


def test_everything_that_syncs(folder: Path) -> None:
    with open(folder / "x", "wb", buffering=0) as file:
        for size in (10, 100_000, 3_000_000):
            file.write(os.urandom(size))
            os.fsync(file.fileno())
            os.fdatasync(file.fileno())
        directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(directory)
        os.close(directory)
    descriptor = os.open(folder / "x", os.O_WRONLY | os.O_SYNC)
    os.pwrite(descriptor, b"synchronous", 5)
    os.close(descriptor)
    assert (folder / "x").read_bytes()[5:16] == b"synchronous"


# --- mapped memory ---------------------------------------------------------------------------------------------------


def test_a_shared_mapping_writes_to_the_file(folder: Path) -> None:
    path = folder / "x"
    data = bytearray(random.Random(1).randbytes(3_000_000))
    path.write_bytes(data)
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        assert mapped[:] == data
        for place in (0, 4095, 1_500_000, 2_999_990):
            mapped[place : place + 10] = data[place : place + 10] = b"0123456789"
        mapped.flush()
        assert os.pread(file.fileno(), 10, 4095) == b"0123456789"
    assert path.read_bytes() == data


def test_a_private_mapping_does_not(folder: Path) -> None:
    path = folder / "x"
    data = random.Random(2).randbytes(1_000_000)
    path.write_bytes(data)
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        mapped[1000:1010] = b"not in file"[:10]
        assert mapped[1000:1010] == b"not in fil"
    assert path.read_bytes() == data


def test_processes_share_a_mapping(folder: Path) -> None:
    path = folder / "x"
    path.write_bytes(bytes(100_000))
    code = """
import mmap, sys
with open(sys.argv[1], "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
    print("ready")
    sys.stdin.readline()
    mapped[70_000:70_005] = mapped[10:15]
    print("done")
    sys.stdin.readline()
"""
    other = python(code, path)
    assert other.stdin and other.stdout
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        assert other.stdout.readline() == "ready\n"
        mapped[10:15] = b"hello"
        other.stdin.write("\n")
        other.stdin.flush()
        assert other.stdout.readline() == "done\n"
        assert mapped[70_000:70_005] == b"hello"
        other.communicate("\n", timeout=PROCESS_S)
    assert path.read_bytes()[70_000:70_005] == b"hello"


def test_programs_run_from_it(folder: Path) -> None:
    path = folder / "program"
    put_program(path)
    subprocess.run([path], check=True, timeout=PROCESS_S)
    subprocess.run(["tee", folder / "script"], input=b"#!/bin/sh\necho from a script\n", check=True, timeout=PROCESS_S)
    (folder / "script").chmod(0o755)
    assert subprocess.run([folder / "script"], capture_output=True, check=True, timeout=PROCESS_S).stdout == (
        b"from a script\n"
    )


# --- locks -----------------------------------------------------------------------------------------------------------

LOCKER = """
import fcntl, os, sys
file = os.open(sys.argv[1], os.O_RDWR)
call = fcntl.flock if sys.argv[2] == "flock" else fcntl.lockf
try:
    call(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    print("got it")
except BlockingIOError:
    print("busy")
sys.stdin.readline()
"""


@pytest.mark.parametrize("kind", ["flock", "lockf"])
def test_locks_hold_between_processes(folder: Path, kind: str) -> None:
    path = folder / "x"
    path.write_bytes(b"locked")
    first = python(LOCKER, path, kind)
    assert first.stdout
    assert first.stdout.readline() == "got it\n"
    second = python(LOCKER, path, kind)
    assert second.communicate("\n", timeout=PROCESS_S)[0] == "busy\n"
    first.communicate("\n", timeout=PROCESS_S)
    third = python(LOCKER, path, kind)
    assert third.communicate("\n", timeout=PROCESS_S)[0] == "got it\n"


def test_locks_on_parts_of_a_file(folder: Path) -> None:
    path = folder / "x"
    path.write_bytes(bytes(100))
    code = """
import fcntl, os, sys
file = os.open(sys.argv[1], os.O_RDWR)
for start in (0, 50):
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, start)
        print("got", start)
    except BlockingIOError:
        print("busy", start)
"""
    with open(path, "r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX, 10, 0)
        other = python(code, path)
        assert other.communicate(timeout=PROCESS_S)[0] == "busy 0\ngot 50\n"


# --- whole programs --------------------------------------------------------------------------------------------------


def test_archives_unpack(folder: Path) -> None:
    source = folder / "source"
    (source / "deep" / "er").mkdir(parents=True)
    for number in range(200):
        (source / "deep" / f"{number}").write_bytes(random.Random(number).randbytes(number * 50))
    os.link(source / "deep" / "5", source / "deep" / "er" / "hard")
    (source / "soft").symlink_to("deep/7")
    (folder / "out").mkdir()
    subprocess.run(["tar", "-C", source, "-czf", folder / "a.tar.gz", "."], check=True, timeout=PROCESS_S)
    subprocess.run(["tar", "-C", folder / "out", "-xzf", folder / "a.tar.gz"], check=True, timeout=PROCESS_S)
    subprocess.run(["diff", "-r", source, folder / "out"], check=True, timeout=PROCESS_S)
    assert (folder / "out" / "deep" / "5").stat().st_nlink == 2


def test_a_database_lives_on_it(folder: Path) -> None:
    import sqlite3

    for mode in ("delete", "wal"):
        connection = sqlite3.connect(folder / f"{mode}.db")
        connection.execute(f"PRAGMA journal_mode={mode}")
        connection.execute("CREATE TABLE t (number INTEGER PRIMARY KEY, value BLOB)")
        for number in range(50):
            with connection:
                connection.execute("INSERT INTO t VALUES (?, randomblob(2000))", (number,))
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        connection.close()
        connection = sqlite3.connect(folder / f"{mode}.db")
        assert connection.execute("SELECT count(*), sum(length(value)) FROM t").fetchone() == (50, 100_000)
        connection.close()
