"""Finds the newest snapshot of a repository for who follows its writer, and asks for little while nothing is new.

The next number of the writer is asked for by name at each look, and one of those after it, as a number may have been
skipped. All of it is listed less often, the less so the longer that takes: then another writer is seen too. On the
event loop.
"""

import trio

from syncer.backends.base import Backend
from syncer.errors import ObjectMissing, RemoteUnreachable
from syncer.snapshots.build import SEQS_AHEAD
from syncer.snapshots.history import History, Place, Snapshot
from syncer.snapshots.records import FORMAT_KEY, PeerRecord, current_writer
from syncer.snapshots.repository import newest_of, read_peers
from syncer.values import PeerId

LOOK_S = 2.0
"""So long after a look comes the next."""
LIST_S, LIST_SHARE, LIST_MOST_S = 5.0, 20.0, 60.0
"""From one listing to the next: so many seconds, or so many times as long as the last one took, up to the last."""


class Watch:
    def __init__(self, backend: Backend, history: History) -> None:
        self._backend = backend
        self._history = history
        self._peers: list[PeerRecord] = []
        self._list_at = -float("inf")
        self._ahead = 0
        self.listings = 0
        """How many times everything was listed."""

    async def first(self) -> Snapshot | None:
        """The newest snapshot, without learning which others there are. Raises: BackendError."""
        self._peers = await read_peers(self._backend)
        writer = current_writer(self._peers)
        found = None if writer is None else await newest_of(self._backend, self._peers, writer)
        return None if found is None else await self._history.seek((PeerId(found.peer), found.seq))

    async def look(self) -> Snapshot | None:
        """The newest snapshot that is known by now; None where there is none.

        Raises: BackendError: the remote cannot be asked, or nothing of a repository is there.
        """
        if trio.current_time() >= self._list_at:
            await self._list()
        else:
            await self._ask()
        return self._newest()

    async def _list(self) -> None:
        begun_at = trio.current_time()
        try:
            await self._backend.stat(FORMAT_KEY)
        except ObjectMissing as error:  # what is not listed must not count as deleted then
            raise RemoteUnreachable(
                f"the repository is not at {self._backend.name} now", hint="plug in its disk, or bring it back"
            ) from error
        await self._history.refresh()
        self._peers = await read_peers(self._backend)
        self.listings += 1
        now = trio.current_time()
        self._list_at = now + min(max(LIST_S, LIST_SHARE * (now - begun_at)), LIST_MOST_S)

    async def _ask(self) -> None:
        writer = current_writer(self._peers)
        if writer is None:
            return
        peer = PeerId(writer.peer)
        seq = self._newest_seq(peer)
        while await self._history.seek((peer, seq + 1)) is not None:
            seq += 1
        self._ahead = self._ahead % (len(SEQS_AHEAD) - 1) + 1
        await self._history.seek((peer, seq + SEQS_AHEAD[self._ahead]))

    def _newest_seq(self, peer: int) -> int:
        return max((one.seq for one in self._history.known() if one.peer == peer), default=0)

    def _newest(self) -> Snapshot | None:
        """The writer's newest, or the one that it goes on from while it has published none."""
        known = {one.place: one for one in self._history.known()}
        peers = {record.peer: record for record in self._peers}
        writer = current_writer(self._peers)
        place: Place | None = None if writer is None else (PeerId(writer.peer), self._newest_seq(writer.peer))
        while place is not None and not place[1]:
            record = peers.pop(place[0], None)  # popped, so that a circle ends
            place = None if record is None or not record.after else (PeerId(record.after[0][0]), record.after[0][1])
        return None if place is None else known.get(place)
