"""Puts that are looked at afterwards: a remote may say that it has stored something, and have stored nothing.

What depends on an object (the eviction of what a pack holds, an index that names it) comes after this has returned.
"""

from syncer.backends.base import Backend
from syncer.errors import ObjectMissing, RemoteUnreachable


async def put_seen(backend: Backend, key: str, data: bytes | memoryview) -> None:
    """Put an object, and return when the remote shows it with the right length.

    Raises: BackendError; RemoteUnreachable when it took the object and does not have it.
    """
    await backend.put(key, data)
    await check_seen(backend, key, memoryview(data).nbytes)


async def check_seen(backend: Backend, key: str, size_bytes: int) -> None:
    """Return when the remote shows an object that was put before with its *size_bytes*. Raises: as `put_seen`."""
    try:
        shown_bytes = (await backend.stat(key)).size_bytes
    except ObjectMissing as error:
        raise _not_stored(backend, key) from error
    if shown_bytes != size_bytes:
        raise _not_stored(backend, key)


async def put_read_back(backend: Backend, key: str, data: bytes) -> None:
    """Put a small object, and return when the remote has given just its bytes back. Raises: as `put_seen`."""
    await put_seen(backend, key, data)
    if await backend.get(key, 0, len(data)) != data:
        raise _not_stored(backend, key)


def _not_stored(backend: Backend, key: str) -> RemoteUnreachable:
    return RemoteUnreachable(
        f"{backend.name} said that it had stored {key}, and does not have it as it was given",
        hint="look at the remote's disk; what waits is safe in DATA",
    )
