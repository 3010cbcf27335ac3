"""Which snapshot somebody means: by its name, its label, its id, its place, or a moment. Pure.

A moment is worked out by the process of who says it (`moment_of`), whose clock and time zone count, and the snapshot
found where the snapshots are.
"""

import re
from collections.abc import Sequence
from datetime import UTC, datetime, tzinfo
from typing import Protocol, TypeVar

from syncer.errors import UsageError
from syncer.snapshots.moments import EXAMPLES, SECOND_NS, parse_moment

LATEST = "latest"
ID_PREFIX_MIN = 4
"""Fewer digits of an id are not taken for one."""
NAMED = 4
"""So many candidates a message names."""


class Selectable(Protocol):
    """What is looked at of a snapshot."""

    @property
    def peer(self) -> int: ...

    @property
    def seq(self) -> int: ...

    @property
    def id(self) -> str: ...

    @property
    def time_ns(self) -> int: ...

    @property
    def label(self) -> str | None: ...


S = TypeVar("S", bound=Selectable)


class NoSuchSnapshot(UsageError):
    """No snapshot, or more than one, is what was asked for."""


def name_of(snapshot: Selectable, zone: tzinfo | None = None) -> str:
    """What people call it: the local time of its moment, and its label where it has one."""
    moment = datetime.fromtimestamp(snapshot.time_ns // SECOND_NS, UTC).astimezone(zone)
    return moment.strftime("%Y-%m-%d_%H-%M-%S") + (f"_{snapshot.label}" if snapshot.label else "")


def moment_of(text: str, now_ns: int, zone: tzinfo | None = None) -> int | None:
    """The moment that *text* means to who says it, at *now_ns* and in *zone*; None for what is no moment."""
    try:
        return parse_moment(text, now_ns, zone)
    except UsageError:
        return None


def select(text: str, snapshots: Sequence[S], moment_ns: int | None, zone: tzinfo | None = None) -> S:
    """The one of *snapshots* (the oldest first) that *text* means.

    In this order: `latest`; a label; the name of its directory; `peer/seq`; the beginning of an id; and at last
    *moment_ns*, which is what *text* means as a moment: the newest snapshot at or before it.

    Raises: NoSuchSnapshot: none or several; the message says which there are.
    """
    said = text.strip()
    if not snapshots:
        raise NoSuchSnapshot("there are no snapshots yet", hint="one is taken every minute while something changes")
    if said == LATEST:
        return snapshots[-1]
    for found in (
        [snapshot for snapshot in snapshots if snapshot.label == text],
        [snapshot for snapshot in snapshots if snapshot.label and name_of(snapshot, zone) == said],
        _at_place(said, snapshots),
        _with_id(said, snapshots),
    ):
        if len(found) > 1:
            raise NoSuchSnapshot(f"{text!r} may be any of {_names(found, zone)}", hint="give more of it")
        if found:
            return found[0]
    if moment_ns is None:
        raise NoSuchSnapshot(f"no snapshot is called {text!r}, and it is no moment", hint=f"say {EXAMPLES}")
    return newest_at(moment_ns, snapshots, text, zone)


def newest_at(moment_ns: int, snapshots: Sequence[S], text: str, zone: tzinfo | None = None) -> S:
    """The newest of *snapshots* at or before the moment. Of equal ones the last. Raises: NoSuchSnapshot."""
    found = [snapshot for snapshot in snapshots if snapshot.time_ns <= moment_ns]
    if not found:
        oldest = min(snapshots, key=lambda snapshot: snapshot.time_ns)
        raise NoSuchSnapshot(f"no snapshot is as old as {text!r}", hint=f"the oldest is {name_of(oldest, zone)}")
    newest_ns = max(snapshot.time_ns for snapshot in found)
    return [snapshot for snapshot in found if snapshot.time_ns == newest_ns][-1]


def _at_place(said: str, snapshots: Sequence[S]) -> list[S]:
    match = re.fullmatch(r"(\d{1,8})/(\d{1,12})", said)
    if match is None:
        return []
    place = int(match[1]), int(match[2])
    return [snapshot for snapshot in snapshots if (snapshot.peer, snapshot.seq) == place]


def _with_id(said: str, snapshots: Sequence[S]) -> list[S]:
    if not re.fullmatch(f"[0-9a-f]{{{ID_PREFIX_MIN},64}}", said.lower()):
        return []
    return [snapshot for snapshot in snapshots if snapshot.id.startswith(said.lower())]


def _names(found: Sequence[S], zone: tzinfo | None) -> str:
    shown = ", ".join(f"{snapshot.id[:12]} ({name_of(snapshot, zone)})" for snapshot in found[:NAMED])
    more = len(found) - NAMED
    return f"{shown} and {more} more" if more > 0 else shown
