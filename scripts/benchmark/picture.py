"""The report as one PNG: a small chart for each row, a bar for each column, the spread of the passes as a line."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.benchmark.report import RIVALS, figure
from scripts.benchmark.results import Report, Table
from scripts.benchmark.rows import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ACROSS = 4
OURS, THEIRS, LIMIT = "#d1495b", "#6c8ebf", "#b0b0b0"


def draw(report: Report, path: Path) -> None:
    """Write the picture to *path*. Nothing is written when nothing was measured."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    charts = [(table, row) for table in report.tables.values() for row in table.rows.values() if _bars(table, row)]
    if not charts:
        return
    down = math.ceil(len(charts) / ACROSS)
    tallest = max(len(table.columns) for table, _ in charts)
    size = (4.2 * ACROSS, down * (0.9 + 0.27 * tallest))
    drawing, axes = pyplot.subplots(down, ACROSS, figsize=size, squeeze=False, layout="constrained")
    for place in axes.flat[len(charts) :]:
        place.axis("off")
    for place, (table, row) in zip(axes.flat, charts, strict=False):
        _chart(place, table, row)
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


def _colour(table: Table, column: str) -> str:
    if column in RIVALS:
        return OURS if column.startswith("syncer") else THEIRS
    # What else there is bounds the rivals; in a table without them the columns are syncer's own ways.
    return LIMIT if any(other in RIVALS for other in table.columns) else OURS
