"""Reading a large file that is on the remote alone, front to end: over SSH against sshfs, over S3 against boto3."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from scripts.benchmark import peers, tasks
from scripts.benchmark.objects import s3_client
from scripts.benchmark.results import Column, Table
from scripts.benchmark.rows import MEBIBYTE, Row
from scripts.benchmark.sections import evicted
from scripts.benchmark.settings import Settings
from scripts.benchmark.systems import scratch
from tests.support.server_process import Server
from tests.support.servers import S3Server, SshServer

KEY = "cold-remote"
PACK_BYTES = 8 * MEBIBYTE
THREADS = 4


def measure(settings: Settings) -> Table:
    """Each pass: syncer and its rival on the same server, one after the other."""
    size_bytes = settings.sizes.remote_bytes
    table = Table(KEY, f"Sequential read of {size_bytes // MEBIBYTE} MiB that are on the remote alone")
    table.announce(
        (
            Row(key="ssh", title="over SSH", unit="MiB/s", per_unit=MEBIBYTE),
            Row(key="s3", title="over S3", unit="MiB/s", per_unit=MEBIBYTE),
        ),
        (Column("syncer", "syncer"), Column("sshfs", "sshfs"), Column("boto3", f"boto3, {THREADS} threads")),
    )
    for number in range(settings.passes):
        settings.say(f"{KEY}, pass {number + 1} of {settings.passes}")
        with settings.failures_noted(table, "syncer", "ssh"), SshServer() as ssh:
            _syncer(settings, table, "ssh", ssh)
            with settings.failures_noted(table, "sshfs", "ssh"):
                _sshfs(settings, table, ssh)
        with settings.failures_noted(table, "syncer", "s3"), S3Server() as s3:
            _syncer(settings, table, "s3", s3)
            with settings.failures_noted(table, "boto3", "s3"):
                _boto3(settings, table, s3)
    return table


def _note(settings: Settings, table: Table, row: str, column: str, amount: float, seconds: float, capped: bool) -> None:
    figure = table.rows[row].rate(amount, seconds)
    table.add(row, column, figure, capped=capped)
    settings.say(f"  {row}: {column} {figure:.1f} MiB/s")


def _syncer(settings: Settings, table: Table, row: str, server: Server) -> None:
    def fill(path: Path) -> None:
        (path / "file").write_bytes(os.urandom(settings.sizes.remote_bytes))

    with scratch(settings.parent) as folder, evicted.mounted(settings, folder, server, fill) as mount:
        outcome = tasks.run("read_file", [mount.path], settings.cap_s, {"name": "file"}, before=settings.cool)
    _note(settings, table, row, "syncer", outcome.amount, outcome.seconds, outcome.capped)


def _sshfs(settings: Settings, table: Table, server: SshServer) -> None:
    if not settings.system("sshfs"):
        return
    (server.root / "file").write_bytes(os.urandom(settings.sizes.remote_bytes))
    with scratch(settings.parent) as folder, peers.sshfs(folder, server) as mount:
        outcome = tasks.run("read_file", [mount.path], settings.cap_s, {"name": "file"}, before=settings.cool)
    _note(settings, table, "ssh", "sshfs", outcome.amount, outcome.seconds, outcome.capped)


def _boto3(settings: Settings, table: Table, server: S3Server) -> None:
    keys = [f"bare/{at}" for at in range(settings.sizes.remote_bytes // PACK_BYTES)]
    with s3_client(server, THREADS) as client, ThreadPoolExecutor(THREADS) as pool:
        for key in keys:
            client.put_object(Bucket=server.bucket, Key=key, Body=os.urandom(PACK_BYTES))

        def fetch(key: str) -> int:
            return len(client.get_object(Bucket=server.bucket, Key=key)["Body"].read())

        settings.cool()
        before = time.monotonic()
        amount = sum(pool.map(fetch, keys))
        seconds = time.monotonic() - before
    _note(settings, table, "s3", "boto3", amount, seconds, False)
