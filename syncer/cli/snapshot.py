"""`syncer snapshot`: take a snapshot now, with a name if it is to be kept."""

from pathlib import Path

import click

from syncer.cli.paths import untouched
from syncer.cli.timeout import timeout_option


@click.command("snapshot", short_help="Take a snapshot now.")
@click.argument("target", required=False, type=untouched, metavar="[DATA|PATH]")
@click.option("--label", metavar="NAME", help="Call it NAME, and keep it until it is deleted.")
@click.option("--delete", "doomed", metavar="SNAPSHOT", help="Take none; delete this one.")
@timeout_option
def command(target: Path | None, label: str | None, doomed: str | None, timeout_s: float | None) -> None:
    """Take a snapshot now, and return when it is on the remote with everything written before.

    Name DATA or any path inside the mount; nothing is needed while exactly one mount is running. It works without a
    mount too. A label is up to 100 characters without a slash, and no two snapshots have the same. One with a label is
    taken even when nothing has changed since the last. The exit code is 10 when the time that --timeout gives was not
    enough: what is not uploaded by then goes up later, and no snapshot is taken.

    --delete removes a snapshot from history, named as for `syncer diff` but not by a moment; the newest one stays. What
    only it needed comes back with the next `syncer prune`.

    \b
    Examples:
      syncer snapshot
      syncer snapshot --label before-cleanup
      syncer snapshot data --label 'as delivered' --timeout 600
      syncer snapshot --delete before-cleanup
    """
    from syncer import mounts
    from syncer.cli.text import printable
    from syncer.cli.travel import ask, said
    from syncer.errors import UsageError

    if doomed is not None:
        if label is not None:
            raise UsageError("--label and --delete do not go together", hint="give one of them")
        if timeout_s is not None:
            raise UsageError("--timeout and --delete do not go together", hint="leave --timeout out")
        gone = ask(mounts.resolve(target), "delete", {"snapshot": said(doomed)})
        click.echo(printable(f"syncer: deleted snapshot {gone['name']} ({gone['place']}, id {gone['id'][:12]})"))
        return
    taken = ask(mounts.resolve(target), "snapshot", {"label": label}, timeout_s)
    click.echo(printable(f"syncer: snapshot {taken['name']} ({taken['place']}, id {taken['id'][:12]})"))
