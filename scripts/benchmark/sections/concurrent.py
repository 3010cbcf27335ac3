"""Eight processes at once against one that does as much alone: nobody may wait for a crowd."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from scripts.benchmark import tasks
from scripts.benchmark.main_table import folders
from scripts.benchmark.results import Column, Table
from scripts.benchmark.rows import MEBIBYTE, PAGE, Row, Sizes
from scripts.benchmark.settings import Settings
from scripts.benchmark.systems import Mount, System, scratch

KEY = "concurrent"
PROCESSES = 8


@dataclass(frozen=True, slots=True)
class Work:
    """A workload whose parameters `share` makes for one of so many processes."""

    key: str
    title: str
    unit: str
    per_unit: float
    workload: str
    cold: bool

    def share(self, sizes: Sizes, processes: int) -> Mapping[str, object]:
        files: dict[str, object] = {"name": "files", "count": sizes.files // processes}
        parameters: dict[str, dict[str, object]] = {
            "write": {"name": "large", "size_bytes": sizes.large_bytes // processes, "piece_bytes": MEBIBYTE},
            "read": {"name": "large"},
            "create": {**files, "size_bytes": PAGE},
            "stat": files,
        }
        return parameters[self.key]


WORK = (
    Work("write", "sequential write, 1 MiB, fsync", "MiB/s", MEBIBYTE, "write_file", False),
    Work("read", "sequential read, cold kernel cache", "MiB/s", MEBIBYTE, "read_file", True),
    Work("create", "create 4 KiB files", "op/s", 1, "create", False),
    Work("stat", "stat, cold", "op/s", 1, "stat_files", True),
)


def measure(settings: Settings) -> Table:
    """Per pass and system: every workload by one process, then the same amount shared by eight."""
    table = Table(KEY, f"{PROCESSES} processes at once against one")
    work = [one for one in WORK if settings.drop_caches or not one.cold]
    table.announce(
        [row for one in work for row in _rows(one)], [Column(one.key, one.title) for one in settings.systems]
    )
    for number in range(settings.passes):
        for system in settings.systems:
            settings.say(f"{KEY}, pass {number + 1} of {settings.passes}: {system.title}")
            with (
                settings.failures_noted(table, system.key, *(f"{one.key}-ratio" for one in work)),
                scratch(settings.parent) as folder,
                system.mounted(folder) as mount,
            ):
                _one_pass(settings, table, system, mount, work)
    return table


def _rows(work: Work) -> tuple[Row, ...]:
    return (
        Row(key=f"{work.key}-one", title=f"{work.title}: one", unit=work.unit, per_unit=work.per_unit),
        Row(key=f"{work.key}-eight", title=f"{work.title}: {PROCESSES}", unit=work.unit, per_unit=work.per_unit),
        Row(key=f"{work.key}-ratio", title=f"{work.title}: {PROCESSES} / one", unit="x"),
    )


def _one_pass(settings: Settings, table: Table, system: System, mount: Mount, work: list[Work]) -> None:
    eight = folders(mount, PROCESSES)
    alone = mount.path / "alone"
    alone.mkdir()
    for one in work:
        single = _figure(settings, table, system, mount, one, [alone], "one")
        crowd = _figure(settings, table, system, mount, one, eight, "eight")
        table.add(f"{one.key}-ratio", system.key, crowd / single)
        settings.say(f"  {one.title}: one {single:,.4g}, {PROCESSES} {crowd:,.4g} {one.unit}")


def _figure(
    settings: Settings, table: Table, system: System, mount: Mount, work: Work, places: list[Path], how: str
) -> float:
    mount.settle()
    cool = settings.cool if work.cold else lambda: None
    parameters = work.share(settings.sizes, len(places))
    outcome = tasks.run(work.workload, places, settings.cap_s, parameters, before=cool)
    row = f"{work.key}-{how}"
    figure = table.rows[row].rate(outcome.amount, outcome.seconds)
    table.add(row, system.key, figure, capped=outcome.capped)
    return figure
