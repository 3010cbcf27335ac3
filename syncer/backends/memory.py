"""A remote in memory: for model tests and as the plainest example of the contract. It ends with the process."""

import trio

from syncer.backends.base import (
    Backend,
    ObjectInfo,
    check_key,
    check_prefix,
    check_range,
    resolve_range,
)
from syncer.backends.pages import Pages
from syncer.errors import ObjectMissing, RemoteFull

_PAGE = 1000


class MemoryBackend(Backend):
    """Objects in a dict. Every method is atomic: its only await comes before it looks at anything.

    Attributes:
        objects: the store itself; a test may read it, and damage it.
        capacity_bytes: a put that would pass this is RemoteFull; None is no limit.
    """

    name = "memory"
    parallelism = 8

    def __init__(self, *, capacity_bytes: int | None = None) -> None:
        self.objects: dict[str, bytes] = {}
        self.capacity_bytes = capacity_bytes

    async def put(self, key: str, data: bytes | memoryview) -> None:
        check_key(key)
        await trio.lowlevel.checkpoint()
        if self.capacity_bytes is not None:
            others = sum(len(content) for name, content in self.objects.items() if name != key)
            if others + len(data) > self.capacity_bytes:
                raise RemoteFull(f"{self.name} has no room for {key}")
        self.objects[key] = bytes(data)

    async def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        check_key(key)
        check_range(offset, length)
        await trio.lowlevel.checkpoint()
        data = self._object(key)
        return data[offset : offset + resolve_range(key, len(data), offset, length)]

    async def stat(self, key: str) -> ObjectInfo:
        check_key(key)
        await trio.lowlevel.checkpoint()
        return ObjectInfo(key, len(self._object(key)))

    def list(self, prefix: str = "") -> Pages:
        check_prefix(prefix)
        last = ""

        async def next_page() -> list[ObjectInfo] | None:
            nonlocal last
            await trio.lowlevel.checkpoint()
            keys = sorted(key for key in self.objects if key.startswith(prefix) and key > last)[:_PAGE]
            if not keys:
                return None
            last = keys[-1]
            return [ObjectInfo(key, len(self.objects[key])) for key in keys]

        return Pages(next_page)

    async def delete(self, key: str) -> None:
        check_key(key)
        await trio.lowlevel.checkpoint()
        self.objects.pop(key, None)

    async def close(self) -> None:
        """Nothing to release; the objects stay readable."""
        await trio.lowlevel.checkpoint()

    def _object(self, key: str) -> bytes:
        try:
            return self.objects[key]
        except KeyError:
            raise ObjectMissing(f"{self.name} has no {key}") from None
