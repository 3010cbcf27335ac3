"""Filling meta.db from a remote: entries that no file system can have are refused, not stored."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from syncer.errors import ObjectCorrupt
from syncer.meta.importer import ImportedInode, Importer
from syncer.meta.store import MetaStore
from syncer.values import PLAIN_MAX_BYTES, ROOT_INODE, BlockId, PackId, TreeId

ID = bytes(range(32))
DIRECTORY, FILE = 0o040755, 0o100644


@pytest.fixture
def meta(tmp_path: Path) -> Iterator[MetaStore]:
    (tmp_path / "journal").mkdir()
    store = MetaStore(tmp_path)
    yield store
    store.close()


@pytest.fixture
def importer(meta: MetaStore) -> Importer:
    importer = Importer(meta.database)
    importer.add_root(inode(ROOT_INODE, DIRECTORY), TreeId(ID))
    return importer


def inode(number: int, mode: int, nlink: int = 1, *blocks: bytes) -> ImportedInode:
    extents = tuple((start * 10, 10, BlockId(block), 0) for start, block in enumerate(blocks))
    return ImportedInode(number, mode, 0, 0, nlink, 10 * len(blocks), 0, 0, 0, None, ((b"user.x", b"1"),), extents)


def test_further_names_of_a_file_share_its_inode(meta: MetaStore, importer: Importer) -> None:
    importer.add_pack(PackId(ID), 100, 0, 1, [(BlockId(ID), 0, 15, 10)])
    file = inode(5, FILE, 2, ID)
    importer.add_entries(ROOT_INODE, [(b"a", file), (b"d", inode(6, DIRECTORY, 2))], [(6, TreeId(ID))])
    importer.add_entries(6, [(b"b", file)], [])
    totals = importer.finish()
    assert (totals.files, totals.directories, totals.logical_bytes) == (1, 2, 10)
    assert [parent for parent, _ in meta.names.parents(5)] == [ROOT_INODE, 6]
    assert [(e.start, e.length) for e in meta.extents.find(5, 0, 10)] == [(0, 10)]


@pytest.mark.parametrize("first", [DIRECTORY, FILE, 0o120777])
@pytest.mark.parametrize("second", [DIRECTORY, FILE, 0o120777])
def test_names_of_one_inode_are_of_one_kind_and_no_directory_has_two(
    importer: Importer, first: int, second: int
) -> None:
    """A directory with a second name, below itself even, is a circle that whoever goes up never leaves."""
    importer.add_entries(ROOT_INODE, [(b"a", inode(5, first))], [])
    if first == second != DIRECTORY:
        importer.add_entries(5, [(b"b", inode(5, second))], [])
        return
    with pytest.raises(ObjectCorrupt, match="two"):
        importer.add_entries(5, [(b"b", inode(5, second))], [])


def test_nothing_in_a_tree_has_the_number_of_the_root(importer: Importer) -> None:
    with pytest.raises(ObjectCorrupt):
        importer.add_entries(ROOT_INODE, [(b"a", inode(ROOT_INODE, FILE))], [])


OTHER = bytes(32)


def test_a_block_that_no_index_lists_is_damaged(meta: MetaStore, importer: Importer) -> None:
    importer.add_pack(PackId(ID), 100, 0, 1, [(BlockId(ID), 0, 15, 10)])
    importer.add_entries(ROOT_INODE, [(b"a", inode(5, FILE, 1, ID, OTHER))], [])
    longer = replace(inode(6, FILE), size=30, extents=((0, 30, BlockId(OTHER), 20),))
    importer.add_entries(ROOT_INODE, [(b"b", longer)], [])
    meta.commit()
    block = meta.blocks.find(BlockId(OTHER))
    assert block is not None and (block.size, block.location, block.cached) == (50, None, 0)
    assert meta.damage.numbers() == {block.number}
    assert meta.damage.paths({block.number}) == [b"a", b"b"]
    assert meta.blocks.content_totals()[0] == 60
    assert meta.blocks.pending_totals() == (0, 0, None), "it is nowhere, so it waits for nothing"
    assert importer.unlisted == {OTHER: 50}


def test_a_block_that_another_index_lists_after_all_is_none(meta: MetaStore, importer: Importer) -> None:
    importer.add_entries(ROOT_INODE, [(b"a", inode(5, FILE, 1, OTHER))], [])
    importer.add_pack(PackId(ID), 100, 0, 1, [(BlockId(OTHER), 0, 45, 40)])
    importer.list_again()
    meta.commit()
    assert not meta.damage.numbers() and not importer.unlisted
    assert meta.blocks.content_totals()[0] == 40


def test_an_index_that_comes_late_says_where_what_others_lack_is_and_no_more(
    meta: MetaStore, importer: Importer
) -> None:
    importer.add_pack(PackId(ID), 100, 0, 2, [(BlockId(ID), 0, 15, 10)])
    older = PackId(bytes([7]) * 32)
    importer.add_pack(older, 100, 0, 1, [(BlockId(ID), 0, 15, 10), (BlockId(OTHER), 15, 45, 40)], late=True)
    places = {block: meta.blocks.find(BlockId(block)) for block in (ID, OTHER)}
    packs = {block: found and found.location and found.location.pack for block, found in places.items()}
    assert packs == {ID: PackId(ID), OTHER: older}, "the older copy may be bad, or about to go"


def test_no_block_is_longer_than_blocks_may_be(importer: Importer) -> None:
    far = replace(inode(5, FILE), extents=((0, 1, BlockId(OTHER), PLAIN_MAX_BYTES),))
    with pytest.raises(ObjectCorrupt, match="none is so long"):
        importer.add_entries(ROOT_INODE, [(b"a", far)], [])


def test_a_name_that_comes_twice_is_corrupt(importer: Importer) -> None:
    importer.add_entries(ROOT_INODE, [(b"a", inode(5, FILE))], [])
    with pytest.raises(ObjectCorrupt, match="a name twice"):
        importer.add_entries(ROOT_INODE, [(b"a", inode(6, FILE))], [])


@pytest.mark.parametrize("number", [ROOT_INODE, 7])
def test_a_directory_in_two_places_is_corrupt(importer: Importer, number: int) -> None:
    """It could be below itself."""
    importer.add_entries(ROOT_INODE, [(b"a", inode(7, DIRECTORY))], [(7, TreeId(ID))])
    with pytest.raises(ObjectCorrupt, match="two places"):
        importer.add_entries(7, [(b"again", inode(number, DIRECTORY))], [])
