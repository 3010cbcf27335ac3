"""Named points around every change of state: `die_at` ends the process there as SIGKILL does, and says so before.

A point is a call, and "before" or "after" it: `seal/before`. Product code knows nothing of them. Of a method that takes
a key, one point can mean the keys below a prefix alone, which stands after its name here.
"""

import functools
import importlib
import inspect
import os
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any

CALLS: Mapping[str, str] = {
    "content": "syncer.meta.extents:ExtentTable.seal_content",
    "cut": "syncer.meta.extents:ExtentTable.cut",
    "retire-overlay": "syncer.meta.extents:ExtentTable.retire_overlay",
    "seal": "syncer.meta.extents:ExtentTable.seal",
    "adopt": "syncer.blocks.cache:BlockCache.adopt",
    "settled": "syncer.meta.blocktable:BlockTable.settled",
    "punch": "syncer.blocks.dirty:DirtyFiles.punch",
    "retired": "syncer.blocks.retired:Retired.delete_durable",
    "pack": "syncer.blocks.uploader:Uploader._pack",
    "carried": "syncer.blocks.uploader:Uploader._on_remote",
    "put": "syncer.backends.retry:RetryingBackend.put",
    "stored": "syncer.meta.blocktable:BlockTable.stored",
    "take-number": "syncer.meta.snapshottable:SnapshotTable.take_seq",
    "indexed": "syncer.meta.blocktable:BlockTable.indexed",
    "snapshot": "syncer.meta.snapshottable:SnapshotTable.learn",
    "published": "syncer.meta.snapshottable:SnapshotTable.published",
    "evicted": "syncer.meta.blocktable:BlockTable.evicted",
    "delete-files": "syncer.blocks.cache:BlockCache.delete_files",
    "commit": "syncer.meta.database:Database._commit",
    "checkpoint": "syncer.meta.database:Database.checkpoint",
    "checkpoint-here": "syncer.meta.database:Database.checkpoint_here",
    "discard-journal": "syncer.meta.database:Database.discard_journal",
}
PRUNE_CALLS: Mapping[str, str] = {
    "thin": "syncer.snapshots.thinning:Thinner.thin",
    "count": "syncer.snapshots.prune:Pruner.count",
    "list-packs": "syncer.meta.marks:Marks.saw_packs",
    "list-index": "syncer.meta.marks:Marks.saw_index",
    "mark": "syncer.meta.marks:Marks.expand",
    "choose": "syncer.meta.marks:Marks.choose",
    "forget-gone": "syncer.meta.doomtable:DoomTable.forget_gone",
    "drop": "syncer.meta.doomtable:DoomTable.drop_snapshots",
    "delete-snapshot": "syncer.backends.retry:RetryingBackend.delete snapshots/",
    "put-copies": "syncer.snapshots.rewriting:Rewriter._put",
    "moved": "syncer.meta.doomtable:DoomTable.moved",
    "forget": "syncer.meta.doomtable:DoomTable.forget_blocks",
    "doom-packs": "syncer.meta.doomtable:DoomTable.doom_packs",
    "strays": "syncer.meta.doomtable:DoomTable.saw_strays",
    "list-again": "syncer.meta.doomtable:DoomTable.list_again",
    "put-index": "syncer.backends.retry:RetryingBackend.put index/",
    "doom-indexes": "syncer.meta.doomtable:DoomTable.doom_indexes",
    "delete-index": "syncer.backends.retry:RetryingBackend.delete index/",
    "delete-pack": "syncer.backends.retry:RetryingBackend.delete packs/",
    "deleted": "syncer.meta.doomtable:DoomTable.deleted",
    "counted": "syncer.meta.blocktable:BlockTable.counted",
}
"""What a prune does, in the order in which it comes to it."""
POINTS = tuple(f"{call}/{when}" for call in CALLS for when in ("before", "after"))
PRUNE_POINTS = tuple(f"{call}/{when}" for call in PRUNE_CALLS for when in ("before", "after"))


def die_at(point: str, count: int) -> None:
    """Have this process die when it comes to *point* for the *count*th time."""
    call, _, when = point.partition("/")
    module, _, place = {**CALLS, **PRUNE_CALLS}[call].partition(":")
    place, _, prefix = place.partition(" ")
    owner_name, name = place.split(".")
    owner = getattr(importlib.import_module(module), owner_name)
    left = count

    def come() -> None:
        nonlocal left
        left -= 1
        if not left:
            os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"killed at {point}\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, _watched(getattr(owner, name), prefix, when == "before", come))


def _watched(method: Callable[..., Any], prefix: str, before: bool, come: Callable[[], None]) -> Callable[..., Any]:
    async def wait(result: Any) -> Any:
        value = await result
        if not before:
            come()
        return value

    def call(*arguments: Any, **options: Any) -> Any:
        if prefix and not arguments[1].startswith(prefix):
            return method(*arguments, **options)
        if before:
            come()
        result = method(*arguments, **options)
        if inspect.iscoroutine(result):
            return wait(result)
        if not before:
            come()
        return result

    watched: Any = functools.wraps(method)(call)
    watched.__wrapped__ = getattr(method, "__wrapped__", method)  # what a replay calls, of methods that are recorded
    result: Callable[..., Any] = watched
    return result
