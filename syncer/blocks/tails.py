"""Growing tails: appended bytes go to a dirty file, are hashed on the way, and become a block where the content cuts.

An append writes its bytes and records them, which is all that its caller waits for. Looking for cuts, hashing and
moving blocks into the cache come after the answer, in `settle`, before anything else happens to the file. Nearly
every byte is written once: the dirty file that ends at a cut *is* the block and is renamed into the cache; only what
the last append brought beyond the cut is written again. Synchronous, on the event loop's thread; ATOMIC per call.
"""

import errno
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

from blake3 import blake3

from syncer.blocks.codec import block_id
from syncer.blocks.cutter import DATA, HOLE, Cutter, new_cutter
from syncer.blocks.store import BlockStore
from syncer.errors import LocalDamage
from syncer.meta.extent import Piece
from syncer.meta.inodes import Inode
from syncer.values import BlockId

log = logging.getLogger(__name__)

KEPT_TAILS = 64
_REREAD_BYTES = 1024 * 1024


class _Tail:
    """What is known of one tail beyond its bytes: where the cutter stands, and the hash so far."""

    __slots__ = ("cutter", "end", "hasher", "in_hole", "start")

    def __init__(self, start: int, cutter: Cutter) -> None:
        self.start = start
        self.end = start
        """Up to where the cutter and the hash have seen the file; whoever wrote elsewhere has made this state stale."""
        self.cutter = cutter
        self.hasher = blake3()
        self.in_hole = False


@dataclass(frozen=True, slots=True)
class _Appended:
    """Bytes at *offset* of a file that are in its tail and not looked at yet.

    *events* is what the cutter found in them, where it had to look before they were written.
    """

    number: int
    dirty: int
    offset: int
    data: memoryview
    events: list[tuple[int, int]] | None


class Tails:
    def __init__(self, store: BlockStore) -> None:
        self._store = store
        self._meta = store.meta
        self._tails: dict[int, _Tail] = {}
        self._appended: _Appended | None = None

    def forget(self, number: int) -> None:
        """Drop what is kept in memory for the inode; it is read again when needed."""
        self._tails.pop(number, None)
        if self._appended is not None and self._appended.number == number:
            self._appended = None

    # --- appending -----------------------------------------------------------------------------------------------

    def append(self, inode: Inode, data: bytes | memoryview, now_ns: int) -> None:
        """Write *data* at the end of the file, which is in the form of extents.

        Raises:
            OSError: the disk is full; what was taken before stays and counts (the size says how much).
        """
        self.settle()
        tail = self._state(inode)
        view = memoryview(data)
        events = None
        if tail.in_hole:
            events = tail.cutter.feed(view)
            zeros = events[0][0] if events else len(view)
            if zeros:
                self._meta.extents.truncate(inode.number, inode.size + zeros, now_ns)
                tail.end = inode.size
            if not events:
                return
            tail = self._keep(inode.number, _Tail(inode.size, tail.cutter))
            view = view[zeros:]
            events = [(offset - zeros, kind) for offset, kind in events[1:]]
        offset = inode.size
        dirty = inode.tail or self._meta.extents.new_dirty()
        try:
            taken = self._store.dirty.write_some(dirty, offset - tail.start, view)
            self._meta.extents.append(inode.number, dirty, tail.start, taken, now_ns)
        except BaseException:
            self.forget(inode.number)
            raise
        if taken < len(view):
            self.forget(inode.number)
            raise OSError(errno.ENOSPC, "the disk became full half-way")
        self._appended = _Appended(inode.number, dirty, offset, view, events)

    def _state(self, inode: Inode) -> _Tail:
        """The state for a file that is about to grow at its end; made anew when it is not the one we left."""
        tail = self._tails.get(inode.number)
        if tail is not None and tail.end == inode.size and (tail.in_hole or tail.start == inode.size or inode.tail):
            return tail
        tail = self._keep(inode.number, _Tail(inode.tail_start if inode.tail else inode.size, new_cutter()))
        position = tail.start
        while position < inode.size:
            data = self._store.dirty.read(inode.tail, position - tail.start, min(_REREAD_BYTES, inode.size - position))
            tail.hasher.update(data)
            if tail.cutter.feed(data):  # bytes that no cutter has seen: leave them to the sealer
                self._meta.extents.finish_tail(inode.number)
                return self._keep(inode.number, _Tail(inode.size, new_cutter()))
            position += len(data)
        tail.end = inode.size
        return tail

    def _keep(self, number: int, tail: _Tail) -> _Tail:
        if len(self._tails) >= KEPT_TAILS and number not in self._tails:
            del self._tails[next(iter(self._tails))]
        self._tails[number] = tail
        return tail

    # --- cutting -------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Look at what the last append brought: hash it, and cut the tail where its content says.

        To be called before anything else happens to a file, and as soon as its caller has the answer. Never fails:
        without room for it the tail stays as it is, and the sealer cuts it later.
        """
        if self._appended is None:
            return
        appended, self._appended = self._appended, None
        inode = self._meta.inodes.get(appended.number)
        tail = self._tails.get(appended.number)
        whole = inode is not None and inode.tail == appended.dirty
        if inode is None or tail is None or not whole or tail.end != appended.offset:
            self.forget(appended.number)
            return
        try:
            events = tail.cutter.feed(appended.data) if appended.events is None else appended.events
            if events:
                self._cut(inode, tail, appended, events)
            else:
                tail.hasher.update(appended.data)
                tail.end = inode.size
        except (OSError, LocalDamage) as error:
            log.info("inode %d is cut later: %s", appended.number, error)
            self.forget(appended.number)

    def _cut(self, inode: Inode, tail: _Tail, appended: _Appended, events: Sequence[tuple[int, int]]) -> None:
        """End the tail at the first of *events*, make blocks up to the last, and begin a new tail with the rest."""
        pieces: list[Piece] = []
        try:
            following, rest = self._pieces(inode, tail, appended, events, pieces)
        except BaseException:
            self._store.discard(piece for piece in pieces if piece[3] != appended.dirty)
            raise
        self._record_cut(inode, pieces, rest, following.start)
        self._keep(inode.number, following)

    def _secure(self, inode: Inode, pieces: Sequence[Piece]) -> None:
        """What an fsync has promised is not given up for a block that a power cut may take, even if but its end.

        Raises: OSError.
        """
        if inode.tail in self._store.dirty.promised:
            files = [self._store.dirty.path(inode.tail), *self._store.unsynced_files(pieces)]
            self._store.renewal.sync_here(files)

    def _record_cut(self, inode: Inode, pieces: list[Piece], rest: int, rest_start: int) -> None:
        """The tail's file moves into the cache; when an fsync has promised its bytes, not before that is on record."""
        promised = inode.tail in self._store.dirty.promised
        self._meta.extents.cut(inode.number, pieces, rest, rest_start, int(time.time()))
        if promised:
            self._meta.database.sync_here()
        self._store.settle(inode.number)

    def _pieces(
        self,
        inode: Inode,
        tail: _Tail,
        appended: _Appended,
        events: Sequence[tuple[int, int]],
        pieces: list[Piece],
    ) -> tuple[_Tail, int]:
        """Add the blocks to *pieces* as they are written; returns the tail after them and its dirty file, or 0."""
        data, base = appended.data, appended.offset
        begin = tail.start
        in_hole = False
        for offset, kind in events:
            end = base + offset
            if kind != DATA and end > begin:
                if begin == tail.start:
                    pieces.append(self._first_piece(inode, tail, appended, end))
                else:
                    piece = data[begin - base : offset]
                    pieces.append(self._store.piece(inode.number, begin, block_id(piece), piece))
            begin, in_hole = end, kind == HOLE
        following = _Tail(begin, tail.cutter)
        following.end, following.in_hole = inode.size, in_hole
        self._secure(inode, pieces)
        rest = 0
        if inode.size > begin and not in_hole:
            rest = self._store.new_dirty(data[begin - base :])
            following.hasher.update(data[begin - base :])
        return following, rest

    def _first_piece(self, inode: Inode, tail: _Tail, appended: _Appended, end: int) -> Piece:
        """The block that ends at *end* and whose bytes are those of the tail's file."""
        length = end - tail.start
        if end < appended.offset:  # zeros that the hash has swallowed already belong to a hole
            tail.hasher = blake3(self._store.dirty.read(appended.dirty, 0, length))
        else:
            tail.hasher.update(appended.data[: end - appended.offset])
        found = BlockId(tail.hasher.digest())
        self._store.share(inode.number, found)
        return tail.start, length, found, appended.dirty

    def seal(self, inode: Inode) -> None:
        """Make the tail a block although the content does not cut here (the file is wanted on the remote)."""
        self.settle()
        tail = self._state(inode)
        if inode.tail:
            found = BlockId(tail.hasher.digest())
            self._store.share(inode.number, found)
            piece = tail.start, inode.size - tail.start, found, inode.tail
            self._secure(inode, [piece])
            self._record_cut(inode, [piece], 0, 0)
        self.forget(inode.number)
