"""meta.db is lost or damaged: what the remote has and what DATA still holds make one file system again."""

import os
import random
import shutil
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest
import trio

from syncer.errors import DataUnusable, LocalDamage, RemoteUnreachable, WrongRepository
from syncer.meta.store import MetaStore
from syncer.snapshots.recovery import Summary, note_peer, recover
from tests.snapshots.rig import Peer, Picture, Remote, opened, same
from tests.support.core_check import check_disk, check_tables
from tests.support.long_form import LONG

FOUND = b"/lost+found"
LONG_SEEDS = 100


async def rebuilt(data: Path, remote: Remote, *, force: bool = False) -> Summary:
    (data / "lock").touch()
    return await recover(data, remote, force=force, uid=0, gid=0, say=lambda line: None)


def crashed(peer: Peer, data: Path, copy: Path) -> Path:
    """DATA as a kill at this moment leaves it."""
    shutil.copytree(data, copy)
    return copy


async def seen(data: Path, remote: Remote) -> Picture:
    """The file system of a recovered DATA, which must be whole."""
    async with opened(data, remote) as peer:
        picture = await peer.picture_as_read()
        peer.meta.commit()
        check_tables(peer.meta, set(peer.meta.inodes.orphans()))
        check_disk(peer.meta, data)
        await peer.publish()
    return picture


@pytest.mark.parametrize("seed", range(4))
async def test_nothing_is_lost_where_the_journal_reaches_back_to_the_snapshot(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("syncer.meta.journal.SEGMENT_BYTES", 4096)
    remote, rng, data = Remote(), random.Random(seed), tmp_path / "data"
    async with opened(data, remote) as peer:
        peer.meta.database.kept_bytes = 1 << 30
        for _ in range(rng.randrange(3)):
            for _ in range(30):
                await peer.change(rng)
            await peer.publish()
        for count in range(60):
            await peer.change(rng)
            if count % 20 == 0:
                peer.meta.commit()
                peer.meta.database.discard_journal(peer.meta.database.committed_position)
        copy = crashed(peer, data, tmp_path / "copy")
        expected = await peer.picture_as_read()
    (copy / "meta.db").unlink()
    summary = await rebuilt(copy, remote.copy())
    same(await seen(copy, remote.copy()), expected)
    assert (summary.found, summary.lost) == (0, [])
    assert summary.from_remote + summary.newer == len(files_of(expected))


def files_of(picture: Picture) -> set[int]:
    """The inode numbers of all that is no directory."""
    return {entry.attributes[0] for entry in picture.values() if not stat.S_ISDIR(entry.attributes[1])}


async def two_states(
    data: Path, remote: Remote, rng: random.Random, contents: set[bytes] | None = None
) -> tuple[Path, Picture, Picture]:
    """A crashed DATA with a journal that does not reach back to the snapshot: (its copy, published, at the crash).

    *contents* gets what files held at any time after the snapshot.
    """
    async with opened(data, remote) as peer:
        for _ in range(60):
            await peer.change(rng)
        await peer.publish()
        published = await peer.picture_as_read()
        peer.meta.database.kept_bytes = 0
        for count in range(40):
            if contents is not None:
                contents.update(map(bytes, peer.contents.values()))
            if count == 20:
                await peer.engine.checkpoint()
                forget_journal(peer)
            await peer.change(rng)
        return crashed(peer, data, data.with_name("copy")), published, await peer.picture_as_read()


def forget_journal(peer: Peer) -> None:
    """Begin a new segment, and drop those before it, as so many more operations would."""
    journal = peer.meta.database.journal
    assert journal is not None
    peer.meta.commit()
    journal.sync()
    journal._begin_segment()
    journal.discard(journal.end)


@pytest.mark.parametrize("seed", range(3))
async def test_what_a_short_journal_does_not_tell_is_salvaged_from_a_damaged_database(
    seed: int, tmp_path: Path
) -> None:
    """Nothing but an index is damaged: all rows can be read, so nothing is lost."""
    remote, rng = Remote(), random.Random(seed)
    copy, _, expected = await two_states(tmp_path / "data", remote, rng)
    damage_index(copy / "meta.db")
    summary = await rebuilt(copy, remote)
    same(await seen(copy, remote), expected)
    assert (summary.found, summary.lost) == (0, [])
    assert list(copy.glob("recovered-*/meta.db"))


def damage_index(path: Path) -> None:
    """Overwrite the root page of an index; the WAL is in the file before."""
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        size = database.execute("PRAGMA page_size").fetchone()[0]
        root = database.execute("SELECT rootpage FROM sqlite_master WHERE name = 'dentries_inode'").fetchone()[0]
    with open(path, "r+b") as file:
        file.seek((root - 1) * size)
        file.write(os.urandom(size))


def damage_pages(path: Path, rng: random.Random) -> None:
    """Overwrite every twentieth page, but for the first."""
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with open(path, "r+b") as file:
        pages = path.stat().st_size // 4096
        for page in rng.sample(range(1, pages), max(1, pages // 20)):
            file.seek(page * 4096)
            file.write(os.urandom(4096))


@pytest.mark.parametrize("seed", range(LONG_SEEDS if LONG else 6))
async def test_of_damaged_pages_no_wrong_byte_comes(seed: int, tmp_path: Path) -> None:
    """Some pages are garbage: each file is as it was at some time after the snapshot."""
    remote, rng = Remote(), random.Random(seed)
    contents: set[bytes] = set()
    copy, published, expected = await two_states(tmp_path / "data", remote, rng, contents)
    damage_pages(copy / "meta.db", rng)
    await rebuilt(copy, remote, force=True)
    contents |= {entry.content for entry in expected.values() if entry.content is not None}
    now = await seen(copy, remote)
    for path, entry in now.items():
        if not path.startswith(FOUND):
            assert entry.content is None or entry.content in contents, path
    numbers = files_of(now)
    assert files_of(published) & files_of(expected) <= numbers, "what is in both is there"


async def test_without_a_database_bytes_of_nobody_known_are_in_lost_and_found(tmp_path: Path) -> None:
    remote, rng = Remote(), random.Random(0)
    block, tail = rng.randbytes(100_000), rng.randbytes(90_000)
    async with opened(tmp_path / "data", remote) as peer:
        await peer.file(b"old", b"published")
        await peer.publish()
        await peer.file(b"sealed", block)
        await peer.engine.sealer.seal_quiet(0.0)
        await peer.file(b"growing", tail)
        peer.meta.database.kept_bytes = 0
        await peer.engine.checkpoint()
        forget_journal(peer)
        copy = crashed(peer, tmp_path / "data", tmp_path / "copy")
    (copy / "meta.db").unlink()
    summary = await rebuilt(copy, remote)
    assert (summary.from_remote, summary.newer, summary.found, summary.lost) == (1, 0, 2, [])
    now = await seen(copy, remote)
    assert now[b"/old"].content == b"published"
    assert {entry.content for path, entry in now.items() if path.startswith(FOUND + b"/")} == {block, tail}


async def test_what_is_laid_aside_is_for_its_owner_alone(tmp_path: Path) -> None:
    remote = Remote()
    async with opened(tmp_path / "data", remote) as peer:
        await peer.file(b"f", os.urandom(100_000))
        await peer.publish()
        copy = crashed(peer, tmp_path / "data", tmp_path / "copy")
    (block,) = [path for path in (copy / "cache").glob("??/*") if path.is_file()]
    block.write_bytes(b"damaged")
    (copy / "meta.db").unlink()
    before = os.umask(0o022)
    try:
        summary = await rebuilt(copy, remote)
    finally:
        os.umask(before)
    aside = copy / summary.aside
    assert (aside / block.relative_to(copy)).read_bytes() == b"damaged"
    folders = [aside, *(path for path in aside.rglob("*") if path.is_dir())]
    assert {oct(stat.S_IMODE(folder.stat().st_mode)) for folder in folders} == {"0o700"}


async def test_bytes_that_are_nowhere_end_a_file_and_what_follows_is_found(tmp_path: Path) -> None:
    remote, rng = Remote(), random.Random(0)
    head, middle, end = (rng.randbytes(size) for size in (5_000_000, 100_000, 3_000_000))
    async with opened(tmp_path / "data", remote) as peer:
        number = await peer.file(b"file", head)
        await peer.publish()
        await peer.engine.file_system.io.write(number, len(head), middle)
        await peer.engine.sealer.seal_quiet(0.0)
        begun = len(head) + len(middle)
        await peer.engine.file_system.io.write(number, begun, end)
        await peer.engine.sealer.seal_quiet(0.0)
        peer.meta.commit()
        lost = next(part for part in peer.meta.extents.find(number, 0, begun) if part.start >= len(head))
        path = peer.engine.store.cache.path(peer.meta.blocks.get(lost.source).id)
        copy = crashed(peer, tmp_path / "data", tmp_path / "copy")
    (copy / "meta.db").unlink()
    (copy / path.relative_to(tmp_path / "data")).unlink()
    summary = await rebuilt(copy, remote)
    assert len(summary.lost) == 1 and summary.lost[0].startswith(f"file: {lost.length} bytes from {lost.start} on")
    now = await seen(copy, remote)
    whole = head + middle + end
    assert now[b"/file"].content == whole[: lost.start]
    found = [entry.content for path, entry in now.items() if path.startswith(FOUND + b"/")]
    assert found == [whole[lost.end :]]


# --- refusals ---------------------------------------------------------------------------------------------------


async def test_a_sound_data_is_left_alone_unless_forced(tmp_path: Path) -> None:
    remote, rng = Remote(), random.Random(3)
    async with opened(tmp_path / "data", remote) as peer:
        for _ in range(30):
            await peer.change(rng)
        copy = crashed(peer, tmp_path / "data", tmp_path / "copy")
        expected = await peer.picture_as_read()
    with pytest.raises(DataUnusable, match="nothing is wrong"):
        await rebuilt(copy, remote)
    assert not list(copy.glob("recover*"))
    await rebuilt(copy, remote, force=True)
    same(await seen(copy, remote), expected)


async def test_without_the_remote_nothing_is_done(tmp_path: Path) -> None:
    remote = Remote()
    async with opened(tmp_path / "data", remote) as peer:
        await peer.file(b"a", b"a")
    (tmp_path / "data" / "meta.db").unlink()
    with pytest.raises(RemoteUnreachable, match="not at"):
        await rebuilt(tmp_path / "data", Remote())
    async with opened(tmp_path / "other", Remote()) as peer:
        note_peer(tmp_path / "data", peer.meta)
    with pytest.raises(WrongRepository, match="another repository"):
        await rebuilt(tmp_path / "data", remote)
    names = {path.name for path in (tmp_path / "data").iterdir()}
    assert names == {"cache", "dirty", "journal", "lock", "peer", "reserve"}


def test_a_lost_database_is_not_replaced_by_an_empty_one(tmp_path: Path) -> None:
    async def make() -> None:
        async with opened(tmp_path / "data", Remote()) as peer:
            await peer.file(b"a", b"a" * 100_000)

    trio.run(make)
    (tmp_path / "data" / "meta.db").unlink()
    with pytest.raises(LocalDamage, match="is gone") as caught:
        MetaStore(tmp_path / "data")
    assert "`syncer recover " in caught.value.hint
    assert not (tmp_path / "data" / "meta.db").exists()
    (tmp_path / "data" / "meta.db").write_bytes(os.urandom(8192))
    with pytest.raises(LocalDamage, match="not a database") as caught:
        MetaStore(tmp_path / "data")
    assert "`syncer recover " in caught.value.hint


async def test_an_empty_database_is_a_lost_one(tmp_path: Path) -> None:
    """What a disk's repair may leave. With tables made in it, it would tell a recovery that all files are deleted."""
    remote, data = Remote(), tmp_path / "data"
    async with opened(data, remote) as peer:
        await peer.file(b"a", b"a" * 5000)
        await peer.publish()
        await peer.file(b"b", b"b" * 5000)
        expected = await peer.picture_as_read()
        copy = crashed(peer, data, tmp_path / "copy")
    for name in ("meta.db-wal", "meta.db-shm"):
        (copy / name).unlink()
    (copy / "meta.db").write_bytes(b"")
    for _ in range(2):
        with pytest.raises(LocalDamage, match="is empty") as caught:
            MetaStore(copy)
        assert "`syncer recover " in caught.value.hint
    await rebuilt(copy, remote)
    same(await seen(copy, remote), expected)


async def test_an_old_segment_that_a_power_cut_brings_back_is_not_replayed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name was deleted, and that was not durable; what came between it and the snapshot is gone."""
    monkeypatch.setattr("syncer.meta.journal.SEGMENT_BYTES", 4096)
    remote, rng, data = Remote(), random.Random(1), tmp_path / "data"
    async with opened(data, remote) as peer:
        peer.meta.database.kept_bytes = 1 << 30
        for _ in range(30):
            await peer.change(rng)
        old = min((data / "journal").iterdir(), key=lambda path: path.name)
        content = old.read_bytes()
        for _ in range(2):
            for _ in range(30):
                await peer.change(rng)
            await peer.publish()
        peer.meta.commit()
        peer.meta.database.discard_journal(peer.meta.database.committed_position)
        for _ in range(20):
            await peer.change(rng)
        copy = crashed(peer, data, tmp_path / "copy")
        expected = await peer.picture_as_read()
    assert not (copy / "journal" / old.name).exists()
    (copy / "journal" / old.name).write_bytes(content)
    (copy / "meta.db").unlink()
    await rebuilt(copy, remote.copy())
    same(await seen(copy, remote.copy()), expected)
