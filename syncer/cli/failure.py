"""How a command fails: one line on stderr that names the cause and the remedy, and an exit code.

The only place that turns exceptions into either. An error nobody foresaw is one line as well; its traceback goes to
DATA/log, or to stderr when there is no log.
"""

import logging
import os
import sys

import click

from syncer.cli import logfile
from syncer.cli.text import printable
from syncer.errors import SyncerError, alone

UNEXPECTED = 1
INTERRUPTED = 130
"""What a shell makes of a command that SIGINT ended."""

log = logging.getLogger(__name__)


def describe(error: BaseException) -> tuple[str, int]:
    """The line (without an end of line) and the exit code for *error*; logs it when it is unexpected."""
    error = alone(error)
    match error:
        case SyncerError():
            return _line(str(error), error.hint), error.exit_code
        case click.UsageError():
            context = error.ctx.command_path if error.ctx else "syncer"
            return _line(error.format_message().rstrip("."), f"see `{context} --help`"), error.exit_code
        case click.ClickException():
            return _line(error.format_message().rstrip("."), ""), error.exit_code
        case click.Abort() | KeyboardInterrupt():
            return _line("interrupted", ""), INTERRUPTED
        case OSError() if error.strerror:
            log.debug("the command ends with", exc_info=error)
            subject = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
            return _line(f"{subject}{error.strerror}", ""), UNEXPECTED
        case _:
            hint = _record(error)
            return _line(f"unexpected {type(error).__name__}: {error}", hint), UNEXPECTED


def report(error: BaseException) -> int:
    """Print the line for *error* on stderr and return the exit code."""
    line, code = describe(error)
    print(line, file=sys.stderr, flush=True)
    return code


def _line(message: str, hint: str) -> str:
    return printable(f"syncer: {message}; {hint}" if hint else f"syncer: {message}")


def _record(error: BaseException) -> str:
    """Keep the traceback of *error*; returns where to look for it."""
    place = logfile.place()
    if place is None:
        import traceback

        traceback.print_exception(error)
        return "this is a defect in syncer, please report it with the lines above"
    log.critical("unexpected end", exc_info=error)
    return f"this is a defect in syncer, please report it with the traceback in {place}"
