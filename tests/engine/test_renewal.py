"""After the disk has refused something: nothing that a later fsync promises is in a file that may lack it."""

import os
import random
import shutil
from collections.abc import Awaitable, Callable
from mmap import PAGESIZE
from pathlib import Path

import pytest
import trio

from syncer.backends.memory import MemoryBackend
from syncer.blocks import renewal as renewal_module
from syncer.disk import punch_hole
from syncer.engine import Engine
from syncer.errors import LocalDamage
from syncer.values import ROOT_INODE
from tests.support.forgetful_disk import PowerCutDisk
from tests.support.mount import forget_pages
from tests.support.opened import create, opened
from tests.support.refusing_disk import RefusingDisk
from tests.support.server_disks import needs_root

LENGTH = 200_000
SIZE = 4_000_000
"""Of the file with an overlay: most of it is a hole."""
PLACES = ("dirty", "cache", "journal")


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> RefusingDisk:
    monkeypatch.setattr("syncer.engine.CHECKPOINT_S", 1e9)
    return RefusingDisk(monkeypatch)


def lost(disk: RefusingDisk, data: Path) -> list[Path]:
    return [path for place in PLACES for path in disk.lost(data / place)]


async def made(engine: Engine, form: str, data: bytes) -> tuple[int, int, int]:
    """(inode, handle, where its bytes begin) of a file with *data* in that form."""
    number, handle = create(engine, b"f")
    offset = 0
    if form == "overlay":
        engine.file_system.setattr(number, size=SIZE)
        offset = SIZE // 2
    for begin in range(0, len(data), 100_000):
        await engine.file_system.write(handle, offset + begin, data[begin : begin + 100_000])
    if form == "cache":
        await engine.sealer.seal_quiet(0.0)
    return number, handle, offset


async def refused(engine: Engine, handle: int, disk: RefusingDisk) -> None:
    disk.refuses = True
    with pytest.raises(OSError, match="refuses"):
        await engine.file_system.fsync(handle)
    disk.refuses = False


def is_accounted(engine: Engine) -> bool:
    files = [path.stat().st_blocks * 512 for path in engine.store.dirty.paths()]
    return engine.store.dirty.total_bytes == sum(files)


@pytest.mark.parametrize("form", ["content", "tail", "overlay", "cache"])
async def test_what_was_refused_is_promised_in_another_file(tmp_path: Path, disk: RefusingDisk, form: str) -> None:
    data = random.Random(1).randbytes(1000 if form == "content" else LENGTH)
    remote = MemoryBackend()
    async with opened(tmp_path, remote, upload_delay_s=1e9) as engine:
        number, handle, offset = await made(engine, form, data)
        used = engine.store.budget.used_bytes
        await refused(engine, handle, disk)
        assert lost(disk, tmp_path)
        await engine.file_system.fsync(handle)
        assert not lost(disk, tmp_path)
        assert await engine.file_system.read(handle, offset, LENGTH) == data
        assert is_accounted(engine)
        assert abs(engine.store.budget.used_bytes - used) < 100_000, "a hole of the overlay has become bytes"
        disk.synced.clear()
        files = {path: path.stat().st_ino for place in ("dirty", "cache") for path in (tmp_path / place).rglob("*")}
        await engine.file_system.write(handle, offset + 10, b"more")
        await engine.file_system.fsync(handle)
        assert all(path.stat().st_ino == inode for path, inode in files.items()), "it is made anew once"
        shutil.copytree(tmp_path, f"{tmp_path}.killed")
    async with opened(Path(f"{tmp_path}.killed"), remote, upload_delay_s=1e9) as engine:
        handle = engine.file_system.open(number, os.O_RDONLY)
        assert await engine.file_system.read(handle, offset, LENGTH) == data[:10] + b"more" + data[14:]


def while_copied(patch: pytest.MonkeyPatch, action: Callable[[], Awaitable[None]]) -> None:
    """Have *action* done by the event loop once the first file that is made anew has been copied."""
    fill, actions = renewal_module._Copy.fill, [action]

    def watched(copy: renewal_module._Copy) -> None:
        fill(copy)
        if actions:
            trio.from_thread.run(actions.pop())

    patch.setattr(renewal_module._Copy, "fill", watched)


@pytest.mark.parametrize("form", ["tail", "overlay"])
async def test_writes_and_fsyncs_that_come_meanwhile_are_of_the_new_file(
    tmp_path: Path, disk: RefusingDisk, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    data = random.Random(1).randbytes(LENGTH)
    async with opened(tmp_path, MemoryBackend(), upload_delay_s=1e9) as engine, trio.open_nursery() as nursery:
        number, handle, offset = await made(engine, form, data)
        await refused(engine, handle, disk)
        (dirty,) = engine.meta.extents.dirty_files(engine.meta.inodes.need(number))
        path = engine.store.dirty.path(dirty)
        synced: list[bool] = []

        async def fsync() -> None:
            disk.synced.clear()
            await engine.file_system.fsync(handle)
            synced.append(path.stat().st_ino in disk.synced)

        async def meanwhile() -> None:
            await engine.file_system.write(handle, offset + LENGTH, b"more")
            nursery.start_soon(fsync)
            while engine.durability._next is None:
                await trio.lowlevel.checkpoint()

        while_copied(monkeypatch, meanwhile)
        await engine.file_system.fsync(handle)
        with trio.fail_after(10):
            while not synced:
                await trio.lowlevel.checkpoint()
        assert synced == [True]
        assert not lost(disk, tmp_path)
        assert is_accounted(engine)
        assert await engine.file_system.read(handle, offset, LENGTH + 4) == data + b"more"
        assert path.read_bytes().endswith(b"more")


async def test_a_tail_that_becomes_a_block_meanwhile_is_made_anew_as_one(
    tmp_path: Path, disk: RefusingDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = random.Random(1).randbytes(LENGTH)
    async with opened(tmp_path, MemoryBackend(), upload_delay_s=1e9) as engine:
        number, handle, _ = await made(engine, "tail", data)
        await refused(engine, handle, disk)
        engine.store.dirty.promised.clear()  # otherwise it is made anew before it moves

        async def meanwhile() -> None:
            engine.tails.seal(engine.meta.inodes.need(number))

        while_copied(monkeypatch, meanwhile)
        await engine.file_system.fsync(handle)
        assert not lost(disk, tmp_path)
        (block,) = cache_files(tmp_path)
        assert disk.is_synced(block)
        assert await engine.file_system.read(handle, 0, LENGTH) == data


async def test_a_promised_tail_is_made_anew_before_it_becomes_a_block(tmp_path: Path, disk: RefusingDisk) -> None:
    async with opened(tmp_path, MemoryBackend(), upload_delay_s=1e9) as engine:
        number, handle, _ = await made(engine, "tail", random.Random(1).randbytes(LENGTH))
        await engine.file_system.fsync(handle)
        await engine.file_system.write(handle, LENGTH, b"more")
        await refused(engine, handle, disk)
        engine.tails.seal(engine.meta.inodes.need(number))
        assert not lost(disk, tmp_path)
        assert is_accounted(engine)


async def test_a_refusal_that_no_fsync_has_met_counts_as_well(tmp_path: Path, disk: RefusingDisk) -> None:
    """A tail is synced by who cuts it; the kernel tells of a failure once."""
    async with opened(tmp_path, MemoryBackend(), upload_delay_s=1e9) as engine:
        number, handle, _ = await made(engine, "tail", random.Random(1).randbytes(LENGTH))
        await engine.file_system.fsync(handle)
        await engine.file_system.write(handle, LENGTH, b"more")
        disk.refuses = True
        with pytest.raises(OSError, match="refuses"):
            engine.tails.seal(engine.meta.inodes.need(number))
        disk.refuses = False
        assert lost(disk, tmp_path)
        await engine.file_system.fsync(handle)
        assert not lost(disk, tmp_path)


def cache_files(data: Path) -> list[Path]:
    return [path for path in (data / "cache").rglob("*") if path.is_file()]


async def dropped(engine: Engine, data: Path, disk: RefusingDisk) -> tuple[int, Path, bytes]:
    """A block that the disk has refused, and whose cache file has zeros by now: (handle, that file, what it had)."""
    _, handle, _ = await made(engine, "cache", random.Random(1).randbytes(LENGTH))
    await refused(engine, handle, disk)
    (block,) = cache_files(data)
    whole = block.read_bytes()
    block.write_bytes(bytes(len(whole)))
    return handle, block, whole


async def test_a_block_that_the_kernel_has_dropped_is_no_lie(tmp_path: Path, disk: RefusingDisk) -> None:
    async with opened(tmp_path, MemoryBackend(), upload_delay_s=1e9) as engine:
        handle, block, whole = await dropped(engine, tmp_path, disk)
        for _ in range(2):
            with pytest.raises(OSError, match="has lost what the disk did not take"):
                await engine.file_system.fsync(handle)
        assert not list((tmp_path / "cache" / "incoming").iterdir())
        block.write_bytes(whole)
        await engine.file_system.fsync(handle)
        assert not lost(disk, tmp_path)


def drop(engine: Engine, number: int, begin: int, end: int) -> None:
    """What becomes of pages of the dirty file that holds bytes of the inode, once the kernel wants their memory."""
    (dirty,) = engine.meta.extents.dirty_files(engine.meta.inodes.need(number))
    punch(engine.store.dirty.path(dirty), begin, end)


def punch(path: Path, begin: int, end: int) -> None:
    with open(path, "r+b") as file:
        assert punch_hole(file.fileno(), begin, end - begin)


@pytest.mark.parametrize("form", ["tail", "overlay"])
async def test_what_the_kernel_has_dropped_is_neither_promised_nor_read_as_zeros(
    tmp_path: Path, disk: RefusingDisk, form: str, caplog: pytest.LogCaptureFixture
) -> None:
    data = random.Random(1).randbytes(LENGTH)
    async with opened(tmp_path, MemoryBackend(), upload_delay_s=1e9) as engine:
        number, handle, offset = await made(engine, form, data)
        await refused(engine, handle, disk)
        page = offset + 102_400 - offset % PAGESIZE
        drop(engine, number, page, page + PAGESIZE)
        for _ in range(2):
            with pytest.raises(OSError, match=f"inode {number} has lost some of {LENGTH} bytes from {offset} on"):
                await engine.file_system.fsync(handle)
            with pytest.raises(LocalDamage, match="has lost what the disk did not take"):
                await engine.file_system.read(handle, offset, LENGTH)
            assert await engine.file_system.read(handle, offset, 100_000) == data[:100_000]
            await engine.checkpoint()
            await engine.file_system.write(handle, offset + 10, data[10:20])  # a tail is frozen now
        assert caplog.text.count(f"inode {number} has lost some") == 1
        await engine.sealer.seal_quiet(0.0)
        assert "cannot be sealed now" in caplog.text
        assert not cache_files(tmp_path)
        await engine.file_system.write(handle, page - 10, bytes(PAGESIZE + 20))
        await engine.sealer.seal_quiet(0.0)  # the file takes no more writes: these bytes are in another
        await engine.file_system.fsync(handle)
        await engine.checkpoint()
        assert not lost(disk, tmp_path)
        low, high = page - 10 - offset, page + PAGESIZE + 10 - offset
        assert await engine.file_system.read(handle, offset, LENGTH) == data[:low] + bytes(high - low) + data[high:]


@needs_root
@pytest.mark.slow
async def test_what_a_real_disk_refuses_and_the_kernel_drops_is_not_promised(tmp_path: Path) -> None:
    data = random.Random(1).randbytes(LENGTH)
    with PowerCutDisk(tmp_path, 300 << 20) as real:
        async with opened(real.folder / "data", MemoryBackend(), upload_delay_s=1e9) as engine:
            number, handle, offset = await made(engine, "overlay", data)
            await engine.file_system.fsync(handle)
            path = engine.store.dirty.path(engine.meta.inodes.need(number).overlay)
            more = offset + 2 * LENGTH
            with real.spoiled(path, 4 << 20):
                await engine.file_system.write(handle, more, data)
                with pytest.raises(OSError, match="Input/output error"):
                    await engine.file_system.fsync(handle)
            forget_pages(path)
            with pytest.raises(LocalDamage, match="has lost"):
                await engine.file_system.read(handle, more, LENGTH)
            with pytest.raises(OSError, match=f"inode {number} has lost some of {LENGTH} bytes from {more} on"):
                await engine.file_system.fsync(handle)
            assert await engine.file_system.read(handle, offset, LENGTH) == data


async def test_a_page_of_which_the_kernel_has_dropped_a_part_takes_nothing_else(
    tmp_path: Path, disk: RefusingDisk
) -> None:
    """The rest of it would be zeros, which look like data from then on."""
    data = random.Random(1).randbytes(LENGTH)
    async with opened(tmp_path, MemoryBackend(), upload_delay_s=1e9) as engine:
        number, handle, offset = await made(engine, "overlay", data)
        await refused(engine, handle, disk)
        page = offset + 102_400 - offset % PAGESIZE
        drop(engine, number, page, page + PAGESIZE)
        for begin, end in (page - 10, page + 10), (page + 10, page + 20), (page + 10, page + PAGESIZE + 10):
            with pytest.raises(LocalDamage, match="in the same page"):
                await engine.file_system.write(handle, begin, bytes(end - begin))
        await engine.file_system.write(handle, page - 10, bytes(10))
        with pytest.raises(OSError, match=f"inode {number} has lost"):
            await engine.file_system.fsync(handle)
        await engine.file_system.write(handle, page, bytes(PAGESIZE))
        await engine.file_system.fsync(handle)


async def test_a_tail_does_not_grow_in_a_page_that_the_kernel_has_dropped(tmp_path: Path, disk: RefusingDisk) -> None:
    data = random.Random(1).randbytes(LENGTH)
    async with opened(tmp_path, MemoryBackend(), upload_delay_s=1e9) as engine:
        number, handle, _ = await made(engine, "tail", data)
        await refused(engine, handle, disk)
        page = LENGTH - LENGTH % PAGESIZE
        drop(engine, number, page, page + PAGESIZE)
        with pytest.raises(LocalDamage, match="in the same page"):
            await engine.file_system.write(handle, LENGTH, b"more")
        with pytest.raises(OSError, match=f"inode {number} has lost"):
            await engine.file_system.fsync(handle)
        engine.file_system.setattr(number, size=page)
        await engine.file_system.write(handle, page, b"more")
        await engine.file_system.fsync(handle)
        assert await engine.file_system.read(handle, 0, LENGTH) == data[:page] + b"more"
        assert not lost(disk, tmp_path)


async def test_a_tail_in_doubt_is_verified_once_it_is_a_block(tmp_path: Path, disk: RefusingDisk) -> None:
    async with opened(tmp_path, MemoryBackend(), upload_delay_s=1e9) as engine:
        number, handle, _ = await made(engine, "tail", random.Random(1).randbytes(LENGTH))
        await refused(engine, handle, disk)
        engine.store.dirty.promised.clear()  # otherwise it is made anew before it moves
        drop(engine, number, 0, PAGESIZE)
        engine.tails.seal(engine.meta.inodes.need(number))
        with pytest.raises(LocalDamage, match="damaged"):
            await engine.file_system.read(handle, 0, LENGTH)


async def test_what_is_dropped_while_it_is_copied_is_no_copy(
    tmp_path: Path, disk: RefusingDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path, MemoryBackend(), upload_delay_s=1e9) as engine:
        number, handle, offset = await made(engine, "overlay", random.Random(1).randbytes(LENGTH))
        await refused(engine, handle, disk)
        fill, begin = renewal_module._Copy.fill, offset - offset % PAGESIZE

        def late(copy: renewal_module._Copy) -> None:
            punch(copy.path, begin, begin + PAGESIZE)
            fill(copy)

        monkeypatch.setattr(renewal_module._Copy, "fill", late)
        with pytest.raises(OSError, match=f"inode {number} has lost"):
            await engine.file_system.fsync(handle)
        assert lost(disk, tmp_path)


@pytest.mark.parametrize("first", [True, False])
async def test_a_block_that_was_good_is_not_read_as_zeros_once_the_kernel_has_dropped_it(
    tmp_path: Path, disk: RefusingDisk, first: bool
) -> None:
    """Before the refusal is known, or after."""
    data = random.Random(1).randbytes(LENGTH)
    async with opened(tmp_path, MemoryBackend(), upload_delay_s=1e9) as engine:
        _, handle, _ = await made(engine, "cache", data)
        (block,) = cache_files(tmp_path)
        if first:
            punch(block, 0, PAGESIZE)
        await refused(engine, handle, disk)
        if not first:
            assert await engine.file_system.read(handle, 0, LENGTH) == data
            punch(block, 0, PAGESIZE)
            with pytest.raises(OSError, match="has lost what the disk did not take"):
                await engine.file_system.fsync(handle)
        with pytest.raises(LocalDamage, match="damaged"):
            await engine.file_system.read(handle, 0, LENGTH)


async def test_a_checkpoint_ends_the_doubt(tmp_path: Path, disk: RefusingDisk) -> None:
    async with opened(tmp_path, MemoryBackend(), upload_delay_s=1e9) as engine:
        await made(engine, "cache", random.Random(1).randbytes(LENGTH))
        number, handle = create(engine, b"another")
        await engine.file_system.write(handle, 0, random.Random(2).randbytes(LENGTH))
        await refused(engine, handle, disk)
        await engine.file_system.write(handle, LENGTH, b"more")
        note = tmp_path / "doubted"
        assert note.exists()
        await engine.checkpoint()
        assert not lost(disk, tmp_path)
        assert not note.exists()
        assert not engine.store.renewal.failures and not engine.meta.database.is_doubted
        path = engine.store.dirty.path(engine.meta.inodes.need(number).tail)
        inode_below = path.stat().st_ino
        await engine.file_system.fsync(handle)
        assert path.stat().st_ino == inode_below


async def test_what_has_no_room_to_be_made_anew_stays_in_doubt(
    tmp_path: Path, disk: RefusingDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renewal_module, "RESERVE_S", 0.01)
    async with opened(tmp_path, MemoryBackend(), upload_delay_s=1e9) as engine:
        _, handle, _ = await made(engine, "overlay", random.Random(1).randbytes(LENGTH))
        await refused(engine, handle, disk)
        engine.store.budget.on_pressure = lambda: None  # nothing is sealed instead
        with engine.store.budget.hold(engine.settings.budget_bytes), pytest.raises(OSError, match="budget"):
            await engine.file_system.fsync(handle)
        await engine.file_system.fsync(handle)
        assert not lost(disk, tmp_path)


async def test_what_moves_while_it_waits_for_room_is_made_anew_where_it_is_then(
    tmp_path: Path, disk: RefusingDisk
) -> None:
    async with opened(tmp_path, MemoryBackend(), upload_delay_s=1e9) as engine, trio.open_nursery() as nursery:
        number, handle, _ = await made(engine, "tail", random.Random(1).randbytes(LENGTH))
        await refused(engine, handle, disk)
        engine.store.dirty.promised.clear()
        engine.store.budget.on_pressure = lambda: None
        with engine.store.budget.hold(engine.settings.budget_bytes):
            nursery.start_soon(engine.file_system.fsync, handle)
            with trio.fail_after(10):
                while not engine.store.budget.waiting:
                    await trio.lowlevel.checkpoint()
            engine.tails.seal(engine.meta.inodes.need(number))
        engine.store.budget.changed()
        nursery.start_soon(engine.file_system.fsync, handle)
    assert not lost(disk, tmp_path)


async def test_a_checkpoint_does_not_wait_for_who_waits_for_room(tmp_path: Path, disk: RefusingDisk) -> None:
    """It is what gives room."""
    async with opened(tmp_path, MemoryBackend(), upload_delay_s=1e9) as engine, trio.open_nursery() as nursery:
        _, handle, _ = await made(engine, "overlay", random.Random(1).randbytes(LENGTH))
        await refused(engine, handle, disk)
        engine.store.budget.on_pressure = lambda: None
        with engine.store.budget.hold(engine.settings.budget_bytes):
            nursery.start_soon(engine.file_system.fsync, handle)
            with trio.fail_after(10):
                while not engine.store.budget.waiting:
                    await trio.lowlevel.checkpoint()
                await engine.checkpoint()
            assert engine.store.budget.waiting
        engine.store.budget.changed()
    assert not lost(disk, tmp_path)


async def test_an_fsync_costs_what_it_must_while_nothing_is_refused(tmp_path: Path, disk: RefusingDisk) -> None:
    """The file and the journal, once each; of a folder the names once, where one is new."""

    async def cost(handle: int) -> tuple[int, list[str]]:
        disk.synced.clear()
        disk.folders.clear()
        await engine.file_system.fsync(handle)
        return len(disk.synced), disk.folders.copy()

    async with opened(tmp_path, MemoryBackend(), upload_delay_s=1e9) as engine:
        for form in ("tail", "overlay"):
            _, handle, offset = await made(engine, form, random.Random(1).randbytes(LENGTH))
            assert sorted((await cost(handle))[1]) in (["dirty"], ["dirty", "journal"])
            for count in range(5):
                await engine.file_system.write(handle, offset + (LENGTH + count if form == "tail" else count), b"x")
                assert await cost(handle) == (2, [])
            engine.file_system.unlink(ROOT_INODE, b"f")
        for count in range(5):
            _, handle = create(engine, b"small%d" % count)
            await engine.file_system.write(handle, 0, b"content")
            assert await cost(handle) == (1, [])
            await engine.file_system.write(handle, 2, b"changed")
            assert await cost(handle) == (1, [])


async def waiting(lock: trio.Lock, tasks: int) -> None:
    with trio.fail_after(10):
        while lock.statistics().tasks_waiting != tasks:
            await trio.lowlevel.checkpoint()


async def test_who_goes_on_waiting_when_another_gives_up_means_the_new_file_too(
    tmp_path: Path, disk: RefusingDisk
) -> None:
    """Between the two the flush is neither the next nor under way."""
    async with opened(tmp_path, MemoryBackend(), upload_delay_s=1e9) as engine, trio.open_nursery() as nursery:
        number, handle, _ = await made(engine, "tail", random.Random(1).randbytes(LENGTH))
        await refused(engine, handle, disk)
        renewal, durability = engine.store.renewal, engine.durability
        path = engine.store.dirty.path(engine.meta.inodes.need(number).tail)
        with engine.store.dirty.watched(path) as written, renewal._copying(path) as copy:
            copy.fill()
            await engine.file_system.write(handle, LENGTH, b"more")

            async def impatient() -> None:
                with trio.CancelScope() as scope:
                    scopes.append(scope)
                    await engine.file_system.fsync(handle)
                renewal._place(copy, written)
                disk.synced.clear()

            scopes: list[trio.CancelScope] = []
            async with renewal._turn:
                async with durability._turn:
                    nursery.start_soon(impatient)
                    await waiting(durability._turn, 1)
                    nursery.start_soon(engine.file_system.fsync, handle)
                    await waiting(durability._turn, 2)
                await waiting(renewal._turn, 1)
                scopes[0].cancel()
                with trio.fail_after(10):
                    while renewal.is_in_doubt(path):
                        await trio.lowlevel.checkpoint()
        with trio.fail_after(10):
            while path.stat().st_ino not in disk.synced:
                await trio.lowlevel.checkpoint()
    assert not lost(disk, tmp_path)


async def test_what_cannot_be_made_anew_is_told_of_once(
    tmp_path: Path, disk: RefusingDisk, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(tmp_path, MemoryBackend(), upload_delay_s=1e9) as engine:
        _, block, whole = await dropped(engine, tmp_path, disk)
        for _ in range(3):
            await engine.checkpoint()
        assert caplog.text.count("may lack what the disk did not take") == 1
        assert engine.store.renewal.failures
        block.write_bytes(whole)
        await engine.checkpoint()
        assert not engine.store.renewal.failures
        assert not lost(disk, tmp_path)
