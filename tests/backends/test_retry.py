"""Deadlines and repetitions, on a clock that jumps: nothing here waits for real."""

import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import trio
import trio.testing

from syncer.backends.base import Backend
from syncer.backends.faulty import Fault, FaultyBackend, Operation
from syncer.backends.memory import MemoryBackend
from syncer.backends.retry import SLOWEST_BYTES_PER_S, RetryingBackend
from syncer.errors import ObjectMissing, RemoteFull, RemoteRefused, RemoteUnreachable

LOST = RemoteUnreachable("lost on the way")
CALLS: dict[Operation, Callable[[Backend], Any]] = {
    "put": lambda backend: backend.put("key", b"data"),
    "get": lambda backend: backend.get("key", 0, 4),
    "stat": lambda backend: backend.stat("key"),
    "delete": lambda backend: backend.delete("key"),
    "list": lambda backend: all_of(backend),
}


async def all_of(backend: Backend) -> list[str]:
    return [item.key async for item in backend.list()]


@pytest.fixture
async def memory() -> AsyncIterator[MemoryBackend]:
    backend = MemoryBackend()
    backend.objects["key"] = b"data"
    yield backend


@pytest.mark.parametrize("operation", CALLS)
@pytest.mark.parametrize("late", [False, True])
async def test_a_passing_failure_is_not_seen(
    memory: MemoryBackend, autojump_clock: trio.testing.MockClock, operation: Operation, late: bool
) -> None:
    fault = Fault(operation=operation, error=LOST, times=3, late=late and operation != "list")
    async with FaultyBackend(memory, fault) as faulty:
        await CALLS[operation](RetryingBackend(faulty))
        assert faulty.calls[operation] >= 4


@pytest.mark.parametrize("operation", CALLS)
async def test_a_hanging_call_is_given_up_and_tried_again(
    memory: MemoryBackend, autojump_clock: trio.testing.MockClock, operation: Operation
) -> None:
    async with FaultyBackend(memory, Fault(operation=operation, times=2)) as faulty:
        await CALLS[operation](RetryingBackend(faulty, attempt_s=5))
    assert trio.current_time() >= 10


@pytest.mark.parametrize("operation", CALLS)
async def test_it_ends_in_time_when_the_remote_hangs_for_ever(
    memory: MemoryBackend, autojump_clock: trio.testing.MockClock, operation: Operation
) -> None:
    backend = RetryingBackend(FaultyBackend(memory, Fault(operation=operation, times=1000)), attempt_s=7, total_s=60)
    start = trio.current_time()
    with pytest.raises(RemoteUnreachable, match="did not answer within"):
        await CALLS[operation](backend)
    assert trio.current_time() - start <= 60 + 4 / SLOWEST_BYTES_PER_S


async def test_it_ends_in_time_when_the_remote_fails_for_ever(
    memory: MemoryBackend, autojump_clock: trio.testing.MockClock
) -> None:
    faulty = FaultyBackend(memory, Fault(operation="stat", error=RemoteFull("full"), times=1000))
    start = trio.current_time()
    with pytest.raises(RemoteFull, match="full"):
        await RetryingBackend(faulty, total_s=60, first_delay_s=1, longest_delay_s=8).stat("key")
    assert 40 <= trio.current_time() - start <= 60
    assert 7 <= faulty.calls["stat"] <= 15  # pauses of 1, 2, 4, 8, 8, 8… seconds, give or take half


async def test_who_is_woken_too_late_for_another_attempt_says_how_the_last_one_ended(
    memory: MemoryBackend, mock_clock: trio.testing.MockClock
) -> None:
    faulty = FaultyBackend(memory, Fault(operation="stat", error=RemoteFull("full"), times=1000))
    with pytest.RaisesGroup(pytest.RaisesExc(RemoteFull, match="full")):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(RetryingBackend(faulty, total_s=60, first_delay_s=1).stat, "key")
            await trio.testing.wait_all_tasks_blocked()
            mock_clock.jump(61)
    assert faulty.calls["stat"] == 1


@pytest.mark.parametrize("error", [ObjectMissing("no"), RemoteRefused("no")])
@pytest.mark.parametrize("operation", CALLS)
async def test_what_is_not_worth_retrying_comes_out_at_once(
    memory: MemoryBackend, autojump_clock: trio.testing.MockClock, operation: Operation, error: ObjectMissing
) -> None:
    async with FaultyBackend(memory, Fault(operation=operation, error=error)) as faulty:
        with pytest.raises(type(error)):
            await CALLS[operation](RetryingBackend(faulty))
        assert faulty.calls[operation] == 1
    assert trio.current_time() == 0


async def test_a_large_transfer_has_more_time(memory: MemoryBackend, autojump_clock: trio.testing.MockClock) -> None:
    class SlowLine(MemoryBackend):
        async def put(self, key: str, data: bytes | memoryview) -> None:
            await trio.sleep(len(data) / SLOWEST_BYTES_PER_S)
            await super().put(key, data)

        async def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
            data = await super().get(key, offset, length)
            await trio.sleep(len(data) / SLOWEST_BYTES_PER_S)
            return data

    backend = RetryingBackend(SlowLine(), attempt_s=5, total_s=20)
    data = bytes(8 * 2**20)
    await backend.put("pack", data)
    assert await backend.get("pack") == await backend.get("pack", 0, len(data)) == data
    assert trio.current_time() > 500


async def test_a_cancelled_caller_is_let_go(memory: MemoryBackend, autojump_clock: trio.testing.MockClock) -> None:
    for fault in (Fault(operation="stat"), Fault(operation="stat", error=LOST, times=1000)):
        with trio.move_on_after(2.5) as scope:
            await RetryingBackend(FaultyBackend(memory, fault), first_delay_s=4).stat("key")
        assert scope.cancelled_caught


async def test_a_listing_goes_on_where_it_was(memory: MemoryBackend, autojump_clock: trio.testing.MockClock) -> None:
    memory.objects = {f"{number:04}": b"" for number in range(2500)}
    faults = [Fault(operation="list", error=LOST, skip=skip) for skip in (0, 1, 999, 1000, 1002, 2500)]
    async with FaultyBackend(memory, *faults, Fault(operation="list", skip=1500)) as faulty:
        assert await all_of(RetryingBackend(faulty)) == sorted(memory.objects)


async def test_repetitions_are_told_to_the_log(
    memory: MemoryBackend, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        async with FaultyBackend(memory, Fault(operation="put", error=LOST, times=2)) as faulty:
            await RetryingBackend(faulty).put("key", b"data")
    assert [record.levelname for record in caplog.records] == ["INFO", "INFO"]
    assert "put key failed, next attempt in" in caplog.text
    assert "lost on the way" in caplog.text


async def test_many_callers_do_not_come_back_at_once(
    memory: MemoryBackend, autojump_clock: trio.testing.MockClock
) -> None:
    times: list[float] = []

    class Recording(MemoryBackend):
        async def delete(self, key: str) -> None:
            times.append(trio.current_time())
            raise LOST

    backend = RetryingBackend(Recording(), first_delay_s=1, total_s=2)

    async def one() -> None:
        with pytest.raises(RemoteUnreachable):
            await backend.delete("key")

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(one)
    second = [at for at in times if at]
    assert len(set(second)) == len(second) >= 15
