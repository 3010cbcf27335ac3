"""What a row of a table is, and the rows of the main table with the workloads behind them.

A row's figure is a rate (more is better) or a time or amount (less is better); `figure` makes it of what a worker
counted. Sizes come in two sets: the ones the requirements are meant for, and small ones that only prove that
everything runs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

MEBIBYTE = 1024 * 1024
PAGE = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of a table.

    Attributes:
        key: its name on the command line and in JSON.
        per_unit: how many of the worker's bytes or operations are one of *unit*.
        less_is_better: the figure is a time or an amount, not a rate.
    """

    key: str
    title: str
    unit: str
    per_unit: float = 1.0
    less_is_better: bool = False

    def rate(self, amount: float, seconds: float) -> float:
        """The figure for *amount* done in *seconds*, of a row that is a rate."""
        return amount / self.per_unit / seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadRow(Row):
    """A row that one run of a worker's workload fills.

    Attributes:
        workload: the function of worker.py.
        parameters: its arguments.
        needs: keys of earlier rows whose files it uses; `counted` is the one that says how many there are.
        cold: the kernel's caches are emptied before it.
        milliseconds: the figure is the mean time of one operation instead of a rate.
    """

    workload: str
    parameters: Mapping[str, object] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    counted: str = ""
    cold: bool = False
    milliseconds: bool = False

    def figure(self, amount: float, seconds: float) -> float:
        """The figure for *amount* done in *seconds*."""
        return seconds * 1000 / amount if self.milliseconds else self.rate(amount, seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much every measurement moves.

    `name` tells in the report which set it was, `rest_s` is how long loops run, `scale` how many files each collection
    has.
    """

    name: str
    large_bytes: int
    paged_bytes: int
    random_operations: int
    files: int
    syncs: int
    copied_files: int
    inserted_bytes: int
    remote_bytes: int
    first_files: int
    uploading_bytes: int
    rest_s: float
    scale: tuple[int, ...]
    budget_megabytes: int


FULL = Sizes(
    name="full",
    large_bytes=512 * MEBIBYTE,
    paged_bytes=256 * MEBIBYTE,
    random_operations=20_000,
    files=3000,
    syncs=300,
    copied_files=2000,
    inserted_bytes=256 * MEBIBYTE,
    remote_bytes=256 * MEBIBYTE,
    first_files=20,
    uploading_bytes=512 * MEBIBYTE,
    rest_s=5.0,
    scale=(1_000, 10_000, 100_000, 1_000_000),
    budget_megabytes=8000,
)
QUICK = Sizes(
    name="quick",
    large_bytes=32 * MEBIBYTE,
    paged_bytes=8 * MEBIBYTE,
    random_operations=1000,
    files=200,
    syncs=30,
    copied_files=100,
    inserted_bytes=32 * MEBIBYTE,
    remote_bytes=32 * MEBIBYTE,
    first_files=5,
    uploading_bytes=64 * MEBIBYTE,
    rest_s=0.5,
    scale=(100, 1_000),
    budget_megabytes=1000,
)

MEMORY = Row(key="memory", title="peak resident memory over all of it", unit="MiB", less_is_better=True)


def table_rows(sizes: Sizes) -> tuple[WorkloadRow, ...]:
    """The main table, in the order in which the workloads run: each finds what those before it left."""
    return (*_stream_rows(sizes), *_file_rows(sizes), *_tree_rows(sizes))


def chosen(rows: tuple[WorkloadRow, ...], only: tuple[str, ...]) -> tuple[WorkloadRow, ...]:
    """The rows to run so that those in *only* (all when empty) can be measured."""
    by_key = {row.key: row for row in rows}
    wanted: set[str] = set()
    todo = list(only or by_key)
    while todo:
        key = todo.pop()
        wanted.add(key)
        todo += by_key[key].needs
    return tuple(row for row in rows if row.key in wanted)


def _stream_rows(sizes: Sizes) -> tuple[WorkloadRow, ...]:
    large = "large"
    return (
        WorkloadRow(
            key="write-1m",
            title="sequential write, 1 MiB, fsync",
            unit="MiB/s",
            per_unit=MEBIBYTE,
            workload="write_file",
            parameters={"name": large, "size_bytes": sizes.large_bytes, "piece_bytes": MEBIBYTE},
        ),
        WorkloadRow(
            key="write-4k",
            title="sequential write, 4 KiB, fsync",
            unit="MiB/s",
            per_unit=MEBIBYTE,
            workload="write_file",
            parameters={"name": "paged", "size_bytes": sizes.paged_bytes, "piece_bytes": PAGE},
        ),
        WorkloadRow(
            key="read",
            title="sequential read, cold kernel cache",
            unit="MiB/s",
            per_unit=MEBIBYTE,
            workload="read_file",
            parameters={"name": large},
            needs=("write-1m",),
            cold=True,
        ),
        WorkloadRow(
            key="read-random",
            title="random read 4 KiB, cold kernel cache",
            unit="op/s",
            workload="read_random",
            parameters={"name": large, "count": sizes.random_operations},
            needs=("write-1m",),
            cold=True,
        ),
        WorkloadRow(
            key="write-random",
            title="random write 4 KiB, fsync at end",
            unit="op/s",
            workload="write_random",
            parameters={"name": large, "count": sizes.random_operations},
            needs=("write-1m",),
        ),
    )


def _file_rows(sizes: Sizes) -> tuple[WorkloadRow, ...]:
    files = {"name": "files"}
    return (
        WorkloadRow(
            key="create",
            title="create 4 KiB files",
            unit="op/s",
            workload="create",
            parameters={**files, "count": sizes.files, "size_bytes": PAGE},
        ),
        WorkloadRow(
            key="create-empty",
            title="create empty files",
            unit="op/s",
            workload="create",
            parameters={"name": "empty", "count": sizes.files, "size_bytes": 0},
        ),
        WorkloadRow(
            key="stat",
            title="stat, cold",
            unit="op/s",
            workload="stat_files",
            parameters=files,
            needs=("create",),
            counted="create",
            cold=True,
        ),
        WorkloadRow(
            key="scan",
            title="scandir + stat, cold",
            unit="op/s",
            workload="scan",
            parameters=files,
            needs=("create",),
            cold=True,
        ),
        WorkloadRow(
            key="open-read-close",
            title="open, read, close 4 KiB, cold",
            unit="op/s",
            workload="open_read_close",
            parameters={**files, "size_bytes": PAGE},
            needs=("create",),
            counted="create",
            cold=True,
        ),
        WorkloadRow(
            key="rename",
            title="rename",
            unit="op/s",
            workload="rename",
            parameters={"name": "empty"},
            needs=("create-empty",),
            counted="create-empty",
        ),
        WorkloadRow(
            key="unlink",
            title="unlink",
            unit="op/s",
            workload="unlink",
            parameters=files,
            needs=("create",),
            counted="create",
        ),
    )


def _tree_rows(sizes: Sizes) -> tuple[WorkloadRow, ...]:
    return (
        WorkloadRow(
            key="mkdir",
            title="mkdir, nested",
            unit="op/s",
            workload="mkdir_nested",
            parameters={"name": "nested", "count": sizes.files},
        ),
        WorkloadRow(
            key="tar",
            title="tar -x, small files",
            unit="files/s",
            workload="extract",
            parameters={"name": "extracted", "count": sizes.files},
        ),
        WorkloadRow(
            key="rm",
            title="rm -r of that tree",
            unit="op/s",
            workload="remove_tree",
            parameters={"name": "extracted"},
            needs=("tar",),
        ),
        WorkloadRow(
            key="fsync",
            title="write 4 KiB + fsync",
            unit="ms",
            less_is_better=True,
            milliseconds=True,
            workload="write_fsync",
            parameters={"name": "synced", "count": sizes.syncs},
        ),
    )
