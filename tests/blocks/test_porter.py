"""The process that makes packs and puts them: it comes, it goes, and whatever becomes of it costs no byte."""

import contextlib
import errno
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil
import pytest
import trio

from syncer.backends.folder import FolderBackend
from syncer.backends.retry import RetryingBackend
from syncer.blocks import packer
from syncer.blocks import porter as porters
from syncer.blocks.codec import block_id
from syncer.blocks.packer import Parcel
from syncer.blocks.porter import Porter, PorterSettings
from syncer.engine import Engine
from syncer.errors import LocalDamage, PorterLost, RemoteRefused, RemoteUnreachable
from syncer.meta.blocktable import block_file
from syncer.snapshots.records import FORMAT_KEY
from syncer.values import ROOT_INODE
from tests.support.child import Child
from tests.support.opened import create, evict_all, flush, opened

pytestmark = pytest.mark.slow

WITHIN_S = 20.0
MEBIBYTE = 1 << 20
LARGE = os.urandom(48 * MEBIBYTE)


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with much else to do gives the porter little: here that is no reason to do without it."""
    for name in ("START_S", "MAKE_S", "SILENCE_S"):
        monkeypatch.setattr(porters, name, WITHIN_S)


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(WITHIN_S):
        while not condition():
            await trio.sleep(0.01)


def running() -> list[psutil.Process]:
    """The porters of this process, and those that it has not taken note of the end of."""
    return [child for child in psutil.Process().children() if is_porter(child)]


def is_porter(process: psutil.Process) -> bool:
    try:
        return "syncer.blocks.portermain" in process.cmdline()
    except psutil.ZombieProcess:
        return True
    except psutil.NoSuchProcess:
        return False


def settings(remote: Path) -> PorterSettings:
    return PorterSettings(url=str(remote), password_file=None, proof_key=FORMAT_KEY, level=1)


@contextlib.asynccontextmanager
async def ready(tmp_path: Path) -> AsyncIterator[Porter]:
    """A porter that runs, for a remote folder and a cache that have nothing in them."""
    remote, cache = tmp_path / "remote", tmp_path / "cache"
    cache.mkdir()
    backend = RetryingBackend(FolderBackend(remote), total_s=8.0)
    await backend.put(FORMAT_KEY, b"the one")
    porter = Porter(cache, backend, settings(remote))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(porter.run)
        assert await porter.come()
        yield porter
        nursery.cancel_scope.cancel()
    assert not running()


@contextlib.asynccontextmanager
async def with_porter(tmp_path: Path, cache: str = "cache") -> AsyncIterator[Engine]:
    """An engine whose porter is there, for a remote folder. *cache*: where in DATA the porter looks for blocks."""
    remote, data = tmp_path / "remote", tmp_path / "data"
    backend = RetryingBackend(FolderBackend(remote), total_s=20.0)
    porter = Porter(data / cache, backend, settings(remote))
    async with opened(data, backend, porter=porter, budget_bytes=200_000_000) as engine:
        assert await porter.come()
        yield engine


def parcel(data: bytes, cache: Path | None = None) -> Parcel:
    """A block that is given along, or is a file of the cache."""
    if cache is None:
        return Parcel(block_id(data), len(data), data)
    path = block_file(cache, block_id(data))
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return Parcel(block_id(data), len(data), None)


async def test_files_and_bytes_become_a_pack_on_the_remote(tmp_path: Path) -> None:
    async with ready(tmp_path) as porter:
        small, large = b"small" * 1000, os.urandom(MEBIBYTE)
        pack, unreadable = await porter.make([parcel(small), parcel(large, tmp_path / "cache")])
        assert pack is not None and not unreadable
        await pack.put()
        text = pack.id.hex()
        stored = tmp_path / "remote" / "packs" / text[:2] / text
        assert block_id(stored.read_bytes()) == bytes(pack.id) and stored.stat().st_size == pack.size_bytes
        assert [(entry[0], entry[3]) for entry in pack.locations] == [
            (block_id(small), len(small)),
            (block_id(large), len(large)),
        ]
        pack.drop()


async def test_it_has_nothing_of_ours_open_and_little_priority(tmp_path: Path) -> None:
    ours = os.memfd_create("ours", 0)
    assert os.get_inheritable(ours)
    async with ready(tmp_path):
        (process,) = running()
        folder = Path(f"/proc/{process.pid}/fd")
        kinds = {os.readlink(path).partition(":")[0] for path in folder.iterdir()}
        assert kinds <= {"socket", "/dev/null", "anon_inode"}
        assert os.sched_getscheduler(process.pid) == os.SCHED_IDLE
    os.close(ours)


async def test_it_ends_when_it_is_idle_and_comes_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with ready(tmp_path) as porter:
        monkeypatch.setattr(porters, "IDLE_S", 0.0)
        await until(lambda: not porter.is_ready and not running())
        assert await porter.come() and running()


async def test_a_block_that_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    gone, bad = Parcel(block_id(b"gone"), 4, None), Parcel(block_id(b"good"), 4, b"evil")
    async with ready(tmp_path) as porter:
        pack, unreadable = await porter.make([gone, parcel(b"here"), bad])
        assert pack is not None and unreadable == [0, 2]
        assert [entry[0] for entry in pack.locations] == [block_id(b"here")]
        with pytest.raises(PorterLost, match="none of 2 blocks"):
            await porter.make([gone, bad])


async def test_what_is_deleted_before_its_turn_has_no_pack_made_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with with_porter(tmp_path) as engine:
        (number, doomed), (_, kept) = (create(engine, name) for name in (b"doomed", b"kept"))
        await engine.file_system.write(doomed, 0, os.urandom(MEBIBYTE))
        await engine.file_system.write(kept, 0, LARGE[: 6 * MEBIBYTE])
        await engine.sealer.seal_everything()
        files = engine.meta.blocks.pending_files()
        (process,) = running()
        process.send_signal(signal.SIGSTOP)
        monkeypatch.setattr(packer, "make_pack", None)  # of this process: calling it fails
        engine.uploader.drain += 1
        engine.uploader.wake()
        await until(lambda: engine.uploader.is_sending)
        engine.file_system.unlink(ROOT_INODE, b"doomed")
        engine.file_system.release(doomed)
        engine.file_system.forget([(number, 1)])
        engine.meta.commit()
        await engine.durability.sync()
        assert any(not block_file(tmp_path / "data" / "cache", block.id).exists() for block in files)
        process.send_signal(signal.SIGCONT)
        await until(lambda: not engine.uploader.is_sending)
        assert engine.meta.blocks.pending_totals()[1] == 0
        evict_all(engine)
        assert await engine.file_system.read(kept, 0, MEBIBYTE) == LARGE[:MEBIBYTE]


async def test_what_the_porter_cannot_read_is_judged_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The rest of the batch has left by then, and what is found sound here leaves too."""
    async with with_porter(tmp_path, cache="elsewhere") as engine:
        handles = [create(engine, name)[1] for name in (b"bad", b"good")]
        for at, handle in enumerate(handles):
            await engine.file_system.write(handle, 0, LARGE[at * 3 * MEBIBYTE : (at + 1) * 3 * MEBIBYTE])
        _, small = create(engine, b"small")
        await engine.file_system.write(small, 0, b"a row")
        await engine.sealer.seal_everything()
        (first, *_) = engine.meta.blocks.pending_files()
        block_file(tmp_path / "data" / "cache", first.id).write_bytes(b"damage")
        await engine.durability.sync()
        with pytest.raises(LocalDamage):
            await flush(engine)
        assert engine.meta.damage.numbers() == {first.number}
        assert "is damaged here" in caplog.text
        caplog.clear()
        evict_all(engine)
        assert await engine.file_system.read(handles[1], 0, MEBIBYTE) == LARGE[3 * MEBIBYTE : 4 * MEBIBYTE]
        assert await engine.file_system.read(small, 0, 10) == b"a row"


async def test_what_the_remote_says_comes_back_as_it_is(tmp_path: Path) -> None:
    async with ready(tmp_path) as porter:
        (tmp_path / "remote" / "packs").write_bytes(b"in the way")
        pack, _ = await porter.make([parcel(b"data")])
        assert pack is not None
        with pytest.raises(RemoteRefused) as caught:
            await pack.put()
        assert caught.value.hint == "check the folder's owner and permissions"


async def test_another_remote_in_the_place_is_left_alone(tmp_path: Path) -> None:
    """A disk was unplugged: what is below its mountpoint is another folder."""
    async with ready(tmp_path) as porter:
        pack, _ = await porter.make([parcel(b"data")])
        assert pack is not None
        (tmp_path / "remote").rename(tmp_path / "unplugged")
        (tmp_path / "remote").mkdir()
        with pytest.raises(RemoteUnreachable):
            await pack.put()
        assert not list((tmp_path / "remote").iterdir())


@pytest.mark.parametrize("trouble", [signal.SIGKILL, signal.SIGSTOP])
async def test_its_death_or_silence_costs_one_attempt(
    tmp_path: Path, trouble: signal.Signals, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "syncer")
    monkeypatch.setattr(porters, "SILENCE_S", 3.0)
    async with ready(tmp_path) as porter:
        pack, _ = await porter.make([parcel(b"data")])
        assert pack is not None
        running()[0].send_signal(trouble)
        with trio.fail_after(WITHIN_S), pytest.raises(PorterLost):
            await pack.put()
        with pytest.raises(PorterLost):
            await porter.make([parcel(b"data")])
        pack.drop()
        await until(lambda: not running() and "packs are made without it for a while" in caplog.text)


LIAR = """
import os, socket, struct, sys, time
import msgspec
from syncer.blocks.portermessages import Alive, Made, Make, Order, Done, Open
from syncer.blocks.pack import PackBuilder, tail_bytes
from syncer.blocks.codec import seal, block_id
line = socket.socket(fileno=0)
def say(message, data=None):
    data = msgspec.msgpack.encode(message) if data is None else data
    line.sendall(struct.pack("<I", len(data)) + data)
def heard():
    (length,) = struct.unpack("<I", line.recv(4, socket.MSG_WAITALL))
    return line.recv(length, socket.MSG_WAITALL)
heard()
say(Alive())
make = msgspec.msgpack.decode(heard(), type=Order)
builder = PackBuilder()
for _, size, data in make.blocks:
    builder.add(block_id(b"another"), seal(b"another"), 7)
other = builder.finish()
tail = bytes(other.data[-tail_bytes(other.data):])
lie = sys.argv[1]
if lie == "noise":
    line.sendall(os.urandom(100_000))
elif lie == "long":
    line.sendall(struct.pack("<I", 1 << 31))
elif lie == "undecodable":
    say(None, b"\\xc1" * 100)
elif lie == "no pack":
    say(Made(make.number, other.id, len(other.data), b"x" * 50, []))
elif lie == "another pack":
    say(Made(make.number, other.id, len(other.data), tail, []))
elif lie == "another length":
    say(Made(make.number, other.id, len(other.data) + 1, tail, []))
elif lie == "blocks nobody asked for":
    say(Made(make.number, other.id, len(other.data), tail, [0, 1]))
elif lie == "block left out twice":
    say(Made(make.number, other.id, len(other.data), tail, [0, 0]))
elif lie == "another answer":
    say(Done(make.number))
elif lie == "half":
    line.sendall(struct.pack("<I", 1000) + b"half of it")
    sys.exit(0)
time.sleep(60)
"""
LIES = (
    "noise",
    "long",
    "undecodable",
    "no pack",
    "another pack",
    "another length",
    "blocks nobody asked for",
    "block left out twice",
    "another answer",
    "half",
)


@pytest.mark.parametrize("lie", LIES)
async def test_nonsense_is_not_believed(tmp_path: Path, lie: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(porters, "COMMAND", (sys.executable, "-c", LIAR, lie))
    monkeypatch.setattr(porters, "SILENCE_S", 3.0)
    monkeypatch.setattr(porters, "END_S", 0.1)
    async with ready(tmp_path) as porter:
        with trio.fail_after(WITHIN_S), pytest.raises(PorterLost):
            await porter.make([parcel(b"data")])


async def test_much_goes_through_it_and_is_all_there(tmp_path: Path) -> None:
    async with with_porter(tmp_path) as engine:
        numbers = [create(engine, b"file%d" % at) for at in range(2)]
        await engine.file_system.write(numbers[0][1], 0, LARGE)
        kept = running()[0]
        await flush(engine)
        written = kept.io_counters().write_bytes
        assert written > len(LARGE) // 3, "the porter has put little of it"
        evict_all(engine)
        await read_back(engine, numbers[0][1])


@pytest.mark.parametrize("trouble", [signal.SIGKILL, signal.SIGSTOP])
async def test_its_death_in_the_middle_costs_no_byte(
    tmp_path: Path, trouble: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(porters, "SILENCE_S", 3.0)
    async with with_porter(tmp_path) as engine:
        _, handle = create(engine, b"file")
        await engine.file_system.write(handle, 0, LARGE)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(flush, engine)
            await until(lambda: engine.uploader.stored_bytes > 24 * MEBIBYTE)
            running()[0].send_signal(trouble)
        evict_all(engine)
        await read_back(engine, handle)


async def read_back(engine: Engine, handle: int) -> None:
    for start in range(0, len(LARGE), MEBIBYTE):
        assert await engine.file_system.read(handle, start, MEBIBYTE) == LARGE[start : start + MEBIBYTE]


PARENT = """
import sys, trio
from pathlib import Path
from syncer.backends.folder import FolderBackend
from syncer.backends.retry import RetryingBackend
from tests.blocks.test_porter import settings, until
from syncer.blocks.porter import Porter
async def main():
    remote = Path(sys.argv[1])
    backend = RetryingBackend(FolderBackend(remote))
    await backend.put("format", b"the one")
    porter = Porter(remote, backend, settings(remote))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(porter.run)
        await porter.come()
        print("ready")
        await trio.sleep_forever()
trio.run(main)
"""


@pytest.mark.parametrize("stopped", [False, True])
def test_it_does_not_outlive_its_parent(tmp_path: Path, stopped: bool) -> None:
    with Child(PARENT, tmp_path) as parent:
        assert parent.says() == "ready"
        (process,) = psutil.Process(parent.process.pid).children()
        if stopped:
            process.suspend()
        parent.process.kill()
        parent.process.wait()
        psutil.wait_procs([process], timeout=WITHIN_S)
        assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


async def test_no_stopped_porter_is_left_where_no_descriptor_is_to_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EMFILE, "too many open files")

    with monkeypatch.context() as patch:
        async with ready(tmp_path):
            (process,) = running()
            process.send_signal(signal.SIGSTOP)
            for name in ("pidfd_open", "dup", "open"):
                patch.setattr(os, name, refuse)
        patch.undo()


async def test_its_log_is_ours(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "syncer")
    async with ready(tmp_path) as porter:
        await porter.make([parcel(b"data")])
        await until(lambda: "a pack of 1 blocks" in caplog.text)
