"""Frees the caller of a call that waits (for the remote, or for room) when a signal comes for it.

The kernel says so with a request of its own, FUSE_INTERRUPT, which libfuse takes and pyfuse3 does not pass on. So
while a call waits, every request is read here first. An interrupt ends the wait that it names; what is anything else
lies in a file in memory that stands in for the device while libfuse reads that one request. While nothing waits,
nothing is looked at and nothing costs more.

All on the event loop's thread.
"""

import contextlib
import errno
import os
import struct
from collections import deque
from collections.abc import Iterator

import trio

_BUFFER_BYTES = 1 << 21
"""More than the largest request: the kernel refuses to be read with less."""
_INTERRUPT = 36
_REQUEST = struct.Struct("<IIQ")  # fuse_in_header: length, opcode, unique, ...
_REQUEST_HEADER_BYTES = 40
_INTERRUPTED = struct.Struct("<Q")  # fuse_interrupt_in: unique of the request nobody waits for any more
_REPLY = struct.Struct("<IiQ")  # fuse_out_header: length, error, unique
REMEMBERED = 65_536


class Interrupts:
    """Which calls wait, and the device while they do.

    A handler runs up to its first wait before the next request is read, so the request read last is its own.
    """

    def __init__(self) -> None:
        self._waiting: dict[int | None, trio.CancelScope] = {}
        """By the request's number; None for the one that was read before anything waited, and so went by unseen."""
        self._seen: int | None = None
        """The request read last, if it was seen."""
        self._passed: deque[int] = deque(maxlen=REMEMBERED)
        self._deaf = 0
        self._device = self._file = -1
        self._descriptor = -1
        """libfuse's, while the file stands in for the device."""
        self._request_bytes = 0
        self._buffer = bytearray()

    @property
    def wanted(self) -> bool:
        """Whether something waits, so that each request has to be looked at."""
        return bool(self._waiting)

    @contextlib.contextmanager
    def heard(self) -> Iterator[None]:
        """A wait that a signal for the caller ends; entered before the handler has waited for anything.

        Raises: OSError EINTR.
        """
        number = self._seen
        if number in self._waiting or (number is None and self._deaf):
            yield  # it cannot be told whose an interrupt would be
            return
        scope = self._waiting[number] = trio.CancelScope()
        try:
            with scope:
                yield
        finally:
            del self._waiting[number]
            if not self._waiting:
                self._seen = None
                self._passed.clear()
        if scope.cancelled_caught:
            raise OSError(errno.EINTR, "interrupted")

    @contextlib.contextmanager
    def deaf(self) -> Iterator[None]:
        """A wait that no signal ends, and that must not be taken for another."""
        self._deaf += 1
        try:
            yield
        finally:
            self._deaf -= 1

    def pass_on(self, descriptor: int) -> bool:
        """Read the request that is ready at *descriptor*, which is libfuse's; whether libfuse has something to read."""
        if self._device < 0:
            self._device = os.dup(descriptor)
            self._file = os.memfd_create("syncer-request", os.MFD_CLOEXEC)
            self._buffer = bytearray(_BUFFER_BYTES)
        try:
            length = os.readv(self._device, [self._buffer])
        except OSError as error:
            return error.errno not in (errno.ENOENT, errno.EINTR, errno.EAGAIN)  # libfuse meets the others again
        _, opcode, number = _REQUEST.unpack_from(self._buffer)
        if opcode == _INTERRUPT:
            self._interrupt(_INTERRUPTED.unpack_from(self._buffer, _REQUEST_HEADER_BYTES)[0])
            return False
        self._seen = number
        self._passed.append(number)
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, memoryview(self._buffer)[:length], 0)
        os.lseek(self._file, 0, os.SEEK_SET)
        os.dup2(self._file, descriptor, inheritable=False)
        self._descriptor, self._request_bytes = descriptor, length
        return True

    def _interrupt(self, number: int) -> None:
        scope = self._waiting.get(number)
        if scope is None and number not in self._passed:
            scope = self._waiting.get(None)
        if scope is not None:
            scope.cancel()

    def restore(self) -> None:
        """Give libfuse the device again, and the device what libfuse has answered meanwhile: it lies in the file."""
        if self._descriptor < 0:
            return
        os.dup2(self._device, self._descriptor, inheritable=False)
        self._descriptor = -1
        answers = memoryview(os.pread(self._file, os.fstat(self._file).st_size, self._request_bytes))
        while answers:
            length = _REPLY.unpack_from(answers)[0]
            with contextlib.suppress(OSError):  # nobody waits for it any more, or the mount has ended
                os.write(self._device, answers[:length])
            answers = answers[length:]
