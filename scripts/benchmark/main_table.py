"""The main table: every system through every workload, pass by pass, one system mounted at a time."""

import time
from pathlib import Path

from scripts.benchmark import tasks
from scripts.benchmark.results import Column, Table
from scripts.benchmark.rows import MEBIBYTE, MEMORY, WorkloadRow, chosen, table_rows
from scripts.benchmark.settings import FAILURES, Settings
from scripts.benchmark.systems import Mount, System, scratch

KEY = "table"


def measure(settings: Settings) -> Table:
    """Fill the table. Passes are interleaved (A B C A B C), so that a machine that drifts drifts for all."""
    table = Table(KEY, "Files and directories")
    rows = chosen(table_rows(settings.sizes), settings.only)
    run = tuple(row for row in rows if settings.drop_caches or not row.cold)
    shown = [row for row in run if not settings.only or row.key in settings.only]
    table.announce(
        [*shown, *([] if settings.only else [MEMORY])],
        [Column(system.key, system.title) for system in settings.systems],
    )
    if settings.drop_caches:
        table.notes.append("Cold: the kernel's pages, entries and inodes of all file systems were dropped just before.")
    else:
        table.notes.append("The cold rows are left out: only root may empty the kernel's caches.")
    for number in range(settings.passes):
        for system in settings.systems:
            settings.say(f"pass {number + 1} of {settings.passes}: {system.title}")
            _one_pass(settings, table, system, run)
    return table


def _one_pass(settings: Settings, table: Table, system: System, rows: tuple[WorkloadRow, ...]) -> None:
    left = [row.key for row in rows if row.key in table.rows]
    with (
        settings.failures_noted(table, system.key, *left),
        scratch(settings.parent) as folder,
    ):
        with system.mounted(folder) as mount:
            done: dict[str, int] = {}
            for row in rows:
                _one_row(settings, table, system, mount, row, done)
                if row.key in left:
                    left.remove(row.key)
        if mount.peak_bytes and MEMORY.key in table.rows:
            table.add(MEMORY.key, system.key, mount.peak_bytes / MEBIBYTE)


def _one_row(
    settings: Settings, table: Table, system: System, mount: Mount, row: WorkloadRow, done: dict[str, int]
) -> None:
    """Run one workload; *done* gets how much of it there is, for the rows that use it."""
    shown = row.key in table.rows
    began = time.monotonic()
    try:
        if missing := [need for need in row.needs if need not in done]:
            raise tasks.TaskFailed(f"needs {missing[0]}, which failed")
        parameters = dict(row.parameters)
        if row.counted:
            parameters["count"] = done[row.counted]
        mount.settle()
        outcome = tasks.run(
            row.workload, [mount.path], settings.cap_s, parameters, before=settings.cool if row.cold else _nothing
        )
        if not outcome.amount:
            raise tasks.TaskFailed("did nothing within the time cap")
    except FAILURES as error:
        settings.say(f"  {row.title}: FAILED: {error}")
        if shown:
            table.fail(row.key, system.key, str(error))
        return
    done[row.key] = int(outcome.amount)
    if shown:
        figure = row.figure(outcome.amount, outcome.seconds)
        table.add(row.key, system.key, figure, capped=outcome.capped)
        mark = "*" if outcome.capped else ""
        took = time.monotonic() - began
        settings.say(f"  {row.title}: {figure:,.4g}{mark} {row.unit}   ({took:.1f} s with preparation)")


def _nothing() -> None:
    pass


def folders(mount: Mount, count: int) -> list[Path]:
    """*count* new directories in a mount, for workers side by side."""
    made = [mount.path / f"worker-{at}" for at in range(count)]
    for path in made:
        path.mkdir()
    return made
