"""How much the WAL takes when a lot is deleted: room is wanted then, and deleting must not take more of it."""

import os
from pathlib import Path

from syncer.meta.database import Database

ROWS, ROW_BYTES = 200, 40_000


def test_deleting_rows_does_not_write_their_pages_again(tmp_path: Path) -> None:
    """Some builds of SQLite overwrite what is deleted with zeros, which all goes through the WAL."""
    (tmp_path / "journal").mkdir()
    database = Database(tmp_path / "meta.db", tmp_path / "journal")
    try:
        database.recover()
        database.begin()
        database.connection.executemany(
            "INSERT INTO block_data (number, data) VALUES (?, ?)",
            [(number, os.urandom(ROW_BYTES)) for number in range(1, ROWS + 1)],
        )
        database.commit()
        assert database.wal_bytes() > ROWS * ROW_BYTES
        database.checkpoint()
        assert database.checkpoint_here()
        database.begin()
        database.connection.execute("DELETE FROM block_data")
        database.commit()
        assert 0 < database.wal_bytes() < ROWS * ROW_BYTES / 5
    finally:
        database.close()
