"""`syncer prune`: give back what no kept snapshot, no file and no follower needs."""

from pathlib import Path
from typing import Any

import click

from syncer.cli.paths import untouched


def _check_bytes(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> int | None:
    if value is None:
        return None
    if not (value.isascii() and value.isdigit()):
        raise click.BadParameter("give a whole number of bytes")
    return int(value)


def _check_host(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    if value is not None and not value.strip():
        raise click.BadParameter("an empty name is no machine; is it an unset variable?")
    return value


@click.command("prune", short_help="Give back what no snapshot that is kept needs.")
@click.argument("target", required=False, type=untouched, metavar="[DATA|PATH]")
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@click.option("--keep", metavar="POLICY", help="Keep these snapshots, and not those that the settings say.")
@click.option("--max-repack", callback=_check_bytes, metavar="BYTES", help="Copy no more than BYTES.")
@click.option(
    "--forget-follower",
    callback=_check_host,
    metavar="HOST|ID",
    help="A machine that followed will not come back.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON; its keys are stable.")
def command(
    target: Path | None,
    dry_run: bool,
    keep: str | None,
    max_repack: int | None,
    forget_follower: str | None,
    as_json: bool,
) -> None:
    """Delete the snapshots that are not kept, and what nothing needs then; say beforehand what that is.

    Name DATA or any path inside the mount; nothing is needed while exactly one mount is running. It works without a
    mount too, and beside a busy one. It may be interrupted: the next one goes on.

    POLICY is as in config.toml: all of the last time (`last=2h`), and the newest of each hour, day, week and month
    for so long. `none` keeps what is there now and the snapshots with a label. Packs of which only a part is needed are
    copied until less than a tenth of the remote is of no use.

    A machine that follows (`--follow`) keeps the snapshots it shows, also while it is out of reach. One that will not
    come back is forgotten by its host's name, or the first digits of its id.

    \b
    Examples:
      syncer prune --dry-run
      syncer prune data --keep last=1d,daily=30d
      syncer prune --max-repack 1000000000
      syncer prune data --forget-follower old-laptop --dry-run
    """
    from syncer import mounts
    from syncer.cli.travel import ask
    from syncer.snapshots import retention

    data = mounts.resolve(target)
    if keep is not None:
        retention.parse(keep)
    question: dict[str, object] = {"keep": keep, "max_repack": max_repack, "forget": forget_follower}
    if not as_json and not dry_run:
        _say(ask(data, "prune", {**question, "dry_run": True}), "would come back")
    plan = ask(data, "prune", {**question, "dry_run": dry_run})
    if as_json:
        import json

        click.echo(json.dumps({"dry_run": dry_run, "snapshots": plan.pop("items"), **plan}, indent=2))
    elif dry_run:
        _say(plan, "would come back")
    else:
        _say({**plan, "items": [], "followers": []}, "came back")


def _say(plan: dict[str, Any], came_back: str) -> None:
    from syncer.cli.text import printable, size

    for one in plan["items"]:
        click.echo(printable(f"{one['name']}  {size(one['bytes'])}"))
    if plan["items"]:
        going = len(plan["items"])
        click.echo(f"{going:,} snapshot{' goes' if going == 1 else 's go'}, {plan['kept_snapshots']:,} stay")
    for one in plan["followers"]:
        click.echo(printable(f"{one['host']} ({one['id'][:8]}) follows, and needs {', '.join(one['keeps'])}"))
    packs = f"{plan['deleted_packs']:,} packs without use, {plan['rewritten_packs']:,} of little use or small"
    copied = f" ({size(plan['rewritten_bytes'])} copied)" if plan["rewritten_packs"] else ""
    click.echo(f"syncer: {size(plan['freed_bytes'])} of {size(plan['remote_bytes'])} {came_back}: {packs}{copied}")
