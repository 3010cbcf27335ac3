"""The porter: a process of low priority that makes packs and puts them, as the file system's process tells it to.

    python -m syncer.blocks.portermain        with one end of a pair of sockets as its standard input

It decides nothing and records nothing: what it is asked for is verified by whoever asked. It ends when the other end
closes, and when its parent dies.
"""

import contextlib
import ctypes
import logging
import os
import signal
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import trio

from syncer.backends.base import Backend
from syncer.backends.open import open_backend
from syncer.blocks.pack import Pack, pack_key, tail_bytes
from syncer.blocks.packer import Parcel, make_pack
from syncer.blocks.portermessages import (
    ORDER_MAX_BYTES,
    Alive,
    Answer,
    Cancel,
    Done,
    Failed,
    Line,
    Made,
    Make,
    Open,
    Order,
    Put,
    Said,
)
from syncer.disk import tune_allocator
from syncer.errors import BackendError, ObjectMissing, RemoteUnreachable, SyncerError
from syncer.values import BlockId

log = logging.getLogger("syncer.blocks.portermain")

ALIVE_S = 1.0
SESSION_NICE = 10
"""A tenth of what a session of others has, when all want processors: what was written must not wait for long either."""
TEXT_MAX = 4000
"""A record for the log is cut off after so many characters."""
_PR_SET_PDEATHSIG = 1


class Porter:
    """Serves one parent. Orders are carried out at the same time, each by a task."""

    def __init__(self, line: Line, order: Open, backend: Backend) -> None:
        self._line = line
        self._order = order
        self._backend = backend
        self._cache = Path(order.cache)
        self._proven = False
        self._packs: dict[int, Pack] = {}
        self._scopes: dict[int, trio.CancelScope] = {}
        self.outbox, self._answers = trio.open_memory_channel[Answer](float("inf"))
        """Answers on their way. The parent has a handful of orders open at a time, and each has one."""

    async def serve(self) -> None:
        """Return when the parent has closed its end."""
        decoder = msgspec.msgpack.Decoder(Order)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send)
            nursery.start_soon(self._tell)
            while (order := await self._line.receive(decoder, ORDER_MAX_BYTES)) is not None:
                match order:
                    case Make():
                        nursery.start_soon(self._carry_out, order.number, lambda order=order: self._make(order))
                    case Put():
                        nursery.start_soon(self._carry_out, order.number, lambda order=order: self._put(order))
                    case Cancel():
                        self._packs.pop(order.number, None)
                        if order.number in self._scopes:
                            self._scopes[order.number].cancel()
            nursery.cancel_scope.cancel()

    async def _send(self) -> None:
        async for answer in self._answers:
            await self._line.send(answer)

    async def _tell(self) -> None:
        while True:
            self.outbox.send_nowait(Alive())
            await trio.sleep(ALIVE_S)

    async def _carry_out(self, number: int, work: Callable[[], Awaitable[Answer]]) -> None:
        with trio.CancelScope() as scope:
            self._scopes[number] = scope
            try:
                answer = await work()
            except BackendError as error:
                answer = Failed(number, type(error).__name__, str(error), error.hint)
            except (OSError, SyncerError) as error:
                answer = Failed(number, "", str(error), "")
            finally:
                del self._scopes[number]
            self.outbox.send_nowait(answer)

    async def _make(self, order: Make) -> Answer:
        parcels = [Parcel(BlockId(block_id), size, data) for block_id, size, data in order.blocks]
        pack, unreadable = await trio.to_thread.run_sync(make_pack, self._cache, parcels, self._order.level)
        await trio.lowlevel.checkpoint_if_cancelled()  # nobody would drop it
        if pack is None:
            return Failed(order.number, "", f"none of {len(unreadable)} blocks can be read", "")
        log.debug("a pack of %d blocks, %d bytes", len(pack.entries), len(pack.data))
        self._packs[order.number] = pack
        tail = bytes(pack.data[-tail_bytes(pack.data) :])
        return Made(order.number, pack.id, len(pack.data), tail, unreadable)

    async def _put(self, order: Put) -> Answer:
        pack = self._packs[order.pack]
        if not self._proven:
            await self._prove()
        await self._backend.put(pack_key(pack.id), pack.data)
        return Done(order.number)

    async def _prove(self) -> None:
        """Look whether this is the remote that is meant. A disk that is not plugged in leaves an empty folder.

        Raises: RemoteUnreachable: it is not.
        """
        try:
            proof = await self._backend.get(self._order.proof_key)
        except ObjectMissing:
            proof = b""
        if proof != self._order.proof:
            raise RemoteUnreachable(f"the repository at {self._backend.name} is gone, or another one")
        self._proven = True


class _ToParent(logging.Handler):
    """Sends records of any thread to the parent's log."""

    def __init__(self, porter: Porter) -> None:
        super().__init__()
        self._porter = porter
        self._token = trio.lowlevel.current_trio_token()

    def emit(self, record: logging.LogRecord) -> None:
        said = Said(record.levelno, record.name, self.format(record)[:TEXT_MAX])
        self._token.run_sync_soon(self._porter.outbox.send_nowait, said)


async def _main(end: socket.socket) -> None:
    line = Line(trio.SocketStream(trio.socket.from_stdlib_socket(end)))
    order = await line.receive(msgspec.msgpack.Decoder(Open), ORDER_MAX_BYTES)
    if order is None:
        return
    password_file = None if order.password_file is None else Path(order.password_file)
    async with open_backend(order.url, password_file=password_file) as backend:
        porter = Porter(line, order, backend)
        logging.getLogger().addHandler(_ToParent(porter))
        logging.getLogger("syncer").setLevel(order.log_level)
        take_low_priority()  # with everything loaded: a start that takes long is of no use to anybody
        await porter.serve()


def take_low_priority() -> None:
    """Have what others leave of the processors (SCHED_IDLE of sched(7)), and of the disk (ioprio_set(2) follows it).

    Where the kernel shares processors out by session first (autogroup, sched(7)), that counts within ours alone, in
    which nobody else is: the whole session steps back as well.
    """
    with contextlib.suppress(OSError):  # where that is forbidden it is a process of its own all the same
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    with contextlib.suppress(OSError):  # a kernel without
        Path("/proc/self/autogroup").write_text(str(SESSION_NICE))


def main() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # had it died before, the line would be closed
    tune_allocator()
    trio.run(_main, socket.socket(fileno=os.dup(0)))


if __name__ == "__main__":
    main()
