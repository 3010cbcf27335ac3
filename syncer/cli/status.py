"""`syncer status`: how much is where, as a small table or as JSON."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from syncer.cli.paths import untouched

if TYPE_CHECKING:
    from syncer.control import Status


@click.command("status", short_help="Show how much is where.")
@click.argument("target", required=False, type=untouched, metavar="[DATA|PATH]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; its keys are stable.")
def command(target: Path | None, as_json: bool) -> None:
    """Show what is stored, what is kept locally, and what still waits for upload.

    Name DATA or any path inside the mount; nothing is needed while exactly one mount is running. It works without a
    mount too.

    \b
    Examples:
      syncer status
      syncer status data --json
    """
    from syncer import mounts

    status = _ask(mounts.resolve(target))
    if as_json:
        import json
        from dataclasses import asdict

        click.echo(json.dumps(asdict(status), indent=2))
    else:
        _print_table(status)


def _ask(data: Path) -> "Status":
    """The mount's own answer, or what DATA tells when nothing is mounted."""
    from syncer import config, datadir
    from syncer.control import Client
    from syncer.errors import NotMounted

    try:
        with Client.connect(data) as client:
            return client.status()
    except NotMounted:
        settings = config.load(data / datadir.CONFIG)
        with datadir.DataDirectory.open(data):
            from syncer import app

            return app.offline_status(data, settings)


def _print_table(status: "Status") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from syncer.cli.text import printable

    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows(status):
        table.add_row(name, Text(printable(value)))
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=10_000, no_color=True)  # a pipe has no width: never wrap
    with console.capture() as capture:
        console.print(table)
    for line in capture.get().splitlines():
        click.echo(line.rstrip())


def rows(status: "Status") -> list[tuple[str, str]]:
    """The table: what a person wants to know first comes first."""
    from syncer.cli.text import duration, size

    reachable = {True: "reachable", False: "failing", None: "not asked yet"}[status.remote_ok]
    percent = f"{100 * status.used_bytes / status.budget_bytes:.0f} %"
    parts = (
        f"{size(status.clean_bytes)} clean, {size(status.dirty_bytes)} dirty, {size(status.metadata_bytes)} metadata"
    )
    pending = "nothing"
    if status.pending_upload_bytes or status.pending_upload_blocks:
        pending = f"{size(status.pending_upload_bytes)} in {_count(status.pending_upload_blocks, 'block')}"
        if status.oldest_pending_s is not None:
            pending += f", the oldest for {duration(status.oldest_pending_s)}"
    elif status.snapshot_due:
        pending = "the next snapshot"
    folders = _count(status.directories, "directory", "directories")
    damaged = [("damaged", _damage(status))] if status.damaged_blocks else []
    return [
        ("mounted", (status.mountpoint or "yes") if status.mounted else "no"),
        ("remote", f"{status.remote}, {reachable}{f': {status.remote_error}' if status.remote_error else ''}"),
        ("local", f"{size(status.used_bytes)} of {size(status.budget_bytes)} ({percent}): {parts}"),
        ("waiting", pending),
        (
            "this mount" if status.mounted else "transfers",
            f"{size(status.uploaded_bytes)} uploaded, {size(status.fetched_bytes)} fetched",
        ),
        ("files", f"{_count(status.files, 'file')} in {folders}, {size(status.logical_bytes)}"),
        ("stored", f"{size(status.unique_bytes)} after removing duplicates, {size(status.remote_bytes)} on the remote"),
        ("snapshot", _snapshot(status)),
        ("history", f"{size(status.history_bytes)} that only snapshots need, {size(status.dead_bytes)} to be pruned"),
        *damaged,
    ]


def _snapshot(status: "Status") -> str:
    from syncer.cli.text import duration

    if not status.follows:
        return status.head or "none yet"
    if status.head is None or status.shown_age_s is None:
        return "none yet; this mount follows the writer"
    return f"{status.head}, taken {duration(status.shown_age_s)} ago; this mount follows the writer"


def _damage(status: "Status") -> str:
    """How much is bad, and the first files that have some of it; JSON has all of them."""
    from syncer.errors import some_of

    return f"{_count(status.damaged_blocks, 'block')} of {some_of(status.damaged_paths)}"


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"
