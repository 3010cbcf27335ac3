"""Lists a remote before anything is deleted from it: all or nothing.

What cannot be listed, read or decoded is an error, and so is what is known to be there and is not listed: a listing
that leaves something out must not make it look unneeded. Runs on the event loop; what was found is in a Marks.
"""

from collections.abc import Callable

import trio

from syncer.backends.base import Backend
from syncer.blocks.pack import pack_key, parse_pack_key
from syncer.errors import ObjectCorrupt, ObjectMissing
from syncer.meta.marks import Marks
from syncer.meta.store import MetaStore
from syncer.snapshots.build import exists
from syncer.snapshots.history import History
from syncer.snapshots.reading import Place, each_index, listed_places
from syncer.snapshots.records import IndexRecord, PackListing, snapshot_key
from syncer.values import BlockId, PackId

LISTED_AT_ONCE = 1000
HINT = "nothing was deleted; `syncer check --remote` says more"


async def take_inventory(
    meta: MetaStore,
    backend: Backend,
    history: History,
    marks: Marks,
    progress: Callable[[str, int], None],
    *,
    listing_only: bool,
) -> None:
    """Fill *marks* with what the remote lists, and learn here what was not known: snapshots, and packs that are listed.

    *progress* is told what was listed, and how many objects of it. With *listing_only* indexes are not read, unless
    there are packs of which nothing is known here; that is enough to say what nobody needs, not to delete it.

    Raises: BackendError: something could not be listed or read, or is not there.
    """
    meta.commit()
    await trio.to_thread.run_sync(marks.rely)
    await _snapshots(meta, backend, history)
    progress("snapshots", len(meta.snapshots.places()))
    await _packs(backend, marks, progress)
    meta.commit()  # packs that were uploaded since then are known too
    reads = not listing_only or await trio.to_thread.run_sync(lambda: any(True for _ in marks.strays()))
    if reads:
        await _indexes(meta, backend, marks, progress)
    for missing in await trio.to_thread.run_sync(marks.missing_packs, 1):
        raise ObjectMissing(f"{backend.name} does not list {pack_key(missing)} as it should be", hint=HINT)
    for unlisted in await trio.to_thread.run_sync(marks.unlisted_packs, 1) if reads else ():
        raise ObjectMissing(f"no index at {backend.name} lists {pack_key(unlisted)}, which one did", hint=HINT)


async def _snapshots(meta: MetaStore, backend: Backend, history: History) -> None:
    known = set(meta.snapshots.places())
    listed = await listed_places(backend, "snapshots/")
    for place in sorted(known - listed):
        if meta.snapshots.get(*place) is not None:
            raise ObjectMissing(f"{backend.name} does not list {snapshot_key(*place)}", hint=HINT)
    if listed - known:
        await history.refresh()
    dropped = set(meta.doomed.keys("snapshots/", -1))
    for place in sorted(listed - set(meta.snapshots.places())):
        key = snapshot_key(*place)
        if key not in dropped and await exists(backend, key):  # thinned out while they were listed, it is none of ours
            raise ObjectCorrupt(f"{key} cannot be read", hint=HINT)


async def _packs(backend: Backend, marks: Marks, progress: Callable[[str, int], None]) -> None:
    batch: list[tuple[PackId, int]] = []
    count = 0
    async for info in backend.list("packs/"):
        pack_id = parse_pack_key(info.key)
        if pack_id is not None:
            batch.append((pack_id, info.size_bytes))
        if len(batch) >= LISTED_AT_ONCE:
            marks.saw_packs(batch)
            count += len(batch)
            batch = []
            progress("packs", count)
    marks.saw_packs(batch)
    progress("packs", count + len(batch))


async def _indexes(meta: MetaStore, backend: Backend, marks: Marks, progress: Callable[[str, int], None]) -> None:
    places = sorted(await listed_places(backend, "index/"))
    count = 0

    async def saw(place: Place, record: IndexRecord) -> None:
        nonlocal count
        count += 1
        blocks = sum(len(pack.blocks) for pack in record.packs)
        await trio.to_thread.run_sync(marks.saw_index, *place, [pack.id for pack in record.packs], blocks)
        for pack in record.packs:
            await _learn(meta, marks, pack, record.seq)
        progress("indexes", count)

    await each_index(backend, places, saw)


async def _learn(meta: MetaStore, marks: Marks, pack: PackListing, seq: int) -> None:
    """What another machine has stored, and this one does not know of, must not look as if nobody knew it."""
    pack_id = PackId(pack.id)
    if meta.blocks.knows_pack(pack_id) or meta.doomed.is_doomed(pack_id) or not marks.is_there(pack_id):
        return
    blocks = [(BlockId(block_id), offset, sealed, plain) for block_id, offset, sealed, plain in pack.blocks]
    meta.blocks.listed(pack_id, pack.size, pack.kind, seq, blocks)
    await trio.lowlevel.checkpoint()
