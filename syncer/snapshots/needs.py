"""What this machine says it needs while it follows the writer: an object under `followers/` for each such snapshot.

Whoever prunes leaves what they name. A record's number is used once, so it is taken for good before it is put; which
records may be on the remote is remembered in DATA, so that the run after a crash deletes them. On the event loop.
"""

import contextlib
import secrets
import socket
from collections.abc import Collection

import msgspec

from syncer.backends.base import Backend
from syncer.backends.confirmed import put_seen
from syncer.errors import ObjectMissing
from syncer.meta.store import MetaStore
from syncer.snapshots.records import VERSION, FollowerRecord, encode, follower_key, parse_follower_key
from syncer.snapshots.retention import Place

MACHINE = "follower"
TAKEN = "follower_seq"
PUT = "follower_put"
"""Keys of the state: who we are, up to which number all are taken, and which may be on the remote."""
TAKEN_AT_ONCE = 1000
"""Taking numbers waits for the disk."""


class Needs:
    def __init__(self, meta: MetaStore, backend: Backend) -> None:
        self._meta = meta
        self._backend = backend
        self._state = meta.database
        self._machine = self._state.state_bytes(MACHINE) or secrets.token_bytes(16)
        self._next = self._taken = self._state.state_integer(TAKEN)
        self._put = set(msgspec.msgpack.decode(self._state.state_bytes(PUT) or b"\x90"))
        self._held: dict[Place, int] = {}

    @property
    def held(self) -> Collection[Place]:
        """The snapshots that the remote has been told we need."""
        return self._held.keys()

    async def hold(self, place: Place) -> None:
        """Return when the remote shows that we need the snapshot. Raises: BackendError, OSError."""
        if place not in self._held:
            await self._say(place)

    async def _say(self, place: Place) -> None:
        seq = self._take_number()
        record = encode(FollowerRecord(VERSION, *place, socket.gethostname()))
        await put_seen(self._backend, follower_key(self._machine, seq), record)
        self._held[place] = seq

    def _take_number(self) -> int:
        """The next number, which is ours for good before it is used. Raises: OSError."""
        if self._next == self._taken:
            self._taken += TAKEN_AT_ONCE
            self._state.set_state(MACHINE, self._machine)
            self._state.set_state(TAKEN, self._taken)
            self._meta.commit()
            self._state.checkpoint_here()
        self._next += 1
        self._put.add(self._next)
        self._note()
        return self._next

    def _note(self) -> None:
        self._state.set_state(PUT, msgspec.msgpack.encode(sorted(self._put)))
        self._meta.commit()

    async def keep(self, places: Collection[Place]) -> None:
        """Delete the records of all other snapshots. Raises: BackendError; what is left is tried again next time."""
        self._held = {place: seq for place, seq in self._held.items() if place in places}
        for seq in sorted(self._put - set(self._held.values())):
            await self._delete(seq)

    async def _delete(self, seq: int) -> None:
        await self._backend.delete(follower_key(self._machine, seq))
        self._put.discard(seq)
        self._note()

    async def find_left(self) -> None:
        """Learn which records an earlier run has left: a power cut may have taken the note of them, and more.

        `keep` deletes them. Raises: BackendError.
        """
        async for info in self._backend.list(f"followers/{self._machine.hex()}/"):
            found = parse_follower_key(info.key)
            if found is not None:
                self._put.add(found[1])

    async def renew(self) -> None:
        """Put what we have put, and the remote lacks, anew: somebody took it that this machine was gone.

        Raises: BackendError, OSError; what is left is tried again next time.
        """
        for place, seq in list(self._held.items()):
            with contextlib.suppress(ObjectMissing):
                await self._backend.stat(follower_key(self._machine, seq))
                continue
            await self._say(place)
            self._put.discard(seq)
