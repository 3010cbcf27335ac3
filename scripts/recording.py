"""Draws a terminal with what the commands of a worked example really say, in a mount that is made for it.

scripts/record          writes docs/history.svg
"""

import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

from syncer.cli.text import printable
from tests.support.command import SYNCER, environment
from tests.support.mounted import cleared

COLUMNS = 96
WEDDING = "2026-05 wedding"
PICTURES = 40
PICTURE_BYTES = 250_000
LINES_SHOWN = 6
"""Of longer answers so many lines are shown, and then dots."""
SCENE = (
    f"rm -r '{WEDDING}'",
    "syncer diff friday",
    "ls .snapshots",
    f"syncer restore friday '{WEDDING}' --dry-run",
    f"syncer restore friday '{WEDDING}'",
    f"ls '{WEDDING}' | wc -l",
    "syncer snapshots ..",
)


def main(target: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="syncer-record-") as name:
        place = Path(name)
        mountpoint, programs = place / "mnt", place / "bin"
        for folder in (mountpoint, programs, place / "remote"):
            folder.mkdir()
        program = programs / "syncer"
        program.write_text(f'#!/bin/sh\nexec {shlex.join(SYNCER)} "$@"\n')
        program.chmod(0o755)
        with cleared(mountpoint):
            _run(f"syncer mount --background {place}/data {place}/remote {mountpoint} 500", place, programs)
            try:
                _photos(mountpoint / "photos")
                _run(f"syncer snapshot {place}/data --label friday", place, programs)
                console = Console(record=True, width=COLUMNS, file=open(os.devnull, "w"), force_terminal=True)  # noqa: SIM115
                for line in SCENE:
                    _show(console, line, _run(line, mountpoint / "photos", programs))
            finally:
                _run(f"syncer umount {place}/data", place, programs)
    drawn = console.export_svg(title="~/mnt/photos", unique_id="history")
    target.write_text(re.sub(r"\s*@font-face \{.*?\}", "", drawn, flags=re.DOTALL))  # fetched from elsewhere otherwise


def _photos(folder: Path) -> None:
    for album, count in ((WEDDING, PICTURES), ("2026-06 lake", 5)):
        (folder / album).mkdir(parents=True)
        for number in range(count):
            (folder / album / f"DSC_{412 + number:04}.NEF").write_bytes(os.urandom(PICTURE_BYTES))


def _run(line: str, where: Path, programs: Path) -> str:
    """What a shell prints for *line*, which must succeed."""
    own = environment({"PATH": f"{programs}:{os.environ['PATH']}", "COLUMNS": str(COLUMNS)})
    done = subprocess.run(
        line, shell=True, cwd=where, env=own, capture_output=True, text=True, timeout=120, check=False
    )
    if done.returncode:
        raise SystemExit(f"{line}: {done.stderr}")
    return done.stdout + done.stderr


def _show(console: Console, line: str, said: str) -> None:
    console.print(Text.assemble(("~/mnt/photos$ ", "bold green"), (line, "bold")), soft_wrap=True)
    lines = [printable(each) for each in said.splitlines()]
    for each in lines[:LINES_SHOWN]:
        console.print(Text(each), soft_wrap=True)
    if len(lines) > LINES_SHOWN:
        console.print(Text(f"... {len(lines) - LINES_SHOWN} more lines", "dim"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
