"""The metadata store: the tables of meta.db put together. The truth about the live file system.

Synchronous, and used on the event loop's thread only (see database.py for the two methods that may run elsewhere).
ATOMIC: a journaled method and the checks before it run without an await, so no other task sees half of it.
"""

import contextlib
import time
from pathlib import Path

from syncer.errors import LocalDamage, recover_command
from syncer.meta.blocktable import BlockTable
from syncer.meta.damage import DamageTable
from syncer.meta.database import UNCOMMITTED_OPERATIONS, Database
from syncer.meta.doomtable import DoomTable
from syncer.meta.extents import ExtentTable
from syncer.meta.inodes import InodeTable
from syncer.meta.namespace import NamespaceTable
from syncer.meta.nodetable import NodeTable
from syncer.meta.overlays import OverlayTable
from syncer.meta.snapshottable import SnapshotTable
from syncer.values import PEER_SHIFT, ROOT_INODE, InodeNumber, PeerId

RESERVED_INODES = 16 * UNCOMMITTED_OPERATIONS
"""Renewed at the half, and thus committed long before the last of them is given out."""


class MetaStore:
    """Opens meta.db and its journal, replays what a crash left, and hands out the tables.

    Raises (from the constructor):
        LocalDamage: the database or the journal cannot be used.
    """

    def __init__(self, data: Path) -> None:
        _check_whole(data)
        self.database = Database(data / "meta.db", data / "journal")
        self.inodes = self.database.add(InodeTable(self.database))
        self.names = self.database.add(NamespaceTable(self.database, self.inodes))
        self.blocks = self.database.add(BlockTable(self.database))
        self.overlays = self.database.add(OverlayTable(self.database))
        self.extents = self.database.add(ExtentTable(self.database, self.inodes, self.blocks, self.overlays))
        self.snapshots = self.database.add(SnapshotTable(self.database, self.inodes, self.names))
        self.damage = self.database.add(DamageTable(self.database, self.inodes, self.names, self.blocks))
        self.nodes = self.database.add(NodeTable(self.database))
        self.doomed = self.database.add(DoomTable(self.database, self.blocks, self.snapshots))
        self.crashed = bool(self.database.state_integer("open"))
        """Whether the last run did not end cleanly."""
        self.replayed = self.database.recover()
        self.database.set_state("open", 1)
        self.peer = PeerId(self.database.state_integer("peer"))
        self._next_inode = self._first_free_inode()
        self.reserve_inodes()
        self.commit()
        self.database.on_rolled_back.append(self.reserve_inodes)

    def _first_free_inode(self) -> int:
        """One above the highest number that this peer ever gave out (inodes may be gone, so the state knows more)."""
        low, high = self.peer << PEER_SHIFT, (self.peer + 1) << PEER_SHIFT
        highest = self.database.connection.execute(
            "SELECT max(inode) FROM inodes WHERE inode >= ? AND inode < ?", (low, high)
        ).fetchone()[0]
        return max(low + 1, (highest or 0) + 1, self.database.state_integer("next_inode"))

    def become(self, peer: PeerId, next_inode: int = 0) -> None:
        """Take the inode prefix of *peer*; numbers below *next_inode* are not given out again."""
        self.peer = peer
        self.database.set_state("peer", peer)
        self._next_inode = max(next_inode, self._first_free_inode())
        self.reserve_inodes()

    def reserve_inodes(self) -> None:
        """Note with the next commit that the next few thousand numbers may be given out."""
        self._reserved_to = self._next_inode + RESERVED_INODES
        self.database.set_state("next_inode", self._reserved_to)

    @property
    def next_inode(self) -> int:
        return self._next_inode

    def new_inode(self) -> InodeNumber:
        """A number that no inode ever had."""
        number = self._next_inode
        self._next_inode += 1
        if self._reserved_to - number < RESERVED_INODES // 2:
            self.reserve_inodes()
        return InodeNumber(number)

    def ensure_root(self, uid: int, gid: int) -> None:
        """Make the root directory if there is none."""
        if self.inodes.get(ROOT_INODE) is None:
            self.names.create_root(0o40755, uid, gid, time.time_ns())

    def wipe(self) -> None:
        """Empty every table, to be filled anew. Cache files are deleted when the block store is opened next."""
        self.database.wipe()
        self._next_inode = self._first_free_inode()
        self.commit()

    def forget_cached(self) -> None:
        """The tables were changed behind the methods: keep nothing of them in memory."""
        self.database.forget_cached()

    def commit(self) -> None:
        self.database.commit()

    def close(self) -> None:
        self.database.close()


def _check_whole(data: Path) -> None:
    """Raises: LocalDamage: meta.db is gone or empty and files of it are there: a new one would know nothing of them."""
    if (data / "recovering" / "done").exists():
        raise LocalDamage(f"{data}: its recovery was interrupted", hint=f"let it finish: {recover_command(data)}")
    what = "is gone"
    with contextlib.suppress(FileNotFoundError):
        if (data / "meta.db").stat().st_size:
            return
        what = "is empty"
    kept = [*(data / "journal").glob("*"), *(data / "dirty").glob("*"), *(data / "cache").glob("??/*")]
    if kept:
        raise LocalDamage(f"{data / 'meta.db'} {what}", hint=f"rebuild it: {recover_command(data)}")
