"""Reads what can be read of a damaged meta.db, page by page where it must, into tables of the same names beside it.

Nothing is changed in the damaged one. Its rows carry no checksums: a row that comes out is believed where it fits
(see rebuild.py), and the bytes of files where they hash to their block's id.
"""

import contextlib
import sqlite3
from dataclasses import dataclass, field
from pathlib import Path

from syncer.values import BlockId, PackId

_LAST = 2**63 - 1

_TABLES = {
    "inodes": ("inode", "mode uid gid nlink size atime_ns mtime_ns ctime_ns rdev tail tail_start overlay content"),
    "dentries": ("cookie", "parent name inode"),
    "symlinks": ("inode", "target"),
    "xattrs": ("inode", "name value"),
    "contents": ("inode", "data"),
    "extents": ("inode", "start length source source_offset"),
    "overlays": ("dirty", "region inode bounds"),
    "blocks": ("number", "id size cached pack pack_offset sealed_bytes"),
    "block_data": ("number", "data"),
    "packs": ("number", "id size kind indexed"),
    "settling": ("dirty", "number length"),
}
"""The column that a table is ordered by, and the others."""
_DOUBTFUL = {"xattrs": "inode", "contents": "inode", "extents": "inode", "overlays": "dirty"}
"""Tables of which a file may have several rows: those next to a gap may not be all."""


@dataclass(slots=True)
class Salvaged:
    """What came out. *gaps*: tables that could not be read whole. *state*: the values of `state`."""

    rows: int = 0
    gaps: set[str] = field(default_factory=set)
    state: dict[str, int | bytes] = field(default_factory=dict)


def is_sound(path: Path) -> bool:
    """Whether SQLite finds nothing wrong with the database. Reads all of it."""
    try:
        with contextlib.closing(_reader(path)) as database:
            version = database.execute("SELECT value FROM state WHERE key = 'schema'").fetchone()
            return version is not None and database.execute("PRAGMA integrity_check(1)").fetchone()[0] == "ok"
    except sqlite3.DatabaseError:
        return False


def read_state(path: Path) -> dict[str, int | bytes]:
    """The single values of a database, as far as they can be read."""
    try:
        with contextlib.closing(_reader(path)) as database:
            return dict(database.execute("SELECT key, value FROM state").fetchall())
    except sqlite3.DatabaseError:
        return {}


def salvage(damaged: Path, into: Path) -> Salvaged:
    """Copy what can be read of *damaged* into the new database *into*; its table `doubtful` has ranges of keys."""
    found = Salvaged()
    with contextlib.closing(_reader(damaged)) as source, contextlib.closing(sqlite3.connect(into)) as target:
        target.execute("CREATE TABLE doubtful(kind TEXT, first INTEGER, last INTEGER)")
        for table, (key, others) in _TABLES.items():
            columns = [key, *others.split()]
            target.execute(f"CREATE TABLE {table}({', '.join(columns)})")
            _copy_table(source, target, table, columns, found)
        for table, column in (("inodes", "inode"), ("dentries", "parent, name"), ("blocks", "number")):
            target.execute(f"CREATE INDEX {table}_by ON {table}({column})")
        for table in ("xattrs", "contents", "symlinks", "dentries", "overlays"):
            target.execute(f"CREATE INDEX {table}_of ON {table}(inode)")
        target.execute("CREATE INDEX extents_of ON extents(inode, start)")
        target.commit()
    found.state = read_state(damaged)
    return found


def unindexed_packs(salvaged: Path) -> list[tuple[PackId, int, int, list[tuple[BlockId, int, int, int]]]]:
    """Packs that no index lists, as `BlockTable.stored` takes them: (id, size, kind, entries)."""
    with contextlib.closing(_reader(salvaged)) as database:
        packs = database.execute(
            "SELECT number, id, size, kind FROM packs WHERE indexed IS NULL AND typeof(id) = 'blob' AND length(id) = 32"
        ).fetchall()
        entries = "SELECT id, pack_offset, sealed_bytes, size FROM blocks WHERE pack = ? AND typeof(id) = 'blob'"
        return [
            (PackId(pack_id), size, kind, database.execute(entries, (number,)).fetchall())
            for number, pack_id, size, kind in packs
        ]


def _reader(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None)


def _copy_table(
    source: sqlite3.Connection, target: sqlite3.Connection, table: str, columns: list[str], found: Salvaged
) -> None:
    select = f"SELECT {', '.join(columns)} FROM {table} NOT INDEXED WHERE {columns[0]} >= ? ORDER BY {columns[0]}"
    insert = f"INSERT INTO {table} VALUES ({', '.join('?' * len(columns))})"
    start: int | None = 0
    while start is not None:
        last = start - 1
        try:
            for row in source.execute(select, (start,)):
                target.execute(insert, row)
                found.rows += 1
                last = int(row[0])
            return
        except (sqlite3.DatabaseError, OverflowError, ValueError, TypeError):
            found.gaps.add(table)
        start = _next_readable(source, select, max(start, last + 1))
        if kind := _DOUBTFUL.get(table):
            end = _LAST if start is None else start
            target.execute("INSERT INTO doubtful VALUES (?, ?, ?)", (kind, last, end))


def _next_readable(source: sqlite3.Connection, select: str, start: int) -> int | None:
    """About the lowest key at or after *start* from which on there is a row that can be read; None without one."""

    def key_from(key: int) -> int | None:
        try:
            row = source.execute(select + " LIMIT 1", (key,)).fetchone()
        except (sqlite3.DatabaseError, OverflowError):
            return None
        return None if row is None or not isinstance(row[0], int) or row[0] < key else row[0]

    step, low = 1, start
    while (found := key_from(low + step)) is None:
        if low + step > _LAST // 2:
            return None
        step *= 2
    bad, good = low + step // 2, low + step
    while good - bad > 1:
        middle = (bad + good) // 2
        if (nearer := key_from(middle)) is None:
            bad = middle
        else:
            good, found = middle, nearer
    return found
