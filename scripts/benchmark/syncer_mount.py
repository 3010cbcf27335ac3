"""syncer itself, as a user starts it, on any remote."""

import contextlib
import json
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from scripts.benchmark.systems import MOUNT_S, SETTLE_S, Mount, System, first_line, running
from scripts.benchmark.tasks import TaskFailed, wait_until
from tests.support.command import SYNCER, environment

OPTION = "--writeback"


class Syncer(System):
    """On a folder remote with default options, or with the kernel's writeback cache."""

    def __init__(self, budget_megabytes: int, *, writeback: bool = False) -> None:
        self.key = "syncer-writeback" if writeback else "syncer"
        self.title = f"syncer {OPTION}" if writeback else "syncer"
        self._options = (OPTION,) if writeback else ()
        self._budget_megabytes = budget_megabytes

    def missing(self) -> str | None:
        done = subprocess.run(
            [*SYNCER, "mount", "--help"], env=environment(), capture_output=True, text=True, check=False
        )
        if done.returncode:
            return f"syncer does not start: {done.stderr.strip().splitlines()[-1]}"
        if any(option not in done.stdout for option in self._options):
            return f"this syncer has no {OPTION}"
        return None

    def version(self) -> str:
        return first_line(*SYNCER, "--version")

    @contextlib.contextmanager
    def mounted(self, folder: Path) -> Iterator[Mount]:
        with mounted(folder, str(folder / "remote"), self._budget_megabytes, options=self._options) as mount:
            yield mount


@contextlib.contextmanager
def mounted(
    folder: Path,
    remote: str,
    budget_megabytes: int,
    *,
    data: str = "data",
    extra: Mapping[str, str] | None = None,
    options: tuple[str, ...] = (),
) -> Iterator[Mount]:
    """syncer on *remote*, with its DATA at `folder/data` and the mount at `folder/mnt`. Raises: TaskFailed.

    *extra* goes into its environment. Another name for *data* makes another, empty DATA of the same remote.
    """
    where, mountpoint = folder / data, folder / "mnt"
    command: list[str | Path] = [*SYNCER, "mount", *options, where, remote, mountpoint, str(budget_megabytes)]
    mount = Mount(mountpoint, lambda: run("flush", where, extra=extra))
    end: list[str | Path] = [*SYNCER, "umount", mountpoint]
    with running(command, mount, folder, environment(extra), end):
        wait_said(folder / "output", "is ready")
        yield mount


def run(*arguments: object, extra: Mapping[str, str] | None = None) -> None:
    """Run one command of syncer. Raises: TaskFailed."""
    _run(*arguments, extra=extra)


def status(data: Path) -> dict[str, object]:
    """What `syncer status --json` tells. Raises: TaskFailed."""
    found: dict[str, object] = json.loads(_run("status", data, "--json"))
    return found


def wait_said(output: Path, words: str) -> None:
    """Wait until syncer has printed *words*. Raises: TaskFailed."""
    wait_until(lambda: words in output.read_text(errors="replace"), f"syncer says that it {words}", MOUNT_S)


def _run(*arguments: object, extra: Mapping[str, str] | None = None) -> str:
    try:
        done = subprocess.run(
            [*SYNCER, *map(str, arguments)],
            env=environment(extra),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SETTLE_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise TaskFailed(f"syncer {arguments[0]} took more than {SETTLE_S:g} s") from error
    if done.returncode:
        raise TaskFailed(f"syncer {arguments[0]}: {done.stderr.strip()}")
    return done.stdout
