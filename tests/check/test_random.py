"""Rows changed and deleted at random: a check tells, a repair leaves nothing, and a mount works, whatever they say."""

import random
import sqlite3

import pytest

from tests.support.check_world import CheckWorld
from tests.support.long_form import LONG

SEEDS = range(300 if LONG else 2)
TABLES = (
    *("inodes", "dentries", "symlinks", "xattrs", "contents", "extents", "overlays", "blocks", "block_data"),
    *("released", "settling", "deleting", "trees", "changed", "changed_extents", "packs"),
)


def _change(choose: random.Random, connection: sqlite3.Connection) -> str:
    """One row is not what it was. What it was about is returned."""
    table = choose.choice(TABLES)
    columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
    rows = connection.execute(f"SELECT * FROM {table}").fetchall()
    if not rows:
        return f"{table} is empty"
    row, column = choose.choice(rows), choose.randrange(len(columns))
    where = " AND ".join(f"{name} IS ?" for name in columns)
    if choose.random() < 0.3:
        connection.execute(f"DELETE FROM {table} WHERE {where}", row)
        return f"{table}: {row} is gone"
    other = choose.choice(rows)[column]
    values: list[object] = [
        0,
        1,
        -1,
        7,
        2**40 + choose.randrange(40),
        2**62,
        None,
        b"",
        choose.randbytes(32),
        other,
        other,
    ]
    value = choose.choice(values)
    try:
        connection.execute(f"UPDATE {table} SET {columns[column]} = ? WHERE {where}", (value, *row))
    except sqlite3.Error:
        return f"{table} refused {value!r}"
    return f"{table}.{columns[column]}: {row[column]!r:.60} -> {value!r:.60}"


@pytest.mark.parametrize("seed", SEEDS)
def test_random_damage_is_mended(world: CheckWorld, seed: int) -> None:
    choose = random.Random(seed)
    with world.database() as connection:
        triggers = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for name, _ in triggers:
            connection.execute(f"DROP TRIGGER {name}")
        for _ in range(choose.choice((1, 1, 2, 5, 30))):
            print(_change(choose, connection))
        for _, sql in triggers:
            connection.execute(sql)
    world.check(percent=100.0, remote=True)
    report = world.check(percent=100.0, remote=True, repair=True)
    local = [finding for finding in report.left if not finding.code.startswith(("pack-", "block-unlisted"))]
    assert not local, local
    again = world.check(percent=100.0)
    assert not again.found, again.found
    world.read()
    after = world.check(percent=100.0)
    assert not after.found, after.found
