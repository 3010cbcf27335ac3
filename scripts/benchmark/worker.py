"""One workload in a process of its own: plain `os` calls in a tight loop, timed from the first to the last.

    python -I worker.py WORKLOAD FOLDER CAP_S '{"parameter": ...}'

Everything the loop needs (random bytes, paths, an archive) is made first. Then the worker prints `ready`, waits for a
line on its standard input, so that the caller may empty the kernel's caches or start several at once, runs, and
prints one line of JSON: `amount` (in the workload's own unit: bytes or operations), `seconds`, `began` and `ended`
(time.monotonic, the same clock in every process), `capped` (the cap came before the end) and, for latencies,
`samples_s`.

It imports nothing of the project: the interpreter's own weight is all it adds, and that is the same for every system.
"""

import io
import itertools
import json
import math
import os
import random
import select
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import IO

PAGE = 4096
MEBIBYTE = 1024 * 1024
NEST = 8
"""How deep a chain of nested directories goes."""

NAMES = "{:06d}"
"""How the files of a directory are called."""

clock = time.monotonic


@dataclass(slots=True)
class Outcome:
    """What a workload did, and whether the cap ended it."""

    amount: float
    capped: bool = False
    samples_s: list[float] = field(default_factory=list)


Run = Callable[[float], Outcome]
"""Takes the moment at which to stop at the latest."""


def write_file(folder: str, *, name: str, size_bytes: int, piece_bytes: int) -> Run:
    """A new file of random bytes in pieces, fsync, close. Amount: bytes."""
    content = memoryview(os.urandom(size_bytes))
    pieces = [content[at : at + piece_bytes] for at in range(0, size_bytes, piece_bytes)]
    path = f"{folder}/{name}"

    def run(deadline: float) -> Outcome:
        written = 0
        descriptor = os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o644)
        for piece in pieces:
            written += os.write(descriptor, piece)
            if clock() > deadline:
                break
        os.fsync(descriptor)
        os.close(descriptor)
        return Outcome(written, written < size_bytes)

    return run


def read_file(
    folder: str, *, name: str, piece_bytes: int = MEBIBYTE, start_bytes: int = 0, size_bytes: float = math.inf
) -> Run:
    """The file from front to end, or so much of it from *start_bytes* on. Amount: bytes."""
    path = f"{folder}/{name}"
    buffers = [bytearray(piece_bytes)]

    def run(deadline: float) -> Outcome:
        total = got = 0
        descriptor = os.open(path, os.O_RDONLY)
        os.lseek(descriptor, start_bytes, os.SEEK_SET)
        while total < size_bytes and (got := os.readv(descriptor, buffers)):
            total += got
            if clock() > deadline:
                break
        os.close(descriptor)
        return Outcome(total, got > 0 and total < size_bytes)

    return run


def read_random(folder: str, *, name: str, count: int) -> Run:
    """Pages of one file in random order. Amount: reads."""
    path = f"{folder}/{name}"
    offsets = _random_offsets(path, count)

    def run(deadline: float) -> Outcome:
        done = 0
        descriptor = os.open(path, os.O_RDONLY)
        for offset in offsets:
            if len(os.pread(descriptor, PAGE, offset)) != PAGE:
                raise EOFError(f"short read at {offset}")
            done += 1
            if clock() > deadline:
                break
        os.close(descriptor)
        return Outcome(done, done < count)

    return run


def write_random(folder: str, *, name: str, count: int) -> Run:
    """Pages written over random places of one file, then fsync. Amount: writes."""
    path = f"{folder}/{name}"
    offsets = _random_offsets(path, count)
    pages = _pieces(count, PAGE)

    def run(deadline: float) -> Outcome:
        done = 0
        descriptor = os.open(path, os.O_WRONLY)
        for offset, page in zip(offsets, pages, strict=True):
            os.pwrite(descriptor, page, offset)
            done += 1
            if clock() > deadline:
                break
        os.fsync(descriptor)
        os.close(descriptor)
        return Outcome(done, done < count)

    return run


def write_fsync(folder: str, *, name: str, count: int) -> Run:
    """Append a page, fsync, again and again. Amount: appends; a sample is one append with its fsync."""
    pages = _pieces(count, PAGE)
    path = f"{folder}/{name}"

    def run(deadline: float) -> Outcome:
        samples = []
        descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
        before = clock()
        for page in pages:
            os.write(descriptor, page)
            os.fsync(descriptor)
            after = clock()
            samples.append(after - before)
            before = after
            if after > deadline:
                break
        os.close(descriptor)
        return Outcome(len(samples), len(samples) < count, samples)

    return run


def create(folder: str, *, name: str, count: int, size_bytes: int, pattern: str = NAMES, into: bool = False) -> Run:
    """Small files of distinct random bytes, or empty ones, in one new directory. Amount: files.

    *into*: the directory is there already.
    """
    if not into:
        os.mkdir(f"{folder}/{name}")
    paths = _paths(folder, name, count, pattern)
    contents = _pieces(count, size_bytes)
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY

    def run(deadline: float) -> Outcome:
        done = 0
        for path, content in zip(paths, contents, strict=True):
            descriptor = os.open(path, flags, 0o644)
            if content:
                os.write(descriptor, content)
            os.close(descriptor)
            done += 1
            if clock() > deadline:
                break
        return Outcome(done, done < count)

    return run


def stat_files(folder: str, *, name: str, count: int) -> Run:
    """stat(2) of each file by its path. Amount: calls."""
    return _each(_paths(folder, name, count), os.stat)


def _sampled(paths: Iterable[str], count: int, operation: Callable[[str], object], deadline: float) -> Outcome:
    """*operation* on each of *count* paths, a sample each. What it takes to name the next one is in none."""
    samples = []
    for path in paths:
        before = clock()
        operation(path)
        after = clock()
        samples.append(after - before)
        if after > deadline:
            break
    return Outcome(len(samples), len(samples) < count, samples)


def stat_scattered(folder: str, *, name: str, files: int, per_directory: int, count: int) -> Run:
    """stat(2) of some of *files* in directories of so many. Amount: calls; a sample is one of them.

    Each directory is looked up before, so that a sample is one look-up however few directories there are.
    """
    chosen = [divmod(at, per_directory) for at in random.sample(range(files), count)]
    paths = [(f"{folder}/{name}/{directory:06d}", f"{at:02d}") for directory, at in chosen]

    def run(deadline: float) -> Outcome:
        def known() -> Iterator[str]:
            for directory, file in paths:
                os.stat(directory)
                yield f"{directory}/{file}"

        return _sampled(known(), count, os.stat, deadline)

    return run


def find(folder: str, *, name: str) -> Run:
    """find(1) over a tree. Amount: entries."""
    path = f"{folder}/{name}"

    def run(deadline: float) -> Outcome:
        with tempfile.TemporaryFile() as output:
            whole = _program(["find", path, "-printf", "."], deadline, output)
            return Outcome(os.fstat(output.fileno()).st_size, not whole)

    return run


def open_close(folder: str, *, name: str, count: int) -> Run:
    """Open one file and close it, again and again. Amount: times; a sample is one of them."""
    path = f"{folder}/{name}"

    def run(deadline: float) -> Outcome:
        return _sampled(
            itertools.repeat(path, count), count, lambda path: os.close(os.open(path, os.O_RDONLY)), deadline
        )

    return run


def scan(folder: str, *, name: str) -> Run:
    """List one directory and stat every entry. Amount: entries."""
    path = f"{folder}/{name}"

    def run(deadline: float) -> Outcome:
        done = 0
        with os.scandir(path) as entries:
            for entry in entries:
                entry.stat(follow_symlinks=False)
                done += 1
                if clock() > deadline:
                    return Outcome(done, True)
        return Outcome(done)

    return run


def open_read_close(folder: str, *, name: str, count: int, size_bytes: int) -> Run:
    """Open each small file, read all of it, close it. Amount: files."""

    def one(path: str) -> None:
        descriptor = os.open(path, os.O_RDONLY)
        if len(os.read(descriptor, size_bytes + 1)) != size_bytes:
            raise EOFError(f"{path} has another length")
        os.close(descriptor)

    return _each(_paths(folder, name, count), one)


def rename(folder: str, *, name: str, count: int, pattern: str = NAMES) -> Run:
    """Give each file a new name in its directory. Amount: calls."""
    return _each(_paths(folder, name, count, pattern), lambda path: os.rename(path, f"{path}.renamed"))


def unlink(folder: str, *, name: str, count: int, pattern: str = NAMES) -> Run:
    """Delete each file. Amount: calls."""
    return _each(_paths(folder, name, count, pattern), os.unlink)


def mkdir_nested(folder: str, *, name: str, count: int) -> Run:
    """Directories within directories, NEST deep. Amount: directories."""
    os.mkdir(f"{folder}/{name}")
    paths = [f"{folder}/{name}/{at // NEST:05d}{'/nested' * (at % NEST)}" for at in range(count)]
    return _each(paths, os.mkdir)


def extract(folder: str, *, name: str, count: int) -> Run:
    """tar -x of *count* files of 1 to 8 KiB in directories of 30. Amount: files."""
    os.mkdir(f"{folder}/{name}")
    archive = tempfile.NamedTemporaryFile(suffix=".tar")  # noqa: SIM115 - lives until the process ends
    with tarfile.open(archive.name, "w") as tar:
        for at in range(count):
            entry = tarfile.TarInfo(f"{at // 30:03d}/{at % 30:02d}")
            content = os.urandom(random.randint(1, 8) * 1024)
            entry.size, entry.mtime, entry.mode = len(content), 1_600_000_000 + at, 0o644
            tar.addfile(entry, io.BytesIO(content))

    def run(deadline: float) -> Outcome:
        whole = _program(["tar", "-xf", archive.name, "-C", f"{folder}/{name}"], deadline)
        return Outcome(count if whole else _count(f"{folder}/{name}", files_only=True), not whole)

    return run


def remove_tree(folder: str, *, name: str) -> Run:
    """rm -r of a tree. Amount: files and directories."""
    path = f"{folder}/{name}"
    entries = _count(path)

    def run(deadline: float) -> Outcome:
        whole = _program(["rm", "-r", path], deadline)
        return Outcome(entries if whole else entries - _count(path), not whole)

    return run


def copy_in(folder: str, *, name: str, source: str) -> Run:
    """Copy every file of a local directory into a new one. Amount: files."""
    os.mkdir(f"{folder}/{name}")

    def one(file: str) -> None:
        shutil.copyfile(f"{source}/{file}", f"{folder}/{name}/{file}")

    return _each(sorted(os.listdir(source)), one)


def first_bytes(folder: str, *, names: list[str]) -> Run:
    """Open each file and read its first byte. Amount: files; a sample is one of them."""

    def run(deadline: float) -> Outcome:
        samples = []
        for name in names:
            before = clock()
            descriptor = os.open(f"{folder}/{name}", os.O_RDONLY)
            if not os.pread(descriptor, 1, 0):
                raise EOFError(name)
            samples.append(clock() - before)
            os.close(descriptor)
            if clock() > deadline:
                break
        return Outcome(len(samples), len(samples) < len(names), samples)

    return run


def read_until_told(folder: str, *, name: str) -> Run:
    """Read one file over and over, its pages dropped before each round, until a line comes in. Amount: bytes."""
    buffers = [bytearray(MEBIBYTE)]
    told = _line_waits()

    def run(deadline: float) -> Outcome:
        total = 0
        descriptor = os.open(f"{folder}/{name}", os.O_RDONLY)
        while not told() and clock() < deadline:
            if got := os.readv(descriptor, buffers):
                total += got
                continue
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.lseek(descriptor, 0, os.SEEK_SET)
        os.close(descriptor)
        return Outcome(total)

    return run


def stat_until_told(folder: str, *, name: str, count: int) -> Run:
    """Ask for attributes that the kernel must not answer from its cache, until a line comes in. A sample is a call.

    The names do not exist and are new each time, so each call is a look-up that the file system itself answers.
    """
    told = _line_waits()

    def run(deadline: float) -> Outcome:
        samples: list[float] = []
        while not told() and clock() < deadline:
            path = f"{folder}/{name}/missing-{len(samples)}"
            before = clock()
            if os.path.exists(path):
                raise FileExistsError(path)
            samples.append(clock() - before)
            if len(samples) >= count:
                break
        return Outcome(len(samples), False, samples)

    return run


WORKLOADS: dict[str, Callable[..., Run]] = {
    function.__name__: function
    for function in (
        *(write_file, read_file, read_random, write_random, write_fsync, create, stat_files, scan, open_read_close),
        *(rename, unlink, mkdir_nested, extract, remove_tree, copy_in, first_bytes, read_until_told, stat_until_told),
        *(stat_scattered, find, open_close),
    )
}


def _each(items: list[str], call: Callable[[str], object]) -> Run:
    def run(deadline: float) -> Outcome:
        done = 0
        for item in items:
            call(item)
            done += 1
            if clock() > deadline:
                break
        return Outcome(done, done < len(items))

    return run


def _paths(folder: str, name: str, count: int, pattern: str = NAMES) -> list[str]:
    return [f"{folder}/{name}/{pattern.format(at)}" for at in range(count)]


def _pieces(count: int, size_bytes: int) -> list[memoryview]:
    content = memoryview(os.urandom(count * size_bytes))
    return [content[at * size_bytes : (at + 1) * size_bytes] for at in range(count)]


def _random_offsets(path: str, count: int) -> list[int]:
    pages = os.stat(path).st_size // PAGE
    return [random.randrange(pages) * PAGE for _ in range(count)]


def _program(command: list[str], deadline: float, output: IO[bytes] | None = None) -> bool:
    """Run *command*; whether it ended by itself before *deadline*. Raises: CalledProcessError: it failed."""
    try:
        subprocess.run(command, timeout=deadline - clock(), check=True, stdout=output)
    except subprocess.TimeoutExpired:
        return False
    return True


def _count(path: str, *, files_only: bool = False) -> int:
    """The entries below *path*, and itself; none when it is gone."""
    below = [(len(folders), len(files)) for _, folders, files in os.walk(path)]
    files = sum(files for _, files in below)
    return files if files_only or not below else 1 + files + sum(folders for folders, _ in below)


def _line_waits() -> Callable[[], bool]:
    poller = select.poll()
    poller.register(0, select.POLLIN)
    # A pipe that was closed without another line is ready too, but has nothing to read: that tells nothing.
    return lambda: any(event & select.POLLIN for _, event in poller.poll(0))


def main() -> None:
    workload, folder, cap_s, parameters = sys.argv[1:]
    run = WORKLOADS[workload](folder, **json.loads(parameters))
    os.write(1, b"ready\n")
    os.read(0, 1 << 16)  # not sys.stdin: its buffer would swallow a second line
    began = clock()
    outcome = run(began + float(cap_s))
    ended = clock()
    print(
        json.dumps(
            {
                "amount": outcome.amount,
                "seconds": ended - began,
                "began": began,
                "ended": ended,
                "capped": outcome.capped,
                "samples_s": outcome.samples_s,
            }
        )
    )


if __name__ == "__main__":
    main()
