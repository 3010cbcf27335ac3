"""Random valid calls of every journaled operation, for the tests of replay. No engine: tables alone.

A move is the name of a method of Moves and two numbers that choose among what there is; one that finds nothing to do
does nothing. Dirty files are numbers here, without bytes: the tables never look into them.
"""

import stat
from collections.abc import Callable
from typing import Any

from blake3 import blake3

from syncer.meta.blocktable import CACHED_ROW, NOT_CACHED
from syncer.meta.extent import Piece
from syncer.meta.inodes import Inode
from syncer.meta.store import MetaStore
from syncer.values import CONTENT, SMALL_BYTES, BlockId, PackId, PeerId, TreeId

Move = tuple[str, int, int]
NAMES = (b"a", b"b", b"\xff")


def identity(text: str) -> bytes:
    return blake3(text.encode()).digest()


class Moves:
    def __init__(self, meta: MetaStore) -> None:
        self._meta = meta
        self._now = 0

    def play(self, move: Move) -> None:
        self._now += 1
        method: Callable[[int, int], None] = getattr(self, move[0])
        method(move[1], move[2])

    # --- choosing ------------------------------------------------------------------------------------------------

    def _rows(self, query: str) -> list[tuple[Any, ...]]:
        return self._meta.database.connection.execute(query).fetchall()

    def _inodes(self, wanted: Callable[[Inode], bool]) -> list[Inode]:
        numbers = {row[0] for row in self._rows("SELECT inode FROM dentries UNION SELECT inode FROM inodes")}
        inodes = [self._meta.inodes.get(number) for number in sorted({1, *numbers})]
        return [inode for inode in inodes if inode is not None and wanted(inode)]

    def _pick(self, index: int, wanted: Callable[[Inode], bool]) -> Inode | None:
        found = self._inodes(wanted)
        return found[index % len(found)] if found else None

    def _directory(self, index: int) -> int:
        inode = self._pick(index, lambda inode: inode.is_directory and inode.nlink > 0)
        assert inode is not None
        return inode.number

    def _name(self, index: int) -> tuple[int, bytes, Inode] | None:
        names = self._rows("SELECT parent, name, inode FROM dentries ORDER BY cookie")
        if not names:
            return None
        parent, name, number = names[index % len(names)]
        return parent, name, self._meta.inodes.need(number)

    def _free_name(self, index: int) -> tuple[int, bytes] | None:
        parent, name = self._directory(index), NAMES[index % len(NAMES)]
        return None if self._meta.names.lookup(parent, name) is not None else (parent, name)

    def _file(self, index: int, *, content: bool | None = None, tail: bool | None = None) -> Inode | None:
        def fits(inode: Inode) -> bool:
            if content is not None and content != (inode.content is not None):
                return False
            return inode.is_regular and (tail is None or tail == bool(inode.tail))

        return self._pick(index, fits)

    def _block_id(self, text: object) -> BlockId:
        return BlockId(identity(f"block {text}"))

    # --- names and attributes ------------------------------------------------------------------------------------

    def create(self, a: int, b: int) -> None:
        place = self._free_name(a)
        if place is not None:
            kind, target = (
                *((stat.S_IFREG, None), (stat.S_IFREG, None), (stat.S_IFDIR, None)),
                *((stat.S_IFLNK, b"there"), (stat.S_IFIFO, None)),
            )[b % 5]
            number = self._meta.new_inode()
            self._meta.names.create(*place, number, kind | 0o644, b, b, 0, target, self._now)

    def link(self, a: int, b: int) -> None:
        inode, place = self._pick(a, lambda inode: not inode.is_directory), self._free_name(b)
        if inode is not None and place is not None:
            self._meta.names.link(inode.number, *place, self._now)

    def unlink(self, a: int, b: int) -> None:
        found = self._name(a)
        if found is None:
            return
        parent, name, inode = found
        if not inode.is_directory:
            self._meta.names.unlink(parent, name, self._now)
        elif self._meta.names.is_empty(inode.number):
            self._meta.names.rmdir(parent, name, self._now)

    def erase(self, a: int, b: int) -> None:
        inode = self._pick(a, lambda inode: not inode.nlink)
        if inode is not None:
            self._meta.extents.erase(inode.number)

    def rename(self, a: int, b: int) -> None:
        found, parent, name = self._name(a), self._directory(b), NAMES[b % len(NAMES)]
        if found is None:
            return
        inode = found[2]
        number = self._meta.names.lookup(parent, name)
        replaced = None if number is None else self._meta.inodes.need(number)
        if replaced is not None and (
            replaced is inode
            or replaced.is_directory != inode.is_directory
            or not self._meta.names.is_empty(replaced.number)
        ):
            return
        if not inode.is_directory or not self._meta.names.is_ancestor(inode.number, parent):
            self._meta.names.rename(found[0], found[1], parent, name, self._now)

    def exchange(self, a: int, b: int) -> None:
        one, other = self._name(a), self._name(b)
        if one is None or other is None or one[2] is other[2]:
            return
        for (_, _, inode), (parent, _, _) in ((one, other), (other, one)):
            if inode.is_directory and self._meta.names.is_ancestor(inode.number, parent):
                return
        self._meta.names.exchange(*one[:2], *other[:2], self._now)

    def attributes(self, a: int, b: int) -> None:
        inode = self._pick(a, lambda inode: True)
        assert inode is not None
        self._meta.inodes.set_attributes(inode.number, b & 0o7777, None, b, None, b, self._now)

    def xattr(self, a: int, b: int) -> None:
        inode = self._pick(a, lambda inode: True)
        assert inode is not None
        name = b"user.%d" % (b % 3)
        self._meta.inodes.set_xattr(inode.number, name, None if b % 4 == 3 else bytes([b % 256]), self._now)

    # --- bytes ---------------------------------------------------------------------------------------------------

    def content(self, a: int, b: int) -> None:
        inode = self._pick(a, lambda i: i.is_regular and (i.content is not None or not (i.size or i.tail or i.overlay)))
        if inode is not None:
            self._meta.extents.write_content(inode.number, b * 10, bytes([b % 256]) * b, self._now)

    def spill(self, a: int, b: int) -> None:
        inode = self._file(a, content=True)
        if inode is not None:
            self._meta.extents.spill(inode.number, self._meta.extents.new_dirty())

    def seal_content(self, a: int, b: int) -> None:
        inode = self._file(a, content=True)
        if inode is not None:
            assert inode.content is not None
            self._meta.extents.seal_content(inode.number, self._block_id(bytes(inode.content)), self._now)

    def unseal_content(self, a: int, b: int) -> None:
        inode = self._pick(a, lambda i: i.is_regular and i.content is None and i.size <= SMALL_BYTES)
        if inode is not None and not (inode.tail or inode.overlay):
            self._meta.extents.unseal_content(inode.number, bytes(inode.size))

    def append(self, a: int, b: int) -> None:
        inode = self._file(a, content=False)
        if inode is not None:
            dirty = inode.tail or self._meta.extents.new_dirty()
            self._meta.extents.append(inode.number, dirty, inode.size, 1 + b * 4000, self._now)

    def cut(self, a: int, b: int) -> None:
        inode = self._file(a, tail=True)
        if inode is not None:
            begin, dirty = inode.tail_start, inode.tail
            length = (inode.size - begin) * min(b, 8) // 8
            pieces: list[Piece] = [(begin, length, self._block_id(("tail", length, b % 3)), dirty)] if length else []
            rest = self._meta.extents.new_dirty() if b % 2 and begin + length < inode.size else 0
            self._meta.extents.cut(inode.number, pieces, rest, begin + length, self._now)

    def finish_tail(self, a: int, b: int) -> None:
        inode = self._file(a, tail=True)
        if inode is not None:
            self._meta.extents.finish_tail(inode.number)

    def overlay(self, a: int, b: int) -> None:
        inode = self._file(a, content=False, tail=False)
        if inode is not None:
            overlay = inode.overlay or self._meta.extents.new_dirty()
            self._meta.extents.write_overlay(inode.number, b * 700, 1 + a * 900, overlay, self._now)

    def retire_overlay(self, a: int, b: int) -> None:
        inode = self._file(a)
        if inode is not None:
            self._meta.extents.retire_overlay(inode.number)

    def seal(self, a: int, b: int) -> None:
        """What dirty files of the inode hold becomes blocks, some of it a hole; perhaps blocks around it too."""
        inode = self._file(a, content=False)
        if inode is None:
            return
        found = self._meta.extents.view(inode.number, 0, 1 << 62, frozen=True)
        if not found:
            return
        first = found[b % len(found)]
        last = found[min(b % len(found) + b % 3, len(found) - 1)]
        half = max(1, first.length // 2)
        small = b"s" * min(half, 100)
        large = self._meta.extents.new_dirty()
        rest = first.start + half
        pieces: list[Piece] = [
            (first.start, len(small), self._block_id(("row", len(small))), small),
            (rest, last.end - rest, self._block_id(("file", last.end - rest, b % 2)), large),
        ]
        taken = [piece for piece in pieces if piece[1]]
        newest = max(-extent.source for extent in found if first.start <= extent.start <= last.start)
        self._meta.extents.seal(inode.number, first.start, last.end, max(newest, 0), taken, self._now)

    def lose(self, a: int, b: int) -> None:
        inode = self._file(a, content=False)
        if inode is not None and inode.size:
            self._meta.extents.lose(inode.number, b * 100, b * 100 + 1000)

    def lose_overlay(self, a: int, b: int) -> None:
        inode = self._file(a, content=False)
        if inode is not None and (overlays := self._meta.overlays.of(inode.number)):
            self._meta.extents.lose_overlay(inode.number, overlays[b % len(overlays)], b * 600, b * 600 + 5000)

    def relink(self, a: int, b: int) -> None:
        """A part of a file, or all from there on, becomes a block that there is."""
        inode = self._file(a)
        rows = self._rows(f"SELECT id, size FROM blocks WHERE kind = {CONTENT} AND size > 0 ORDER BY number")
        if inode is None or not rows:
            return
        block_id, size = rows[b % len(rows)]
        start = 0 if inode.content is not None else min(b * 300, inode.size)
        end = start + size
        reach, whole = (max(end, inode.size), end) if b % 2 else (end, max(end, inode.size))
        parts = [(start, size, BlockId(block_id), 0)] if b % 3 else []
        self._meta.extents.relink(inode.number, start, reach, parts, whole, self._now)

    def truncate(self, a: int, b: int) -> None:
        inode = self._file(a)
        if inode is not None:
            self._meta.extents.truncate(inode.number, b * 500, self._now)

    def remove_cut(self, a: int, b: int) -> None:
        cuts = list(self._meta.extents.cuts)
        if cuts:
            self._meta.extents.remove_cut(cuts[a % len(cuts)], 1 + b % 2)

    # --- blocks and snapshots ------------------------------------------------------------------------------------

    def stored(self, a: int, b: int) -> None:
        """A pack with every block that waits, and one that was released meanwhile."""
        blocks, _ = self._meta.blocks.pending(1 << 40, 1 << 40, 1 << 40, 1 << 40)
        entries = [(block.id, index * 10, 10, block.size) for index, block in enumerate(blocks)]
        entries.append((self._block_id(("released", a)), 10 * len(blocks), 10, 77))
        pack = PackId(identity(f"pack {self._now}"))
        self._meta.blocks.stored(pack, 10 * len(entries), CONTENT, entries)

    def indexed(self, a: int, b: int) -> None:
        packs = self._meta.blocks.unindexed_packs(2)
        self._meta.blocks.indexed([pack[0] for pack in packs], a)

    def listed(self, a: int, b: int) -> None:
        """Another peer's index lists a pack: with blocks that are here, and with one that nobody knew."""
        rows = self._rows(f"SELECT id, size FROM blocks WHERE kind = {CONTENT} ORDER BY number")
        entries = [(BlockId(row[0]), index * 10, 10, row[1]) for index, row in enumerate(rows[: b % 3])]
        entries.append((self._block_id(("listed", a)), 10 * len(entries), 10, 55))
        pack = PackId(identity(f"listed {a} {b}"))
        self._meta.blocks.listed(pack, 10 * len(entries), CONTENT, 1, entries)

    def found_again(self, a: int, b: int) -> None:
        """A block is read from another pack, which was known or was not; or was read from that one all along."""
        rows = self._rows("SELECT b.id, p.id FROM blocks b JOIN packs p ON p.number = b.pack ORDER BY b.number")
        if rows:
            block_id, source = rows[a % len(rows)]
            pack = PackId(rows[b % len(rows)][1] if b % 2 else identity(f"found {self._now}"))
            self._meta.blocks.found_again(pack, 100, CONTENT, 1, (BlockId(block_id), 7, 10), PackId(source))

    def evicted(self, a: int, b: int) -> None:
        self._meta.blocks.evicted([block.number for block in self._meta.blocks.evictable(1 + a)])

    def fetched(self, a: int, b: int) -> None:
        rows = self._rows(f"SELECT id FROM blocks WHERE cached = {NOT_CACHED} AND pack > 0 AND size > {SMALL_BYTES}")
        if rows:
            self._meta.blocks.fetched(BlockId(rows[a % len(rows)][0]))

    def distrusted(self, a: int, b: int) -> None:
        packs = self._rows("SELECT number, id FROM packs")
        if packs:
            number, pack = packs[a % len(packs)]
            rows = self._rows(f"SELECT id FROM blocks WHERE pack = {number}")
            self._meta.damage.distrusted(PackId(pack), [BlockId(row[0]) for row in rows[: b % 3]])

    def lost(self, a: int, b: int) -> None:
        rows = self._rows("SELECT number FROM blocks WHERE pack IS NULL AND cached > 0")
        if rows:
            self._meta.damage.lost(rows[a % len(rows)][0])

    def sound(self, a: int, b: int) -> None:
        rows = self._rows("SELECT number FROM damaged")
        if rows:
            self._meta.damage.sound(rows[a % len(rows)][0])

    def keep_row(self, a: int, b: int) -> None:
        """Not journaled: what comes after it must not depend on it."""
        rows = self._rows(f"SELECT number, size FROM blocks WHERE cached = {NOT_CACHED} AND size <= {SMALL_BYTES}")
        if rows:
            number, size = rows[a % len(rows)]
            self._meta.blocks.keep_row(self._meta.blocks.get(number), bytes(size))
            assert self._meta.blocks.get(number).cached == CACHED_ROW

    def snapshot(self, a: int, b: int) -> None:
        seq = self._meta.snapshots.next_seq("snapshot")
        self._meta.snapshots.mark(self._meta.inodes.generation)
        self._meta.snapshots.take_seq("snapshot", seq)
        self._meta.snapshots.learn(PeerId(1), seq, TreeId(identity(f"root {seq}")), self._now, b"record")

    # --- pruning -------------------------------------------------------------------------------------------------

    def drop_snapshots(self, a: int, b: int) -> None:
        head = self._meta.snapshots.head()
        places = [place for place in self._meta.snapshots.places() if head is None or place != (head.peer, head.seq)]
        if places:
            peer, seq = places[a % len(places)]
            self._meta.doomed.drop_snapshots([(peer, seq, f"snapshots/{peer}/{seq}")])

    def moved(self, a: int, b: int) -> None:
        """Some blocks of a pack into a new one."""
        packs = self._rows("SELECT number, id FROM packs")
        if packs:
            number, source = packs[a % len(packs)]
            rows = self._rows(f"SELECT id FROM blocks WHERE pack = {number} ORDER BY number LIMIT {1 + b % 3}")
            entries = [(BlockId(row[0]), 5 * at, 10, PackId(source)) for at, row in enumerate(rows)]
            self._meta.doomed.moved(PackId(identity(f"moved {self._now}")), 100, CONTENT, entries)

    def forget_blocks(self, a: int, b: int) -> None:
        rows = self._rows("SELECT number FROM blocks WHERE refs = 0 AND pack > 0 ORDER BY number")
        if rows:
            self._meta.doomed.forget_blocks([rows[a % len(rows)][0]])

    def doom_packs(self, a: int, b: int) -> None:
        packs = self._rows("SELECT id FROM packs p WHERE NOT EXISTS (SELECT 1 FROM blocks WHERE pack = p.number)")
        if packs:
            pack = PackId(packs[a % len(packs)][0])
            self._meta.doomed.doom_packs([(f"packs/{pack.hex()}", pack)])

    def list_again(self, a: int, b: int) -> None:
        packs = self._rows("SELECT id FROM packs WHERE indexed > 0")
        self._meta.doomed.list_again([PackId(row[0]) for row in packs[: b % 3]])
        self._meta.doomed.merged([PackId(row[0]) for row in packs[: a % 4]], 1 + b)

    def doom_indexes(self, a: int, b: int) -> None:
        self._meta.doomed.doom_indexes([f"index/{a}"])

    def deleted(self, a: int, b: int) -> None:
        keys = self._meta.doomed.keys("", 1 + b % 3)
        self._meta.doomed.deleted(keys)

    def commit(self, a: int, b: int) -> None:
        self._meta.commit()
