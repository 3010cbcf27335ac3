"""Doing the same with many objects, as many at once as the remote likes."""

from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

import trio

from syncer.backends.base import Backend

T = TypeVar("T")


async def for_each(backend: Backend, items: Iterable[T], call: Callable[[T], Awaitable[None]]) -> None:
    """Await *call* for each of *items*, in their order. Raises: what the first that failed raised; the others end."""
    left = iter(items)
    failed: list[Exception] = []

    async def work() -> None:
        try:
            for item in left:
                await call(item)
        except Exception as error:  # noqa: BLE001 - raised below, outside the nursery, which would wrap it in a group
            failed.append(error)
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for _ in range(max(1, backend.parallelism)):
            nursery.start_soon(work)
    if failed:
        raise failed[0]
