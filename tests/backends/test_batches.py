"""Calls that wait go together; nobody waits for ever, whoever is cancelled and whatever fails."""

from collections.abc import Sequence

import pytest
import trio
import trio.testing

from syncer.backends.batches import Batches
from syncer.errors import RemoteFull, RemoteUnreachable


class Work:
    """Remembers the batches it was given; each waits for `go` first."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.started = trio.Event()
        self.go = trio.Event()
        self.error: Exception | None = None
        self.cancelled = 0

    async def __call__(self, items: Sequence[int]) -> None:
        self.batches.append(list(items))
        self.started.set()
        try:
            await self.go.wait()
        except trio.Cancelled:
            self.cancelled += 1
            raise
        if self.error is not None:
            raise self.error


@pytest.fixture
def work() -> Work:
    return Work()


def batches_of(work: Work, most: int = 100) -> "Batches[int]":
    return Batches(work, size_of=lambda item: item, most=most)


async def test_what_comes_meanwhile_goes_together(work: Work, autojump_clock: trio.testing.MockClock) -> None:
    batches = batches_of(work)
    async with trio.open_nursery() as nursery:
        for item in (1, 2, 3):
            nursery.start_soon(batches.add, item)
            await trio.testing.wait_all_tasks_blocked()
        assert work.batches == [[1]]
        work.go.set()
    assert work.batches == [[1], [2, 3]]
    await batches.add(4)
    assert work.batches[-1] == [4]


async def test_a_batch_is_bounded(work: Work, autojump_clock: trio.testing.MockClock) -> None:
    batches = batches_of(work, most=10)
    async with trio.open_nursery() as nursery:
        for item in (1, 6, 4, 1, 99, 2):
            nursery.start_soon(batches.add, item)
            await trio.testing.wait_all_tasks_blocked()
        work.go.set()
    assert work.batches == [[1], [6, 4], [1], [99], [2]]


@pytest.mark.parametrize("error", [RemoteFull("no room", hint="buy a disk"), ZeroDivisionError("a mistake of ours")])
async def test_a_failure_reaches_all_of_the_batch_and_no_other(
    work: Work, autojump_clock: trio.testing.MockClock, error: Exception
) -> None:
    batches = batches_of(work)
    raised: list[Exception] = []

    async def add(item: int) -> None:
        try:
            await batches.add(item)
        except (RemoteFull, ZeroDivisionError) as failure:
            raised.append(failure)

    work.error = error
    async with trio.open_nursery() as nursery:
        for item in (1, 2, 3):
            nursery.start_soon(add, item)
        await work.started.wait()
        work.go.set()
    assert [str(failure) for failure in raised] == [str(error)] * 3
    assert getattr(raised[0], "hint", None) == getattr(error, "hint", None)
    work.error = None
    await batches.add(4)


async def test_who_is_cancelled_while_waiting_is_left_out(work: Work, autojump_clock: trio.testing.MockClock) -> None:
    batches = batches_of(work)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(batches.add, 1)
        await work.started.wait()
        with trio.move_on_after(1):
            await batches.add(2)
        nursery.start_soon(batches.add, 3)
        await trio.testing.wait_all_tasks_blocked()
        work.go.set()
    assert work.batches == [[1], [3]]


async def test_a_batch_goes_on_for_those_who_still_wait(work: Work, autojump_clock: trio.testing.MockClock) -> None:
    batches = batches_of(work)

    async def impatient(item: int) -> None:
        with trio.move_on_after(item):
            await batches.add(item)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(impatient, 5)
        nursery.start_soon(impatient, 9)
        await trio.sleep(7)
        assert work.cancelled == 0
        await trio.sleep(7)
        assert work.cancelled == 1
    work.go.set()
    await batches.add(1)
    assert [sorted(batch) for batch in work.batches] == [[5, 9], [1]]


async def test_closing_lets_everybody_go(work: Work, autojump_clock: trio.testing.MockClock) -> None:
    batches = batches_of(work)

    async def add(item: int) -> None:
        with pytest.raises(RemoteUnreachable):
            await batches.add(item)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(add, 1)
        await work.started.wait()
        nursery.start_soon(add, 2)
        await trio.testing.wait_all_tasks_blocked()
        batches.close()
    assert work.cancelled == 1
    with pytest.raises(RemoteUnreachable):
        await batches.add(3)
    assert work.batches == [[1]]


def test_the_event_loop_may_end_with_a_batch_under_way(work: Work) -> None:
    async def main() -> None:
        batches = batches_of(work)
        with trio.move_on_after(0.01):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(batches.add, 1)
                nursery.start_soon(batches.add, 2)

    trio.run(main)
    assert work.cancelled == 1
