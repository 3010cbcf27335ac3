"""What each column of meta.db must be. SQLite takes any value anywhere, and what damage leaves is any value.

Looked at before the rules of rules.py, which rely on it. A value of another kind becomes 0, NULL or bytes; a row that
cannot be told from others then, or whose id is none, goes: there is nothing it could be of.
"""

import sqlite3
from collections.abc import Mapping

from blake3 import blake3

from syncer.meta.findings import Finding
from syncer.values import FILE_END_MAX, ID_BYTES

INTEGERS: Mapping[str, str] = {
    "inodes": "inode mode uid gid nlink size atime_ns mtime_ns ctime_ns rdev tail tail_start overlay content",
    "dentries": "parent inode",
    "xattrs": "inode",
    "extents": "inode start length source source_offset",
    "overlays": "dirty region inode",
    "blocks": "size refs kind cached used born",
    "settling": "number length",
    "packs": "size kind",
    "changed": "generation",
    "changed_names": "parent generation",
    "trees": "large",
    "changed_extents": "inode begin reach generation",
    "node_refs": "node block tree",
    "doomed": "gone",
    "strays": "seq",
}
OPTIONAL: Mapping[str, str] = {"blocks": "pack pack_offset sealed_bytes", "packs": "indexed"}
BYTES: Mapping[str, str] = {
    "dentries": "name",
    "symlinks": "target",
    "xattrs": "name value",
    "contents": "data",
    "overlays": "bounds",
    "block_data": "data",
    "changed_names": "name",
}
IDS: Mapping[str, str] = {
    "trees": "id",
    "deleting": "id",
    "snapshots": "root",
    "packs": "id",
    "blocks": "id",
    "strays": "pack",
}
SIGNED = ("atime_ns", "mtime_ns", "ctime_ns", "source")
REACH_MAX = FILE_END_MAX // 4
"""Sums of two such numbers still are integers."""


def _tests() -> list[tuple[str, str, str, str]]:
    """(table, column, what its value must not be, what it becomes) in an order in which ids come last."""
    tests = []
    for table, names in INTEGERS.items():
        for name in names.split():
            wrong = f"typeof({name}) <> 'integer'"
            if name not in SIGNED:
                wrong += f" OR {name} > {REACH_MAX}"
            tests.append((table, name, wrong, "0"))
    for table, names in OPTIONAL.items():
        tests += [(table, n, f"typeof({n}) NOT IN ('integer', 'null') OR {n} < 0", "NULL") for n in names.split()]
    for table, names in BYTES.items():
        tests += [(table, n, f"typeof({n}) <> 'blob'", f"CAST({n} AS BLOB)") for n in names.split()]
    return tests


_NUMBERED = "rowid <= 0 OR rowid > {}".format
_KEYS = (
    *("symlinks", "contents", "block_data", "blocks", "packs", "settling", "released", "changed", "trees"),
    "read_nodes",
)


def column_findings(connection: sqlite3.Connection) -> list[Finding]:
    """Columns with values that they cannot have."""
    found: list[Finding] = []
    for table, name, wrong, _ in _tests():
        found += _counted(connection, table, name, wrong)
    for table, name in IDS.items():
        found += _counted(connection, table, name, f"typeof({name}) <> 'blob' OR length({name}) <> {ID_BYTES}")
    for table in _KEYS:
        found += _counted(connection, table, "key", _NUMBERED(REACH_MAX))
    return found


def _counted(connection: sqlite3.Connection, table: str, name: str, wrong: str) -> list[Finding]:
    count = connection.execute(f"SELECT count(*) FROM {table} WHERE {wrong}").fetchone()[0]
    return [Finding("column", f"{table}: {count} rows with an impossible {name}")] if count else []


def mend_columns(connection: sqlite3.Connection) -> None:
    """Make every value one that its column can have. Part of a transaction; no trigger may fire."""
    for table, name, wrong, value in _tests():
        connection.execute(f"UPDATE OR IGNORE {table} SET {name} = {value} WHERE {wrong}")
        connection.execute(f"DELETE FROM {table} WHERE {wrong}")
    rows = connection.execute(
        "SELECT b.number, d.data FROM blocks b JOIN block_data d ON d.number = b.number"
        f" WHERE typeof(b.id) <> 'blob' OR length(b.id) <> {ID_BYTES}"
    )
    for number, data in rows.fetchall():
        connection.execute("UPDATE OR IGNORE blocks SET id = ? WHERE number = ?", (blake3(data).digest(), number))
    for table, name in IDS.items():
        connection.execute(f"DELETE FROM {table} WHERE typeof({name}) <> 'blob' OR length({name}) <> {ID_BYTES}")
    for table in _KEYS:
        connection.execute(f"DELETE FROM {table} WHERE {_NUMBERED(REACH_MAX)}")
