"""A backend over a backend: tries again what failed for a passing reason, and lets nothing wait for ever.

Used by the composition root around every remote. It knows nothing of how a remote works: what may be retried is what
an error says of itself (`SyncerError.retry`).
"""

import contextlib
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Self, TypeVar

import trio

from syncer.backends.base import Backend, ObjectInfo, check_range
from syncer.errors import BackendError, NobodyListens, RemoteUnreachable, forget_way

T = TypeVar("T")

log = logging.getLogger(__name__)

SLOWEST_BYTES_PER_S = 32 * 1024
"""A line slower than this (about a quarter of a megabit) counts as broken; a faster one gets the time it needs."""
REFUSED_S = 2.0


class RetryingBackend(Backend):
    """*inner* with deadlines and repetitions.

    Every call ends by itself: with its result, with the first error that is not worth retrying, or with the last one
    that was when its time is over. Repeating is safe because every method of the contract is repeatable.
    """

    def __init__(
        self,
        inner: Backend,
        *,
        attempt_s: float = 20.0,
        total_s: float = 60.0,
        first_delay_s: float = 0.25,
        longest_delay_s: float = 10.0,
    ) -> None:
        """An attempt may take *attempt_s*, a call with all its repetitions *total_s*.

        Both are for the remote to answer: a call that moves data gets, on top, the time its bytes take on the slowest
        line that is any use, as far as its attempts have needed that: who is
        refused at once is told soon. Between attempts it waits *first_delay_s*, then twice as long each time up to
        *longest_delay_s*, each give or take half, so that many callers do not come back at once.
        """
        self.name = inner.name
        self.parallelism = inner.parallelism
        self._inner = inner
        self._attempt_s = attempt_s
        self._total_s = total_s
        self._first_delay_s = first_delay_s
        self._longest_delay_s = longest_delay_s
        self._refused_s = float("inf")

    @contextlib.contextmanager
    def not_waiting_for_a_server(self) -> Iterator[None]:
        """Within the block a server that refuses connections is believed after REFUSED_S: nobody has relied on it yet,
        and whoever has mistyped its port wants to know."""
        self._refused_s = REFUSED_S
        try:
            yield
        finally:
            self._refused_s = float("inf")

    async def put(self, key: str, data: bytes | memoryview) -> None:
        await self.repeat(f"put {key}", lambda: self._inner.put(key, data), moved_bytes=memoryview(data).nbytes)

    async def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        check_range(offset, length)
        if length is None:  # how much time is fair depends on how much comes
            length = max(0, (await self.stat(key)).size_bytes - offset)
        return await self.repeat(f"get {key}", lambda: self._inner.get(key, offset, length), moved_bytes=length)

    async def stat(self, key: str) -> ObjectInfo:
        return await self.repeat(f"stat {key}", lambda: self._inner.stat(key))

    def list(self, prefix: str = "") -> AsyncIterator[ObjectInfo]:
        """As the contract says; the deadlines hold for each item."""
        return _RetriedListing(self, f"list {prefix}", self._inner.list(prefix))

    async def delete(self, key: str) -> None:
        await self.repeat(f"delete {key}", lambda: self._inner.delete(key))

    async def close(self) -> None:
        await self._inner.close()

    async def repeat(self, what: str, call: Callable[[], Awaitable[T]], *, moved_bytes: int = 0) -> T:
        """Await *call* until it returns, fails for good, or its time is over.

        Raises: whatever *call* raised last; RemoteUnreachable when it did not even answer.
        """
        transfer_s = moved_bytes / SLOWEST_BYTES_PER_S
        end = trio.current_time() + self._total_s
        refused_until = trio.current_time() + self._refused_s
        spare_s = transfer_s
        delay_s = self._first_delay_s
        while True:
            begin = trio.current_time()
            attempt_s = min(self._attempt_s + transfer_s, end + spare_s - begin)
            failure: BackendError = RemoteUnreachable(f"{self.name} did not answer within {attempt_s:.0f} s ({what})")
            try:
                with trio.move_on_after(attempt_s):
                    try:
                        return await call()
                    except BackendError as error:
                        if not error.retry:
                            raise
                        failure = error
                used_s = min(trio.current_time() - begin, spare_s)
                end, spare_s = end + used_s, spare_s - used_s
                pause_s = delay_s * random.uniform(0.5, 1.5)
                final = refused_until if isinstance(failure, NobodyListens) else end
                if trio.current_time() + pause_s >= min(end, final):
                    raise failure
                log.info("%s failed, next attempt in %.1f s: %s", what, pause_s, failure)
                last = failure
                forget_way(last)
            finally:
                del failure  # which knows this call, and so what it moves: a cycle would keep that
            await trio.sleep(pause_s)
            if trio.current_time() >= end + spare_s:  # whoever sleeps may be woken late
                try:
                    raise last
                finally:
                    del last
            delay_s = min(delay_s * 2, self._longest_delay_s)


class _RetriedListing(AsyncIterator[ObjectInfo]):
    """Asks the same inner iterator again, which the contract allows after an error or a cancelled wait."""

    def __init__(self, owner: RetryingBackend, what: str, inner: AsyncIterator[ObjectInfo]) -> None:
        self._owner = owner
        self._what = what
        self._inner = inner

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ObjectInfo:
        return await self._owner.repeat(self._what, self._inner.__anext__)
