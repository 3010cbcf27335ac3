"""The report in Markdown: the tables with their medians, the verdict on every requirement, and the conditions."""

from pathlib import Path

from scripts.benchmark.requirements import PEERS, Verdict, judge
from scripts.benchmark.results import Cell, Report, Table
from scripts.benchmark.rows import Row

BEGIN = "<!-- figures: written by scripts/bench, from here -->"
END = "<!-- figures: to here -->"
NOT_MEASURED = "-"
LEGEND = "`*` the time cap ended it; `FAILED`: the JSON file says why; `-` not measured. Bold: the best of the rivals."
RIVALS = ("syncer", "syncer-writeback", *PEERS, "juicefs-s3", "juicefs-s3-writeback")
"""The columns that do the same job, of which one is the best."""


def markdown(report: Report) -> str:
    """Everything, as it goes into a file."""
    parts = [_conditions(report)]
    parts += [_section(table) for table in report.tables.values()]
    if verdicts := judge(report):
        parts.append(_verdicts(report, verdicts))
    if any("syncer" in table.columns and len(table.columns) > 1 for table in report.tables.values()):
        parts.append(_lost(report))
    return "\n\n".join(parts) + "\n"


def write(report: Report, path: Path) -> None:
    """Write the report to *path*: between the marker lines of a page that has them, else as the whole file."""
    text = markdown(report)
    before, begin, rest = path.read_text().partition(BEGIN) if path.exists() else ("", "", "")
    _, end, after = rest.partition(END)
    path.write_text(f"{before}{begin}\n\n{text}\n{end}{after}" if end else text)


def figure(value: float) -> str:
    """Three or four digits that matter, whatever the size."""
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def best_of(table: Table, row: Row, *, without: tuple[str, ...] = ()) -> str | None:
    """The column with the best median of *row* among rivals; None when there are not at least two to choose from, or
    none is left *without* those.
    """
    medians = {column: table.median(row.key, column) for column in table.columns if column in RIVALS}
    measured = {column: value for column, value in medians.items() if value is not None}
    if len(measured) < 2:
        return None
    measured = {column: value for column, value in measured.items() if column not in without}
    if not measured:
        return None
    return (min if row.less_is_better else max)(measured, key=lambda column: measured[column])


def _conditions(report: Report) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in report.conditions.items())


def _section(table: Table) -> str:
    lines = [f"### {table.title}", ""]
    for note in table.notes:
        lines += [note, ""]
    lines.append("| workload | unit | " + " | ".join(column.title for column in table.columns.values()) + " |")
    lines.append("|---|---|" + "---:|" * len(table.columns))
    for row in table.rows.values():
        best = best_of(table, row)
        cells = [_text(table.cells.get((row.key, column)), column == best) for column in table.columns]
        lines.append(f"| {row.title} | {row.unit} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", LEGEND])


def _text(cell: Cell | None, best: bool) -> str:
    if cell is None or (cell.median is None and not cell.errors):
        return NOT_MEASURED
    if cell.median is None:
        return "FAILED"
    text = f"{figure(cell.median)}{'*' if cell.capped else ''}"
    return f"**{text}**" if best else text


def _verdicts(report: Report, verdicts: list[Verdict]) -> str:
    lines = ["### Requirements", "", "| what | compared with | required | reached | |", "|---|---|---:|---:|---|"]
    for verdict in verdicts:
        requirement = verdict.requirement
        table = report.tables[requirement.table]
        column = table.columns.get(requirement.column)
        what = table.rows[requirement.row].title
        prefix = "" if requirement.table == "table" else f"{table.title}: "
        whose = "" if requirement.column == "syncer" else f" ({column.title if column else requirement.column})"
        sign = "≤" if verdict.at_most else "≥"
        limit = f"{requirement.limit:.4g}" if requirement.limit < 10_000 else f"{requirement.limit:.0f}"
        reached = NOT_MEASURED if verdict.ratio is None else figure(verdict.ratio)
        against = _against(table, verdict)
        lines.append(f"| {prefix}{what}{whose} | {against} | {sign} {limit} | {reached} | {_mark(verdict)} |")
    met = sum(verdict.passed is True for verdict in verdicts)
    missed = sum(verdict.passed is False for verdict in verdicts)
    lines += ["", f"{met} met, {missed} missed, {len(verdicts) - met - missed} not measured."]
    return "\n".join(lines)


def _lost(report: Report) -> str:
    """The rows in which a peer does better than syncer with default options; ratios of a system to itself aside."""
    lines = ["### Where a peer is better", "", "| what | unit | peer | it | syncer |", "|---|---|---|---:|---:|"]
    for table in report.tables.values():
        for row in (row for row in table.rows.values() if row.unit != "x"):
            ours = table.median(row.key, "syncer")
            best = best_of(table, row, without=("syncer", "syncer-writeback"))
            theirs = table.median(row.key, best) if best else None
            if best is None or ours is None or theirs is None:
                continue
            if theirs < ours if row.less_is_better else theirs > ours:
                prefix = "" if table.key == "table" else f"{table.title}: "
                figures = f"{figure(theirs)} | {figure(ours)}"
                lines.append(f"| {prefix}{row.title} | {row.unit} | {table.columns[best].title} | {figures} |")
    if len(lines) == 4:
        return f"{lines[0]}\n\nNowhere in this run."
    return "\n".join(lines)


def _against(table: Table, verdict: Verdict) -> str:
    """Whom the figure was compared with: the best of those that could be, or all when none was measured."""
    keys = [verdict.best] if verdict.best else verdict.requirement.against
    titles = [table.columns[key].title if key in table.columns else key for key in keys]
    return ", ".join(titles) or table.rows[verdict.requirement.row].unit


def _mark(verdict: Verdict) -> str:
    return {True: "pass", False: "**FAIL**", None: "not measured"}[verdict.passed]
