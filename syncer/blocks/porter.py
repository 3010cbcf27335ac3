"""The file system's end of the porter, the process that makes and puts packs while much is to be uploaded.

Why a process: verifying, compressing and sending take the processors and the interpreter's lock, and in one process a
thread of low priority that holds the lock stops everybody. Why not always: it takes half a second of a processor to
start and some 60 MB, which a few packs are not worth.

The porter is trusted with nothing but bytes. What it says of a pack must fit what was asked for; the retries, the
deadlines and the look at what has been put are this process's. Whatever goes wrong with it is a PorterLost, and the
pack is then made here. Used by the uploader; everything runs on the event loop's thread.
"""

import contextlib
import logging
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import trio

from syncer.backends.confirmed import check_seen
from syncer.backends.retry import RetryingBackend
from syncer.blocks.pack import PackEntry, pack_key, read_list
from syncer.blocks.packer import MadePack, Packer, Parcel
from syncer.blocks.portermessages import (
    ANSWER_MAX_BYTES,
    Alive,
    Answer,
    Cancel,
    Done,
    Failed,
    Line,
    Made,
    Make,
    Message,
    Open,
    Put,
    Said,
)
from syncer.errors import BackendError, ObjectCorrupt, PorterLost, PorterSlow
from syncer.values import CONTENT, ID_BYTES, PackId

log = logging.getLogger(__name__)

COMMAND = (sys.executable, "-P", "-m", "syncer.blocks.portermain")
IDLE_S = 30.0
"""A porter that has had nothing to do for so long ends."""
SILENCE_S = 10.0
"""A porter that has said nothing for so long is taken for hung, or starved: it says something every second."""
MAKE_S = 20.0
"""A porter that takes so long for a pack, a matter of some hundredths, or of seconds with the strongest compression, is
starved. It has what others leave of the processors, which must not mean that nothing is uploaded on a busy machine."""
START_S = 3.0
"""How long to wait for one that was started. It takes half a second, in which it is better not to be in its way."""
AGAIN_S = 30.0
"""How long to do without one after one was lost, or could not be started."""
END_S = 1.0
"""How long a porter may take to end by itself."""
LOOK_S = 0.01
"""How often to look whether it has."""

_ERRORS = {kind.__name__: kind for kind in BackendError.__subclasses__()}


@dataclass(frozen=True, slots=True, kw_only=True)
class PorterSettings:
    """How the porter reaches the remote, which object of it proves that it is the one that is meant, zstd's level."""

    url: str
    password_file: str | None
    proof_key: str
    level: int


class Porter(Packer):
    """Starts the process when it is wanted, again and again. `run` is its task."""

    def __init__(self, cache: Path, backend: RetryingBackend, settings: PorterSettings) -> None:
        self._cache = cache
        self._backend = backend
        self._settings = settings
        self._wanted = trio.Event()
        self._settled = trio.Event()
        """Set while nothing is to be waited for: it is there, or will not be for a while."""
        self._session: _Session | None = None

    @property
    def is_ready(self) -> bool:
        """Whether it has been heard of, and not been lost since."""
        return self._session is not None

    async def come(self) -> bool:
        """Have it started if it is not running; whether it is there, which is waited for a little."""
        self._wanted.set()
        with trio.move_on_after(START_S):
            await self._settled.wait()
        return self.is_ready

    async def run(self) -> None:
        while True:
            await self._wanted.wait()
            try:
                await self._work()
            except (PorterSlow, BackendError) as error:
                log.info("the porter: %s; packs are made without it for a while", error)
                await self._stay_away()
            except (PorterLost, OSError) as error:
                log.warning("the porter: %s; packs are made without it for a while", error)
                await self._stay_away()

    async def _stay_away(self) -> None:
        self._settled.set()
        await trio.sleep(AGAIN_S)
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._session = None
        self._wanted, self._settled = trio.Event(), trio.Event()

    async def _work(self) -> None:
        """Run one process until it has been idle for long enough. Raises: PorterLost, BackendError, OSError."""
        settings = self._settings
        proof = await self._backend.get(settings.proof_key)
        first = Open(
            url=settings.url,
            password_file=settings.password_file,
            cache=str(self._cache),
            level=settings.level,
            log_level=logging.getLogger("syncer").getEffectiveLevel(),
            proof_key=settings.proof_key,
            proof=proof,
        )
        async with _process() as line:
            session = _Session(line, self._backend)
            try:
                await session.serve(first, lambda: self._met(session))
            finally:
                self._begin_anew()  # whoever wants it while this one ends gets another
                session.lose()

    def _met(self, session: "_Session") -> None:
        self._session = session
        self._settled.set()

    async def make(self, parcels: Sequence[Parcel]) -> tuple[MadePack | None, list[int]]:
        """See `Packer`. That a block cannot be read there is for somebody else to judge."""
        if self._session is None:
            raise PorterLost("it is not running")
        return await self._session.make(parcels)


class _Session:
    """The conversation with one process."""

    def __init__(self, line: Line, backend: RetryingBackend) -> None:
        self._line = line
        self.backend = backend
        self._outbox, self._orders = trio.open_memory_channel[Message](float("inf"))
        """Orders on their way: one that makes a pack, and small ones for each pack that is there."""
        self._last = 0
        self._waiting: dict[int, _Reply] = {}
        self._used_at = trio.current_time()
        self._slow = trio.Event()
        self._lost = False

    async def serve(self, first: Open, on_met: Callable[[], None]) -> None:
        """Return when there has been nothing to do for long. *on_met* is called when it has first been heard of.

        Raises: PorterLost.
        """
        lost: PorterLost | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send, first)
            nursery.start_soon(self._end_if_slow, nursery.cancel_scope)
            try:
                await self._listen(on_met)
            except PorterLost as error:
                lost = error
            nursery.cancel_scope.cancel()
        if self._slow.is_set():
            raise PorterSlow("it takes too long for a pack")
        if lost is not None:
            raise lost

    async def _end_if_slow(self, scope: trio.CancelScope) -> None:
        await self._slow.wait()
        scope.cancel()

    async def _send(self, first: Open) -> None:
        with contextlib.suppress(PorterLost):  # who listens sees it too
            await self._line.send(first)
            async for order in self._orders:
                await self._line.send(order)

    async def _listen(self, on_met: Callable[[], None]) -> None:
        decoder = msgspec.msgpack.Decoder(Answer)
        while True:
            with trio.move_on_after(SILENCE_S) as scope:
                answer = await self._line.receive(decoder, ANSWER_MAX_BYTES)
            if scope.cancelled_caught:
                raise PorterSlow(f"it has said nothing for {SILENCE_S:.0f} s")
            match answer:
                case None:
                    raise PorterLost("it has ended unexpectedly")
                case Alive():
                    on_met()
                    if not self._waiting and trio.current_time() > self._used_at + IDLE_S:
                        return
                case Said():
                    logging.getLogger(answer.logger).log(answer.level, "%s", answer.text)
                case Made() | Done() | Failed():
                    if answer.number in self._waiting:  # otherwise nobody waits for it any more
                        self._waiting[answer.number].give(answer)

    def lose(self) -> None:
        """Whoever waits for an answer gets none."""
        self._lost = True
        for reply in self._waiting.values():
            reply.done.set()

    async def make(self, parcels: Sequence[Parcel]) -> "tuple[_KeptPack, list[int]]":
        """The pack, and the places of the blocks that are not in it. Raises: PorterLost."""
        blocks: list[tuple[bytes, int, bytes | None]] = [(parcel.id, parcel.size, parcel.data) for parcel in parcels]
        with trio.move_on_after(MAKE_S) as scope:
            number, answer = await self._ask(lambda number: Make(number, blocks))
        if scope.cancelled_caught:
            self._slow.set()
            raise PorterSlow(f"it has made no pack in {MAKE_S:.0f} s")
        try:
            if not isinstance(answer, Made):
                raise PorterLost(f"it could not make a pack: {getattr(answer, 'text', answer)}")
            return _KeptPack(self, number, answer, _entries(answer, parcels)), answer.unreadable
        except PorterLost:
            self.drop(number)
            raise

    async def put(self, number: int) -> None:
        """Put the pack that was made under *number*. Raises: BackendError; PorterLost."""
        _, answer = await self._ask(lambda own: Put(own, number))
        match answer:
            case Done():
                return
            case Failed(error=error) if error in _ERRORS:
                raise _ERRORS[error](answer.text, hint=answer.hint)
            case _:
                raise PorterLost(f"it could not put a pack: {getattr(answer, 'text', answer)}")

    def drop(self, number: int) -> None:
        if not self._lost:
            self._outbox.send_nowait(Cancel(number))

    async def _ask(self, order: Callable[[int], Message]) -> tuple[int, Answer]:
        """Send an order, and return its number and the answer. Raises: PorterLost."""
        self._last = number = self._last + 1
        reply = self._waiting[number] = _Reply()
        try:
            if not self._lost:
                self._outbox.send_nowait(order(number))
                await reply.done.wait()
        except trio.Cancelled:
            self.drop(number)
            raise
        finally:
            self._used_at = trio.current_time()
            del self._waiting[number]
        if reply.answer is None:
            raise PorterLost("it was lost")
        return number, reply.answer


class _Reply:
    """What an order waits for."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.answer: Answer | None = None

    def give(self, answer: Answer) -> None:
        self.answer = answer
        self.done.set()


class _KeptPack(MadePack):
    """A pack in the porter's memory."""

    def __init__(self, session: _Session, number: int, made: Made, entries: Sequence[PackEntry]) -> None:
        self._session = session
        self._number = number
        self.id = PackId(made.id)
        self.size_bytes = made.size_bytes
        self.locations = [(entry.id, entry.offset, entry.length, entry.plain_bytes) for entry in entries]

    async def put(self) -> None:
        backend, key = self._session.backend, pack_key(self.id)
        await backend.repeat(f"put {key}", lambda: self._session.put(self._number), moved_bytes=self.size_bytes)
        await check_seen(backend, key, self.size_bytes)

    def drop(self) -> None:
        self._session.drop(self._number)


def _entries(made: Made, parcels: Sequence[Parcel]) -> list[PackEntry]:
    """What the pack holds, which is just what was asked for and could be read. Raises: PorterLost: it is not."""
    try:
        kind, entries = read_list(made.tail, made.size_bytes)
    except ObjectCorrupt as error:
        raise PorterLost(f"its pack is none: {error}") from error
    held = [(entry.id, entry.plain_bytes) for entry in entries]
    left_out = set(made.unreadable)
    wanted = [(parcel.id, parcel.size) for place, parcel in enumerate(parcels) if place not in left_out]
    if made.unreadable != sorted(left_out & set(range(len(parcels)))):
        raise PorterLost("it speaks of blocks that nobody asked for")
    if kind != CONTENT or held != wanted or len(made.id) != ID_BYTES:
        raise PorterLost("its pack is not the one that was asked for")
    return entries


@contextlib.asynccontextmanager
async def _process() -> AsyncIterator[Line]:
    """A porter's process, and the line to it. It has nothing else of ours open, and is gone afterwards.

    It must be started by this thread, which lives as long as the mount: its parent's death is, to the kernel, that of
    the thread. It has a session of its own: what the user types at the terminal ends it only when the mount ends, and
    its priority is that of a session.

    Raises: OSError.
    """
    ours, its = socket.socketpair()
    with its:
        try:
            process = subprocess.Popen(  # noqa: ASYNC220 - see above; it returns in a few milliseconds
                COMMAND,
                stdin=its.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except BaseException:
            ours.close()
            raise
    line = Line(trio.SocketStream(trio.socket.from_stdlib_socket(ours)))
    try:
        yield line
    finally:
        with trio.CancelScope(shield=True):
            await line.close()
            await _ended(process)


async def _ended(process: "subprocess.Popen[bytes]") -> None:
    """Have the process ended, and the kernel forget it, unless the kernel itself does not let go of it."""
    if not await _is_gone(process):
        process.kill()
        await _is_gone(process)


async def _is_gone(process: "subprocess.Popen[bytes]") -> bool:
    """Whether it ends in END_S. Asked for again and again: a descriptor to wait with may not be had."""
    with trio.move_on_after(END_S):
        while process.poll() is None:  # noqa: ASYNC110 - see above
            await trio.sleep(LOOK_S)
    return process.poll() is not None
