"""A repair that kills itself: `python -m tests.check.check_victim PLACE STEP`, where STEP is one of STEPS.

Just before or after the step, as its name says, the process is gone, as by a power cut that spares the disk.
"""

import os
import signal
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from syncer.blocks import check as folders
from syncer.meta.check import replay
from syncer.meta.repair import repair
from tests.support.check_world import CheckWorld


def _die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _after(call: Callable[..., Any]) -> Callable[..., Any]:
    def run(*arguments: Any, **options: Any) -> Any:
        call(*arguments, **options)
        _die()

    return run


class _Connection:
    """Dies at the begin of a statement."""

    def __init__(self, inner: sqlite3.Connection, statement: str) -> None:
        self._inner = inner
        self._statement = statement

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def execute(self, statement: str, *arguments: Any) -> Any:
        if statement.startswith(self._statement) and self._inner.in_transaction:
            _die()
        return self._inner.execute(statement, *arguments)


def _at_statement(statement: str) -> Any:
    really = sqlite3.connect

    def connect(*arguments: Any, **options: Any) -> Any:
        return _Connection(really(*arguments, **options), statement)

    return mock.patch("sqlite3.connect", connect)


STEPS: dict[str, Callable[[], Any]] = {
    "before files are put aside": lambda: mock.patch.object(folders, "put_aside", _die),
    "between two files that are put aside": lambda: mock.patch.object(Path, "rename", _after(Path.rename)),
    "after files were put aside": lambda: mock.patch.object(folders, "put_aside", _after(folders.put_aside)),
    "when bytes are kept": lambda: mock.patch.object(folders, "keep", _after(folders.keep)),
    "in the middle of the rows": lambda: _at_statement("UPDATE blocks SET refs"),
    "before the commit": lambda: _at_statement("INSERT OR REPLACE INTO state SELECT"),
    "after the commit": lambda: mock.patch("syncer.checking.repair", _after(repair)),
    "after what follows": lambda: mock.patch("syncer.checking.replay", _after(replay)),
}


if __name__ == "__main__":
    with STEPS[sys.argv[2]]():
        CheckWorld(Path(sys.argv[1]), {}).check(repair=True, percent=100.0)
