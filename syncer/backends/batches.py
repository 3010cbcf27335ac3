"""Gathering calls: while one batch is under way, all that come wait together and make the next one.

For remotes where starting costs more than moving (rsync). The more callers there are, the larger the batches, with no
delay for a caller that is alone.
"""

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

import trio

from syncer.errors import BackendError, RemoteUnreachable

T = TypeVar("T")

log = logging.getLogger(__name__)


class Batches(Generic[T]):
    """Runs *work* on lists of items, one list at a time, in a system task that lives while there is something to do.

    A caller that is cancelled gives up its own item only: the batch it is in goes on for the others, and is cancelled
    when it has no others.
    """

    def __init__(
        self, work: Callable[[Sequence[T]], Awaitable[None]], *, size_of: Callable[[T], int], most: int
    ) -> None:
        """*work* does a whole batch or raises for all of it. A batch is never over *most*, except for a single item."""
        self._work = work
        self._size_of = size_of
        self._most = most
        self._waiting: list[_Ticket[T]] = []
        self._under_way: list[_Ticket[T]] = []
        self._scope = trio.CancelScope()
        self._running = False
        self._closed = False

    async def add(self, item: T) -> None:
        """Return when *item* has been done.

        Raises: what *work* raised for its batch; RemoteUnreachable after `close`.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._closed:
            raise RemoteUnreachable("the remote is closed")
        ticket = _Ticket(item)
        self._waiting.append(ticket)
        if not self._running:
            self._running = True
            trio.lowlevel.spawn_system_task(self._run, name="syncer batches")
        try:
            await ticket.done.wait()
        except trio.Cancelled:
            self._give_up(ticket)
            raise
        try:
            if ticket.error is not None:
                raise ticket.error
        finally:
            del ticket  # which the error knows by this call: a cycle, and the item in it

    def close(self) -> None:
        """Cancel what is under way and fail what waits. Returns at once."""
        self._closed = True
        self._scope.cancel()
        _finish(self._waiting, RemoteUnreachable("the remote is closed"))
        self._waiting = []

    def _give_up(self, ticket: "_Ticket[T]") -> None:
        if ticket in self._waiting:
            self._waiting.remove(ticket)
            return
        ticket.given_up = True
        if all(other.given_up for other in self._under_way):
            self._scope.cancel()

    async def _run(self) -> None:
        try:
            while self._waiting:
                self._under_way = self._take()
                self._scope = trio.CancelScope()
                error: Exception | None = RemoteUnreachable("given up")
                try:
                    with self._scope:
                        await self._work([ticket.item for ticket in self._under_way])
                        error = None
                except BackendError as failure:
                    error = failure
                except Exception as failure:  # a system task may not raise; the callers get it
                    log.exception("a batch failed in an unexpected way")
                    error = failure
                finally:
                    _finish(self._under_way, error)
                    self._under_way = []
                    del error  # which knows this call: another cycle
        finally:
            # The event loop may end while something waits: nobody must wait for ever.
            self._running = False
            _finish(self._waiting, RemoteUnreachable("the remote is closed"))
            self._waiting = []

    def _take(self) -> "list[_Ticket[T]]":
        """The oldest items that fit into one batch."""
        count, size = 0, 0
        for ticket in self._waiting:
            size += self._size_of(ticket.item)
            if count and size > self._most:
                break
            count += 1
        taken, self._waiting = self._waiting[:count], self._waiting[count:]
        return taken


class _Ticket(Generic[T]):
    """One caller's item, and what became of it."""

    def __init__(self, item: T) -> None:
        self.item = item
        self.done = trio.Event()
        self.error: Exception | None = None
        self.given_up = False


def _finish(tickets: "Sequence[_Ticket[T]]", error: Exception | None) -> None:
    """Wake the callers, each with an exception of its own: one object raised in several tasks mixes up their traces."""
    for ticket in tickets:
        if isinstance(error, BackendError):
            ticket.error = type(error)(str(error), hint=error.hint)
            ticket.error.__cause__ = error
        else:
            ticket.error = error
        ticket.done.set()
