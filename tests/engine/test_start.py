"""What a start after a crash costs: it goes with what was dirty, whatever the collection holds."""

import re
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from syncer.backends.memory import MemoryBackend
from syncer.values import ROOT_INODE
from tests.support.opened import create, opened

OF_FEW = "inodes_orphan|inodes_unsealed|extents_dirty|blocks_pending|blocks_evictable|blocks_files|trees_large"
"""Indexes of what is dirty, cached or under way."""
WALK = re.compile(
    rf"SCAN \w*\.?(inodes|dentries|extents|blocks|block_data|symlinks|xattrs|trees|i|e|b)\b(?!.*INDEX ({OF_FEW})\b)"
)


async def test_no_statement_of_a_start_goes_over_the_collection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = MemoryBackend()
    async with opened(tmp_path / "data", remote) as engine:
        for at in range(20):
            _, handle = create(engine, b"file%d" % at)
            await engine.file_system.write(handle, 0, bytes([at + 1]) * (1000 if at % 2 else 100_000))
        await engine.file_system.write(handle, 10, b"x")
        engine.file_system.unlink(ROOT_INODE, b"file3")
        shutil.copytree(tmp_path / "data", tmp_path / "copy")
    statements: list[str] = []
    connect = sqlite3.connect

    def watched(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(*arguments, **options)
        connection.set_trace_callback(statements.append)
        return connection

    monkeypatch.setattr(sqlite3, "connect", watched)
    async with opened(tmp_path / "copy", remote) as engine:
        assert engine.recovered == (
            f"recovered after a crash: {engine.meta.replayed} operations replayed, 19 files with unsealed bytes,"
            " 1 unlinked file erased"
        )
        asked = [text for text in statements if re.match(r"SELECT|DELETE|UPDATE|INSERT", text)]
        plan = engine.meta.database.connection
        assert len(asked) > 20
        for text in asked:
            steps = [row[3] for row in plan.execute(f"EXPLAIN QUERY PLAN {text}")]
            assert not [step for step in steps if WALK.search(step)], (text, steps)
