"""Mends meta.db: one transaction brings it from any state that a check complains of to one where it does not.

For a DATA that nobody has open, whose journal is empty; the caller holds the lock. Killed at any point, the tables are
as before. Nothing is deleted that holds bytes: what has no place gets one in `lost+found` in the root of the file
system, and a file that lost bytes for good is moved there, so that no name promises what is gone.
"""

import sqlite3
from collections.abc import Callable
from pathlib import Path

from syncer.errors import LocalDamage, recover_command
from syncer.meta.columns import mend_columns
from syncer.meta.facts import Facts
from syncer.meta.mendblocks import BlockMender
from syncer.meta.mendcontent import ContentMender
from syncer.meta.mendnames import Mender
from syncer.meta.tablecheck import fill_files


def repair(path: Path, facts: Facts, *, uid: int, gid: int, now_ns: int) -> int:
    """Mend what can be mended, and return how many rows were changed. *uid* and *gid* own what must be made.

    Raises: LocalDamage: SQLite cannot read or write the file.
    """
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "temp_store = FILE", "recursive_triggers = OFF"):
            connection.execute(f"PRAGMA {pragma}")
        fill_files(connection, facts.dirty, facts.cache)
        before = connection.total_changes
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany("UPDATE blocks SET size = ?2 WHERE number = ?1", facts.sizes.items())
        _finish_cuts(connection)
        mender = Mender(connection, uid, gid, now_ns)
        mender.namespace()
        ContentMender(mender, facts.keep).mend()
        BlockMender(mender, facts).mend()
        mender.finish()
        connection.execute("COMMIT")
        return connection.total_changes - before
    except sqlite3.DatabaseError as error:
        raise LocalDamage(
            f"{path}: {error}", hint=f"this is beyond a repair of its rows: {recover_command(path.parent)}"
        ) from error
    finally:
        connection.close()


def _finish_cuts(connection: sqlite3.Connection) -> None:
    """Remove what a running file system removes by and by."""
    for number, start in connection.execute("SELECT inode, start FROM cuts").fetchall():
        connection.execute("DELETE FROM extents WHERE inode = ? AND start >= ?", (number, start))
    connection.execute("DELETE FROM cuts")


def repair_columns(path: Path) -> None:
    """Mend the values that a look at the tables stumbles over, so that there can be one.

    Raises: LocalDamage.
    """
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("BEGIN IMMEDIATE")
        _without_triggers(connection, mend_columns)
        connection.execute("COMMIT")
    except sqlite3.DatabaseError as error:
        raise LocalDamage(f"{path}: {error}") from error
    finally:
        connection.close()


def _without_triggers(connection: sqlite3.Connection, work: Callable[[sqlite3.Connection], None]) -> None:
    """What triggers keep in step is counted anew afterwards."""
    triggers = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
    for name, _ in triggers:
        connection.execute(f"DROP TRIGGER {name}")
    work(connection)
    for _, sql in triggers:
        connection.execute(sql)
