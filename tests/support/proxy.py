"""A TCP proxy of ours between syncer and a real server, which makes the network as bad as a test wants it.

It runs in threads of the test's process: one that takes connections, two for each of them. What it does may be
changed at any moment, and holds for connections that are open as well.
"""

import contextlib
import re
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import urlsplit

CHUNK_BYTES = 65_536
_REQUEST = re.compile(rb"(GET|HEAD|PUT|DELETE|POST) (\S+) HTTP/1\.[01]\r\n")
_ANSWERS = {
    "SlowDown": (503, "Service Unavailable"),
    "InternalError": (500, "Internal Server Error"),
    "ExpiredToken": (403, "Forbidden"),
    "XMinioStorageFull": (507, "Insufficient Storage"),
}


@dataclass(slots=True)
class Weather:
    """How bad it is.

    Attributes:
        delay_s: every piece of data is that late, both ways.
        bytes_per_s: no connection carries more, each way; None is no limit.
        black_hole: connections stay open, and nothing moves.
        refusing: connections are closed as soon as they come.
        answer: every HTTP request gets this S3 error code instead of the server's answer; *only* narrows it to methods.
    """

    delay_s: float = 0.0
    bytes_per_s: float | None = None
    black_hole: bool = False
    refusing: bool = False
    answer: str | None = None
    only: tuple[bytes, ...] = field(default=(b"GET", b"HEAD", b"PUT", b"DELETE", b"POST"))


class Proxy:
    """Listens on a loopback port and carries to *port*. As a context manager gone at the end.

    Attributes:
        port: where clients connect to.
        weather: assign another one to change it.
        connections: how many were taken so far.
        answered: how many requests got an answer of ours.
    """

    def __init__(self, port: int) -> None:
        self.weather = Weather()
        self.connections = 0
        self.answered = 0
        self._target = port
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._listen, name="proxy", daemon=True)]
        self._threads[0].start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def cut(self) -> None:
        """Break every connection that is open, in the middle of whatever it carries."""
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    @contextlib.contextmanager
    def bad(self, weather: Weather) -> Iterator[None]:
        """*weather* for the time of a with block."""
        self.weather = weather
        try:
            yield
        finally:
            self.weather = Weather()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.weather = Weather(refusing=True)
        self.cut()
        for thread in self._threads:
            thread.join(10)

    # --- in threads of its own from here on ------------------------------------------------------------------------

    def _listen(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            if self.weather.refusing:
                client.close()
                continue
            try:
                server = socket.create_connection(("127.0.0.1", self._target), timeout=10)
                server.settimeout(None)
            except OSError:  # the server is stopped
                client.close()
                continue
            with self._lock:
                self._open |= {client, server}
            for source, target, is_client in ((client, server, True), (server, client, False)):
                thread = threading.Thread(target=self._carry, args=(source, target, is_client), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _carry(self, source: socket.socket, target: socket.socket, is_client: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(CHUNK_BYTES):
                self._hold(len(data))
                if is_client and self._answer(source, data):
                    break
                target.sendall(data)
        with self._lock:
            self._open -= {source, target}
        for connection in (source, target):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        source.close()  # each of the two threads closes the one it reads

    def _hold(self, length: int) -> None:
        """Return when so much data may go on."""
        weather = self.weather
        time.sleep(weather.delay_s + (length / weather.bytes_per_s if weather.bytes_per_s else 0.0))
        while self.weather.black_hole:
            time.sleep(0.01)

    def _answer(self, client: socket.socket, data: bytes) -> bool:
        """Answer the request that begins with *data* ourselves, and close, if the weather says so."""
        weather = self.weather
        found = _REQUEST.match(data)
        if weather.answer is None or found is None or found[1] not in weather.only:
            return False
        status, reason = _ANSWERS[weather.answer]
        path = urlsplit(found[2].decode()).path
        body = (
            '<?xml version="1.0" encoding="UTF-8"?>'
            f"<Error><Code>{weather.answer}</Code><Message>{reason}</Message><Resource>{path}</Resource></Error>"
        ).encode()
        if found[1] == b"HEAD":
            body = b""
        head = f"HTTP/1.1 {status} {reason}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n"
        client.sendall(head.encode() + b"Connection: close\r\n\r\n" + body)
        self.answered += 1
        # What the client still sends is taken, so that its answer is not lost to a reset.
        client.settimeout(1.0)
        client.shutdown(socket.SHUT_WR)
        with contextlib.suppress(OSError):
            while client.recv(CHUNK_BYTES):
                pass
        return True
