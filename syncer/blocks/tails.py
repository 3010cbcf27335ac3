"""Growing tails: appended bytes go to a dirty file, are hashed on the way, and become a block where the content cuts.

Every appended byte is written once: when the cutter finds the end of a block, the dirty file *is* the block and is
renamed into the cache. Synchronous, on the event loop's thread; ATOMIC per call.
"""

import time

from blake3 import blake3

from syncer.blocks.cutter import CUT, DATA, HOLE, Cutter, new_cutter
from syncer.blocks.store import BlockStore
from syncer.meta.inodes import Inode
from syncer.values import BlockId

KEPT_TAILS = 64
_REREAD_BYTES = 1024 * 1024


class _Tail:
    """What is known of one tail beyond its bytes: where the cutter stands, and the hash so far."""

    __slots__ = ("cutter", "end", "hasher", "in_hole", "start")

    def __init__(self, start: int) -> None:
        self.start = start
        self.end = start
        """Where in the file the next byte goes; whoever wrote elsewhere meanwhile has made this state stale."""
        self.cutter: Cutter = new_cutter()
        self.hasher = blake3()
        self.in_hole = False


class Tails:
    def __init__(self, store: BlockStore) -> None:
        self._store = store
        self._meta = store.meta
        self._tails: dict[int, _Tail] = {}

    def forget(self, number: int) -> None:
        """Drop what is kept in memory for the inode; it is read again when needed."""
        self._tails.pop(number, None)

    def append(self, inode: Inode, data: bytes | memoryview, now_ns: int) -> None:
        """Write *data* at the end of the file, which is in the form of extents.

        Raises:
            OSError: the disk is full; what was taken before stays and counts (the size says how much).
        """
        tail = self._state(inode)
        view = memoryview(data)
        base = inode.size
        position = 0
        try:
            for offset, kind in tail.cutter.feed(view):
                if kind == DATA:
                    self._extend_hole(inode, base + offset, now_ns)
                    tail = self._begin(inode.number, base + offset, tail)
                    position = offset
                    continue
                if offset > position:
                    self._write(inode, tail, view[position:offset], now_ns)
                    position = offset
                if kind == CUT:
                    self._cut(inode, BlockId(tail.hasher.digest()), inode.size - tail.start)
                    tail = self._begin(inode.number, base + offset, tail)
                elif kind == HOLE:
                    self._cut_before_hole(inode, tail, base + offset)
            if tail.in_hole:
                self._extend_hole(inode, base + len(view), now_ns)
            elif position < len(view):
                self._write(inode, tail, view[position:], now_ns)
            tail.end = inode.size
        except BaseException:
            self.forget(inode.number)
            raise

    def _state(self, inode: Inode) -> _Tail:
        """The state for a file that is about to grow at its end; made anew when it is not the one we left."""
        tail = self._tails.get(inode.number)
        if tail is not None and tail.end == inode.size and (tail.in_hole or tail.start == inode.size or inode.tail):
            return tail
        tail = self._begin(inode.number, inode.tail_start if inode.tail else inode.size, None)
        position = tail.start
        while position < inode.size:
            data = self._store.dirty.read(inode.tail, position - tail.start, min(_REREAD_BYTES, inode.size - position))
            tail.hasher.update(data)
            if tail.cutter.feed(data):  # a spilled content, which no cutter has seen: leave it to the sealer
                self._meta.extents.finish_tail(inode.number)
                return self._begin(inode.number, inode.size, None)
            position += len(data)
        tail.end = inode.size
        return tail

    def _begin(self, number: int, start: int, before: _Tail | None) -> _Tail:
        """A new block starts at *start*; the cutter of the block *before* it goes on."""
        tail = _Tail(start)
        if before is not None:
            tail.cutter = before.cutter
        if len(self._tails) >= KEPT_TAILS and number not in self._tails:
            del self._tails[next(iter(self._tails))]
        self._tails[number] = tail
        return tail

    def _write(self, inode: Inode, tail: _Tail, data: memoryview, now_ns: int) -> None:
        dirty = inode.tail or self._meta.extents.new_dirty()
        self._store.dirty.write(dirty, inode.size - tail.start, data)
        tail.hasher.update(data)
        self._meta.extents.append(inode.number, dirty, tail.start, len(data), now_ns)

    def _cut(self, inode: Inode, block_id: BlockId, length: int) -> None:
        """End the tail after *length* bytes. A dirty file that is no new block goes with the next commit."""
        self._store.share(inode.number, block_id)
        self._meta.extents.cut(inode.number, length, block_id, int(time.time()))
        self._store.settle(inode.number)

    def _cut_before_hole(self, inode: Inode, tail: _Tail, hole: int) -> None:
        """Zeros from *hole* on are a hole; some of them may stand at the end of the tail already."""
        if inode.tail:
            length = hole - tail.start
            if hole < inode.size:  # the hash has swallowed zeros that are not part of the block
                tail.hasher = blake3(self._store.dirty.read(inode.tail, 0, length))
            self._cut(inode, BlockId(tail.hasher.digest()), length)
        tail.in_hole = True

    def _extend_hole(self, inode: Inode, size: int, now_ns: int) -> None:
        if size > inode.size:
            self._meta.extents.truncate(inode.number, size, now_ns)

    def seal(self, inode: Inode) -> None:
        """Make the tail a block although the content does not cut here (the file is wanted on the remote)."""
        tail = self._state(inode)
        self._cut(inode, BlockId(tail.hasher.digest()), inode.size - tail.start)
        self.forget(inode.number)
