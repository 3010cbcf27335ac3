"""What the file system's process and the porter say to each other, over a pair of sockets.

Each message is its length (u32, little endian) and msgpack of one of the classes below. Both sides refuse a message
that is too long for its kind of sender, and take the other for lost when one cannot be decoded.
"""

import struct
from typing import TypeVar

import msgspec
import trio

from syncer.blocks.pack import LIST_MAX_BYTES
from syncer.errors import PorterLost

LENGTH = struct.Struct("<I")
ORDER_MAX_BYTES = 64 * 1024 * 1024
"""Of a message to the porter: the small blocks of a pack are in it."""
ANSWER_MAX_BYTES = LIST_MAX_BYTES + 64 * 1024
"""Of a message from the porter: the list of a pack is in it."""
RECEIVE_BYTES = 1024 * 1024


class Message(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Fields stand in their order, after the name of the class."""


# --- to the porter ------------------------------------------------------------------------------------------------


class Open(Message, frozen=True):
    """The first message. *proof* is what the object *proof_key* holds on the remote that is meant."""

    url: str
    password_file: str | None
    cache: str
    level: int
    log_level: int
    proof_key: str
    proof: bytes


class Make(Message, frozen=True):
    """Make a pack of what can be read and keep it under this number. Blocks without bytes are files of the cache.

    Answer: Made.
    """

    number: int
    blocks: list[tuple[bytes, int, bytes | None]]


class Put(Message, frozen=True):
    """Put the pack that was made under a number, once. Answer: Done."""

    number: int
    pack: int


class Cancel(Message, frozen=True):
    """Nobody waits for the answer with that number any more; a pack of that number is dropped."""

    number: int


Order = Open | Make | Put | Cancel

# --- from the porter ----------------------------------------------------------------------------------------------


class Alive(Message, frozen=True):
    """Said every second."""


class Made(Message, frozen=True):
    """A pack is there: its id, its length, its list and footer, and the places of the blocks that are not in it."""

    number: int
    id: bytes
    size_bytes: int
    tail: bytes
    unreadable: list[int]


class Done(Message, frozen=True):
    number: int


class Failed(Message, frozen=True):
    """*error* is the name of a class of BackendError; empty for trouble that is not the remote's."""

    number: int
    error: str
    text: str
    hint: str


class Said(Message, frozen=True):
    """A record for the log."""

    level: int
    logger: str
    text: str


Answer = Alive | Made | Done | Failed | Said

M = TypeVar("M")


class Line:
    """One end of the pair. One task sends, one receives."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream

    async def send(self, message: Message) -> None:
        """Raises: PorterLost: nobody is there any more."""
        data = msgspec.msgpack.encode(message)
        try:
            await self._stream.send_all(LENGTH.pack(len(data)))
            await self._stream.send_all(data)
        except trio.BrokenResourceError as error:
            raise PorterLost("the line is broken") from error

    async def receive(self, decoder: "msgspec.msgpack.Decoder[M]", max_bytes: int) -> M | None:
        """The next message; None when the other side has closed.

        Raises: PorterLost.
        """
        head = await self._read(LENGTH.size)
        if not head:
            return None
        (length,) = LENGTH.unpack(head)
        if length > max_bytes:
            raise PorterLost(f"a message of {length} bytes came")
        data = await self._read(length)
        if not data:
            raise PorterLost("a message is cut short")
        try:
            return decoder.decode(data)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise PorterLost(f"what came is no message: {error}") from error

    async def _read(self, length: int) -> bytearray:
        """Just so many bytes; none when the other side has closed before the first. Raises: PorterLost."""
        data = bytearray()
        while len(data) < length:
            try:
                part = await self._stream.receive_some(min(length - len(data), RECEIVE_BYTES))
            except trio.BrokenResourceError as error:
                raise PorterLost("the line is broken") from error
            if not part:
                if data:
                    raise PorterLost("a message is cut short")
                break
            data += part
        return data

    async def close(self) -> None:
        await self._stream.aclose()
