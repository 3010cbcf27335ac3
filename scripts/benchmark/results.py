"""What was measured: every figure of every pass, and the medians that the reports show. JSON in and out."""

import json
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from scripts.benchmark.rows import Row


@dataclass(slots=True)
class Cell:
    """One row of one column, a figure a pass. `capped`: the time cap ended one; `errors`: of passes that failed."""

    values: list[float] = field(default_factory=list)
    capped: bool = False
    errors: list[str] = field(default_factory=list)

    @property
    def median(self) -> float | None:
        return statistics.median(self.values) if self.values else None


@dataclass(frozen=True, slots=True)
class Column:
    """What a table compares: a system, a way of using it, a remote; or sizes, where `size` says how large each is."""

    key: str
    title: str
    size: int = 0


@dataclass(slots=True)
class Table:
    """One section of the report. Rows and columns appear in the order in which they were announced."""

    key: str
    title: str
    notes: list[str] = field(default_factory=list)
    rows: dict[str, Row] = field(default_factory=dict)
    columns: dict[str, Column] = field(default_factory=dict)
    cells: dict[tuple[str, str], Cell] = field(default_factory=dict)

    def announce(self, rows: Iterable[Row], columns: Iterable[Column]) -> None:
        """Say what the table is going to hold."""
        self.rows.update({row.key: row for row in rows})
        self.columns.update({column.key: column for column in columns})

    def cell(self, row: str, column: str) -> Cell:
        """The cell, made when it is asked for first. Raises: KeyError: it was not announced."""
        return self.cells.setdefault((self.rows[row].key, self.columns[column].key), Cell())

    def add(self, row: str, column: str, value: float, *, capped: bool = False) -> None:
        """Note the figure of one pass."""
        cell = self.cell(row, column)
        cell.values.append(value)
        cell.capped |= capped

    def fail(self, row: str, column: str, error: str) -> None:
        """Note that a pass failed."""
        self.cell(row, column).errors.append(error)

    def median(self, row: str, column: str) -> float | None:
        """None when it was not measured."""
        cell = self.cells.get((row, column))
        return cell.median if cell else None


@dataclass(slots=True)
class Report:
    """One run of the benchmark. `conditions` says on what machine, with what versions and settings."""

    conditions: dict[str, str]
    tables: dict[str, Table] = field(default_factory=dict)

    def table(self, key: str) -> Table | None:
        return self.tables.get(key)


def save(report: Report, path: Path) -> None:
    """Write everything that was measured as JSON."""
    document = {
        "conditions": report.conditions,
        "tables": [_table_document(table) for table in report.tables.values()],
    }
    path.write_text(json.dumps(document, indent=1) + "\n")


def _table_document(table: Table) -> dict[str, object]:
    return {
        "key": table.key,
        "title": table.title,
        "notes": table.notes,
        "rows": [
            {"key": row.key, "title": row.title, "unit": row.unit, "less_is_better": row.less_is_better}
            for row in table.rows.values()
        ],
        "columns": [
            {"key": column.key, "title": column.title, "size": column.size} for column in table.columns.values()
        ],
        "cells": [
            {
                "row": row,
                "column": column,
                "median": cell.median,
                "min": min(cell.values, default=None),
                "max": max(cell.values, default=None),
                "values": cell.values,
                "capped": cell.capped,
                "errors": cell.errors,
            }
            for (row, column), cell in table.cells.items()
        ],
    }


def load(path: Path) -> Report:
    """Read what `save` wrote, so that a report can be drawn again, or several runs joined."""
    document = json.loads(path.read_text())
    report = Report(document["conditions"])
    for entry in document["tables"]:
        table = Table(entry["key"], entry["title"], entry["notes"])
        table.announce((Row(**row) for row in entry["rows"]), (Column(**column) for column in entry["columns"]))
        for cell in entry["cells"]:
            table.cells[cell["row"], cell["column"]] = Cell(cell["values"], cell["capped"], cell["errors"])
        report.tables[table.key] = table
    return report
