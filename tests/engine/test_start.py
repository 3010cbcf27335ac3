"""What a start after a crash costs, and daily work: it goes with what is dirty, whatever the collection holds."""

import contextlib
import re
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from syncer.backends.memory import MemoryBackend
from syncer.engine import Engine
from syncer.values import ROOT_INODE
from tests.support.opened import create, evict_all, flush, landed, opened

OF_FEW = "inodes_orphan|inodes_unsealed|extents_dirty|blocks_pending|blocks_evictable|blocks_files|trees_large"
"""Indexes of what is dirty, cached or under way."""
WALK = re.compile(
    rf"SCAN (?:\w+\.)?(inodes|dentries|extents|blocks|block_data|symlinks|xattrs|trees|i|e|b)\b(?!.*INDEX ({OF_FEW})\b)"
)


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What SQLite is asked from now on, by connections that are made from now on."""
    asked: list[str] = []
    connect = sqlite3.connect

    def watched(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(*arguments, **options)
        connection.set_trace_callback(asked.append)
        return connection

    monkeypatch.setattr(sqlite3, "connect", watched)
    return asked


def walks(statements: list[str], data: Path) -> list[tuple[str, list[str]]]:
    """Of the statements those that go over the collection, with SQLite's plans for them."""
    asked = [text for text in statements if re.match(r"SELECT|DELETE|UPDATE|INSERT", text)]
    assert len(asked) > 20
    statements.clear()
    with contextlib.closing(sqlite3.connect(data / "meta.db")) as connection:
        plans = [(text, [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {text}")]) for text in asked]
    return [(text, steps) for text, steps in plans if any(WALK.search(step) for step in steps)]


async def fill(engine: Engine) -> int:
    """Some small files and some larger ones. Returns a handle of the last."""
    for at in range(20):
        _, handle = create(engine, b"file%d" % at)
        await engine.file_system.write(handle, 0, bytes([at + 1]) * (1000 if at % 2 else 100_000))
    return handle


async def test_no_statement_of_a_start_goes_over_the_collection(tmp_path: Path, statements: list[str]) -> None:
    remote = MemoryBackend()
    async with opened(tmp_path / "data", remote) as engine:
        handle = await fill(engine)
        await engine.file_system.write(handle, 10, b"x")
        engine.file_system.unlink(ROOT_INODE, b"file3")
        shutil.copytree(tmp_path / "data", tmp_path / "copy")
    statements.clear()
    async with opened(tmp_path / "copy", remote) as engine:
        assert engine.recovered == (
            f"recovered after a crash: {engine.meta.replayed} operations replayed, 19 files with unsealed bytes,"
            " 1 unlinked file erased"
        )
        assert walks(statements, tmp_path / "copy") == []


async def test_no_statement_of_daily_work_goes_over_the_collection(tmp_path: Path, statements: list[str]) -> None:
    """With a block that is known to be damaged, which must not make everything else slower."""
    remote = MemoryBackend()
    async with opened(tmp_path, remote) as engine:
        await fill(engine)
        await flush(engine)
        engine.meta.damage.lost(1)
        statements.clear()
        number, handle = create(engine, b"another")
        await engine.file_system.write(handle, 0, b"y" * 300_000)
        assert engine.file_system.state(engine.meta.inodes.need(number)) == b"dirty"
        await flush(engine)
        evict_all(engine)
        assert await engine.file_system.read(handle, 0, 10) == b"y" * 10
        await landed(engine)
        engine.file_system.unlink(ROOT_INODE, b"another")
        engine.meta.damage.unsendable()
        engine.commit()
        found = walks(statements, tmp_path)
        assert not found, "\n".join(map(str, found))
