"""Every exception syncer raises on purpose: what happened, what to do, and how a command exits.

Storage and usage trouble is a SyncerError; the outcome of a POSIX call is an OSError with its errno. They are
translated once: to an errno in `fs/errmap.py`, to one line and an exit code in `cli/`.

Exit codes are stable. 0 success, 1 an unexpected failure, 2 wrong usage (click's own), then one a class below.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar


class SyncerError(Exception):
    """Base class. The message names the cause; `hint` tells the user what to do about it.

    Attributes:
        exit_code: what a command exits with when this ends it.
        retry: whether the same call may succeed later without anybody changing anything.
        hint: the remedy, as a clause that can follow the message; empty when the message says it.
    """

    exit_code: ClassVar[int] = 1
    retry: ClassVar[bool] = False
    default_hint: ClassVar[str] = ""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = self.default_hint if hint is None else hint


# --- what the user gave us -------------------------------------------------------------------------------------


class UsageError(SyncerError):
    """An argument that cannot be right: an unknown scheme, a budget under the minimum, a bad option."""

    exit_code = 2


class DataUnusable(SyncerError):
    """DATA is missing, unwritable, not a syncer directory, or of a format this version does not know."""

    exit_code = 3


class DataInUse(SyncerError):
    """Another process holds DATA/lock."""

    exit_code = 4


class MountpointUnusable(SyncerError):
    """The mountpoint is missing, not an empty directory, or already mounted."""

    exit_code = 5


class FuseUnavailable(SyncerError):
    """No /dev/fuse, no fusermount3, or the kernel refused the mount."""

    exit_code = 6


class WrongRepository(SyncerError):
    """DATA and the remote belong to different repositories, or the repository has another writer."""

    exit_code = 7


class NotMounted(SyncerError):
    """The command needs a running mount and there is none, or it cannot tell which is meant."""

    exit_code = 8


class ConfigInvalid(SyncerError):
    """DATA/config.toml cannot be read or has a value that makes no sense."""

    exit_code = 9


class DeadlinePassed(SyncerError):
    """What was asked for did not finish in the time given."""

    exit_code = 10
    retry = True


# --- the remote -------------------------------------------------------------------------------------------------


class BackendError(SyncerError):
    """A remote did not do what was asked. Backends raise only subclasses of this."""

    exit_code = 20


class ObjectMissing(BackendError):
    """The object is not there. Never worth retrying."""

    exit_code = 21


class RemoteRefused(BackendError):
    """The remote answered and said no: credentials, host key, permission, no such bucket or module."""

    exit_code = 22


class RemoteUnreachable(BackendError):
    """No answer, a broken connection, a time-out, or a server that says it is overloaded."""

    exit_code = 23
    retry = True


class NobodyListens(RemoteUnreachable):
    """The host is there, and refuses the connection: no server runs on that port. It may be started again."""


class RemoteFull(BackendError):
    """The remote has no room (ENOSPC, EDQUOT, a quota answer)."""

    exit_code = 24
    retry = True


class ObjectCorrupt(BackendError):
    """What came back is not what was stored: wrong length, wrong hash, undecodable."""

    exit_code = 25


# --- the local store --------------------------------------------------------------------------------------------


class LocalDamage(SyncerError):
    """meta.db, the journal, the cache or a dirty file contradict each other."""

    exit_code = 30
    default_hint = "keep DATA as it is and make a copy before anything else"


class BudgetExhausted(SyncerError):
    """No room within the budget and nothing that may be evicted; becomes ENOSPC."""

    exit_code = 31
    retry = True
    default_hint = "wait for uploads, or give the mount more MB"


class PorterLost(SyncerError):
    """The process that makes and puts packs died, or answers nonsense. What it was asked for is done without it."""

    retry = True


class PorterSlow(PorterLost):
    """It gets so little of the processors, or of the disk, that it is better to do without it."""


NAMES_SHOWN = 3
"""So many files are named in a message."""


def some_of(names: Sequence[str]) -> str:
    """The first of *names*, for a message, and how many more there are."""
    more = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {more:,} more" if more > 0 else "")


def alone(error: BaseException) -> BaseException:
    """*error*, or what was alone in the groups that nurseries make of it."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def forget_way(error: BaseException | None) -> None:
    """Have an error, and those that led to it, forget the calls that they came through.

    A call holds what it was about, which may be a pack. Where an error is kept, or where one of those calls has it in a
    variable, that would be kept too: until Python looks for cycles, which among what is old it hardly ever does.
    """
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


def recover_command(data: Path) -> str:
    """What a user runs when meta.db is lost."""
    return f"`syncer recover {data} REMOTE`"
