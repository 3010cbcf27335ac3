"""How `--background` tells of success and failure, without a mount."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.command import environment
from tests.support.mounted import wait_until


def start(body: str, *arguments: object) -> "subprocess.Popen[str]":
    """Run `launch` of a function `work(announce)` with *body* in a process of its own."""
    lines = "\n".join(f"    {line}" for line in body.strip().splitlines())
    code = (
        "import os, sys, time\nfrom pathlib import Path\nfrom syncer.cli import background, failure\n"
        f"from syncer.errors import *\ndef work(announce):\n{lines}\n"
        "try:\n    sys.exit(background.launch(work))\n"
        "except Exception as error:\n    sys.exit(failure.report(error))\n"
        "except KeyboardInterrupt as error:\n    sys.exit(failure.report(error))\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )


def outcome(body: str, *arguments: object) -> tuple[int, str, str]:
    process = start(body, *arguments)
    out, complaint = process.communicate(timeout=60)
    return process.returncode, out, complaint


def test_ready_is_passed_on_and_work_goes_on(tmp_path: Path) -> None:
    (tmp_path / "go").touch()
    body = """
announce("usable")
while Path(sys.argv[1], "go").exists(): time.sleep(0.01)
announce("ended")
Path(sys.argv[1], "done").touch()
"""
    assert outcome(body, tmp_path) == (0, "usable\n", "")
    assert not (tmp_path / "done").exists()
    (tmp_path / "go").unlink()
    wait_until((tmp_path / "done").exists, "the work is done")


@pytest.mark.parametrize(
    ("body", "code", "line"),
    [
        ("raise RemoteRefused('no such bucket', hint='make it')", 22, "syncer: no such bucket; make it\n"),
        ("raise ExceptionGroup('', [DataInUse('taken', hint='wait')])", 4, "syncer: taken; wait\n"),
        (
            "os._exit(7)",
            1,
            "syncer: the mount ended before it was ready; see DATA/log, or mount without --background\n",
        ),
        ("os.kill(os.getpid(), 9)", 1, "syncer: the mount ended before it was ready; see DATA/log, or mount without "),
    ],
)
def test_a_failure_is_passed_on(body: str, code: int, line: str) -> None:
    got, out, complaint = outcome(body)
    assert (got, out) == (code, "")
    assert complaint.startswith(line)


def test_ctrl_c_while_waiting_ends_the_mount_too(tmp_path: Path) -> None:
    body = """
Path(sys.argv[1], "started").touch()
try:
    time.sleep(60)
finally:
    Path(sys.argv[1], "ended").touch()
"""
    process = start(body, tmp_path)
    wait_until((tmp_path / "started").exists, "the work has started")
    process.send_signal(signal.SIGINT)
    _, complaint = process.communicate(timeout=30)
    assert (process.returncode, complaint) == (130, "syncer: interrupted\n")
    assert (tmp_path / "ended").exists()
