"""The contract of a backend: transport of immutable objects, key to bytes. Nothing else touches a network.

A key is one or more segments of [0-9A-Za-z._-] joined by "/"; no segment is "." or "..". Callers never put two
different contents under one key, so a backend needs no locks, no versions and no conditional writes; and they never
use one key as the folder of another ("a" and "a/b").

What every backend MUST hold (tests/backends/ proves it on each):

- **All or nothing.** After `put` returns, `get`, `stat` and `list` on any connection show the whole object. If it
  raises, is cancelled or the process dies, they show the whole object or none; never a part of it, and an object
  that was there stays. Temporary names a backend needs are never listed and are reused or cleaned up later. What lies
  on the remote under names that are no keys ("lost+found") is not seen.
- **Durable.** After `put` returns, the object survives a crash of the remote host as far as its protocol can ask
  for that (a folder fsyncs; SSH asks for fsync where the server offers the extension).
- **Repeatable.** A put of the same key and bytes succeeds whether or not an earlier one did. Delete of a missing
  object succeeds.
- **Typed errors.** Only the BackendError classes of `syncer.errors` come out, raised from the foreign exception.
  Programming errors (ValueError for a malformed key, a negative offset) may come out as they are.
- **Cancellation.** Every call may be cancelled at any await. Blocking work that cannot be interrupted is abandoned,
  never awaited: the thread finishes on its own and its result is dropped. The connection it used is not reused unless
  the thread came to its end in good order. A put that was cancelled may therefore still appear, whole, a little later.
- **Concurrency.** Any number of tasks may call any methods at once; the backend limits itself to `parallelism`
  operations on the wire. Deadlines are the caller's (trio cancel scopes; `RetryingBackend` sets them).
- **Bounded memory.** `list` streams: what it holds at once is one page of the remote's answer, or one folder of it.
- **Absence is not silence.** ObjectMissing means that the remote answered and has no such object. A remote that is not
  there (an unplugged disk, a stopped server) is RemoteUnreachable.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Self

from syncer.errors import ObjectCorrupt


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

        Exactly the bytes asked for, or an error: a range that reaches past the end is ObjectCorrupt. What somebody else
        deletes may be read a few seconds longer from an *offset* above 0.

        Raises: ObjectMissing, ObjectCorrupt, RemoteRefused, RemoteUnreachable; ValueError for a negative range.
        """

    @abstractmethod
    async def stat(self, key: str) -> ObjectInfo:
        """Raises: ObjectMissing, RemoteRefused, RemoteUnreachable."""

    @abstractmethod
    def list(self, prefix: str = "") -> AsyncIterator[ObjectInfo]:
        """Yield every object whose key starts with *prefix*, in any order, each once.

        *prefix* is "" or ends in "/". A prefix under which nothing was ever put yields nothing. An error half-way
        is raised, never swallowed: a caller that saw the end has seen everything that was there from the first
        item to the last. After an error worth retrying, or a wait that was cancelled, the same iterator may be asked
        again and goes on with what it has not yielded yet. It may be dropped at any point; there is nothing to close.

        Raises: RemoteRefused, RemoteUnreachable; ValueError for a malformed prefix.
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


_SEGMENT = re.compile(r"(?!\.{1,2}\Z)[0-9A-Za-z._-]+")


def is_segment(name: str) -> bool:
    """Whether *name* may be one segment of a key. A backend's own temporary names must not be."""
    return _SEGMENT.fullmatch(name) is not None


def check_key(key: str) -> str:
    """Return *key* if it is well formed.

    Raises: ValueError.
    """
    if not all(map(is_segment, key.split("/"))):
        raise ValueError(f"malformed object key {key!r}")
    return key


def check_prefix(prefix: str) -> str:
    """Return *prefix* if `list` may be given it: empty, or a key and a slash.

    Raises: ValueError.
    """
    if prefix:
        if not prefix.endswith("/"):
            raise ValueError(f"malformed key prefix {prefix!r}")
        check_key(prefix[:-1])
    return prefix


def check_range(offset: int, length: int | None) -> None:
    """Raises: ValueError: *offset* or *length* is negative."""
    if offset < 0 or (length is not None and length < 0):
        raise ValueError(f"malformed range: {length} bytes from {offset}")


def resolve_range(key: str, size_bytes: int, offset: int, length: int | None) -> int:
    """How many bytes `get` must return of an object of *size_bytes*.

    Raises: ObjectCorrupt: the range reaches past the end.
    """
    wanted = size_bytes - offset if length is None else length
    if wanted < 0 or offset + wanted > size_bytes:
        raise ObjectCorrupt(
            f"{key} has only {size_bytes} bytes, and byte {offset + max(wanted, 0)} of it was asked for"
        )
    return wanted
