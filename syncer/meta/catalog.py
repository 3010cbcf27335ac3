"""What a remote says it holds, and what its snapshots and the live tree need of it: the tables of `check --remote`.

A database of its own in a temporary folder, so that a million files take no memory. Used by one thread. It is made anew
for each check; only what was read and found sound is remembered longer (snapshots/verified.py).
"""

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from syncer.meta.facts import Place
from syncer.values import CONTENT, TREE, BlockId, PackId, TreeId

ROOT, DIRECTORY, EXTENTS, XATTRS = range(4)
"""What a node must be, by what names it."""
IMPORT_ROWS = 20_000
LOST_MAX = 200_000
"""So many lost blocks are told; who has lost more needs no list."""

_TABLES = """
-- size: as the index says. listed: as the remote's listing says, NULL when it has none. state: 0 not read yet,
-- 1 every byte is right, 2 it is damaged. here: DATA counts it as indexed. indexed: an index lists it.
CREATE TABLE packs(
    number INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, size INTEGER NOT NULL, kind INTEGER NOT NULL, listed INTEGER,
    state INTEGER NOT NULL DEFAULT 0, here INTEGER NOT NULL DEFAULT 0, indexed INTEGER NOT NULL DEFAULT 0);
-- Where blocks and nodes are. bad: read, and found to be something else.
CREATE TABLE places(
    id BLOB, pack INTEGER, offset INTEGER NOT NULL, sealed INTEGER NOT NULL, plain INTEGER NOT NULL,
    bad INTEGER NOT NULL DEFAULT 0, PRIMARY KEY(id, pack)) WITHOUT ROWID;
CREATE INDEX places_pack ON places(pack);
-- What is needed. form: of a node, what it must be. reach: how long a block must be. parent, name: what named it first.
-- local: the number DATA knows a block of the live tree by. done: the node was read.
CREATE TABLE wanted(
    number INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, kind INTEGER NOT NULL, form INTEGER NOT NULL,
    reach INTEGER NOT NULL, parent INTEGER, name BLOB, local INTEGER, done INTEGER NOT NULL DEFAULT 0);
CREATE INDEX wanted_open ON wanted(number) WHERE kind = 1 AND done = 0;
"""
_SOUND = (
    "EXISTS (SELECT 1 FROM places p JOIN packs k ON k.number = p.pack WHERE p.id = w.id AND p.bad = 0"
    " AND k.listed = k.size AND p.plain >= w.reach)"
)


@dataclass(frozen=True, slots=True)
class Want:
    """Something a node names: a node of *form*, or a block of *reach* bytes at least (form None)."""

    id: bytes
    form: int | None
    reach: int = 0
    name: bytes | None = None


@dataclass(frozen=True, slots=True)
class OpenNode:
    """A node that is needed and was not read yet, and where it should be in its pack."""

    number: int
    id: TreeId
    form: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Lost:
    """Something needed that is nowhere on the remote. *pack* and *why* say of the place that should have it."""

    number: int
    id: bytes
    kind: int
    local: int | None
    why: str
    pack: PackId | None


class Catalog:
    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None, uri=True)
        self.execute = self._connection.execute
        for pragma in ("journal_mode = OFF", "synchronous = OFF", "cache_size = -65536", "temp_store = FILE"):
            self.execute(f"PRAGMA {pragma}")
        self._connection.executescript(_TABLES)
        self.execute("BEGIN")  # never committed piece by piece: nobody else reads it

    def close(self) -> None:
        self._connection.close()

    def clear(self) -> None:
        """Begin anew."""
        for table in ("packs", "places", "wanted"):
            self.execute(f"DELETE FROM {table}")

    # --- what there is -------------------------------------------------------------------------------------------

    def add_pack(self, pack_id: PackId, size: int, kind: int, blocks: Iterable[tuple[BlockId, int, int, int]]) -> None:
        """An index lists the pack with its blocks: (id, offset, sealed bytes, plain bytes)."""
        self.execute("INSERT OR IGNORE INTO packs(id, size, kind) VALUES (?, ?, ?)", (pack_id, size, kind))
        self.execute("UPDATE packs SET indexed = 1 WHERE id = ?", (pack_id,))
        number = self.execute("SELECT number FROM packs WHERE id = ?", (pack_id,)).fetchone()[0]
        self._connection.executemany(
            "INSERT OR IGNORE INTO places(id, pack, offset, sealed, plain) VALUES (?, ?, ?, ?, ?)",
            [(block_id, number, offset, sealed, plain) for block_id, offset, sealed, plain in blocks],
        )

    def add_local(self, uri: str) -> None:
        """Take over what the meta.db at *uri* knows: packs, and the blocks that files name. A short look at a time."""
        self.execute("COMMIT")
        self.execute("ATTACH ? AS here", (uri,))
        self.execute("INSERT OR IGNORE INTO packs(id, size, kind) SELECT id, size, kind FROM here.packs")
        self.execute("UPDATE packs SET here = 1 WHERE id IN (SELECT id FROM here.packs WHERE indexed IS NOT NULL)")
        after, last = 0, self.execute("SELECT ifnull(max(number), 0) FROM here.blocks").fetchone()[0]
        while after < last:
            span = (after, after + IMPORT_ROWS)
            self.execute(
                "INSERT OR IGNORE INTO places(id, pack, offset, sealed, plain)"
                " SELECT b.id, k.number, b.pack_offset, b.sealed_bytes, b.size FROM here.blocks b"
                " JOIN here.packs h ON h.number = b.pack JOIN packs k ON k.id = h.id"
                " WHERE b.number > ? AND b.number <= ? AND b.pack_offset IS NOT NULL AND b.sealed_bytes IS NOT NULL",
                span,
            )
            self.execute(
                f"INSERT INTO wanted(id, kind, form, reach, local) SELECT id, {CONTENT}, 0, size, number"
                " FROM here.blocks WHERE number > ? AND number <= ? AND refs > 0 AND pack IS NOT NULL"
                " ON CONFLICT(id) DO UPDATE SET local = excluded.local",
                span,
            )
            after += IMPORT_ROWS
        self.execute("DETACH here")
        self.execute("BEGIN")

    def saw_pack(self, pack_id: PackId, size: int) -> None:
        """The remote's listing has the pack."""
        self.execute("UPDATE packs SET listed = ? WHERE id = ?", (size, pack_id))

    def gone(self, pack: int) -> None:
        """The pack was listed and cannot be had."""
        self.execute("UPDATE packs SET listed = NULL WHERE number = ?", (pack,))

    # --- what is needed ------------------------------------------------------------------------------------------

    def want(self, wants: Iterable[Want], parent: int | None) -> None:
        """Note what *parent* names (None: what a snapshot does)."""
        self._connection.executemany(
            "INSERT INTO wanted(id, kind, form, reach, parent, name) VALUES (?, ?, ?, ?, ?, ?)"
            " ON CONFLICT(id) DO UPDATE SET reach = excluded.reach WHERE excluded.reach > reach",
            [
                (want.id, CONTENT if want.form is None else TREE, want.form or 0, want.reach, parent, want.name)
                for want in wants
            ],
        )

    def open_packs(self, limit: int) -> list[tuple[int, PackId, int]]:
        """(number, id, size) of packs that hold nodes which are needed and were not read yet."""
        rows = self.execute(
            "SELECT DISTINCT k.number, k.id, k.size FROM wanted w JOIN places p ON p.id = w.id AND p.bad = 0"
            " JOIN packs k ON k.number = p.pack AND k.listed = k.size WHERE w.kind = 1 AND w.done = 0 LIMIT ?",
            (limit,),
        )
        return [(number, PackId(pack_id), size) for number, pack_id, size in rows]

    def open_nodes(self, pack: int) -> list[OpenNode]:
        """Those of its nodes."""
        rows = self.execute(
            "SELECT w.number, w.id, w.form, p.offset, p.sealed FROM wanted w JOIN places p ON p.id = w.id"
            " WHERE w.kind = 1 AND w.done = 0 AND p.pack = ? AND p.bad = 0 ORDER BY p.offset LIMIT 1024",
            (pack,),
        )
        return [OpenNode(*row) for row in rows]

    def read(self, number: int) -> None:
        self.execute("UPDATE wanted SET done = 1 WHERE number = ?", (number,))

    def is_bad(self, block_id: bytes, pack: int) -> None:
        """The pack has something else where the block or node should be."""
        self.execute("UPDATE places SET bad = 1 WHERE id = ? AND pack = ?", (block_id, pack))

    # --- reading every byte --------------------------------------------------------------------------------------

    def was_verified(self, pack_ids: Iterable[bytes]) -> None:
        """These were read before and are right."""
        self._connection.executemany("UPDATE packs SET state = 1 WHERE id = ?", [(i,) for i in pack_ids])

    def unread(self, after: int, limit: int) -> list[tuple[int, PackId, int]]:
        """(number, id, size) of packs with a number above *after* that were not read."""
        rows = self.execute(
            "SELECT number, id, size FROM packs WHERE number > ? AND state = 0 AND listed = size"
            " ORDER BY number LIMIT ?",
            (after, limit),
        )
        return [(number, PackId(pack_id), size) for number, pack_id, size in rows]

    def verified(self, pack: int, sound: bool) -> None:
        self.execute("UPDATE packs SET state = ? WHERE number = ?", (1 if sound else 2, pack))

    def places_in(self, pack: int) -> Sequence[tuple[bytes, int, int]]:
        """(id, offset, sealed bytes) of what should be in the pack."""
        return self.execute("SELECT id, offset, sealed FROM places WHERE pack = ?", (pack,)).fetchall()

    # --- the result ----------------------------------------------------------------------------------------------

    def lost(self) -> list[Lost]:
        """What is needed and in no sound place."""
        rows = self.execute(
            "SELECT w.number, w.id, w.kind, w.local, CASE WHEN p.id IS NULL THEN 'unlisted'"
            " WHEN k.listed IS NULL THEN 'missing' WHEN k.listed <> k.size THEN 'size' ELSE 'damaged' END, k.id"
            " FROM wanted w LEFT JOIN places p ON p.id = w.id AND p.pack = ("
            "SELECT max(pack) FROM places WHERE id = w.id) LEFT JOIN packs k ON k.number = p.pack"
            f" WHERE (w.kind = {CONTENT} OR w.done = 0) AND NOT {_SOUND} LIMIT ?",
            (LOST_MAX,),
        )
        return [Lost(*row) for row in rows]

    def unlisted_packs(self) -> list[PackId]:
        """Packs that DATA counts as indexed, and no index lists."""
        return [PackId(row[0]) for row in self.execute("SELECT id FROM packs WHERE here = 1 AND indexed = 0")]

    def unsound_trees(self) -> list[PackId]:
        """Packs of nodes that are not there as they should be; what is in them may not even have been asked for."""
        rows = self.execute(
            "SELECT id FROM packs k WHERE kind = 1 AND (listed IS NOT size OR state = 2"
            " OR EXISTS (SELECT 1 FROM places p WHERE p.pack = k.number AND p.bad = 1))"
        )
        return [PackId(row[0]) for row in rows]

    def place_of(self, block_id: BlockId) -> Place | None:
        """A sound place of the block."""
        row = self.execute(
            "SELECT k.id, k.size, k.kind, p.offset, p.sealed FROM places p JOIN packs k ON k.number = p.pack"
            " WHERE p.id = ? AND p.bad = 0 AND k.listed = k.size LIMIT 1",
            (block_id,),
        ).fetchone()
        return None if row is None else Place(PackId(row[0]), *row[1:])

    def path(self, number: int) -> bytes:
        """The first path by which something was found: `peer/seq:/path`."""
        parts: list[bytes] = []
        place: int | None = number
        while place is not None:
            place, name = self.execute("SELECT parent, name FROM wanted WHERE number = ?", (place,)).fetchone()
            if name is not None:
                parts.append(name)
        return b"" if not parts else parts[-1] + b":/" + b"/".join(reversed(parts[:-1]))

    def counts(self) -> tuple[int, int, int]:
        """(packs, blocks and nodes needed, sealed bytes of the packs)."""
        packs, size = self.execute("SELECT count(*), ifnull(sum(size), 0) FROM packs").fetchone()
        return packs, self.execute("SELECT count(*) FROM wanted").fetchone()[0], size
