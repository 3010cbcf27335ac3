"""Which snapshots go, and what is deleted from the remote: objects that meta.db lists for it, durably, and no others.

Runs on the event loop. Every phase of deletion first makes sure that this machine still is the writer.
"""

import logging
from collections.abc import Callable, Collection, Sequence

import trio

from syncer.backends.base import Backend
from syncer.backends.together import for_each
from syncer.blocks.syncing import Durability
from syncer.errors import SyncerError, UsageError
from syncer.meta.store import MetaStore
from syncer.snapshots.followers import needed_by_followers
from syncer.snapshots.history import History, Snapshot
from syncer.snapshots.publisher import Publisher
from syncer.snapshots.records import snapshot_key
from syncer.snapshots.retention import Place, Policy, Taken, kept

log = logging.getLogger(__name__)

DELETED_AT_ONCE = 256
"""After so many objects it is made sure again that we are the writer."""


class PutDown(SyncerError):
    """This machine has said that it does not write any more, so another one may: it must not delete either."""


class Thinner:
    def __init__(
        self, meta: MetaStore, backend: Backend, history: History, publisher: Publisher, durability: Durability
    ) -> None:
        self._meta = meta
        self._backend = backend
        self._history = history
        self._publisher = publisher
        self._durability = durability
        self._turn = trio.Lock()
        self.in_use: Callable[[], Collection[Place]] = lambda: ()
        """The snapshots that somebody looks into, copies from, say: they do not go unless that is asked for."""

    def going(self, policy: Policy, needed: Collection[Place]) -> list[Snapshot]:
        """The snapshots that *policy* lets go, in the order of history. The one the live tree goes back to stays."""
        known = self._history.known()
        head = self._meta.snapshots.head()
        stays = (
            {*needed, *self._history.held} if head is None else {*needed, *self._history.held, (head.peer, head.seq)}
        )
        places = kept(policy, [Taken(one.place, one.time_ns, one.label) for one in known], stays)
        return [one for one in known if one.place not in places]

    async def thin(self, policy: Policy) -> int:
        """Delete the snapshots that *policy* lets go, unless a follower needs them or they are in use. How many.

        Raises: BackendError; WrongRepository: somebody else writes by now.
        """
        if not self.going(policy, self.in_use()):
            return 0
        needed = await needed_by_followers(self._backend)
        going = self.going(policy, {*needed, *self.in_use()})
        await self.drop(going)
        return len(going)

    async def delete(self, snapshot: Snapshot) -> None:
        """Delete one snapshot, labelled or not.

        Raises:
            UsageError: it is the newest, or is being restored, or a follower needs it.
            BackendError; WrongRepository.
        """
        head = self._meta.snapshots.head()
        known = self._history.known()
        if snapshot.place == known[-1].place or (head is not None and snapshot.place == (head.peer, head.seq)):
            raise UsageError(
                "the newest snapshot stays: the file system goes back to it", hint="take another one first"
            )
        if snapshot.place in self._history.held:
            raise UsageError("the snapshot is being restored just now", hint="try again when that is done")
        if snapshot.place in await needed_by_followers(self._backend):
            raise UsageError("a machine that follows this one needs the snapshot", hint="try again when it has gone on")
        await self.drop([snapshot])

    async def check_writer(self) -> None:
        """Make sure that we may delete. Raises: WrongRepository, BackendError; PutDown."""
        await self._publisher.check_writer()
        if self._publisher.released:
            raise PutDown("the repository has been put down meanwhile; the next prune goes on")

    async def drop(self, going: Sequence[Snapshot]) -> None:
        """Forget these snapshots, here and on the remote, but for those that somebody holds by now.

        Raises: BackendError; WrongRepository.
        """
        await self.check_writer()
        places = [one.place for one in going if one.place not in self._history.held]
        self._meta.doomed.drop_snapshots([(*place, snapshot_key(*place)) for place in places])
        await self.delete_doomed("snapshots/")

    async def delete_doomed(self, prefix: str) -> int:
        """Delete what is listed for it under *prefix*; how many objects.

        Raises: BackendError, OSError: what is left stays listed; WrongRepository: somebody else writes by now.
        """
        count = 0
        async with self._turn:
            self._meta.commit()
            await self._durability.sync()
            while keys := self._meta.doomed.keys(prefix, DELETED_AT_ONCE):
                await self.check_writer()
                await for_each(self._backend, keys, self._backend.delete)
                self._meta.doomed.deleted(keys)
                count += len(keys)
        return count
