"""Whole programs, run as a user does: they must succeed."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

GIT = {
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_SYSTEM": "/dev/null",
    "GIT_AUTHOR_NAME": "A",
    "GIT_AUTHOR_EMAIL": "a@example.com",
    "GIT_COMMITTER_NAME": "A",
    "GIT_COMMITTER_EMAIL": "a@example.com",
}


def run(
    *command: object,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
    merged: bool = False,
    within_s: float = 120.0,
) -> str:
    """Run a program that must succeed; what it prints, with its errors among it when *merged*."""
    outcome = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, "LC_ALL": "C", **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if merged else subprocess.PIPE,
        text=True,
        errors="surrogateescape",
        timeout=within_s,
        check=False,
    )
    said = outcome.stdout + (outcome.stderr or "")
    shown = said if len(said) < 6000 else f"{said[:3000]}\n...\n{said[-3000:]}"
    assert outcome.returncode == 0, f"{command}: {outcome.returncode}: {shown}"
    return outcome.stdout


def git(repository: Path, *arguments: object, merged: bool = False, within_s: float = 120.0) -> str:
    """git in *repository*, with nobody's settings."""
    return run("git", *arguments, cwd=repository, environment=GIT, merged=merged, within_s=within_s)
