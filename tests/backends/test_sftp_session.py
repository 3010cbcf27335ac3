"""The SFTP client against servers no sane person runs: they give less than asked for, answer in any order, and lie."""

import math
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from syncer.backends import sftp_session
from syncer.backends.sftp_session import KEPT_HANDLES, PLAIN_BYTES, SftpBroken, SftpError, SftpSession, SftpWriteError

CONTENT = bytes(range(256)) * 1024
READ, WRITE, CLOSE, OPEN, REMOVE, EXTENDED = 5, 6, 4, 3, 13, 200
STATUS, HANDLE, DATA, ATTRS = 101, 102, 103, 105
OK, EOF, NO_SUCH_FILE, FAILURE = 0, 1, 2, 4

Answer = tuple[int, bytes]


def string(value: bytes) -> bytes:
    return struct.pack(">I", len(value)) + value


def status(code: int, text: bytes = b"said the server") -> Answer:
    return STATUS, struct.pack(">I", code) + string(text) + string(b"en")


class Server:
    """Answers requests as *answer* has it; a `None` holds the answer back until the next one has been given."""

    def __init__(self, answer: Callable[[int, bytes], Answer | None], greeting: bytes | None = None) -> None:
        self.client, self._socket = socket.socketpair()
        self.client.settimeout(10)
        self._answer = answer
        self._greeting = greeting
        self._held: list[bytes] = []
        self.requests: list[int] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def close(self) -> None:
        self.client.close()
        self._thread.join()

    def _run(self) -> None:
        with self._socket, self._socket.makefile("rb") as stream:
            while len(head := stream.read(5)) == 5:
                size, kind = struct.unpack(">IB", head)
                body = stream.read(size - 1)
                if kind == 1:
                    greeting = struct.pack(">IBI", 5, 2, 3) if self._greeting is None else self._greeting
                    self._socket.sendall(greeting)
                    continue
                self.requests.append(kind)
                self._reply(body[:4], self._answer(kind, body[4:]))

    def _reply(self, request: bytes, answer: Answer | None) -> None:
        if answer is None:
            self._held.append(request)
            return
        for number in (request, *self._held):
            packet = bytes([answer[0]]) + number + answer[1]
            self._socket.sendall(struct.pack(">I", len(packet)) + packet)
        self._held = []


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(*arguments: object) -> Server:
        servers.append(Server(*arguments))  # type: ignore[arg-type]
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def reading(most_bytes: int) -> Callable[[int, bytes], Answer]:
    """A server that gives at most so many bytes for a request."""

    def answer(kind: int, body: bytes) -> Answer:
        if kind == READ:
            offset, length = struct.unpack(">QI", body[-12:])
            part = CONTENT[offset : offset + min(length, most_bytes)]
            return (DATA, string(part)) if part else status(EOF)
        return status(OK)

    return answer


@pytest.mark.parametrize("most_bytes", [999, 5000, PLAIN_BYTES - 1, PLAIN_BYTES])
def test_a_server_that_gives_less_than_it_was_asked_for(serve: Callable[..., Server], most_bytes: int) -> None:
    session = SftpSession(serve(reading(most_bytes)).client)
    assert session.read(b"h", 0, len(CONTENT)) == CONTENT
    assert session.read(b"h", 77, 100_000) == CONTENT[77:100_077]
    assert session.read(b"h", 250_000, 100_000) == CONTENT[250_000:]
    assert session.read(b"h", len(CONTENT), 10) == b""


def test_answers_in_any_order(serve: Callable[..., Server]) -> None:
    held: list[tuple[bytes, Answer]] = []
    ordinary = reading(PLAIN_BYTES)

    class Shuffling(Server):
        def _reply(self, request: bytes, answer: Answer | None) -> None:
            assert answer
            held.append((request, answer))
            if len(held) == 8:
                for late, its_answer in reversed(held):
                    super()._reply(late, its_answer)
                held.clear()

    server = Shuffling(ordinary)
    assert SftpSession(server.client).read(b"h", 0, len(CONTENT)) == CONTENT
    server.close()


def test_nothing_is_asked_for_that_is_not_wanted(serve: Callable[..., Server]) -> None:
    server = serve(reading(PLAIN_BYTES))
    SftpSession(server.client).read(b"h", 0, 3 * PLAIN_BYTES)
    assert server.requests == [READ] * 3


@pytest.mark.parametrize("least_s", [0.0, 1e9])
def test_a_file_that_is_kept_open_is_closed_in_time(
    serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch, least_s: float
) -> None:
    monkeypatch.setattr(sftp_session, "KEPT_S", least_s)
    server = serve(reading(PLAIN_BYTES))
    session = SftpSession(server.client)
    for number in range(KEPT_HANDLES + 1):
        session.keep(b"%d" % number, b"h")
    last = b"%d" % KEPT_HANDLES
    assert session.read_kept(b"0", 5, 100, -math.inf) is None
    read = session.read_kept(last, 5, 100, -math.inf)
    assert read == (CONTENT[5:105] if least_s else None)
    assert session.read_kept(last, 5, 100, time.monotonic()) is None, "it was opened before"
    session.read(b"h", 0, 1)  # its answer comes after theirs
    assert server.requests.count(CLOSE) == KEPT_HANDLES + 1


@pytest.mark.parametrize("refused", [False, True])
def test_a_file_that_is_kept_open_and_was_changed_is_opened_again(serve: Callable[..., Server], refused: bool) -> None:
    def answer(kind: int, body: bytes) -> Answer:
        is_far = kind == READ and struct.unpack(">Q", body[-12:-4])[0] > 1000
        return status(FAILURE) if refused and is_far else reading(PLAIN_BYTES)(kind, body)

    server = serve(answer)
    session = SftpSession(server.client)
    session.keep(b"path", b"h")
    assert session.read_kept(b"path", len(CONTENT) - 10, 100, -math.inf) is None
    assert session.read_kept(b"path", 5, 100, -math.inf) is None, "it is not to be used again"
    session.read(b"h", 0, 1)
    assert server.requests.count(CLOSE) == 1


def test_of_one_file_one_handle_is_kept(serve: Callable[..., Server]) -> None:
    server = serve(reading(PLAIN_BYTES))
    session = SftpSession(server.client)
    for handle in (b"1", b"2"):
        session.keep(b"path", handle)
    session.read(b"h", 0, 1)  # its answer comes after that of the closing
    assert server.requests == [CLOSE, READ]


def test_a_session_goes_on_after_a_failed_transfer(serve: Callable[..., Server]) -> None:
    """Answers to the rest of the transfer come when nobody waits for them any more."""

    def answer(kind: int, body: bytes) -> Answer:
        if kind == READ and struct.unpack(">Q", body[-12:-4])[0] == 2 * PLAIN_BYTES:
            return status(FAILURE)
        if kind == WRITE and struct.unpack(">Q", body[5:13])[0] == PLAIN_BYTES:
            return status(FAILURE)
        if kind == OPEN:
            return HANDLE, string(b"h")
        return reading(PLAIN_BYTES)(kind, body)

    session = SftpSession(serve(answer).client)
    with pytest.raises(SftpError, match="said the server"):
        session.read(b"h", 0, len(CONTENT))
    with pytest.raises(SftpWriteError):
        session.write_new(b"/name", memoryview(CONTENT))
    assert session.read(b"h", 0, 1000) == CONTENT[:1000]
    session.close_handle(b"h")
    assert session.read(b"h", 5, 1000) == CONTENT[5:1005]


def test_a_file_is_on_stable_storage_before_it_is_closed(serve: Callable[..., Server]) -> None:
    """Asked for where the server offers it; a refusal is a failure of the write."""
    greeting = struct.pack(">BI", 2, 3) + string(b"fsync@openssh.com") + string(b"1")
    asked: list[bytes] = []

    def answer(kind: int, body: bytes) -> Answer:
        asked.append(bytes([kind]) if kind != EXTENDED else body)
        return (HANDLE, string(b"h")) if kind == OPEN else status(FAILURE if kind == EXTENDED else OK)

    session = SftpSession(serve(answer, string(greeting)).client)
    with pytest.raises(SftpWriteError):
        session.write_new(b"/name", memoryview(b"data"))
    session.remove(b"/name")
    assert asked == [
        bytes([kind]) if isinstance(kind, int) else kind
        for kind in (OPEN, WRITE, string(b"fsync@openssh.com") + string(b"h"), CLOSE, REMOVE)
    ]


def test_a_status_without_a_text(serve: Callable[..., Server]) -> None:
    session = SftpSession(serve(lambda kind, body: (STATUS, struct.pack(">I", NO_SUCH_FILE))).client)
    with pytest.raises(SftpError, match="status 2") as caught:
        session.remove(b"/name")
    assert caught.value.code == NO_SUCH_FILE


def test_attributes_with_everything_in_them(serve: Callable[..., Server]) -> None:
    flags = struct.pack(">IQIIIIII", 0x8000000F, 12345, 1, 2, 0o100644, 11, 22, 1) + string(b"name") + string(b"value")
    session = SftpSession(serve(lambda kind, body: (ATTRS, flags)).client)
    found = session.fstat(b"h")
    assert (found.size_bytes, found.modified_s, found.is_file, found.is_folder) == (12345, 22, True, False)


@pytest.mark.parametrize(
    "greeting",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"This account is currently not available.\n",
        struct.pack(">IBI", 5, 2, 2),
        struct.pack(">IBI", 5, 101, 3),
        struct.pack(">IB", 0, 2),
        struct.pack(">IBII", 9, 2, 3, 99),
    ],
)
def test_what_is_no_sftp(serve: Callable[..., Server], greeting: bytes) -> None:
    with pytest.raises(SftpBroken):
        SftpSession(serve(reading(1), greeting).client)


@pytest.mark.parametrize(
    "answer", [(DATA, string(b"data")), (STATUS, b""), (STATUS, struct.pack(">II", 4, 99)), (77, b"")]
)
def test_answers_of_the_wrong_kind(serve: Callable[..., Server], answer: Answer) -> None:
    session = SftpSession(serve(lambda kind, body: answer).client)
    with pytest.raises(SftpBroken):
        session.stat(b"/name")


def test_the_end_of_the_stream(serve: Callable[..., Server]) -> None:
    server = serve(reading(PLAIN_BYTES))
    session = SftpSession(server.client)
    server._socket.shutdown(socket.SHUT_RDWR)
    with pytest.raises((SftpBroken, OSError)):
        session.read(b"h", 0, 10)
