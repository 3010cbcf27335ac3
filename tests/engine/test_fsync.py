"""What an fsync makes durable, and what keeps it so: seen through the calls that do it."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from syncer.backends.memory import MemoryBackend
from syncer.values import BlockId
from tests.engine.syncs import WRITE_BYTES, Flushes, cache_files, note_deletions, random_bytes, write
from tests.support.opened import create, opened

pytestmark = pytest.mark.usefixtures("the_same_bytes_in_every_run", "no_checkpoint_comes_in_between")


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
