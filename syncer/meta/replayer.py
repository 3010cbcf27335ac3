"""Applies journal records to a tree that was built from a snapshot: those that fit it, and no others.

For a recovery without meta.db. Where the records begin at the snapshot's own moment (`mark`), the result is what was
lost, and all of them fit. Otherwise something is missing between the snapshot and the first record, so only inodes
whose whole history is known are changed: those made by a record, and those that the caller trusts.
"""

from collections.abc import Callable, Container, Iterable, Sequence
from typing import Any

from blake3 import blake3

from syncer.meta.database import decode_record
from syncer.meta.inodes import Inode
from syncer.meta.store import MetaStore
from syncer.values import SMALL_BYTES, PackId

Record = tuple[int, Sequence[Any]]
"""(operation, arguments)."""

_CREATE_ROOT, _STORED, _TAKE_SEQ, MARK = 11, 30, 60, 62
_PASSED_OVER = frozenset({32, 33, 61, MARK, 71, 72, 90, *range(100, 108)})
"""What is cached here, and whether it is sound, is found out by looking; what indexes list has been read from them,
also after a prune, and which snapshot this is about is known."""
AT_ONCE = 256


def records(payloads: Iterable[bytes]) -> list[Record]:
    return [decode_record(payload) for payload in payloads]


def after_snapshot(found: Sequence[Record], seq: int) -> int | None:
    """The index of the first record after the moment that our snapshot *seq* shows; None when that is not among them.

    *seq* 0 is the moment before everything.
    """
    marked = None
    for index, (operation, arguments) in enumerate(found):
        if operation == MARK:
            marked = index + 1
        elif operation == _TAKE_SEQ and tuple(arguments) == ("snapshot", seq):
            return marked
    return None


class Replayer:
    """Attributes: applied, passed_over: how many records. *seqs*: the highest number taken of each kind."""

    def __init__(self, meta: MetaStore, trusted: Container[int] | None, stored: Container[PackId]) -> None:
        """*trusted*: inodes that are as they were before the first record; None: all are. *stored*: packs of records
        that are on the remote."""
        self._meta = meta
        self._trusted = trusted
        self._stored = stored
        self._made: set[int] = set()
        self.applied = 0
        self.passed_over = 0
        self.seqs: dict[str, int] = {}
        self.highest_inode = 0
        self._fits: dict[int, Callable[..., bool]] = {
            **{1: self._known, 2: self._known, 10: self._may_create, 12: self._may_link, 13: self._may_unlink},
            **{14: self._may_rmdir, 15: self._may_rename, 16: self._may_exchange, 31: self._always},
            **{40: self._may_write_content, 41: self._may_spill, 42: self._may_seal_content},
            **{43: self._may_unseal_content, 44: self._may_append, 45: self._may_cut, 46: self._in_extents},
            **{47: self._may_overlay, 48: self._in_extents, 49: self._may_seal, 51: self._may_truncate},
            **{52: self._may_erase, 53: self._in_extents, 54: self._in_extents, 55: self._known, 70: self._always},
            **{95: self._may_relink},
        }

    def replay(self, found: Iterable[Record]) -> None:
        for count, (operation, arguments) in enumerate(found, 1):
            self._replay(operation, arguments)
            if count % AT_ONCE == 0:
                self._meta.commit()
                self._meta.inodes.shed()
        self._meta.commit()

    def _replay(self, operation: int, arguments: Sequence[Any]) -> None:
        if operation == _TAKE_SEQ:
            kind, seq = arguments
            self.seqs[kind] = max(seq, self.seqs.get(kind, 0))
            return
        if operation in _PASSED_OVER:
            return
        if operation == 10:
            self.highest_inode = max(self.highest_inode, arguments[2])
        if not self._fit(operation, arguments):
            self.passed_over += 1
            return
        self._meta.database.replay(operation, arguments)
        self.applied += 1
        if operation == 10:
            self._made.add(arguments[2])

    def _fit(self, operation: int, arguments: Sequence[Any]) -> bool:
        if operation == _CREATE_ROOT:
            return self._meta.inodes.get(1) is None
        if operation == _STORED:
            return arguments[0] in self._stored
        fits = self._fits.get(operation)
        return fits is not None and fits(*arguments)

    # --- what must be so -----------------------------------------------------------------------------------------

    def _trusts(self, number: int | None) -> bool:
        return number is not None and (self._trusted is None or number in self._trusted or number in self._made)

    def _known(self, number: int, *_: object) -> bool:
        return self._trusts(number) and self._meta.inodes.get(number) is not None

    def _always(self, *_: object) -> bool:
        return True

    def _directory(self, number: int) -> bool:
        inode = self._meta.inodes.get(number)
        return inode is not None and inode.is_directory and inode.nlink > 0

    def _free(self, parent: int, name: bytes) -> bool:
        return self._directory(parent) and self._meta.names.lookup(parent, name) is None

    def _child(self, parent: int, name: bytes) -> Inode | None:
        """The inode of a name, if it may be changed."""
        number = self._meta.names.lookup(parent, name)
        return self._meta.inodes.get(number) if number is not None and self._trusts(number) else None

    def _may_create(self, parent: int, name: bytes, number: int, *_: object) -> bool:
        return self._free(parent, name) and self._meta.inodes.get(number) is None

    def _may_link(self, number: int, parent: int, name: bytes, *_: object) -> bool:
        return self._known(number) and self._free(parent, name)

    def _may_unlink(self, parent: int, name: bytes, *_: object) -> bool:
        inode = self._child(parent, name)
        return inode is not None and not inode.is_directory

    def _may_rmdir(self, parent: int, name: bytes, *_: object) -> bool:
        inode = self._child(parent, name)
        return inode is not None and inode.is_directory and self._meta.names.is_empty(inode.number)

    def _may_rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, *_: object) -> bool:
        inode = self._child(parent, name)
        if inode is None or not self._directory(new_parent):
            return False
        if inode.is_directory and self._meta.names.is_ancestor(inode.number, new_parent):
            return False
        number = self._meta.names.lookup(new_parent, new_name)
        if number is None:
            return True
        replaced = self._meta.inodes.get(number)
        if replaced is None or replaced is inode or replaced.is_directory != inode.is_directory:
            return False
        return not replaced.is_directory or self._meta.names.is_empty(number)

    def _may_exchange(self, parent: int, name: bytes, new_parent: int, new_name: bytes, *_: object) -> bool:
        one, other = self._child(parent, name), self._child(new_parent, new_name)
        if one is None or other is None:
            return False
        names = self._meta.names
        return not (
            (one.is_directory and names.is_ancestor(one.number, new_parent))
            or (other.is_directory and names.is_ancestor(other.number, parent))
        )

    def _file(self, number: int) -> Inode | None:
        inode = self._meta.inodes.get(number) if self._trusts(number) else None
        return inode if inode is not None and inode.is_regular else None

    def _in_extents(self, number: int, *_: object) -> bool:
        inode = self._file(number)
        return inode is not None and inode.content is None

    def _may_write_content(self, number: int, offset: int, data: bytes, *_: object) -> bool:
        inode = self._file(number)
        if inode is None or offset + len(data) > SMALL_BYTES:
            return False
        if inode.content is not None:
            return True
        return not inode.size and not self._meta.extents.dirty_files(inode)

    def _may_spill(self, number: int, *_: object) -> bool:
        inode = self._file(number)
        return inode is not None and inode.content is not None

    def _may_seal_content(self, number: int, block_id: bytes, *_: object) -> bool:
        inode = self._file(number)
        return inode is not None and inode.content is not None and blake3(inode.content).digest() == block_id

    def _may_unseal_content(self, number: int, data: bytes) -> bool:
        inode = self._file(number)
        return inode is not None and inode.content is None and not inode.tail and len(data) == inode.size

    def _may_append(self, number: int, dirty: int, start: int, *_: object) -> bool:
        inode = self._file(number)
        if inode is None or inode.content is not None:
            return False
        return inode.tail == dirty if inode.tail else start >= inode.size

    def _may_cut(self, number: int, pieces: Sequence[Any], rest: int, rest_start: int, *_: object) -> bool:
        inode = self._file(number)
        if inode is None or not inode.tail:
            return False
        inside = all(inode.tail_start <= piece[0] and piece[0] + piece[1] <= inode.size for piece in pieces)
        return inside and (not rest or inode.tail_start <= rest_start <= inode.size)

    def _may_overlay(self, number: int, offset: int, length: int, overlay: int, *_: object) -> bool:
        inode = self._file(number)
        if inode is None or inode.content is not None or inode.overlay not in (0, overlay):
            return False
        return not inode.tail or offset + length <= inode.tail_start

    def _may_seal(self, number: int, start: int, end: int, *_: object) -> bool:
        inode = self._file(number)
        if inode is None or inode.content is not None:
            return False
        return end <= (inode.tail_start if inode.tail else inode.size)

    def _may_truncate(self, number: int, size: int, *_: object) -> bool:
        inode = self._file(number)
        return inode is not None and (inode.content is None or size <= SMALL_BYTES)

    def _may_relink(self, number: int, start: int, end: int, parts: Sequence[Any], *_: object) -> bool:
        return self._file(number) is not None and self._meta.blocks.unknown(part[2] for part in parts) is None

    def _may_erase(self, number: int) -> bool:
        inode = self._meta.inodes.get(number)
        return self._trusts(number) and inode is not None and not inode.nlink
