"""What a killed process had told its callers is there again: replaying the journal gives the tables that were lost."""

import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from syncer.meta.store import MetaStore
from syncer.values import PeerId
from tests.support.core_check import check_tables
from tests.support.core_data import fast_folder, make_data
from tests.support.core_moves import Move, Moves

NAMES = sorted(name for name, value in vars(Moves).items() if callable(value) and name[0] != "_" and name != "play")
moves = st.lists(st.tuples(st.sampled_from(NAMES), st.integers(0, 30), st.integers(0, 40)), max_size=60)


@contextmanager
def new_store() -> Iterator[tuple[Path, MetaStore]]:
    """With so few extents at once that a file of a test has many."""
    folder = fast_folder()
    small = mock.patch("syncer.meta.extents.REMOVED_AT_ONCE", 1)
    small.start()
    meta = MetaStore(make_data(folder / "data"))
    try:
        meta.become(PeerId(1))
        meta.ensure_root(0, 0)
        meta.commit()
        yield folder, meta
    finally:
        meta.close()
        small.stop()
        shutil.rmtree(folder)


def dump(meta: MetaStore) -> dict[str, list[tuple[Any, ...]]]:
    """Every table but what says when, and for whom room was reserved."""
    execute = meta.database.connection.execute
    tables = execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_stat%'").fetchall()
    rows = {table: sorted(execute(f"SELECT * FROM {table}").fetchall(), key=repr) for (table,) in tables}
    rows["state"] = [row for row in rows["state"] if row[0] != "next_inode"]
    return rows


def assert_same(one: dict[str, list[tuple[Any, ...]]], other: dict[str, list[tuple[Any, ...]]]) -> None:
    for table, rows in one.items():
        assert rows == other[table], f"{table} differs"


def replayed(folder: Path, meta: MetaStore) -> MetaStore:
    """*meta* as a kill at this moment leaves it, opened again."""
    copy = folder / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder / "data", copy)
    return MetaStore(copy)


@given(moves)
@settings(max_examples=150, deadline=None)
def test_a_replay_gives_the_tables_that_were_lost(played: list[Move]) -> None:
    with new_store() as (folder, meta):
        player = Moves(meta)
        for move in played:
            if move[0] != "keep_row":
                player.play(move)
        again = replayed(folder, meta)
        try:
            meta.commit()
            check_tables_unsettled(meta)
            assert_same(dump(meta), dump(again))
            check_tables_unsettled(again)
            assert again.inodes.totals == meta.inodes.totals
            assert again.blocks.totals == meta.blocks.totals
        finally:
            again.close()


@given(moves)
@settings(max_examples=60, deadline=None)
def test_what_was_cached_without_a_record_makes_a_replay_no_worse(played: list[Move]) -> None:
    """A fetched row is lost with its transaction; the operations after it must still be possible and fit together."""
    with new_store() as (folder, meta):
        player = Moves(meta)
        for move in played:
            player.play(move)
        again = replayed(folder, meta)
        try:
            meta.commit()
            check_tables_unsettled(again)
            ours, theirs = dump(meta), dump(again)
            for table in ("inodes", "dentries", "xattrs", "symlinks", "contents", "packs", "snapshots"):
                assert ours[table] == theirs[table], table
        finally:
            again.close()


def check_tables_unsettled(meta: MetaStore) -> None:
    """The whole check of the tables; the dirty files that wait to be moved do not exist here, so say they were."""
    waiting = meta.blocks.settling()
    meta.database.begin()
    for dirty, _, _ in waiting:
        meta.database.connection.execute("DELETE FROM settling WHERE dirty = ?", (dirty,))
    check_tables(meta, set(meta.inodes.orphans()))
    meta.database.connection.execute("ROLLBACK")
    meta.database.pending = False


def test_every_journaled_operation_is_among_the_moves() -> None:
    seen: set[int] = set()
    with new_store() as (_, meta):
        player = Moves(meta)
        record = meta.database.record

        def recorded(payload: bytes) -> None:
            seen.add(msgspec.msgpack.decode(payload)[0])
            record(payload)

        with mock.patch.object(meta.database, "record", recorded):
            choose = random.Random(1)
            for _ in range(4000):
                player.play((choose.choice(NAMES), choose.randrange(31), choose.randrange(41)))
        missing = set(meta.database._replay) - seen - {_CREATE_ROOT}
    assert not missing, f"operations {missing} were never recorded"


_CREATE_ROOT = 11  # once in the life of a DATA, at its start
