"""Which snapshot somebody means: by its name, its label, its id, its place, or a moment. Pure.

A moment is worked out by the process of who says it (moments.py), whose clock and time zone count, and the snapshot
found where the snapshots are.
"""

import re
from collections.abc import Sequence

from syncer.errors import UsageError, some_of
from syncer.snapshots.history import Snapshot
from syncer.snapshots.moments import EXAMPLES
from syncer.snapshots.naming import snapshot_names

LATEST = "latest"
NOW = "now"
"""The live tree, where a snapshot could be named as well."""
ID_PREFIX_MIN = 4
"""Fewer digits of an id are not taken for one."""
LABEL_MAX = 100
"""Characters."""


class NoSuchSnapshot(UsageError):
    """No snapshot, or more than one, is what was asked for."""


def check_label(label: str, snapshots: Sequence[Snapshot]) -> None:
    """Raises: UsageError: no snapshot can be called so, or one is already."""
    if not label.strip() or not label.isprintable() or "/" in label or len(label) > LABEL_MAX:
        raise UsageError(
            f"{label!r} cannot be a label", hint=f"take up to {LABEL_MAX} printable characters, and no slash among them"
        )
    if label.strip() == LATEST or is_now(label):
        meaning = "the newest snapshot" if label.strip() == LATEST else "this moment"
        raise UsageError(f"{label.strip()} always means {meaning}", hint="choose another label")
    if any(snapshot.label == label for snapshot in snapshots):
        raise UsageError(f"there is a snapshot called {label!r} already", hint="choose another label")


def select(text: str, snapshots: Sequence[Snapshot], moment_ns: int | None) -> Snapshot:
    """The one of *snapshots* (the oldest first) that *text* means.

    In this order: `latest`; a label; the name of its directory; `peer/seq`; the beginning of an id; and at last
    *moment_ns*, which is what *text* means as a moment: the newest snapshot at or before it.

    Raises: NoSuchSnapshot: none or several; the message says which there are. UsageError: it is `now`, which is the
        live tree and never the newest snapshot: the two may differ.
    """
    if not snapshots:
        raise NoSuchSnapshot("there are no snapshots yet", hint="one is taken every minute while something changes")
    found = named(text, snapshots)
    if found is not None:
        return found
    if is_now(text):
        raise UsageError(
            f"{text.strip()} is no snapshot",
            hint="say `latest`; to compare with what is there now, leave B of `diff` out",
        )
    if moment_ns is None:
        hint = f"`syncer snapshots` lists them; or say {EXAMPLES}"
        raise NoSuchSnapshot(f"no snapshot is called {text!r}, and it is no moment", hint=hint)
    return newest_at(moment_ns, snapshots, text)


def is_now(text: str) -> bool:
    """Whether *text* means the live tree, in large letters or small, as other moments may be said."""
    return text.strip().lower() == NOW


def named(text: str, snapshots: Sequence[Snapshot]) -> Snapshot | None:
    """The one of *snapshots* that *text* names, as `select` says; None where it names none.

    Raises: NoSuchSnapshot: several; the message says which.
    """
    said = text.strip()
    if said == LATEST:
        return snapshots[-1] if snapshots else None
    for found in (
        [snapshot for snapshot in snapshots if snapshot.label == text],
        _called(said, snapshots),
        _at_place(said, snapshots),
        _with_id(said, snapshots),
    ):
        if len(found) > 1:
            raise NoSuchSnapshot(f"{text!r} may be any of {some_of(_shown(found, snapshots))}", hint="give more of it")
        if found:
            return found[0]
    return None


def newest_at(moment_ns: int, snapshots: Sequence[Snapshot], text: str) -> Snapshot:
    """The newest of *snapshots* at or before the moment. Of equal ones the last. Raises: NoSuchSnapshot."""
    found = [snapshot for snapshot in snapshots if snapshot.time_ns <= moment_ns]
    if not found:
        oldest = min(snapshots, key=lambda snapshot: snapshot.time_ns)
        raise NoSuchSnapshot(f"no snapshot is as old as {text!r}", hint=f"the oldest is {_name(oldest, snapshots)}")
    newest_ns = max(snapshot.time_ns for snapshot in found)
    return [snapshot for snapshot in found if snapshot.time_ns == newest_ns][-1]


def _at_place(said: str, snapshots: Sequence[Snapshot]) -> list[Snapshot]:
    match = re.fullmatch(r"(\d{1,8})/(\d{1,12})", said)
    if match is None:
        return []
    place = int(match[1]), int(match[2])
    return [snapshot for snapshot in snapshots if (snapshot.peer, snapshot.seq) == place]


def _with_id(said: str, snapshots: Sequence[Snapshot]) -> list[Snapshot]:
    if not re.fullmatch(f"[0-9a-f]{{{ID_PREFIX_MIN},64}}", said.lower()):
        return []
    return [snapshot for snapshot in snapshots if snapshot.id.startswith(said.lower())]


def _called(said: str, snapshots: Sequence[Snapshot]) -> list[Snapshot]:
    found = snapshot_names(snapshots).get(said.encode(errors="surrogateescape"))
    return [] if found is None else [found]


def _name(snapshot: Snapshot, snapshots: Sequence[Snapshot]) -> str:
    return next(
        name.decode(errors="surrogateescape") for name, found in snapshot_names(snapshots).items() if found is snapshot
    )


def _shown(found: Sequence[Snapshot], snapshots: Sequence[Snapshot]) -> list[str]:
    """Ids and names of what was found, for a message."""
    names = {
        snapshot.place: name.decode(errors="surrogateescape") for name, snapshot in snapshot_names(snapshots).items()
    }
    return [f"{snapshot.id[:12]} ({names[snapshot.place]})" for snapshot in found]
