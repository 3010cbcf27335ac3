"""`syncer restore`: bring back a file, a directory or everything as it was."""

from pathlib import Path
from typing import Any

import click

from syncer.cli.paths import untouched

INCOMPLETE = 1
"""Exit code when something could not be restored, or not wholly; what it was has been named."""


@click.command("restore", short_help="Bring back what was.")
@click.argument("snapshot", metavar="SNAPSHOT")
@click.argument("path", metavar="PATH")
@click.option("--to", metavar="DIR", help="Make a copy there instead: DIR holds then what the directory PATH held.")
@click.option("--delete", is_flag=True, help="Remove what SNAPSHOT does not know at PATH.")
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@click.option("--data", type=untouched, metavar="DATA", help="Of this DATA; paths are from its root on.")
@click.option("--no-snapshot", is_flag=True, help="Do not take a snapshot first: it cannot be undone then.")
def command(
    snapshot: str, path: str, to: str | None, delete: bool, dry_run: bool, data: Path | None, no_snapshot: bool
) -> None:
    """Bring back PATH, a file or a directory with everything in it, as it was in SNAPSHOT.

    PATH is where it was, relative to where you are inside the mount; with --data from the root on (`/` is everything).
    SNAPSHOT is named as for `syncer diff`: a label, `latest`, or a moment such as `yesterday 14:00`.

    No bytes are moved: files get the blocks back that they had. What is as it was is not touched. Files made since
    stay, unless --delete is given; a file that was changed or replaced since is as it was again. Before, a snapshot is
    taken of what has changed, so that a restoration can be undone by another one. One that was interrupted is finished
    by asking for it again.

    \b
    Examples:
      syncer restore yesterday photos/2019
      syncer restore 'monday 9:00' report.odt --to old
      syncer restore before-cleanup / --data data --delete --dry-run
    """
    from syncer.cli.travel import ask, place, said
    from syncer.errors import NotMounted, UsageError

    found, inside = place(path, data)
    question: dict[str, object] = {
        "snapshot": said(snapshot),
        "path": inside,
        "delete": delete,
        "dry_run": dry_run,
        "snapshot_first": not no_snapshot,
    }
    if to is not None:
        try:
            other, question["to"] = place(to, data)
        except NotMounted as error:
            hint = "name a place in the same mount, or copy from .snapshots with `cp -a`"
            raise NotMounted(f"{to} is not inside a mount", hint=hint) from error
        if other != found:
            raise UsageError(f"{to} is in another file system than {path}", hint="copy it there afterwards")
    answer = ask(found, "restore", question)
    if dry_run:
        _print_plan(answer)
        return
    _print_outcome(answer)
    if answer["problems"]:
        raise click.exceptions.Exit(INCOMPLETE)


def _print_plan(answer: dict[str, Any]) -> None:
    from syncer.cli.text import printable, size

    for item in answer["items"]:
        files = "1 file" if item["files"] == 1 else f"{item['files']:,} files"
        inside = f"  ({files}, {size(item['bytes'])})" if item["files"] else ""
        click.echo(f"{item['action']:<6} {printable(item['path'] or '.')}{inside}")
    click.echo(
        printable(f"syncer: nothing was done; that is what {answer['snapshot']['name']} asks for{_left(answer)}")
    )


def _print_outcome(answer: dict[str, Any]) -> None:
    from syncer.cli.text import printable

    for problem in answer["problems"]:
        click.echo(printable(f"syncer: {problem['path']}: {problem['reason']}"), err=True)
    done = f"{answer['made']:,} made, {answer['changed']:,} changed, {answer['removed']:,} removed"
    before = f"; before it was as in {answer['before']}" if answer["before"] else ""
    click.echo(printable(f"syncer: as in {answer['snapshot']['name']}: {done}{_left(answer)}{before}"))


def _left(answer: dict[str, Any]) -> str:
    left = answer["left"]
    return f"; {left:,} newer left as {'it is' if left == 1 else 'they are'}" if left else ""
