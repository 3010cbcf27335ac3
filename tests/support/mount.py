"""A syncer mount under observation: started, ended, killed and mounted again as a user or a crash would do it.

The mount is a process of its own, through the command line. Two guards stand beside it: coreutils' `timeout` kills it
when it outlives its time, so that a program that hangs in the mount (the test itself, say) gets an error instead of
waiting for ever; and a `Watch` looks from outside at what the process and its DATA really take.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from syncer import config, datadir
from syncer.config import Config
from tests.support.command import SYNCER, environment, syncer
from tests.support.mounted import cleared, is_mounted, wait_until

READY_S = 60.0
LOOK_EVERY_S = 0.1
MEGABYTE = 1_000_000
MEMORY_MAX_BYTES = 300 * MEGABYTE
"""Of the mount and its porter together, while much goes to S3: each has an interpreter with boto3, of 60 MB."""
NO_WARNING = r"(?!)"
"""Matches nothing."""


class Watch:
    """What DATA and the mount's processes took at most, seen from outside: `du`, /proc/PID/fd and /proc/PID/status.

    `du` looks at one thing after the other: bytes that make room for others meanwhile may count twice. Where DATA has a
    file system to itself, that one is asked, which knows what it holds at one instant.

    Runs in a thread of its own from `start` to `stop`. Nothing here asks syncer.

    Attributes:
        disk_bytes: the most that lay in DATA at once, deleted files that were still open included.
        parts: what that was, by name.
        memory_bytes: the peak resident memory.
        looks: how often it has looked.
    """

    def __init__(self, data: Path, pid: int, *, alone: bool) -> None:
        """*alone*: DATA has a file system to itself."""
        self.disk_bytes = 0
        self.parts: dict[str, int] = {}
        self.memory_bytes = 0
        self.looks = 0
        self._data = data
        self._pid = pid
        self._alone = alone
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(LOOK_EVERY_S):
            self.look()

    def look(self) -> None:
        with contextlib.suppress(OSError):  # the disk below DATA is gone, or its power
            self._look()

    def _look(self) -> None:
        parts = self._at_once() or {**self._on_disk(), "deleted": self._deleted_but_open()}
        disk_bytes = sum(parts.values())
        if disk_bytes > self.disk_bytes:
            self.disk_bytes, self.parts = disk_bytes, parts
        porters = sum(own_memory_bytes(child) for child in children(self._pid))
        self.memory_bytes = max(self.memory_bytes, peak_memory_bytes(self._pid) + porters)
        self.looks += 1

    def _at_once(self) -> dict[str, int]:
        """What the file system holds that is DATA's alone; nothing when there is none."""
        if not self._alone:
            return {}
        found = os.statvfs(self._data)
        return {"all": (found.f_blocks - found.f_bfree) * found.f_frsize}

    def _on_disk(self) -> dict[str, int]:
        """The bytes of each thing in DATA."""
        # What vanishes while du walks makes it complain and exit with 1; its sums stand.
        things = [os.path.join(self._data, name) for name in os.listdir(self._data)]
        command = ["du", "--summarize", "--block-size=1", "--one-file-system", "--", *things]
        outcome = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
        lines = [line.split("\t") for line in outcome.stdout.splitlines()]
        return {os.path.basename(path): int(size) for size, path in lines}

    def _deleted_but_open(self) -> int:
        total = 0
        folder = f"/proc/{self._pid}/fd"
        with contextlib.suppress(OSError):
            for name in os.listdir(folder):
                with contextlib.suppress(OSError):
                    path = f"{folder}/{name}"
                    target = os.readlink(path)
                    if target.startswith(f"{self._data}/") and target.endswith(" (deleted)"):
                        total += os.stat(path).st_blocks * 512
        return total


def peak_memory_bytes(pid: int) -> int:
    """The most resident memory the process has had so far (VmHWM of proc(5)); 0 when it has ended."""
    return _memory_bytes(pid, "VmHWM")


def own_memory_bytes(pid: int) -> int:
    """What the process has now beside what it shares with others (RssAnon of proc(5)); 0 when it has ended."""
    return _memory_bytes(pid, "RssAnon")


def _memory_bytes(pid: int, field: str) -> int:
    with contextlib.suppress(OSError):
        found = re.search(rf"{field}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
        if found:
            return int(found[1]) * 1024
    return 0


def children(pid: int) -> list[int]:
    """The processes that a process has started, and that have not ended (proc(5))."""
    with contextlib.suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


class Mount:
    """One DATA, one mountpoint and one remote, mounted and unmounted any number of times.

    Use it as a context manager: whatever state the test leaves behind, no process and no mount survives it.

    Attributes:
        data, path: DATA and the mountpoint.
        program: the command that mounts.
        expected_warnings: a pattern for the log lines of level WARNING and above that this test brings about; any
            other one fails `finish`.
        disk_bytes, memory_bytes: the most that any mount so far has taken.
    """

    def __init__(
        self,
        place: Path,
        remote: str,
        megabytes: int,
        *,
        extra: Mapping[str, str] | None = None,
        lifetime_s: float = 120.0,
        data: Path | None = None,
        alone: bool = False,
        **settings: object,
    ) -> None:
        """Below *place*, *data* aside, which may be *alone* on its file system. *settings* are keys of config.toml;
        after *lifetime_s* a mount is killed.
        """
        self.data = data or place / "data"
        self.path = place / "mnt"
        self.path.mkdir(parents=True, exist_ok=True)
        self.expected_warnings = NO_WARNING
        self.disk_bytes = 0
        self.memory_bytes = 0
        self.looks = 0
        self._config = Config(remote=remote, budget_bytes=megabytes * MEGABYTE, **settings)  # type: ignore[arg-type]
        self._plain = not settings
        self._alone = alone
        self.program: Sequence[str] = SYNCER
        self._extra = dict(extra or {})
        self._lifetime_s = lifetime_s
        self._place = place
        self._stack = contextlib.ExitStack()
        self._process: subprocess.Popen[bytes] | None = None
        self._serving: int | None = None
        """Who serves the mount that was started last: DATA may be on a disk that does not tell any more."""
        self._watch: Watch | None = None
        self._parts: dict[str, int] = {}

    def __enter__(self) -> Self:
        self._stack.enter_context(cleared(self.path))
        return self

    def __exit__(self, *exc_info: object) -> None:
        if exc_info[0] is not None and self._output.exists():
            print(f"the mount's output:\n{self.output}\nits log:\n{self._log_tail()}")
        with self._stack:
            if self._process is not None:
                self._process.kill()  # the guard; the mount itself is ended by `cleared`
            self._end_watch()
        self._reap()

    # --- begin -----------------------------------------------------------------------------------------------------

    def start(self, *options: str) -> Self:
        """Mount and return when the ready line is there.

        Raises: AssertionError: it ended, or said nothing within READY_S; its output is in the message.
        """
        assert self._process is None, "it is mounted already"
        self._output.unlink(missing_ok=True)
        with open(self._output, "wb") as output:
            guard = ["timeout", "--signal=KILL", f"{self._lifetime_s:g}"]
            self._process = subprocess.Popen(
                [*guard, *self.program, *self._arguments(), *options],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment(self._extra),
            )
        deadline = time.monotonic() + READY_S
        while " is ready (" not in self.output:
            assert self._process.poll() is None and time.monotonic() < deadline, f"no mount: {self.output}"
            time.sleep(0.01)
        self._serving = self.pid
        self._watch = Watch(self.data, self._serving, alone=self._alone)
        return self

    def _arguments(self) -> list[str]:
        if self._plain:
            remote, budget = self._config.remote, str(self._config.budget_bytes // MEGABYTE)
            return [str(self.data), remote, str(self.path), budget]
        file = self._place / "settings.toml"
        config.save(file, self._config)
        return ["mount", "--config", str(file), str(self.data), str(self.path)]

    @property
    def _output(self) -> Path:
        return self._place / "output"

    @property
    def output(self) -> str:
        """What the mount has printed so far."""
        return self._output.read_text(errors="replace")

    @property
    def pid(self) -> int:
        """The process that serves the mount."""
        pid = datadir.lock_pid(self.data)
        assert pid is not None
        return pid

    # --- commands --------------------------------------------------------------------------------------------------

    def run(self, *arguments: object, timeout_s: float = 60.0) -> str:
        """Run another syncer command, which must succeed; returns what it prints."""
        outcome = syncer(*arguments, extra=self._extra, timeout_s=timeout_s)
        assert outcome.returncode == 0, f"syncer {arguments}: {outcome.returncode}: {outcome.stderr}"
        return outcome.stdout

    def flush(self, timeout_s: float = 60.0) -> None:
        self.run("flush", self.data, timeout_s=timeout_s)

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = json.loads(self.run("status", self.data, "--json"))
        return status

    # --- end -------------------------------------------------------------------------------------------------------

    def stop(self, number: signal.Signals = signal.SIGTERM, *, within_s: float = 60.0) -> str:
        """End the mount with a signal and return its closing line. Raises: AssertionError: it was no clean end."""
        os.kill(self.pid, number)
        return self.ended(within_s=within_s)

    def umount(self, *, wait: bool = True, timeout_s: float = 120.0) -> str:
        """`syncer umount [--wait]`, which must say the same as the mount; returns the closing line."""
        self._end_watch()
        said = self.run("umount", self.path, *(["--wait"] if wait else []), timeout_s=timeout_s)
        line = self.ended()
        assert said.strip() == line
        return line

    def ended(self, *, within_s: float = 60.0) -> str:
        """Wait for an end that was asked for; returns the closing line."""
        assert self._process is not None
        try:
            code = self._process.wait(within_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the mount does not end within {within_s:g} s: {self.output}") from None
        self._end_watch()
        self._process = None
        lines = self.output.splitlines()
        assert code == 0, f"exit code {code}: {self.output}"
        assert " is unmounted; " in lines[-1], self.output
        assert len(lines) == 2 or self.expected_warnings != NO_WARNING, self.output
        assert not is_mounted(self.path)
        assert not datadir.is_locked(self.data)
        return lines[-1]

    def kill(self) -> None:
        """SIGKILL, as a crash; then clear the dead mount away as a user does."""
        self.kill_process()
        self.clear()

    def kill_process(self) -> None:
        """SIGKILL; the dead mount stays in the way."""
        assert self._serving is not None
        self._end_watch()
        os.kill(self._serving, signal.SIGKILL)
        wait_until(lambda: not datadir.is_locked(self.data), "the killed mount has let go of DATA")
        self._reap()

    def clear(self) -> None:
        """Remove the mount of a dead process, as a user does."""
        self.run("umount", self.path)

    def crashed(self) -> None:
        """Wait until it has died of itself; then clear the dead mount away."""
        assert self._process is not None
        self._process.wait(self._lifetime_s)
        self._end_watch()
        self._process = None
        self.run("umount", self.path)

    def forget_data(self) -> None:
        """Delete DATA, as a lost disk would."""
        assert not datadir.is_locked(self.data)
        self.finish()
        shutil.rmtree(self.data)

    def _reap(self) -> None:
        if self._process is not None:
            self._process.wait(30)
            self._process = None

    def _end_watch(self) -> None:
        if self._watch is not None:
            self._watch.look()
            self._watch.stop()
            if self._watch.disk_bytes > self.disk_bytes:
                self.disk_bytes, self._parts = self._watch.disk_bytes, self._watch.parts
            self.memory_bytes = max(self.memory_bytes, self._watch.memory_bytes)
            self.looks += self._watch.looks
            self._watch = None

    def _log_tail(self) -> str:
        try:
            return (self.data / datadir.LOG).read_text(errors="replace")[-4000:]
        except OSError as error:
            return str(error)

    # --- judgement -------------------------------------------------------------------------------------------------

    def warnings(self) -> list[str]:
        """Lines of the log of level WARNING or above that the test does not expect."""
        lines = [line for file in sorted(self.data.glob("log*")) for line in file.read_text().splitlines()]
        loud = [line for line in lines if re.match(r"\S+Z (WARNING|ERROR|CRITICAL) ", line)]
        return [line for line in loud if not re.search(self.expected_warnings, line)]

    def finish(self) -> None:
        """What holds at the end of every test: within the budget, little memory, nothing strange in the log."""
        assert self._process is None, "end the mount first"
        assert self.warnings() == [], self.warnings()
        assert self.looks, "nobody has looked"
        budget_bytes = self._config.budget_bytes
        assert self.disk_bytes <= budget_bytes, f"DATA took {self.disk_bytes} of {budget_bytes}: {self._parts}"
        assert self.memory_bytes < MEMORY_MAX_BYTES, f"the mount took {self.memory_bytes} bytes of memory"


def forget_pages(path: Path | bytes) -> None:
    """Make the kernel drop what it has cached of a file, so that its bytes come from the file system again."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def place_for_a_mount() -> Iterator[Path]:
    """A folder below /tmp: shorter than pytest's own, which a unix socket in DATA might not fit."""
    with tempfile.TemporaryDirectory(prefix="syncer-mount-") as folder:
        yield Path(folder)
