"""The budget under eight writers and readers of far more than it, with a remote that is slow, gone, and back.

Seen from outside, by `du` every 50 ms: DATA never takes more. Writers slow down to what the remote takes, and get
ENOSPC when it takes nothing for longer than the deadline; what was written before is intact.
"""

import contextlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.conftest import MakeRemote
from tests.support import mount as mount_module
from tests.support.command import CHECKOUT, environment
from tests.support.long_form import LONG
from tests.support.mount import Mount
from tests.support.mounted import wait_until
from tests.support.server_process import Server

pytestmark = pytest.mark.slow

BUDGETS = (64, 200) if LONG else (64,)
TOTAL_BYTES = 2_000_000_000 if LONG else 80_000_000
FILE_BYTES = 2_000_000
WORKERS = 8
DEADLINE_S = 4.0
PULSE_S = 0.2

WORKER = """
import errno, os, random, sys, time
folder, number, count, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
chance = random.Random(number)

def content(file):
    return random.Random(f"{number} {file}").randbytes(size)

def patiently(call):
    while True:
        try:
            return call()
        except OSError as error:
            assert error.errno == errno.ENOSPC, error
            print("full", flush=True)

def written(file):
    with patiently(lambda: open(f"{folder}/{number}-{file}", "wb", buffering=0)) as out:
        data, done = memoryview(content(file)), 0
        while done < size:
            done += patiently(lambda: out.write(data[done : done + 131072]))

def check(file):
    try:
        with open(f"{folder}/{number}-{file}", "rb") as source:
            data = source.read()
    except OSError as error:
        assert error.errno == errno.EIO, error  # evicted, and the remote is not there
        return
    assert data == content(file), f"{number}-{file} is not what was written"

for file in range(count):
    written(file)
    check(chance.randrange(file + 1))
    print("done", flush=True)
"""


@contextlib.contextmanager
def slow(server: Server) -> Iterator[None]:
    """The server stands still half of the time."""
    ended = threading.Event()

    def pulse() -> None:
        while not ended.wait(PULSE_S):
            with server.frozen():
                ended.wait(PULSE_S)

    thread = threading.Thread(target=pulse, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class Load:
    """The workers, and what they have said so far."""

    def __init__(self, folder: Path, output: Path) -> None:
        self._output = output
        files = TOTAL_BYTES // WORKERS // FILE_BYTES
        with open(output, "wb") as out:
            self._processes = [
                subprocess.Popen(
                    [sys.executable, "-c", WORKER, folder, str(number), str(files), str(FILE_BYTES)],
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    cwd=CHECKOUT,
                    env=environment(),
                )
                for number in range(WORKERS)
            ]
        self.files = files * WORKERS

    def said(self, word: str) -> int:
        return self._output.read_text().split().count(word)

    def finish(self, within_s: float) -> None:
        for process in self._processes:
            assert process.wait(within_s) == 0, self._output.read_text()[-2000:]


@pytest.mark.parametrize("megabytes", BUDGETS)
def test_the_budget_holds(
    megabytes: int, place: Path, remote_of: MakeRemote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mount_module, "LOOK_EVERY_S", 0.05)
    remote = remote_of("ssh", own=True)
    lifetime_s = 1800.0 if LONG else 120.0
    with Mount(
        place,
        remote.url,
        megabytes,
        extra=remote.environment,
        lifetime_s=lifetime_s,
        network_deadline_s=DEADLINE_S,
        upload_delay_s=1.0,
    ) as mount:
        mount.expected_warnings = r" (WARNING|ERROR) syncer\."
        mount.start()
        assert remote.server
        load = Load(mount.path, tmp_path / "said")
        with slow(remote.server):
            wait_until(lambda: load.said("done") >= load.files // 4, "a quarter is written", lifetime_s)
        before = load.said("full")
        with remote.outage("stopped"):
            wait_until(lambda: load.said("full") > before, "a writer finds no room")
        load.finish(lifetime_s)
        mount.flush(timeout_s=lifetime_s)
        mount.umount(wait=True, timeout_s=lifetime_s)
        mount.finish()
