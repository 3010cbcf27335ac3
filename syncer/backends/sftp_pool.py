"""The connection to an SSH server and the SFTP sessions on it, shared by the threads of `sftp.py`.

Connecting, waiting for a session and the work in it all block; none of it runs on the event loop. What the event loop
calls (`drop_if_silent`, `close`) never waits.
"""

import threading
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from syncer.backends.sftp_session import KEPT_S, SessionRefused, SftpBroken, SftpError, SftpSession
from syncer.backends.unreachable import unreachable
from syncer.errors import BackendError, RemoteRefused, RemoteUnreachable

T = TypeVar("T")


class Connection(Protocol):
    """What `ssh.SshConnection` offers; its methods block and are called in threads."""

    @property
    def alive(self) -> bool: ...

    @property
    def silent_s(self) -> float: ...

    def open_session(self) -> SftpSession: ...

    def close(self) -> None: ...


class Call(Generic[T]):
    """What a thread is to do, unless its caller has gone before it got a session."""

    def __init__(self, work: Callable[[SftpSession], T]) -> None:
        self.work = work
        self.given_up = False

    def check_wanted(self) -> None:
        """Raises: RemoteUnreachable, which nobody sees: a delete given up must not happen a minute later."""
        if self.given_up:
            raise RemoteUnreachable("given up")


class SessionPool:
    """The connection and its idle sessions. Threads meet here; nobody else holds a session between calls."""

    def __init__(self, name: str, connect: Callable[[], Connection]) -> None:
        self._name = name
        self._connect = connect
        self._connecting = threading.Lock()
        self._changed = threading.Condition()
        # INVARIANT: all below is touched only by who holds _changed; _idle and _open speak of _connection alone.
        self._connection: Connection | None = None
        self._idle: list[SftpSession] = []
        self._open = 0
        self._closed = False
        self._tidies = False
        """Whether a thread waits to close what idle sessions keep open."""

    def run(self, call: Call[T]) -> T:
        """Do the call's work in a session; again in another one if it was given one that had died while idle.

        Raises: SftpError and BackendError from the work; RemoteRefused, RemoteUnreachable.
        """
        while True:
            connection, session, fresh = self._take(call)
            try:
                call.check_wanted()
                result = call.work(session)
            except (SftpError, BackendError):
                self._give_back(connection, session)
                raise
            except (SftpBroken, OSError, EOFError) as error:
                # Seldom a single session: what cut it off has mostly cut off all of them.
                self._drop(connection)
                if fresh:
                    raise unreachable(self._name, error) from error
            except BaseException:
                self._drop(connection)
                raise
            else:
                self._give_back(connection, session)
                return result

    def drop_if_silent(self, silence_s: float) -> None:
        """Break a connection that says nothing, which frees the threads that wait on it."""
        with self._changed:
            connection = self._connection
        if connection is not None and connection.silent_s > silence_s:
            self._drop(connection)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            connection = self._connection
        if connection is not None:
            self._drop(connection)

    def _take(self, call: Call[T]) -> tuple[Connection, SftpSession, bool]:
        """A session for the caller alone, and whether it is new."""
        while True:
            connection = self._connected(call)
            with self._changed:
                if self._connection is not connection:
                    continue
                if self._idle:
                    return connection, self._idle.pop(), False
                self._open += 1
            try:
                return connection, connection.open_session(), True
            except SessionRefused as error:
                if not self._wait_for_idle(connection):
                    raise RemoteRefused(f"{self._name}: {error}", hint="see MaxSessions in sshd_config") from error
            except BaseException:
                self._drop(connection)
                raise

    def _wait_for_idle(self, connection: Connection) -> bool:
        """After a refused session: wait for one of those we have, since the server allows fewer than we would use.

        Returns False when we have none at all.
        """
        with self._changed:
            if self._connection is not connection:
                return True
            self._open -= 1
            if not self._open:
                return False
            self._changed.wait_for(lambda: self._idle or self._connection is not connection)
            return True

    def _connected(self, call: Call[T]) -> Connection:
        """The connection, made anew if it is not there or known to be dead. One thread at a time connects."""
        with self._connecting:
            call.check_wanted()
            connection = self._current()
            if connection is not None:
                if connection.alive:
                    return connection
                self._drop(connection)
            connection = self._connect()
            with self._changed:
                self._connection, self._idle, self._open = connection, [], 0
            try:
                self._current()
            except RemoteUnreachable:
                self._drop(connection)
                raise
            return connection

    def _current(self) -> Connection | None:
        with self._changed:
            if self._closed:
                raise RemoteUnreachable(f"{self._name} is closed")
            return self._connection

    def _give_back(self, connection: Connection, session: SftpSession) -> None:
        with self._changed:
            if self._connection is connection:
                self._idle.append(session)
                self._changed.notify_all()  # one that was given up may wake and not want it
                if session.keeps_open and not self._tidies:
                    self._tidies = True
                    timer = threading.Timer(KEPT_S, self._tidy)
                    timer.daemon = True
                    timer.start()

    def _tidy(self) -> None:
        """In a thread: close what idle sessions have kept open long enough. A disk in use cannot be unplugged there."""
        with self._changed:
            self._tidies = False
            connection = self._connection
            if connection is None:
                return
            tidied = [session for session in self._idle if session.keeps_open]
            self._idle = [session for session in self._idle if not session.keeps_open]
        for session in tidied:
            try:
                session.let_go_old()
            except (SftpBroken, OSError, EOFError):
                self._drop(connection)
                return
            self._give_back(connection, session)

    def _drop(self, connection: Connection) -> None:
        """Never blocks, whatever state the connection is in. Its other sessions break with it."""
        with self._changed:
            if self._connection is connection:
                self._connection, self._idle, self._open = None, [], 0
                self._changed.notify_all()
        threading.Thread(target=connection.close, name="syncer-ssh-close", daemon=True).start()
