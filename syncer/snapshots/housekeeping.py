"""Thins snapshots and merges index objects after each publication, and prunes when too much of the remote is dead.
A task of the engine.

What is dead is known only after a count, which goes over all that is known here. So one is made when it may have become
too much, judged by what `status` knows anyway, and not more often than every COUNT_EVERY snapshots. However little is
dead, what is known here of trees that are gone must not grow for ever: it goes every PRUNE_EVERY snapshots.
"""

import logging

import trio

from syncer.errors import ObjectCorrupt, ObjectMissing, SyncerError, WrongRepository
from syncer.meta.store import MetaStore
from syncer.snapshots.merging import IndexMerger
from syncer.snapshots.prune import Plan, Pruner, Step
from syncer.snapshots.publisher import Publisher
from syncer.snapshots.retention import Policy
from syncer.snapshots.thinning import PutDown, Thinner

log = logging.getLogger(__name__)

COUNT_EVERY = 60
PRUNE_EVERY = 1500
NEVER_PERCENT = 100
"""So much may be dead where nothing is to be pruned without being asked for."""


class Housekeeper:
    def __init__(
        self,
        meta: MetaStore,
        publisher: Publisher,
        thinner: Thinner,
        pruner: Pruner,
        merger: IndexMerger,
        policy: Policy,
    ) -> None:
        self._merger = merger
        self._publisher = publisher
        self._meta = meta
        self._thinner = thinner
        self._pruner = pruner
        self.policy = policy
        self._published = trio.Event()
        self._not_before = 0
        """No count before this snapshot's number: the last one has found damage, and another would do no better."""

    def wake(self) -> None:
        """There is a new snapshot."""
        self._published.set()

    async def run(self) -> None:
        """For as long as the file system is open. Trouble is logged; the next snapshot brings another try."""
        while True:
            await self._published.wait()
            self._published = trio.Event()
            if self._publisher.released:
                continue
            try:
                if count := await self._thinner.thin(self.policy):
                    log.info("%d snapshots were thinned out", count)
                await self._merger.merge()
                if self.is_count_due():
                    await self._prune()
            except (WrongRepository, PutDown):
                pass  # whoever publishes finds out too, and says so
            except (SyncerError, OSError) as error:
                if isinstance(error, ObjectCorrupt | ObjectMissing):
                    self._not_before = self._meta.snapshots.next_seq("snapshot") + COUNT_EVERY
                log.warning("thinning, merging and pruning: %s; it is tried again", error)

    def is_count_due(self) -> bool:
        """Whether more of the remote may be dead than should be, and it is long since that was counted.

        What the live tree needs is estimated: it takes as much there for each of its bytes as at the last count.
        """
        if self._pruner.dead_percent >= NEVER_PERCENT or self._meta.blocks.pending_totals()[1]:
            return False
        if self._meta.snapshots.next_seq("snapshot") < self._not_before:
            return False
        if self._since_count() < COUNT_EVERY or self._since_count() >= PRUNE_EVERY:
            return self._since_count() >= PRUNE_EVERY
        count = self._meta.blocks.last_count()
        unique_bytes, remote_bytes = self._meta.blocks.content_totals()
        needed = unique_bytes * (count.used_bytes / count.unique_bytes if count.unique_bytes else 0.0)
        return remote_bytes - needed > self._pruner.dead_percent / 100 * remote_bytes

    def _since_count(self) -> int:
        """How many snapshots there were since the last count."""
        return self._meta.snapshots.next_seq("snapshot") - 1 - self._meta.blocks.last_count().at

    async def _prune(self) -> None:
        overdue = self._since_count() >= PRUNE_EVERY
        dead = await self._pruner.count(_silent)
        _, remote_bytes = self._meta.blocks.content_totals()
        if not overdue and dead <= self._pruner.dead_percent / 100 * remote_bytes:
            return
        log.info("%d of %d bytes on the remote are dead: pruning", dead, remote_bytes)
        plan = await self._pruner.prune(self.policy, _silent, spare=self._thinner.in_use)
        log.info("pruned: %d bytes came back, %d were rewritten", plan.freed_bytes, plan.rewritten_bytes)


def _silent(_event: Step | Plan) -> None:
    """Nobody asked for it, so nobody watches."""
