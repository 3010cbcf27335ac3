"""When history is thinned, counted and pruned without being asked for."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from syncer.errors import ObjectCorrupt
from syncer.snapshots.housekeeping import PRUNE_EVERY
from tests.snapshots.rig import Remote, opened


async def test_a_count_that_finds_damage_is_not_made_again_at_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It goes over all that is known, and every minute brings a snapshot."""
    async with opened(tmp_path / "data", Remote()) as peer:
        await peer.file(b"f", b"1" * 100_000)
        await peer.publish()
        peer.meta.snapshots.take_seq("snapshot", PRUNE_EVERY + 1)
        keeper = peer.engine.housekeeper
        assert keeper.is_count_due()
        counted = trio.Event()

        async def damaged(tell: Callable[[object], None]) -> int:
            counted.set()
            raise ObjectCorrupt("a tree node is nowhere")

        count: Callable[..., Awaitable[int]] = damaged
        peer.engine.pruner.count = count  # type: ignore[method-assign, assignment]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keeper.run)
            keeper.wake()
            with trio.fail_after(10):
                await counted.wait()
                while "a tree node is nowhere" not in caplog.text:
                    await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        assert not keeper.is_count_due()
