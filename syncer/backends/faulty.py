"""A backend over a backend that fails as planned: for tests of everything that must survive a failing remote."""

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Literal, Self, TypeVar

import trio

from syncer.backends.base import Backend, ObjectInfo
from syncer.errors import BackendError

Operation = Literal["put", "get", "stat", "list", "delete"]
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What goes wrong with some calls of one operation.

    With *error* the call raises it; without *error*, *damage* and *lie* it hangs until it is cancelled.
    """

    operation: Operation
    """`list` is counted by item: every wait for the next one is a call."""
    prefix: str = ""
    """Only keys (for `list`: listed prefixes) that start with this."""
    error: BackendError | None = None
    damage: Callable[[bytes], bytes] | None = None
    """`get` and `put`: what becomes of the bytes on their way."""
    late: bool = False
    """The remote does what it was asked, and the answer is lost. Not for `list`, whose answer is asked for again."""
    lie: bool = False
    """`put`: it is answered as done, and nothing is stored. `list`: the object that comes next is left out."""
    skip: int = 0
    """So many matching calls go well first."""
    times: int = 1
    """So many matching calls fail, then all is well again."""


class FaultsNotHit(AssertionError):
    """A planned fault never happened: the test has not shown what it meant to show."""


class FaultyBackend(Backend):
    """*inner*, with planned faults. As a context manager it raises FaultsNotHit when one did not happen.

    A call meets the first fault of the plan that matches it, is not used up and does not skip it.

    Attributes:
        calls: how often each operation was called, failed calls included.
    """

    def __init__(self, inner: Backend, *faults: Fault) -> None:
        self.name = inner.name
        self.parallelism = inner.parallelism
        self.calls: Counter[str] = Counter()
        self._inner = inner
        self._planned: list[_Planned] = []
        self.plan(*faults)

    def plan(self, *faults: Fault) -> None:
        """Add *faults* after those that are planned already."""
        for fault in faults:
            if fault.damage and (fault.operation not in ("get", "put") or fault.error):
                raise ValueError("only a get or a put that succeeds can damage bytes")
            if fault.lie and fault.operation not in ("put", "list"):
                raise ValueError("only a put and a listing can lie")
            if fault.late and fault.operation == "list":
                raise ValueError("a listing has no effect that could come before its failure")
            self._planned.append(_Planned(fault, fault.skip, fault.times))

    def check_all_hit(self) -> None:
        """Raises: FaultsNotHit."""
        missed = [planned.fault for planned in self._planned if planned.left]
        if missed:
            raise FaultsNotHit("planned, but never happened: " + ", ".join(map(str, missed)))

    async def put(self, key: str, data: bytes | memoryview) -> None:
        fault = self._next_fault("put", key)
        if fault is not None and fault.lie:
            await trio.lowlevel.checkpoint()
            return
        if fault is not None and fault.damage:
            data = fault.damage(bytes(data))
        await _suffer(fault, lambda: self._inner.put(key, data))

    async def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        fault = self._next_fault("get", key)
        data = await _suffer(fault, lambda: self._inner.get(key, offset, length))
        return fault.damage(data) if fault and fault.damage else data

    async def stat(self, key: str) -> ObjectInfo:
        return await _suffer(self._next_fault("stat", key), lambda: self._inner.stat(key))

    def list(self, prefix: str = "") -> AsyncIterator[ObjectInfo]:
        return _FaultyListing(self, prefix, self._inner.list(prefix))

    async def delete(self, key: str) -> None:
        await _suffer(self._next_fault("delete", key), lambda: self._inner.delete(key))

    async def close(self) -> None:
        await self._inner.close()

    async def __aexit__(self, *exc_info: object) -> None:
        await super().__aexit__(*exc_info)
        if exc_info[1] is None:
            self.check_all_hit()

    def _next_fault(self, operation: Operation, key: str) -> Fault | None:
        """Count a call, and say what goes wrong with it."""
        self.calls[operation] += 1
        for planned in self._planned:
            fault = planned.fault
            if not planned.left or fault.operation != operation or not key.startswith(fault.prefix):
                continue
            if planned.skip:
                planned.skip -= 1
                continue
            planned.left -= 1
            return fault
        return None

    async def next_item(self, prefix: str, inner: AsyncIterator[ObjectInfo]) -> ObjectInfo:
        fault = self._next_fault("list", prefix)
        if fault is None or not fault.lie:
            return await _suffer(fault, inner.__anext__)
        await inner.__anext__()
        return await inner.__anext__()


@dataclass(slots=True)
class _Planned:
    fault: Fault
    skip: int
    left: int


class _FaultyListing(AsyncIterator[ObjectInfo]):
    def __init__(self, owner: FaultyBackend, prefix: str, inner: AsyncIterator[ObjectInfo]) -> None:
        self._owner = owner
        self._prefix = prefix
        self._inner = inner

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ObjectInfo:
        return await self._owner.next_item(self._prefix, self._inner)


async def _suffer(fault: Fault | None, call: Callable[[], Awaitable[T]]) -> T:
    """Make *call* as *fault* has it."""
    if fault is None or fault.damage:
        return await call()
    if fault.late:
        await call()
    if fault.error is None:
        await trio.sleep_forever()
    await trio.lowlevel.checkpoint()
    raise fault.error
