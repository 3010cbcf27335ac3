"""Takes away, one by one, what makes something durable: a test of power cuts has to notice.

`SYNCS` names every place in the product that syncs, or waits for a sync.
"""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any
from unittest import mock


def _replace(target: str, value: Any) -> None:
    mock.patch(target, value).start()


def _nothing(*_: Any, **__: Any) -> None:
    """In place of a call that makes something durable."""


def _unsynced_flush(self: Any, descriptors: Any, paths: Any) -> None:
    """`Durability.flush`, with the journal alone."""
    self._database.sync()


def _unsynced_journal(self: Any) -> None:
    """`Journal.sync`, which believes what it says."""
    self.durable = self.end


def _unsynced_cut(self: Any, inode: Any, pieces: Any, rest: int, rest_start: int) -> None:
    """`Tails._record_cut`, which moves a tail before that is on record durably."""
    with mock.patch.object(self._meta.database, "sync", _nothing):
        _record_cut(self, inode, pieces, rest, rest_start)


async def _unsynced_copies(self: Any, number: int, copies: Any) -> None:
    """`Sealer._record_durably`, which takes copies for durable that are not."""
    self._record_all(number, copies)
    await self._free_copied()


def _patch_cut() -> None:
    global _record_cut
    from syncer.blocks.tails import Tails

    _record_cut = Tails._record_cut
    _replace("syncer.blocks.tails.Tails._record_cut", _unsynced_cut)


def _patch_retired() -> None:
    from syncer.meta.database import Database

    _replace("syncer.blocks.retired.Retired.delete_durable", _delete_at_once)
    commit = Database._commit

    def committed(self: Any) -> None:
        commit(self)
        for retired in _retired:
            retired.delete_durable()

    _replace("syncer.meta.database.Database._commit", committed)
    _replace("syncer.blocks.retired.Retired.__init__", _remember(_original_init()))


_record_cut: Callable[..., None] = _nothing
_retired: list[Any] = []


def _original_init() -> Callable[..., None]:
    from syncer.blocks.retired import Retired

    return Retired.__init__


def _remember(init: Callable[..., None]) -> Callable[..., None]:
    def remembered(self: Any, *arguments: Any) -> None:
        init(self, *arguments)
        _retired.append(self)

    return remembered


def _delete_at_once(self: Any) -> bool:
    while self._waiting:
        _, path, size, _ = self._waiting.popleft()
        self.total_bytes -= size
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
    return True


SYNCS: Mapping[str, Callable[[], None]] = {
    "fsync-files": lambda: _replace("syncer.blocks.syncing.Durability.flush", _unsynced_flush),
    "journal": lambda: _replace("syncer.meta.journal.Journal.sync", _unsynced_journal),
    "journal-before": lambda: _replace("syncer.meta.journal.sync_paths", _nothing),
    "tail-copy": lambda: _replace("syncer.blocks.tails.Tails._secure", _nothing),
    "tail-record": _patch_cut,
    "sealed-copies": lambda: _replace("syncer.blocks.sealer.Sealer._record_durably", _unsynced_copies),
    "spill": lambda: _replace("syncer.fs.fileio.disk.sync_paths", _nothing),
    "retired": _patch_retired,
    "sync-again": lambda: _replace("syncer.blocks.store.BlockStore._sync_again", _nothing),
    "checkpoint": lambda: _replace("syncer.engine.sync_file_system", _nothing),
    "join": lambda: _replace("syncer.meta.database.Database.checkpoint_here", _nothing),
}


def forget_to_sync(call: str) -> None:
    SYNCS[call]()
