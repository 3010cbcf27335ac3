"""Merges our index objects while snapshots are published, so that there are few of them however many there were.

Every publication puts one, and whoever joins reads them all. So when there are many small ones, the newest are put
again as one, and only when that is on the remote, and was read back, are they listed as doomed and deleted. What is
merged is a run up to the newest, with older ones in it as long as these are not much larger: so sizes double from one
to the next, each listing is put again a logarithmic number of times, and of two listings of a block the one that came
last still does. Index objects of other peers, and small ones between large ones, are left to a prune.

A task of the engine, on the event loop. No prune is under way meanwhile: it goes by the index objects it has read.
"""

import logging
from collections.abc import Sequence

import trio

from syncer.backends.base import Backend
from syncer.meta.store import MetaStore
from syncer.snapshots.publisher import Publisher
from syncer.snapshots.reading import Place, each_index
from syncer.snapshots.records import IndexRecord, PackListing, index_key, parse_seq_key
from syncer.snapshots.thinning import Thinner
from syncer.values import PackId

log = logging.getLogger(__name__)

LOOK_EVERY = 16
"""After so many new index objects it is looked how many there are."""
MANY = 48
"""So many small ones are left as they are."""
FULL_BYTES = 2 * 1024 * 1024
"""About what an index object has that lists as much as one may (`publisher.INDEX_ENTRIES`): none becomes longer."""
SMALL_BYTES = FULL_BYTES // 4
NEWEST, GROWTH = MANY // 2, 2
"""So many of the newest are merged whatever their sizes; an older one up to GROWTH times as long as all newer ones."""
WORTH = 4
"""It is not worth it to merge fewer."""
AT_ONCE = 256


def how_many(sizes: Sequence[int]) -> int:
    """How many index objects, from the newest on, are to become one. *sizes* in bytes, the newest last."""
    if sum(size < SMALL_BYTES for size in sizes) <= MANY:
        return 0
    count = total = 0
    for size in reversed(sizes):
        if total + size > FULL_BYTES or (count >= NEWEST and size > GROWTH * total):
            break
        count, total = count + 1, total + size
    return count if count >= WORTH else 0


class IndexMerger:
    def __init__(
        self, meta: MetaStore, backend: Backend, publisher: Publisher, thinner: Thinner, turn: trio.Lock
    ) -> None:
        """*turn* is held by a prune."""
        self._meta = meta
        self._backend = backend
        self._publisher = publisher
        self._thinner = thinner
        self._turn = turn
        self._look_at = 0
        """The number of an index object from which on it is looked."""

    async def merge(self) -> int:
        """Merge the newest of our index objects, if there are many small ones; how many were replaced.

        Nothing while a prune is under way.

        Raises:
            BackendError: nothing was deleted, or what is left of it is listed to be.
            WrongRepository: somebody else writes by now; PutDown: or may.
            OSError: the local disk does not take what must be remembered.
        """
        next_seq = self._meta.snapshots.next_seq("index")
        if next_seq < self._look_at or self._turn.locked():
            return 0
        async with self._turn:
            self._look_at = next_seq + LOOK_EVERY
            await self._thinner.delete_doomed("index/")  # what a kill has left of an earlier one
            found = await self._listed()
            count = how_many([size for _, size in found])
            if not count:
                return 0
            places = [place for place, _ in found[-count:]]
            records = await self._read(places)
            async with self._publisher.turn:
                newer = [one for one in await self._listed() if one[0] > places[-1]]
                if sum(size for _, size in newer) > FULL_BYTES:
                    return 0
                places += [place for place, _ in newer]
                records += await self._read([place for place, _ in newer])
                await self._replace(places, records)
            await self._thinner.delete_doomed("index/")
        log.info("%d index objects were merged", len(places))
        return len(places)

    async def _listed(self) -> list[tuple[Place, int]]:
        """Our index objects with their sizes, in their order. Raises: BackendError."""
        found = []
        async for info in self._backend.list(f"index/{self._meta.peer:06x}/"):
            if (place := parse_seq_key(info.key)) is not None:
                found.append((place, info.size_bytes))
        return sorted(found)

    async def _read(self, places: Sequence[Place]) -> list[IndexRecord]:
        records: list[IndexRecord] = []

        async def keep(_place: Place, record: IndexRecord) -> None:
            records.append(record)

        await each_index(self._backend, places, keep)
        return records

    async def _replace(self, places: Sequence[Place], records: Sequence[IndexRecord]) -> None:
        """Put one index object that says what these do, then doom them. The caller holds the turn of publications."""
        listings = await self._without_doomed(await trio.to_thread.run_sync(_together, records))
        await self._thinner.check_writer()
        seq = await self._publisher.put_index(tuple(listings))
        for begin in range(0, len(listings), AT_ONCE):
            self._meta.doomed.merged([PackId(pack.id) for pack in listings[begin : begin + AT_ONCE]], seq)
            await trio.lowlevel.checkpoint()
        self._meta.doomed.doom_indexes([index_key(*place) for place in places])
        self._meta.commit()

    async def _without_doomed(self, listings: Sequence[PackListing]) -> list[PackListing]:
        """Those of packs that stay: a prune that was killed has begun to delete others, and goes on with that."""
        staying = []
        for at, pack in enumerate(listings, 1):
            if not self._meta.doomed.is_doomed(PackId(pack.id)):
                staying.append(pack)
            if at % AT_ONCE == 0:
                await trio.lowlevel.checkpoint()
        return staying


def _together(records: Sequence[IndexRecord]) -> list[PackListing]:
    """All listings in their order; of equal ones, which an interrupted merge leaves, the last."""
    found: dict[PackListing, None] = {}
    for record in records:
        for pack in record.packs:
            found.pop(pack, None)
            found[pack] = None
    return list(found)
