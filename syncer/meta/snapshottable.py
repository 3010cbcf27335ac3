"""Snapshots known here, and what was published of the live tree: the memory between two publications."""

from collections.abc import Mapping
from dataclasses import dataclass

from syncer.meta.database import Database, Table, journaled
from syncer.meta.inodes import InodeTable
from syncer.meta.namespace import NamespaceTable
from syncer.values import PeerId, TreeId


@dataclass(frozen=True, slots=True)
class KnownSnapshot:
    """A snapshot's place in history; *record* is the encoded object."""

    peer: PeerId
    seq: int
    root: TreeId
    time_ns: int
    record: bytes


@dataclass(frozen=True, slots=True)
class DirectoryTree:
    """The published tree of a directory."""

    id: TreeId
    large: bool


class SnapshotTable(Table):
    def __init__(self, database: Database, inodes: InodeTable, names: NamespaceTable) -> None:
        super().__init__(database)
        self._inodes = inodes
        self._names = names

    # --- reading -------------------------------------------------------------------------------------------------

    def newest(self, peer: PeerId) -> KnownSnapshot | None:
        row = self.execute(
            "SELECT peer, seq, root, time_ns, record FROM snapshots WHERE peer = ? ORDER BY seq DESC LIMIT 1", (peer,)
        ).fetchone()
        return None if row is None else KnownSnapshot(*row)

    def head(self) -> KnownSnapshot | None:
        """The snapshot the live tree goes back to: the one recorded last."""
        row = self.execute(
            "SELECT s.peer, s.seq, s.root, s.time_ns, s.record FROM snapshots s"
            " WHERE s.peer = (SELECT value FROM state WHERE key = 'head_peer')"
            " AND s.seq = (SELECT value FROM state WHERE key = 'head_seq')"
        ).fetchone()
        return None if row is None else KnownSnapshot(*row)

    def head_name(self) -> str | None:
        """`peer/seq` of the head, as the remote names it."""
        head = self.head()
        return None if head is None else f"{head.peer}/{head.seq}"

    def is_built(self) -> bool:
        """Whether the live tree was built from a snapshot, completely."""
        return bool(self.database.state_integer("built"))

    def built(self) -> None:
        """The live tree is complete."""
        self.database.set_state("built", 1)

    def has_changes(self) -> bool:
        """Whether something changed since the last publication. Complete only right after a commit."""
        return self.execute("SELECT 1 FROM changed LIMIT 1").fetchone() is not None

    def next_seq(self, kind: str) -> int:
        """The next free sequence number of our objects of *kind* (`snapshot` or `index`)."""
        return self.database.state_integer(f"{kind}_seq") + 1

    # --- changing ------------------------------------------------------------------------------------------------

    @journaled(60)
    def take_seq(self, kind: str, seq: int) -> None:
        """The number is used from now on, whatever becomes of the object: no key is ever written twice."""
        self.database.set_state(f"{kind}_seq", seq)

    def begin_generation(self) -> int:
        """Close the current period: changes from now on belong to the next publication. Call right after a commit."""
        closed = self._inodes.generation
        self._inodes.generation = closed + 1
        self.database.set_state("generation", closed + 1)
        return closed

    @journaled(61)
    def learn(self, peer: PeerId, seq: int, root: TreeId, time_ns: int, record: bytes) -> None:
        """A snapshot is on the remote, and the live tree goes back to it."""
        self.execute("INSERT OR REPLACE INTO snapshots VALUES (?, ?, ?, ?, ?)", (peer, seq, root, time_ns, record))
        self.database.set_state("head_peer", peer)
        self.database.set_state("head_seq", seq)

    def published(self, generation: int, trees: Mapping[int, DirectoryTree]) -> None:
        """Remember the trees of a publication and forget the changes up to *generation* that it holds.

        Not journaled: when a crash loses it, the next publication looks at the same changes again.
        """
        self.database.commit()  # `changed` is then complete
        self.database.begin()
        for number, tree in trees.items():
            if self._inodes.get(number) is None:
                continue  # removed meanwhile
            large = tree.large and not self._missed_names(number, generation)
            self.execute("INSERT OR REPLACE INTO trees VALUES (?, ?, ?)", (number, tree.id, int(large)))
            if large:
                self._names.large.add(number)
            else:
                self._names.large.discard(number)
        self.execute("DELETE FROM changed WHERE generation <= ?", (generation,))
        self.execute("DELETE FROM changed_names WHERE generation <= ?", (generation,))

    def _missed_names(self, number: int, generation: int) -> bool:
        """Whether names came or went in the directory after *generation* that nobody noted: it was not large yet."""
        if number in self._names.large:
            return False
        later = self.execute("SELECT 1 FROM changed WHERE inode = ? AND generation > ?", (number, generation))
        return later.fetchone() is not None
