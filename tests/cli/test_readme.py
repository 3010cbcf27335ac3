"""The README names every command and every option, so that nobody has to find them by chance."""

from pathlib import Path

import click
import pytest

from syncer.cli.main import cli

README = (Path(__file__).parents[2] / "README.md").read_text()


def _options(command: click.Command) -> list[str]:
    return [opt for param in command.params if isinstance(param, click.Option) for opt in param.opts if opt != "-h"]


def _commands() -> dict[str, click.Command]:
    context = click.Context(cli)
    found = {name: cli.get_command(context, name) for name in cli.list_commands(context)}
    return {name: command for name, command in found.items() if command is not None}


@pytest.mark.parametrize("name", sorted(_commands()))
def test_a_command_and_its_options_are_in_the_readme(name: str) -> None:
    assert f"`syncer {name}" in README or f"`syncer [{name}]" in README
    missing = [
        option for option in _options(_commands()[name]) if f"`{option}" not in README and f"{option} " not in README
    ]
    assert not missing


def test_the_options_of_all_are_in_the_readme() -> None:
    assert not [option for option in _options(cli) if f"`{option}`" not in README]
