"""What a collection's size costs: the same work on a thousand files and on a million.

Each column is a DATA of its own, made straight through the file system layer, with three things in it: so many small
files in directories of a hundred, one directory of a tenth as many, and one file of about as many blocks of a
mebibyte. Cost should grow with the work, not with the collection, so most rows ask for the same work in every column.
"""

import contextlib
import os
import random
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from scripts.benchmark import collection, syncer_mount, tasks
from scripts.benchmark.collection import CONTENT_BYTES, CROWD, FILES, LARGE, PER_DIRECTORY
from scripts.benchmark.place import Place, errors_as_failures
from scripts.benchmark.results import Column, Table
from scripts.benchmark.rows import MEBIBYTE, PAGE, Row
from scripts.benchmark.settings import Settings
from scripts.benchmark.systems import MOUNT_S, SETTLE_S, UMOUNT_S, Mount, processor_s, resident_bytes, scratch
from syncer.control import Client
from tests.support.command import SYNCER, environment

KEY = "scale"
SAMPLES = 1000
"""So many files are looked up, names made, pages read."""
WRITES = 64
TRIES = 3
"""So often what takes long is done in one pass; the median counts."""
READ_BYTES = 64 * MEBIBYTE
FIND_S = 900.0
"""find is not capped like the others: the memory is measured once it has seen everything."""
IDLE_S = 0.3

NONE = Column("none", "no files")
COLD = frozenset(
    {"mount-cold", "find", "stat", "stat-disk", "memory-walked", "memory-forgotten"}
    | {"list", "read-random", "read-disk", "read"}
)
"""Rows that need the kernel's caches emptied."""
MOUNT_ROWS = (
    Row(key="mount", title="mount", unit="s", less_is_better=True),
    Row(key="mount-cold", title="mount, cold", unit="s", less_is_better=True),
)
ROWS = (
    Row(key="make", title="files made without a mount, until on the remote", unit="files/s"),
    Row(key="meta", title="meta.db for each file, its content aside", unit="bytes", less_is_better=True),
    *MOUNT_ROWS,
    Row(key="find", title="find, cold", unit="entries/s"),
    Row(key="stat", title="stat anywhere, cold but for meta.db", unit="ms", less_is_better=True),
    Row(key="stat-disk", title="stat anywhere, cold", unit="ms", less_is_better=True),
    Row(key="memory-walked", title="resident memory after find", unit="MiB", less_is_better=True),
    Row(key="memory-forgotten", title="resident memory after the kernel forgot", unit="MiB", less_is_better=True),
    Row(key="status", title="status", unit="ms", less_is_better=True),
    Row(key="publish-file", title="flush of one new file", unit="ms", less_is_better=True),
    Row(key="list", title="directory: scandir + stat, cold", unit="entries/s"),
    Row(key="create", title="directory: create empty files", unit="op/s"),
    Row(key="rename", title="directory: rename", unit="op/s"),
    Row(key="unlink", title="directory: unlink", unit="op/s"),
    Row(key="publish-name", title="directory: flush of one new name", unit="ms", less_is_better=True),
    Row(key="open", title="large file: open, close", unit="ms", less_is_better=True),
    Row(key="read-random", title="large file: random read 4 KiB, cold but for meta.db", unit="op/s"),
    Row(key="read-disk", title="large file: random read 4 KiB, cold", unit="op/s"),
    Row(key="read", title="large file: sequential read from the middle, cold", unit="MiB/s", per_unit=MEBIBYTE),
    Row(key="write", title="large file: random write 4 KiB, fsync at end", unit="op/s"),
    Row(key="state", title="large file: its xattr user.syncer.state", unit="ms", less_is_better=True),
    Row(key="publish-write", title="large file: flush of one written page", unit="ms", less_is_better=True),
    Row(key="publish-beside", title="large file: flush of one new file beside it", unit="ms", less_is_better=True),
    Row(key="memory", title="peak resident memory over all of it", unit="MiB", less_is_better=True),
)


def measure(settings: Settings) -> Table:
    """Make all collections, then measure them one after the other, pass by pass."""
    table = Table(KEY, "Scale")
    table.notes.append(
        f"Each column: so many files, {PER_DIRECTORY} in a directory; one directory of a tenth as many; one large file"
        " of about as many blocks of a mebibyte."
    )
    columns = [NONE, *_columns(settings.sizes.scale)]
    table.announce([row for row in ROWS if settings.drop_caches or row.key not in COLD], columns)
    with contextlib.ExitStack() as stack:
        places = []
        for column in columns:
            place = Place(column, stack.enter_context(scratch(settings.parent)))
            with settings.failures_noted(table, column.key, *table.rows):
                _make(settings, table, place)
                places.append(place)
        for number in range(settings.passes):
            for place in places:
                settings.say(f"{KEY}, pass {number + 1} of {settings.passes}: {place.column.title}")
                with settings.failures_noted(table, place.column.key, *_measured(table, place)):
                    _one_pass(_Pass(settings, table, place))
    return table


def _columns(counts: tuple[int, ...]) -> list[Column]:
    """Keys say what part of the largest a collection is, so that requirements hold for any sizes."""
    largest = counts[-1]
    keys = ["whole" if count == largest else f"1/{largest // count}" for count in counts]
    return [Column(key, f"{count:,} files", count) for key, count in zip(keys, counts, strict=True)]


def _measured(table: Table, place: Place) -> list[str]:
    """The rows that a pass fills."""
    rows = ROWS if place.count else MOUNT_ROWS
    return [row.key for row in rows if row.key in table.rows and row.key not in ("make", "meta")]


def _make(settings: Settings, table: Table, place: Place) -> None:
    with place.mounted(settings):
        pass
    if not place.count:
        return
    before = time.monotonic()
    with errors_as_failures():
        collection.make_files(place.data, place.count)
    seconds = time.monotonic() - before
    table.add("make", place.column.key, place.count / seconds)
    size_bytes = (place.data / "meta.db").stat().st_size
    table.add("meta", place.column.key, size_bytes / place.count - CONTENT_BYTES)
    settings.say(f"{KEY}: {place.column.title} made in {seconds:.1f} s, meta.db has {size_bytes:,} bytes")
    with errors_as_failures():
        collection.make_crowd(place.data, place.count // 10)
        collection.make_large(place.data, place.count * MEBIBYTE // 1_000_000)


class _Pass:
    """One pass over one place: runs what is measured, and notes the figures."""

    def __init__(self, settings: Settings, table: Table, place: Place) -> None:
        self.settings = settings
        self.place = place
        self._table = table

    @property
    def may_cool(self) -> bool:
        return self.settings.drop_caches

    def note(self, row: str, value: float, *, capped: bool = False) -> None:
        self._table.add(row, self.place.column.key, value, capped=capped)
        shown = self._table.rows[row]
        self.settings.say(f"  {shown.title}: {value:,.4g} {shown.unit}")

    def cool_but_metadata(self) -> None:
        """Empty the kernel's caches, and bring meta.db back."""
        self.settings.cool()
        (self.place.data / "meta.db").read_bytes()

    def rate(
        self,
        row: str,
        mount: Mount,
        workload: str,
        parameters: Mapping[str, object],
        cool: Callable[[], None] | None = None,
    ) -> None:
        """Run a workload whose figure is a rate. Before a cold row goes *cool*, or what empties all caches."""
        if row in COLD and not self.may_cool:
            return
        before = (cool or self.settings.cool) if row in COLD else _nothing
        cap_s = FIND_S if row == "find" else self.settings.cap_s
        outcome = tasks.run(workload, [mount.path], cap_s, parameters, before=before)
        figure = self._table.rows[row].rate(outcome.amount, outcome.seconds)
        self.note(row, figure, capped=outcome.capped)

    def median_ms(
        self,
        row: str,
        mount: Mount,
        workload: str,
        parameters: Mapping[str, object],
        before: Callable[[], None],
    ) -> None:
        """Run a workload that takes samples."""
        outcome = tasks.run(workload, [mount.path], self.settings.cap_s, parameters, before=before)
        self.note(row, statistics.median(outcome.samples_s) * 1000, capped=outcome.capped)


def _one_pass(one: _Pass) -> None:
    if one.may_cool:
        one.settings.cool()
        one.note("mount-cold", _mount_s(one.place))
    one.note("mount", _mount_s(one.place))
    if not one.place.count:
        return
    with one.place.mounted(one.settings) as mount:
        mount.settle()
        _files(one, mount)
        _directory(one, mount)
        _large_file(one, mount)
        _flushes(one, mount)
    one.note("memory", mount.peak_bytes / MEBIBYTE)


def _mount_s(place: Place) -> float:
    """How long a mount takes, from the start of the process until it says that it is ready. Raises: TaskFailed."""
    before = time.monotonic()
    with _started(place) as process:
        assert process.stdout
        for line in process.stdout:
            if b"is ready" in line:
                seconds = time.monotonic() - before
                break
        else:
            raise tasks.TaskFailed("syncer did not mount")
        syncer_mount.run("umount", place.mountpoint)
        process.wait(UMOUNT_S)
    return seconds


@contextlib.contextmanager
def _started(place: Place) -> Iterator["subprocess.Popen[bytes]"]:
    command: list[str | Path] = ["setpriv", "--pdeathsig", "KILL", *SYNCER, "mount", place.data, place.mountpoint]
    process = subprocess.Popen(
        command,
        env=environment({"PYTHONUNBUFFERED": "1"}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    patience = threading.Timer(MOUNT_S + UMOUNT_S, process.kill)  # its output then ends
    patience.start()
    with process:
        try:
            yield process
        finally:
            patience.cancel()
            process.kill()


def _files(one: _Pass, mount: Mount) -> None:
    if not one.may_cool:
        return
    count = one.place.count
    scattered = {"name": FILES, "files": count, "per_directory": PER_DIRECTORY, "count": min(SAMPLES, count)}
    one.median_ms("stat-disk", mount, "stat_scattered", scattered, one.settings.cool)
    one.rate("find", mount, "find", {"name": FILES})
    one.note("memory-walked", resident_bytes(mount.pid) / MEBIBYTE)
    _forget(mount)
    one.note("memory-forgotten", resident_bytes(mount.pid) / MEBIBYTE)
    one.median_ms("stat", mount, "stat_scattered", scattered, one.cool_but_metadata)


def _forget(mount: Mount) -> None:
    """Have the kernel drop its directory entries and inodes, and syncer hear of all of them."""
    tasks.empty_caches(pages=False)
    end = time.monotonic() + SETTLE_S
    before, used = -1.0, processor_s(mount.pid)
    while used - before > IDLE_S / 20:  # until it has next to nothing to do
        if time.monotonic() > end:
            raise tasks.TaskFailed("syncer is still busy with what the kernel forgot")
        time.sleep(IDLE_S)
        before, used = used, processor_s(mount.pid)


def _directory(one: _Pass, mount: Mount) -> None:
    new = {"name": CROWD, "count": SAMPLES, "pattern": "new-{:06d}"}
    one.rate("list", mount, "scan", {"name": CROWD})
    mount.settle()
    one.rate("create", mount, "create", {**new, "size_bytes": 0, "into": True})
    mount.settle()
    one.rate("rename", mount, "rename", new)
    mount.settle()
    one.rate("unlink", mount, "unlink", {**new, "pattern": "new-{:06d}.renamed"})
    mount.settle()


def _large_file(one: _Pass, mount: Mount) -> None:
    middle = one.place.count // 2 * MEBIBYTE
    one.median_ms("open", mount, "open_close", {"name": LARGE, "count": SAMPLES}, _nothing)
    pages = {"name": LARGE, "count": SAMPLES}
    one.rate("read-disk", mount, "read_random", pages)
    one.rate("read-random", mount, "read_random", pages, one.cool_but_metadata)
    one.rate("read", mount, "read_file", {"name": LARGE, "start_bytes": middle, "size_bytes": READ_BYTES})
    one.rate("write", mount, "write_random", {"name": LARGE, "count": WRITES})
    mount.settle()
    one.note("state", _median_ms(lambda: os.getxattr(mount.path / LARGE, "user.syncer.state")))


def _flushes(one: _Pass, mount: Mount) -> None:
    """What `syncer status` and `syncer flush` ask of the mount, without the start of those commands."""
    with errors_as_failures(), Client.connect(one.place.data) as client:
        one.note("status", _median_ms(client.status))
        for row, change in (
            ("publish-file", lambda: _new_file(mount.path / FILES / "000000")),
            ("publish-name", lambda: _new_file(mount.path / CROWD)),
            ("publish-write", lambda: _write_page(mount.path / LARGE)),
            ("publish-beside", lambda: _new_file((mount.path / LARGE).parent)),
        ):
            one.note(row, _median_ms(lambda: client.flush(lambda _: None), change))


def _new_file(folder: Path) -> None:
    (folder / f"new-{time.time_ns()}").write_bytes(os.urandom(CONTENT_BYTES))


def _write_page(path: Path) -> None:
    with open(path, "r+b", buffering=0) as file:
        file.seek(random.randrange(path.stat().st_size // PAGE) * PAGE)
        file.write(os.urandom(PAGE))


def _median_ms(call: Callable[[], object], before: Callable[[], None] | None = None) -> float:
    samples = []
    for _ in range(TRIES):
        if before is not None:
            before()
        began = time.monotonic()
        call()
        samples.append(time.monotonic() - began)
    return statistics.median(samples) * 1000


def _nothing() -> None:
    pass
