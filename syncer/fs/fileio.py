"""Bytes of regular files: read, write, truncate, fsync.

Decides which of the forms of a file takes a write (see meta/extents.py): the small content, the growing tail, or the
overlay. A write never waits for the network; it waits for room in the budget, with a deadline. ATOMIC: after that
wait each write is applied without an await.
"""

import contextlib
import errno
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import trio

from syncer.blocks.fetcher import in_time
from syncer.blocks.sealer import Sealer
from syncer.blocks.store import NOTHING, BlockStore
from syncer.blocks.syncing import Durability
from syncer.blocks.tails import Tails
from syncer.errors import BudgetExhausted, LocalDamage
from syncer.fs.eraser import Eraser
from syncer.fs.handles import OpenFile
from syncer.fs.readahead import Limits, ReadAhead
from syncer.meta.extent import Extent, Part
from syncer.meta.inodes import Inode
from syncer.values import SMALL_BYTES

FILE_MAX_BYTES = 2**44 - 4096
"""What ext4 can hold, where an overlay has its bytes at the same offsets as the file."""
RELATIME_NS = 24 * 3600 * 10**9


class FileIO:
    def __init__(
        self,
        store: BlockStore,
        tails: Tails,
        sealer: Sealer,
        durability: Durability,
        eraser: Eraser,
        limits: Limits,
        commit: Callable[[], None],
    ) -> None:
        """*commit* seals closed small files and commits; called between two operations."""
        self._store = store
        self._meta = store.meta
        self._tails = tails
        self._sealer = sealer
        self._durability = durability
        self._eraser = eraser
        self._limits = limits
        self._ahead = ReadAhead(store, limits)
        self._commit = commit
        self.interruptible: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext
        """Around each wait that a signal for the caller may end; raises OSError EINTR then."""
        self._promised = set(self._meta.inodes.unsealed())
        """Small files whose content an fsync may have covered."""

    # --- reading -------------------------------------------------------------------------------------------------

    async def read(self, file: OpenFile, offset: int, length: int) -> bytes:
        """Up to *length* bytes at *offset*; fewer only at the end of the file.

        Raises:
            SyncerError: bytes that are not here could not be had in time.
        """
        inode = self._meta.inodes.need(file.number)
        if inode.size <= offset:
            return b""
        if not file.traceless:
            self.note_access(inode)
        data = self._read_here(file, inode, offset, length)
        if data is None:
            with self.interruptible():
                data = await self._read_fetching(file, offset, length)
        if inode.content is None:
            self._ahead.note(file, offset, offset + len(data), partial(self._meta.extents.find, file.number))
        return data

    def note_access(self, inode: Inode) -> None:
        """relatime: an access is noted once after each change, and once a day."""
        if inode.atime_ns <= inode.mtime_ns or inode.atime_ns <= inode.ctime_ns:
            self._meta.inodes.see_read(inode, time.time_ns())
        elif (now := time.time_ns()) - inode.atime_ns > RELATIME_NS:
            self._meta.inodes.see_read(inode, now)

    def _read_here(
        self, file: OpenFile, inode: Inode, offset: int, length: int, arrived: Mapping[int, memoryview] = NOTHING
    ) -> bytes | None:
        """Up to *length* bytes at *offset*, in whatever form the file is now, if all of them are local.

        *arrived* are blocks whose bytes have just come, and are not in the cache yet.
        """
        end = min(offset + length, inode.size)
        if inode.content is not None:
            return bytes(memoryview(inode.content)[offset:end])
        if end <= offset:
            return b""
        extent = file.extent
        if extent is not None and file.epoch == inode.epoch and extent.start <= offset and end <= extent.end:
            return self._store.read(extent, offset - extent.start, end - offset, arrived)
        extents = self._extents(inode, offset, end)
        data = self._store.assemble(extents, offset, end, arrived)
        if data is not None and extents:
            file.extent, file.epoch = extents[-1], inode.epoch
        return data

    def _extents(self, inode: Inode, offset: int, end: int) -> list[Extent]:
        """What covers [offset, end), the tail included."""
        extents = self._meta.extents.find(inode.number, offset, end)
        if inode.tail and end > inode.tail_start:
            extents.append(Extent(inode.tail_start, inode.size - inode.tail_start, -inode.tail, 0))
        return extents

    async def _read_fetching(self, file: OpenFile, offset: int, length: int) -> bytes:
        """Fetch what is missing and read; again when the file changed or a bad copy was found meanwhile.

        One deadline holds for all of it, but not for what is fetched: others may wait for that too.
        """
        deadline_s = self._limits.read_deadline_s
        with in_time(deadline_s):
            for _ in range(4):
                inode = self._meta.inodes.need(file.number)
                end = min(offset + length, inode.size)
                numbers = [extent.source for extent in self._extents(inode, offset, end) if extent.source > 0]
                with self._store.budget.pin(numbers):
                    arrived = await self._store.fetch(numbers, deadline_s)
                    data = self._read_here(file, self._meta.inodes.need(file.number), offset, length, arrived)
                if data is not None:
                    return data
            raise OSError(errno.EIO, "the file changes faster than it can be fetched")

    # --- writing -------------------------------------------------------------------------------------------------

    async def write(self, number: int, offset: int, data: bytes | memoryview) -> int:
        """Write *data* at *offset*; returns how many bytes were taken.

        Fewer than all only when the disk became full half-way, or the file as large as a file may be.

        Raises:
            OSError: EFBIG; ENOSPC when there was no room in time. What was there before is untouched.
        """
        if offset + len(data) > FILE_MAX_BYTES:
            if offset >= FILE_MAX_BYTES:
                raise OSError(errno.EFBIG, "file too large")
            data = memoryview(data)[: FILE_MAX_BYTES - offset]
        if number in self._meta.extents.cuts:
            await self.may_grow(number, offset + len(data))
        if self._meta.database.is_commit_due() or not self._store.budget.fits(len(data)):
            await self.room(len(data), rows=offset + len(data) <= SMALL_BYTES)
        self._sealer.note(number)  # one that fails may leave something dirty too
        return self._write(self._meta.inodes.need(number), offset, data, time.time_ns())

    async def room(self, amount: int, *, rows: bool) -> None:
        """Return when *amount* bytes may be written, in meta.db where they are *rows*. Raises: OSError ENOSPC."""
        if self._meta.database.is_commit_due():
            self._commit()
        await self.keep_up()
        if self._store.budget.fits(amount):
            return
        try:
            with self.interruptible():
                await self._store.budget.reserve(amount, self._limits.write_deadline_s, rows=rows)
        except BudgetExhausted as error:
            raise OSError(errno.ENOSPC, str(error)) from error

    async def keep_up(self) -> None:
        """Return when a change may be recorded that needs no room of its own. Raises: OSError ENOSPC."""
        if not self._store.budget.is_log_long:
            return
        try:
            with self.interruptible():
                await self._store.budget.log_shortened(self._limits.write_deadline_s)
        except BudgetExhausted as error:
            raise OSError(errno.ENOSPC, str(error)) from error

    async def room_for_size(self, number: int, size: int) -> None:
        """Return when the file may be given the *size*. Raises: OSError ENOSPC.

        To a small content zeros are added, in meta.db; beyond what is small it becomes a file. Others take no room.
        """
        inode = self._meta.inodes.get(number)
        if inode is None or inode.content is None or size <= len(inode.content):
            await self.keep_up()
        elif size <= SMALL_BYTES:
            await self.room(size - len(inode.content), rows=True)
        else:
            await self.room(len(inode.content), rows=False)

    async def may_grow(self, number: int, size: int) -> None:
        """Return when nothing is left of what was cut off the file, if it is about to grow to *size*.

        It may grow before, too: all of that is then removed in one go, and everybody waits.
        """
        inode = self._meta.inodes.get(number)
        if inode is not None and size > inode.size and number in self._meta.extents.cuts:
            with trio.move_on_after(self._limits.write_deadline_s):
                await self._eraser.removed(number)

    def settle(self) -> None:
        """Do what the last write has left for after its answer."""
        self._tails.settle()

    def _write(self, inode: Inode, offset: int, data: bytes | memoryview, now_ns: int) -> int:
        """How many bytes were taken. Raises: OSError: none."""
        self._tails.settle()
        end = offset + len(data)
        if end <= SMALL_BYTES and self._is_small(inode):
            self._meta.extents.write_content(inode.number, offset, bytes(data), now_ns)
            return len(data)
        if inode.content is not None:
            self._spill(inode)
        if offset > inode.size:
            if inode.tail:
                self._meta.extents.finish_tail(inode.number)
            self._overwrite(inode, offset, data, now_ns)
            return len(data)
        inside = min(len(data), inode.size - offset)
        view = memoryview(data)
        if inside:
            if inode.tail and offset + inside > inode.tail_start:
                self._meta.extents.finish_tail(inode.number)
            self._overwrite(inode, offset, view[:inside], now_ns)
        try:
            if inside < len(view):
                self._tails.append(inode, view[inside:], now_ns)
        except OSError:
            taken = max(inside, self._meta.inodes.need(inode.number).size - offset)
            if not taken:
                raise
            return taken
        return len(data)

    def _is_small(self, inode: Inode) -> bool:
        """Whether the file is, or can become again, one small content."""
        if inode.content is not None:
            return True
        if inode.size > SMALL_BYTES or inode.tail or inode.overlay:
            return False
        if inode.size:
            parts = []
            position = 0
            for extent in self._meta.extents.find(inode.number, 0, inode.size):
                try:
                    data = self._store.read(extent, 0, extent.length)
                except LocalDamage:  # no reason not to take new bytes, maybe in the place of those that are lost
                    data = None
                if data is None:
                    return False
                parts += [bytes(extent.start - position), data]
                position = extent.end
            parts.append(bytes(inode.size - position))
            self._meta.extents.unseal_content(inode.number, b"".join(parts))
            self._promised.add(inode.number)
        return True

    def _spill(self, inode: Inode) -> None:
        """The small content becomes a tail. What an fsync has promised stays so. Raises: OSError."""
        assert inode.content is not None
        dirty = self._store.new_dirty(memoryview(inode.content))
        if inode.number in self._promised:
            self._store.renewal.sync_here([self._store.dirty.path(dirty)])
            self._store.dirty.promised.add(dirty)
        self._meta.extents.spill(inode.number, dirty)
        self._promised.discard(inode.number)

    def _overwrite(self, inode: Inode, offset: int, data: bytes | memoryview, now_ns: int) -> None:
        overlay = inode.overlay or self._meta.extents.new_dirty()
        self._store.dirty.write(overlay, offset, data)
        self._meta.extents.write_overlay(inode.number, offset, len(data), overlay, now_ns)

    def truncate(self, number: int, size: int) -> None:
        """Raises: OSError EFBIG, EINVAL."""
        if size > FILE_MAX_BYTES:
            raise OSError(errno.EFBIG, "file too large")
        self._tails.settle()
        inode = self._meta.inodes.need(number)
        if inode.content is not None and size > SMALL_BYTES:
            self._spill(inode)
        self._meta.extents.truncate(number, size, time.time_ns())
        self._eraser.wake()
        self._tails.forget(number)
        self._sealer.note(number)

    def relink(self, number: int, start: int, end: int, parts: Sequence[Part], size: int) -> None:
        """[start, end) of the file becomes slices of blocks, without their bytes; see `ExtentTable.relink`."""
        self._tails.settle()
        for _, _, block_id, _ in parts:
            self._store.share(number, block_id)
        self._meta.extents.relink(number, start, end, parts, size, time.time_ns())
        self._eraser.wake()
        self._tails.forget(number)
        self._promised.discard(number)
        self._sealer.note(number)

    async def fsync(self, number: int) -> None:
        """Return when the file and its metadata would survive a power cut."""
        self._tails.settle()
        inode = self._meta.inodes.get(number)
        if inode is not None and inode.content is not None:
            self._promised.add(number)
        dirty = set() if inode is None or inode.content is not None else self._meta.extents.dirty_files(inode)
        self._store.dirty.promised |= dirty
        unsynced = self._store.unsynced(number)
        await self._durability.sync(dirty, [self._store.cache.path(block_id) for block_id in unsynced])
        self._store.synced(unsynced)

    def erase(self, inode: Inode) -> None:
        """Delete an orphan with all its bytes."""
        self._tails.forget(inode.number)
        self._sealer.forget(inode.number)
        self._promised.discard(inode.number)
        self._eraser.erase(inode)
