"""Databases that live in files: SQLite with several writers and with one that dies, and Python's shelves."""

import dbm.dumb
import shelve
import sqlite3
from pathlib import Path

import pytest

from tests.support.child import Child

pytestmark = pytest.mark.slow

COUNTER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], timeout=60, isolation_level=None)
print("ready")
sys.stdin.readline()
for number in range(int(sys.argv[3])):
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("UPDATE counter SET value = value + 1")
    connection.execute("INSERT INTO entries VALUES (?, ?, randomblob(500))", (sys.argv[2], number))
    connection.execute("ROLLBACK" if number % 5 == 4 else "COMMIT")
connection.close()
print("done")
"""


@pytest.mark.parametrize("mode", ["delete", "truncate", "wal"])
def test_sqlite_under_four_processes(folder: Path, mode: str) -> None:
    path = folder / "x.db"
    with sqlite3.connect(path) as connection:
        assert connection.execute(f"PRAGMA journal_mode={mode}").fetchone() == (mode,)
        connection.execute("CREATE TABLE counter (value INTEGER)")
        connection.execute("INSERT INTO counter VALUES (0)")
        connection.execute("CREATE TABLE entries (name TEXT, number INTEGER, data BLOB, PRIMARY KEY (name, number))")
    connection.close()
    children = [Child(COUNTER, path, name, 25) for name in "abcd"]
    try:
        assert [child.says() for child in children] == ["ready"] * 4
        for child in children:
            child.tell()
        assert [child.says() for child in children] == ["done"] * 4
    finally:
        for child in children:
            child.__exit__()
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert connection.execute("SELECT value FROM counter").fetchone() == (80,)
    assert connection.execute("SELECT name, count(*) FROM entries GROUP BY name").fetchall() == [
        (name, 20) for name in "abcd"
    ]
    connection.execute("VACUUM")
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()


def test_a_killed_writer_of_a_database_is_rolled_back(folder: Path) -> None:
    code = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA cache_size=10")
connection.execute("BEGIN")
connection.execute("UPDATE t SET data = randomblob(1000)")
print("half done")
sys.stdin.readline()
"""
    connection = sqlite3.connect(folder / "x.db")
    with connection:
        connection.execute("CREATE TABLE t (number INTEGER PRIMARY KEY, data BLOB)")
        connection.executemany("INSERT INTO t VALUES (?, ?)", [(number, b"x" * 1000) for number in range(300)])
    connection.close()
    with Child(code, folder / "x.db") as child:
        assert child.says() == "half done"
        assert (folder / "x.db-journal").exists()
    connection = sqlite3.connect(folder / "x.db")
    assert connection.execute("SELECT count(*) FROM t WHERE data = ?", (b"x" * 1000,)).fetchone() == (300,)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()
    assert not (folder / "x.db-journal").exists()


def test_shelves_keep_their_objects(folder: Path) -> None:
    for number in range(3):
        with shelve.open(str(folder / "shelf")) as shelf:
            assert len(shelf) == number * 50
            shelf.update({f"{number}-{key}": list(range(key)) for key in range(50)})
    with shelve.open(str(folder / "shelf"), "r") as shelf:
        assert all(shelf[f"{number}-{key}"] == list(range(key)) for number in range(3) for key in range(50))
    with dbm.dumb.open(str(folder / "dumb"), "c") as database:
        database[b"key"] = b"value" * 1000
    with dbm.dumb.open(str(folder / "dumb"), "r") as database:
        assert database[b"key"] == b"value" * 1000
