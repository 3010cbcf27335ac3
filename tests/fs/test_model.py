"""Random operations on the file system and on a model of POSIX, with everything that goes on behind mixed in.

Sealing, commits, checkpoints, uploads, eviction, restarts and kills come between the operations and into them.
`SYNCER_TEST_LONG=1` plays many more.
"""

import shutil
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import trio
import trio.testing

from syncer.backends.memory import MemoryBackend
from syncer.engine import Settings
from tests.support.core_check import check_engine, check_remote, check_sealed, check_stopped
from tests.support.core_data import fast_folder
from tests.support.core_driver import Driver, Step
from tests.support.core_scale import Scale, real_scale, small_scale
from tests.support.core_steps import generate, shrink
from tests.support.core_world import NEVER_S, Complaints, open_world, threads_as_awaits
from tests.support.long_form import LONG

BUDGET_BYTES = 400_000_000


def play(steps: Sequence[Step], scale: Scale) -> None:
    """Play *steps* in an empty file system, in virtual time, and check everything at the end."""
    folder = fast_folder()
    complaints = Complaints()
    try:
        with threads_as_awaits(), complaints.listening():
            clock = trio.testing.MockClock(autojump_threshold=0)
            killed_inside = trio.run(_play, folder, list(steps), scale, clock=clock)
    finally:
        shutil.rmtree(folder)
    # A kill between the record of a fetched block and the file's last rename: the one thing that is said aloud.
    gone = [line for line in complaints.lines if "damaged or gone; it is fetched again" in line]
    assert len(gone) <= killed_inside and len(gone) == len(complaints.lines), complaints.lines


async def _play(folder: Path, steps: list[Step], scale: Scale) -> int:
    backend = MemoryBackend()
    settings = Settings(
        budget_bytes=BUDGET_BYTES,
        snapshot_interval_s=NEVER_S,
        upload_delay_s=0.0,
        read_ahead_bytes=scale.read_ahead_bytes,
    )
    async with open_world(folder, backend, settings) as world:
        driver = Driver(world, scale)
        await driver.play(steps)
        await driver.compare()
        await world.settle()
        check_engine(world.engine, world.data, driver.in_use())
        await world.engine.sealer.seal_everything()
        check_sealed(world.meta)
        await driver.compare()
        check_remote(world.meta, backend)
    check_stopped(world.data)
    return world.killed_inside


def search(scale: Scale, examples: int, length: int) -> None:
    """Play the sequences of *examples* seeds; the first that fails is made short and shown.

    A failure is one line to keep: `play([...], scale)` in a test of its own.
    """
    for seed in range(examples * 25 if LONG else examples // 2):
        steps = generate(seed, length)
        failure = outcome(steps, scale)
        if failure is not None:
            report(seed, steps, scale, failure)


def report(seed: int, steps: Sequence[Step], scale: Scale, failure: BaseException) -> NoReturn:
    short = shrink(steps, lambda fewer: same(outcome(fewer, scale), failure))
    lines = "\n".join(f"    {step}," for step in short)
    raise AssertionError(f"seed {seed} fails with {failure!r}:\n[\n{lines}\n]") from outcome(short, scale)


def outcome(steps: Sequence[Step], scale: Scale) -> BaseException | None:
    """What playing *steps* ends with."""
    try:
        play(steps, scale)
    except (Exception, BaseExceptionGroup) as failure:  # noqa: BLE001 - whatever it is, it is what we look for
        while isinstance(failure, BaseExceptionGroup):
            failure = failure.exceptions[0]
        return failure
    return None


def same(one: BaseException | None, other: BaseException) -> bool:
    """Whether two failures come from the same line."""
    return one is not None and _origin(one) == _origin(other)


def _origin(failure: BaseException) -> tuple[type, object]:
    frames = traceback.extract_tb(failure.__traceback__)
    return type(failure), (frames[-1].filename, frames[-1].lineno) if frames else None


def test_with_small_sizes() -> None:
    with small_scale() as scale:
        search(scale, examples=150, length=60)


def test_with_real_sizes() -> None:
    search(real_scale(), examples=20, length=60)


def test_an_empty_file_that_is_truncated_has_a_new_time() -> None:
    steps: list[Step] = [("create", 0, 2, 0), ("create", 0, 3, 0), ("utimens", 1, 10**9), ("open", 0, True)]
    with small_scale() as scale:
        play(steps, scale)
        play([*steps, ("utimens", 2, 10**9), ("open", 1, True)], scale)
