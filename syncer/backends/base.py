"""The contract of a backend: transport of immutable objects, key to bytes. Nothing else touches a network.

A key is one or more segments of [0-9A-Za-z._-] joined by "/"; no segment is "." or "..". Callers never put two
different contents under one key, so a backend needs no locks, no versions and no conditional writes.

What every backend MUST hold (tests/backends/ proves it on each):

- **All or nothing.** After `put` returns, `get`, `stat` and `list` on any connection show the whole object. If it
  raises, is cancelled or the process dies, they show the whole object or none; never a part of it. Temporary names a
  backend needs are never listed and are reused or cleaned up later.
- **Durable.** After `put` returns, the object survives a crash of the remote host as far as its protocol can ask
  for that (a folder fsyncs; SSH asks for fsync where the server offers the extension).
- **Repeatable.** A put of the same key and bytes succeeds whether or not an earlier one did. Delete of a missing
  object succeeds.
- **Typed errors.** Only the BackendError classes of `syncer.errors` come out, raised from the foreign exception.
  Programming errors (ValueError for a malformed key, a negative offset) may come out as they are.
- **Cancellation.** Every call may be cancelled at any await. Blocking work that cannot be interrupted is abandoned,
  never awaited: the thread finishes on its own and its result is dropped. The connection it used is not reused.
- **Concurrency.** Any number of tasks may call any methods at once; the backend limits itself to `parallelism`
  operations on the wire. Deadlines are the caller's (trio cancel scopes; `RetryingBackend` sets them).
- **Bounded memory.** `list` streams: a million keys need no million entries in memory.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What `stat` and `list` tell about an object."""

    key: str
    size_bytes: int


class Backend(ABC):
    """See the module's text for what holds for every method."""

    name: str
    """The remote as the user would write it, without secrets."""

    parallelism: int
    """How many operations at once are useful; more only queue."""

    @abstractmethod
    async def put(self, key: str, data: bytes | memoryview) -> None:
        """Store *data* under *key*.

        Raises: RemoteRefused, RemoteUnreachable, RemoteFull.
        """

    @abstractmethod
    async def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return *length* bytes from *offset*, or all from *offset* when *length* is None.

        Exactly the bytes asked for, or an error: a range that reaches past the end is ObjectCorrupt.

        Raises: ObjectMissing, ObjectCorrupt, RemoteRefused, RemoteUnreachable.
        """

    @abstractmethod
    async def stat(self, key: str) -> ObjectInfo:
        """Raises: ObjectMissing, RemoteRefused, RemoteUnreachable."""

    @abstractmethod
    def list(self, prefix: str = "") -> AsyncIterator[ObjectInfo]:
        """Yield every object whose key starts with *prefix*, in any order, each once.

        *prefix* is "" or ends in "/". A prefix under which nothing was ever put yields nothing. An error half-way
        is raised, never swallowed: a caller that saw the end has seen everything.

        Raises: RemoteRefused, RemoteUnreachable.
        """

    @abstractmethod
    async def delete(self, key: str) -> None:
        """Remove the object; a missing one is success.

        Raises: RemoteRefused, RemoteUnreachable.
        """

    @abstractmethod
    async def close(self) -> None:
        """Release connections and threads without waiting for a network; safe to call twice."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()


def check_key(key: str) -> str:
    """Return *key* if it is well formed.

    Raises: ValueError.
    """
    for segment in key.split("/"):
        if not segment or segment in (".", "..") or not all(c.isascii() and (c.isalnum() or c in "._-") for c in segment):
            raise ValueError(f"malformed object key {key!r}")
    return key
