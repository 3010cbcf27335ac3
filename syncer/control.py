"""The conversation between a running mount and the other commands, over a unix socket in DATA.

The mount runs `serve` as a task of its trio nursery and answers through a `Service`. A command is a `Client`: plain
blocking sockets with a deadline on every wait. Only `serve` needs trio, and imports it late, so that a command that
merely asks a question starts without it.

On the wire each message is one line of ASCII JSON:

    request    {"do": "status" | "flush" | "stop"} | {"do": "travel", "what": ..., "with": {...}}
    answer     {"result": ...} | {"error": {"name", "message", "hint"}}
    progress   {"progress": {"done_bytes", "total_bytes"}}      any number of them, before the answer to what takes long
    items      {"items": [...]}                                 any number of them: a list of the result, in pieces

A connection carries one request at a time, any number of them after each other. While a flush or a question to history
(timetravel.py) is at work, a progress line comes at least every HEARTBEAT_S seconds: the client can tell a long flush
from a mount that hangs, and the mount a client that waits from one that has left.
"""

import contextlib
import json
import logging
import math
import os
import select
import socket
import struct
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

from syncer.errors import DeadlinePassed, NotMounted, SyncerError

if TYPE_CHECKING:
    import trio

R = TypeVar("R")
log = logging.getLogger(__name__)

SOCKET_NAME = "control.sock"
HEARTBEAT_S = 2.0
ANSWER_S = 20.0
"""A mount that says nothing for this long, while it owes an answer or a progress line, is taken for hung."""
PROGRESS_STEP_S = 0.1
ADDRESS_MAX_BYTES = 107
"""The longest path that fits `sun_path` (unix(7)) with its terminating zero."""
LINE_MAX_BYTES = 1 << 16
ITEMS_A_LINE = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """What `syncer status` tells; the fields' names and their order are the keys of its JSON and stay as they are.

    `remote_ok` is None when nothing has been asked of the remote yet; `head` names the newest snapshot.
    `remote_error` says why the last upload failed. `replaced_copies` counts cached copies found bad since the mount.
    `damaged_blocks` have no sound copy that is known of, and `damaged_paths` are the files they are part of.
    `history_bytes` on the remote are held by snapshots alone, `dead_bytes` by nothing, as of the last count.
    `snapshot_due`: something has changed that the newest snapshot lacks, if only a name.
    `follows`: the mount shows what another machine writes, `head`, and how long ago that was so in `shown_age_s`.
    """

    mounted: bool
    mountpoint: str | None
    remote: str
    remote_ok: bool | None
    budget_bytes: int
    used_bytes: int
    clean_bytes: int
    dirty_bytes: int
    metadata_bytes: int
    pending_upload_bytes: int
    pending_upload_blocks: int
    oldest_pending_s: float | None
    uploaded_bytes: int
    fetched_bytes: int
    files: int
    directories: int
    logical_bytes: int
    unique_bytes: int
    remote_bytes: int
    head: str | None
    remote_error: str | None = None
    replaced_copies: int = 0
    damaged_blocks: int = 0
    damaged_paths: list[str] = field(default_factory=list)
    history_bytes: int = 0
    dead_bytes: int = 0
    follows: bool = False
    shown_age_s: float | None = None
    snapshot_due: bool = False


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an upload is; `total_bytes` may grow while it runs."""

    done_bytes: int
    total_bytes: int


class Service(Protocol):
    """What a mount offers to `serve`. Called on the event loop's thread."""

    def status(self) -> Status:
        """Answer from memory and the local database alone; never waits for a network."""

    async def flush(self, progress: Callable[[Progress], None]) -> None:
        """Return when everything written before the call is on the remote. May be cancelled at any await.

        Raises: SyncerError.
        """

    async def travel(
        self, what: str, arguments: dict[str, Any], progress: Callable[[Progress], None]
    ) -> dict[str, Any]:
        """Answer a question to history. What is long of the answer is a list under `items`. May be cancelled.

        Raises: SyncerError.
        """

    def stop(self) -> None:
        """Ask the mount to end cleanly and return at once; repeated calls change nothing."""


# --- the mount's side --------------------------------------------------------------------------------------------


async def serve(path: Path, service: Service, *, task_status: "trio.TaskStatus[None]") -> None:
    """Answer requests on the unix socket *path* (DATA/control.sock) until cancelled; started once it accepts.

    The caller holds DATA's lock, so a socket that is already there is left over from a dead process and replaced.
    The socket has mode 0600, and peers that are neither our user nor root are turned away. It is removed at the end.

    Raises: OSError: the socket cannot be made.
    """
    import trio

    async def answer(stream: "trio.SocketStream") -> None:
        async with stream:
            if _peer_uid(stream.socket) in (os.geteuid(), 0):
                await _Conversation(stream, service).run()

    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # Before bind, the mode of the descriptor is what the socket's file gets: there is no moment with a wider one.
    os.fchmod(listener.fileno(), 0o600)
    try:
        with _address(path) as address:
            listener.bind(address)
        listener.listen(16)
        async with trio.open_nursery() as nursery:
            server = trio.SocketListener(trio.socket.from_stdlib_socket(listener))
            await nursery.start(trio.serve_listeners, answer, [server])
            task_status.started()
    finally:
        listener.close()
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


class _Conversation:
    """One client's connection: requests after each other until it leaves. Its end cancels its own flush only."""

    def __init__(self, stream: "trio.SocketStream", service: Service) -> None:
        self._stream = stream
        self._service = service
        self._received = bytearray()

    async def run(self) -> None:
        import trio

        with contextlib.suppress(trio.BrokenResourceError):  # the client left: nobody is there to be told
            while (line := await self._line()) is not None and not self._has_left():
                await self._send(await self._answer(line))

    async def _answer(self, line: bytes) -> dict[str, object]:
        import trio

        try:
            match _request(line):
                case {"do": "status"}:
                    return {"result": asdict(self._service.status())}
                case {"do": "flush"}:
                    return {"result": await self._watched(self._service.flush)}
                case {"do": "travel", "what": str(what), "with": dict(arguments)}:
                    return await self._travel(what, arguments)
                case {"do": "stop"}:
                    self._service.stop()
                    return {"result": None}
                case _:
                    raise SyncerError("the mount does not know this request", hint="is it of another version?")
        except SyncerError as error:
            return _error_message(error)
        except trio.BrokenResourceError:  # the client left
            raise
        except Exception as error:
            # A request must never end the mount; the client gets to know, the log gets the details.
            log.exception("a request over the control socket failed")
            return _error_message(SyncerError(f"unexpected {type(error).__name__}: {error}", hint="see DATA/log"))

    async def _travel(self, what: str, arguments: dict[str, Any]) -> dict[str, object]:
        result = await self._watched(lambda progress: self._service.travel(what, arguments, progress))
        items = result.pop("items", [])
        for begin in range(0, len(items), ITEMS_A_LINE):
            await self._send({"items": items[begin : begin + ITEMS_A_LINE]})
        return {"result": result}

    async def _watched(self, work: Callable[[Callable[[Progress], None]], Awaitable[R]]) -> R:
        """Work with progress lines. A client that has hung up is noticed by the next one, at most HEARTBEAT_S later:
        the work is cancelled, and BrokenResourceError comes out.
        """
        import trio

        latest = Progress(0, 0)
        changed = trio.Event()
        failure: Exception | None = None
        results: list[R] = []
        gone = True

        def note(progress: Progress) -> None:
            nonlocal latest
            latest = progress
            changed.set()

        async def tell() -> None:
            nonlocal changed
            with contextlib.suppress(trio.BrokenResourceError):
                while True:
                    with trio.move_on_after(HEARTBEAT_S):
                        await changed.wait()
                    changed = trio.Event()
                    await self._send({"progress": asdict(latest)})
                    await trio.sleep(PROGRESS_STEP_S)
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(tell)
            try:
                results.append(await work(note))
            except Exception as error:  # noqa: BLE001 - raised below, outside the nursery, which would wrap it in a group
                failure = error
            gone = False
            nursery.cancel_scope.cancel()
        if gone:
            raise trio.BrokenResourceError
        if failure is not None:
            raise failure
        await self._send({"progress": asdict(latest)})
        return results[0]

    def _has_left(self) -> bool:
        """Whether the client has hung up. Requests wait while this process is stopped, and clients do not: who was told
        that nobody answers must not find the mount ended, or something restored, some time later."""
        poller = select.poll()
        poller.register(self._stream.socket.fileno(), select.POLLRDHUP)
        return bool(poller.poll(0))

    async def _line(self) -> bytes | None:
        """The next request, or None at the end of the connection or for one that is absurdly long."""
        while (end := self._received.find(b"\n")) < 0:
            chunk = await self._stream.receive_some(4096)
            self._received += chunk
            if not chunk or len(self._received) > LINE_MAX_BYTES:
                return None
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        return line

    async def _send(self, message: dict[str, object]) -> None:
        await self._stream.send_all(json.dumps(message).encode() + b"\n")


def _request(line: bytes) -> object:
    """What the request *line* says; None for what is no request at all."""
    with contextlib.suppress(ValueError):
        request: object = json.loads(line)
        return request
    return None


def _peer_uid(peer: "trio.socket.SocketType") -> int:
    credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _pid, uid, _gid = struct.unpack("3i", credentials)
    return int(uid)


# --- the commands' side ------------------------------------------------------------------------------------------


class Client:
    """A command's connection to the mount of one DATA. Blocking; a context manager; one thread at a time."""

    def __init__(self, connection: socket.socket, data: Path) -> None:
        self._socket = connection
        self._data = data
        self._received = bytearray()

    @classmethod
    def connect(cls, data: Path) -> Self:
        """Reach the mount of the DATA directory *data*.

        Raises:
            NotMounted: nobody listens there.
            DeadlinePassed: somebody should, but takes no connections.
        """
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(ANSWER_S)
        try:
            with _address(data / SOCKET_NAME) as address:
                connection.connect(address)
        except (TimeoutError, BlockingIOError) as error:
            connection.close()
            raise _silent(data) from error
        except OSError as error:
            connection.close()
            raise NotMounted(f"{data} is not mounted", hint=f"mount it: `syncer {data} MOUNTPOINT`") from error
        return cls(connection, data)

    def status(self) -> Status:
        """Raises: DeadlinePassed, NotMounted (the mount ended while we asked), SyncerError."""
        try:
            return Status(**self._ask("status", lambda _: None, None))
        except TypeError as error:
            raise SyncerError(
                f"the mount of {self._data} is of another version of syncer",
                hint="unmount it and mount it again",
            ) from error

    def flush(self, progress: Callable[[Progress], None], timeout_s: float | None = None) -> None:
        """Return when everything written before the call is on the remote.

        *progress* is called from here, now and then. Without *timeout_s* it takes as long as it takes, provided
        that the mount stays alive.

        Raises:
            DeadlinePassed: *timeout_s* are over, or the mount has stopped to answer; uploads go on regardless.
            NotMounted: the mount ended meanwhile.
            SyncerError: whatever the mount's own flush raised, as the same class.
        """
        self._ask("flush", progress, timeout_s)

    def travel(
        self,
        what: str,
        arguments: dict[str, object],
        progress: Callable[[Progress], None] = lambda progress: None,
        timeout_s: float | None = None,
    ) -> dict[str, Any]:
        """The mount's answer to a question to history (timetravel.py). Raises: as `flush`."""
        items: list[object] = []
        result: dict[str, Any] = self._ask("travel", progress, timeout_s, items, {"what": what, "with": arguments})
        return {**result, "items": items}

    def stop(self) -> None:
        """Ask the mount to end; returns when it has heard, not when it has ended. Raises: DeadlinePassed."""
        with contextlib.suppress(NotMounted):  # it may be gone before it could say yes
            self._ask("stop", lambda _: None, None)

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _ask(
        self,
        what: str,
        progress: Callable[[Progress], None],
        timeout_s: float | None,
        items: "list[object] | None" = None,
        more: "dict[str, object] | None" = None,
    ) -> Any:
        end = math.inf if timeout_s is None else time.monotonic() + timeout_s
        try:
            self._socket.settimeout(ANSWER_S)
            self._socket.sendall(json.dumps({"do": what, **(more or {})}).encode() + b"\n")
        except TimeoutError as error:
            raise _silent(self._data) from error
        except OSError as error:
            raise self._gone() from error
        while True:
            left = end - time.monotonic()
            if left <= 0 or (message := self._message(left)) is None:
                raise flush_late(timeout_s or 0)
            match message:
                case {"progress": {"done_bytes": int(done), "total_bytes": int(total)}}:
                    progress(Progress(done, total))
                case {"items": list(found)} if items is not None:
                    items += found
                case {"result": result}:
                    return result
                case {"error": {"name": str(name), "message": str(text), "hint": str(hint)}}:
                    raise _error_class(name)(text, hint=hint)
                case other:
                    raise SyncerError(f"the mount of {self._data} answered {other!r}", hint="is it of another version?")

    def _message(self, left_s: float) -> object:
        """The next line the mount sends, or None when *left_s* have passed without one."""
        while (cut := self._received.find(b"\n")) < 0:
            try:
                self._socket.settimeout(min(ANSWER_S, left_s))
                chunk = self._socket.recv(1 << 16)
            except TimeoutError as error:
                if left_s < ANSWER_S:
                    return None
                raise _silent(self._data) from error
            except OSError as error:
                raise self._gone() from error
            if not chunk:
                raise self._gone()
            self._received += chunk
        line = bytes(self._received[:cut])
        del self._received[: cut + 1]
        answer: object = json.loads(line)
        return answer

    def _gone(self) -> NotMounted:
        return NotMounted(f"the mount of {self._data} ended before it answered", hint=f"see {self._data / 'log'}")


def flush_late(timeout_s: float) -> DeadlinePassed:
    """The error of a flush that was given *timeout_s* and needs longer."""
    return DeadlinePassed(
        f"not everything was uploaded within {timeout_s:g} s", hint="what waits is safe in DATA; give it more --timeout"
    )


def _silent(data: Path) -> DeadlinePassed:
    return DeadlinePassed(
        f"the mount of {data} does not answer within {ANSWER_S:g} s",
        hint=f"end the process that {data / 'lock'} names, then `syncer umount {data}`",
    )


# --- both sides --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _address(path: Path) -> Iterator[bytes]:
    """What to bind or connect to for *path*: itself, or a short way round when it is too long for a socket address."""
    address = os.fsencode(path)
    if len(address) <= ADDRESS_MAX_BYTES:
        yield address
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield b"/proc/self/fd/%d/%s" % (folder, os.fsencode(path.name))
    finally:
        os.close(folder)


def _error_message(error: SyncerError) -> dict[str, object]:
    """Named by a class that every process knows: those of errors.py. Others are known where their modules are."""
    known = next(kind for kind in type(error).__mro__ if kind.__module__ == SyncerError.__module__)
    return {"error": {"name": known.__name__, "message": str(error), "hint": error.hint}}


def _error_class(name: str) -> type[SyncerError]:
    """The class called *name* in the tree below SyncerError; a name we do not know becomes its root."""
    waiting: list[type[SyncerError]] = [SyncerError]
    while waiting:
        candidate = waiting.pop()
        if candidate.__name__ == name:
            return candidate
        waiting += candidate.__subclasses__()
    return SyncerError
