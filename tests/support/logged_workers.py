"""Processes that work in a mount and log what they do (logged_work.py), until a crash ends them."""

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.support.command import CHECKOUT, environment
from tests.support.logged_state import Log, State
from tests.support.mounted import wait_until

WORKERS = 8
Judge = Callable[[State, Log, Path], State]


class Workers:
    """Each has a folder of its own below *mountpoint*, and a log in *logs*, where no crash reaches it."""

    def __init__(self, mountpoint: Path, logs: Path, count: int = WORKERS) -> None:
        self._mountpoint = mountpoint
        self._logs = logs
        self._states = {f"w{number}": State() for number in range(count)}
        self._processes: list[subprocess.Popen[bytes]] = []
        self.operations = 0
        """How many have returned, over all rounds judged so far."""

    def make_folders(self) -> None:
        for name in self._states:
            (self._mountpoint / name).mkdir()

    @contextlib.contextmanager
    def working(self, seed: object) -> Iterator[None]:
        """They work for as long as the body runs; a crash at its end is what ends them."""
        self._processes = [self._start(name, f"{name} {seed}") for name in self._states]
        try:
            yield
        finally:
            for process in self._processes:
                assert process.stdin
                process.stdin.close()
                process.wait(60)

    def ended(self) -> list[int]:
        """The exit codes of those that a call which failed has ended."""
        return [process.returncode for process in self._processes if process.poll() is not None]

    def _start(self, name: str, seed: str) -> "subprocess.Popen[bytes]":
        self._log(name).unlink(missing_ok=True)
        with open(self._logs / f"{name}.complaints", "wb") as complaints:
            return subprocess.Popen(
                [sys.executable, "-m", "tests.support.logged_work", self._mountpoint / name, self._log(name), seed],
                cwd=CHECKOUT,
                env=environment(),
                stdin=subprocess.PIPE,
                stderr=complaints,
            )

    def _log(self, name: str) -> Path:
        return self._logs / f"{name}.log"

    def wait(self, lines: int) -> None:
        """Return when the logs have so many lines together."""
        wait_until(lambda: self._are_there(lines), f"{lines} lines are logged")

    def _are_there(self, lines: int) -> bool:
        """Raises: AssertionError: nobody is left who would log them."""
        if sum(self._lines(name) for name in self._states) >= lines:
            return True
        codes = self.ended()
        assert len(codes) < len(self._processes), f"all workers have ended: {codes}, {self._complaints()}"
        return False

    def _complaints(self) -> list[str]:
        return [path.read_text(errors="replace") for path in sorted(self._logs.glob("*.complaints"))]

    def _lines(self, name: str) -> int:
        return self._log(name).read_bytes().count(b"\n") if self._log(name).exists() else 0

    def judge(self, judge: Judge) -> None:
        """Compare every folder with its log, and go on from what is there. Raises: AssertionError."""
        for name, state in self._states.items():
            log = Log.read(self._log(name))
            self._states[name] = judge(state, log, self._mountpoint / name)
            self.operations += len(log.done)
            self._log(name).unlink(missing_ok=True)
