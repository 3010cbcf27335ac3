"""Turns dirty bytes into blocks once a file has been quiet for a while, or when somebody wants them on the remote.

Small contents become rows and tails become files without being read again. Overlays and finished tails are read and
cut in a thread, a stretch at a time: where they hold many small ranges, together with what is between these. Where a
stretch of a file has become too fragmented all the same it is cut anew.
"""

import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import trio

from syncer.blocks.budget import BATCH_BYTES
from syncer.blocks.codec import block_id
from syncer.blocks.cutter import DATA, HOLE, new_cutter
from syncer.blocks.store import BlockStore
from syncer.blocks.syncing import Durability
from syncer.blocks.tails import Tails
from syncer.errors import LocalDamage, SyncerError
from syncer.meta.extent import Extent, Piece
from syncer.meta.inodes import Inode
from syncer.values import BLOCK_MAX_BYTES, SMALL_BYTES, BlockId

log = logging.getLogger(__name__)

AT_ONCE = 64
"""So many small files are sealed before other tasks get their turn."""
FRAGMENTS_PER_MIB = 16
GAP_BYTES = 1024 * 1024 // FRAGMENTS_PER_MIB
"""Dirty bytes no farther apart than this are cut together with what is between them, if that is here."""
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


@dataclass(frozen=True, slots=True)
class _Copy:
    """The blocks made of a stretch of a file, and what covered it when it was read."""

    found: list[Extent]
    pieces: list[Piece]

    @property
    def begin(self) -> int:
        return self.found[0].start

    @property
    def end(self) -> int:
        return self.found[-1].end


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
        self._wake = trio.Event()
        self._turn = trio.Lock()
        self.on_sealed: Callable[[], None] = lambda: None
        self._copied: list[tuple[int, int, int, int]] = []
        """(inode, dirty file, begin, end) of frozen bytes that are in blocks too: freed once those are durable."""
        self.pace: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint
        """Awaited now and then, so that meta.db can keep up."""
        self._written.update(dict.fromkeys(self._unsealed(), 0.0))

    def note(self, number: int) -> None:
        """The inode was written to just now."""
        self._written[number] = trio.current_time()

    def has_overlooked(self) -> bool:
        """Whether `seal_everything` has left something, which is then noted: a snapshot would have holes there.

        Commits, because the tables are complete only then; they tell from two indexes, which are empty.
        """
        self._meta.commit()
        left = [number for number in self._unsealed() if self._meta.inodes.get(number) is not None]
        for number in left:
            self._written.setdefault(number, 0.0)
            log.error("inode %d has bytes that nobody was about to seal", number)
        return bool(left)

    def _unsealed(self) -> set[int]:
        """Inodes that have bytes in no block, as of the last commit."""
        return {*self._meta.inodes.unsealed(), *self._meta.extents.dirty_inodes()}

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
                    for begin, end in self._stretches(number, gap_bytes=0):
                        found = self._meta.extents.view(number, begin, end, frozen=True)
                        copy = _Copy(found, self._pieces(number, self._cut_parts(found, [None] * len(found))))
                        written = [self._store.dirty.path(held) for held in _files_of(copy.pieces)]
                        self._store.renewal.sync_here([*written, *self._store.unsynced_files(copy.pieces)])
                        self._record_all(number, [copy])
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
                sealed += await self._seal_stretches(number, self._stretches(number))
            for begin, end in _joined(sealed, 2 * MARGIN_BYTES):
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

    def _stretches(self, number: int, *, gap_bytes: int = GAP_BYTES) -> Iterator[tuple[int, int]]:
        """(begin, end) of what is to be cut together: frozen dirty bytes, with what is between them where it is little.

        Looks at the file as it goes, so that it may change between two of them.
        """
        extents = self._meta.extents
        position = extents.next_frozen(number, 0)
        while position is not None:
            window_end = position + BATCH_BYTES
            begin = end = position
            for extent in extents.view(number, position, window_end, frozen=True):
                if extent.source > 0:
                    continue
                if extent.start > end + gap_bytes:
                    yield begin, end
                    begin = extent.start
                end = extent.end
            yield begin, end
            position = extents.next_frozen(number, window_end)

    async def _seal_stretches(self, number: int, stretches: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
        """Make blocks of stretches of the file as they are now, several stretches at a time. Returns the stretches."""
        done: list[tuple[int, int]] = []
        copies: list[_Copy] = []
        total = 0
        try:
            for begin, end in stretches:
                done.append((begin, end))
                if total + end - begin > BATCH_BYTES:
                    await self._record_durably(number, copies)
                    total = 0
                await self._copy(number, begin, end, copies)
                total += end - begin
            await self._record_durably(number, copies)
        finally:
            for copy in copies:
                self._store.discard(copy.pieces)
        return done

    async def _copy(self, number: int, begin: int, end: int, copies: list[_Copy]) -> None:
        """Cut [begin, end) as it is now; if not all of it is here, what is dirty of it."""
        found = self._meta.extents.view(number, begin, end, frozen=True)
        if not found:
            return
        begin, end = found[0].start, found[-1].end
        blocks = [extent.source for extent in found if extent.source > 0]
        await self._store.budget.reserve(end - begin, RESERVE_S, sealing=True)
        with self._store.budget.hold(end - begin), self._store.budget.pin(blocks):
            parts = await self._here(found)
            if parts is not None:
                try:
                    cuts = await trio.to_thread.run_sync(self._cut_parts, found, parts)
                except LocalDamage:
                    if self._meta.extents.view(number, begin, end, frozen=True) == found:
                        raise
                    return  # truncated or deleted meanwhile, and its dirty bytes with it
                copies.append(_Copy(found, self._pieces(number, cuts)))
        if parts is None:
            for extent in found:
                if extent.source < 0:
                    await self._copy(number, extent.start, extent.end, copies)

    async def _here(self, found: Sequence[Extent]) -> list[bytes | None] | None:
        """The bytes of blocks, and None for what a dirty file holds; no list when a block is not in the cache."""
        if not all(extent.source < 0 or self._store.has(extent) for extent in found):
            return None
        parts: list[bytes | None] = []
        for extent in found:
            data = None
            if extent.source > 0:
                await trio.lowlevel.checkpoint()
                with contextlib.suppress(LocalDamage):  # then what is dirty is sealed without it
                    data = self._store.read(extent, 0, extent.length) if self._store.has(extent) else None
                if data is None:  # its only extent went meanwhile, or the copy turned out to be bad
                    return None
            parts.append(data)
        return parts

    def _cut_parts(self, found: Sequence[Extent], parts: Sequence[bytes | None]) -> list[_Cut]:
        """In a thread: read what is missing and cut it all. Between the extents are zeros. Raises: LocalDamage."""

        def contiguous() -> Iterator[bytes]:
            position = found[0].start
            with self._store.dirty.frozen() as read:
                for extent, part in zip(found, parts, strict=True):
                    if extent.start > position:
                        yield bytes(extent.start - position)
                    yield read(extent) if part is None else part
                    position = extent.end

        return cut_stretch(found[0].start, contiguous())

    async def _record_durably(self, number: int, copies: list[_Copy]) -> None:
        """Record the blocks, which are durable before, because what they take the place of may be. See `_record_all`.

        Raises: OSError.
        """
        pieces = [piece for copy in copies for piece in copy.pieces]
        files = _files_of(pieces)
        synced: set[Path] = set()
        while files or not synced.issuperset(self._store.unsynced_files(pieces)):  # another file may have got them too
            synced.update(self._store.unsynced_files(pieces))
            await self._durability.sync(dirty=files, files=synced)
            files = []
        self._record_all(number, copies)
        await self._free_copied()

    def _record_all(self, number: int, copies: list[_Copy]) -> None:
        """Record durable blocks in place of what they were made of. ATOMIC. *copies* is empty then.

        A stretch that has changed is left: whoever changed it has noted it for the next round.
        """
        while copies:
            copy = copies.pop()
            if self._meta.extents.view(number, copy.begin, copy.end, frozen=True) == copy.found:
                self._record(number, copy)
            else:
                self._store.discard(copy.pieces)
        self._store.settle(number)

    def _record(self, number: int, copy: _Copy) -> None:
        dirty = [extent for extent in copy.found if extent.source < 0]
        newest = self._meta.extents.newest_frozen(number)
        self._meta.extents.seal(number, copy.begin, copy.end, newest, copy.pieces, int(time.time()))
        for source in {extent.source for extent in dirty}:
            places = [(part.source_offset, part.source_offset + part.length) for part in dirty if part.source == source]
            self._copied.append((number, -source, places[0][0], places[-1][1]))  # what is between is in none of them

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
        for number in {number for number, _, _, _ in copied}:
            unsynced = self._store.unsynced(number)
            await self._durability.sync(files=[self._store.cache.path(block_id) for block_id in unsynced])
            self._store.synced(unsynced)
        for _, dirty, begin, end in copied:
            self._store.dirty.punch(dirty, begin, end - begin)
        self._store.budget.changed()

    # --- cutting anew --------------------------------------------------------------------------------------------

    async def _mend_fragments(self, number: int, begin: int, end: int) -> None:
        """Cut the fragmented stretches around [begin, end) of a file anew, as far as their bytes are here."""
        position, end = max(0, begin - MARGIN_BYTES), end + MARGIN_BYTES
        while position < end:
            await trio.lowlevel.checkpoint()
            extents = self._meta.extents.find(number, position, min(end, position + 2 * BLOCK_MAX_BYTES))
            position = max(position + 2 * BLOCK_MAX_BYTES, extents[-1].end if extents else 0)
            groups = [group for group in _adjoining(extents) if _is_fragmented(group)]
            here = [group for group in groups if all(self._store.has(extent) for extent in group)]
            await self._seal_stretches(number, [(group[0].start, group[-1].end) for group in here])


def _adjoining(extents: Iterable[Extent]) -> list[list[Extent]]:
    """Those of blocks, in groups that leave no gap."""
    groups: list[list[Extent]] = []
    end = -1
    for extent in extents:
        if extent.source > 0:
            if extent.start != end:
                groups.append([])
            groups[-1].append(extent)
            end = extent.end
    return groups


def _is_fragmented(group: Sequence[Extent]) -> bool:
    length = group[-1].end - group[0].start
    return len(group) > FRAGMENTS_PER_MIB * max(1, length // (1024 * 1024))


def _files_of(pieces: Sequence[Piece]) -> list[int]:
    """The dirty files that hold pieces."""
    return [held for _, _, _, held in pieces if isinstance(held, int)]


def _joined(ranges: Iterable[tuple[int, int]], gap_bytes: int) -> list[tuple[int, int]]:
    """The ranges (begin, end), in order, and as one where they are no farther apart than *gap_bytes*."""
    joined: list[tuple[int, int]] = []
    for begin, end in sorted(ranges):
        if joined and begin <= joined[-1][1] + gap_bytes:
            joined[-1] = joined[-1][0], max(joined[-1][1], end)
        else:
            joined.append((begin, end))
    return joined
