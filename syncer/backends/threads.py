"""How backends call what blocks: in threads, which are left to themselves when nobody waits for them any more."""

from collections.abc import Callable
from typing import TypeVar

import trio

from syncer.errors import BackendError

T = TypeVar("T")


async def in_thread(function: Callable[[], T], limiter: trio.CapacityLimiter) -> T:
    """What *function* returns or raises. Cancelling the wait abandons the thread, which ends by itself.

    A BackendError forgets the way it came. Calls on it (botocore's, trio's) keep the very error in a variable, so that
    error and calls would keep each other, and with them what was to be put, a pack, until Python looks for such cycles:
    among what is old it hardly ever does.
    """

    def captured() -> tuple[T, None] | tuple[None, BackendError]:
        try:
            return function(), None
        except BackendError as error:
            _forget_way(error)
            return None, error

    result, failure = await trio.to_thread.run_sync(captured, abandon_on_cancel=True, limiter=limiter)
    if failure is None:
        return result  # type: ignore[return-value]  # mypy does not narrow one of a pair by the other
    try:
        raise failure
    finally:
        del failure


def _forget_way(error: BaseException | None) -> None:
    """Of the error, and of those that led to it: each was raised in the thread that ends with it."""
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__
