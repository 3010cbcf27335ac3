"""`syncer check`: verify DATA and its remote, and mend what can be mended."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from syncer.cli.paths import untouched

if TYPE_CHECKING:
    from syncer.checking import Report
    from syncer.meta.findings import Finding

CLEAN, REPAIRED, DAMAGED = 0, 1, 2
SHOWN = 20
"""So many findings, and paths of one, are printed for people."""


def _check_percent(_ctx: click.Context, _parameter: click.Parameter, value: float | None) -> float:
    if value is not None and not 0 < value <= 100:
        raise click.BadParameter("give a percentage above 0, up to 100")
    return value or 0.0


class _Check(click.Command):
    """Knows that what follows `--read-data` and is no number is not its percentage: click would take it for that."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ended = args.index("--") if "--" in args else len(args)
        following = [*args[1:ended], ""]
        said = [
            f"{word}=100" if word == "--read-data" and not _is_number(after) else word
            for word, after in zip(args[:ended], following, strict=True)
        ]
        return super().parse_args(ctx, [*said, *args[ended:]])


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


@click.command("check", cls=_Check, short_help="Verify DATA and the remote, and repair them.")
@click.argument("target", required=False, type=untouched, metavar="[DATA|PATH]")
@click.option(
    "--read-data", "percent", is_flag=False, flag_value=100.0, type=float, metavar="[=PERCENT]",
    callback=_check_percent, help="Hash every cached byte too; with --remote those of all packs, or of a sample.",
)  # fmt: skip
@click.option("--remote", is_flag=True, help="Check that the remote has everything, too.")
@click.option("--repair", is_flag=True, help="Mend what can be mended; DATA must not be mounted.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON with all that was found; its keys are stable.")
def command(target: Path | None, percent: float, remote: bool, repair: bool, as_json: bool) -> int:
    """Look for damage in DATA, mounted or not, and on its remote. Changes nothing without --repair.

    The exit code is 0 when nothing is wrong, 1 when everything that was is repaired, 2 when damage is left. What has no
    place goes to lost+found, in the file system or in DATA; nothing is deleted.

    \b
    Examples:
      syncer check data
      syncer check data --remote --read-data=5
      syncer check data --remote --read-data --repair
    """
    from syncer import app, checking, config, datadir, mounts

    data = mounts.resolve(target)
    settings = config.load(data / datadir.CONFIG)
    request = checking.CheckRequest(data=data, config=settings, percent=percent, remote=remote, repair=repair)
    with _bars() as progress:
        report = checking.check(request, app.backend_of, progress)
    if as_json:
        _print_json(report, repair)
    else:
        _print_lines(report, repair)
    return DAMAGED if report.left else REPAIRED if report.found else CLEAN


def _print_json(report: "Report", repair: bool) -> None:
    import json

    def fields(finding: "Finding") -> dict[str, object]:
        return {
            "code": finding.code,
            "what": finding.text,
            "object": None if finding.name is None or finding.inode is not None else os.fsdecode(finding.name),
            "inode": finding.inode,
            "lost": finding.lost,
            "paths": [os.fsdecode(path) for path in finding.paths],
        }

    answer = {
        "clean": not report.found,
        "repair": repair,
        "found": [fields(finding) for finding in report.found],
        "left": [fields(finding) for finding in report.left],
        "notes": list(report.notes),
    }
    click.echo(json.dumps(answer, indent=2))


def _print_lines(report: "Report", repair: bool) -> None:
    from syncer.cli.text import printable

    for note in report.notes:
        click.echo(printable(f"syncer: {note}"))
    _print_findings("found", report.found)
    if repair and report.left:
        _print_findings("left", report.left)
    if not report.found:
        click.echo("syncer: nothing is wrong")
    elif not repair:
        click.echo(f"syncer: {_count(report.found)} found; `syncer check --repair` mends what can be mended")
    elif report.left:
        click.echo(f"syncer: {_count(report.found)} found, {len(report.left)} left")
    else:
        click.echo(f"syncer: {_count(report.found)} found and repaired; lost+found has what had no place")


def _count(found: "Sequence[Finding]") -> str:
    return "1 fault" if len(found) == 1 else f"{len(found)} faults"


def _print_findings(word: str, found: "Sequence[Finding]") -> None:
    from syncer.cli.text import printable

    for finding in found[:SHOWN]:
        whole = os.fsdecode(finding.name) + ": " if finding.name is not None and finding.inode is None else ""
        lost = " (bytes are lost)" if finding.lost else ""
        paths = [os.fsdecode(path) for path in finding.paths[:SHOWN]]
        more = f", and {len(finding.paths) - SHOWN} more" if len(finding.paths) > SHOWN else ""
        where = f": {', '.join(paths)}{more}" if paths else ""
        click.echo(printable(f"{word}: {finding.code}: {whole}{finding.text}{lost}{where}"))
    if len(found) > SHOWN:
        click.echo(f"{word}: {len(found) - SHOWN} more; --json shows all")


@contextlib.contextmanager
def _bars() -> Iterator[Callable[[str, int, int], None]]:
    """Show what is being looked at while the body runs, on stderr and only where that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda what, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("checking", total=None)

        def show(what: str, done: int, total: int) -> None:
            bars.update(task, description=f"checking {what}", completed=done, total=total or None)

        yield show
