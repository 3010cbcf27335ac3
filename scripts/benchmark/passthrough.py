"""The ceiling: libfuse's own example `passthrough_ll` in C, which hands every call to the directory below.

Compiled from the source that the distribution ships with libfuse's headers. It runs with the kernel's writeback
cache, so a write that returned is not even with the daemon yet: nothing that keeps more promises can be faster.
"""

import contextlib
import shlex
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from scripts.benchmark.systems import Mount, System, program, running
from scripts.benchmark.tasks import TaskFailed

SOURCE = Path("/usr/share/doc/libfuse3-dev/examples/passthrough_ll.c")
BINARY = Path(__file__).parents[2] / "build" / "bench" / "passthrough_ll"
PACKAGE = "libfuse3-dev"


class Passthrough(System):
    """`passthrough_ll -o writeback`, or without it where each write is to reach the daemon before it returns."""

    debian = ("fuse3", PACKAGE, "gcc", "pkg-config", "libc6-dev")

    def __init__(self, *, writeback: bool) -> None:
        self.key = "c" if writeback else "c-through"
        self.title = "C passthrough" if writeback else "C passthrough, no writeback cache"
        self._options = "writeback" if writeback else "no_writeback"

    def missing(self) -> str | None:
        if BINARY.exists():
            return None
        if not (program("gcc") and program("pkg-config")):
            return "no compiler"
        if subprocess.run(["pkg-config", "--exists", "fuse3"], check=False).returncode:
            return "no headers of libfuse 3"
        try:
            build()
        except TaskFailed as error:
            return str(error)
        return None

    def version(self) -> str:
        done = subprocess.run(["pkg-config", "--modversion", "fuse3"], capture_output=True, text=True, check=False)
        return f"libfuse {done.stdout.strip()} passthrough_ll -o {self._options}"

    @contextlib.contextmanager
    def mounted(self, folder: Path) -> Iterator[Mount]:
        source = folder / "source"
        source.mkdir()
        command: list[str | Path] = [BINARY, folder / "mnt", "-f", "-o", f"source={source},{self._options}"]
        with running(command, Mount(folder / "mnt"), folder) as mount:
            yield mount


def build() -> None:
    """Compile the example. Raises: TaskFailed: there is no source, or it does not compile."""
    with tempfile.TemporaryDirectory() as folder:
        source = SOURCE if SOURCE.exists() else _source_of_package(Path(folder))
        asked = ["pkg-config", "--cflags", "--libs", "fuse3"]
        flags = subprocess.run(asked, capture_output=True, text=True, check=True)
        BINARY.parent.mkdir(parents=True, exist_ok=True)
        partial = BINARY.with_suffix(".partial")
        command: list[str | Path] = ["gcc", "-O2", "-o", partial, source, *shlex.split(flags.stdout)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise TaskFailed(f"passthrough_ll does not compile: {done.stderr.strip().splitlines()[-1]}")
        partial.rename(BINARY)


def _source_of_package(folder: Path) -> Path:
    """Small installations leave /usr/share/doc out: take the example out of the package itself."""
    if not (program("apt-get") and program("dpkg-deb")):
        raise TaskFailed(f"{SOURCE} is not there")
    for command in (["apt-get", "download", PACKAGE], ["sh", "-c", "dpkg-deb -x ./*.deb ."]):
        if subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode:
            raise TaskFailed(f"{SOURCE} is not there, and the package could not be fetched")
    return folder / SOURCE.relative_to("/")
