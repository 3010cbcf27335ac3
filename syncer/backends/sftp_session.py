"""The client's side of SFTP version 3 over any duplex stream, with the extensions OpenSSH offers.

What is special about it is that reads and writes are pipelined: all requests of a range are under way at once, so a
transfer costs a few round trips and not one for every 32 KiB. Source: draft-ietf-secsh-filexfer-02 and the file
PROTOCOL of OpenSSH.

A session belongs to one thread at a time and blocks it. It knows no keys and no policy; `sftp.py` does.
"""

import contextlib
import math
import stat
import struct
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

VERSION = 3
PLAIN_BYTES = 32 * 1024
"""What every server takes and gives in one message (section 3 of the draft)."""
LARGEST_BYTES = 255 * 1024
"""The largest transfer we ask for where the server says that it may be more."""
KEPT_HANDLES = 8
KEPT_S = 5.0
"""So many files may stay open after a read, and each may be read so long without being opened again."""
IN_FLIGHT = 64
"""How many requests of one transfer wait for their answers at once."""

_PACKET_MAX_BYTES = 2**24
_HANDLE_FLAGS_READ = 0x01
_HANDLE_FLAGS_WRITE_NEW = 0x02 | 0x08 | 0x20  # write, create, exclusively


class Status(IntEnum):
    """SSH_FX_* of the draft."""

    OK = 0
    EOF = 1
    NO_SUCH_FILE = 2
    PERMISSION_DENIED = 3
    FAILURE = 4
    BAD_MESSAGE = 5
    NO_CONNECTION = 6
    CONNECTION_LOST = 7
    UNSUPPORTED = 8


class _Type(IntEnum):
    INIT = 1
    VERSION = 2
    OPEN = 3
    CLOSE = 4
    READ = 5
    WRITE = 6
    FSTAT = 8
    OPENDIR = 11
    READDIR = 12
    REMOVE = 13
    MKDIR = 14
    STAT = 17
    RENAME = 18
    STATUS = 101
    HANDLE = 102
    DATA = 103
    NAME = 104
    ATTRS = 105
    EXTENDED = 200
    EXTENDED_REPLY = 201


class Stream(Protocol):
    """A duplex byte stream, as a socket and as a channel of an SSH connection have it."""

    def sendall(self, data: bytes, /) -> object: ...

    def recv(self, size: int, /) -> bytes: ...

    def close(self) -> object: ...


class SftpError(Exception):
    """The server answered a request with a status that is not OK."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text or f"status {code}")
        self.code = code


class SftpWriteError(SftpError):
    """The server could not take the bytes of a file it had opened: no room, a quota, or a fault of its disk."""


class SessionRefused(Exception):
    """The server opens no further session next to those it has open for us."""


class SftpBroken(Exception):
    """The stream ended, or what came is not SFTP; the session is of no more use."""


@dataclass(frozen=True, slots=True)
class Attributes:
    size_bytes: int
    mode: int
    modified_s: int

    @property
    def is_folder(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.mode)


class SftpSession:
    """One conversation. Any call may raise SftpError, SftpBroken and what the stream raises."""

    def __init__(self, stream: Stream) -> None:
        """Greet the server over *stream*, which then belongs to the session."""
        self._stream = stream
        self._buffer = bytearray()
        self._position = 0
        self._next_id = 0
        self._unread: set[int] = set()
        self._kept: dict[bytes, tuple[bytes, float]] = {}
        """Handles for reading that are still open, by path, and when they were opened; the oldest first."""
        self._send_packet(_Type.INIT, struct.pack(">I", VERSION))
        kind, answer = self._receive_packet()
        if kind != _Type.VERSION or answer.uint32() < VERSION:
            raise SftpBroken("the server speaks no SFTP version 3")
        self.extensions: dict[bytes, bytes] = {}
        while not answer.at_end():
            name = answer.string()
            self.extensions[name] = answer.string()
        self._read_bytes = self._write_bytes = PLAIN_BYTES
        if b"limits@openssh.com" in self.extensions:
            limits = self._extended(b"limits@openssh.com", b"", _Type.EXTENDED_REPLY)
            limits.uint64()
            self._read_bytes, self._write_bytes = (
                min(limits.uint64() or PLAIN_BYTES, LARGEST_BYTES),
                min(limits.uint64() or PLAIN_BYTES, LARGEST_BYTES),
            )

    def close(self) -> None:
        self._stream.close()

    # --- files ----------------------------------------------------------------------------------------------------

    def open(self, path: bytes) -> bytes:
        """A handle for reading."""
        body = _string(path) + struct.pack(">II", _HANDLE_FLAGS_READ, 0)
        return self._ask(_Type.OPEN, body, _Type.HANDLE).string()

    def fstat(self, handle: bytes) -> Attributes:
        return self._ask(_Type.FSTAT, _string(handle), _Type.ATTRS).attributes()

    def close_handle(self, handle: bytes) -> None:
        """Give *handle* back without waiting for the answer, which tells nothing after a read."""
        self._unread.add(self._request(_Type.CLOSE, _string(handle)))

    def keep(self, path: bytes, handle: bytes) -> None:
        """Take over the handle of a file that was just opened for reading: `read_kept` uses it, and closes it."""
        if path in self._kept:
            self._let_go(path)
        self._kept[path] = (handle, time.monotonic())
        if len(self._kept) > KEPT_HANDLES:
            self._let_go(next(iter(self._kept)))

    def read_kept(self, path: bytes, offset: int, length: int, since_s: float) -> bytes | None:
        """*length* bytes from *offset* of a file that was opened not long ago, and after *since_s*; None: open it."""
        self.let_go_old(since_s)
        if path not in self._kept:
            return None
        with contextlib.suppress(SftpError):
            data = self.read(self._kept[path][0], offset, length)
            if len(data) == length:
                return data
        self._let_go(path)
        return None

    @property
    def keeps_open(self) -> bool:
        """Whether a file is kept open."""
        return bool(self._kept)

    def let_go_old(self, since_s: float = -math.inf) -> None:
        """Close what is kept open for long enough, or was opened before *since_s*."""
        since_s = max(since_s, time.monotonic() - KEPT_S)
        for path, (_, opened_s) in list(self._kept.items()):
            if opened_s <= since_s:
                self._let_go(path)

    def _let_go(self, path: bytes) -> None:
        self.close_handle(self._kept.pop(path)[0])

    def read(self, handle: bytes, offset: int, length: int) -> bytes:
        """Up to *length* bytes from *offset*: fewer only where the file ends."""
        result = bytearray(length)
        view = memoryview(result)
        waiting: dict[int, tuple[int, int]] = {}  # request -> start in the result, length
        wanted = deque((start, min(self._read_bytes, length - start)) for start in range(0, length, self._read_bytes))
        end = length
        while wanted or waiting:
            while wanted and len(waiting) < IN_FLIGHT:
                start, size = wanted.popleft()
                body = _string(handle) + struct.pack(">QI", offset + start, size)
                waiting[self._request(_Type.READ, body)] = (start, size)
            kind, request, answer = self._receive_answer(waiting)
            start, size = waiting.pop(request)
            if kind == _Type.STATUS:
                code, text = answer.status()
                if code != Status.EOF:
                    self._unread.update(waiting)
                    raise SftpError(code, text)
                end = min(end, start)
                continue
            part = answer.view()
            view[start : start + len(part)] = part
            if 0 < len(part) < size:  # a server may give less than it was asked for
                wanted.appendleft((start + len(part), size - len(part)))
        return bytes(view[:end])

    def write_new(self, path: bytes, data: memoryview) -> None:
        """A new file with *data*, on stable storage where the server can be asked for that.

        The file may be left behind, in any state, when this raises.
        """
        body = _string(path) + struct.pack(">II", _HANDLE_FLAGS_WRITE_NEW, 0)
        handle = self._ask(_Type.OPEN, body, _Type.HANDLE).string()
        head = _string(handle)
        waiting: deque[int] = deque()
        try:
            for offset in range(0, len(data), self._write_bytes):
                part = data[offset : offset + self._write_bytes]
                waiting.append(
                    self._request(_Type.WRITE, b"".join((head, struct.pack(">QI", offset, len(part)), part)))
                )
                if len(waiting) > IN_FLIGHT:
                    self._expect_ok(waiting.popleft())
            if b"fsync@openssh.com" in self.extensions:
                waiting.append(self._request(_Type.EXTENDED, _string(b"fsync@openssh.com") + head))
            waiting.append(self._request(_Type.CLOSE, head))
            while waiting:
                self._expect_ok(waiting.popleft())
        except SftpError as error:
            self._unread.update(waiting)
            raise SftpWriteError(error.code, str(error)) from error

    def rename(self, old: bytes, new: bytes) -> None:
        """Atomic, over an existing file, where the server knows how; otherwise *new* must not exist."""
        names = _string(old) + _string(new)
        if b"posix-rename@openssh.com" in self.extensions:
            self._expect_ok(self._request(_Type.EXTENDED, _string(b"posix-rename@openssh.com") + names))
        else:
            self._expect_ok(self._request(_Type.RENAME, names))

    def remove(self, path: bytes) -> None:
        self._expect_ok(self._request(_Type.REMOVE, _string(path)))

    def stat(self, path: bytes) -> Attributes:
        return self._ask(_Type.STAT, _string(path), _Type.ATTRS).attributes()

    # --- folders --------------------------------------------------------------------------------------------------

    def make_folder(self, path: bytes) -> None:
        self._expect_ok(self._request(_Type.MKDIR, _string(path) + struct.pack(">I", 0)))

    def scan(self, path: bytes) -> Iterator[tuple[bytes, Attributes]]:
        """The entries of a folder, links not followed, in the server's order."""
        handle = self._ask(_Type.OPENDIR, _string(path), _Type.HANDLE).string()
        body = _string(handle)
        waiting = deque(self._request(_Type.READDIR, body) for _ in range(IN_FLIGHT // 8))
        try:
            while True:
                request = waiting.popleft()
                kind, _, answer = self._receive_answer({request})
                if kind == _Type.STATUS:
                    code, text = answer.status()
                    if code == Status.EOF:
                        break
                    raise SftpError(code, text)
                waiting.append(self._request(_Type.READDIR, body))
                for _ in range(answer.uint32()):
                    name = answer.string()
                    answer.string()
                    yield name, answer.attributes()
        finally:
            self._unread.update(waiting)
            self.close_handle(handle)

    def free_bytes(self, path: bytes) -> int | None:
        """Room left for us on the file system of *path*; None where the server does not tell."""
        if b"statvfs@openssh.com" not in self.extensions:
            return None
        answer = self._extended(b"statvfs@openssh.com", _string(path), _Type.EXTENDED_REPLY)
        _, fragment, _, _, available, _, _, available_inodes = (answer.uint64() for _ in range(8))
        return fragment * available if available_inodes else 0

    # --- messages -------------------------------------------------------------------------------------------------

    def _extended(self, name: bytes, body: bytes, expected: _Type) -> "_Message":
        return self._ask(_Type.EXTENDED, _string(name) + body, expected)

    def _ask(self, kind: _Type, body: bytes, expected: _Type) -> "_Message":
        request = self._request(kind, body)
        answered, _, answer = self._receive_answer({request})
        if answered == _Type.STATUS:
            raise SftpError(*answer.status())
        if answered != expected:
            raise SftpBroken(f"unexpected answer {answered} to {kind.name}")
        return answer

    def _expect_ok(self, request: int) -> None:
        kind, _, answer = self._receive_answer({request})
        if kind != _Type.STATUS:
            raise SftpBroken(f"unexpected answer {kind}")
        code, text = answer.status()
        if code != Status.OK:
            raise SftpError(code, text)

    def _request(self, kind: _Type, body: bytes) -> int:
        self._next_id = (self._next_id + 1) & 0xFFFFFFFF
        self._send_packet(kind, struct.pack(">I", self._next_id) + body)
        return self._next_id

    def _send_packet(self, kind: _Type, body: bytes) -> None:
        self._stream.sendall(struct.pack(">IB", len(body) + 1, kind) + body)

    def _receive_answer(self, expected: "set[int] | dict[int, tuple[int, int]]") -> tuple[int, int, "_Message"]:
        """The next answer to one of *expected*; answers nobody waits for any more are passed over."""
        while True:
            kind, answer = self._receive_packet()
            request = answer.uint32()
            if request in expected:
                return kind, request, answer
            if request not in self._unread:
                raise SftpBroken("an answer that was not asked for")
            self._unread.discard(request)

    def _receive_packet(self) -> tuple[int, "_Message"]:
        size, kind = struct.unpack(">IB", self._receive(5))
        if not 1 <= size <= _PACKET_MAX_BYTES:
            raise SftpBroken("what the server sends is not SFTP")
        return kind, _Message(self._receive(size - 1))

    def _receive(self, size: int) -> memoryview:
        """The next *size* bytes, valid until the next call."""
        if self._position and self._position == len(self._buffer):
            self._buffer = bytearray()
            self._position = 0
        while len(self._buffer) - self._position < size:
            if self._position:
                self._buffer = self._buffer[self._position :]
                self._position = 0
            part = self._stream.recv(2**20)
            if not part:
                raise SftpBroken("the server closed the connection")
            self._buffer += part
        start = self._position
        self._position += size
        return memoryview(self._buffer)[start : start + size]


class _Message:
    """The body of a packet, read from front to back."""

    def __init__(self, body: memoryview) -> None:
        self._body = body
        self._position = 0

    def at_end(self) -> bool:
        return self._position >= len(self._body)

    def uint32(self) -> int:
        return int.from_bytes(self._take(4), "big")

    def uint64(self) -> int:
        return int.from_bytes(self._take(8), "big")

    def view(self) -> memoryview:
        return self._take(self.uint32())

    def string(self) -> bytes:
        return bytes(self.view())

    def status(self) -> tuple[int, str]:
        """Code and text; the oldest servers send no text."""
        code = self.uint32()
        return code, "" if self.at_end() else self.string().decode(errors="replace")

    def attributes(self) -> Attributes:
        flags = self.uint32()
        size = self.uint64() if flags & 1 else 0
        if flags & 2:
            self._take(8)
        mode = self.uint32() if flags & 4 else 0
        modified = 0
        if flags & 8:
            self.uint32()
            modified = self.uint32()
        if flags & 0x80000000:
            for _ in range(2 * self.uint32()):
                self.view()
        return Attributes(size, mode, modified)

    def _take(self, size: int) -> memoryview:
        start = self._position
        self._position += size
        if self._position > len(self._body):
            raise SftpBroken("a message that ends too early")
        return self._body[start : self._position]


def _string(value: bytes) -> bytes:
    return struct.pack(">I", len(value)) + value
