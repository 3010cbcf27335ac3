"""How one run of the benchmark is to be done, and what every section needs for it."""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from scripts.benchmark.results import Table
from scripts.benchmark.rows import Sizes
from scripts.benchmark.systems import System
from scripts.benchmark.tasks import TaskFailed, empty_caches

FAILURES = (TaskFailed, RuntimeError, OSError, subprocess.SubprocessError)
"""What a system, its server or its mount may come to grief with; anything else is a mistake of the benchmark's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Attributes:

    systems: those that run here, in the order of the columns.
    only: keys of the rows of the main table to measure; empty for all.
    cap_s: after so long a cell ends, and is marked.
    parent: where stores, caches and mountpoints are made; None for the usual place of temporary files.
    drop_caches: whether we may empty the kernel's caches; otherwise the cold rows are left out.
    say: gets a line whenever something was measured or failed.
    """

    systems: tuple[System, ...]
    sizes: Sizes
    passes: int
    cap_s: float
    only: tuple[str, ...]
    parent: Path | None
    drop_caches: bool
    say: Callable[[str], None]

    def system(self, key: str) -> System | None:
        """The system of that name, if it takes part."""
        return next((system for system in self.systems if system.key == key), None)

    def cool(self) -> None:
        """Empty the kernel's caches, if we may."""
        if self.drop_caches:
            empty_caches()

    @contextmanager
    def failures_noted(self, table: Table, column: str, *rows: str) -> Iterator[None]:
        """Turn a failure of what is measured into failed cells of *rows*, and go on."""
        try:
            yield
        except FAILURES as error:
            text = str(error) or type(error).__name__
            self.say(f"  {column}: FAILED: {text}")
            for row in rows:
                table.fail(row, column, text)
