"""What an application feels while syncer uploads at full speed: local reads and look-ups, against the same at rest.

The upload is that of one large file of random bytes; reading and looking up each have an upload of their own, which
starts before they do and whose end ends them. The servers run with the policy SCHED_IDLE (sched(7)): what they compute
would be computed on another machine.
"""

import contextlib
import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from scripts.benchmark import syncer_mount, tasks
from scripts.benchmark.results import Column, Table
from scripts.benchmark.rows import MEBIBYTE, Row
from scripts.benchmark.settings import Settings
from scripts.benchmark.systems import SETTLE_S, Mount, scratch
from tests.support.command import SYNCER, environment
from tests.support.servers import S3Server, SshServer

KEY = "uploading"
SAMPLES_MAX = 500_000
READ = {"name": "local"}
STAT = {"name": "looked-up", "count": SAMPLES_MAX}


def measure(settings: Settings) -> Table:
    """A column for each kind of remote."""
    table = Table(KEY, "While uploading at full speed")
    table.announce(
        (
            Row(key="read-rest", title="local sequential read, at rest", unit="MiB/s", per_unit=MEBIBYTE),
            Row(key="read-busy", title="local sequential read, uploading", unit="MiB/s", per_unit=MEBIBYTE),
            Row(key="read-ratio", title="its share of the speed at rest", unit="x"),
            Row(key="stat-rest", title="look-up, 99th percentile, at rest", unit="ms", less_is_better=True),
            Row(key="stat-busy", title="look-up, 99th percentile, uploading", unit="ms", less_is_better=True),
            Row(key="upload", title="the upload meanwhile", unit="MiB/s", per_unit=MEBIBYTE),
        ),
        (Column("folder", "folder"), Column("ssh", "SSH"), Column("s3", "S3")),
    )
    for number in range(settings.passes):
        for remote in table.columns:
            settings.say(f"{KEY}, pass {number + 1} of {settings.passes}: {remote}")
            with settings.failures_noted(table, remote, *table.rows), _remote(remote, settings) as (folder, url, extra):
                megabytes = settings.sizes.budget_megabytes
                with syncer_mount.mounted(folder, url, megabytes, extra=extra) as mount:
                    _one_pass(settings, table, remote, mount, folder / "data")
    return table


@contextlib.contextmanager
def _remote(kind: str, settings: Settings) -> Iterator[tuple[Path, str, dict[str, str]]]:
    with scratch(settings.parent) as folder, contextlib.ExitStack() as stack:
        if kind == "folder":
            yield folder, str(folder / "remote"), {}
        else:
            with _stepping_back():
                server = stack.enter_context(SshServer() if kind == "ssh" else S3Server())
            yield folder, server.url(), server.environment


@contextlib.contextmanager
def _stepping_back() -> Iterator[None]:
    """What is started within the block has what everything else leaves of the processors."""
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def _one_pass(settings: Settings, table: Table, remote: str, mount: Mount, data: Path) -> None:
    (mount.path / "local").write_bytes(os.urandom(settings.sizes.uploading_bytes // 4))
    (mount.path / "looked-up").mkdir()
    mount.settle()
    rates = table.rows["read-rest"]
    rest = tasks.run("read_until_told", [mount.path], settings.sizes.rest_s, READ)
    calm = tasks.run("stat_until_told", [mount.path], settings.sizes.rest_s, STAT)
    busy, _ = _while_uploading(settings, "read_until_told", READ, mount, data, "first")
    stats, upload = _while_uploading(settings, "stat_until_told", STAT, mount, data, "second")
    at_rest, uploading = rates.rate(rest.amount, rest.seconds), rates.rate(busy.amount, busy.seconds)
    table.add("read-rest", remote, at_rest)
    table.add("read-busy", remote, uploading)
    table.add("read-ratio", remote, uploading / at_rest)
    table.add("stat-rest", remote, _percentile_ms(calm, 0.99))
    table.add("stat-busy", remote, _percentile_ms(stats, 0.99))
    table.add("upload", remote, upload / MEBIBYTE)
    settings.say(
        f"  read {at_rest:,.0f} -> {uploading:,.0f} MiB/s over {busy.seconds:.1f} s; look-up 99 % "
        f"{_percentile_ms(calm, 0.99):.2f} -> {_percentile_ms(stats, 0.99):.2f} ms over {stats.seconds:.1f} s"
    )


def _while_uploading(
    settings: Settings, workload: str, parameters: Mapping[str, object], mount: Mount, data: Path, name: str
) -> tuple[tasks.Outcome, float]:
    """Run a loop for as long as an upload takes; also the bytes a second that went up. Raises: TaskFailed."""
    with tasks.ready(workload, [mount.path], SETTLE_S, parameters) as (task,):
        (mount.path / name).write_bytes(os.urandom(settings.sizes.uploading_bytes))
        waiting = int(str(syncer_mount.status(data)["pending_upload_bytes"]))
        flush = subprocess.Popen([*SYNCER, "flush", data], env=environment(), stdout=subprocess.DEVNULL)
        try:
            task.go()
            if flush.wait(SETTLE_S):
                raise tasks.TaskFailed("syncer flush failed")
        finally:
            flush.kill()
            task.go()
        outcome = tasks.joined([task.result()])
    if not outcome.amount or not waiting:
        raise tasks.TaskFailed("the upload was over before anything was measured")
    mount.settle()
    return outcome, waiting / outcome.seconds


def _percentile_ms(outcome: tasks.Outcome, share: float) -> float:
    ordered = sorted(outcome.samples_s)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)] * 1000
