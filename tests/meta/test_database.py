"""Commits, and what is left when one fails: the journal makes whole again what SQLite lost."""

import contextlib
import errno
import shutil
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from syncer.errors import LocalDamage
from syncer.meta.store import MetaStore
from syncer.values import ROOT_INODE, BlockId, PeerId
from tests.support.core_check import check_tables
from tests.support.core_data import make_data


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make_data(tmp_path / "data")


def opened(data: Path) -> MetaStore:
    meta = MetaStore(data)
    meta.become(PeerId(1))
    meta.ensure_root(0, 0)
    meta.commit()
    return meta


@pytest.fixture
def meta(data: Path) -> Iterator[MetaStore]:
    meta = opened(data)
    yield meta
    meta.close()


def test_no_transaction_is_open_after_a_commit_although_its_actions_record_something(meta: MetaStore) -> None:
    """Files are deleted after a commit, and that is noted; a checkpoint with a transaction open is refused."""
    left = [BlockId(b"x" * 32), BlockId(b"y" * 32)]
    meta.database.on_commit.append(lambda: meta.blocks.deleted([left.pop()]) if left else None)
    meta.database.set_state("something", 1)
    meta.commit()
    assert not meta.database.pending and not left
    assert meta.database.checkpoint_here()


def fill_up(meta: MetaStore) -> None:
    """SQLite finds no room for one page more, as on a full disk."""
    pages = meta.database.connection.execute("PRAGMA page_count").fetchone()[0]
    meta.database.connection.execute(f"PRAGMA max_page_count = {pages}")


def make(meta: MetaStore, name: bytes) -> None:
    meta.names.create(ROOT_INODE, name, meta.new_inode(), stat.S_IFREG | 0o644, 0, 0, 0, None, 1)


def make_room(meta: MetaStore) -> None:
    meta.database.connection.execute("PRAGMA max_page_count = 1000000")


def check_contents(meta: MetaStore, count: int) -> None:
    check_tables(meta, set())
    for name in range(count):
        number = meta.names.lookup(ROOT_INODE, b"%d" % name)
        assert number is not None and bytes(meta.inodes.need(number).content or b"") == b"x" * 4000


@pytest.mark.parametrize("ended", [False, True])
def test_a_commit_that_fails_loses_nothing(data: Path, ended: bool) -> None:
    """Neither for those who go on, once there is room again, nor for the next start."""
    meta = opened(data)
    made = 0
    fill_up(meta)
    with pytest.raises(OSError, match="full") as caught:
        while True:
            meta.extents.write_content(_file(meta, b"%d" % made), 0, b"x" * 4000, 1)
            made += 1
            meta.commit()
    assert caught.value.errno == errno.ENOSPC
    for _ in range(3):
        with pytest.raises(OSError, match="full"):
            meta.commit()
    assert meta.names.lookup(ROOT_INODE, b"%d" % (made - 1)) is not None, "what is recorded is there all the time"
    if ended:
        meta.close()
        meta = MetaStore(data)
        assert meta.replayed
    make_room(meta)
    make(meta, b"after")
    meta.commit()
    check_contents(meta, made)
    assert meta.names.lookup(ROOT_INODE, b"after") is not None
    meta.close()


def _file(meta: MetaStore, name: bytes) -> int:
    make(meta, name)
    number = meta.names.lookup(ROOT_INODE, name)
    assert number is not None
    return number


@pytest.mark.parametrize("ended", [False, True])
def test_an_operation_that_fails_half_way_has_not_happened(data: Path, ended: bool) -> None:
    meta = opened(data)
    make(meta, b"before")
    before = meta.inodes.need(ROOT_INODE)
    before.pins = 3
    fill_up(meta)
    with pytest.raises(OSError, match="full"):
        for count in range(100_000):
            meta.inodes.set_xattr(ROOT_INODE, b"user.%d" % count, bytes(3000), 2)
    root = meta.inodes.need(ROOT_INODE)
    assert root is not before and root.pins == 3 and root.epoch > before.epoch
    if ended:
        meta.close()
        meta = MetaStore(data)
    assert len(meta.inodes.xattrs(meta.inodes.need(ROOT_INODE))) == count
    make_room(meta)
    meta.inodes.set_xattr(ROOT_INODE, b"user.%d" % count, bytes(3000), 2)
    meta.commit()
    assert len(meta.inodes.xattrs(meta.inodes.need(ROOT_INODE))) == count + 1
    assert meta.names.lookup(ROOT_INODE, b"before") is not None
    check_tables(meta, set())
    meta.close()


def test_what_the_journal_has_lost_is_not_left_out_without_a_word(data: Path) -> None:
    """The disk did not take it and the kernel has dropped it: going back to the last commit would take it away."""
    meta = opened(data)
    make(meta, b"committed")
    meta.commit()
    for count in range(10):
        make(meta, b"%d" % count)
    newest = max((data / "journal").iterdir())
    whole = newest.read_bytes()
    newest.write_bytes(whole[:-50] + bytes(50))
    fill_up(meta)
    with pytest.raises(OSError):
        for count in range(100_000):
            meta.inodes.set_xattr(ROOT_INODE, b"user.%d" % count, bytes(3000), 2)
    make_room(meta)
    for _ in range(2):
        with pytest.raises(OSError, match="has lost"):
            make(meta, b"after")
        with pytest.raises(OSError, match="has lost"):
            meta.commit()
    meta.database.connection.close()


def test_the_journal_stays_that_only_a_newer_snapshot_has_no_need_of(
    meta: MetaStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One was published while a checkpoint ran: what was committed meanwhile may be in an unsynced WAL alone."""
    monkeypatch.setattr("syncer.meta.journal.SEGMENT_BYTES", 1000)
    position = meta.database.committed_position
    for count in range(100):
        make(meta, b"%d" % count)
    meta.commit()
    meta.database.set_state("marked_position", meta.database.committed_position)
    meta.database.kept_bytes = 1_000_000
    meta.database.discard_journal(position)
    kept = [path.name for path in (meta.database.path.parent / "journal").iterdir()]
    assert min(int(name, 16) for name in kept) <= position


def test_an_end_beside_a_reader_keeps_the_journal(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it has is in the WAL besides, and that was not synced."""
    monkeypatch.setattr("syncer.meta.journal.SEGMENT_BYTES", 1000)
    meta = opened(data)
    assert meta.database.checkpoint_here()
    position = meta.database.committed_position
    with contextlib.closing(meta.database.reader()) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM inodes").fetchone()
        for count in range(100):
            make(meta, b"%d" % count)
        meta.close()
        assert min(int(path.name, 16) for path in (data / "journal").iterdir()) <= position
    again = MetaStore(data)
    assert not again.crashed and again.inodes.totals.files == 100
    again.close()


def test_what_was_not_committed_is_not_in_the_tables(data: Path) -> None:
    meta = opened(data)
    make(meta, b"file")
    reader = meta.database.reader()
    assert reader.execute("SELECT count(*) FROM dentries").fetchone() == (0,)
    meta.commit()
    assert reader.execute("SELECT count(*) FROM dentries").fetchone() == (1,)
    reader.close()
    meta.close()


def test_a_clean_end_leaves_nothing_to_replay_and_no_journal(data: Path) -> None:
    meta = opened(data)
    for count in range(100):
        make(meta, b"%d" % count)
    meta.close()
    assert sum(path.stat().st_size for path in (data / "journal").iterdir()) < 100 * 60
    again = MetaStore(data)
    assert not again.replayed and again.inodes.totals.files == 100
    again.close()


def test_inode_numbers_are_never_given_out_twice(data: Path) -> None:
    """Not after a crash, although the files are gone; nor after a clean end."""
    given = set()
    meta = opened(data)
    for count in range(5000):
        number = meta.new_inode()
        assert number not in given
        given.add(number)
        meta.names.create(ROOT_INODE, b"x", number, stat.S_IFREG, 0, 0, 0, None, 1)
        meta.names.unlink(ROOT_INODE, b"x", 2)
        meta.extents.erase(number)
        if count % 1100 == 1099:
            copy = data.with_name(str(count))
            shutil.copytree(meta.database.path.parent, copy)
            meta.close()
            meta = MetaStore(copy)
    meta.close()


def test_a_version_from_the_future_is_refused(data: Path) -> None:
    meta = opened(data)
    meta.database.set_state("schema", 99)
    meta.close()
    with pytest.raises(LocalDamage, match="another version"):
        MetaStore(data)


def test_no_database_at_all_is_refused(data: Path) -> None:
    (data / "meta.db").write_bytes(b"this is no database" * 500)
    with pytest.raises(LocalDamage):
        MetaStore(data)


def test_triggers_work_in_the_run_that_makes_a_database_as_in_later_ones(tmp_path: Path) -> None:
    """sqlite-utils switches recursive triggers on: INSERT OR REPLACE would fire those of DELETE too, but only then."""
    data = make_data(tmp_path / "data")
    for _ in range(2):
        meta = MetaStore(data)
        assert meta.database.connection.execute("PRAGMA recursive_triggers").fetchone() == (0,)
        meta.close()


def test_a_database_of_the_version_before_is_brought_up(tmp_path: Path) -> None:
    """Its tables end up as those of a new one, and what was in it stays."""
    (tmp_path / "journal").mkdir()
    meta = MetaStore(tmp_path)
    meta.ensure_root(0, 0)
    wanted = sorted(meta.database.connection.execute("SELECT name, sql FROM sqlite_master").fetchall())
    meta.close()
    with contextlib.closing(sqlite3.connect(tmp_path / "meta.db", isolation_level=None)) as old:
        old.execute("DROP TRIGGER nodes_removed")
        for table in ("node_refs", "read_nodes", "doomed", "strays"):
            old.execute(f"DROP TABLE {table}")
        old.execute("UPDATE state SET value = 3 WHERE key = 'schema'")
    meta = MetaStore(tmp_path)
    found = sorted(meta.database.connection.execute("SELECT name, sql FROM sqlite_master").fetchall())
    assert [name for name, _ in found] == [name for name, _ in wanted]
    assert meta.names.is_empty(ROOT_INODE)
    meta.close()
