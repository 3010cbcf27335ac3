"""The rules applied to one connection, and the one rule that is no query: what overlays hold. See rules.py."""

import itertools
import sqlite3
from collections.abc import Iterable

import msgspec

from syncer.meta.findings import Finding
from syncer.meta.overlays import REGION_BYTES
from syncer.meta.rules import BLOCKS, CONTENT, NAMESPACE, Rule
from syncer.values import BlockId

STOP_AFTER = 100_000
"""Of one rule; a DATA that breaks one more often is beyond a list."""

bounds_of = msgspec.msgpack.Decoder(list[int]).decode


def table_findings(connection: sqlite3.Connection) -> list[Finding]:
    """Every rule among the tables alone, on a connection that shows a commit of an engine which is at rest."""
    found = [finding for rule in (*NAMESPACE, *CONTENT, *BLOCKS) for finding in run_rule(connection, rule)]
    return found + overlay_findings(connection)


def run_rule(connection: sqlite3.Connection, rule: Rule) -> list[Finding]:
    rows = connection.execute(rule.query)
    return [
        Finding(rule.code, text, inode, None if name is None else as_bytes(name), block, lost=rule.lost)
        for inode, name, block, text in itertools.islice(rows, STOP_AFTER)
    ]


def fill_files(
    connection: sqlite3.Connection, dirty: Iterable[tuple[int, int]], cache: Iterable[tuple[BlockId, int]]
) -> None:
    """Make the temporary tables that rules.py speaks of anew."""
    for table, columns in (
        ("dirty_files", "number INTEGER PRIMARY KEY, length INTEGER"),
        ("cache_files", "id BLOB PRIMARY KEY, size INTEGER"),
    ):
        connection.execute(f"DROP TABLE IF EXISTS temp.{table}")
        connection.execute(f"CREATE TEMP TABLE {table}({columns})")
    connection.execute("BEGIN")
    connection.executemany("INSERT INTO dirty_files VALUES (?, ?)", dirty)
    connection.executemany("INSERT INTO cache_files VALUES (?, ?)", cache)
    connection.execute("COMMIT")


def overlay_findings(connection: sqlite3.Connection) -> list[Finding]:
    """Overlays whose ranges are none, or lie beyond what their file holds outside of its tail."""
    rows = connection.execute(
        "SELECT o.dirty, o.region, o.inode, o.bounds, iif(i.tail > 0, i.tail_start, i.size) FROM overlays o"
        " LEFT JOIN inodes i ON i.inode = o.inode ORDER BY o.dirty, o.region"
    )
    found: list[Finding] = []
    owner: tuple[int, int] | None = None
    for dirty, region, inode, encoded, limit in rows:
        if owner is not None and owner[0] == dirty and owner[1] != inode:
            found.append(Finding("overlay-owner", f"overlay {dirty} is also of inode {owner[1]}", inode))
        owner = (dirty, inode)
        bounds = overlay_bounds(encoded)
        if bounds is None:
            text = f"overlay {dirty} has no proper ranges in region {region}"
            found.append(Finding("overlay-bounds", text, inode, lost=True))
        elif limit is not None and region * REGION_BYTES + bounds[-1] > limit:
            end = region * REGION_BYTES + bounds[-1]
            found.append(Finding("overlay-beyond", f"overlay {dirty} reaches to {end}, beyond {limit}", inode))
    return found


def overlay_bounds(encoded: object) -> list[int] | None:
    """The ranges of a region of an overlay, None where they are no proper ones."""
    try:
        bounds = bounds_of(encoded)  # type: ignore[arg-type]
    except (msgspec.MsgspecError, TypeError):
        return None
    if not bounds or len(bounds) % 2 or bounds[0] < 0 or bounds[-1] > REGION_BYTES:
        return None
    return bounds if all(low < high for low, high in itertools.pairwise(bounds)) else None


def as_bytes(name: object) -> bytes:
    return bytes(name) if isinstance(name, bytes) else str(name).encode("utf-8", "surrogateescape")
