"""How long the first byte of an evicted file takes, against one bare range request for as many bytes.

Each file is one block, so the mount has to fetch and verify all of it before it may serve one byte; the bare request
asks for a range of the same length of the same objects, on a connection that is open already.
"""

import os
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from scripts.benchmark import tasks
from scripts.benchmark.objects import s3_client, sftp_client
from scripts.benchmark.results import Column, Table
from scripts.benchmark.rows import Row
from scripts.benchmark.sections import evicted
from scripts.benchmark.settings import Settings
from scripts.benchmark.systems import scratch
from tests.support.server_process import Server
from tests.support.servers import S3Server, SshServer

KEY = "first-byte"
FILE_BYTES = 200 * 1024
FILES_PER_SAMPLE = 10
"""So many times more files than are read, so that what is fetched along with one seldom is another."""


def measure(settings: Settings) -> Table:
    """The median of some files a pass, over SSH and over S3."""
    table = Table(KEY, f"First byte of an evicted file of {FILE_BYTES // 1024} KiB")
    table.announce(
        (
            Row(key="ssh", title="over SSH", unit="ms", less_is_better=True),
            Row(key="s3", title="over S3", unit="ms", less_is_better=True),
        ),
        (Column("syncer", "syncer"), Column("bare", "bare range request")),
    )
    for number in range(settings.passes):
        settings.say(f"{KEY}, pass {number + 1} of {settings.passes}")
        with settings.failures_noted(table, "syncer", "ssh"), SshServer() as ssh:
            _one_pass(settings, table, "ssh", ssh, _bare_ssh(ssh))
        with settings.failures_noted(table, "syncer", "s3"), S3Server() as s3:
            _one_pass(settings, table, "s3", s3, _bare_s3(s3))
    return table


def _one_pass(settings: Settings, table: Table, row: str, server: Server, bare: AbstractContextManager["Ask"]) -> None:
    wanted = settings.sizes.first_files + 1
    names = [f"{at:05d}" for at in range(wanted * FILES_PER_SAMPLE)]
    chosen = random.sample(names, wanted)

    def fill(path: Path) -> None:
        for name in names:
            (path / name).write_bytes(os.urandom(FILE_BYTES))

    with scratch(settings.parent) as folder, evicted.mounted(settings, folder, server, fill) as mount, bare as ask:
        samples = [_timed(ask) for _ in range(wanted)]
        outcome = tasks.run("first_bytes", [mount.path], settings.cap_s, {"names": chosen})
        samples += [_timed(ask) for _ in range(wanted)]  # what the server has in memory by then, both profit from
    ours = statistics.median(outcome.samples_s[1:]) * 1000  # the first one warms the connection up
    table.add(row, "syncer", ours)
    theirs = statistics.median(samples[1:]) * 1000
    table.add(row, "bare", theirs)
    settings.say(f"  {row}: syncer {ours:.2f} ms, bare {theirs:.2f} ms")


Ask = Callable[[], int]
"""Fetches one range and returns how long it was."""


def _timed(ask: Ask) -> float:
    before = time.monotonic()
    got = ask()
    seconds = time.monotonic() - before
    if got != FILE_BYTES:
        raise tasks.TaskFailed(f"the bare request got {got} bytes")
    return seconds


def _range(objects: Sequence[tuple[str, int]]) -> tuple[str, int]:
    """One of the (name, size) that are long enough, and an offset in it."""
    name, size = random.choice([item for item in objects if item[1] >= FILE_BYTES])
    return name, random.randrange(size - FILE_BYTES + 1)


@contextmanager
def _bare_ssh(server: SshServer) -> Iterator[Ask]:
    packs = [(str(path), path.stat().st_size) for path in server.root.glob("blobs/packs/*/*")]
    with sftp_client(server) as sftp:

        def ask() -> int:
            name, offset = _range(packs)
            with sftp.open(name, "rb") as file:
                return sum(map(len, file.readv([(offset, FILE_BYTES)])))

        yield ask


@contextmanager
def _bare_s3(server: S3Server) -> Iterator[Ask]:
    with s3_client(server) as client:
        found = client.list_objects_v2(Bucket=server.bucket, Prefix="blobs/packs/")["Contents"]
        packs = [(item["Key"], item["Size"]) for item in found]

        def ask() -> int:
            name, start = _range(packs)
            wanted = f"bytes={start}-{start + FILE_BYTES - 1}"
            return len(client.get_object(Bucket=server.bucket, Key=name, Range=wanted)["Body"].read())

        yield ask
