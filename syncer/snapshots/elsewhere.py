"""Finds blocks in other packs than the one they are read from, when that has turned out bad or gone.

DATA knows one place of a block. Indexes may list more: what was cached of a pack with a bad bit was sent anew in
another, two writers had the same bytes. The indexes are read again for this, once for a pack in a run, so that nothing
need be kept of what is hardly ever asked for. On the event loop; one search at a time.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import trio

from syncer.backends.base import Backend
from syncer.errors import ObjectCorrupt, ObjectMissing
from syncer.meta.store import MetaStore
from syncer.snapshots.reading import LIST_TRIES, Place, each_index, listed_places
from syncer.snapshots.records import IndexRecord
from syncer.values import BlockId, PackId

COPIES_MAX = 16
"""No more places of one block are remembered, whatever a remote lists."""


@dataclass(frozen=True, slots=True)
class _Copy:
    """A block in a pack, which the index object *seq* lists."""

    pack: PackId
    size: int
    kind: int
    seq: int
    offset: int
    sealed_bytes: int


_Copies = dict[BlockId, list[_Copy]]


class Elsewhere:
    def __init__(self, meta: MetaStore, backend: Backend) -> None:
        self._meta = meta
        self._backend = backend
        self._turn = trio.Lock()
        self._searched: set[PackId] = set()
        self._copies: _Copies = {}
        """Where else blocks of these packs are, but for the places that were tried; in the order of the listings."""

    async def find(self, pack_id: PackId, block_ids: Sequence[BlockId]) -> bool:
        """Have these blocks, which the pack does not give, read from another that lists them; whether any is.

        Each place of a block is tried once in a run, the one listed last first.

        Raises: SyncerError: the indexes cannot be read now.
        """
        async with self._turn:
            if pack_id not in self._searched and not all(block_id in self._copies for block_id in block_ids):
                await self._search(pack_id)
        return any([self._move(block_id, pack_id) for block_id in block_ids])  # a list: each of them

    async def _search(self, pack_id: PackId) -> None:
        wanted = self._meta.blocks.ids_in(pack_id)
        found: _Copies = {}

        async def look(_place: Place, record: IndexRecord) -> None:
            await trio.to_thread.run_sync(_note_copies, record, pack_id, wanted, found)

        for tries_left in reversed(range(LIST_TRIES)):
            try:
                places = sorted(await listed_places(self._backend, "index/"))
                await each_index(self._backend, places, look, _pass_over_damaged)
                break
            except ObjectMissing:  # the writer has put another in its place meanwhile
                if not tries_left:
                    raise
                found.clear()
        for block_id, copies in found.items():
            self._copies.setdefault(block_id, copies)
        self._searched.add(pack_id)

    def _move(self, block_id: BlockId, pack_id: PackId) -> bool:
        copies = self._copies.get(block_id, [])
        while copies:
            copy = copies.pop()
            # ATOMIC: what a prune is about to delete must not be relied on again.
            if copy.pack != pack_id and not self._meta.doomed.is_doomed(copy.pack):
                entry = block_id, copy.offset, copy.sealed_bytes
                self._meta.blocks.found_again(copy.pack, copy.size, copy.kind, copy.seq, entry, pack_id)
                return True
        return False


def _pass_over_damaged(_place: Place, error: ObjectMissing | ObjectCorrupt) -> None:
    if isinstance(error, ObjectMissing):
        raise error
    # another index may list it


def _note_copies(record: IndexRecord, pack_id: PackId, wanted: set[bytes], found: _Copies) -> None:
    for pack in record.packs:
        if pack.id == pack_id:
            continue
        for block_id, offset, sealed_bytes, _ in pack.blocks:
            if block_id in wanted:
                copies = found.setdefault(BlockId(block_id), [])
                if len(copies) < COPIES_MAX:
                    copies.append(_Copy(PackId(pack.id), pack.size, pack.kind, record.seq, offset, sealed_bytes))
