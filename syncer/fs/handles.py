"""Who uses which inode: open files, and the kernel's look-up counts. Keeps orphans alive exactly as long.

On the event loop's thread only.
"""

from collections.abc import Callable, Iterable

from syncer.fs.readahead import Reading
from syncer.meta.extent import Extent
from syncer.meta.inodes import Inode
from syncer.meta.store import MetaStore
from syncer.values import InodeNumber

O_ACCMODE, O_RDWR, O_TRUNC, O_NOATIME = 0o3, 0o2, 0o1000, 0o1000000


class OpenFile(Reading):
    """An open regular file: where it stands in sequential reading, and the extent it read last."""

    __slots__ = ("epoch", "extent", "number", "traceless", "writable")

    def __init__(self, number: InodeNumber, flags: int) -> None:
        super().__init__()
        self.number = number
        self.traceless = bool(flags & O_NOATIME)
        self.writable = bool(flags & O_ACCMODE)
        self.epoch = -1
        self.extent: Extent | None = None


class Handles:
    def __init__(self, meta: MetaStore, erase: Callable[[Inode], None]) -> None:
        """*erase* is called with an orphan that nobody uses any more."""
        self._meta = meta
        self._erase = erase
        self._files: dict[int, OpenFile] = {}
        self._lookups: dict[int, int] = {}
        self._orphans: set[int] = set()
        """Inodes that lost their last name while somebody used them."""
        self._next_handle = 1

    def open(self, inode: Inode, flags: int = O_RDWR) -> int:
        """A handle for the inode, opened with *flags*, which stays until `close`."""
        handle = self._next_handle
        self._next_handle += 1
        self._files[handle] = OpenFile(inode.number, flags)
        inode.pins += 1
        return handle

    def get(self, handle: int) -> OpenFile:
        return self._files[handle]

    def is_written(self, number: int) -> bool:
        """Whether somebody has the inode open for writing. Goes over all handles."""
        return any(file.writable for file in self._files.values() if file.number == number)

    def close(self, handle: int) -> None:
        number = self._files.pop(handle).number
        self._meta.inodes.need(number).pins -= 1
        self._let_go(number)

    def looked_up(self, number: InodeNumber) -> None:
        """The kernel was given the inode once more."""
        self._lookups[number] = self._lookups.get(number, 0) + 1

    def forget(self, items: Iterable[tuple[int, int]]) -> None:
        """The kernel gives back *count* look-ups of each (inode, count)."""
        for number, count in items:
            left = self._lookups.get(number, 0) - count
            if left > 0:
                self._lookups[number] = left
                continue
            self._lookups.pop(number, None)
            self._let_go(number)

    def unlinked(self, inode: Inode) -> None:
        """A name of the inode went."""
        if not inode.nlink:
            self._orphans.add(inode.number)
            self._let_go(inode.number)

    def _let_go(self, number: int) -> None:
        """Erase the inode if it is an orphan that nobody uses any more."""
        if number in self._orphans and number not in self._lookups:
            inode = self._meta.inodes.get(number)
            if inode is None or not inode.pins:
                self._orphans.discard(number)
                if inode is not None and not inode.nlink:
                    self._erase(inode)

    def erase_orphans(self) -> int:
        """At the start: what was unlinked and open when the last run ended. Returns how many."""
        orphans = self._meta.inodes.orphans()
        for number in orphans:
            inode = self._meta.inodes.get(number)
            if inode is not None:
                self._erase(inode)
        return len(orphans)
