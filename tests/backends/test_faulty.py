"""Planned faults happen as planned, and one that does not is an error."""

import pytest
import trio

from syncer.backends.faulty import Fault, FaultsNotHit, FaultyBackend
from syncer.backends.memory import MemoryBackend
from syncer.errors import ObjectMissing, RemoteFull, RemoteUnreachable

LOST = RemoteUnreachable("lost")


async def test_which_calls_fail() -> None:
    memory = MemoryBackend()
    fault = Fault(operation="put", prefix="packs/", error=LOST, skip=1, times=2)
    async with FaultyBackend(memory, fault) as backend:
        outcomes = []
        for key in ("packs/1", "index/1", "packs/2", "packs/3", "index/2", "packs/4"):
            try:
                await backend.put(key, b"")
                outcomes.append(key)
            except RemoteUnreachable:
                outcomes.append("failed")
        assert outcomes == ["packs/1", "index/1", "failed", "failed", "index/2", "packs/4"]
        assert sorted(memory.objects) == ["index/1", "index/2", "packs/1", "packs/4"]
        assert backend.calls["put"] == 6


async def test_faults_come_one_after_the_other() -> None:
    faults = (Fault(operation="get", error=LOST), Fault(operation="get", error=RemoteFull("full")))
    async with FaultyBackend(MemoryBackend(), *faults) as backend:
        for error in (RemoteUnreachable, RemoteFull, ObjectMissing):
            with pytest.raises(error):
                await backend.get("key")


async def test_a_late_failure_has_done_its_work() -> None:
    memory = MemoryBackend()
    async with FaultyBackend(memory, Fault(operation="put", error=LOST, late=True)) as backend:
        with pytest.raises(RemoteUnreachable):
            await backend.put("key", b"data")
        assert memory.objects == {"key": b"data"}


async def test_damage() -> None:
    memory = MemoryBackend()
    memory.objects["key"] = b"data"
    async with FaultyBackend(memory, Fault(operation="get", damage=lambda data: data[:-1])) as backend:
        assert await backend.get("key") == b"dat"
        assert await backend.get("key") == b"data"


async def test_damage_on_the_way_there() -> None:
    memory = MemoryBackend()
    async with FaultyBackend(memory, Fault(operation="put", damage=lambda data: data[:-1])) as backend:
        await backend.put("key", b"data")
        assert memory.objects == {"key": b"dat"}


async def test_lies() -> None:
    memory = MemoryBackend()
    faults = (Fault(operation="put", lie=True), Fault(operation="list", lie=True, skip=1))
    async with FaultyBackend(memory, *faults) as backend:
        for key in ("a", "b", "c", "d"):
            await backend.put(key, b"")
        assert sorted(memory.objects) == ["b", "c", "d"]
        assert [info.key async for info in backend.list()] == ["b", "d"]


async def test_hanging() -> None:
    async with FaultyBackend(MemoryBackend(), Fault(operation="stat")) as backend:
        with trio.move_on_after(0) as scope:
            await backend.stat("key")
        assert scope.cancelled_caught


async def test_a_fault_that_never_happened_fails_the_test() -> None:
    fault = Fault(operation="put", error=LOST, times=2)
    backend = FaultyBackend(MemoryBackend(), fault)
    with pytest.raises(FaultsNotHit, match="put"):
        async with backend:
            with pytest.raises(RemoteUnreachable):
                await backend.put("key", b"")
    with pytest.raises(RemoteUnreachable):
        await backend.put("key", b"")
    backend.check_all_hit()
    with pytest.raises(ZeroDivisionError):  # the first failure is the one to see
        async with FaultyBackend(MemoryBackend(), fault):
            raise ZeroDivisionError


def test_plans_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match="damage"):
        FaultyBackend(MemoryBackend(), Fault(operation="stat", damage=bytes))
    with pytest.raises(ValueError, match="lie"):
        FaultyBackend(MemoryBackend(), Fault(operation="get", lie=True))
    with pytest.raises(ValueError, match="damage"):
        FaultyBackend(MemoryBackend(), Fault(operation="get", damage=bytes, error=LOST))
    with pytest.raises(ValueError, match="listing"):
        FaultyBackend(MemoryBackend(), Fault(operation="list", error=LOST, late=True))
