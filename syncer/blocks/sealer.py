"""Turns dirty bytes into blocks once a file has been quiet for a while, or when somebody wants them on the remote.

Small contents become rows and tails become files without being read again. Overlays and finished tails are read and
cut in a thread, a batch at a time. Where a stretch of a file has become too fragmented it is cut anew.
"""

import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass

import trio

from syncer.blocks.budget import BATCH_BYTES
from syncer.blocks.codec import block_id
from syncer.blocks.cutter import DATA, HOLE, new_cutter
from syncer.blocks.store import BlockStore
from syncer.blocks.syncing import Durability
from syncer.blocks.tails import Tails
from syncer.errors import LocalDamage, SyncerError
from syncer.meta.extents import Extent, Piece
from syncer.meta.inodes import Inode
from syncer.values import BLOCK_MAX_BYTES, SMALL_BYTES, BlockId

log = logging.getLogger(__name__)

AT_ONCE = 64
"""So many small files are sealed before other tasks get their turn."""
FRAGMENTS_PER_MIB = 16
MARGIN_BYTES = 1024 * 1024
"""How far around fresh extents fragmentation is looked for."""
RESERVE_S = 30.0


@dataclass(frozen=True, slots=True)
class _Cut:
    """A piece found by the cutter: [start, start + length) of the file, to be a block."""

    start: int
    length: int
    block_id: BlockId
    data: bytes


def cut_stretch(start: int, parts: Iterable[bytes]) -> list[_Cut]:
    """Cut the bytes at *start* of a file into blocks; long runs of zeros are left out.

    Depends only on the bytes, so two ways of writing the same stretch give the same blocks.
    """
    cutter = new_cutter()
    pieces: list[_Cut] = []
    buffer = bytearray()
    begin = start
    position = start
    in_hole = False

    def close(end: int) -> None:
        nonlocal begin
        if end > begin:
            data = bytes(memoryview(buffer)[: end - begin])
            pieces.append(_Cut(begin, end - begin, block_id(data), data))
        del buffer[: max(0, end - begin)]
        begin = max(begin, end)

    for part in parts:
        taken = 0
        for offset, kind in cutter.feed(part):
            if kind == DATA:
                buffer.clear()
                begin, taken, in_hole = position + offset, offset, False
                continue
            if offset > taken:
                buffer += memoryview(part)[taken:offset]
                taken = offset
            close(position + offset)
            if kind == HOLE:
                buffer.clear()
                in_hole = True
        if not in_hole:
            buffer += memoryview(part)[taken:]
        position += len(part)
    if not in_hole:
        close(position)
    return pieces


class Sealer:
    def __init__(self, store: BlockStore, tails: Tails, durability: Durability, *, quiet_s: float) -> None:
        self._store = store
        self._durability = durability
        self._meta = store.meta
        self._tails = tails
        self._quiet_s = quiet_s
        self._written: dict[int, float] = {}
        self._busy: set[int] = set()
        self._wake = trio.Event()
        self._turn = trio.Lock()
        self.on_sealed: Callable[[], None] = lambda: None
        self._copied: list[tuple[int, int, Extent]] = []
        """(inode, dirty file, extent) of frozen bytes that are in blocks too: to be freed once those are durable."""
        self.pace: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint
        """Awaited now and then, so that meta.db can keep up."""
        for number in {*self._meta.inodes.unsealed(), *self._meta.extents.dirty_inodes()}:
            self._written[number] = 0.0

    def note(self, number: int) -> None:
        """The inode was written to just now."""
        self._written[number] = trio.current_time()

    def forget(self, number: int) -> None:
        """The inode is gone, or has no dirty bytes any more."""
        self._written.pop(number, None)

    def seal_closed(self) -> None:
        """Seal the small files that were written since the last commit and that nobody has open.

        Just before a commit: their bytes then become rows once, as blocks, and not first as contents. ATOMIC.
        """
        for inode in self._meta.inodes.unwritten_contents():
            if not inode.pins and inode.nlink:
                self._seal_content(inode)
                self.forget(inode.number)

    def _seal_content(self, inode: Inode) -> None:
        assert inode.content is not None
        self._meta.extents.seal_content(inode.number, block_id(inode.content), int(time.time()))

    def wake(self) -> None:
        """Room is wanted: seal what there is without waiting for quiet."""
        self._wake.set()

    @property
    def unsealed(self) -> int:
        """How many inodes have bytes that are not in blocks."""
        return len(self._written)

    async def run(self) -> None:
        """For as long as the file system is open."""
        while True:
            with trio.move_on_after(max(0.2, self._quiet_s / 2)):
                await self._wake.wait()
            hurry = self._wake.is_set()
            self._wake = trio.Event()
            await self.seal_quiet(0.0 if hurry else self._quiet_s)

    async def seal_quiet(self, quiet_s: float) -> None:
        """Seal every inode that was not written to for *quiet_s*."""
        async with self._turn:
            before = trio.current_time() - quiet_s
            due = [number for number, when in self._written.items() if when <= before]
            for count, number in enumerate(due, 1):
                await self._seal(number)
                if count % AT_ONCE == 0:
                    self._meta.commit()
                    await self.pace()
                    await trio.lowlevel.checkpoint()
        if due:
            self.on_sealed()

    async def seal_everything(self) -> None:
        """Return at a moment when nothing is dirty: between that moment and the caller's next await nothing can be.

        ATOMIC: the last part has no await.
        """
        for _ in range(4):
            await self.seal_quiet(0.0)
            if not self._written:
                return
        async with self._turn:
            for number in list(self._written):
                if self._start(number, []) is not None:
                    for dirty, run in self._runs(number):
                        pieces = self._pieces(number, cut_stretch(run[0].start, self._store.dirty.read_frozen(run)))
                        self._sync_now(pieces)
                        self._record(number, dirty, run, pieces)
                self._written.pop(number, None)

    async def _seal(self, number: int) -> None:
        """Seal one inode; what is written to it meanwhile is the next round's."""
        when = self._written.get(number)
        sealed: list[tuple[int, int]] = []
        try:
            inode = self._meta.inodes.get(number)
            if inode is not None and inode.content is not None:
                await self._store.budget.reserve(len(inode.content), RESERVE_S, rows=True, sealing=True)
            if self._start(number, sealed) is not None:
                for dirty, run in self._runs(number):
                    await self._seal_run(number, dirty, run)
                    sealed.append((run[0].start, run[-1].end))
            for begin, end in sealed:
                await self._mend_fragments(number, begin, end)
        except (SyncerError, OSError) as error:
            log.warning("inode %d cannot be sealed now: %s", number, error)
            return
        if self._written.get(number) is when:  # the same note: an equal time may be a later one
            self._written.pop(number, None)

    def _start(self, number: int, sealed: list[tuple[int, int]]) -> Inode | None:
        """Seal what needs no reading; its range goes to *sealed*. The inode, when dirty extents may be left. ATOMIC."""
        self._tails.settle()
        inode = self._meta.inodes.get(number)
        if inode is None:
            return None
        if inode.content is not None:
            self._seal_content(inode)
            return None
        if inode.tail:
            sealed.append((inode.tail_start, inode.size))
            if inode.size - inode.tail_start > SMALL_BYTES:
                self._tails.seal(inode)
            else:
                self._meta.extents.finish_tail(number)
        if inode.overlay:
            self._meta.extents.retire_overlay(number)
        return inode

    def _runs(self, number: int) -> list[tuple[int, list[Extent]]]:
        """Adjoining extents in one frozen dirty file, up to a batch each: (dirty file, extents)."""
        inode = self._meta.inodes.get(number)
        runs: list[tuple[int, list[Extent]]] = []
        for extent in self._meta.extents.dirty_extents(number):
            if inode is not None and -extent.source == inode.overlay:
                continue  # written since: the next round's
            last = runs[-1][1] if runs else None
            adjoins = last is not None and last[-1].end == extent.start and last[-1].source == extent.source
            if last is not None and adjoins and extent.end - last[0].start <= BATCH_BYTES:
                last.append(extent)
                continue
            runs.extend((-extent.source, [part]) for part in _batches(extent))
        return runs

    async def _seal_run(self, number: int, dirty: int, run: list[Extent]) -> None:
        length = run[-1].end - run[0].start
        await self._store.budget.reserve(length, RESERVE_S, sealing=True)
        with self._store.budget.hold(length):
            try:
                cuts = await trio.to_thread.run_sync(self._cut_run, run)
            except LocalDamage:
                if self._meta.extents.is_dirty_in_use(dirty):
                    raise
                return  # the file was truncated or deleted meanwhile, and its dirty bytes with it
            self._record(number, dirty, run, await self._durable_pieces(number, cuts))
            await self._free_copied()

    def _cut_run(self, run: list[Extent]) -> list[_Cut]:
        """In a thread: read and cut a run."""
        return cut_stretch(run[0].start, self._store.dirty.read_frozen(run))

    def _record(self, number: int, dirty: int, run: Sequence[Extent], pieces: Sequence[Piece]) -> None:
        """Record durable blocks in place of the bytes they were made of, which are freed later. ATOMIC."""
        begin, end = run[0].start, run[-1].end
        self._meta.extents.seal(number, dirty, begin, end, pieces, int(time.time()))
        self._store.settle(number)
        self._copied += [(number, dirty, extent) for extent in run]

    async def _durable_pieces(self, number: int, cuts: Sequence[_Cut]) -> list[Piece]:
        """Write the blocks down; durably, because the record of them takes the place of bytes that may be durable.

        Raises: OSError: then nothing of it is left.
        """
        pieces = self._pieces(number, cuts)
        try:
            if files := _files_of(pieces):
                await self._durability.sync(dirty=files)
        except BaseException:
            self._store.discard(pieces)
            raise
        return pieces

    def _sync_now(self, pieces: Sequence[Piece]) -> None:
        """The same without an await. Raises: OSError."""
        for dirty in _files_of(pieces):
            descriptor = self._store.dirty.duplicate(dirty)
            if descriptor is not None:
                try:
                    os.fdatasync(descriptor)
                finally:
                    os.close(descriptor)

    def _pieces(self, number: int, cuts: Sequence[_Cut]) -> list[Piece]:
        """Raises: OSError: then nothing of it is left."""
        pieces: list[Piece] = []
        try:
            for cut in cuts:
                pieces.append(self._store.piece(number, cut.start, cut.block_id, cut.data))
        except BaseException:
            self._store.discard(pieces)
            raise
        return pieces

    async def _free_copied(self) -> None:
        """Give back the room of what was copied into blocks, once these and their record survive a power cut too."""
        copied, self._copied = self._copied, []
        for number in {number for number, _, _ in copied}:
            unsynced = self._store.unsynced(number)
            await self._durability.sync(files=[self._store.cache.path(block_id) for block_id in unsynced])
            self._store.synced(unsynced)
        for _, dirty, extent in copied:
            self._store.dirty.punch(dirty, extent.source_offset, extent.length)
        self._store.budget.changed()

    # --- cutting anew --------------------------------------------------------------------------------------------

    async def _mend_fragments(self, number: int, begin: int, end: int) -> None:
        """Cut the fragmented stretches around [begin, end) of a file anew, as far as their bytes are here."""
        position = max(0, begin - MARGIN_BYTES)
        while position < end + MARGIN_BYTES:
            group = self._group(number, position, end + MARGIN_BYTES)
            if not group:
                return
            position = group[-1].end
            length = position - group[0].start
            if len(group) > FRAGMENTS_PER_MIB * max(1, length // (1024 * 1024)):
                await self._cut_anew(number, group)

    def _group(self, number: int, begin: int, end: int) -> list[Extent]:
        """The first sealed extents in [begin, end) that adjoin each other, of about two blocks at most."""
        group: list[Extent] = []
        for extent in self._meta.extents.find(number, begin, min(end, begin + 2 * BLOCK_MAX_BYTES)):
            if extent.source < 0 or (group and group[-1].end != extent.start):
                if group:
                    break
                continue
            group.append(extent)
        return group

    async def _cut_anew(self, number: int, group: list[Extent]) -> None:
        parts = [self._store.read(extent, 0, extent.length) for extent in group]
        here = [part for part in parts if part is not None]
        if len(here) < len(group):
            return
        begin, end = group[0].start, group[-1].end
        await self._store.budget.reserve(end - begin, RESERVE_S, sealing=True)
        with self._store.budget.hold(end - begin):
            cuts = await trio.to_thread.run_sync(cut_stretch, begin, here)
            pieces = await self._durable_pieces(number, cuts)
        if self._meta.extents.find(number, begin, end) != group:  # ATOMIC from here: nobody wrote there meanwhile
            self._store.discard(pieces)
            return
        self._meta.extents.replace(number, begin, end - begin, pieces, int(time.time()))
        self._meta.database.sync()  # the next commit deletes what they replace
        self._store.settle(number)


def _files_of(pieces: Sequence[Piece]) -> list[int]:
    """The dirty files that hold pieces."""
    return [held for _, _, _, held in pieces if isinstance(held, int)]


def _batches(extent: Extent) -> Iterable[Extent]:
    """The extent in parts of at most a batch."""
    for offset in range(0, extent.length, BATCH_BYTES):
        length = min(BATCH_BYTES, extent.length - offset)
        yield Extent(extent.start + offset, length, extent.source, extent.source_offset + offset)
