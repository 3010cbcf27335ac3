"""What a snapshot costs when one file has changed, and what others feel of it: it should not grow with the collection.

Each column is a DATA of its own, made straight through the file system layer: so many files in directories of a
hundred, and one directory of a tenth as many. A file is touched, and a snapshot taken, while a loop looks up names.
"""

import os
import random
import time
from collections.abc import Callable
from pathlib import Path

from scripts.benchmark import collection, tasks
from scripts.benchmark.collection import CROWD, FILES, PER_DIRECTORY
from scripts.benchmark.place import Place, errors_as_failures
from scripts.benchmark.results import Column, Table
from scripts.benchmark.rows import Row
from scripts.benchmark.settings import Settings
from scripts.benchmark.systems import SETTLE_S, Mount, scratch
from syncer.control import Client

KEY = "publish"
TRIES = 5
"""So many files are touched one after the other in one pass; the worst counts."""
SAMPLES_MAX = 500_000
KIBIBYTE = 1024
LOOK_UPS = {"name": FILES, "count": SAMPLES_MAX}
ROWS = (
    Row(key="touch", title="a file touched, then a snapshot", unit="ms", less_is_better=True),
    Row(key="touch-bytes", title="what that sends", unit="KiB", per_unit=KIBIBYTE, less_is_better=True),
    Row(key="crowd", title="a file touched in the one directory, then a snapshot", unit="ms", less_is_better=True),
    Row(key="crowd-bytes", title="what that sends", unit="KiB", per_unit=KIBIBYTE, less_is_better=True),
    Row(key="stall-rest", title="longest look-up, at rest", unit="ms", less_is_better=True),
    Row(key="stall", title="longest look-up while these snapshots were taken", unit="ms", less_is_better=True),
)


def measure(settings: Settings) -> Table:
    """A column for a small collection, and one for the largest."""
    table = Table(KEY, "A snapshot after one change")
    table.notes.append(
        f"The worst of {TRIES} in a pass. Each column: so many files, and a directory of a tenth as many."
    )
    sizes = settings.sizes.scale
    table.announce(ROWS, [_column("small", sizes[0]), _column("whole", sizes[-1])])
    for column in table.columns.values():
        with settings.failures_noted(table, column.key, *table.rows), scratch(settings.parent) as folder:
            place = Place(column, folder)
            settings.say(f"{KEY}: {column.title} are made")
            _make(settings, place)
            with place.mounted(settings) as mount:
                for number in range(settings.passes):
                    settings.say(f"{KEY}, pass {number + 1} of {settings.passes}: {column.title}")
                    _one_pass(settings, table, place, mount)
    return table


def _column(key: str, count: int) -> Column:
    return Column(key, f"{count:,} files", count)


def _make(settings: Settings, place: Place) -> None:
    with place.mounted(settings):
        pass
    (place.folder / "output").unlink()
    with errors_as_failures():
        collection.make_files(place.data, place.count)
        collection.make_crowd(place.data, place.count // 10)


def _one_pass(settings: Settings, table: Table, place: Place, mount: Mount) -> None:
    mount.settle()
    rest = tasks.run("stat_until_told", [mount.path], settings.sizes.rest_s, LOOK_UPS)
    with tasks.ready("stat_until_told", [mount.path], SETTLE_S, LOOK_UPS) as (task,), errors_as_failures():
        task.go()
        try:
            found = {
                "touch": _snapshots(place, lambda: _anywhere(mount.path, place.count)),
                "crowd": _snapshots(place, lambda: _crowded(mount.path, place.count // 10)),
            }
        finally:
            task.go()
        busy = tasks.joined([task.result()])
    for row, (seconds, sent) in found.items():
        table.add(row, place.column.key, seconds * 1000)
        table.add(f"{row}-bytes", place.column.key, sent / KIBIBYTE)
        settings.say(f"  {table.rows[row].title}: {seconds * 1000:,.1f} ms, {sent:,} bytes")
    for row, outcome in (("stall-rest", rest), ("stall", busy)):
        longest = max(outcome.samples_s) * 1000
        table.add(row, place.column.key, longest)
        settings.say(f"  {table.rows[row].title}: {longest:,.2f} ms of {len(outcome.samples_s):,}")


def _anywhere(top: Path, files: int) -> Path:
    number = random.randrange(files)
    return top / FILES / f"{number // PER_DIRECTORY:06d}" / f"{number % PER_DIRECTORY:02d}"


def _crowded(top: Path, files: int) -> Path:
    return top / CROWD / f"{random.randrange(files):06d}"


def _snapshots(place: Place, chosen: Callable[[], Path]) -> tuple[float, int]:
    """The longest time that a snapshot took after a file was touched, in seconds, and the most bytes it sent."""
    longest, most = 0.0, 0
    with Client.connect(place.data) as client:
        for _ in range(TRIES):
            os.utime(chosen())
            before = _stored_bytes(place.remote)
            began = time.monotonic()
            client.travel("snapshot", {})
            longest = max(longest, time.monotonic() - began)
            most = max(most, _stored_bytes(place.remote) - before)
    return longest, most


def _stored_bytes(remote: Path) -> int:
    return sum(path.stat().st_size for path in remote.rglob("*") if path.is_file())
