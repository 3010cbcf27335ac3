"""What the POSIX tests share: expecting an errno, acting as another user."""

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.syscalls import setgroups, setresgid, setresuid

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may act as other users")


@dataclass(frozen=True, slots=True)
class User:
    """An ordinary user: ids that need not be in /etc/passwd."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


ALICE = User(61001, 61001, (61100,))
BOB = User(61002, 61002)
FRIENDS = 61100
"""A group that Alice is in beside her own, and Bob is not."""


@contextlib.contextmanager
def acting_as(user: User | None) -> Iterator[None]:
    """The calls of this thread are those of *user*: no capabilities, own ids and groups. None: stay who we are.

    Other threads stay who they are: one of them watches what only root may see.
    """
    if user is None:
        yield
        return
    groups = os.getgroups()
    gid = os.getegid()
    uid = os.geteuid()
    setgroups(user.groups)
    setresgid(-1, user.gid, -1)
    setresuid(-1, user.uid, -1)
    try:
        yield
    finally:
        setresuid(-1, uid, -1)
        setresgid(-1, gid, -1)
        setgroups(groups)


def raises(number: int, call: Callable[..., object], *arguments: object, **options: object) -> None:
    """The call fails with exactly this errno."""
    with pytest.raises(OSError) as caught:
        call(*arguments, **options)
    assert caught.value.errno == number, caught.value


def put_program(path: Path) -> None:
    """Make a program that does nothing. Another process writes it: what a thread of this one starts meanwhile would
    hold the descriptor for a moment, and who holds one to write keeps the program from running.
    """
    subprocess.run(["cp", "/bin/true", path], check=True, timeout=30)
    path.chmod(0o755)
