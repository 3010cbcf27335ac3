"""`syncer snapshots`: which there are, the versions of a path, what was deleted; and history as a mount of its own."""

import contextlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from syncer.cli.paths import untouched
from syncer.values import MEGABYTE

TOLD = 50
"""Of so many snapshots, the newest, the table tells what came with them unless all are asked for."""
EVERY = 1 << 31
VISIT_BUDGET_BYTES = 256 * MEGABYTE
"""What a look at a remote without a DATA may take of the local disk meanwhile."""


@click.command("snapshots", short_help="List snapshots, versions and deleted files, or mount history.")
@click.argument("target", required=False, type=untouched, metavar="[DATA|PATH]")
@click.option("--data", type=untouched, metavar="DATA", help="Of this DATA; PATH is from its root on.")
@click.option("--remote", metavar="REMOTE", help="Of the repository there, without a DATA; PATH is from its root on.")
@click.option("--since", metavar="TIME", help="None that are older: `yesterday`, `2h ago`, `2026-11-20 14:00`, ...")
@click.option("--until", metavar="TIME", help="None that are newer.")
@click.option("--deleted", is_flag=True, help="List what was deleted at or below PATH instead, and where it last was.")
@click.option("--changes", is_flag=True, help=f"Tell what came with every snapshot, not only with the newest {TOLD}.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; its keys are stable.")
@click.option("--mount", "mountpoint", type=untouched, metavar="DIR", help="Mount the whole history on DIR.")
@click.option("--background", is_flag=True, help="With --mount: return when it is usable.")
def command(
    target: Path | None,
    data: Path | None,
    remote: str | None,
    since: str | None,
    until: str | None,
    deleted: bool,
    changes: bool,
    as_json: bool,
    mountpoint: Path | None,
    background: bool,
) -> int:
    """List the snapshots of a file system, oldest first, with what came with each: files, bytes, and how many names
    were added (+), removed (-), modified (M) or renamed (R) since the one before.

    Name DATA or any path inside a mount; nothing is needed while exactly one mount is running. With a PATH below the
    mountpoint, list the versions of that file or directory instead; it need not exist any more. A path is followed, not
    a file: what was renamed is a deletion here, and begins anew under its new name.

    With --mount, every snapshot is a directory in DIR, read-only, and the live file system is not needed: DATA must
    not be mounted (else look into `.snapshots` there), or give --remote, which needs no DATA and writes nothing to the
    remote.

    \b
    Examples:
      syncer snapshots
      syncer snapshots photos/2019 --since 'monday' --json
      syncer snapshots photos --deleted
      syncer snapshots --remote nas:blobs --mount /mnt/history --background
    """
    from syncer.cli.text import printable
    from syncer.errors import UsageError

    if data is not None and remote is not None:
        raise UsageError("DATA and REMOTE cannot both be given", hint="a DATA knows its remote")
    if mountpoint is not None:
        if since or until or deleted or changes or as_json:
            raise UsageError("--mount shows all of history", hint="leave the other options out")
        return _mount(data or target, remote, mountpoint, background=background)
    if background:
        raise UsageError("only a mount can go on in the background", hint="give --mount DIR")
    question: dict[str, object] = {
        "since_ns": _moment(since, first=True),
        "until_ns": _moment(until, first=False),
        "deleted": deleted,
        "changes": EVERY if changes or as_json else TOLD,
    }
    path, answer = _ask(target, data, remote, question)
    items = answer["items"]
    if items or as_json:
        _show(items, path, deleted=deleted, as_json=as_json)
    else:
        click.echo(printable(f"syncer: {_none(path, deleted=deleted, limited=bool(since or until))}"), err=True)
    return 0


def _moment(text: str | None, *, first: bool) -> int | None:
    """The moment that --since (*first*) or --until means; of what is said coarsely its beginning, or its end.

    Raises: UsageError.
    """
    from syncer.snapshots.moments import parse_moment

    return None if text is None else parse_moment(text, time.time_ns(), first=first)


def _ask(
    target: Path | None, data: Path | None, remote: str | None, question: dict[str, object]
) -> tuple[str, dict[str, Any]]:
    """(path from the root on, the answer)."""
    from syncer import app, datadir, mounts
    from syncer.cli.travel import ask, place

    if remote is None:
        if data is None and target is not None:
            there, mount = mounts.locate(target)
            if mount is None and datadir.is_data(there):
                data, target = there, None
        found, path = place(None if target is None else str(target), data)
        return path, ask(found, "list", {**question, "path": path})
    path = str(target or "").strip("/")
    with _visitor(remote) as (folder, settings), datadir.DataDirectory.open(folder):
        answer = app.offline_travel(
            folder, settings, "list", {**question, "path": path}, lambda progress: None, visiting=True
        )
        return path, answer


@contextlib.contextmanager
def _visitor(remote: str) -> Iterator[tuple[Path, Any]]:
    """A DATA for the time of a look at *remote*, with its settings."""
    from syncer.cli.mount import absolute_remote
    from syncer.config import Config

    folder = Path(tempfile.mkdtemp(prefix="syncer-history-"))
    try:
        yield folder / "data", Config(remote=absolute_remote(remote), budget_bytes=VISIT_BUDGET_BYTES)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# --- a mount of its own -----------------------------------------------------------------------------------------


def _mount(data: Path | None, remote: str | None, mountpoint: Path, *, background: bool) -> int:
    """Mount history on *mountpoint* and stay until it is unmounted."""
    from syncer.cli import background as daemon

    where = mountpoint.absolute()
    work = _mounting(data, where) if remote is None else _visiting(remote, where)
    if background:
        return daemon.launch(lambda announce: work(announce, False))
    work(click.echo, True)
    return 0


Announce = Callable[[str], None]


def _mounting(data: Path | None, mountpoint: Path) -> Callable[[Announce, bool], None]:
    from syncer import datadir, mounts
    from syncer.cli import mount
    from syncer.cli.preflight import Wish
    from syncer.errors import UsageError

    found = mounts.resolve(data)
    if datadir.is_locked(found):
        raise UsageError(
            f"{found} is mounted, and its history with it",
            hint="look into .snapshots there, or give --remote to mount it a second time",
        )
    wish, manner = Wish(data=found, mountpoint=mountpoint), mount.Manner(options=("ro",), history_only=True)
    return lambda announce, foreground: mount.mount(wish, manner, announce, foreground=foreground)


def _visiting(remote: str, mountpoint: Path) -> Callable[[Announce, bool], None]:
    from syncer.cli import mount
    from syncer.cli.preflight import Wish

    manner = mount.Manner(options=("ro",), history_only=True, visiting=True)
    there = mount.absolute_remote(remote)

    def work(announce: Announce, foreground: bool) -> None:
        with _visitor(there) as (folder, settings):
            wish = Wish(data=folder, remote=there, mountpoint=mountpoint, budget_bytes=settings.budget_bytes)
            mount.mount(wish, manner, announce, foreground=foreground)

    return work


# --- showing ----------------------------------------------------------------------------------------------------

HEAD: tuple[str, ...] = ("time", "by", "files", "size", "new", "changes", "id")
VERSION_HEAD: tuple[str, ...] = ("since", "size", "modified", "what")
DELETED_HEAD: tuple[str, ...] = ("last in", "size", "path")


def _show(items: list[dict[str, Any]], path: str, *, deleted: bool, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(items, indent=2))
        return
    row, head = _row, HEAD
    if deleted:
        row, head = _deleted_row, DELETED_HEAD
    elif path:
        row, head = _version_row, VERSION_HEAD
    for line in columns([head, *map(row, items)]):
        click.echo(line)


def _none(path: str, *, deleted: bool, limited: bool) -> str:
    """Why a list is empty. What was mistyped looks like this too, so it says what was looked for."""
    if deleted:
        below = f" at or below {path}" if path else ""
        return f"none of these snapshots lacks what an older one had{below}; `syncer diff latest` has what went since"
    if path:
        return f"no such snapshot has {path}; a path that is gone is named as it was then"
    if limited:
        return "no snapshot is from that time; without --since and --until all are listed"
    return "there are no snapshots yet; one is taken every minute while something changes"


def _row(item: dict[str, Any]) -> tuple[str, ...]:
    from syncer.cli.text import printable, size

    new = "" if item["new_bytes"] is None else size(item["new_bytes"])
    files, total = f"{item['files']:,}", size(item["logical_bytes"])
    return printable(item["name"]), printable(item["host"]), files, total, new, _counts(item["changes"]), item["id"][:8]


def _counts(changes: dict[str, int] | None) -> str:
    if changes is None:
        return ""
    marks = (("+", "added"), ("-", "removed"), ("M", "modified"), ("R", "renamed"))
    return " ".join(f"{mark}{changes[kind]:,}" for mark, kind in marks if changes[kind]) or "none"


def _version_row(item: dict[str, Any]) -> tuple[str, ...]:
    from syncer.cli.text import printable, size

    if item["type"] is None:
        return printable(item["name"]), "", "", "deleted"
    amount = size(item["size"]) if item["type"] == "file" else ""
    return printable(item["name"]), amount, _time(item["mtime_ns"]), item["type"]


def _deleted_row(item: dict[str, Any]) -> tuple[str, ...]:
    from syncer.cli.text import printable, size

    directory = item["type"] == "directory"
    return printable(item["name"]), "" if directory else size(item["size"]), printable(item["path"]) + "/" * directory


def _time(time_ns: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time_ns // 10**9))


def columns(rows: list[tuple[str, ...]]) -> Iterator[str]:
    """The rows with their columns below each other; the last one is as long as it is."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
