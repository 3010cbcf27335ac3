"""Paths as arguments of commands."""

from pathlib import Path

import click

from syncer.errors import UsageError

EMPTY = "an empty name is no path"


def untouched(text: str) -> Path:
    """The type of an argument that is a path: taken as it is written, whether or not anything is there.

    Not `click.Path`, which looks at every path: one inside a mount that hangs would hang the command that is to end it.

    Raises: click.BadParameter: for "", an unset variable, say, which would mean the working directory.
    """
    if not text:
        raise click.BadParameter(EMPTY)
    return Path(text)


def refuse_empty(*paths: str | None) -> None:
    """The same for arguments that are not only paths. Raises: UsageError."""
    if "" in paths:
        raise UsageError(EMPTY, hint="is it an unset variable? `.` is where you are, and `/` all of a DATA")
