"""Directory entries: where a listing goes on while names come and go."""

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from syncer.meta.store import MetaStore
from syncer.values import ROOT_INODE, PeerId
from tests.support.core_check import check_tables
from tests.support.core_data import make_data


@pytest.fixture
def meta(tmp_path: Path) -> Iterator[MetaStore]:
    meta = MetaStore(make_data(tmp_path / "data"))
    meta.become(PeerId(1))
    meta.ensure_root(0, 0)
    yield meta
    meta.commit()
    check_tables(meta, set(meta.inodes.orphans()))
    meta.close()


def make(meta: MetaStore, name: bytes) -> int:
    number = meta.new_inode()
    meta.names.create(ROOT_INODE, name, number, stat.S_IFREG | 0o644, 0, 0, 0, None, 1)
    return number


def names_after(meta: MetaStore, cookie: int) -> list[bytes]:
    return [entry.name for entry in meta.names.entries(ROOT_INODE, cookie, 100)]


@pytest.mark.parametrize("order", [(b"saved", b"file"), (b"file", b"saved")])
def test_a_file_that_is_replaced_while_its_directory_is_listed_is_listed_once(
    meta: MetaStore, order: tuple[bytes, bytes]
) -> None:
    """Editors save by a rename over the old file; whoever lists the directory meanwhile must not miss it."""
    numbers = {name: make(meta, name) for name in order}
    first, _ = meta.names.entries(ROOT_INODE, 0, 2)
    meta.names.rename(ROOT_INODE, b"saved", ROOT_INODE, b"file", 2)
    rest = names_after(meta, first.cookie)
    seen = [name for name in (first.name, *rest) if name == b"file"]
    assert seen == [b"file"]
    assert meta.names.lookup(ROOT_INODE, b"file") == numbers[b"saved"]
    assert meta.names.lookup(ROOT_INODE, b"saved") is None


def test_a_name_that_stays_is_listed_once_whatever_comes_and_goes_around_it(meta: MetaStore) -> None:
    for name in (b"a", b"stays", b"c"):
        make(meta, name)
    first, *_ = meta.names.entries(ROOT_INODE, 0, 1)
    meta.names.unlink(ROOT_INODE, b"a", 2)
    meta.names.unlink(ROOT_INODE, b"c", 2)
    make(meta, b"a")
    make(meta, b"new")
    assert names_after(meta, first.cookie) == [b"stays", b"a", b"new"]
