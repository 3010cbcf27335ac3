"""Running worker.py: one or several processes that start together, and what they report."""

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

WORKER = Path(__file__).with_name("worker.py")
PREPARE_S = 300.0
"""How long a worker may take to get ready: it makes its random bytes, and may look at the files of earlier ones."""
GRACE_S = 300.0
"""How long a worker may go on after the cap: a call that has begun (an fsync that uploads) ends when it ends."""
CACHES = Path("/proc/sys/vm/drop_caches")


class TaskFailed(Exception):
    """A worker ended with an error, or had to be killed."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a worker did; see worker.py. `seconds` of several together is from the first start to the last end."""

    amount: float
    seconds: float
    capped: bool
    samples_s: tuple[float, ...]


class Task:
    """One worker process, ready to go."""

    def __init__(self, workload: str, folder: Path, cap_s: float, parameters: Mapping[str, object]) -> None:
        self._name = workload
        self._cap_s = cap_s
        self._process = subprocess.Popen(
            [sys.executable, "-I", WORKER, workload, folder, str(cap_s), json.dumps(dict(parameters))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def wait_ready(self) -> None:
        """Return when the worker waits for `go`. Raises: TaskFailed."""
        assert self._process.stdout
        ready, _, _ = select.select([self._process.stdout], [], [], PREPARE_S)
        if not ready or os.read(self._process.stdout.fileno(), 64) != b"ready\n":
            raise self._failure("did not get ready")

    def go(self) -> None:
        """Start the workload; once it runs, a second call tells a loop to end."""
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):  # it failed: `result` will tell how
            self._process.stdin.write(b"go\n")
            self._process.stdin.flush()

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def result(self) -> dict[str, object]:
        """Wait for the worker's end. Raises: TaskFailed."""
        try:
            out, complaint = self._process.communicate(timeout=self._cap_s + GRACE_S)
        except subprocess.TimeoutExpired:
            raise self._failure("hung") from None
        if self._process.returncode:
            raise TaskFailed(f"{self._name}: {_last_line(complaint)}")
        found: dict[str, object] = json.loads(out)
        return found

    def close(self) -> None:
        """Kill the worker if it still runs."""
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired, ValueError):  # it may hang in a dead mount for ever
            self._process.communicate(timeout=5)

    def _failure(self, what: str) -> TaskFailed:
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            _, complaint = self._process.communicate(timeout=5)
            what = f"{what}: {_last_line(complaint)}" if complaint else what
        return TaskFailed(f"{self._name} {what}")


@contextlib.contextmanager
def ready(workload: str, folders: list[Path], cap_s: float, parameters: Mapping[str, object]) -> Iterator[list[Task]]:
    """A worker for each of *folders*, all waiting for `go`; none of them is left at the end. Raises: TaskFailed."""
    tasks: list[Task] = []
    try:
        for folder in folders:
            tasks.append(Task(workload, folder, cap_s, parameters))
        for task in tasks:
            task.wait_ready()
        yield tasks
    finally:
        for task in tasks:
            task.close()


def run(
    workload: str,
    folders: list[Path],
    cap_s: float,
    parameters: Mapping[str, object],
    before: Callable[[], None] = lambda: None,
) -> Outcome:
    """Run a workload, in each of *folders* at once; *before* is called when all are ready. Raises: TaskFailed."""
    with ready(workload, folders, cap_s, parameters) as tasks:
        before()
        for task in tasks:
            task.go()
        return joined([task.result() for task in tasks])


def joined(found: list[dict[str, object]]) -> Outcome:
    """The reports of workers that ran together, as one."""

    def numbers(name: str) -> list[float]:
        return [float(str(one[name])) for one in found]

    samples: list[float] = []
    for one in found:
        listed = one["samples_s"]
        assert isinstance(listed, list)
        samples += listed
    return Outcome(
        amount=sum(numbers("amount")),
        seconds=max(numbers("ended")) - min(numbers("began")),
        capped=any(one["capped"] for one in found),
        samples_s=tuple(samples),
    )


def empty_caches(*, pages: bool = True) -> None:
    """Drop the kernel's clean pages (unless told not to), directory entries and inodes, of every file system alike.

    So "cold" means that neither the mount nor the folders below it have anything in the kernel; what the disk, or the
    machine's host, keeps is beyond reach.

    Raises: PermissionError: only root may.
    """
    os.sync()
    CACHES.write_text("3\n" if pages else "2\n")


def wait_until(condition: Callable[[], bool], what: str, deadline_s: float) -> None:
    """Look again and again until *condition* holds. Raises: TaskFailed: it did not in time."""
    end = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > end:
            raise TaskFailed(f"waited {deadline_s:g} s in vain until {what}")
        time.sleep(0.02)


def _last_line(complaint: bytes) -> str:
    lines = complaint.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"
