"""Running the `syncer` command as a user does: in a process of its own."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

SYNCER = (sys.executable, "-m", "syncer.cli")
CHECKOUT = Path(__file__).parents[2]


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Ours, with the checkout importable from any working directory and nothing that forces colours."""
    kept = {name: value for name, value in os.environ.items() if name not in ("FORCE_COLOR", "TTY_COMPATIBLE")}
    places = [str(CHECKOUT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**kept, "PYTHONPATH": os.pathsep.join(places), **(extra or {})}


def syncer(
    *arguments: object, cwd: Path | None = None, extra: Mapping[str, str] | None = None, timeout_s: float = 60
) -> "subprocess.CompletedProcess[str]":
    """Run one command without a terminal until it ends."""
    return subprocess.run(
        [*SYNCER, *map(str, arguments)],
        cwd=cwd,
        env=environment(extra),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=timeout_s,
        check=False,
    )
