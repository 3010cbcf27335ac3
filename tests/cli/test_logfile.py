"""DATA/log stays small, tells everything once, and keeps the tracebacks of what nobody foresaw."""

import re
import subprocess
import sys
from pathlib import Path

from syncer.datadir import KNOWN, LOG_FILE_BYTES, LOG_FILES
from tests.support.command import environment
from tests.support.server_disks import needs_root, small_disk

PRELUDE = """
import logging, sys
from pathlib import Path
from syncer.cli import failure, logfile
from syncer.errors import RemoteFull
log = logging.getLogger("syncer.blocks.uploader")
"""


def run(code: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", PRELUDE + code, str(folder / "log")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment(),
    )


def test_it_stays_within_its_bounds(tmp_path: Path) -> None:
    outcome = run(
        """
logfile.start(Path(sys.argv[1]), "INFO", warnings_to_stderr=True)
for n in range(20_000):
    log.info("record %d", n)
log.info("long " + "x" * 1_000_000 + " end")
""",
        tmp_path,
    )
    assert (outcome.returncode, outcome.stderr) == (0, "")
    sizes = {entry.name: entry.stat().st_size for entry in tmp_path.iterdir()}
    assert set(sizes) <= KNOWN
    assert len(sizes) == LOG_FILES
    assert sum(sizes.values()) <= LOG_FILE_BYTES * LOG_FILES
    last = (tmp_path / "log").read_text()
    assert re.search(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ INFO syncer.blocks.uploader: record 19999$", last, re.MULTILINE)
    assert "characters left out" in last and last.endswith("x end\n")


@needs_root
def test_on_a_full_disk_lines_are_whole_or_not_there(tmp_path: Path) -> None:
    """Half a line would swallow the next one, which a start after a kill writes, and look like trouble of its own."""
    with small_disk(tmp_path / "disk", 1 << 20) as disk:
        outcome = run(
            """
import os, signal
logfile.start(Path(sys.argv[1]), "INFO", warnings_to_stderr=False)
log.info("before")
others = Path(sys.argv[1]).with_name("others")
with open(others, "wb", buffering=0) as file:
    try:
        while True:
            file.write(bytes(4096))
    except OSError:
        pass
for n in range(200):
    log.warning("while it is full %d %s", n, "x" * 500)
others.unlink()
log.info("room again")
os.kill(os.getpid(), signal.SIGKILL)
""",
            disk,
        )
        assert outcome.stderr == ""
        lines = (disk / "log").read_text().splitlines()
        assert lines[0].endswith("before") and lines[-1].endswith("room again")
        assert 0 < len(lines[1:-1]) < 10
        assert all(line.endswith("x" * 500) for line in lines[1:-1])
        with open(disk / "log", "a") as file:
            file.write("what a power cut has left")
        run('logfile.start(Path(sys.argv[1]), "INFO", warnings_to_stderr=False); log.info("after")', disk)
        lines = (disk / "log").read_text().splitlines()
        assert lines[-2] == "what a power cut has left" and lines[-1].endswith("Z INFO syncer.blocks.uploader: after")


def test_levels_are_kept_apart(tmp_path: Path) -> None:
    outcome = run(
        """
logfile.start(Path(sys.argv[1]), "INFO", warnings_to_stderr=True)
log.debug("too quiet"); log.info("said"); log.warning("odd name %s", "\\x1b[31m\\n")
logging.getLogger("botocore").info("chatter"); logging.getLogger("botocore").warning("retrying")
""",
        tmp_path,
    )
    text = (tmp_path / "log").read_text()
    assert "said" in text and "odd name" in text and "retrying" in text
    assert "too quiet" not in text and "chatter" not in text
    assert outcome.stderr == "syncer: odd name \\x1b[31m\\n\nsyncer: retrying\n"


def test_the_unexpected_is_one_line_and_a_traceback_in_the_log(tmp_path: Path) -> None:
    outcome = run(
        """
logfile.start(Path(sys.argv[1]), "INFO", warnings_to_stderr=True)
try:
    {}["key"]
except KeyError as error:
    sys.exit(failure.report(error))
""",
        tmp_path,
    )
    assert outcome.returncode == 1
    assert outcome.stderr.count("\n") == 1
    assert outcome.stderr.startswith("syncer: unexpected KeyError: 'key'; ")
    assert str(tmp_path / "log") in outcome.stderr
    assert "Traceback (most recent call last)" in (tmp_path / "log").read_text()


def test_without_a_log_the_traceback_is_not_lost(tmp_path: Path) -> None:
    outcome = run("try:\n    {}['key']\nexcept KeyError as error:\n    sys.exit(failure.report(error))\n", tmp_path)
    assert outcome.stderr.startswith("Traceback (most recent call last)")
    assert outcome.stderr.splitlines()[-1].startswith("syncer: unexpected KeyError: 'key'; ")


def test_what_was_foreseen_needs_no_traceback(tmp_path: Path) -> None:
    outcome = run("sys.exit(failure.report(RemoteFull('nas is full', hint='make room')))", tmp_path)
    assert (outcome.returncode, outcome.stderr) == (24, "syncer: nas is full; make room\n")
    outcome = run("sys.exit(failure.report(PermissionError(13, 'Permission denied', '/x')))", tmp_path)
    assert (outcome.returncode, outcome.stderr) == (1, "syncer: /x: Permission denied\n")
