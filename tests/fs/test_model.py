"""Random operations on the file system and on a model of POSIX, with everything that goes on behind mixed in.

Sealing, commits, checkpoints, uploads, eviction, restarts and kills come between the operations and into them.
`SYNCER_TEST_LONG=1` plays many more.
"""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from syncer.backends.memory import MemoryBackend
from syncer.engine import Settings
from tests.support.core_check import check_engine, check_remote, check_stopped
from tests.support.core_data import fast_folder
from tests.support.core_driver import Driver, Step
from tests.support.core_scale import Scale, real_scale, small_scale
from tests.support.core_world import NEVER_S, Complaints, open_world, threads_as_awaits

LONG = bool(os.environ.get("SYNCER_TEST_LONG"))
BUDGET_BYTES = 400_000_000

few = st.integers(0, 5)
border = st.integers(0, 7)
delta = st.integers(-2, 2) | st.integers(-300, 300)
size_arguments = (border, delta)


def step(name: str, *arguments: st.SearchStrategy[object]) -> st.SearchStrategy[Step]:
    return st.tuples(st.just(name), *arguments)


write = step("write", few, st.integers(0, 2), border, border, delta, st.integers(0, 50))
NAMES = [
    step("create", few, few, st.integers(0, 4)),
    step("create", few, few, st.just(0)),
    step("link", few, few, few),
    step("unlink", few),
    step("rmdir", few),
    step("rename", few, few, few, st.booleans()),
    step("exchange", few, few),
    step("scan", few, st.integers(1, 3)),
]
BYTES = [
    write,
    write,
    write,
    step("truncate", few, *size_arguments),
    step("read", few, *size_arguments),
    step("open", few, st.booleans()),
    step("close", few),
    step("look", few),
    step("forget", few),
    step("fsync", few),
]
ATTRIBUTES = [
    step("chmod", few, st.sampled_from([0o600, 0o2775, 0o4755, 0])),
    step("chown", few, few, few),
    step("utimens", few, st.integers(-(10**18), 4 * 10**18)),
    step("setxattr", few, few, st.integers(0, 300)),
    step("removexattr", few, few),
]
BEHIND = [
    step("commit"),
    step("checkpoint"),
    step("seal"),
    step("seal_beside"),
    step("yield", st.integers(1, 4)),
    step("wait", st.sampled_from([0.0, 0.15, 3.0])),
    step("evict", st.integers(1, 3)),
    step("restart"),
    step("crash", st.just(0)),
    step("crash", st.integers(1, 40)),
]
steps = st.lists(st.one_of(*NAMES, *BYTES, *ATTRIBUTES, *BEHIND), min_size=15, max_size=90)


def play(steps: Sequence[Step], scale: Scale) -> None:
    """Play *steps* in an empty file system, in virtual time, and check everything at the end."""
    folder = fast_folder()
    complaints = Complaints()
    try:
        with threads_as_awaits(), complaints.listening():
            trio.run(_play, folder, list(steps), scale, clock=trio.testing.MockClock(autojump_threshold=0))
    finally:
        shutil.rmtree(folder)
    assert not complaints.lines, complaints.lines


async def _play(folder: Path, steps: list[Step], scale: Scale) -> None:
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
        await driver.compare()
        check_remote(world.meta, backend)
    check_stopped(world.data)


def given_steps(examples: int) -> "settings":
    return settings(
        max_examples=examples * (50 if LONG else 1),
        deadline=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )


@given(steps)
@given_steps(150)
def test_with_small_sizes(steps: list[Step]) -> None:
    with small_scale() as scale:
        play(steps, scale)


@given(steps)
@given_steps(25)
def test_with_real_sizes(steps: list[Step]) -> None:
    play(steps, real_scale())
