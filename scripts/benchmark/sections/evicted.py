"""A syncer mount that knows every file and has none of their bytes: what was written is on the remote alone."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from scripts.benchmark import syncer_mount
from scripts.benchmark.settings import Settings
from scripts.benchmark.systems import Mount
from tests.support.server_process import Server


@contextlib.contextmanager
def mounted(settings: Settings, folder: Path, server: Server, fill: Callable[[Path], None]) -> Iterator[Mount]:
    """*fill* a mount on *server*, upload everything, end it, and mount the remote with a new and empty DATA."""
    megabytes = settings.sizes.budget_megabytes
    with syncer_mount.mounted(folder, server.url(), megabytes, data="first", extra=server.environment) as mount:
        fill(mount.path)
        mount.settle()
    (folder / "output").unlink()
    with syncer_mount.mounted(folder, server.url(), megabytes, data="second", extra=server.environment) as mount:
        yield mount
