"""The command line of `scripts/bench`: what to measure, with whom, how often, and where the report goes."""

import importlib.util
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection
from pathlib import Path

import click

from scripts.benchmark import main_table, picture, report, results
from scripts.benchmark.conditions import conditions
from scripts.benchmark.passthrough import Passthrough
from scripts.benchmark.peers import JuiceFs, Rclone, S3fs, Sshfs
from scripts.benchmark.results import Report, Table
from scripts.benchmark.rows import FULL, QUICK, table_rows
from scripts.benchmark.sections import (
    cold_remote,
    concurrent,
    copy_in,
    cutter,
    first_byte,
    insert,
    publish,
    scale,
    uploading,
)
from scripts.benchmark.settings import Settings
from scripts.benchmark.syncer_mount import Syncer
from scripts.benchmark.systems import PlainDirectory, System
from scripts.benchmark.tasks import CACHES

DEFAULT_PEERS = ("c", "syncer", "syncer-writeback", "juicefs", "sshfs", "s3fs", "rclone")
SECTIONS: dict[str, Callable[[Settings], Table]] = {
    main_table.KEY: main_table.measure,
    copy_in.KEY: copy_in.measure,
    insert.KEY: insert.measure,
    first_byte.KEY: first_byte.measure,
    cold_remote.KEY: cold_remote.measure,
    concurrent.KEY: concurrent.measure,
    uploading.KEY: uploading.measure,
    scale.KEY: scale.measure,
    publish.KEY: publish.measure,
    cutter.KEY: cutter.measure,
}
OF_SYNCER = (first_byte.KEY, cold_remote.KEY, uploading.KEY, scale.KEY, publish.KEY)
"""Sections that make no sense without syncer."""
WORKLOADS = tuple(row.key for row in table_rows(FULL))


def all_systems(budget_megabytes: int) -> dict[str, System]:
    """Every system by its name, in the order of the columns."""
    systems: tuple[System, ...] = (
        *(PlainDirectory(), Passthrough(writeback=True), Passthrough(writeback=False)),
        *(Syncer(budget_megabytes), Syncer(budget_megabytes, writeback=True)),
        *(JuiceFs(), Sshfs(), S3fs(), Rclone()),
    )
    return {system.key: system for system in systems}


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.argument("sections", nargs=-1, type=click.Choice([*SECTIONS, "all"]), metavar="[SECTION]...")
@click.option("--passes", default=3, show_default=True, type=click.IntRange(1), help="How often each is measured.")
@click.option("--only", default="", metavar="LIST", help=f"Only these rows of the main table: {','.join(WORKLOADS)}.")
@click.option(
    "--peers",
    default=",".join(DEFAULT_PEERS),
    show_default=True,
    metavar="LIST",
    help="The columns; there are also plain and c-through.",
)
@click.option("--quick", is_flag=True, help="Small sizes: shows that everything runs, and no more than that.")
@click.option("--time-cap", default=60.0, show_default=True, metavar="S", help="A cell ends after S seconds.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), metavar="FILE", help="Every figure measured.")
@click.option(
    "--markdown",
    "markdown_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The report; into a page with marker lines it goes between them.",
)
@click.option("--png", "png_file", type=click.Path(path_type=Path), metavar="FILE", help="The report as charts.")
@click.option(
    "--from",
    "earlier",
    multiple=True,
    type=click.Path(path_type=Path, exists=True),
    metavar="FILE",
    help="Report the figures of an earlier --json too; again. With no SECTION, measure nothing.",
)
@click.option("--scratch", type=click.Path(path_type=Path, exists=True), metavar="DIR", help="Where all data goes.")
@click.option("--install", is_flag=True, help="Install the systems that are missing (apt-get and pip).")
def command(
    sections: tuple[str, ...],
    passes: int,
    only: str,
    peers: str,
    quick: bool,
    time_cap: float,
    json_file: Path | None,
    markdown_file: Path | None,
    png_file: Path | None,
    earlier: tuple[Path, ...],
    scratch: Path | None,
    install: bool,
) -> None:
    """Measure syncer side by side with its peers, in one run, on this machine.

    \b
    Sections (`table` unless given; `all` for all of them):
      table        files and directories: streams, random access, small files, trees
      copy-in      2,000 small files until all is on S3; how many objects
      insert       what a byte inserted at the front of a large file uploads
      first-byte   an evicted file over SSH and S3, against a bare range request
      cold-remote  a large evicted file against sshfs and boto3
      concurrent   eight processes against one
      uploading    local reads and look-ups while uploading
      scale        a thousand files against a million, a huge directory, a huge file
      publish      a snapshot after one change among a million files
      cutter       the C extension alone

    \b
    Examples:
      scripts/bench --quick
      scripts/bench --only create,rename --peers c,syncer,sshfs
      scripts/bench all --json figures.json --markdown docs/performance.md --png docs/performance.png
    """
    if png_file and not importlib.util.find_spec("matplotlib"):
        raise click.ClickException("--png needs matplotlib, which scripts/bench installs")  # said before hours of work
    if scratch:
        os.environ["TMPDIR"] = tempfile.tempdir = str(scratch.absolute())  # the servers' folders go there too
    _raise_limits()
    sizes = QUICK if quick else FULL
    settings = Settings(
        systems=_available(peers, sizes.budget_megabytes, install) if sections or not earlier else (),
        sizes=sizes,
        passes=passes,
        cap_s=time_cap,
        only=_listed(only, WORKLOADS, "--only"),
        parent=scratch and scratch.absolute(),
        drop_caches=os.access(CACHES, os.W_OK),
        say=lambda line: click.echo(line, err=True),
    )
    found = _measure(settings, sections or (() if earlier else (main_table.KEY,)), earlier)
    if json_file:
        results.save(found, json_file)
    if markdown_file:
        report.write(found, markdown_file)
    if png_file:
        picture.draw(found, png_file)
    click.echo(report.markdown(found), nl=False)


def _measure(settings: Settings, sections: tuple[str, ...], earlier: tuple[Path, ...]) -> Report:
    found = Report(conditions(settings)) if sections else Report({})
    for path in earlier:
        old = results.load(path)
        found.conditions = {**old.conditions, **found.conditions}
        found.tables.update(old.tables)
    for key in SECTIONS if "all" in sections else dict.fromkeys(sections):
        if key in OF_SYNCER and not settings.system("syncer"):
            settings.say(f"{key}: left out, it measures syncer")
            continue
        found.tables[key] = SECTIONS[key](settings)
    return found


def _available(peers: str, budget_megabytes: int, install: bool) -> tuple[System, ...]:
    """The systems that were asked for and are here; a line about each that is not."""
    known = all_systems(budget_megabytes)
    names = _listed(peers, known, "--peers")
    wanted = [system for key, system in known.items() if key in names]
    if install:
        _install([system for system in wanted if system.missing()])
    found = []
    for system in wanted:
        if reason := system.missing():
            packages = " ".join((*system.debian, *system.python))
            remedy = f" (--install brings it: {packages})" if packages and not install else ""
            click.echo(f"{system.title} is left out: {reason}{remedy}", err=True)
        else:
            found.append(system)
    if not found:
        raise click.ClickException("nothing is left to measure")
    return tuple(found)


def _listed(text: str, known: Collection[str], option: str) -> tuple[str, ...]:
    """The words between commas. Raises: BadParameter: one is not *known*."""
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if unknown := [name for name in names if name not in known]:
        raise click.BadParameter(f"{unknown[0]}: there are {', '.join(known)}", param_hint=option)
    return names


def _install(missing: list[System]) -> None:
    debian = sorted({package for system in missing for package in system.debian})
    python = sorted({package for system in missing for package in system.python})
    root = [] if os.geteuid() == 0 else ["sudo"]
    commands = [
        *([[*root, "apt-get", "update"], [*root, "apt-get", "install", "--yes", *debian]] if debian else []),
        *([[sys.executable, "-m", "pip", "install", *python]] if python else []),
    ]
    for line in commands:
        click.echo(" ".join(line), err=True)
        if subprocess.run(line, stdout=sys.stderr, check=False).returncode:
            click.echo("that failed; going on with what is there", err=True)


def _raise_limits() -> None:
    """passthrough_ll keeps a descriptor for each inode that the kernel knows."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
