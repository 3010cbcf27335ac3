"""Inodes in memory: one object an inode for as long as anybody may hold it."""

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from syncer.meta import inodes as inodes_module
from syncer.meta.store import MetaStore
from syncer.values import ROOT_INODE, PeerId
from tests.support.core_check import check_tables
from tests.support.core_data import make_data

KEPT = 8


@pytest.fixture
def meta(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MetaStore]:
    monkeypatch.setattr(inodes_module, "CACHED_INODES", KEPT)
    meta = MetaStore(make_data(tmp_path / "data"))
    meta.become(PeerId(1))
    meta.ensure_root(0, 0)
    meta.commit()
    yield meta
    meta.commit()
    check_tables(meta, set(meta.inodes.orphans()))
    meta.close()


def make_directory(meta: MetaStore, name: str) -> int:
    number = meta.new_inode()
    meta.names.create(ROOT_INODE, name.encode(), number, stat.S_IFDIR | 0o755, 0, 0, 0, None, 1)
    return number


def test_an_operation_under_way_is_never_left_with_a_stale_object(meta: MetaStore) -> None:
    """A parent that was forgotten while its child was made lost the link that the child is."""
    root = meta.inodes.need(ROOT_INODE)
    for count in range(3 * KEPT):
        make_directory(meta, str(count))
        meta.commit()
    for row in meta.database.connection.execute("SELECT inode FROM inodes").fetchall():
        meta.inodes.need(row[0])
    assert meta.inodes.need(ROOT_INODE) is root
    assert root.nlink == 2 + 3 * KEPT


def test_between_operations_memory_is_bounded(meta: MetaStore) -> None:
    numbers = [make_directory(meta, str(count)) for count in range(3 * KEPT)]
    meta.inodes.need(numbers[0]).pins += 1
    meta.commit()
    meta.inodes.set_attributes(numbers[1], 0o700, None, None, None, None, 2)
    kept = meta.inodes.need(numbers[0]), meta.inodes.need(numbers[1])
    for number in [*numbers, *numbers]:
        meta.inodes.shed()
        meta.inodes.need(number)
    assert sum(meta.inodes.cached(number) is not None for number in numbers) <= 2 * KEPT
    assert (meta.inodes.need(numbers[0]), meta.inodes.need(numbers[1])) == kept, "pinned and dirty ones stay"
    assert meta.inodes.need(numbers[1]).mode & 0o7777 == 0o700
