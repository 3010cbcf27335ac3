"""The block store: blocks and dirty files of one DATA, and the way between them.

Composes the cache, the dirty files, the budget and the fetcher; used by the file system, the sealer and the uploader.
Everything is synchronous on the event loop's thread unless it is `async`.
"""

import contextlib
import itertools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import trio

from syncer import disk
from syncer.backends.base import Backend
from syncer.blocks.background import Background
from syncer.blocks.budget import Budget
from syncer.blocks.cache import BlockCache
from syncer.blocks.dirty import BytesDropped, DirtyFiles
from syncer.blocks.fetcher import RANGE_BYTES, Fetcher
from syncer.blocks.losses import mend_losses
from syncer.blocks.packwriter import PackWriter
from syncer.blocks.renewal import Renewal
from syncer.blocks.retired import Retired
from syncer.meta.blocktable import Block
from syncer.meta.extent import Extent, Piece
from syncer.meta.store import MetaStore
from syncer.values import SMALL_BYTES, BlockId, PackId

NOTHING: Mapping[int, memoryview] = {}
BOOT = "boot"
"""Key of the state: the run of the machine in which DATA was used last."""
SYNCED_ONE_BY_ONE = 256
EARLY_BYTES = 8 * 1024 * 1024
"""The blocks of a file that has grown to this go to the disk at once: it is likely to stay, and an fsync to come."""


class BlockStore:
    def __init__(self, data: Path, meta: MetaStore, backend: Backend, budget_bytes: int, nursery: trio.Nursery) -> None:
        """Finishes what a crash left half-done in *data*; *nursery* outlives the store and runs its fetches."""
        self.meta = meta
        self._data = data
        self._background = Background()
        self.retired = Retired(meta)
        self.packs = PackWriter(meta, backend)
        self.names = disk.NewNames()
        self.cache = BlockCache(data / "cache", meta, self._background, self.retired, self.names)
        self.dirty = DirtyFiles(data / "dirty", self.names)
        self.dirty.recorded = meta.extents.held_by
        self._unsynced: dict[BlockId, set[int]] = {}
        """Cache files that may not survive a power cut, with the inodes whose fsync has to see to them."""
        note = meta.database.doubt_note
        self.renewal = Renewal(self.dirty, self.cache, self.names, note, self._unsynced_paths)
        self._recover()
        self.budget = Budget(budget_bytes, meta, self.cache, self.dirty, self.retired, _aside_bytes(data))
        self.renewal.budget = self.budget
        self.fetcher = Fetcher(meta, backend, self.cache, self.budget, nursery)
        meta.database.on_commit.append(self._retire_dropped)

    def _recover(self) -> None:
        for dirty, block_id, length in self.meta.blocks.settling():
            self._settle(dirty, block_id, length, trusted=False)
        self.meta.commit()
        boot, database = disk.boot_id(), self.meta.database
        if database.state_bytes(BOOT) == boot:
            self._sync_again()
        else:
            mend_losses(self.meta, self.dirty, self.cache)
            if self.meta.crashed:
                self.cache.sweep()
            database.set_state(BOOT, boot)
            self.meta.commit()
            database.sync()  # before anything is deleted
            database.doubt_note.clear()
        self.dirty.promised = set(self.meta.extents.dirty_in_use())
        self.dirty.sweep(self.dirty.promised)
        self.meta.extents.dropped.clear()

    def _sync_again(self) -> None:
        """What the run before has written may be in the kernel's memory alone, and an fsync may have promised it.

        Where a sync has failed, the files of the cache are made anew. Dirty files may be large: what an fsync covers of
        them is made anew before it is done, and all of them by the next checkpoint.

        Raises: OSError.
        """
        cached = [self.cache.path(block.id) for block in self.meta.blocks.pending_files()]
        files = [*cached, *(self.dirty.path(number) for number in self.meta.extents.dirty_in_use())]
        doubted = self.meta.database.doubt_note.is_there
        for path in files:
            self.names.note(path.parent)
        if doubted:
            self.renewal.doubt(cached)
            for path in cached:
                with contextlib.suppress(BytesDropped):  # who reads the block is told
                    self.renewal.renew_here([path])
        with self.meta.database.doubt_note.unless_synced():
            if len(files) > SYNCED_ONE_BY_ONE:
                self.names.sync_all(self._data)
            else:
                disk.sync_paths(files)
                self.names.sync({path.parent for path in files})

    def _settle(self, dirty: int, block_id: BlockId, length: int, *, early: bool = False, trusted: bool = True) -> None:
        """Move a dirty file that is recorded as the copy of a block into the cache. May be done again.

        *early* has its bytes written to the disk soon. One that is not *trusted* is verified before it is read: after
        a power cut it may not have the bytes that its record speaks of. Nor may one that the disk has refused.
        """
        try:
            descriptor = self.dirty.release(dirty, length)
        except FileNotFoundError:
            self.meta.blocks.settled(dirty)
            return
        self.cache.adopt(block_id, self.dirty.path(dirty))
        self.meta.blocks.settled(dirty)
        block = self.meta.blocks.find(block_id)
        assert block is not None
        if early:
            self._background.write_out(descriptor)
        if trusted and not self.renewal.is_in_doubt(descriptor):
            self.cache.keep_open(block.number, descriptor)
        else:
            os.close(descriptor)

    def settle(self, number: int) -> None:
        """Move every dirty file that became a block into the cache. They belong to the inode *number*."""
        inode = self.meta.inodes.cached(number)
        early = inode is not None and inode.size >= EARLY_BYTES
        for dirty, block_id, length in self.meta.blocks.settling():
            self._settle(dirty, block_id, length, early=early)
            self._unsynced.setdefault(block_id, set()).add(number)

    def piece(self, number: int, start: int, block_id: BlockId, data: bytes | memoryview) -> Piece:
        """Write *data*, which the inode is to have at *start*, where a block of that size is kept. Raises: OSError."""
        self.share(number, block_id)
        if len(data) <= SMALL_BYTES:
            return start, len(data), block_id, bytes(data)
        return start, len(data), block_id, self.new_dirty(data)

    def new_dirty(self, data: bytes | memoryview) -> int:
        """The number of a new dirty file with just *data*. Raises: OSError: then there is none."""
        dirty = self.meta.extents.new_dirty()
        try:
            self.dirty.write(dirty, 0, data)
        except BaseException:
            self.dirty.delete(dirty)
            raise
        return dirty

    def discard(self, pieces: Iterable[Piece]) -> None:
        """Delete what `piece` has written and nobody has recorded."""
        for _, _, _, held in pieces:
            if isinstance(held, int):
                self.dirty.delete(held)

    def share(self, number: int, block_id: BlockId) -> None:
        """The inode is about to name the block, which may be there already, on another inode's account."""
        if block_id in self._unsynced:
            self._unsynced[block_id].add(number)

    def unsynced(self, number: int | None = None) -> dict[BlockId, set[int]]:
        """Blocks of the inode (of all) whose files may not survive a power cut. Sync them, then call `synced`."""
        return {block_id: users for block_id, users in self._unsynced.items() if number is None or number in users}

    def _unsynced_paths(self) -> list[Path]:
        return [self.cache.path(block_id) for block_id in self._unsynced]

    def unsynced_files(self, pieces: Iterable[Piece]) -> list[Path]:
        """Of the blocks that *pieces* name: the files that are here, and may not survive a power cut."""
        return [self.cache.path(piece[2]) for piece in pieces if piece[2] in self._unsynced]

    def synced(self, blocks: dict[BlockId, set[int]]) -> None:
        """The files have been synced since `unsynced` gave the blocks."""
        for block_id, users in blocks.items():
            if self.renewal.is_in_doubt(self.cache.path(block_id)):
                continue
            if self._unsynced.get(block_id) is users:  # another set: a new file of the same block
                del self._unsynced[block_id]

    def _retire_dropped(self) -> None:
        """After a commit: dirty files that nothing refers to any more."""
        for dirty in self.meta.extents.dropped:
            self.dirty.forget(dirty)
            self.retired.add(self.dirty.path(dirty))
        self.meta.extents.dropped.clear()

    def delete_retired(self) -> None:
        """Delete the files of which it is durable by now that nothing refers to them."""
        if self.retired.delete_durable():
            self.budget.changed()

    def read(
        self, extent: Extent, offset: int, length: int, arrived: Mapping[int, memoryview] = NOTHING
    ) -> bytes | None:
        """*length* bytes from *offset* of the extent (not of the file); None when the block must be fetched first.

        *arrived* is what `fetch` returned.

        Raises:
            LocalDamage: the only copy is here, and bad.
        """
        if extent.source < 0:
            return self.dirty.read(-extent.source, extent.source_offset + offset, length)
        data = self.cache.read_open(extent.source, extent.source_offset + offset, length)
        if data is not None:
            return data
        plain = arrived.get(extent.source)
        if plain is not None:
            return bytes(plain[extent.source_offset + offset : extent.source_offset + offset + length])
        return self.cache.read(self.meta.blocks.get(extent.source), extent.source_offset + offset, length)

    def read_block(self, block: Block) -> bytes | None:
        """All of a block that was looked up just now; None when it must be fetched first. Raises: as `read`."""
        data = self.cache.read_open(block.number, 0, block.size)
        return self.cache.read(block, 0, block.size) if data is None else data

    def has(self, extent: Extent) -> bool:
        """Whether the bytes of the extent, which names a block, are here; False too when the block is gone."""
        try:
            return bool(self.meta.blocks.get(extent.source).cached)
        except KeyError:
            return False

    def prefetch(self, numbers: Sequence[int], deadline_s: float) -> None:
        """Begin to bring blocks into the cache; whoever needs them finds out what became of it."""
        if numbers:
            self.fetcher.start(numbers, deadline_s)

    def assemble(
        self, extents: Iterable[Extent], offset: int, end: int, arrived: Mapping[int, memoryview] = NOTHING
    ) -> bytes | None:
        """The bytes [*offset*, *end*) of a file that has *extents* there; what none of them covers reads as zeros.

        None when a block must be fetched first. Raises: as `read`.
        """
        parts: list[bytes] = []
        position = offset
        for extent in extents:
            low, high = max(extent.start, offset), min(extent.end, end)
            data = self.read(extent, low - extent.start, high - low, arrived)
            if data is None:
                return None
            if low > position:
                parts.append(bytes(low - position))
            parts.append(data)
            position = high
        if position < end:
            parts.append(bytes(end - position))
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def read_ahead(self, extents: Iterable[Extent]) -> None:
        """Have those of the blocks that are files of the cache read from the disk, soon."""
        for extent in extents:
            if extent.source > 0:
                self.cache.read_ahead(extent.source)

    def rest_of_pack(self, last: Extent, find: Callable[[int, int], Sequence[Extent]]) -> list[Extent]:
        """Extents of the file that follow *last* on the remote as well: whole packs are the cheapest to fetch.

        *find* gives those of a stretch of the file.
        """
        pack = self._pack(last)
        following = find(last.end, last.end + RANGE_BYTES) if pack else []
        return list(itertools.takewhile(lambda extent: self._pack(extent) == pack, following))

    def _pack(self, extent: Extent) -> PackId | None:
        location = self.meta.blocks.get(extent.source).location if extent.source > 0 else None
        return None if location is None else location.pack

    async def fetch(self, numbers: Sequence[int], deadline_s: float) -> dict[int, memoryview]:
        """Have the blocks here; returns those that are not in the cache yet, for `read`. Raises: SyncerError."""
        return await self.fetcher.fetch(numbers, deadline_s)

    def finish(self) -> None:
        """Put everything down; what cannot be deleted now is at the next start."""
        with contextlib.suppress(OSError):
            self.meta.commit()
            self.meta.database.sync_here()
            self.delete_retired()
        self.close()

    def close(self) -> None:
        self.cache.close()
        self.dirty.close()
        self._background.close()


def _aside_bytes(data: Path) -> int:
    """What recoveries and repairs have put aside, until the user deletes it."""
    folders = [*data.glob("recovered-*"), data / "lost+found"]
    files = (path for folder in folders for path in folder.rglob("*"))
    return sum(path.lstat().st_blocks * 512 for path in files)
