"""Gives files the content they had in a snapshot by linking them to the blocks that it had: no byte is moved.

Part of a restoration (restorer.py), on the event loop's thread.
"""

import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from itertools import islice

import trio

from syncer.errors import ObjectCorrupt
from syncer.fs.filesystem import FileSystem
from syncer.meta.extent import Part
from syncer.meta.store import MetaStore
from syncer.snapshots.extenttree import iter_extents
from syncer.snapshots.history import History
from syncer.snapshots.nodes import Entry, Extent
from syncer.values import BlockId, TreeId

EXTENTS_AT_ONCE = 512
"""So many extents one operation links: about 10 ms."""
PART_BYTES = 128
"""About what an extent takes in meta.db."""


class Relinker:
    def __init__(self, file_system: FileSystem, meta: MetaStore, history: History) -> None:
        self._fs = file_system
        self._meta = meta
        self._history = history

    async def need_blocks(self, wanted: Entry) -> list[Part] | None:
        """Make sure that all blocks of a file are known. Its extents if they are few; None where they are many.

        Raises: ObjectCorrupt: a block is in no index. SyncerError: nodes of its tree cannot be had.
        """
        if wanted.tree is None:
            parts = [_part(extent) for extent in wanted.extents]
            await self._need(parts)
            return parts
        async with contextlib.aclosing(self._chunks(TreeId(wanted.tree))) as chunks:
            async for chunk in chunks:
                await self._need(chunk)
        return None

    async def _need(self, parts: Sequence[Part]) -> None:
        if self._meta.blocks.unknown(part[2] for part in parts) is not None:
            await self._history.learn_indexes()
            self.check_blocks(parts)

    def check_blocks(self, parts: Sequence[Part]) -> None:
        """Raises: ObjectCorrupt: a block is in no index, or was pruned meanwhile."""
        missing = self._meta.blocks.unknown(part[2] for part in parts)
        if missing is not None:
            raise ObjectCorrupt(f"block {missing.hex()} of it is in no index")

    async def _chunks(self, tree: TreeId) -> AsyncGenerator[list[Part], None]:
        """All extents of a long file, some at a time."""
        position = 0
        while True:
            start = position
            found = await self._history.ask(
                lambda load, start=start: list(islice(iter_extents(tree, load, start), EXTENTS_AT_ONCE))  # type: ignore[misc]
            )
            parts = [_part(extent) for extent in found]
            await trio.lowlevel.checkpoint()
            if parts:
                yield parts
                position = parts[-1][0] + parts[-1][1]
            if len(parts) < EXTENTS_AT_ONCE:
                return

    def relink(self, number: int, parts: Sequence[Part], size: int) -> None:
        """Give a file few extents, whose blocks are known. ATOMIC."""
        self._fs.io.relink(number, 0, max(size, self._meta.inodes.need(number).size), parts, size)

    async def relink_long(self, number: int, wanted: Entry, breathe: Callable[[int], Awaitable[None]]) -> bool:
        """Link a long file piece by piece; pieces that are as they were stay. Who reads meanwhile sees some of each.

        Returns whether any were others.

        *breathe* is awaited before each with the bytes that it takes in meta.db. Ends early when the file is deleted.

        Raises: as `need_blocks`.
        """
        assert wanted.tree is not None
        is_changed = self._meta.inodes.need(number).size != wanted.size
        position = 0
        async with contextlib.aclosing(self._chunks(TreeId(wanted.tree))) as chunks:
            async for parts in chunks:
                end = parts[-1][0] + parts[-1][1]
                await breathe(PART_BYTES * len(parts))
                await self._fs.may_grow(number, end)
                inode = self._meta.inodes.get(number)
                if inode is None:
                    return is_changed
                self.check_blocks(parts)
                if self._linked(number, position, end) != parts:
                    self._fs.io.relink(number, position, end, parts, max(inode.size, end))
                    is_changed = True
                position = end
        inode = self._meta.inodes.get(number)
        if inode is not None:
            self._fs.io.relink(number, position, max(position, inode.size), [], wanted.size)
        return is_changed

    def is_linked(self, number: int, parts: Sequence[Part], size: int) -> bool:
        """Whether the file has this content already."""
        return self._meta.inodes.need(number).size == size and self._linked(number, 0, size) == parts

    def _linked(self, number: int, start: int, end: int) -> list[Part] | None:
        """What covers [start, end) of the file now; None where not all of it is in blocks."""
        inode = self._meta.inodes.need(number)
        if inode.content is not None or inode.tail:
            return None
        found = self._meta.extents.view(number, start, end)
        if any(extent.source < 0 for extent in found):
            return None
        return [(e.start, e.length, self._meta.blocks.get(e.source).id, e.source_offset) for e in found]

    def is_damaged(self, number: int) -> bool:
        """Whether a block of the file has no sound copy. Looks at its extents, if any block at all is damaged."""
        return self._meta.blocks.any_damaged and bool(self._meta.damage.of_file(number))


def _part(extent: Extent) -> Part:
    return extent.start, extent.length, BlockId(extent.block), extent.offset
