"""How pyfuse3 waits for the FUSE device, and what is agreed with the kernel when a mount begins.

pyfuse3 finds trio through its module's global name, so a namespace that forwards to trio with its own
`lowlevel.wait_readable` and `Lock` can stand in for it. All here runs on the event loop's thread, in pyfuse3's tasks.
"""

import contextlib
import functools
import logging
import os
import select
import socket
import struct
import time
import types
from collections.abc import Callable
from typing import Any

import pyfuse3
import trio

from syncer.fs.interrupts import Interrupts

log = logging.getLogger(__name__)

POLLS = 64
"""After so many requests found by polling the loop runs its other tasks."""
SPIN_S = 100e-6
"""How long to look for the next request before sleeping, while requests come one upon the other."""
BURST_S = 300e-6
"""A request that came within this, a sleep and a wake-up included, is taken for part of a burst."""

_BUFFER_BYTES = 1 << 21
"""More than the largest request: the kernel refuses to be read with less."""
_INIT = 26
_ASYNC_DIO = 1 << 15
_HANDLE_KILLPRIV_V2 = 1 << 28
_REQUEST_HEADER = struct.Struct("<IIQQIIIHH")  # fuse_in_header: length, opcode, ...
_INIT_REQUEST = struct.Struct("<IIII")  # fuse_init_in: major, minor, max_readahead, flags
_REPLY_HEADER = struct.Struct("<IiQ")  # fuse_out_header: length, error, unique
_INIT_REPLY = struct.Struct("<IIII")  # fuse_init_out: the same beginning as fuse_init_in


class Turn:
    """The lock that pyfuse3's tasks hold while they wait; whoever finds it free takes it, without the scheduler.

    Not fair, on purpose: a task that has answered a request without waiting for anything takes the next one as well.
    The others are woken, and find the lock free as soon as that one does wait.
    """

    def __init__(self, answered: Callable[[], None]) -> None:
        """*answered* is called whenever a task comes for it, which has then answered a request."""
        self._answered = answered
        self._held = False
        self._queue = trio.lowlevel.ParkingLot()

    async def __aenter__(self) -> None:
        try:
            self._answered()
        except Exception:  # the mount must outlive it
            log.exception("what an answer left to be done failed")
        while self._held:
            await self._queue.park()
        self._held = True

    async def __aexit__(self, *_: object) -> None:
        self._held = False
        self._queue.unpark()


class Handshake:
    """The first exchange with the kernel (FUSE_INIT), with one more promise than libfuse gives in its answer, and one
    less.

    FUSE_HANDLE_KILLPRIV_V2 says that we see to set-id bits and file capabilities when a file is written, truncated or
    given away. Without it the kernel asks for the xattr `security.capability` before every single write(2): each of
    them two round trips. libfuse 3.14 does not know the flag, so its answer goes over a socket and is amended there.
    With FUSE_ASYNC_DIO a reader with O_DIRECT waits in a way that no signal ends, not even SIGKILL; without it the
    kernel tells us of the signal (interrupts.py).
    """

    def __init__(self, descriptor: int) -> None:
        """*descriptor* is pyfuse3's; the kernel's request can be read. Raises: OSError: unmounted already."""
        request = os.read(descriptor, _BUFFER_BYTES)
        self._descriptor = descriptor
        self._device = os.dup(descriptor)
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        opcode = _REQUEST_HEADER.unpack_from(request)[1]
        flags = _INIT_REQUEST.unpack_from(request, _REQUEST_HEADER.size)[3] if opcode == _INIT else 0
        self._offered = bool(flags & _HANDLE_KILLPRIV_V2)
        with theirs:
            os.dup2(theirs.fileno(), descriptor, inheritable=False)
        self._ours.send(request)

    def finish(self) -> None:
        """After libfuse has answered: pass its answer on, and give pyfuse3 the device again."""
        with self._ours:
            reply = bytearray(self._ours.recv(_BUFFER_BYTES))
        if len(reply) >= _REPLY_HEADER.size + _INIT_REPLY.size:
            major, minor, readahead, flags = _INIT_REPLY.unpack_from(reply, _REPLY_HEADER.size)
            flags = flags & ~_ASYNC_DIO | (_HANDLE_KILLPRIV_V2 if self._offered else 0)
            _INIT_REPLY.pack_into(reply, _REPLY_HEADER.size, major, minor, readahead, flags)
        with contextlib.suppress(OSError):  # unmounted already: pyfuse3 finds out with its next request
            os.write(self._device, reply)
        os.dup2(self._device, self._descriptor, inheritable=False)
        os.close(self._device)


class Waiter:
    """Waits for the device: looks first, for a moment longer while requests come fast, and then sleeps.

    Looking costs a system call; going through the scheduler costs twice as much as a small request. Sleeping costs a
    wake-up as well, which takes longer on a virtual machine than all the rest.
    """

    def __init__(self) -> None:
        self.interrupts = Interrupts()
        self._poller = select.poll()
        self._requests = 0
        self._bursting = False
        self._handshake: Handshake | None = None
        self._begun = False

    def is_quiet(self) -> bool:
        """Whether the kernel has no request for us."""
        return self._begun and not self._poller.poll(0)

    async def wait_readable(self, descriptor: int) -> None:
        self.interrupts.restore()
        if not self._begun and not await self._begin(descriptor):
            return
        await self._readable(descriptor)
        while self.interrupts.wanted and not self.interrupts.pass_on(descriptor):
            await self._readable(descriptor)

    async def _readable(self, descriptor: int) -> None:
        self._requests += 1
        poll = self._poller.poll
        if self._requests % POLLS:
            if poll(0):
                return
            if self._bursting:
                end = time.perf_counter() + SPIN_S
                while time.perf_counter() < end:
                    if poll(0):
                        return
        before = time.perf_counter()
        await trio.lowlevel.wait_readable(descriptor)
        self._bursting = time.perf_counter() - before < BURST_S

    async def _begin(self, descriptor: int) -> bool:
        """True once *descriptor* is the device, after the handshake."""
        if self._handshake is None:
            await trio.lowlevel.wait_readable(descriptor)
            with contextlib.suppress(OSError):
                self._handshake = Handshake(descriptor)
                return False
        else:
            self._handshake.finish()
        self._poller.register(descriptor, select.POLLIN)
        self._begun = True
        return True


def prepare(answered: Callable[[], None]) -> Waiter:
    """Have pyfuse3 wait as said above, and call *answered* after each request that is done.

    Before each `pyfuse3.init`. Returns what waits from then on.
    """
    waiter = Waiter()
    lowlevel = types.SimpleNamespace(**{name: getattr(trio.lowlevel, name) for name in dir(trio.lowlevel)})
    lowlevel.wait_readable = waiter.wait_readable
    names = {name: getattr(trio, name) for name in dir(trio) if not name.startswith("__")}
    stand_in: Any = types.SimpleNamespace(**names)
    stand_in.lowlevel = lowlevel
    stand_in.Lock = functools.partial(Turn, answered)
    pyfuse3.trio = stand_in  # type: ignore[attr-defined]
    return waiter


def raise_read_ahead(mountpoint: bytes, kilobytes: int = 1024) -> None:
    """Let the kernel read farther ahead than its 128 KiB, where we may (root)."""
    device = os.stat(mountpoint).st_dev
    path = f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb"
    try:
        with open(path, "w") as file:
            file.write(str(kilobytes))
    except OSError:
        return  # an ordinary user: the default stays
