"""`syncer flush`: come back when everything is on the remote, with or without a mount."""

from pathlib import Path

import click

from syncer.cli.paths import untouched
from syncer.cli.timeout import timeout_option


@click.command("flush", short_help="Wait until everything is on the remote.")
@click.argument("target", required=False, type=untouched, metavar="[DATA|PATH]")
@timeout_option
def command(target: Path | None, timeout_s: float | None) -> None:
    """Upload whatever waits, and return when everything written before the command is on the remote.

    Name DATA or any path inside the mount; nothing is needed while exactly one mount is running. It works without a
    mount too. The exit code is 0 only when everything is there; 10 when the time was not enough.

    \b
    Examples:
      syncer flush
      syncer flush data --timeout 600
    """
    from syncer import config, datadir, mounts
    from syncer.cli.uploadbar import upload_bar
    from syncer.control import Client
    from syncer.errors import NotMounted

    data = mounts.resolve(target)
    with upload_bar() as progress:
        try:
            client = Client.connect(data)
        except NotMounted:
            settings = config.load(data / datadir.CONFIG)
            with datadir.DataDirectory.open(data):
                from syncer import app

                app.offline_flush(data, settings, progress, timeout_s)
        else:
            with client:
                client.flush(progress, timeout_s)
    click.echo("syncer: everything is on the remote")
