"""What a publication reads: which directories to look at, and what stands in them, as of one commit."""

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from syncer.meta import treereader
from syncer.meta.store import MetaStore
from syncer.meta.treereader import TreeReader, TreeRow
from syncer.values import ROOT_INODE, BlockId, PeerId, TreeId
from tests.meta.test_replay import NAMES as MOVES
from tests.meta.test_replay import new_store
from tests.support.core_data import make_data
from tests.support.core_moves import Move, Moves

moves = st.lists(st.tuples(st.sampled_from(MOVES), st.integers(0, 30), st.integers(0, 40)), max_size=25)


@pytest.fixture
def meta(tmp_path: Path) -> Iterator[MetaStore]:
    meta = MetaStore(make_data(tmp_path / "data"))
    meta.become(PeerId(1))
    meta.ensure_root(0, 0)
    meta.commit()
    yield meta
    meta.close()


def make(meta: MetaStore, parent: int, name: bytes, kind: int = stat.S_IFREG) -> int:
    number = meta.new_inode()
    target = b"there" if kind == stat.S_IFLNK else None
    meta.names.create(parent, name, number, kind | 0o644, 1, 2, 0, target, 1)
    return number


def picture(reader: TreeReader, directory: int = ROOT_INODE) -> dict[int, list[TreeRow]]:
    """Every directory with its rows."""
    rows = list(reader.entries(directory, 16))
    pictured = {directory: rows}
    for row in rows:
        if stat.S_ISDIR(row.mode):
            pictured.update(picture(reader, row.inode))
    return pictured


def close_generation(meta: MetaStore) -> tuple[int, TreeReader]:
    """What a publication begins with."""
    meta.commit()
    generation = meta.snapshots.begin_generation()
    meta.commit()
    return generation, TreeReader(meta.database)


@given(moves, moves)
@settings(max_examples=100, deadline=None)
def test_whatever_changed_its_directory_and_all_above_are_affected(before: list[Move], after: list[Move]) -> None:
    with new_store() as (_, meta):
        player = Moves(meta)
        for move in before:
            player.play(move)
        generation, reader = close_generation(meta)
        old = picture(reader)
        reader.close()
        meta.snapshots.published(generation, {})
        for move in after:
            player.play(move)
        generation, reader = close_generation(meta)
        new, affected = picture(reader), reader.affected(generation)
        reader.close()
        parents = {row.inode: directory for directory, rows in new.items() for row in rows if stat.S_ISDIR(row.mode)}
        for directory, rows in new.items():
            if rows != old.get(directory):
                while directory != ROOT_INODE:
                    assert affected[directory] == parents[directory]
                    directory = parents[directory]
        assert affected[ROOT_INODE] == 0
        assert set(affected) <= set(new), "only what is in the tree"
        if not after:
            assert set(affected) == {ROOT_INODE}


def test_a_change_during_a_publication_is_the_next_one_s(meta: MetaStore) -> None:
    first, second = make(meta, ROOT_INODE, b"one", stat.S_IFDIR), make(meta, ROOT_INODE, b"two", stat.S_IFDIR)
    generation, reader = close_generation(meta)
    make(meta, first, b"late")
    meta.commit()
    assert [row.name for row in reader.entries(first, 16)] == []
    assert set(reader.affected(generation)) == {ROOT_INODE, first, second}
    reader.close()
    meta.snapshots.published(generation, {})
    generation, reader = close_generation(meta)
    assert set(reader.affected(generation)) == {ROOT_INODE, first}
    assert [row.name for row in reader.entries(first, 16)] == [b"late"]
    reader.close()


def test_rows_tell_everything_of_an_entry_sorted_by_name(meta: MetaStore) -> None:
    data = b"content" * 1000
    block_id = BlockId(blake3(data).digest())
    file = make(meta, ROOT_INODE, b"z file")
    make(meta, ROOT_INODE, b"\xff link", stat.S_IFLNK)
    make(meta, ROOT_INODE, b"a directory", stat.S_IFDIR)
    meta.extents.write_content(file, 0, data, 5)
    meta.extents.seal_content(file, block_id, 0)
    meta.names.link(file, ROOT_INODE, b"a file", 6)
    for name in (b"user.b", b"user.a"):
        meta.inodes.set_xattr(file, name, b"value", 7)
    _, reader = close_generation(meta)
    rows = {row.name: row for row in reader.entries(ROOT_INODE, 16)}
    assert list(rows) == [b"a directory", b"a file", b"z file", b"\xff link"]
    assert rows[b"\xff link"].target == b"there"
    for name in (b"a file", b"z file"):
        row = rows[name]
        assert (row.inode, row.nlink, row.size, row.mtime_ns, row.ctime_ns) == (file, 2, len(data), 5, 7)
        assert row.extents == ((0, len(data), block_id, 0),), "once, although the inode has two names here"
        assert row.xattrs == ((b"user.a", b"value"), (b"user.b", b"value"))
        assert reader.entry(ROOT_INODE, name, 16) == row
    assert reader.entry(ROOT_INODE, b"missing", 16) is None
    reader.close()


def test_a_directory_larger_than_a_batch_is_read_whole(meta: MetaStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(treereader, "_BATCH", 8)
    for count in (0, 7, 8, 9, 24, 25):
        directory = make(meta, ROOT_INODE, b"%d" % count, stat.S_IFDIR)
        numbers = {b"%03d" % n: make(meta, directory, b"%03d" % n) for n in range(count)}
        _, reader = close_generation(meta)
        assert [(row.name, row.inode) for row in reader.entries(directory, 16)] == sorted(numbers.items())
        assert reader.count(directory) == count
        reader.close()


# --- files of many extents --------------------------------------------------------------------------------------


def sealed(meta: MetaStore, number: int, data: bytes) -> None:
    meta.extents.write_content(number, 0, data, 5)
    meta.extents.seal_content(number, BlockId(blake3(data).digest()), 0)


def test_many_extents_are_not_read_with_their_entry(meta: MetaStore) -> None:
    number = make(meta, ROOT_INODE, b"file")
    make(meta, ROOT_INODE, b"empty")
    sealed(meta, number, b"content")
    _, reader = close_generation(meta)
    assert [row.extents for row in reader.entries(ROOT_INODE, 0)] == [(), None]
    assert [len(row.extents or ()) for row in reader.entries(ROOT_INODE, 1)] == [0, 1]
    assert list(reader.extents(number, 0, 1)) == [(0, 7, BlockId(blake3(b"content").digest()), 0)]
    assert list(reader.extents(number, 1, 8)) == []
    assert (reader.has_more_extents(number, 0), reader.has_more_extents(number, 1)) == (True, False)
    reader.close()


def test_what_changed_in_a_file_is_noted_from_the_publication_of_its_tree_on(meta: MetaStore) -> None:
    number, tree = make(meta, ROOT_INODE, b"file"), TreeId(bytes(32))
    sealed(meta, number, b"content")
    generation, reader = close_generation(meta)
    reader.close()
    meta.snapshots.published(generation, {}, {number: tree})
    generation, reader = close_generation(meta)
    row = reader.entry(ROOT_INODE, b"file", 16)
    assert row is not None and (row.tree, row.extents) == (tree, None)
    assert reader.changed_ranges(number, generation) == []
    reader.close()
    meta.extents.truncate(number, 3, 6)
    generation, reader = close_generation(meta)
    assert reader.changed_ranges(number, generation) == [(0, 7)]
    reader.close()
    meta.snapshots.published(generation, {}, {})
    _, reader = close_generation(meta)
    row = reader.entry(ROOT_INODE, b"file", 16)
    assert row is not None and row.tree is None, "nobody looked at the change, so the tree is of no use any more"
    reader.close()


def test_a_tree_without_notes_of_what_changed_meanwhile_is_made_anew_everywhere(meta: MetaStore) -> None:
    number = make(meta, ROOT_INODE, b"file")
    sealed(meta, number, b"content")
    generation, reader = close_generation(meta)
    reader.close()
    meta.extents.truncate(number, 3, 6)
    meta.snapshots.published(generation, {}, {number: TreeId(bytes(32))})
    generation, reader = close_generation(meta)
    assert reader.changed_ranges(number, generation) == [(0, 2**63 - 1)]
    reader.close()
    meta.names.unlink(ROOT_INODE, b"file", 7)
    meta.extents.erase(number)
    meta.commit()
    for table in ("trees", "changed_extents"):
        assert meta.database.connection.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)
