"""Many small files copied in until all of them are on S3: how fast, and as how many objects."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

from scripts.benchmark import peers, syncer_mount, tasks
from scripts.benchmark.objects import bucket_keys
from scripts.benchmark.results import Column, Table
from scripts.benchmark.rows import Row
from scripts.benchmark.settings import Settings
from scripts.benchmark.systems import Mount, scratch
from tests.support.servers import S3Server

KEY = "copy-in"
FILE_BYTES = 10 * 1024


def measure(settings: Settings) -> Table:
    """Each system on an S3 server of its own; the clock stops when nothing waits for upload any more."""
    count = settings.sizes.copied_files
    table = Table(KEY, f"{count:,} files of 10 KiB copied in until all is on S3")
    ways = {column: open_on for column, open_on in _WAYS.items() if settings.system(_SYSTEM[column.key])}
    table.announce(
        (
            Row(key="rate", title="copied and uploaded", unit="files/s"),
            Row(key="objects", title="objects made on S3", unit="", less_is_better=True),
        ),
        ways,
    )
    for number in range(settings.passes):
        for column, open_on in ways.items():
            settings.say(f"{KEY}, pass {number + 1} of {settings.passes}: {column.title}")
            with (
                settings.failures_noted(table, column.key, "rate", "objects"),
                scratch(settings.parent) as folder,
                S3Server() as server,
                open_on(settings, folder, server) as mount,
            ):
                _copy(settings, table, column.key, folder, server, mount)
    return table


def _copy(settings: Settings, table: Table, column: str, folder: Path, server: S3Server, mount: Mount) -> None:
    source = folder / "source"
    source.mkdir()
    for at in range(settings.sizes.copied_files):
        (source / f"{at:05d}").write_bytes(os.urandom(FILE_BYTES))
    mount.settle()
    before = len(bucket_keys(server))
    with tasks.ready("copy_in", [mount.path], settings.cap_s, {"name": "copied", "source": str(source)}) as (task,):
        began = time.monotonic()
        task.go()
        outcome = tasks.joined([task.result()])
        mount.upload()
        seconds = time.monotonic() - began
    objects = len(bucket_keys(server)) - before
    table.add("rate", column, outcome.amount / seconds, capped=outcome.capped)
    table.add("objects", column, objects, capped=outcome.capped)
    settings.say(f"  {outcome.amount:g} files in {seconds:.2f} s, {objects} objects")


@contextlib.contextmanager
def _syncer(settings: Settings, folder: Path, server: S3Server) -> Iterator[Mount]:
    megabytes = settings.sizes.budget_megabytes
    with syncer_mount.mounted(folder, server.url(), megabytes, extra=server.environment) as mount:
        yield mount


def _juicefs(
    settings: Settings, folder: Path, server: S3Server, *, options: tuple[str, ...] = ()
) -> AbstractContextManager[Mount]:
    return peers.juicefs(folder, peers.on_s3(server), options)


def _s3fs(settings: Settings, folder: Path, server: S3Server) -> AbstractContextManager[Mount]:
    return peers.s3fs(folder, server)


def _rclone(settings: Settings, folder: Path, server: S3Server) -> AbstractContextManager[Mount]:
    return peers.rclone(folder, server)


_WAYS: dict[Column, Callable[[Settings, Path, S3Server], AbstractContextManager[Mount]]] = {
    Column("syncer", "syncer"): _syncer,
    Column("juicefs-s3", "JuiceFS"): _juicefs,
    Column("juicefs-s3-writeback", "JuiceFS --writeback"): partial(_juicefs, options=("--writeback",)),
    Column("s3fs", "s3fs"): _s3fs,
    Column("rclone", "rclone mount"): _rclone,
}
_SYSTEM = {
    "syncer": "syncer",
    "juicefs-s3": "juicefs",
    "juicefs-s3-writeback": "juicefs",
    "s3fs": "s3fs",
    "rclone": "rclone",
}
