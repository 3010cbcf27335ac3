"""The budget under loads that only uploads, sealing and checkpoints can relieve."""

import errno
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio
import trio.testing

from syncer.backends.memory import MemoryBackend
from syncer.blocks.budget import ROWS_BYTES
from syncer.engine import Engine
from syncer.errors import RemoteFull
from syncer.meta.blocktable import CACHED_ROW
from syncer.meta.importer import Importer
from syncer.meta.store import MetaStore
from syncer.values import CONTENT, ROOT_INODE, SMALL_BYTES, BlockId, PackId
from tests.support.opened import ME, READER, create, flush, opened

WRITE_BYTES = 131_072


async def test_a_budget_full_of_overwritten_bytes_is_sealed_and_uploaded(tmp_path: Path) -> None:
    async with opened(tmp_path, MemoryBackend()) as engine:
        number, handle = create(engine, b"image")
        engine.file_system.setattr(number, size=120_000_000)
        for offset in range(0, 120_000_000 - WRITE_BYTES, WRITE_BYTES):
            await engine.file_system.write(handle, offset, os.urandom(WRITE_BYTES))
            assert engine.store.budget.used_bytes <= 64_000_000
        with trio.fail_after(60):
            await flush(engine)
        assert engine.uploader.uploaded_bytes > 100_000_000


async def test_who_wants_much_room_is_not_passed_by_those_who_want_little(tmp_path: Path) -> None:
    async with opened(tmp_path, MemoryBackend()) as engine:
        budget = engine.store.budget
        order: list[str] = []
        held = budget.limit_bytes

        async def want(name: str, amount: int) -> None:
            await budget.reserve(amount, 10.0)
            order.append(name)

        async with trio.open_nursery() as nursery:
            with budget.hold(held):
                nursery.start_soon(want, "much", 8_000_000)
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(want, "little", 1)
                await trio.testing.wait_all_tasks_blocked()
            with budget.hold(engine.store.budget._free() - 4_000_000):
                budget.changed()
                await trio.testing.wait_all_tasks_blocked()
                assert order == []
                assert not budget.fits(1)
            budget.changed()
        assert order == ["much", "little"]


async def test_metadata_waits_for_room_and_is_refused_when_there_is_none(tmp_path: Path) -> None:
    async with opened(tmp_path, MemoryBackend(), network_deadline_s=1.0) as engine:
        value = os.urandom(60_000)
        with pytest.raises(OSError, match="budget") as caught:
            for name in range(2000):
                await engine.file_system.room(len(value))
                number, _ = create(engine, b"%d" % name)
                engine.file_system.setxattr(number, b"user.x", value)
                if name % 16 == 0:
                    engine.store.budget.measure()
                    assert engine.store.budget.used_bytes <= 64_000_000
        assert caught.value.errno == errno.ENOSPC
        assert name > 300
        engine.store.budget.measure()
        assert engine.store.budget.used_bytes <= 64_000_000


async def test_an_import_leaves_no_wal_larger_than_what_it_brought(tmp_path: Path) -> None:
    for name in ("cache", "dirty", "journal"):
        (tmp_path / name).mkdir()
    meta = MetaStore(tmp_path)
    importer = Importer(meta.database)
    for pack in range(40):
        blocks = [(BlockId(os.urandom(32)), at * 500, 500, 600) for at in range(5000)]
        importer.add_pack(PackId(os.urandom(32)), 8_000_000, CONTENT, 1, blocks)
        if pack % 8 == 7:
            await trio.lowlevel.checkpoint()
    meta.commit()
    database_bytes = meta.database.path.stat().st_size
    assert meta.database.wal_bytes() < max(16_000_000, database_bytes / 2)
    meta.close()


async def test_a_disk_that_is_full_half_way_through_a_write_makes_it_a_short_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path, MemoryBackend()) as engine:
        number, handle = create(engine, b"f")
        data = os.urandom(9_000_000)
        room = 4_000_000
        pwrite = os.pwrite

        def filling(descriptor: int, part: bytes | memoryview, offset: int) -> int:
            nonlocal room
            taken = min(room, len(part))
            if not taken:
                raise OSError(errno.ENOSPC, "No space left on device")
            room -= taken
            return pwrite(descriptor, part[:taken], offset)

        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", filling)
            taken = await engine.file_system.write(handle, 0, data)
            assert taken == 4_000_000
            assert engine.file_system.getattr(number).size == taken
            with pytest.raises(OSError, match="No space"):
                await engine.file_system.write(handle, taken, data[taken:])
        assert await engine.file_system.write(handle, taken, data[taken:]) == len(data) - taken
        for offset in range(0, len(data), 1_000_000):
            assert await engine.file_system.read(handle, offset, 1_000_000) == data[offset : offset + 1_000_000]


@pytest.mark.parametrize("room", [0, 60_000])
async def test_a_write_across_the_end_whose_second_half_finds_no_room_is_a_short_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    """Its first half has taken the place of what was there: an error would say that nothing has happened."""
    async with opened(tmp_path, MemoryBackend()) as engine:
        number, handle = create(engine, b"f")
        before, data = os.urandom(200_000), os.urandom(200_000)
        await engine.file_system.write(handle, 0, before)
        await engine.sealer.seal_quiet(0.0)
        pwrite, overwritten = os.pwrite, False

        def filling(descriptor: int, part: bytes | memoryview, offset: int) -> int:
            nonlocal overwritten, room
            if not overwritten:
                overwritten = True
                return pwrite(descriptor, part, offset)
            taken = min(room, len(part))
            if not taken:
                raise OSError(errno.ENOSPC, "No space left on device")
            room -= taken
            return pwrite(descriptor, part[:taken], offset)

        expected = 100_000 + room
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", filling)
            assert await engine.file_system.write(handle, 100_000, data) == expected
        assert engine.file_system.getattr(number).size == 100_000 + expected
        assert await engine.file_system.read(handle, 0, 400_000) == before[:100_000] + data[:expected]


async def test_what_a_write_that_failed_has_made_dirty_is_sealed_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small file becomes one content again before it is written to; nobody else would look at it ever again."""
    remote = MemoryBackend()
    async with opened(tmp_path / "data", remote, publishing=True) as engine:
        number, handle = create(engine, b"f")
        before = os.urandom(5000)
        await engine.file_system.write(handle, 0, before)
        await flush(engine)
        assert engine.meta.database.journal is not None
        append, left = engine.meta.database.journal.append, 1

        def filling(payload: bytes) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            append(payload)

        with monkeypatch.context() as patch:
            patch.setattr(engine.meta.database.journal, "append", filling)
            with pytest.raises(OSError, match="No space"):
                await engine.file_system.write(handle, 100, b"new")
        create(engine, b"other")
        await flush(engine)
        assert engine.file_system.state(engine.file_system.getattr(number)) == b"uploaded"
    async with opened(tmp_path / "other", remote, wish=READER) as engine:
        handle = engine.file_system.open(number, os.O_RDONLY)
        assert await engine.file_system.read(handle, 0, 9000) == before


async def test_bytes_of_a_write_that_failed_before_are_not_taken_for_this_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path, MemoryBackend()) as engine:
        number, handle = create(engine, b"f")
        await engine.file_system.write(handle, 0, os.urandom(100_000))

        def full(*_: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            assert engine.meta.database.journal is not None
            patch.setattr(engine.meta.database.journal, "append", full)
            with pytest.raises(OSError, match="No space"):
                await engine.file_system.write(handle, 100_000, b"A" * 50_000)
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", full)
            with pytest.raises(OSError, match="No space"):
                await engine.file_system.write(handle, 100_000, b"B" * 10_000)
        assert engine.file_system.getattr(number).size == 100_000


async def test_a_cut_that_fails_leaves_no_files_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(tmp_path, MemoryBackend(), budget_bytes=200_000_000) as engine:
        number, handle = create(engine, b"f")
        pwrite, left = os.pwrite, 3

        def filling(descriptor: int, part: bytes | memoryview, offset: int) -> int:
            nonlocal left
            left -= 1
            if left < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return pwrite(descriptor, part, offset)

        await engine.file_system.write(handle, 0, os.urandom(9_000_000))
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", filling)
            engine.file_system.settle()
        engine.meta.commit()
        kept = [path.name for path in (tmp_path / "dirty").iterdir()]
        assert kept == [str(engine.meta.inodes.need(number).tail)]


class SlowTrees(MemoryBackend):
    """A remote that takes the first objects, and after that no pack until `gate` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = trio.Event()
        self.asked = trio.Event()

    async def put(self, key: str, data: bytes | memoryview) -> None:
        if key.startswith("packs/"):
            self.asked.set()
            await self.gate.wait()
        await super().put(key, data)


async def test_the_log_is_bounded_while_a_snapshot_is_made_and_changes_wait_for_no_remote(tmp_path: Path) -> None:
    remote = SlowTrees()
    async with opened(tmp_path, remote) as engine, trio.open_nursery() as nursery:
        system = engine.file_system
        longest = 0

        async def change(count: int) -> None:
            nonlocal longest
            for _ in range(count):
                await system.room()
                system.create(1, os.urandom(10).hex().encode(), 0o100644, ME)
                longest = max(longest, engine.meta.database.wal_bytes())
                await trio.lowlevel.checkpoint()

        await change(3000)
        nursery.start_soon(flush, engine)
        await remote.asked.wait()  # the trees are built, a reader holds the WAL, and the remote takes nothing
        with trio.fail_after(180):
            await change(12_000)
            while number := next(iter(system.names.entries(1, 0, 1)), None):
                await system.keep_up()
                system.unlink(1, number.name)
                longest = max(longest, engine.meta.database.wal_bytes())
                await trio.lowlevel.checkpoint()
        assert longest < engine.settings.budget_bytes / 4
        remote.gate.set()


async def test_names_that_become_longer_ask_for_room(tmp_path: Path) -> None:
    async with opened(tmp_path, MemoryBackend(), network_deadline_s=0.5) as engine:
        names, budget = engine.file_system, engine.store.budget
        for number in range(200):
            names.create(ROOT_INODE, b"%d" % number, 0o100644, ME)
        engine.commit()
        with budget.hold(budget.limit_bytes):
            with pytest.raises(OSError, match="budget") as caught:
                await names.room_for_name(b"7", ROOT_INODE, b"7" * 200)
            assert caught.value.errno == errno.ENOSPC
            for old, new in ((b"7", b"x"), (b"8", b"123")):  # no longer than before; in the place of another
                await names.room_for_name(old, ROOT_INODE, new)
                names.rename(ROOT_INODE, old, ROOT_INODE, new)


async def test_room_that_others_make_on_the_disk_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody tells, and nothing happens here meanwhile that would have somebody look."""
    async with opened(tmp_path, MemoryBackend(), network_deadline_s=30.0) as engine:
        _, handle = create(engine, b"f")
        await flush(engine)
        await engine.checkpoint()
        with monkeypatch.context() as patch:
            patch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=0, f_frsize=4096))
            engine.store.budget.measure()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(engine.file_system.write, handle, 0, b"x" * 1_000_000)
                with trio.fail_after(5):
                    while not engine.store.budget.waiting:
                        await trio.sleep(0.01)
                await trio.testing.wait_all_tasks_blocked(0.1)
                patch.undo()
                nursery.cancel_scope.deadline = trio.current_time() + 10
        assert engine.meta.inodes.need(engine.file_system.handles.get(handle).number).size == 1_000_000


async def test_reads_go_on_when_the_budget_is_full_of_what_cannot_leave(tmp_path: Path) -> None:
    """A remote that is full takes nothing, and gives what it has."""
    remote, content = Full(), os.urandom(20_000_000)
    async with opened(tmp_path, remote, network_deadline_s=2.0) as engine:
        _, clean = create(engine, b"clean")
        for offset in range(0, len(content), WRITE_BYTES):
            await engine.file_system.write(clean, offset, content[offset : offset + WRITE_BYTES])
        await flush(engine)
        remote.full = True
        _, dirty = create(engine, b"dirty")
        with pytest.raises(OSError, match="budget") as caught:
            for offset in range(0, 80_000_000, WRITE_BYTES):
                await engine.file_system.write(dirty, offset, os.urandom(WRITE_BYTES))
        assert caught.value.errno == errno.ENOSPC
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_refused, engine, dirty)
            for offset in range(0, len(content), WRITE_BYTES):
                assert await engine.file_system.read(clean, offset, WRITE_BYTES) == content[offset:][:WRITE_BYTES]
                assert engine.store.budget.used_bytes <= 64_000_000
        remote.full = False


class Full(MemoryBackend):
    """A remote that has no room for packs while it is `full`."""

    full = False

    async def put(self, key: str, data: bytes | memoryview) -> None:
        if self.full and key.startswith("packs/"):
            raise RemoteFull("full")
        await super().put(key, data)


async def _refused(engine: Engine, handle: int) -> None:
    """Others do not get past who waits for room, but readers do."""
    with pytest.raises(OSError, match="budget"):
        await engine.file_system.write(handle, 0, os.urandom(WRITE_BYTES))


async def test_a_budget_that_was_made_smaller_than_what_waits_is_kept_in_the_end(tmp_path: Path) -> None:
    remote = MemoryBackend()
    async with opened(tmp_path, remote, budget_bytes=200_000_000, upload_delay_s=1e6) as engine:
        number, handle = create(engine, b"image")
        engine.file_system.setattr(number, size=120_000_000)
        for offset in range(0, 100_000_000, WRITE_BYTES):
            await engine.file_system.write(handle, offset, os.urandom(WRITE_BYTES))
        assert engine.store.dirty.total_bytes >= 100_000_000
    async with opened(tmp_path, remote, upload_delay_s=1e6) as engine:
        before = engine.store.budget.used_bytes
        assert before > 100_000_000
        with trio.fail_after(25):
            await engine.sealer.seal_quiet(0.0)
        assert engine.store.dirty.total_bytes < 20_000_000
        assert engine.store.budget.used_bytes < before + 20_000_000
        await flush(engine)
        _, more = create(engine, b"more")
        await engine.file_system.write(more, 0, os.urandom(WRITE_BYTES))
        assert engine.store.budget.used_bytes <= 64_000_000


async def test_small_files_that_are_made_longer_ask_for_room(tmp_path: Path) -> None:
    """By ftruncate(2): what is a hole elsewhere are bytes in meta.db here."""
    async with opened(tmp_path, MemoryBackend()) as engine:
        system, budget = engine.file_system, engine.store.budget
        files = []
        for count in range(2000):
            await system.room()
            number, handle = create(engine, b"%d" % count)
            await system.write(handle, 0, b"%d" % count)
            files.append(number)
        most = 0
        for number in files:  # who waits for room has those before sealed: a hole is all that follows then
            await system.room_for_size(number, SMALL_BYTES)
            system.setattr(number, size=SMALL_BYTES)
            assert budget.used_bytes <= 64_000_000
            most = max(most, budget.used_bytes)
        assert most > 40_000_000
        engine.commit()
        assert sum(path.stat().st_blocks * 512 for path in tmp_path.rglob("*")) <= 64_000_000


async def test_who_waits_for_the_room_of_evicted_rows_has_no_more_of_them_evicted(tmp_path: Path) -> None:
    """That comes with a commit and a checkpoint, and everybody who waits looks again before."""
    async with opened(tmp_path, MemoryBackend(), upload_delay_s=0.05) as engine:
        budget = engine.store.budget
        for count in range(500):
            await engine.file_system.room()
            _, handle = create(engine, b"%d" % count)
            await engine.file_system.write(handle, 0, os.urandom(60_000))
            engine.file_system.release(handle)
        await flush(engine)
        await engine.checkpoint()
        before = _rows_bytes(engine)
        assert before > 16_000_000
        with budget.hold(budget._free() - 50_000), trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                for _ in range(4):
                    nursery.start_soon(budget.reserve, 100_000, 10.0)
        assert before - _rows_bytes(engine) <= ROWS_BYTES + 2_000_000


def _rows_bytes(engine: Engine) -> int:
    """Of the contents of small files that are cached."""
    rows = engine.meta.blocks.execute(
        "SELECT sum(size) FROM blocks WHERE cached = ? AND kind = ?", (CACHED_ROW, CONTENT)
    )
    return int(rows.fetchone()[0] or 0)
