"""`syncer recover`: rebuild a lost or damaged meta.db from the remote and from what DATA still holds."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from syncer.cli.paths import untouched
from syncer.values import BUDGET_MIN_BYTES

if TYPE_CHECKING:
    from syncer.config import Config
    from syncer.snapshots.recovery import Summary

LOST_SHOWN = 20


@click.command("recover", short_help="Rebuild a lost or damaged meta.db.")
@click.argument("data", type=untouched, metavar="DATA")
@click.argument("remote", required=False, metavar="[REMOTE]")
@click.option("--force", is_flag=True, help="Do it although nothing seems to be wrong.")
def command(data: Path, remote: str | None, force: bool) -> int:
    """Rebuild DATA/meta.db, the list of all files, when it is lost or damaged.

    Begins with the newest snapshot on REMOTE (DATA knows it, unless its config.toml is lost too) and adds what is newer
    and still here: the journal, what can be read of the old meta.db, blocks and unsealed bytes. Bytes whose file is
    not known go to lost+found in the file system. The old meta.db and what was of no use are kept in
    DATA/recovered-<time>; delete that when you miss nothing. It may be interrupted at any point and started again.

    \b
    Examples:
      syncer recover data
      syncer recover data nas:blobs
    """
    from syncer import app, datadir, mounts
    from syncer.cli import logfile
    from syncer.cli.text import printable
    from syncer.errors import DataUnusable

    data, mount = mounts.locate(data)
    if mount:
        raise DataUnusable(f"{data} lies inside the mount {mount.mountpoint}", hint=f"name DATA, {mount.data}")
    if datadir.inspect(data) is not datadir.Condition.OURS:
        raise DataUnusable(f"{data} holds no file system to recover", hint="mount it: syncer DATA REMOTE MOUNTPOINT MB")
    settings = _settings(data, remote)
    with datadir.DataDirectory.open(data) as directory:
        logfile.start(directory.log, settings.log_level, warnings_to_stderr=True)
        summary = app.recover(
            data, settings, force=force, say=lambda line: click.echo(printable(f"syncer: {line}"), err=True)
        )
    for line in summary.lost[:LOST_SHOWN]:
        click.echo(printable(f"syncer: lost: {line}"), err=True)
    click.echo(printable(f"syncer: {data} is recovered: {outcome(summary)}"))
    return 0


def _settings(data: Path, remote: str | None) -> "Config":
    """DATA's own, with *remote* where that is given; only *remote* when there are none."""
    import dataclasses

    from syncer import config, datadir
    from syncer.errors import UsageError

    if (data / datadir.CONFIG).exists():
        stored = config.load(data / datadir.CONFIG)
        return stored if remote is None else dataclasses.replace(stored, remote=remote)
    if remote is None:
        raise UsageError(f"{data / datadir.CONFIG} is gone", hint=f"give the remote: `syncer recover {data} REMOTE`")
    return config.Config(remote=remote, budget_bytes=BUDGET_MIN_BYTES)


def outcome(summary: "Summary") -> str:
    return (
        f"{summary.from_remote:,} files from the remote, {summary.newer:,} newer ones from here,"
        f" {summary.found:,} in lost+found, {len(summary.lost):,} with lost bytes;"
        f" what was there before is in {summary.aside}"
    )
