"""A server program for the tests: started on a free loopback port, waited for until it answers, killed at the end."""

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

import psutil

READY_S = 60.0
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on at this moment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


class Server(ABC):
    """One server program with a folder of its own below /tmp. Started when made; as a context manager gone at the end.

    The port and the folder stay the same over `stop` and `start`, so an outage looks like one to a client.

    Attributes:
        folder: everything the server has and says; deleted by `close`.
        port: where it listens on 127.0.0.1.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=f"syncer-{type(self).__name__.lower()}-"))
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self.prepare()
            self.start()
        except BaseException:
            self.close()
            raise

    @abstractmethod
    def prepare(self) -> None:
        """Write the files the server needs; called once."""

    @abstractmethod
    def command(self) -> Sequence[str]:
        """The program in the foreground, with its arguments."""

    @abstractmethod
    def answers(self) -> bool:
        """Whether a client would be served now; may raise OSError for no."""

    @abstractmethod
    def url(self, path: str = "blobs") -> str:
        """The remote *path* of this server, as the user would write it."""

    @property
    @abstractmethod
    def environment(self) -> dict[str, str]:
        """What a client process needs in its environment on top of everything else."""

    def program_environment(self) -> dict[str, str]:
        """The environment of the server itself."""
        return dict(os.environ)

    def start(self) -> None:
        """Start the program and return when it answers.

        Raises: RuntimeError: it ended or does not answer; its output is in the message.
        """
        assert self._process is None, "it runs already"
        with open(self.folder / "output", "ab") as output:
            self._process = subprocess.Popen(
                self.command(),
                cwd=self.folder,
                env=self.program_environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                # Linux means the thread that starts it, so a helper thread must not ask for this.
                preexec_fn=_die_with_parent if threading.current_thread() is threading.main_thread() else None,
            )
        deadline = time.monotonic() + READY_S
        while True:
            with contextlib.suppress(OSError):
                if self.answers():
                    return
            if self._process.poll() is not None or time.monotonic() > deadline:
                said = (self.folder / "output").read_text(errors="replace")[-2000:]
                raise RuntimeError(f"{self.command()[0]} does not answer on port {self.port}:\n{said}")
            time.sleep(0.02)

    def stop(self) -> None:
        """Kill the program and all it has started, in the middle of whatever they do."""
        if self._process is None:
            return
        for process in self.family():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()
        self._process = None

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """For the time of a with block the server takes connections and bytes, and never answers."""
        family = self.family()
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):  # whatever served the connection before
                process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            for process in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """Stop, and delete the folder."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def greeting(self) -> bytes:
        """The first bytes the server sends to who connects."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
            return connection.recv(64)

    def family(self) -> list[psutil.Process]:
        """The program and all it has started that still run."""
        assert self._process is not None
        try:
            parent = psutil.Process(self._process.pid)
            return [parent, *parent.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []


def _die_with_parent() -> None:
    """Runs in the child before the program: no server outlives a test run that was killed."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
