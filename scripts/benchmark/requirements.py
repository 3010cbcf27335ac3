"""What syncer must reach: figures against the best of some peers, against the C passthrough, or against a number."""

from collections.abc import Iterator
from dataclasses import dataclass

from scripts.benchmark.results import Cell, Report

PEERS = ("juicefs", "sshfs", "s3fs", "rclone")


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirement:
    """In a row of a table, *column* divided by the best of *against* (or by 1) is at least, or at most, *limit*.

    Of rows where less is better the best is the smallest, and *limit* is the most; otherwise it is the least.
    """

    row: str
    limit: float
    against: tuple[str, ...] = ()
    table: str = "table"
    column: str = "syncer"


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a requirement was met. `ratio` and `best` (the column compared with) are None when it was not measured."""

    requirement: Requirement
    at_most: bool
    ratio: float | None = None
    best: str | None = None
    failed: bool = False

    @property
    def passed(self) -> bool | None:
        """None: there is nothing to compare. Where syncer failed to do the work, the requirement is not met."""
        if self.ratio is None:
            return False if self.failed else None
        limit = self.requirement.limit
        return self.ratio <= limit if self.at_most else self.ratio >= limit


def _of_scale() -> Iterator[Requirement]:
    """What the largest collection must reach, alone or against a thousandth of it or a hundredth."""
    for row, limit in (("mount", 1.0), ("find", 50_000), ("memory", 300e6 / 2**20), ("meta", 600), ("open", 1.0)):
        yield Requirement(table="scale", column="whole", row=row, limit=limit)
    yield Requirement(table="scale", column="whole", row="stat", limit=1.25, against=("1/1000",))
    for row in ("list", "create", "rename", "unlink"):  # a directory of 100,000 against one of 1,000
        yield Requirement(table="scale", column="whole", row=row, limit=0.8, against=("1/100",))
    for row in ("read-random", "read", "write"):
        yield Requirement(table="scale", column="whole", row=row, limit=0.8, against=("1/1000",))
    for row in ("status", "state", "publish-file", "publish-name", "publish-write", "publish-beside"):
        yield Requirement(table="scale", column="whole", row=row, limit=2.0, against=("1/1000",))


def _against_peers_and_c(row: str, peers: float, c: float | None) -> tuple[Requirement, ...]:
    best = Requirement(row=row, limit=peers, against=PEERS)
    return (best,) if c is None else (best, Requirement(row=row, limit=c, against=("c",)))


REQUIREMENTS: tuple[Requirement, ...] = (
    *_against_peers_and_c("write-1m", 1.0, 0.7),
    # A write that returned survives the death of the daemon: the best of those that promise it too.
    Requirement(row="write-4k", limit=1.3, against=("sshfs", "s3fs", "rclone")),
    Requirement(row="write-4k", limit=2.0, against=("juicefs",), column="syncer-writeback"),
    Requirement(row="write-4k", limit=0.8, against=("c",), column="syncer-writeback"),
    *_against_peers_and_c("read", 1.0, 0.8),
    Requirement(row="read-random", limit=2.0, against=("juicefs", "rclone")),
    Requirement(row="read-random", limit=0.5, against=("c",)),
    *_against_peers_and_c("write-random", 1.0, None),
    *_against_peers_and_c("create", 1.5, 0.4),
    *_against_peers_and_c("create-empty", 1.5, 0.4),
    *_against_peers_and_c("stat", 2.0, 0.7),
    *_against_peers_and_c("scan", 1.5, 0.7),
    *_against_peers_and_c("open-read-close", 2.0, 0.5),
    *_against_peers_and_c("rename", 2.0, 0.3),
    *_against_peers_and_c("unlink", 1.5, 0.3),
    *_against_peers_and_c("mkdir", 1.5, 0.3),
    *_against_peers_and_c("tar", 2.0, 0.3),
    *_against_peers_and_c("rm", 1.0, 0.3),
    Requirement(row="fsync", limit=1.0, against=("juicefs",)),
    Requirement(row="memory", limit=200e6 / 2**20),
    Requirement(table="copy-in", row="rate", limit=10.0, against=("juicefs-s3",)),
    Requirement(table="copy-in", row="objects", limit=10),
    Requirement(table="insert", row="one-byte", limit=2.0),
    Requirement(table="insert", row="header", limit=2.0),
    Requirement(table="insert", row="edit", limit=64),
    Requirement(table="first-byte", row="ssh", limit=1.2, against=("bare",)),
    Requirement(table="first-byte", row="s3", limit=1.2, against=("bare",)),
    Requirement(table="cold-remote", row="ssh", limit=0.8, against=("sshfs",)),
    Requirement(table="cold-remote", row="s3", limit=0.8, against=("boto3",)),
    *(Requirement(table="concurrent", row=f"{row}-ratio", limit=1.0) for row in ("write", "read", "create", "stat")),
    *(
        requirement
        for remote in ("folder", "ssh", "s3")
        for requirement in (
            Requirement(table="uploading", row="read-ratio", limit=0.7, column=remote),
            Requirement(table="uploading", row="stat-busy", limit=5.0, column=remote),
        )
    ),
    *_of_scale(),
    *(Requirement(table="publish", column="whole", row=row, limit=1000) for row in ("touch", "crowd")),
    *(
        Requirement(table="publish", column="whole", row=f"{row}-bytes", limit=200e3 / 2**10)
        for row in ("touch", "crowd")
    ),
    Requirement(table="publish", column="whole", row="stall", limit=50),
    Requirement(table="cutter", row="random", limit=1.5, column="native"),
)


def judge(report: Report) -> list[Verdict]:
    """The verdict on every requirement whose row is in the report."""
    return [
        _judge(report, requirement)
        for requirement in REQUIREMENTS
        if (table := report.tables.get(requirement.table)) and requirement.row in table.rows
    ]


def _judge(report: Report, requirement: Requirement) -> Verdict:
    table = report.tables[requirement.table]
    at_most = table.rows[requirement.row].less_is_better
    cell = table.cells.get((requirement.row, requirement.column), Cell())
    ours = cell.median
    if ours is None:
        return Verdict(requirement, at_most, failed=bool(cell.errors))
    if not requirement.against:
        return Verdict(requirement, at_most, ours)
    theirs = {key: table.median(requirement.row, key) for key in requirement.against}
    measured = {key: value for key, value in theirs.items() if value}
    if not measured:
        return Verdict(requirement, at_most)
    best = (min if at_most else max)(measured, key=lambda key: measured[key])
    return Verdict(requirement, at_most, ours / measured[best], best)
