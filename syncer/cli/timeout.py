"""The option --timeout of commands that wait for the remote."""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def _check(_ctx: click.Context, _parameter: click.Parameter, value: float | None) -> float | None:
    if value is not None and not 0 < value < math.inf:
        raise click.BadParameter("give a number of seconds above 0")
    return value


def timeout_option(function: F) -> F:
    """Gives a command the argument *timeout_s*, None when it was not said."""
    option = click.option(
        "--timeout", "timeout_s", type=float, metavar="S", callback=_check, help="Give up after S seconds."
    )
    return option(function)
