"""What kept snapshots need and what they do not, and what a remote lists: the working tables of a prune.

A database of its own in a temporary folder, made anew for each prune, so that ten million blocks take no memory.
meta.db is attached and only read, by statements of a fraction of a second each: its WAL may start over in between. That
is sound because what a node names never changes. Used by one thread at a time.
"""

import itertools
import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from syncer.errors import LocalDamage
from syncer.meta.blocktable import NOT_CACHED, Block
from syncer.values import CONTENT, TREE, BlockId, Location, PackId, TreeId

LIVE, HISTORY, FIRST_DROPPED = 0, 1, 2
"""By what a block is marked: the newest state, another snapshot that stays, the first of those that go, the next ..."""
NODES_AT_ONCE = 128
ROWS_AT_ONCE = 50_000
SMALL_INDEXES, SMALL_INDEX_BLOCKS = 64, 10_000
"""When there are more index objects that list fewer blocks, they become one."""
SMALL_PACKS, SMALL_PACK_BYTES, SMALL_PACKS_WORTH = 128, 1024 * 1024, 8
"""When there are more packs of one kind that are shorter, they are copied into larger ones; not fewer at once."""
ENTRY_BYTES, TAIL_BYTES = 44, 48
"""What the list at the end of a pack takes for each block, about, and besides."""

_TABLES = """
-- by: see above; the lowest that applies.
CREATE TABLE marked(block INTEGER PRIMARY KEY, by INTEGER NOT NULL);
-- Nodes whose names are to be marked. tried: all that is known of what it names is recorded, if not all.
CREATE TABLE todo(node INTEGER PRIMARY KEY);
CREATE TABLE unread(node INTEGER PRIMARY KEY);
CREATE TABLE tried(node INTEGER PRIMARY KEY);
CREATE TABLE batch(node INTEGER PRIMARY KEY);
CREATE TABLE fresh(block INTEGER PRIMARY KEY, tree INTEGER NOT NULL);
-- Of each pack what of it is needed: sealed bytes, and how many blocks.
CREATE TABLE used(pack INTEGER PRIMARY KEY, bytes INTEGER NOT NULL, blocks INTEGER NOT NULL);
-- Sealed bytes that no file of the live tree names, by what marked them; -1 by nothing.
CREATE TABLE held(by INTEGER PRIMARY KEY, bytes INTEGER NOT NULL);
-- Packs to be deleted. rewrite: 1 after what is needed of it was copied into another.
CREATE TABLE chosen(pack INTEGER PRIMARY KEY, id BLOB NOT NULL, size INTEGER NOT NULL, rewrite INTEGER NOT NULL);
-- Packs that were known here before the remote was asked. listed: 1 when an index was to list them.
CREATE TABLE relied(pack INTEGER PRIMARY KEY, id BLOB NOT NULL, size INTEGER NOT NULL, listed INTEGER NOT NULL);
-- What the remote lists.
CREATE TABLE packs_there(id BLOB PRIMARY KEY, size INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE index_packs(peer INTEGER, seq INTEGER, pack BLOB, PRIMARY KEY(peer, seq, pack)) WITHOUT ROWID;
CREATE INDEX index_packs_pack ON index_packs(pack);
CREATE TABLE indexes(peer INTEGER, seq INTEGER, blocks INTEGER NOT NULL, PRIMARY KEY(peer, seq)) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class UnreadNode:
    """A node that is needed, of which it is not known what it names."""

    number: int
    id: TreeId
    location: Location


@dataclass(frozen=True, slots=True)
class Choice:
    """A pack that may go; *rewrite*: once what is needed of it was copied."""

    pack: int
    id: PackId
    size: int
    rewrite: bool


@dataclass(frozen=True, slots=True)
class Sums:
    """Sealed bytes on the remote: of all packs, and what of them is of use; and the lists of the packs themselves."""

    pack_bytes: int
    used_bytes: int
    list_bytes: int

    @property
    def dead_bytes(self) -> int:
        return max(0, self.pack_bytes - self.used_bytes - self.list_bytes)


class Stopped(Exception):
    """Nobody waits for the result any more."""


def _refused(error: sqlite3.Error) -> LocalDamage:
    return LocalDamage(f"the working tables of a prune: {error}", hint="make room in the temporary folder")


class Marks:
    def __init__(self, path: Path, meta: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None, uri=True, check_same_thread=False)
        self.stopped = False
        """Set by another thread: what runs is to end soon, with Stopped."""
        for pragma in ("journal_mode = OFF", "synchronous = OFF", "cache_size = -65536", "temp_store = FILE"):
            self.execute(f"PRAGMA {pragma}")
        self._connection.executescript(_TABLES)
        self.execute("ATTACH ? AS here", (f"file:{quote(str(meta.absolute()))}?mode=ro",))

    def close(self) -> None:
        self._connection.close()

    def execute(self, statement: str, values: Sequence[object] = ()) -> sqlite3.Cursor:
        """Raises: Stopped; LocalDamage: the temporary folder is full, or meta.db cannot be read."""
        if self.stopped:
            raise Stopped
        try:
            return self._connection.execute(statement, tuple(values))
        except sqlite3.Error as error:
            raise _refused(error) from error

    def _many(self, statement: str, rows: Iterable[Sequence[object]]) -> None:
        try:
            self._connection.executemany(statement, rows)
        except sqlite3.Error as error:
            raise _refused(error) from error

    # --- marking -------------------------------------------------------------------------------------------------

    def add_root(self, root: TreeId, by: int) -> bool:
        """Begin with a root node; False when no such node is known here."""
        row = self.execute("SELECT number FROM here.blocks WHERE id = ?", (root,)).fetchone()
        if row is None:
            return False
        self.execute(
            "INSERT INTO marked VALUES (?, ?) ON CONFLICT DO UPDATE SET by = excluded.by WHERE by > excluded.by",
            (row[0], by),
        )
        if self.execute("SELECT by FROM marked WHERE block = ?", (row[0],)).fetchone()[0] == by:
            self.execute("INSERT OR IGNORE INTO todo VALUES (?)", row)
        return True

    def add_published(self) -> None:
        """Begin with the trees that the next publication may take over as they are."""
        last = self.execute("SELECT ifnull(max(inode), 0) FROM here.trees").fetchone()[0]
        after = -1
        while after < last:
            row = self.execute(
                "SELECT max(inode) FROM (SELECT inode FROM here.trees WHERE inode > ? ORDER BY inode LIMIT ?)",
                (after, ROWS_AT_ONCE),
            ).fetchone()
            if row[0] is None:
                break
            self.execute("DELETE FROM fresh")
            self.execute(
                "INSERT OR IGNORE INTO fresh SELECT b.number, 1 FROM here.trees t JOIN here.blocks b ON b.id = t.id"
                " WHERE t.inode > ? AND t.inode <= ?"
                f" AND b.number NOT IN (SELECT block FROM marked WHERE by = {LIVE})",
                (after, row[0]),
            )
            self._mark_fresh(LIVE)
            after = row[0]

    def expand(self, by: int) -> None:
        """Mark all that the nodes name with which it was begun, and so on; nodes that were not read are left over."""
        while True:
            self.execute("DELETE FROM batch")
            self.execute(f"INSERT INTO batch SELECT node FROM todo LIMIT {NODES_AT_ONCE}")
            if not self.execute("SELECT 1 FROM batch LIMIT 1").fetchone():
                return
            self.execute("DELETE FROM todo WHERE node IN (SELECT node FROM batch)")
            self.execute(
                "INSERT OR IGNORE INTO unread SELECT node FROM batch"
                " WHERE node NOT IN (SELECT node FROM here.read_nodes) AND node NOT IN (SELECT node FROM tried)"
            )
            self.execute("DELETE FROM batch WHERE node IN (SELECT node FROM unread)")
            self.execute("DELETE FROM fresh")
            self.execute(
                "INSERT INTO fresh SELECT r.block, max(r.tree)"  # CROSS: these few nodes first, not all references
                " FROM batch b CROSS JOIN here.node_refs r ON r.node = b.node"
                " LEFT JOIN marked m ON m.block = r.block WHERE m.by IS NULL OR m.by > ? GROUP BY r.block",
                (by,),
            )
            self._mark_fresh(by)

    def _mark_fresh(self, by: int) -> None:
        self.execute(
            "INSERT INTO marked SELECT block, ? FROM fresh WHERE 1 ON CONFLICT DO UPDATE SET by = excluded.by", (by,)
        )
        self.execute("INSERT OR IGNORE INTO todo SELECT block FROM fresh WHERE tree = 1")

    def unread(self, limit: int) -> list[UnreadNode]:
        """Nodes that must be read before all is marked, pack by pack. A node without a place is none of them."""
        rows = self.execute(
            "SELECT u.node, b.id, p.id, b.pack_offset, b.sealed_bytes FROM unread u JOIN here.blocks b"
            " ON b.number = u.node JOIN here.packs p ON p.number = b.pack ORDER BY b.pack, b.pack_offset LIMIT ?",
            (limit,),
        )
        return [UnreadNode(n, TreeId(i), Location(PackId(p), offset, size)) for n, i, p, offset, size in rows]

    def any_unreadable(self) -> bool:
        """Whether one of these nodes is known and nowhere. Those that are not there under their number are passed over:
        `outdated` tells which nodes name them so."""
        self.execute("DELETE FROM unread WHERE node NOT IN (SELECT number FROM here.blocks)")
        return self.execute("SELECT 1 FROM unread LIMIT 1").fetchone() is not None

    def pass_over_unread(self) -> None:
        """What only these nodes name is not marked."""
        self.execute("DELETE FROM unread")

    def were_read(self, nodes: Iterable[int]) -> None:
        """All that is known of what these nodes name is recorded by now."""
        rows = [(node,) for node in nodes]
        self._many("DELETE FROM unread WHERE node = ?", rows)
        self._many("INSERT OR IGNORE INTO tried VALUES (?)", rows)
        self._many("INSERT OR IGNORE INTO todo VALUES (?)", rows)

    def outdated(self) -> list[int]:
        """Nodes that are needed and name, by the numbers recorded, what is not there under this number: it was
        forgotten when nothing needed it, and stored again."""
        last = self.execute("SELECT ifnull(max(block), 0) FROM marked").fetchone()[0]
        gone: list[int] = []
        for after in range(0, last, ROWS_AT_ONCE):
            rows = self.execute(
                "SELECT block FROM marked WHERE block > ? AND block <= ? AND by <= ?"
                " AND block NOT IN (SELECT number FROM here.blocks WHERE number > ? AND number <= ?)",
                (after, after + ROWS_AT_ONCE, HISTORY, after, after + ROWS_AT_ONCE),
            )
            gone += [row[0] for row in rows]
        if not gone:
            return []
        found = self.execute(
            "SELECT DISTINCT node FROM here.node_refs WHERE block IN (SELECT value FROM json_each(?))"
            " AND node IN (SELECT block FROM marked WHERE by <= ?)",
            (json.dumps(gone), HISTORY),
        )
        return [row[0] for row in found]

    def again(self, nodes: Sequence[int], by: int) -> None:
        """Mark anew what these nodes name, once they were read again."""
        self._many("DELETE FROM tried WHERE node = ?", [(node,) for node in nodes])
        self._many("INSERT OR IGNORE INTO todo VALUES (?)", [(node,) for node in nodes])
        self.expand(by)

    # --- what follows from it ------------------------------------------------------------------------------------

    def add_up(self) -> None:
        """Fill in what of each pack is needed, and what holds what the live tree does not name."""
        self.execute("DELETE FROM used")
        self.execute("DELETE FROM held")
        last = self.execute("SELECT ifnull(max(number), 0) FROM here.blocks").fetchone()[0]
        source = (
            "here.blocks b LEFT JOIN marked m ON m.block = b.number"
            " WHERE b.number > ? AND b.number <= ? AND b.pack IS NOT NULL"
        )
        for after in range(0, last, ROWS_AT_ONCE):
            span = (after, after + ROWS_AT_ONCE)
            self.execute(
                f"INSERT INTO used SELECT b.pack, sum(b.sealed_bytes), count(*) FROM {source}"
                f" AND (b.refs > 0 OR m.by <= {HISTORY}) GROUP BY b.pack"
                " ON CONFLICT DO UPDATE SET bytes = bytes + excluded.bytes, blocks = blocks + excluded.blocks",
                span,
            )
            self.execute(
                f"INSERT INTO held SELECT ifnull(m.by, -1), sum(b.sealed_bytes) FROM {source} AND b.refs = 0 GROUP BY 1"
                " ON CONFLICT DO UPDATE SET bytes = bytes + excluded.bytes",
                span,
            )

    def held_bytes(self, by: int) -> int:
        """Sealed bytes that no file of the live tree names, marked so."""
        row = self.execute("SELECT bytes FROM held WHERE by = ?", (by,)).fetchone()
        return int(row[0]) if row else 0

    def sums(self) -> Sums:
        size = self.execute("SELECT ifnull(sum(size), 0), count(*) FROM here.packs").fetchone()
        used = self.execute("SELECT ifnull(sum(bytes), 0), ifnull(sum(blocks), 0) FROM used").fetchone()
        return Sums(size[0], used[0], size[1] * TAIL_BYTES + used[1] * ENTRY_BYTES)

    def choose(self, dead_share: float, rewrite_max_bytes: int) -> None:
        """Choose packs to go: all that nothing needs, then those of which least is needed, until less than
        *dead_share* of what is left is dead; and small ones, if they are many. At most *rewrite_max_bytes* are copied
        for it."""
        self.execute("DELETE FROM chosen")
        candidates = (
            "SELECT p.number AS pack, p.id AS id, p.size AS size, ifnull(u.bytes, 0) AS used,"
            f" ifnull(u.bytes + u.blocks * {ENTRY_BYTES}, 0) + {TAIL_BYTES} AS least FROM relied r"
            " JOIN here.packs p ON p.number = r.pack AND p.id = r.id LEFT JOIN used u ON u.pack = p.number"
            " WHERE r.listed"
        )
        self.execute(f"INSERT INTO chosen SELECT pack, id, size, 0 FROM ({candidates}) WHERE used = 0")
        sums = self.sums()
        gone = self.execute("SELECT ifnull(sum(size - ?), 0), ifnull(sum(size), 0) FROM chosen", (TAIL_BYTES,))
        dead, total = gone.fetchone()
        dead, total = sums.dead_bytes - dead, sums.pack_bytes - total
        copied = 0
        taken: list[tuple[int, bytes, int]] = []
        rows = self.execute(f"SELECT * FROM ({candidates}) WHERE used > 0 AND size > least ORDER BY 1.0 * used / size")
        for pack, pack_id, size, used, least in rows:
            if dead <= dead_share * total or copied + used > rewrite_max_bytes:
                break
            dead, total, copied = dead - (size - least), total - (size - least), copied + used
            taken.append((pack, pack_id, size))
        self._many("INSERT INTO chosen VALUES (?, ?, ?, 1)", taken)
        for kind in (CONTENT, TREE):
            copied += self._choose_small(kind, rewrite_max_bytes - copied)

    def _choose_small(self, kind: int, most_bytes: int) -> int:
        """Choose the small packs of a *kind* to be copied into larger ones, if they are many; how many bytes that
        is."""
        rows = self.execute(
            "SELECT p.number, p.id, p.size, u.bytes FROM relied r"
            " JOIN here.packs p ON p.number = r.pack AND p.id = r.id JOIN used u ON u.pack = p.number"
            " WHERE r.listed AND u.bytes > 0 AND p.kind = ? AND p.size < ?"
            " AND p.number NOT IN (SELECT pack FROM chosen) ORDER BY p.number",
            (kind, SMALL_PACK_BYTES),
        ).fetchall()
        ends = itertools.accumulate(row[3] for row in rows)
        taken = [row[:3] for row, end in zip(rows, ends, strict=True) if end <= most_bytes]
        if len(rows) <= SMALL_PACKS or len(taken) < SMALL_PACKS_WORTH:
            return 0
        self._many("INSERT INTO chosen VALUES (?, ?, ?, 1)", taken)
        return sum(row[3] for row in rows[: len(taken)])

    def choices(self, *, rewrite: bool | None = None, after: int = 0, limit: int = 256) -> list[Choice]:
        """Some of the packs chosen, with numbers above *after*."""
        rows = self.execute(
            "SELECT pack, id, size, rewrite FROM chosen WHERE pack > ? AND rewrite IN (?, ?) ORDER BY pack LIMIT ?",
            (after, int(rewrite is True), int(rewrite is not False), limit),
        )
        return [Choice(pack, PackId(pack_id), size, bool(again)) for pack, pack_id, size, again in rows]

    def chosen_totals(self, *, rewrite: bool) -> tuple[int, int, int, int]:
        """(packs, bytes of them, bytes in them that are needed, what a pack has for the list of those)."""
        row = self.execute(
            "SELECT count(*), ifnull(sum(c.size), 0), ifnull(sum(u.bytes), 0), ifnull(sum(u.blocks), 0) FROM chosen c"
            " LEFT JOIN used u ON u.pack = c.pack WHERE c.rewrite = ?",
            (int(rewrite),),
        ).fetchone()
        return row[0], row[1], row[2], row[3] * ENTRY_BYTES

    def leave(self, pack: int) -> None:
        """The pack stays after all."""
        self.execute("DELETE FROM chosen WHERE pack = ?", (pack,))

    def needed_in(self, choice: Choice) -> list[Block]:
        """What is needed of a pack."""
        rows = self.execute(
            "SELECT b.number, b.id, b.size, b.pack_offset, b.sealed_bytes FROM here.blocks b"
            " LEFT JOIN marked m ON m.block = b.number WHERE b.pack = ? AND (b.refs > 0 OR m.by <= ?)",
            (choice.pack, HISTORY),
        )
        return [
            Block(number, BlockId(block_id), size, NOT_CACHED, Location(choice.id, offset, sealed))
            for number, block_id, size, offset, sealed in rows
        ]

    def any_kept(self, numbers: Sequence[int]) -> bool:
        """Whether a snapshot that stays needs one of the blocks."""
        row = self.execute(
            "SELECT 1 FROM json_each(?) j CROSS JOIN marked m ON m.block = j.value WHERE m.by <= ? LIMIT 1",
            (json.dumps(list(numbers)), HISTORY),
        ).fetchone()
        return row is not None

    # --- what the remote lists -----------------------------------------------------------------------------------

    def rely(self) -> None:
        """Note what is known to be there. What comes later need not be in the listings, and is left alone."""
        self.execute("INSERT INTO relied SELECT number, id, size, indexed IS NOT NULL FROM here.packs")

    def saw_packs(self, packs: Sequence[tuple[PackId, int]]) -> None:
        """The listing has these packs: (id, size)."""
        self.execute("BEGIN")
        self._many("INSERT OR IGNORE INTO packs_there VALUES (?, ?)", packs)
        self.execute("COMMIT")

    def saw_index(self, peer: int, seq: int, packs: Iterable[bytes], blocks: int) -> None:
        """An index object lists these packs, with so many blocks in all."""
        self.execute("BEGIN")
        self.execute("INSERT OR IGNORE INTO indexes VALUES (?, ?, ?)", (peer, seq, blocks))
        self._many("INSERT OR IGNORE INTO index_packs VALUES (?, ?, ?)", [(peer, seq, pack) for pack in packs])
        self.execute("COMMIT")

    def missing_packs(self, limit: int) -> list[PackId]:
        """Packs that are relied on here and that the listing does not show, or not with their size."""
        rows = self.execute(
            "SELECT r.id FROM relied r LEFT JOIN packs_there t ON t.id = r.id WHERE t.size IS NOT r.size LIMIT ?",
            (limit,),
        )
        return [PackId(row[0]) for row in rows]

    def unlisted_packs(self, limit: int) -> list[PackId]:
        """Packs that an index should list and none of those read does."""
        rows = self.execute(
            "SELECT id FROM relied r WHERE listed"
            " AND NOT EXISTS (SELECT 1 FROM index_packs i WHERE i.pack = r.id) LIMIT ?",
            (limit,),
        )
        return [PackId(row[0]) for row in rows]

    def is_there(self, pack_id: PackId) -> bool:
        """Whether the listing has the pack."""
        return self.execute("SELECT 1 FROM packs_there WHERE id = ?", (pack_id,)).fetchone() is not None

    def strays(self) -> Iterator[PackId]:
        """Packs that are there, that no index lists, and that are neither known here nor about to be deleted."""
        rows = self.execute(
            "SELECT id FROM packs_there WHERE id NOT IN (SELECT pack FROM index_packs)"
            " AND id NOT IN (SELECT id FROM here.packs)"
            " AND id NOT IN (SELECT pack FROM here.doomed WHERE pack IS NOT NULL)"
        )
        return (PackId(row[0]) for row in rows)

    def undeleted(self) -> list[PackId]:
        """Packs that were deleted, and that the listing shows all the same."""
        rows = self.execute("SELECT d.pack FROM here.doomed d JOIN packs_there t ON t.id = d.pack WHERE d.gone = 1")
        return [PackId(row[0]) for row in rows]

    def stale_indexes(self) -> list[tuple[int, int]]:
        """(peer, seq) of index objects that list packs which are to be deleted, or are not there; and of the small
        ones, if they are many."""
        rows = self.execute(
            "SELECT DISTINCT peer, seq FROM index_packs WHERE pack IN (SELECT pack FROM here.doomed)"
            " OR (pack NOT IN (SELECT id FROM packs_there) AND pack NOT IN (SELECT id FROM here.packs))"
        )
        found = {(peer, seq) for peer, seq in rows}
        small = self.execute("SELECT peer, seq FROM indexes WHERE blocks < ?", (SMALL_INDEX_BLOCKS,)).fetchall()
        return sorted(found.union(small if len(small) > SMALL_INDEXES else ()))

    def staying_packs(self, index: tuple[int, int]) -> list[PackId]:
        """Packs that an index object lists and that stay."""
        rows = self.execute(
            "SELECT i.pack FROM index_packs i JOIN here.packs p ON p.id = i.pack WHERE i.peer = ? AND i.seq = ?", index
        )
        return [PackId(row[0]) for row in rows]
