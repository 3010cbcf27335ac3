"""How pyfuse3 waits, without FUSE: the lock, and the first exchange with the kernel."""

import os
import socket
import struct

import pytest
import trio
import trio.testing

from syncer.fs.device import Handshake, Turn, Waiter

KILLPRIV_V2 = 1 << 28
ASYNC_READ = 1


def init_request(flags: int) -> bytes:
    body = struct.pack("<IIII", 7, 38, 131072, flags)
    return struct.pack("<IIQQIIIHH", 40 + len(body), 26, 2, 0, 0, 0, 0, 0, 0) + body


def init_reply(flags: int) -> bytes:
    body = struct.pack("<IIII", 7, 38, 131072, flags) + bytes(48)
    return struct.pack("<IiQ", 16 + len(body), 0, 2) + body


def flags_of(reply: bytes) -> int:
    flags: int = struct.unpack_from("<IIII", reply, 16)[3]
    return flags


@pytest.mark.parametrize(("offered", "expected"), [(KILLPRIV_V2, ASYNC_READ | KILLPRIV_V2), (0, ASYNC_READ)])
async def test_the_answer_to_init_promises_what_the_kernel_has_offered(offered: int, expected: int) -> None:
    kernel, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with kernel, device:
        waiter = Waiter()
        kernel.send(init_request(offered | ASYNC_READ))
        await waiter.wait_readable(device.fileno())
        assert os.read(device.fileno(), 1 << 20) == init_request(offered | ASYNC_READ)
        os.write(device.fileno(), init_reply(ASYNC_READ))
        kernel.send(b"the next request")
        await waiter.wait_readable(device.fileno())
        answer = kernel.recv(1 << 20)
        assert flags_of(answer) == expected
        assert len(answer) == len(init_reply(0))
        assert os.read(device.fileno(), 1 << 20) == b"the next request"


async def test_an_unmount_before_the_handshake_is_left_to_pyfuse3() -> None:
    device = os.open("/proc/self/mem", os.O_RDONLY)  # reading at 0 fails, as the device of a mount that is gone does

    async def readable(descriptor: int) -> None:
        await trio.lowlevel.checkpoint()

    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(trio.lowlevel, "wait_readable", readable)
            await Waiter().wait_readable(device)
        with pytest.raises(OSError, match="Input/output"):
            os.read(device, 100)
    finally:
        os.close(device)


async def test_an_unmount_during_the_handshake_is_left_to_the_next_request() -> None:
    kernel, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with device:
        kernel.send(init_request(KILLPRIV_V2))
        handshake = Handshake(device.fileno())
        os.read(device.fileno(), 1 << 20)
        os.write(device.fileno(), init_reply(0))
        kernel.close()
        handshake.finish()
        assert os.read(device.fileno(), 1 << 20) == b""


async def test_no_two_tasks_wait_at_once_and_none_is_forgotten(autojump_clock: trio.testing.MockClock) -> None:
    turn = Turn(lambda: None)
    waiting = 0
    done = []

    async def task(name: int) -> None:
        nonlocal waiting
        for index in range(20):
            async with turn:
                waiting += 1
                assert waiting == 1
                if (name + index) % 3:
                    await trio.sleep(0.01 * (name + index % 5))
                waiting -= 1
            await trio.sleep(0.02 * (index % 4) + 0.001)
        done.append(name)

    with trio.fail_after(1000):
        async with trio.open_nursery() as nursery:
            for name in range(5):
                nursery.start_soon(task, name)
    assert sorted(done) == [0, 1, 2, 3, 4]


async def test_who_finds_the_lock_free_takes_it_without_the_scheduler() -> None:
    steps: list[str] = []
    turn = Turn(lambda: steps.append("answered"))

    async def other() -> None:
        async with turn:
            steps.append("other")

    async with trio.open_nursery() as nursery:
        async with turn:
            nursery.start_soon(other)
            await trio.testing.wait_all_tasks_blocked()
        async with turn:
            steps.append("again")
    assert steps == ["answered", "answered", "answered", "again", "other"]


async def test_a_task_that_is_cancelled_while_it_waits_takes_nothing_along() -> None:
    turn = Turn(lambda: None)
    async with turn:
        with trio.move_on_after(0.01) as scope:
            async with turn:
                raise AssertionError("two have it")
        assert scope.cancelled_caught
    async with turn:
        pass
