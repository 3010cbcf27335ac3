"""Copies what is needed of packs that are mostly dead into new packs. Every block is verified on its way.

A pack of which anything cannot be had stays as it is, and is named in the log.
"""

import logging

import trio

from syncer.backends.base import Backend
from syncer.blocks.codec import open_sealed
from syncer.blocks.fetcher import RANGE_BYTES, Range, plan
from syncer.blocks.pack import Pack, PackBuilder, pack_key
from syncer.blocks.packwriter import PackWriter
from syncer.blocks.syncing import Durability
from syncer.errors import LocalDamage, ObjectCorrupt, ObjectMissing
from syncer.meta.blocktable import Block
from syncer.meta.doomtable import Moved
from syncer.meta.marks import Choice
from syncer.meta.store import MetaStore
from syncer.values import CONTENT, TREE, BlockId, PackId

log = logging.getLogger(__name__)


class Rewriter:
    def __init__(self, meta: MetaStore, backend: Backend, packs: PackWriter, durability: Durability) -> None:
        self._meta = meta
        self._backend = backend
        self._packs = packs
        self._durability = durability
        self._builders = {kind: PackBuilder(kind) for kind in (CONTENT, TREE)}
        self._sources: dict[int, dict[BlockId, PackId]] = {CONTENT: {}, TREE: {}}
        self.copied_bytes = 0

    async def add(self, choice: Choice, kind: int, needed: list[Block]) -> bool:
        """Copy *needed* blocks of a pack of *kind*; all of them are on the remote after `finish`.

        False when something of the pack cannot be had: then nothing of it is copied.

        Raises: BackendError; OSError: the local disk does not take the record.
        """
        try:
            sealed = [pair for item in plan(needed, RANGE_BYTES) for pair in await self._fetch(item)]
        except (ObjectCorrupt, ObjectMissing, LocalDamage) as error:
            log.error("pack %s is left as it is: %s", choice.id.hex(), error)
            return False
        builder = self._builders[kind]
        for block, data in sealed:
            if block.id in self._sources[kind]:
                continue
            builder.add(block.id, data, block.size)
            self._sources[kind][block.id] = choice.id
            if builder.is_full:
                await self._put(kind)
        return True

    async def finish(self) -> None:
        """Put what is left. Raises: as `add`."""
        for kind, builder in self._builders.items():
            if len(builder):
                await self._put(kind)

    async def _fetch(self, item: Range) -> list[tuple[Block, bytes]]:
        data = await self._backend.get(pack_key(item.pack), item.offset, item.length)
        return await trio.to_thread.run_sync(_verified, item, memoryview(data))

    async def _put(self, kind: int) -> None:
        sources, self._sources[kind] = self._sources[kind], {}
        pack = self._builders[kind].finish()
        async with self._packs.put(pack) as put:
            self._meta.doomed.moved(put.id, len(put.data), kind, _moved(put, sources))
            await self._durability.sync()
        self.copied_bytes += len(pack.data)


def _moved(pack: Pack, sources: dict[BlockId, PackId]) -> list[Moved]:
    return [(entry.id, entry.offset, entry.length, sources[entry.id]) for entry in pack.entries if entry.id in sources]


def _verified(item: Range, data: memoryview) -> list[tuple[Block, bytes]]:
    """In a thread. Raises: ObjectCorrupt."""
    found = []
    for block in item.blocks:
        assert block.location is not None
        start = block.location.offset - item.offset
        sealed = data[start : start + block.location.length]
        open_sealed(sealed, block.id)
        found.append((block, bytes(sealed)))
    return found
