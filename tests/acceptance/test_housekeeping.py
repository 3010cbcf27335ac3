"""The log and the version, as a user meets them."""

import re
from pathlib import Path

import pytest

from syncer.datadir import LOG_FILE_BYTES, LOG_FILES
from tests.acceptance.conftest import MakeRemote
from tests.support.command import syncer
from tests.support.mount import Mount

pytestmark = pytest.mark.slow

LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ (DEBUG|INFO) syncer\.\S+: .+")


def test_the_version() -> None:
    outcome = syncer("--version")
    assert outcome.returncode == 0
    assert re.fullmatch(r"syncer \d+\.\d+\.\d+\S*\n", outcome.stdout)


def test_the_log_says_what_happened_and_stays_small(place: Path, remote_of: MakeRemote) -> None:
    with Mount(place, remote_of("folder").url, 64) as mount:
        mount.start()
        mount.stop()
        log = mount.data / "log"
        lines = log.read_text().splitlines()
        assert all(LINE.fullmatch(line) for line in lines), lines
        assert " is ready (" in lines[0] and " is unmounted; " in lines[-1]
        for _ in range(LOG_FILES):  # a log that is nearly full is put aside, and the oldest goes
            with open(log, "a") as file:
                file.write(lines[0] + "\n")
                file.truncate(LOG_FILE_BYTES - 10)
            mount.start()
            mount.stop()
        files = sorted(path.name for path in mount.data.glob("log*"))
        assert files == ["log", *(f"log.{number}" for number in range(1, LOG_FILES))]
        assert sum(path.stat().st_size for path in mount.data.glob("log*")) <= LOG_FILES * LOG_FILE_BYTES
        assert " is unmounted; " in log.read_text()
        mount.finish()


@pytest.mark.parametrize(("level", "lines"), [("debug", True), ("warning", False)])
def test_the_log_level(level: str, lines: bool, place: Path, remote_of: MakeRemote) -> None:
    with Mount(place, remote_of("folder").url, 64, upload_delay_s=1.0) as mount:
        mount.start("--log-level", level)
        (mount.path / "x").write_bytes(bytes(range(256)) * 1000)
        mount.stop()
        assert bool((mount.data / "log").read_text()) == lines
        mount.finish()
