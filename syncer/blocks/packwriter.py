"""Puts packs on the remote, and never under a key from which something is being deleted.

Equal packs have equal keys. A pack that was deleted, or is about to be, may be made again when the same bytes come
back, and a delete that takes effect late would take the new one away. So such a pack gets another key. Whoever deletes
packs asks `is_flying` first. On the event loop's thread.
"""

import contextlib
import os
from collections import Counter
from collections.abc import AsyncIterator, Iterator

from syncer.backends.base import Backend
from syncer.backends.confirmed import put_seen
from syncer.blocks.codec import block_id, seal
from syncer.blocks.pack import Pack, PackBuilder, pack_key
from syncer.blocks.packer import Parcel
from syncer.meta.store import MetaStore
from syncer.values import PackId

FILLER_BYTES = 16


class PackWriter:
    def __init__(self, meta: MetaStore, backend: Backend) -> None:
        self._meta = meta
        self._backend = backend
        self._flying: Counter[PackId] = Counter()

    @contextlib.asynccontextmanager
    async def put(self, pack: Pack) -> AsyncIterator[Pack]:
        """For the with block the remote has the pack that is given, with all blocks of *pack*: record there where.

        Raises: BackendError.
        """
        while self._meta.doomed.is_doomed(pack.id):
            pack = _otherwise(pack)
        # ATOMIC up to here: no prune can come in between.
        with self.flying(pack.id):
            await put_seen(self._backend, pack_key(pack.id), pack.data)
            yield pack

    @contextlib.contextmanager
    def flying(self, pack_id: PackId) -> Iterator[None]:
        """Within the block a pack, which was not doomed when it began, is put and recorded: no prune dooms it."""
        self._flying[pack_id] += 1
        try:
            yield
        finally:
            self._flying[pack_id] -= 1
            if not self._flying[pack_id]:
                del self._flying[pack_id]

    def is_flying(self, pack_id: PackId) -> bool:
        """Whether the pack is being put, or was just now and is about to be recorded."""
        return pack_id in self._flying


def filler() -> Parcel:
    """Bytes that nothing names: with them among its blocks a pack has another id."""
    data = os.urandom(FILLER_BYTES)
    return Parcel(block_id(data), len(data), data)


def _otherwise(pack: Pack) -> Pack:
    """A pack of the same blocks, and one more, with another id."""
    builder = PackBuilder(pack.kind)
    for entry in pack.entries:
        builder.add(entry.id, bytes(pack.data[entry.offset : entry.offset + entry.length]), entry.plain_bytes)
    more = filler()
    builder.add(more.id, seal(more.data or b""), more.size)
    return builder.finish()
