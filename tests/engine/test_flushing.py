"""The promise of the remote when something stands in its way: damage, a slow line, an old DATA, a lost answer."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from syncer.app import status_of
from syncer.backends.memory import MemoryBackend
from syncer.blocks import uploader
from syncer.blocks.pack import read_list
from syncer.config import Config
from syncer.engine import Engine
from syncer.errors import DataUnusable, LocalDamage, RemoteUnreachable, WrongRepository
from syncer.meta.store import MetaStore
from syncer.snapshots import publisher
from syncer.snapshots.records import SnapshotRecord, decode
from syncer.snapshots.repository import join
from syncer.values import CONTENT, ROOT_INODE
from tests.support.opened import ME, READER, WRITER, SlowLine, create, flush, opened

WRITE_BYTES = 131_072


async def test_damage_is_reported_only_while_something_needs_it(tmp_path: Path) -> None:
    remote = MemoryBackend()
    async with opened(tmp_path, remote) as engine:
        number, handle = create(engine, b"bad")
        await engine.file_system.write(handle, 0, os.urandom(250_000))  # one block: less than the least that is cut
        await engine.sealer.seal_quiet(0.0)
        engine.commit()
        (extent,) = engine.meta.extents.find(number, 0, 250_000)
        engine.store.cache.path(engine.meta.blocks.get(extent.source).id).write_bytes(b"x" * 10)
        with pytest.raises(LocalDamage, match="1 block of bad, damaged here"):
            await flush(engine)
        engine.file_system.release(handle)
        engine.file_system.unlink(ROOT_INODE, b"bad")
        await flush(engine)
    assert [key for key in remote.objects if key.startswith("snapshots/")]


@pytest.mark.parametrize("length", [5000, 90_000])
@pytest.mark.parametrize("hole", [0, 200_000])
async def test_what_the_sealer_does_not_know_of_is_in_the_snapshot_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, length: int, hole: int
) -> None:
    """The tables are asked, and not its notes alone: what is not sealed would be a hole on the remote."""
    remote, data = MemoryBackend(), os.urandom(length)
    async with opened(tmp_path / "data", remote, publishing=True) as engine:
        number, handle = create(engine, b"f")
        await engine.file_system.write(handle, hole, data)
        engine.sealer.forget(number)
        await flush(engine)
        assert "nobody was about to seal" in caplog.text
        caplog.clear()
        await engine.file_system.write(handle, 0, b"more")
        await flush(engine)
        assert not caplog.records
    async with opened(tmp_path / "other", remote, wish=READER) as engine:
        handle = engine.file_system.open(number, os.O_RDONLY)
        expected = bytearray(bytes(hole) + data)
        expected[:4] = b"more"
        assert (
            b"".join([await engine.file_system.read(handle, at, 100_000) for at in range(0, 300_000, 100_000)])
            == expected
        )


async def test_a_slow_line_is_given_the_time_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "GIVE_UP_S", 0.5)
    line = SlowLine()
    async with opened(tmp_path, line, budget_bytes=200_000_000) as engine:
        _, handle = create(engine, b"f")
        line.rate = 20_000_000  # four packs at once take three times as long as the patience
        for offset in range(0, 40_000_000, WRITE_BYTES):
            await engine.file_system.write(handle, offset, os.urandom(WRITE_BYTES))
        await flush(engine)


async def test_a_disk_here_that_refuses_to_take_down_what_was_stored_keeps_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher, "GIVE_UP_S", 2.0)
    monkeypatch.setattr(uploader, "RETRY_S", 0.1)
    fdatasync, broken = os.fdatasync, True

    def refuse(descriptor: int) -> None:
        if broken:
            raise OSError(errno.EIO, "the disk refuses")
        fdatasync(descriptor)

    async with opened(tmp_path, MemoryBackend(), upload_parallelism=1, upload_delay_s=1e6) as engine:
        _, handle = create(engine, b"f")
        for offset in range(0, 30_000_000, WRITE_BYTES):
            await engine.file_system.write(handle, offset, os.urandom(WRITE_BYTES))
        await engine.sealer.seal_everything()
        monkeypatch.setattr(os, "fdatasync", refuse)
        with trio.fail_after(30.0), pytest.raises(DataUnusable, match="the local disk refuses"):
            await flush(engine)
        broken = False
        await flush(engine)


async def test_a_flush_sends_no_packs_that_are_not_full_while_it_still_seals(tmp_path: Path) -> None:
    """However slow that is: many small packs would stay so for good."""
    remote = MemoryBackend()
    async with opened(tmp_path, remote, budget_bytes=200_000_000, upload_delay_s=1e6) as engine:

        async def slow() -> None:
            engine.uploader.wake()
            with trio.move_on_after(0.1):
                await engine.uploader.progressed.wait()

        engine.sealer.pace = slow
        for count in range(1200):
            _, handle = create(engine, b"%d" % count)
            await engine.file_system.write(handle, 0, os.urandom(10_240))
        await flush(engine)
    kinds = [read_list(data)[0] for key, data in remote.objects.items() if key.startswith("packs/")]
    assert kinds.count(CONTENT) == 2


async def test_where_a_file_is_can_be_seen(tmp_path: Path) -> None:
    """By its xattr, and by what waits and for how long."""
    config = Config(remote="memory", budget_bytes=64_000_000)
    async with opened(tmp_path, MemoryBackend(), upload_delay_s=1e6) as engine:
        number, handle = create(engine, b"f")
        await engine.file_system.write(handle, 0, os.urandom(WRITE_BYTES))
        seen = []
        for step in (engine.sealer.seal_everything, lambda: flush(engine), lambda: flush(engine)):
            seen.append((engine.file_system.getxattr(number, b"user.syncer.state"), status_of(engine, config, None)))
            await step()
        assert [state for state, _ in seen] == [b"dirty", b"local", b"uploaded"]
        assert [status.pending_upload_bytes for _, status in seen] == [WRITE_BYTES, WRITE_BYTES, 0]
        ages = [status.oldest_pending_s for _, status in seen]
        assert ages[1] is not None and 0 <= ages[1] < 60 and ages[2] is None
        assert [status.head for _, status in seen] == [None, None, "1/1"]


def state_of(engine: Engine, number: int) -> bytes:
    return engine.file_system.getxattr(number, b"user.syncer.state")


async def test_a_file_is_uploaded_when_a_snapshot_shows_it(tmp_path: Path) -> None:
    """Before, a machine that is lost loses it, whatever has become of its packs."""
    remote = MemoryBackend()
    async with opened(tmp_path, remote, upload_delay_s=0.01) as engine:
        empty, _ = create(engine, b"empty")
        number, handle = create(engine, b"f")
        await engine.file_system.write(handle, 0, os.urandom(WRITE_BYTES))
        assert state_of(engine, empty) == b"local"
        await engine.sealer.seal_everything()
        with trio.fail_after(20.0):
            while engine.meta.blocks.pending_totals()[1]:
                await engine.uploader.progressed.wait()
        status = status_of(engine, Config(remote="memory", budget_bytes=64_000_000), None)
        assert (status.pending_upload_blocks, status.snapshot_due) == (0, True)
        assert state_of(engine, number) == b"local"
        await flush(engine)
        assert not status_of(engine, Config(remote="memory", budget_bytes=64_000_000), None).snapshot_due
        assert state_of(engine, number) == state_of(engine, empty) == b"uploaded"
        changes: list[Callable[[], object]] = [
            lambda: engine.file_system.setxattr(number, b"user.a", b"b"),
            lambda: engine.file_system.rename(ROOT_INODE, b"f", ROOT_INODE, b"g"),
            lambda: engine.file_system.link(number, ROOT_INODE, b"h"),
            lambda: engine.file_system.unlink(ROOT_INODE, b"g"),
        ]
        for change in changes:
            change()
            assert (state_of(engine, number), state_of(engine, empty)) == (b"local", b"uploaded")
            engine.meta.commit()
            assert state_of(engine, number) == b"local"
            await flush(engine)
            assert state_of(engine, number) == b"uploaded"
        engine.file_system.unlink(ROOT_INODE, b"h")
        await flush(engine)
        assert state_of(engine, number) == b"local"  # no snapshot has a file without a name


async def test_a_file_is_not_uploaded_while_a_directory_above_it_has_moved(tmp_path: Path) -> None:
    """The snapshot shows it elsewhere. What merely comes and goes beside it does not matter."""
    remote = MemoryBackend()
    async with opened(tmp_path, remote) as engine:
        system = engine.file_system
        upper, other, made = (
            system.create(ROOT_INODE, name, 0o040755, ME).number for name in (b"upper", b"other", b"made")
        )
        lower = system.create(upper, b"lower", 0o040755, ME).number
        beside = system.create(other, b"lower", 0o040755, ME).number
        number = system.create(lower, b"f", 0o100644, ME).number
        await flush(engine)
        system.create(lower, b"new", 0o100644, ME)
        system.create(upper, b"new", 0o040755, ME)
        system.setattr(lower, mode=0o700)
        assert state_of(engine, number) == b"uploaded"
        changes: list[Callable[[], object]] = [
            lambda: system.rename(upper, b"lower", made, b"lower"),
            lambda: system.rename(ROOT_INODE, b"made", ROOT_INODE, b"named"),
            lambda: system.exchange(made, b"lower", other, b"lower"),
            lambda: system.exchange(made, b"lower", other, b"lower"),
        ]
        for change in changes:
            change()
            assert state_of(engine, number) == b"local"
            await flush(engine)
            assert state_of(engine, number) == b"uploaded"
        system.rename(made, b"lower", beside, b"deeper")
    async with opened(tmp_path, remote) as engine:
        assert state_of(engine, number) == b"local"
        await flush(engine)
        assert state_of(engine, number) == b"uploaded"


async def test_a_pack_that_no_index_lists_does_not_count(tmp_path: Path) -> None:
    """Bytes that an older snapshot lacks have come: a new machine finds them only by the index."""
    async with opened(tmp_path, MemoryBackend()) as engine:
        number, handle = create(engine, b"f")
        await engine.file_system.write(handle, 0, os.urandom(WRITE_BYTES))
        await flush(engine)
        engine.meta.database.begin()
        engine.meta.blocks.execute("UPDATE packs SET indexed = NULL WHERE kind = ?", (CONTENT,))
        assert state_of(engine, number) == b"local"
        await flush(engine)
        assert state_of(engine, number) == b"uploaded"


class Away(MemoryBackend):
    """A remote that takes no packs while it is `gone`; `packs` are those that were to be put, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.gone = False
        self.packs: list[bytes] = []

    async def put(self, key: str, data: bytes | memoryview) -> None:
        if key.startswith("packs/"):
            self.packs.append(bytes(data))
            if self.gone:
                raise RemoteUnreachable("gone")
        await super().put(key, data)


async def test_after_an_outage_the_oldest_leaves_first(tmp_path: Path) -> None:
    remote = Away()
    async with opened(tmp_path, remote, upload_parallelism=1) as engine:  # those under way together have no order
        remote.gone = True
        for count in range(6):
            _, handle = create(engine, b"%d" % count)
            for offset in range(0, 50 * WRITE_BYTES, WRITE_BYTES):
                await engine.file_system.write(handle, offset, os.urandom(WRITE_BYTES))
            await engine.sealer.seal_quiet(0.0)
        engine.uploader.drain += 1
        engine.uploader.wake()
        with trio.fail_after(20):
            while engine.uploader.error is None or engine.uploader._running:
                await engine.uploader.progressed.wait()
        remote.gone = False
        remote.packs.clear()
        await flush(engine)
        oldest = []
        for data in remote.packs:
            kind, entries = read_list(data)
            if kind == CONTENT:
                blocks = [engine.meta.blocks.find(entry.id) for entry in entries]
                oldest.append(min(block.number for block in blocks if block is not None))
        assert len(oldest) >= 4 and oldest == sorted(oldest)


async def test_data_brought_back_from_a_copy_overwrites_nothing(tmp_path: Path) -> None:
    remote = MemoryBackend()
    data, copy = tmp_path / "data", tmp_path / "copy"
    async with opened(data, remote) as engine:
        create(engine, b"first")
        await flush(engine)
    shutil.copytree(data, copy)
    async with opened(data, remote) as engine:
        create(engine, b"second")
        await flush(engine)
    before = dict(remote.objects)
    async with opened(copy, remote) as engine:
        create(engine, b"third")
        with pytest.raises(WrongRepository, match="brought back from a copy"):
            await flush(engine)
    assert before.items() <= remote.objects.items()
    assert {key for key in remote.objects if key.startswith("snapshots/")} <= before.keys()


class LateBackend(MemoryBackend):
    """While `late`, a snapshot is stored although its put was cancelled."""

    late = False

    async def put(self, key: str, data: bytes | memoryview) -> None:
        if self.late and key.startswith("snapshots/"):
            try:
                await trio.sleep_forever()
            finally:
                self.objects[key] = bytes(data)
        await super().put(key, data)


async def test_a_release_whose_end_was_not_seen_is_taken_back(tmp_path: Path) -> None:
    remote = LateBackend()
    data = tmp_path / "data"
    async with opened(data, remote) as engine:
        create(engine, b"a")
        await flush(engine)
        create(engine, b"b")
        remote.late = True
        await engine.put_down(1.0)
        remote.late = False
    async with opened(data, remote, publishing=True) as engine:
        with trio.fail_after(10):
            while engine.publisher.released:
                await trio.sleep(0.01)
        newest = max(key for key in remote.objects if key.startswith("snapshots/"))
        assert not decode(remote.objects[newest], SnapshotRecord).released
        other = tmp_path / "other"
        for name in ("cache", "dirty", "journal"):
            (other / name).mkdir(parents=True)
        meta = MetaStore(other)
        assert (await join(meta, remote, WRITER)).read_only_reason
        meta.close()


async def test_flushing_a_read_only_mount(tmp_path: Path) -> None:
    remote = MemoryBackend()
    data = tmp_path / "data"
    async with opened(data, remote) as engine:
        create(engine, b"a")
        await flush(engine)
        _, handle = create(engine, b"b")
        await engine.file_system.write(handle, 0, os.urandom(300_000))
    async with opened(data, remote, wish=READER) as engine:
        with pytest.raises(WrongRepository, match="bytes from before are not on the remote"):
            await flush(engine)
    async with opened(tmp_path / "viewer", remote, wish=READER) as engine:
        await flush(engine)
