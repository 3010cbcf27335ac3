"""A machine that has nothing but the remote: all names within seconds, contents as they are read."""

import subprocess
import time
from pathlib import Path

import pytest

from scripts.benchmark.collection import CONTENT_BYTES, make_files
from tests.acceptance.conftest import MakeRemote
from tests.support.long_form import LONG
from tests.support.mount import Mount
from tests.support.processor import processor_s

pytestmark = pytest.mark.slow

SOON_S = 30.0
"""Of a processor: on loopback there is hardly anything else to wait for."""
LIFETIME_S = 1800.0 if LONG else 120.0


def test_all_names_are_there_soon(place: Path, remote_of: MakeRemote, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mounting it and listing everything, over SSH. What others do to the machine does not count."""
    count, megabytes = (100_000, 400) if LONG else (3_000, 64)
    remote = remote_of("ssh")
    with Mount(place / "one", remote.url, megabytes, extra=remote.environment, lifetime_s=LIFETIME_S) as one:
        one.start()
        one.umount()
        for name, value in remote.environment.items():
            monkeypatch.setenv(name, value)
        make_files(one.data, count)
        with Mount(place / "two", remote.url, megabytes, extra=remote.environment, lifetime_s=LIFETIME_S) as two:
            began = time.monotonic()
            two.start("--read-only")
            mounted_s = time.monotonic() - began
            listed = subprocess.run(["ls", "-lR", two.path], capture_output=True, check=True).stdout
            taken_s, of_processors_s = time.monotonic() - began, processor_s(two.pid)
            assert listed.count(b"\n-rw") == count
            print(f"{count:,} names: mounted after {mounted_s:.1f} s, all listed after {taken_s:.1f} s,", end=" ")
            print(f"of which {of_processors_s:.1f} s of a processor")
            assert of_processors_s < SOON_S
            first = two.path / "files" / "000000" / "00"
            assert len(first.read_bytes()) == CONTENT_BYTES
            two.stop()
            two.finish()
        one.start()
        one.stop()
        one.finish()
