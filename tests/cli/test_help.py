"""What the commands say about themselves, and that they say it at once."""

import os
import subprocess
import sys

import click
import pytest

from syncer.cli.main import COMMANDS, cli
from tests.support.command import SYNCER, environment, syncer

PARAMETERS = [
    (name, parameter)
    for name in COMMANDS
    for parameter in cli.get_command(click.Context(cli), name).params  # type: ignore[union-attr]
]


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], *([name, "--help"] for name in COMMANDS)])
def test_help_has_an_example(arguments: list[str]) -> None:
    outcome = syncer(*arguments)
    assert outcome.returncode == 0
    head, _, examples = outcome.stdout.partition("Examples:\n")
    name = arguments[0] if arguments[0] in COMMANDS else ""
    assert examples.lstrip().startswith(f"syncer {name}" if name != "mount" else "syncer data")
    assert head.startswith("Usage: syncer")
    assert not outcome.stderr


def test_without_arguments_there_is_help() -> None:
    outcome = syncer()
    assert (outcome.returncode, outcome.stdout) == (0, syncer("--help").stdout)


def test_the_overview_names_every_command() -> None:
    text = syncer("--help").stdout
    for name in COMMANDS:
        assert f"\n  {name} " in text


@pytest.mark.parametrize(("name", "parameter"), PARAMETERS, ids=lambda value: getattr(value, "name", value))
def test_every_option_is_explained(name: str, parameter: click.Parameter) -> None:
    if isinstance(parameter, click.Option):
        assert parameter.help, f"syncer {name}: {parameter.opts} has no help"


def test_commands_that_only_speak_bring_nothing_heavy() -> None:
    code = """
import sys
from syncer.cli.main import main
try:
    main(sys.argv[1:])
finally:
    print(sorted({"boto3", "paramiko", "pyfuse3", "rich", "trio", "msgspec", "sqlite3"} & set(sys.modules)))
"""
    for arguments in (["--help"], ["mount", "--help"], ["--version"]):
        outcome = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True, env=environment()
        )
        assert outcome.stdout.splitlines()[-1] == "[]", arguments


def cost_s(command: list[str], times: int = 5) -> float:
    """The processor time of *command*, the best of some runs: waiting for a busy machine does not count."""
    best = float("inf")
    for _ in range(times):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment())
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        best = min(best, usage.ru_utime + usage.ru_stime)
    return best


@pytest.mark.parametrize("argument", ["--version", "--help"])
def test_they_start_fast(argument: str) -> None:
    assert cost_s([*SYNCER, argument]) - cost_s([sys.executable, "-c", "pass"]) < 0.15
