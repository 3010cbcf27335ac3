"""The budget under loads that only uploads, sealing and checkpoints can relieve."""

import os
from pathlib import Path

import trio
import trio.testing

from syncer.backends.memory import MemoryBackend
from tests.support.opened import create, flush, opened

WRITE_BYTES = 131_072


async def test_a_budget_full_of_overwritten_bytes_is_sealed_and_uploaded(tmp_path: Path) -> None:
    async with opened(tmp_path, MemoryBackend()) as engine:
        number, handle = create(engine, b"image")
        engine.file_system.setattr(number, size=120_000_000)
        for offset in range(0, 120_000_000 - WRITE_BYTES, WRITE_BYTES):
            await engine.file_system.write(handle, offset, os.urandom(WRITE_BYTES))
            assert engine.store.budget.used_bytes <= 64_000_000
        with trio.fail_after(60):
            await flush(engine)
        assert engine.uploader.uploaded_bytes > 100_000_000


async def test_who_wants_much_room_is_not_passed_by_those_who_want_little(tmp_path: Path) -> None:
    async with opened(tmp_path, MemoryBackend()) as engine:
        budget = engine.store.budget
        order: list[str] = []
        held = budget.limit_bytes

        async def want(name: str, amount: int) -> None:
            await budget.reserve(amount, 10.0)
            order.append(name)

        async with trio.open_nursery() as nursery:
            with budget.hold(held):
                nursery.start_soon(want, "much", 8_000_000)
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(want, "little", 1)
                await trio.testing.wait_all_tasks_blocked()
            with budget.hold(engine.store.budget._free() - 4_000_000):
                budget.changed()
                await trio.testing.wait_all_tasks_blocked()
                assert order == []
                assert not budget.fits(1)
            budget.changed()
        assert order == ["much", "little"]
