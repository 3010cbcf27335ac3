"""`syncer snapshot`: take a snapshot now, with a name if it is to be kept."""

from pathlib import Path

import click


@click.command("snapshot", short_help="Take a snapshot now.")
@click.argument("target", required=False, type=click.Path(path_type=Path), metavar="[DATA|PATH]")
@click.option("--label", metavar="NAME", help="Call it NAME, and keep it until it is deleted.")
def command(target: Path | None, label: str | None) -> None:
    """Take a snapshot now, and return when it is on the remote with everything written before.

    Name DATA or any path inside the mount; nothing is needed while exactly one mount is running. It works without a
    mount too. A label is up to 100 characters without a slash, and no two snapshots have the same. One with a label is
    taken even when nothing has changed since the last.

    \b
    Examples:
      syncer snapshot
      syncer snapshot --label before-cleanup
      syncer snapshot data --label 'as delivered'
    """
    from syncer import mounts
    from syncer.cli.text import printable
    from syncer.cli.travel import ask

    taken = ask(mounts.resolve(target), "snapshot", {"label": label})
    click.echo(printable(f"syncer: snapshot {taken['name']} ({taken['place']}, id {taken['id'][:12]})"))
