"""A process that works on DATA is killed again and again, whatever it is doing: nothing it had finished is lost."""

import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from syncer.engine import Engine
from syncer.meta.store import MetaStore
from tests.support.command import CHECKOUT, environment
from tests.support.core_check import check_engine, check_stopped
from tests.support.core_data import make_data
from tests.support.core_driver import is_mixture
from tests.support.core_victim import content_of, open_settings, remote_of
from tests.support.core_world import read_whole
from tests.support.long_form import LONG

ROUNDS = 20 if LONG else 8


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Path]:
    yield make_data(tmp_path / "data")


class Witness:
    """What the killed processes had told: names that must be there, and the one that was being worked on."""

    def __init__(self) -> None:
        self.made: set[str] = set()
        self.doing = ""

    def listen(self, lines: list[str]) -> None:
        self.doing = ""
        for line in lines:
            word, name = line.split()
            if word == "doing":
                self.doing = name
            else:
                self.doing = ""
                (self.made.add if word == "made" else self.made.discard)(name)


def run_and_kill(data: Path, seed: str, after_lines: int) -> list[str]:
    """Let a process work until it has told *after_lines* lines, kill it, and return the lines that it finished."""
    command = [sys.executable, "-m", "tests.support.core_victim", str(data), seed]
    with subprocess.Popen(
        command, cwd=CHECKOUT, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if len(lines) == after_lines:
                process.kill()
        assert len(lines) >= after_lines, f"it ended by itself with {process.wait()}"
    return [line for line in lines if line.endswith("\n")]


async def look(data: Path, witness: Witness) -> None:
    """Open DATA as the next mount does, and compare."""
    meta = MetaStore(data)
    async with Engine.open(data, meta, remote_of(data), open_settings()) as engine:
        names = {entry.name.decode(): entry.inode.number for entry in engine.file_system.names.entries(1, 0, 100_000)}
        assert set(names) - {witness.doing} == witness.made - {witness.doing}
        for name, number in names.items():
            content = await read_whole(engine, number)
            if name != witness.doing:
                assert content == content_of(name), name
            else:
                assert is_mixture(content, b"", content_of(name)), name
        witness.made = set(names) - {witness.doing}
        if witness.doing in names:
            engine.file_system.unlink(1, witness.doing.encode())
        await engine.sealer.seal_quiet(0.0)
        check_engine(engine, data, set())
    check_stopped(data)


@pytest.mark.slow
def test_nothing_that_was_finished_is_lost_by_a_kill(data: Path) -> None:
    choose = random.Random(7)
    witness = Witness()
    for number in range(ROUNDS):
        witness.listen(run_and_kill(data, f"round{number}", choose.randrange(2, 60)))
        trio.run(look, data, witness)
