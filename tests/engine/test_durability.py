"""What must be on stable storage before something else happens: seen through the calls that make it so."""

import contextlib
import itertools
import os
import random
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from syncer.backends.memory import MemoryBackend
from syncer.engine import Engine
from syncer.meta.blocktable import CACHED_FILE
from syncer.values import BlockId
from tests.support.opened import create, flush, opened

WRITE_BYTES = 131_072


class Flushes:
    """The files that were synced, in order, with "journal" for each flush of the journal."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.seen: list[str] = []
        fdatasync = os.fdatasync

        def watched(descriptor: int) -> None:
            fdatasync(descriptor)
            path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
            name = "journal" if path.parent.name == "journal" else path.name
            if self.seen[-1:] != ["journal"] or name != "journal":  # all segments of it are one flush
                self.seen.append(name)

        patch.setattr(os, "fdatasync", watched)


@pytest.fixture
def flushes(monkeypatch: pytest.MonkeyPatch) -> Flushes:
    return Flushes(monkeypatch)


_chance = random.Random(1)


def random_bytes(length: int) -> bytes:
    """The same in every run, so that they are cut in the same places: a short last block is synced at once."""
    return _chance.randbytes(length)


@pytest.fixture(autouse=True)
def the_same_bytes_in_every_run() -> None:
    _chance.seed(1)


@pytest.fixture(autouse=True)
def no_checkpoint_comes_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    """After one there is nothing left to sync."""
    monkeypatch.setattr("syncer.engine.CHECKPOINT_S", 1e9)


def note_deletions(flushes: Flushes, patch: pytest.MonkeyPatch) -> None:
    """Have "deleted" among what is seen, for each cache or dirty file."""
    unlink = Path.unlink

    def watched(path: Path, missing_ok: bool = False) -> None:
        if "cache" in path.parts or path.parent.name == "dirty":
            flushes.seen.append("deleted")
        unlink(path, missing_ok)

    patch.setattr(Path, "unlink", watched)


@pytest.mark.parametrize("where", ["dirty", "cache"])
async def test_what_was_released_is_deleted_when_that_is_durable(tmp_path: Path, where: str) -> None:
    """After a power cut the tables may be those of before, and name it."""
    async with opened(tmp_path, MemoryBackend(), upload_delay_s=1e9) as engine:
        number, handle = await write(engine, b"f", random_bytes(200_000))
        await engine.file_system.fsync(handle)
        if where == "cache":
            await engine.sealer.seal_quiet(0.0)
        (file,) = [path for path in (tmp_path / where).rglob("*") if path.is_file()]
        engine.file_system.setattr(number, size=0)
        engine.commit()
        assert file.exists() and engine.store.budget.used_bytes > 200_000 + engine.store.budget.metadata_bytes
        await engine.durability.sync()
        assert not file.exists() and engine.store.budget.used_bytes < 200_000 + engine.store.budget.metadata_bytes


async def test_what_was_released_does_not_fill_the_budget(tmp_path: Path) -> None:
    async with opened(tmp_path, MemoryBackend(), upload_delay_s=1e9) as engine:
        for count in range(40):
            _, handle = await write(engine, b"%d" % count, random_bytes(3_000_000))
            engine.file_system.unlink(1, b"%d" % count)
            engine.file_system.release(handle)
            with trio.fail_after(20):
                while engine.store.budget.is_much_retired:
                    await trio.sleep(0.01)


async def test_small_content_that_was_fsynced_stays_so_when_it_becomes_a_tail(tmp_path: Path, flushes: Flushes) -> None:
    """Another program's fsync may put the record on the disk, and a power cut take what was written after."""
    async with opened(tmp_path, MemoryBackend(), upload_delay_s=1e9) as engine:
        number, handle = await write(engine, b"f", random_bytes(50_000))
        await engine.file_system.fsync(handle)
        flushes.seen.clear()
        await engine.file_system.write(handle, 50_000, random_bytes(50_000))
        tail = engine.meta.inodes.need(number).tail
        assert flushes.seen == [str(tail)]
        assert tail in engine.store.dirty.promised
        number, handle = await write(engine, b"promised to nobody", random_bytes(100_000))
        assert flushes.seen == [str(tail)]


async def write(engine: Engine, name: bytes, data: bytes) -> tuple[int, int]:
    number, handle = create(engine, name)
    for offset in range(0, len(data), WRITE_BYTES):
        await engine.file_system.write(handle, offset, data[offset : offset + WRITE_BYTES])
    return number, handle


def cache_files(engine: Engine, number: int) -> set[str]:
    blocks = [engine.meta.blocks.get(extent.source) for extent in engine.meta.extents.find(number, 0, 2**40)]
    return {block.id.hex() for block in blocks if block.cached == CACHED_FILE}


async def test_fsync_of_a_copy_syncs_the_blocks_it_shares(tmp_path: Path, flushes: Flushes) -> None:
    async with opened(tmp_path, MemoryBackend(), upload_delay_s=1e9) as engine:
        data = random_bytes(3_000_000)
        await write(engine, b"original", data)
        number, handle = await write(engine, b"copy", data)
        await engine.sealer.seal_quiet(0.0)
        flushes.seen.clear()
        await engine.file_system.fsync(handle)
        assert set(flushes.seen) == cache_files(engine, number) | {"journal"}
        assert flushes.seen[-1] == "journal"


async def test_fsync_during_a_checkpoint_does_not_rely_on_it(
    tmp_path: Path, flushes: Flushes, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, go_on = trio.Event(), trio.Event()

    async def syncfs(*arguments: object, **options: object) -> None:
        started.set()
        await go_on.wait()

    async with opened(tmp_path, MemoryBackend(), upload_delay_s=1e9) as engine:
        number, handle = await write(engine, b"f", random_bytes(3_000_000))
        await engine.sealer.seal_quiet(0.0)
        async with trio.open_nursery() as nursery:
            with monkeypatch.context() as patch:
                in_thread = trio.to_thread.run_sync
                patch.setattr("syncer.engine.trio.to_thread.run_sync", syncfs)
                nursery.start_soon(engine.checkpoint)
                await started.wait()
                patch.setattr("syncer.engine.trio.to_thread.run_sync", in_thread)
            flushes.seen.clear()
            await engine.file_system.fsync(handle)
            assert set(flushes.seen) == cache_files(engine, number) | {"journal"}
            go_on.set()


async def test_fsync_covers_a_tail_that_becomes_a_block_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path, MemoryBackend(), upload_delay_s=1e9) as engine:
        number, handle = await write(engine, b"f", random_bytes(200_000))
        tail = engine.store.dirty.path(engine.meta.inodes.need(number).tail)
        inode_below = tail.stat().st_ino
        synced: list[int] = []
        fdatasync = os.fdatasync

        def watched(descriptor: int) -> None:
            fdatasync(descriptor)
            synced.append(os.fstat(descriptor).st_ino)

        run = engine.durability._run

        async def cut_first(flush: object) -> None:
            engine.tails.seal(engine.meta.inodes.need(number))
            assert not tail.exists()
            await run(flush)  # type: ignore[arg-type]

        with monkeypatch.context() as patch:
            patch.setattr(os, "fdatasync", watched)
            patch.setattr(engine.durability, "_run", cut_first)
            await engine.file_system.fsync(handle)
        assert inode_below in synced


async def test_a_tail_that_was_fsynced_moves_only_when_that_is_on_record(
    tmp_path: Path, flushes: Flushes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut may keep the move and lose its record: the bytes would be where nobody looks for them."""
    async with opened(tmp_path, MemoryBackend(), upload_delay_s=1e9) as engine:
        number, handle = await write(engine, b"f", random_bytes(200_000))
        await engine.file_system.fsync(handle)
        tail = engine.store.dirty.path(engine.meta.inodes.need(number).tail)
        adopt = engine.store.cache.adopt

        def watched(block_id: BlockId, path: Path) -> None:
            flushes.seen.append("moved" if path == tail else "other")
            adopt(block_id, path)

        monkeypatch.setattr(engine.store.cache, "adopt", watched)
        flushes.seen.clear()
        for offset in range(200_000, 6_000_000, WRITE_BYTES):
            await engine.file_system.write(handle, offset, random_bytes(WRITE_BYTES))
        assert flushes.seen[:3] == [tail.name, "journal", "moved"]
        assert "journal" not in flushes.seen[3:], "the blocks after it were promised to nobody"


async def test_fsync_sees_to_names_that_are_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of a file is none of its own fsync (fsync(2)); a folder is synced once for each name that it gets."""
    synced: list[str] = []
    fsync, fdatasync = os.fsync, os.fdatasync

    def watched(call: Callable[[int], None]) -> Callable[[int], None]:
        def sync(descriptor: int) -> None:
            call(descriptor)
            path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
            synced.append(path.name if path.is_dir() else path.parent.name)

        return sync

    async with opened(tmp_path, MemoryBackend(), upload_delay_s=1e9) as engine:
        await engine.durability.sync()
        number, handle = await write(engine, b"f", random_bytes(200_000))
        monkeypatch.setattr(os, "fsync", watched(fsync))
        monkeypatch.setattr(os, "fdatasync", watched(fdatasync))
        await engine.file_system.fsync(handle)
        assert synced == ["dirty", "dirty", "journal"]
        synced.clear()
        await engine.file_system.write(handle, 200_000, b"more")
        await engine.file_system.fsync(handle)
        assert synced == ["dirty", "journal"]
        _, other = create(engine, b"small")
        await engine.file_system.write(other, 0, b"small")
        synced.clear()
        await engine.file_system.fsync(other)
        assert synced == ["journal"]
        engine.tails.seal(engine.meta.inodes.need(number))
        (block,) = cache_files(engine, number)
        synced.clear()
        await engine.file_system.fsync(handle)
        assert synced == [block[:2], block[:2], "journal"]
        synced.clear()
        await engine.file_system.fsync(handle)
        assert synced == ["journal"]


@pytest.mark.parametrize("form", ["tail", "overlay"])
async def test_what_was_fsynced_is_not_given_up_for_a_copy_that_was_not(
    tmp_path: Path, flushes: Flushes, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """Another file has the same bytes, in a block that a power cut may still take."""
    async with opened(tmp_path, MemoryBackend(), upload_delay_s=1e9) as engine:
        data = random_bytes(200_000)
        if form == "overlay":
            number, handle = create(engine, b"f")
            engine.file_system.setattr(number, size=len(data))
            await engine.file_system.write(handle, 0, data)
        else:
            number, handle = await write(engine, b"f", data)
        await engine.file_system.fsync(handle)
        other, _ = await write(engine, b"other", data)
        engine.tails.seal(engine.meta.inodes.need(other))
        (block,) = cache_files(engine, other)
        flushes.seen.clear()
        recorded_after: list[list[str]] = []

        def watched(record: Callable[..., None]) -> Callable[..., None]:
            def call(*arguments: Any) -> None:
                recorded_after.append(list(flushes.seen))
                record(*arguments)

            return call

        monkeypatch.setattr(engine.meta.extents, "cut", watched(engine.meta.extents.cut))
        monkeypatch.setattr(engine.meta.extents, "seal", watched(engine.meta.extents.seal))
        await engine.sealer.seal_quiet(0.0)
        assert cache_files(engine, number) == {block}
        assert [block in seen for seen in recorded_after] == [True]


async def test_a_tail_that_a_power_cut_has_shortened_is_a_shorter_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, remote = random_bytes(200_000), MemoryBackend()
    async with opened(tmp_path, remote) as engine:
        number, handle = await write(engine, b"f", data)
        await engine.file_system.fsync(handle)
        await engine.file_system.write(handle, len(data), b"x" * 1000)
        tail = engine.store.dirty.path(engine.meta.inodes.need(number).tail)
        shutil.copytree(tmp_path, f"{tmp_path}.cut")
    os.truncate(Path(f"{tmp_path}.cut") / "dirty" / tail.name, len(data) + 10)
    monkeypatch.setattr("syncer.disk.boot_id", lambda: b"another")
    async with opened(Path(f"{tmp_path}.cut"), remote) as engine:
        assert f"990 bytes from {len(data) + 10} on did not reach the disk" in caplog.text
        handle = engine.file_system.open(number, os.O_RDWR)
        assert await engine.file_system.read(handle, 0, 300_000) == data + b"x" * 10
        await engine.file_system.write(handle, len(data) + 10, b"more")
        await flush(engine)


async def test_a_tail_that_a_power_cut_has_moved_back_is_a_block_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system that keeps no order among names may forget a rename that is on record as done."""
    data, remote = random_bytes(200_000), MemoryBackend()
    async with opened(tmp_path, remote, upload_delay_s=1e9) as engine:
        number, handle = await write(engine, b"f", data)
        await engine.sealer.seal_quiet(0.0)
        await engine.file_system.fsync(handle)
        (name,) = cache_files(engine, number)
        shutil.copytree(tmp_path, f"{tmp_path}.cut")
    copy = Path(f"{tmp_path}.cut")
    block, tail = copy / "cache" / name[:2] / name, copy / "dirty" / "999"
    block.rename(tail)
    os.truncate(tail, len(data) + 10)  # nor that its end was cut off
    (copy / "dirty" / "998").write_bytes(random_bytes(300_000))
    monkeypatch.setattr("syncer.disk.boot_id", lambda: b"another")
    async with opened(copy, remote) as engine:
        handle = engine.file_system.open(number, os.O_RDONLY)
        assert await engine.file_system.read(handle, 0, 300_000) == data
        assert not list((copy / "dirty").iterdir())
        await flush(engine)


async def test_a_cache_file_whose_record_a_power_cut_took_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remote, copy = MemoryBackend(), Path(f"{tmp_path}.cut")
    async with opened(tmp_path, remote) as engine:
        number, _ = await write(engine, b"f", random_bytes(200_000))
        await flush(engine)
        (known,) = cache_files(engine, number)
        shutil.copytree(tmp_path, copy)
    unknown = copy / "cache" / "ab" / ("ab" * 32)
    unknown.write_bytes(b"nobody's")
    async with opened(copy, remote):
        assert unknown.exists(), "the machine has run on"
    shutil.rmtree(copy)
    shutil.copytree(tmp_path, copy)
    unknown.write_bytes(b"nobody's")
    connection = sqlite3.connect(copy / "meta.db")
    with contextlib.closing(connection), connection:
        connection.execute("UPDATE state SET value = 1 WHERE key = 'open'")
    monkeypatch.setattr("syncer.disk.boot_id", lambda: b"another")
    async with opened(copy, remote) as engine:
        assert not unknown.exists()
        assert cache_files(engine, number) == {known}
        assert (copy / "cache" / known[:2] / known).exists()


async def test_a_failed_fsync_is_not_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(tmp_path, MemoryBackend(), upload_delay_s=1e9) as engine:
        _, handle = await write(engine, b"f", random_bytes(3_000_000))
        await engine.sealer.seal_quiet(0.0)

        def broken(descriptor: int) -> None:
            raise OSError(5, "Input/output error")

        with monkeypatch.context() as patch:
            patch.setattr(os, "fdatasync", broken)
            for _ in range(2):
                with pytest.raises(OSError, match="Input/output"):
                    await engine.file_system.fsync(handle)
        await engine.file_system.fsync(handle)


async def test_what_a_run_that_was_killed_could_not_sync_is_made_anew_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel has it and takes it for written: a sync alone would change nothing, and then be relied on."""
    data, copy, remote = tmp_path / "data", tmp_path / "copy", MemoryBackend()

    def broken(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    async with opened(data, remote, upload_delay_s=1e9) as engine:
        await write(engine, b"sealed", random_bytes(3_000_000))
        await engine.sealer.seal_quiet(0.0)
        number, handle = await write(engine, b"tail", random_bytes(100_000))
        with monkeypatch.context() as patch:
            patch.setattr(os, "fdatasync", broken)
            with pytest.raises(OSError, match="Input/output"):
                await engine.file_system.fsync(handle)
        shutil.copytree(data, copy)

    def inodes(*places: str) -> set[int]:
        return {path.stat().st_ino for place in places for path in (copy / place).rglob("*") if path.is_file()}

    with contextlib.ExitStack() as stack:  # open, so that no other file gets its number
        for place in ("cache", "dirty", "journal"):
            for path in (copy / place).rglob("*"):
                if path.is_file():
                    stack.enter_context(path.open())
        before = inodes("cache", "dirty", "journal")
        async with opened(copy, remote, upload_delay_s=1e9) as engine:
            assert not before & inodes("cache", "journal")
            handle = engine.file_system.open(number, os.O_RDWR)
            await engine.file_system.fsync(handle)
            assert not before & inodes("dirty")
            engine.file_system.release(handle)
            await engine.checkpoint()
    again = inodes("cache", "dirty")
    async with opened(copy, remote, upload_delay_s=1e9):
        assert inodes("cache", "dirty") == again


async def test_a_log_that_may_lack_something_is_not_relied_on_because_the_journal_is_whole_again(
    tmp_path: Path,
) -> None:
    """While somebody reads, what was committed is in the WAL alone: the journal is then all that surely has it."""
    async with opened(tmp_path, MemoryBackend(), upload_delay_s=1e9) as engine:
        database = engine.meta.database
        await write(engine, b"f", random_bytes(100_000))
        engine.meta.commit()
        database.doubt()
        await engine.durability.sync()
        with contextlib.closing(database.reader()) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM inodes").fetchone()
            await write(engine, b"g", random_bytes(100_000))
            for _ in range(2):
                with pytest.raises(OSError, match="may lack"):
                    await engine.checkpoint()
        await engine.checkpoint()
        assert not database.is_doubted


async def test_a_log_that_could_not_be_synced_is_in_doubt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing:
        def execute(self, _: str) -> None:
            raise sqlite3.OperationalError("disk I/O error")

        def close(self) -> None: ...

    async with opened(tmp_path, MemoryBackend(), upload_delay_s=1e9) as engine:
        database = engine.meta.database
        await write(engine, b"f", random_bytes(100_000))
        with monkeypatch.context() as patch:
            patch.setattr(sqlite3, "connect", lambda *_, **__: Refusing())
            with pytest.raises(OSError, match="disk I/O error"):
                await engine.checkpoint()
        assert database.is_doubted
        read_again: list[str] = []
        advise = os.posix_fadvise

        def watched(descriptor: int, offset: int, length: int, advice: int) -> None:
            advise(descriptor, offset, length, advice)
            if advice == os.POSIX_FADV_DONTNEED:
                read_again.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)

        monkeypatch.setattr(os, "posix_fadvise", watched)
        await engine.checkpoint()
        assert set(read_again) == {"meta.db"}, "otherwise ext4 does not write again what was refused"
        read_again.clear()
        await engine.checkpoint()
        assert not read_again
        assert not database.is_doubted


async def test_overwritten_bytes_are_freed_after_their_copies_are_durable(tmp_path: Path, flushes: Flushes) -> None:
    async with opened(tmp_path, MemoryBackend(), upload_delay_s=1e9) as engine:
        number, handle = create(engine, b"image")
        engine.file_system.setattr(number, size=4_000_000)
        for offset in range(0, 2_000_000, WRITE_BYTES):
            await engine.file_system.write(handle, offset, random_bytes(WRITE_BYTES))
        overlay = engine.meta.inodes.need(number).overlay
        at_punch: list[list[str]] = []
        punch = engine.store.dirty.punch

        def watched(dirty: int, offset: int, length: int) -> None:
            at_punch.append(list(flushes.seen))
            punch(dirty, offset, length)

        engine.store.dirty.punch = watched  # type: ignore[method-assign]
        flushes.seen.clear()
        await engine.sealer.seal_quiet(0.0)
        assert overlay
        (seen,) = at_punch
        assert set(seen) >= cache_files(engine, number)
        assert seen[-1] == "journal"


@pytest.mark.parametrize("fragments", [1, 200])
async def test_blocks_take_the_place_of_dirty_bytes_and_of_blocks_once_they_are_durable(
    tmp_path: Path, flushes: Flushes, monkeypatch: pytest.MonkeyPatch, fragments: int
) -> None:
    """Another program's fsync may put the record on the disk at any moment after."""
    async with opened(tmp_path, MemoryBackend(), upload_delay_s=1e9) as engine:
        _, handle = await write(engine, b"image", random_bytes(2_500_000))
        await engine.sealer.seal_quiet(0.0)
        for index in range(fragments):
            data = random_bytes(1_000_000 // fragments)
            await engine.file_system.write(handle, index * 2_000_000 // fragments, data)
        extents, recorded = engine.meta.extents, []

        seal = extents.seal

        def watched(*arguments: Any) -> None:
            files = [str(held) for _, _, _, held in arguments[4] if isinstance(held, int)]
            assert set(files) <= set(flushes.seen)
            recorded.extend(files)
            seal(*arguments)

        monkeypatch.setattr(extents, "seal", watched)
        flushes.seen.clear()
        await engine.sealer.seal_quiet(0.0)
        assert recorded


async def test_blocks_that_were_replaced_go_when_that_is_durable_also_when_there_are_many(
    tmp_path: Path, flushes: Flushes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So many operations have to be committed between, and a commit deletes what nothing names any more."""
    monkeypatch.setattr("syncer.meta.database.UNCOMMITTED_OPERATIONS", 1)
    async with opened(tmp_path, MemoryBackend(), upload_delay_s=1e9, budget_bytes=400_000_000) as engine:
        _, handle = await write(engine, b"image", random_bytes(16_000_000))
        await engine.sealer.seal_quiet(0.0)
        await engine.file_system.fsync(handle)
        for begin in range(0, 16_000_000, 2_000_000):  # stretches that hold whole blocks, and lone ranges
            for offset in (*range(begin, begin + 1_700_000, 60_000), begin + 1_850_000):
                await engine.file_system.write(handle, offset, random_bytes(1000))
        seal = engine.meta.extents.seal

        def sealed(number: int, start: int, end: int, *arguments: Any) -> None:
            replaced = any(extent.source > 0 for extent in engine.meta.extents.view(number, start, end))
            seal(number, start, end, *arguments)
            if replaced:
                flushes.seen.append("replaced")

        monkeypatch.setattr(engine.meta.extents, "seal", sealed)
        note_deletions(flushes, monkeypatch)
        flushes.seen.clear()
        await engine.sealer.seal_quiet(0.0)
        engine.commit()
        await engine.durability.sync()
        events = [event for event in flushes.seen if event in ("replaced", "journal", "deleted")]
        assert "deleted" in events
        for before, event in itertools.pairwise(events):
            assert (before, event) != ("replaced", "deleted"), events


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("length", [5000, 300_000])
async def test_an_overlay_that_was_fsynced_goes_when_its_copy_is_on_record(
    tmp_path: Path, flushes: Flushes, monkeypatch: pytest.MonkeyPatch, length: int, at_once: bool
) -> None:
    async with opened(tmp_path, MemoryBackend(), upload_delay_s=1e9) as engine:
        number, handle = create(engine, b"image")
        engine.file_system.setattr(number, size=1_000_000)
        await engine.file_system.write(handle, 1000, random_bytes(length))
        await engine.file_system.fsync(handle)
        seal = engine.meta.extents.seal

        def sealed(*arguments: Any) -> None:
            seal(*arguments)
            flushes.seen.append("sealed")

        sync = engine.durability.sync

        async def commit_first(*arguments: Any, **options: Any) -> None:
            engine.commit()
            await sync(*arguments, **options)

        monkeypatch.setattr(engine.durability, "sync", commit_first)
        monkeypatch.setattr(engine.meta.extents, "seal", sealed)
        note_deletions(flushes, monkeypatch)
        seal_quiet = engine.sealer.seal_quiet
        if at_once:  # a file that was never quiet is sealed without a pause, before a snapshot

            async def never(quiet_s: float) -> None:
                await trio.lowlevel.checkpoint()

            monkeypatch.setattr(engine.sealer, "seal_quiet", never)
        flushes.seen.clear()
        await (engine.sealer.seal_everything() if at_once else seal_quiet(0.0))
        engine.commit()
        await sync()
        events = [event for event in flushes.seen if event in ("sealed", "journal", "deleted")]
        assert events[events.index("sealed") :][:2] == ["sealed", "journal"]
        assert "deleted" in events


async def test_nothing_is_evicted_before_it_is_durably_known_where_it_went(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path, MemoryBackend()) as engine:
        number, _ = await write(engine, b"f", random_bytes(3_000_000))
        evicted: list[bool] = []
        sync = engine.durability.sync

        async def before_it_is_durable(*arguments: object, **options: object) -> None:
            if not evicted and engine.meta.blocks.evictable(1):  # the record is there, for the first time
                evicted.append(engine.store.budget.make_room(engine.settings.budget_bytes))
                assert all(engine.meta.blocks.get(e.source).cached for e in engine.meta.extents.find(number, 0, 2**40))
            await sync()

        with monkeypatch.context() as patch:
            patch.setattr(engine.durability, "sync", before_it_is_durable)
            await flush(engine)
        assert evicted == [False]
        engine.store.budget.make_room(engine.settings.budget_bytes)
        assert not any(engine.meta.blocks.get(e.source).cached for e in engine.meta.extents.find(number, 0, 2**40))


async def test_what_the_run_before_has_written_is_synced_by_the_next(tmp_path: Path, flushes: Flushes) -> None:
    """It may be in the kernel's memory alone, and who fsyncs the file again means it too."""
    remote = MemoryBackend()
    async with opened(tmp_path, remote, upload_delay_s=1e9) as engine:
        number, _ = await write(engine, b"sealed", random_bytes(3_000_000))
        await engine.sealer.seal_quiet(0.0)
        blocks = cache_files(engine, number)
        number, _ = await write(engine, b"tail", random_bytes(100_000))
        tail = engine.meta.inodes.need(number).tail
    flushes.seen.clear()
    async with opened(tmp_path, remote, upload_delay_s=1e9) as engine:
        assert blocks | {str(tail)} <= set(flushes.seen)
        assert tail in engine.store.dirty.promised


async def test_who_we_are_is_durable_before_the_remote_is_told(tmp_path: Path) -> None:
    """After a power cut we would otherwise take ourselves for another machine, and only read."""
    known: list[object] = []

    class Remote(MemoryBackend):
        async def put(self, key: str, data: bytes | memoryview) -> None:
            if key.startswith("peers/"):
                alone = Path(shutil.copy(tmp_path / "meta.db", tmp_path.with_name("alone.db")))  # as if without a WAL
                with contextlib.closing(sqlite3.connect(alone)) as connection:
                    known.extend(connection.execute("SELECT value FROM state WHERE key = 'machine'").fetchall())
            await super().put(key, data)

    async with opened(tmp_path, Remote()) as engine:
        assert known == [(engine.meta.database.state_bytes("machine"),)]


async def test_the_journal_goes_when_what_it_speaks_of_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path, MemoryBackend(), upload_delay_s=1e9) as engine:
        await write(engine, b"f", random_bytes(100_000))
        seen: list[str] = []
        discard = engine.meta.database.discard_journal
        monkeypatch.setattr("syncer.disk.sync_file_system", lambda folder: seen.append(f"synced {folder}"))

        def discarded(position: int) -> None:
            seen.append("discarded")
            discard(position)

        monkeypatch.setattr(engine.meta.database, "discard_journal", discarded)
        await engine.checkpoint()
        assert seen == [f"synced {tmp_path}", "discarded"]
