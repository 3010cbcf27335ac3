"""A real `syncer` mount, run as a user runs it, that is gone at the end of a test whatever happened."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from syncer import datadir, mounts
from tests.support.command import SYNCER, environment

DEADLINE_S = 60.0


def wait_until(condition: Callable[[], object], what: str, within_s: float | None = None) -> None:
    """Look until *condition* holds. Raises: AssertionError: it did not *within_s* (DEADLINE_S)."""
    end = time.monotonic() + (DEADLINE_S if within_s is None else within_s)
    while not condition():
        assert time.monotonic() < end, f"waited in vain until {what}"
        time.sleep(0.01)


def is_mounted(mountpoint: Path) -> bool:
    return mountpoint in [mount.mountpoint for mount in mounts.find_mounts()]


@contextlib.contextmanager
def cleared(*mountpoints: Path) -> Iterator[None]:
    """Whatever is mounted on *mountpoints* at the end of the body, its process is killed and it is unmounted."""
    try:
        yield
    finally:
        for mount in mounts.find_mounts():
            if mount.mountpoint not in mountpoints:
                continue
            pid = datadir.lock_pid(mount.data)
            if pid and datadir.is_locked(mount.data):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            subprocess.run(["fusermount3", "-u", "-z", str(mount.mountpoint)], timeout=20, check=False)


class Foreground:
    """A mount in the foreground; `ready` is its first line."""

    def __init__(self, process: "subprocess.Popen[str]", ready: str) -> None:
        self.process = process
        self.ready = ready

    def end(self, number: signal.Signals = signal.SIGTERM) -> str:
        """Send *number* and return what the mount still prints; it must end with code 0 and no complaint."""
        self.process.send_signal(number)
        return self.rest()

    def rest(self, expected_warning: str = "") -> str:
        """What the mount still prints until it ends, with code 0; every warning must hold *expected_warning*."""
        out, complaints = self.process.communicate(timeout=DEADLINE_S)
        assert self.process.returncode == 0, complaints
        for line in complaints.splitlines():
            assert expected_warning and expected_warning in line, complaints
        return out


@contextlib.contextmanager
def foreground(*arguments: object, mountpoint: Path, cwd: Path | None = None) -> Iterator[Foreground]:
    """Start `syncer ARGUMENTS...` and wait until it says that it is ready."""
    with cleared(mountpoint):
        process = subprocess.Popen(
            [*SYNCER, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=cwd,
            env=environment(),
        )
        try:
            assert process.stdout and process.stderr
            ready = process.stdout.readline()
            assert ready, process.stderr.read()
            yield Foreground(process, ready)
        finally:
            process.kill()
            process.communicate()
