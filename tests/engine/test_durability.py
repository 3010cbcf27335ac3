"""What must be on stable storage before something else happens: seen through the calls that make it so."""

import contextlib
import itertools
import os
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import trio

from syncer.backends.memory import MemoryBackend
from tests.engine.syncs import WRITE_BYTES, Flushes, cache_files, note_deletions, random_bytes, write
from tests.support.opened import create, flush, opened

pytestmark = pytest.mark.usefixtures("the_same_bytes_in_every_run", "no_checkpoint_comes_in_between")


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
