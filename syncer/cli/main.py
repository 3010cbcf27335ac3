"""The `syncer` command: finds the subcommand, runs it, turns its errors into a line and an exit code.

A subcommand NAME is the object `command` of the module `syncer.cli.NAME`. Modules load when they are needed, and
their heavy imports later still, so that `--help` and `--version` come at once.
"""

import importlib
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

COMMANDS = (
    *("mount", "umount", "flush", "status", "check", "recover"),
    *("snapshot", "snapshots", "diff", "restore", "prune"),
)
OWN_OPTIONS = ("-h", "--help", "--version")


class Commands(click.Group):
    """Subcommands that load late; a first word that is none of them is the first argument of `mount`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f"syncer.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args:
            args = ["--help"]
        elif args[0] not in COMMANDS and args[0] not in OWN_OPTIONS:
            args = ["mount", *args]
        return super().parse_args(ctx, args)


def _print_version(ctx: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from importlib.metadata import version

        click.echo(f"syncer {version('syncer')}")
        ctx.exit()


@click.group(
    cls=Commands,
    subcommand_metavar="COMMAND [ARGS]...",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_print_version, help="Show the version."
)
def cli() -> None:
    """Show a very large collection of files and keep a bounded part of it on the local disk.

    `syncer DATA REMOTE MOUNTPOINT MB` mounts: DATA is a local folder that never takes more than MB megabytes, REMOTE
    is where everything is stored, MOUNTPOINT is where it appears. Afterwards `syncer DATA MOUNTPOINT` is enough.

    \b
    Examples:
      syncer data nas:blobs mnt 1000      mount, 1000 MB on the local disk
      syncer data mnt                     mount again
      syncer status                       how much is where
      syncer umount mnt --wait            upload everything, then unmount
    """


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with its code."""
    try:
        code = cli.main(arguments, prog_name="syncer", standalone_mode=False)
    except Exception as error:  # noqa: BLE001 - the outermost place: everything is reported, nothing passes
        from syncer.cli import failure

        code = failure.report(error)
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
