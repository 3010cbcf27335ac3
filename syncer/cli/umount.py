"""`syncer umount`: end a mount cleanly, or clear away what a dead one left in the way."""

import time
from pathlib import Path

import click

from syncer.cli.paths import untouched

END_S = 180.0
"""A mount that ends may still publish a snapshot, which has its own network deadlines."""
LOOK_EVERY_S = 0.05


@click.command("umount", short_help="End a mount.")
@click.argument("target", required=False, type=untouched, metavar="[MOUNTPOINT|DATA|PATH]")
@click.option("--wait", is_flag=True, help="Upload everything first.")
def command(target: Path | None, wait: bool) -> None:
    """End a mount and return when it is gone and DATA is free.

    Name the mountpoint, any path inside it, or DATA; nothing is needed while exactly one mount is running. Without
    --wait, what is not uploaded yet stays in DATA and goes up with the next mount.

    \b
    Examples:
      syncer umount mnt
      syncer umount --wait
    """
    from syncer import datadir, mounts
    from syncer.cli.text import printable
    from syncer.cli.uploadbar import upload_bar
    from syncer.control import Client
    from syncer.errors import NotMounted

    data = mounts.resolve(target)
    places = [mount.mountpoint for mount in mounts.find_mounts() if mount.data == data]
    try:
        client = Client.connect(data)
    except NotMounted:
        if datadir.is_locked(data):
            raise datadir.in_use(data) from None
        if not places:
            raise
        for place in places:
            mounts.detach(place)
        click.echo(
            printable(f"syncer: {places[0]} is unmounted; its process had died, DATA keeps what waits for upload")
        )
        return
    with client:
        if wait:
            with upload_bar() as progress:
                client.flush(progress)
        client.stop()
    _await_end(data)
    click.echo(printable(f"syncer: {places[0] if places else data} is unmounted{_what_waits(data)}"))


def _what_waits(data: Path) -> str:
    """The end of the closing line. Nothing when somebody mounts DATA again already: the mount itself has ended."""
    from syncer import config, datadir
    from syncer.cli.text import waiting
    from syncer.errors import SyncerError

    try:
        settings = config.load(data / datadir.CONFIG)
        with datadir.DataDirectory.open(data):
            from syncer import app

            return f"; {waiting(app.offline_status(data, settings).pending_upload_bytes)}"
    except SyncerError:
        return ""


def _await_end(data: Path) -> None:
    """Raises: DeadlinePassed."""
    from syncer import datadir, mounts
    from syncer.errors import DeadlinePassed

    end = time.monotonic() + END_S
    while datadir.is_locked(data) or any(mount.data == data for mount in mounts.find_mounts()):
        if time.monotonic() > end:
            raise DeadlinePassed(
                f"the mount of {data} has not ended within {END_S:g} s", hint=f"see {data / datadir.LOG}, and try again"
            )
        time.sleep(LOOK_EVERY_S)
