"""A DATA with a collection of its own, one a column, for the sections that compare small collections with large."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from scripts.benchmark import syncer_mount, tasks
from scripts.benchmark.results import Column
from scripts.benchmark.settings import Settings
from scripts.benchmark.systems import Mount
from syncer.errors import SyncerError


@dataclass(frozen=True, slots=True)
class Place:
    """The DATA of a column, and what belongs to it, below *folder*. The column's size says how many files it has."""

    column: Column
    folder: Path

    @property
    def count(self) -> int:
        return self.column.size

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def remote(self) -> Path:
        return self.folder / "remote"

    @property
    def mountpoint(self) -> Path:
        return self.folder / "mnt"

    def mounted(self, settings: Settings) -> contextlib.AbstractContextManager[Mount]:
        return syncer_mount.mounted(self.folder, str(self.remote), settings.sizes.budget_megabytes)


@contextlib.contextmanager
def errors_as_failures() -> Iterator[None]:
    """What syncer itself refuses is a failed measurement."""
    try:
        yield
    except SyncerError as error:
        raise tasks.TaskFailed(str(error)) from error
