"""What a run finds that follows a power cut, or one that was killed."""

import contextlib
import os
import shutil
import sqlite3
from pathlib import Path

import pytest

from syncer.backends.memory import MemoryBackend
from tests.engine.syncs import Flushes, cache_files, random_bytes, write
from tests.support.opened import flush, opened

pytestmark = pytest.mark.usefixtures("the_same_bytes_in_every_run", "no_checkpoint_comes_in_between")


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
