"""A repair that is killed at any point: the next one finishes, and nothing is worse than without the kill."""

import signal
import subprocess
import sys

import pytest

from tests.check.check_victim import STEPS
from tests.check.damages import LOCAL
from tests.support.check_world import CheckWorld
from tests.support.command import CHECKOUT, environment
from tests.support.long_form import LONG

DAMAGES = (
    "a cycle",
    "a content of a large file",
    "references",
    "a row of no block",
    "an unknown dirty file",
    "a stranger in the cache",
    "the only copy short",
    "no content",
    "a file without a name",
)
"""So that each step has something to do."""


SHORT = ("between two files that are put aside", "in the middle of the rows", "after the commit")


@pytest.mark.parametrize("step", STEPS if LONG else SHORT)
def test_a_repair_that_is_killed_is_finished_by_the_next(world: CheckWorld, step: str) -> None:
    known = {case.name: case for case in LOCAL}
    cases = [known[name] for name in DAMAGES]
    for case in cases:
        case.damage(world)
    held = {path.name: path.read_bytes() for path in (world.data / "dirty").iterdir()}
    command = [sys.executable, "-m", "tests.check.check_victim", str(world.place), step]
    outcome = subprocess.run(command, cwd=CHECKOUT, env=environment(), capture_output=True, timeout=120, check=False)
    assert outcome.returncode == -signal.SIGKILL, (step, outcome.stderr)

    mended = world.check(repair=True, percent=100.0)
    assert not mended.left, mended.left
    aside = {path.name: path.read_bytes() for path in (world.data / "lost+found").iterdir()}
    assert aside["dirty-4711"] == held["4711"], "a file nobody knew is gone"
    assert {"cache-ab-mine", "block-88888"} <= set(aside)
    assert not world.check(percent=100.0).found
    shown = world.read()
    suffered = {path for case in cases for path in case.suffer} | {"/small"}
    assert {path for path, bytes_ in world.files.items() if shown.get(path) != bytes_} <= suffered
    found = [held for path, held in shown.items() if path.startswith("/lost+found/")]
    for path in ("/dir/deep/s0", "/dir/link"):
        assert world.files[path] in [*found, *shown.values()], f"{path} is gone"
    assert not world.check(remote=True, percent=100.0).found
