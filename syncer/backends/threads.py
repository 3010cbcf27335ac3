"""How backends call what blocks: in threads, which are left to themselves when nobody waits for them any more."""

from collections.abc import Callable
from typing import TypeVar

import trio

from syncer.errors import BackendError, forget_way

T = TypeVar("T")


async def in_thread(function: Callable[[], T], limiter: trio.CapacityLimiter) -> T:
    """What *function* returns or raises. Cancelling the wait abandons the thread, which ends by itself.

    A BackendError forgets the way it came: botocore's calls, and trio's, have the very error in a variable.
    """

    def captured() -> tuple[T, None] | tuple[None, BackendError]:
        try:
            return function(), None
        except BackendError as error:
            forget_way(error)
            return None, error

    result, failure = await trio.to_thread.run_sync(captured, abandon_on_cancel=True, limiter=limiter)
    if failure is None:
        return result  # type: ignore[return-value]  # mypy does not narrow one of a pair by the other
    try:
        raise failure
    finally:
        del failure
