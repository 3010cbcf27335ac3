"""The progress bar of an upload. On stderr, and only where a person looks at a terminal."""

import contextlib
import sys
from collections.abc import Callable, Iterator

from syncer.control import Progress


@contextlib.contextmanager
def upload_bar() -> Iterator[Callable[[Progress], None]]:
    """Show a bar while the body runs; it gets what to call with each Progress."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    columns = ("uploading", BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("uploading", total=None)

        def show(progress: Progress) -> None:
            bars.update(task, completed=progress.done_bytes, total=progress.total_bytes or None)

        yield show
