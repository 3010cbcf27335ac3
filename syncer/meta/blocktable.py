"""Blocks and packs: which there are, where they are kept, which are waiting for the remote, which may go.

A block row exists from the moment its bytes are sealed. `pack` NULL says that the remote does not have it yet.
"""

import time
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from syncer.meta.database import Database, Table, journaled
from syncer.values import CONTENT, SMALL_BYTES, BlockId, Location, PackId, id_of

NOT_CACHED, CACHED_FILE, CACHED_ROW = 0, 1, 2
FILE_UNIT_BYTES = 4096
_USE_GRAIN_S = 30


def file_bytes(size: int) -> int:
    """What a file of *size* bytes takes on the disk."""
    return -(-size // FILE_UNIT_BYTES) * FILE_UNIT_BYTES


def block_file(cache: Path, block_id: bytes) -> Path:
    """Where the block is in the cache when it is a file."""
    text = block_id.hex()
    return cache / text[:2] / text


def block_of_file(folder: str, name: str) -> BlockId | None:
    """The block whose file is called *name* in the cache's *folder*; None for a file that is none of ours."""
    found = id_of(name)
    return BlockId(found) if found is not None and name[:2] == folder else None


@dataclass(frozen=True, slots=True)
class Block:
    number: int
    id: BlockId
    size: int
    cached: int
    location: Location | None


@dataclass(slots=True)
class CacheTotals:
    """What cached blocks that are files take up of the disk."""

    clean_files: int = 0
    pending_files: int = 0


@dataclass(frozen=True, slots=True)
class Count:
    """What the last count of the remote has shown; all 0 before the first. *at*: the newest snapshot's number then."""

    history_bytes: int
    dead_bytes: int
    used_bytes: int
    unique_bytes: int
    at: int


_COUNT_KEYS = ("history_bytes", "dead_bytes", "counted_used", "counted_unique", "counted_at")


class BlockTable(Table):
    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self._used: dict[int, int] = {}
        self.totals = CacheTotals()
        self.on_released: Callable[[list[tuple[int, BlockId]]], None] = lambda gone: None
        """Called after a commit with (number, id) of blocks whose rows are gone and whose cache files must go."""
        self.any_damaged = True
        """False only while no block is known to be damaged: then nobody needs to ask."""
        self.held_up_to = 0
        """Blocks numbered up to this stay although nothing names them: a snapshot being published does."""
        self._gone: list[tuple[int, BlockId]] = []
        database.on_commit.append(self._report_released)
        self._load_totals()

    # --- reading -------------------------------------------------------------------------------------------------

    _BLOCK = (
        "SELECT b.number, b.id, b.size, b.cached, p.id, b.pack_offset, b.sealed_bytes"
        " FROM blocks b LEFT JOIN packs p ON p.number = b.pack"
    )

    @staticmethod
    def _block(row: tuple[int, bytes, int, int, bytes | None, int, int]) -> Block:
        location = None if row[4] is None else Location(PackId(row[4]), row[5], row[6])
        return Block(row[0], BlockId(row[1]), row[2], row[3], location)

    def get(self, number: int) -> Block:
        """Raises: KeyError."""
        row = self.execute(f"{self._BLOCK} WHERE b.number = ?", (number,)).fetchone()
        if row is None:
            raise KeyError(number)
        return self._block(row)

    def find(self, block_id: BlockId) -> Block | None:
        row = self.execute(f"{self._BLOCK} WHERE b.id = ?", (block_id,)).fetchone()
        return None if row is None else self._block(row)

    def unknown(self, block_ids: Iterable[BlockId]) -> BlockId | None:
        """The first of *block_ids* that has no row."""
        for block_id in block_ids:
            if self.execute("SELECT 1 FROM blocks WHERE id = ?", (block_id,)).fetchone() is None:
                return block_id
        return None

    def data(self, number: int) -> bytes | None:
        """The bytes of a block kept as a row."""
        row = self.execute("SELECT data FROM block_data WHERE number = ?", (number,)).fetchone()
        return None if row is None else bytes(row[0])

    def use(self, number: int) -> None:
        """Note that the block was read just now."""
        self._used[number] = int(time.time())

    def pending(
        self, limit_bytes: int, limit_blocks: int, born_before_s: int, now_s: int, without: Container[int] = ()
    ) -> tuple[list[Block], bool]:
        """The oldest blocks that the remote lacks and something needs, and whether there are no more such blocks.

        One, or as many as the limits allow.
        One born after *now_s* is as old as any: the clock was wrong then, or is wrong now.
        """
        cursor = self.execute(
            "SELECT number, id, size, cached, NULL, 0, 0 FROM blocks WHERE pack IS NULL AND (born <= ? OR born > ?)"
            " AND (refs > 0 OR number <= ?) ORDER BY number",
            (born_before_s, now_s, self.held_up_to),
        )
        chosen: list[Block] = []
        total = 0
        is_all = True
        for row in cursor:
            if row[0] in without:
                continue
            if chosen and (total + row[2] > limit_bytes or len(chosen) >= limit_blocks):
                is_all = False
                break
            chosen.append(self._block(row))
            total += row[2]
        cursor.close()  # a statement left half-way would keep the WAL from starting over
        return chosen, is_all

    def pending_files(self) -> list[Block]:
        """Every cache file that is the only copy of its block."""
        rows = self.execute("SELECT number, id, size, cached, NULL, 0, 0 FROM blocks WHERE pack IS NULL AND cached = 1")
        return [self._block(row) for row in rows.fetchall()]

    def cached_files(self, first: int) -> set[bytes]:
        """The ids that begin with the byte *first* of the blocks that are cache files."""
        rows = self.execute(
            "SELECT id FROM blocks WHERE +cached = 1 AND id BETWEEN ? AND ?",
            (bytes([first]), bytes([first]) + b"\xff" * 32),
        )
        return {row[0] for row in rows}

    def born(self, number: int) -> int:
        """When the block was sealed, in seconds; 0 for one that is gone."""
        row = self.execute("SELECT born FROM blocks WHERE number = ?", (number,)).fetchone()
        return int(row[0]) if row else 0

    def pending_totals(self) -> tuple[int, int, int | None]:
        """(bytes, blocks, oldest birth in seconds) of what waits for the remote; not what is known to be nowhere."""
        row = self.execute(
            "SELECT ifnull(sum(size), 0), count(*), min(born) FROM blocks"
            " WHERE pack IS NULL AND (refs > 0 OR number <= ?)"
            " AND (cached > 0 OR number NOT IN (SELECT number FROM damaged))",
            (self.held_up_to,),
        ).fetchone()
        return row[0], row[1], row[2]

    def content_totals(self) -> tuple[int, int]:
        """(plain bytes of the blocks the live tree names, sealed bytes the remote holds in all packs known here)."""
        unique_bytes, pack_bytes = self.execute("SELECT unique_bytes, pack_bytes FROM sums").fetchone()
        return int(unique_bytes), int(pack_bytes)

    def kind_of(self, pack_id: PackId) -> int:
        """Of a pack that is known: the kind of what is in it."""
        return int(self.execute("SELECT kind FROM packs WHERE id = ?", (pack_id,)).fetchone()[0])

    def counted(self, history_bytes: int, dead_bytes: int, used_bytes: int, unique_bytes: int) -> None:
        """Remember what a count of the remote has shown: bytes that old snapshots alone hold, that nothing needs, and
        that the live tree does; and what `content_totals` said then. Not journaled: it is counted again."""
        at = self.database.state_integer("snapshot_seq")
        values = (history_bytes, dead_bytes, used_bytes, unique_bytes, at)
        for key, value in zip(_COUNT_KEYS, values, strict=True):
            self.database.set_state(key, value)

    def last_count(self) -> Count:
        return Count(*(self.database.state_integer(key) for key in _COUNT_KEYS))

    def newest(self) -> int:
        """The highest block number there is."""
        return int(self.execute("SELECT ifnull(max(number), 0) FROM blocks").fetchone()[0])

    def evictable(self, limit: int) -> list[Block]:
        """Up to *limit* clean cached blocks: files least recently used first, then rows."""
        self._write_uses()
        rows = self.execute(
            "SELECT number, id, size, cached, NULL, 0, 0 FROM blocks INDEXED BY blocks_evictable"
            " WHERE cached > 0 AND pack IS NOT NULL ORDER BY cached, used LIMIT ?",
            (limit,),
        ).fetchall()
        return [self._block(row) for row in rows]

    def has_pending(self, up_to: int, without: Container[int]) -> bool:
        """Whether the remote lacks a needed block numbered up to *up_to*, those *without* aside."""
        rows = self.execute(
            "SELECT number FROM blocks WHERE pack IS NULL AND number <= ? AND (refs > 0 OR number <= ?)",
            (up_to, self.held_up_to),
        ).fetchall()
        return any(row[0] not in without for row in rows)

    def is_needed(self, number: int) -> bool:
        """Whether something names the block and the remote lacks it."""
        row = self.execute(
            "SELECT 1 FROM blocks WHERE number = ? AND pack IS NULL AND (refs > 0 OR number <= ?)",
            (number, self.held_up_to),
        ).fetchone()
        return row is not None

    def is_damaged(self, number: int) -> bool:
        """Whether every copy of the block that is known is bad."""
        if not self.any_damaged:
            return False
        return self.execute("SELECT 1 FROM damaged WHERE number = ?", (number,)).fetchone() is not None

    def unindexed_packs(self, limit: int) -> list[tuple[PackId, int, int, list[tuple[BlockId, int, int, int]]]]:
        """Packs that no index object lists, of about *limit* blocks together.

        Each is (pack id, size, kind, [(block id, offset, sealed bytes, plain bytes)]).
        """
        packs = self.execute("SELECT number, id, size, kind FROM packs WHERE indexed IS NULL").fetchall()
        result = []
        count = 0
        for number, pack_id, size, kind in packs:
            entries = self.execute(
                "SELECT id, pack_offset, sealed_bytes, size FROM blocks WHERE pack = ? ORDER BY pack_offset", (number,)
            ).fetchall()
            result.append((PackId(pack_id), size, kind, entries))
            count += len(entries)
            if count >= limit:
                break
        return result

    def knows_pack(self, pack_id: PackId) -> bool:
        return self.execute("SELECT 1 FROM packs WHERE id = ?", (pack_id,)).fetchone() is not None

    def some_packs(self, count: int) -> list[PackId]:
        """About *count* packs, from the oldest to the newest, or all if there are fewer."""
        first, last = self.execute("SELECT ifnull(min(number), 0), ifnull(max(number), -1) FROM packs").fetchone()
        found: dict[PackId, None] = {}
        for number in range(first, last + 1, max(1, (last - first) // count)):
            row = self.execute("SELECT id FROM packs WHERE number >= ? ORDER BY number LIMIT 1", (number,)).fetchone()
            found[PackId(row[0])] = None
        return list(found)

    def ids_in(self, pack_id: PackId) -> set[bytes]:
        """The blocks that are read from the pack."""
        rows = self.execute(
            "SELECT b.id FROM packs p JOIN blocks b ON b.pack = p.number WHERE p.id = ?", (pack_id,)
        ).fetchall()
        return {row[0] for row in rows}

    def has_unindexed_packs(self) -> bool:
        """Whether there are packs that no index object lists."""
        return self.execute("SELECT 1 FROM packs WHERE indexed IS NULL LIMIT 1").fetchone() is not None

    def neighbours(self, block: Block, limit_bytes: int) -> list[Block]:
        """Small blocks that follow *block* in its pack and are not cached, up to *limit_bytes* together.

        Where the live tree names *block*, only such as it names; else, as in history, whatever is there. Of a node of
        a tree those before it, too: a directory comes after what is in it.
        """
        if block.location is None:
            return []
        rows = self.execute(
            f"{self._BLOCK}, (SELECT pack, kind, refs FROM blocks WHERE number = ?1) this"
            " WHERE b.pack = this.pack AND b.pack_offset > ?2 - ?3 * this.kind AND b.pack_offset <= ?2 + ?3"
            " AND b.size <= ?4 AND b.cached = 0 AND b.number <> ?1 AND (b.refs > 0 OR this.refs = 0)",
            (block.number, block.location.offset, limit_bytes, SMALL_BYTES),
        )
        return [self._block(row) for row in rows]

    # --- changing ------------------------------------------------------------------------------------------------

    def add(self, block_id: BlockId, size: int, cached: int, data: bytes | memoryview | None, born_s: int) -> int:
        """The number of the block *block_id*, which is now cached the way *cached* says; made where it is new.

        Part of a journaled operation. A block that is cached already keeps the copy it has, unless that is known to be
        bad; it was used just now.
        """
        row = self.execute("SELECT number, cached, pack FROM blocks WHERE id = ?", (block_id,)).fetchone()
        if row is None:
            cursor = self.execute(
                "INSERT INTO blocks(id, size, refs, kind, cached, used, born) VALUES (?, ?, 0, ?, ?, ?, ?)",
                (block_id, size, CONTENT, cached, born_s, born_s),
            )
            number, pack = int(cursor.lastrowid or 0), None
        else:
            number, pack = row[0], row[2]
            is_bad = self.is_damaged(number)
            if row[1] and not is_bad:
                self.execute("UPDATE blocks SET used = max(used, ?) WHERE number = ?", (born_s, number))
                return int(number)
            if is_bad:
                pack = None  # the remote's copy, if there is one, is bad: this one must get there
                self._take_out(number, size, row[1], row[2] is not None)
                self._account(size, row[1], False, -1)
                self._resize(number, size)
                self.execute("DELETE FROM damaged WHERE number = ?", (number,))
            self.execute("UPDATE blocks SET cached = ?, used = ? WHERE number = ?", (cached, born_s, number))
        if cached == CACHED_ROW:
            self.execute("INSERT OR REPLACE INTO block_data VALUES (?, ?)", (number, data))
        self._account(size, cached, pack is not None, 1)
        return int(number)

    def _resize(self, number: int, size: int) -> None:
        """The block has that size: of one that was never seen only what files name of it is known."""
        self.execute(
            "UPDATE sums SET unique_bytes = unique_bytes + (SELECT iif(refs > 0, ?2 - size, 0) FROM blocks"
            " WHERE number = ?1) WHERE EXISTS (SELECT 1 FROM blocks WHERE number = ?1 AND size <> ?2)",
            (number, size),
        )
        self.execute("UPDATE blocks SET size = ?2 WHERE number = ?1 AND size <> ?2", (number, size))

    def _account(self, size: int, cached: int, clean: bool, sign: int) -> None:
        if cached != CACHED_FILE:
            return
        if clean:
            self.totals.clean_files += sign * file_bytes(size)
        else:
            self.totals.pending_files += sign * file_bytes(size)

    @journaled(30)
    def stored(self, pack_id: PackId, size: int, kind: int, entries: Sequence[tuple[BlockId, int, int, int]]) -> None:
        """The remote holds the pack. *entries*: (block id, offset, sealed bytes, plain bytes).

        A tree pack's blocks have no rows before; a content block that was released meanwhile gets one too, so that
        the index lists the whole pack and the block need not be sent again.
        """
        self.execute("INSERT OR IGNORE INTO packs(id, size, kind) VALUES (?, ?, ?)", (pack_id, size, kind))
        pack = self.execute("SELECT number FROM packs WHERE id = ?", (pack_id,)).fetchone()[0]
        for block_id, offset, sealed_bytes, plain_bytes in entries:
            row = self.execute("SELECT number, cached, pack FROM blocks WHERE id = ?", (block_id,)).fetchone()
            if row is None:
                self.execute(
                    "INSERT INTO blocks(id, size, refs, kind, pack, pack_offset, sealed_bytes, cached, used, born)"
                    " VALUES (?, ?, 0, ?, ?, ?, ?, 0, 0, 0)",
                    (block_id, plain_bytes, kind, pack, offset, sealed_bytes),
                )
            elif row[2] is None:
                self.execute(
                    "UPDATE blocks SET pack = ?, pack_offset = ?, sealed_bytes = ? WHERE number = ?",
                    (pack, offset, sealed_bytes, row[0]),
                )
                self._account(plain_bytes, row[1], False, -1)
                self._account(plain_bytes, row[1], True, 1)

    @journaled(31)
    def indexed(self, pack_ids: Sequence[PackId], seq: int) -> None:
        """Our index object *seq* on the remote lists the packs."""
        self.executemany("UPDATE packs SET indexed = ? WHERE id = ?", [(seq, pack_id) for pack_id in pack_ids])

    @journaled(90)
    def listed(
        self, pack_id: PackId, size: int, kind: int, seq: int, entries: Sequence[tuple[BlockId, int, int, int]]
    ) -> None:
        """The index object *seq* of some peer lists a pack that was not known. *entries*: as `stored`.

        Each block is read from there from now on: who stores a block again has a reason.
        """
        cursor = self.execute(
            "INSERT OR IGNORE INTO packs(id, size, kind, indexed) VALUES (?, ?, ?, ?)", (pack_id, size, kind, seq)
        )
        if not cursor.rowcount:
            return
        for block_id, offset, sealed_bytes, plain_bytes in entries:
            row = self.execute("SELECT cached, pack FROM blocks WHERE id = ?", (block_id,)).fetchone()
            self.execute(
                "INSERT INTO blocks(id, size, refs, kind, pack, pack_offset, sealed_bytes, cached, used, born)"
                " VALUES (?, ?, 0, ?, ?, ?, ?, 0, 0, 0) ON CONFLICT(id) DO UPDATE SET pack = excluded.pack,"
                " pack_offset = excluded.pack_offset, sealed_bytes = excluded.sealed_bytes",
                (block_id, plain_bytes, kind, cursor.lastrowid, offset, sealed_bytes),
            )
            if row is not None and row[1] is None:
                self._account(plain_bytes, row[0], False, -1)
                self._account(plain_bytes, row[0], True, 1)

    @journaled(91)
    def found_again(
        self, pack_id: PackId, size: int, kind: int, seq: int, entry: tuple[BlockId, int, int], instead_of: PackId
    ) -> None:
        """The block (block id, offset, sealed bytes) is read from a pack that index object *seq* lists, and no longer
        from another. Nothing, if it is not read from that one."""
        self.execute(
            "INSERT OR IGNORE INTO packs(id, size, kind, indexed) VALUES (?, ?, ?, ?)", (pack_id, size, kind, seq)
        )
        block_id, offset, sealed_bytes = entry
        self.execute(
            "UPDATE blocks SET pack = (SELECT number FROM packs WHERE id = ?), pack_offset = ?, sealed_bytes = ?"
            " WHERE id = ? AND pack = (SELECT number FROM packs WHERE id = ?)",
            (pack_id, offset, sealed_bytes, block_id, instead_of),
        )

    @journaled(32)
    def fetched(self, block_id: BlockId) -> None:
        """The block is, or is about to be, a file in the cache. A reader that finds none fetches again."""
        row = self.execute("SELECT number, size, cached, pack FROM blocks WHERE id = ?", (block_id,)).fetchone()
        if row is not None and not row[2]:
            self.execute("UPDATE blocks SET cached = ?, used = ? WHERE number = ?", (CACHED_FILE, 0, row[0]))
            self._account(row[1], CACHED_FILE, row[3] is not None, 1)

    def keep_row(self, block: Block, data: bytes) -> None:
        """Cache a fetched small block as a row. Not journaled: what is lost is fetched again."""
        self.database.begin()
        if self.get(block.number).cached:
            return
        self.execute("INSERT OR REPLACE INTO block_data VALUES (?, ?)", (block.number, data))
        self.execute("UPDATE blocks SET cached = ? WHERE number = ?", (CACHED_ROW, block.number))
        self._account(block.size, CACHED_ROW, block.location is not None, 1)
        self.use(block.number)

    @journaled(33)
    def evicted(self, numbers: Sequence[int]) -> None:
        """The cached copies of these clean blocks are about to be deleted."""
        for number in numbers:
            row = self.execute("SELECT size, cached, pack FROM blocks WHERE number = ?", (number,)).fetchone()
            if row is None or not row[1]:
                continue
            if row[2] is None:
                raise ValueError(f"block {number} is not on the remote and must not be evicted")
            if row[1] == CACHED_ROW:
                self.execute("DELETE FROM block_data WHERE number = ?", (number,))
            else:
                self.execute("INSERT OR IGNORE INTO deleting SELECT id FROM blocks WHERE number = ?", (number,))
            self.execute("UPDATE blocks SET cached = 0 WHERE number = ?", (number,))
            self._account(row[0], row[1], True, -1)
            self._used.pop(number, None)

    def take_out(self, pack: int, kind: int) -> None:
        """The remote cannot be relied on to have pack number *pack*: cached blocks of that kind in it wait again.

        Part of a journaled operation.
        """
        rows = self.execute(
            "SELECT number, size, cached, refs FROM blocks WHERE pack = ? AND cached > 0 AND kind = ?", (pack, kind)
        ).fetchall()
        for number, size, cached, refs in rows:
            self._take_out(number, size, cached, True)
            if not refs:
                self.execute("INSERT OR IGNORE INTO released VALUES (?)", (number,))

    def leave_pack(self, number: int) -> None:
        """The block is not read from its pack any more, and goes unless something names it.

        Part of a journaled operation.
        """
        row = self.execute(
            "SELECT size, cached FROM blocks WHERE number = ? AND pack IS NOT NULL", (number,)
        ).fetchone()
        if row is not None:
            self._take_out(number, row[0], row[1], True)
            self.execute("INSERT OR IGNORE INTO released VALUES (?)", (number,))

    def _take_out(self, number: int, size: int, cached: int, clean: bool) -> None:
        self.execute("UPDATE blocks SET pack = NULL WHERE number = ?", (number,))
        self._account(size, cached, clean, -1)
        self._account(size, cached, False, 1)

    # --- commit --------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        self._write_uses()
        self._reap()

    def _write_uses(self) -> None:
        if self._used:
            self.database.begin()
            self.executemany(
                "UPDATE blocks SET used = ? WHERE number = ? AND cached > 0 AND used < ?",
                [(when, number, when - _USE_GRAIN_S) for number, when in self._used.items()],
            )
            self._used.clear()

    def _reap(self) -> None:
        """Delete the rows of released blocks that the remote does not have and nothing needs."""
        rows = self.execute(
            "SELECT r.number, b.id, b.size, b.cached FROM released r JOIN blocks b ON b.number = r.number"
            " WHERE b.refs = 0 AND b.pack IS NULL AND b.number > ?",
            (self.held_up_to,),
        ).fetchall()
        for number, block_id, size, cached in rows:
            self.execute("DELETE FROM blocks WHERE number = ?", (number,))
            self.execute("DELETE FROM settling WHERE number = ?", (number,))
            self.execute("DELETE FROM damaged WHERE number = ?", (number,))
            if cached == CACHED_ROW:
                self.execute("DELETE FROM block_data WHERE number = ?", (number,))
            elif cached == CACHED_FILE:
                self.execute("INSERT OR IGNORE INTO deleting VALUES (?)", (block_id,))
                self._gone.append((number, BlockId(block_id)))
            self._account(size, cached, False, -1)
        self.execute("DELETE FROM released WHERE number > ?", (self.held_up_to,))

    def _report_released(self) -> None:
        gone, self._gone = self._gone, []
        if gone:
            self.on_released(gone)

    def deletions(self) -> list[BlockId]:
        """Cache files that are to be deleted and that no block row calls its own."""
        rows = self.execute(
            "SELECT d.id FROM deleting d WHERE NOT EXISTS (SELECT 1 FROM blocks b WHERE b.id = d.id AND b.cached = ?)",
            (CACHED_FILE,),
        )
        return [BlockId(row[0]) for row in rows]

    def deleted(self, block_ids: Iterable[BlockId]) -> None:
        """These cache files are gone. Not journaled: deleting again does no harm."""
        self.database.begin()
        self.executemany("DELETE FROM deleting WHERE id = ?", [(block_id,) for block_id in block_ids])

    def settling(self) -> list[tuple[int, BlockId, int]]:
        """(dirty file, block id, bytes) of tails that became blocks and may still have to move into the cache."""
        rows = self.execute("SELECT s.dirty, b.id, s.length FROM settling s JOIN blocks b ON b.number = s.number")
        return [(dirty, BlockId(block_id), length) for dirty, block_id, length in rows]

    def settled(self, dirty: int) -> None:
        """The tail has moved. Not journaled: moving again does no harm."""
        self.database.begin()
        self.execute("DELETE FROM settling WHERE dirty = ?", (dirty,))

    def forget_cached(self) -> None:
        self._used.clear()
        self._gone.clear()
        self.any_damaged = True
        self._load_totals()

    def _load_totals(self) -> None:
        self.totals = CacheTotals()
        unit = FILE_UNIT_BYTES
        on_disk = f"(size + {unit - 1}) / {unit} * {unit}"
        rows = self.execute(
            f"SELECT pack IS NOT NULL, sum({on_disk}) FROM blocks INDEXED BY blocks_files WHERE cached = 1 GROUP BY 1"
        )
        for clean, amount in rows:
            if clean:
                self.totals.clean_files = amount
            else:
                self.totals.pending_files = amount
