"""The report as one PNG: a small chart for each row, a bar for each column, the spread of the passes as a line.

A table whose columns are sizes is one chart instead: what each row costs, against what it costs at the smallest size.
"""

import math
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.benchmark.report import RIVALS, figure
from scripts.benchmark.results import Report, Table
from scripts.benchmark.rows import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ACROSS = 4
LINES_INCHES = 6.0
OURS, THEIRS, LIMIT = "#d1495b", "#6c8ebf", "#b0b0b0"


def draw(report: Report, path: Path) -> None:
    """Write the picture to *path*. Nothing is written when nothing was measured."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    scaled = [table for table in report.tables.values() if lines(table)]
    others = [table for table in report.tables.values() if table not in scaled]
    charts = [(table, row) for table in others for row in table.rows.values() if _bars(table, row)]
    if not charts and not scaled:
        return
    down = math.ceil(len(charts) / ACROSS)
    tallest = max((len(table.columns) for table, _ in charts), default=0)
    heights = [*[0.9 + 0.27 * tallest] * down, *[LINES_INCHES] * len(scaled)]
    drawing = pyplot.figure(figsize=(4.2 * ACROSS, sum(heights)), layout="constrained")
    grid = drawing.add_gridspec(len(heights), ACROSS, height_ratios=heights)
    for at, (table, row) in enumerate(charts):
        _chart(drawing.add_subplot(grid[at // ACROSS, at % ACROSS]), table, row)
    for at, table in enumerate(scaled):
        _cost(drawing.add_subplot(grid[down + at, :]), table)
    drawing.suptitle("syncer (red), peers (blue), what bounds them (grey): medians and spread of the passes")
    drawing.savefig(path, dpi=110)
    pyplot.close(drawing)


def _bars(table: Table, row: Row) -> list[str]:
    return [column for column in table.columns if table.median(row.key, column) is not None]


def _chart(axes: "Axes", table: Table, row: Row) -> None:
    columns = _bars(table, row)
    for at, column in enumerate(columns):
        cell = table.cells[row.key, column]
        median = cell.median
        assert median is not None
        spread = [[median - min(cell.values)], [max(cell.values) - median]]
        axes.barh(at, median, xerr=spread, color=_colour(table, column), ecolor="#303030", height=0.7)
        label = f" {figure(median)}{'*' if cell.capped else ''}"
        axes.text(max(cell.values), at, label, va="center", fontsize=7)
    axes.set_yticks(range(len(columns)), [table.columns[column].title for column in columns], fontsize=7)
    axes.invert_yaxis()
    axes.margins(x=0.2)
    axes.tick_params(axis="x", labelsize=6)
    axes.spines[["top", "right"]].set_visible(False)
    better = "less is better" if row.less_is_better else ""
    axes.set_title(row.title if table.key == "table" else f"{table.title}:\n{row.title}", fontsize=8)
    axes.set_xlabel(", ".join(filter(None, [row.unit, better])), fontsize=7)


def lines(table: Table) -> dict[str, list[tuple[int, float]]]:
    """(size, cost) of each row that was measured at several sizes; the smallest size costs 1."""
    lines = {}
    for row in table.rows.values():
        sized = [(column.size, table.median(row.key, column.key)) for column in table.columns.values() if column.size]
        points = [(size, median) for size, median in sized if median]
        if len(points) > 1:
            first = points[0][1]
            lines[row.title] = [(size, m / first if row.less_is_better else first / m) for size, m in points]
    return lines


def _cost(axes: "Axes", table: Table) -> None:
    for at, (title, points) in enumerate(lines(table).items()):
        axes.plot(*zip(*points, strict=True), label=title, marker="o", linestyle=("-", "--", ":")[at // 10 % 3])
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_title(f"{table.title}: cost of the same work, or memory, against the smallest (flat is best)", fontsize=9)
    axes.set_xlabel("files", fontsize=8)
    axes.set_ylabel("times as much", fontsize=8)
    axes.grid(color="#e0e0e0")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=7)


def _colour(table: Table, column: str) -> str:
    if column in RIVALS:
        return OURS if column.startswith("syncer") else THEIRS
    # What else there is bounds the rivals; in a table without them the columns are syncer's own ways.
    return LIMIT if any(other in RIVALS for other in table.columns) else OURS
