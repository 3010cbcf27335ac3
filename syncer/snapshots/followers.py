"""The machines that follow the writer, as the remote knows them: what each says it needs, and how to forget one.

Each of a follower's records names a snapshot. It puts one before it shows that snapshot, and deletes it once nothing
there needs it any more; a machine that has died leaves what it had. On the event loop.
"""

import contextlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from syncer.backends.base import Backend
from syncer.errors import ObjectCorrupt, ObjectMissing, UsageError
from syncer.snapshots.inventory import HINT
from syncer.snapshots.reading import read_record
from syncer.snapshots.records import FollowerRecord, follower_key, parse_follower_key
from syncer.snapshots.retention import Place
from syncer.values import PeerId

TRIES = 5
LISTINGS = 2
"""A listing may leave something out; one that is asked for again seldom leaves out the same."""
UNKNOWN_HOST = "?"
"""Stands for the host of a machine none of whose records can be read."""
ID_DIGITS_MIN = 4
"""So many digits of a machine's id are needed to mean it."""


class NoSuchFollower(UsageError):
    """No machine that follows is called that, or several are."""


@dataclass(frozen=True, slots=True)
class Follower:
    """A machine that follows: the snapshots that it needs, and the keys that say so. *id*: hex digits.

    *damaged* is one of the keys, where what is stored there cannot be read: then nobody knows all that it needs.
    """

    id: str
    host: str
    places: tuple[Place, ...]
    keys: tuple[str, ...]
    damaged: str | None = None


async def read_followers(backend: Backend) -> list[Follower]:
    """Every machine that has a record, sorted by host.

    Raises: BackendError: that cannot be told for sure.
    """
    for _ in range(TRIES):
        with contextlib.suppress(ObjectMissing):  # it has gone on meanwhile: look again
            return await _read(backend)
    raise ObjectMissing(f"what followers need cannot be read from {backend.name}", hint=HINT)


async def _read(backend: Backend) -> list[Follower]:
    listed: dict[bytes, set[int]] = defaultdict(set)
    for _ in range(LISTINGS):
        async for info in backend.list("followers/"):
            found = parse_follower_key(info.key)
            if found is not None:
                listed[found[0]].add(found[1])
    followers = []
    for machine, seqs in listed.items():
        keys = tuple(follower_key(machine, seq) for seq in sorted(seqs))
        records, damaged = [], None
        for key in keys:
            try:
                records.append(await read_record(backend, key, FollowerRecord))
            except ObjectCorrupt:
                damaged = key
        host = records[-1].host if records else UNKNOWN_HOST
        places = tuple((PeerId(record.peer), record.seq) for record in records)
        followers.append(Follower(machine.hex(), host, places, keys, damaged))
    return sorted(followers, key=lambda follower: (follower.host, follower.id))


def needed_places(followers: Sequence[Follower]) -> set[Place]:
    """The snapshots that any of them needs. Raises: ObjectCorrupt: nobody knows what one of them needs."""
    for follower in followers:
        if follower.damaged is not None:
            raise ObjectCorrupt(
                f"{follower.damaged}, which says what a machine that follows needs, cannot be read",
                hint=f"if it will not come back: `syncer prune --forget-follower {follower.id[:8]}`",
            )
    return {place for follower in followers for place in follower.places}


async def needed_by_followers(backend: Backend) -> set[Place]:
    """The snapshots that machines which follow the writer say they need. Raises: as `read_followers`."""
    return needed_places(await read_followers(backend))


def find_follower(followers: Sequence[Follower], wanted: str) -> Follower:
    """The one on the host *wanted*, or whose id begins with it. Raises: NoSuchFollower."""
    found = [follower for follower in followers if follower.host == wanted]
    if not found and len(wanted) >= ID_DIGITS_MIN:
        found = [follower for follower in followers if follower.id.startswith(wanted.lower())]
    if len(found) == 1:
        return found[0]
    there = ", ".join(f"{follower.host} ({follower.id[:8]})" for follower in found or followers)
    if found:
        raise NoSuchFollower(
            f"{len(found)} machines that follow are called {wanted}", hint=f"name one by its id: {there}"
        )
    raise NoSuchFollower(f"no machine called {wanted} follows", hint=f"there are: {there}" if there else "none does")


async def forget_follower(backend: Backend, follower: Follower) -> None:
    """Delete its records: what it alone needs may go. Should it live on, it says anew what it needs.

    Raises: BackendError.
    """
    for key in follower.keys:
        await backend.delete(key)
