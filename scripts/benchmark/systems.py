"""A file system under measurement: how it is mounted in a folder of its own, settled, and ended again.

Each mount has a fresh store, runs in the foreground as a process of ours, and is gone afterwards whatever happened.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from scripts.benchmark.tasks import TaskFailed, wait_until

MOUNT_S = 60.0
UMOUNT_S = 120.0
SETTLE_S = 900.0


class Mount:
    """A mounted system.

    Attributes:
        path: where it is.
        upload: returns when everything written is where the system keeps it for good.
        pid: of the process that serves it, where it has one; 0 else.
        peak_bytes: after the end, the most resident memory its processes had, together.
    """

    def __init__(self, path: Path, upload: Callable[[], None] = lambda: None) -> None:
        self.path = path
        self.upload = upload
        self.pid = 0
        self.peak_bytes = 0

    def settle(self) -> None:
        """Let what earlier work left behind come to its end, so that it does not disturb what is measured next."""
        self.upload()
        os.sync()


class System(ABC):
    """One column of the table.

    Attributes:
        key: its name on the command line.
        title: its name in the table.
        debian, python: the packages that bring it.
    """

    key: str
    title: str
    debian: tuple[str, ...] = ()
    python: tuple[str, ...] = ()

    @abstractmethod
    def missing(self) -> str | None:
        """Why it cannot run here, or None."""

    def version(self) -> str:
        """What exactly was measured, for the report."""
        return ""

    @abstractmethod
    def mounted(self, folder: Path) -> contextlib.AbstractContextManager[Mount]:
        """Mount with a fresh store below *folder* (empty, and deleted later). Raises: TaskFailed."""


class PlainDirectory(System):
    """No file system of ours at all: what the disk below gives."""

    key = "plain"
    title = "plain directory"

    def missing(self) -> str | None:
        return None

    @contextlib.contextmanager
    def mounted(self, folder: Path) -> Iterator[Mount]:
        yield Mount(folder)


@contextlib.contextmanager
def scratch(parent: Path | None) -> Iterator[Path]:
    """An empty folder that is gone at the end; what is still mounted below it is not followed."""
    folder = Path(tempfile.mkdtemp(prefix="syncer-bench-", dir=parent))
    try:
        yield folder
    finally:
        for mountpoint in mountpoints():
            if folder in mountpoint.parents:
                subprocess.run(["fusermount3", "-u", "-z", mountpoint], check=False, timeout=UMOUNT_S)
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def running(
    command: Sequence[str | Path],
    mount: Mount,
    folder: Path,
    environment: Mapping[str, str] | None = None,
    end: Sequence[str | Path] | None = None,
) -> Iterator[Mount]:
    """Run *command*, which mounts at `mount.path` and stays; *end* (fusermount3 unless given) unmounts it.

    Its output goes to `folder/output`. It dies with us. Raises: TaskFailed: it ended or did not mount; what it said
    last is in the message.
    """
    mount.path.mkdir(exist_ok=True)
    with open(folder / "output", "ab") as output:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *command],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    mount.pid = process.pid
    try:
        wait_until(lambda: process.poll() is not None or _serves(mount.path), f"{command[0]} mounts", MOUNT_S)
        if process.poll() is not None:
            said = (folder / "output").read_text(errors="replace").strip().splitlines()
            raise TaskFailed(f"{Path(command[0]).name} did not mount: {' / '.join(said[-3:])}")
        try:
            yield mount
        finally:
            mount.peak_bytes = peak_bytes(process.pid)
            _unmount(process, end or ["fusermount3", "-u", mount.path])
    finally:
        _end(process)
        if mount.path in mountpoints():
            subprocess.run(["fusermount3", "-u", "-z", mount.path], check=False, timeout=UMOUNT_S)


def mountpoints() -> list[Path]:
    """Everything that is mounted (proc(5)); no path of a mount is touched."""
    with open("/proc/self/mountinfo", "rb") as table:
        return [Path(os.fsdecode(line.split(b" ")[4])) for line in table]


def peak_bytes(pid: int) -> int:
    """The most resident memory that the process *pid* and all below it had, each at its own peak."""
    return _memory_bytes(pid, "VmHWM:")


def resident_bytes(pid: int) -> int:
    """The resident memory of the process *pid* and all below it now."""
    return _memory_bytes(pid, "VmRSS:")


def _memory_bytes(pid: int, field: str) -> int:
    total = 0
    todo = [pid]
    while todo:
        one = todo.pop()
        with contextlib.suppress(OSError):  # it has just ended
            todo += map(int, Path(f"/proc/{one}/task/{one}/children").read_text().split())
            status = Path(f"/proc/{one}/status").read_text()
            total += sum(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(field))
    return total


def processor_s(pid: int) -> float:
    """How long the process *pid* has had the processor, in steps of a hundredth of a second (proc(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def program(name: str) -> str | None:
    """The path of a program, of this Python's environment first."""
    return shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))


def first_line(*command: str | Path, containing: str = "") -> str:
    """The first line, of those with *containing* in them, of what a program says of itself."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    lines = (done.stdout + done.stderr).strip().splitlines()
    return next((line.strip() for line in lines if containing in line), "")


def _serves(path: Path) -> bool:
    if path not in mountpoints():
        return False
    # In a process of its own: a mount that hangs must not hang the benchmark.
    try:
        return subprocess.run(["stat", path], capture_output=True, timeout=MOUNT_S, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def _unmount(process: "subprocess.Popen[bytes]", command: Sequence[str | Path]) -> None:
    """Try as long as the mount's *process* lives, for a while: something may still look at it ("device busy")."""
    end = time.monotonic() + UMOUNT_S
    while process.poll() is None and time.monotonic() < end:
        with contextlib.suppress(subprocess.TimeoutExpired):
            if subprocess.run(command, capture_output=True, timeout=UMOUNT_S, check=False).returncode == 0:
                return
        time.sleep(0.2)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Wait for the end of a process whose mount is gone, and kill its whole session when it does not come."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=UMOUNT_S)
        return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, 9)
    process.wait()
