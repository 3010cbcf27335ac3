"""Snapshots known here, and what was published of the live tree: the memory between two publications."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from syncer.meta.database import Database, Table, journaled
from syncer.meta.inodes import Inode, InodeTable
from syncer.meta.namespace import NamespaceTable
from syncer.values import FILE_END_MAX, PeerId, TreeId

_NONE: Mapping[int, TreeId | None] = MappingProxyType({})


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
        self.revision = 0
        """Another one after each change of which snapshots are known."""

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

    def places(self) -> list[tuple[PeerId, int]]:
        """(peer, seq) of all snapshots that are known, in the order of history."""
        return [(PeerId(peer), seq) for peer, seq in self.execute("SELECT peer, seq FROM snapshots")]

    def records(self) -> list[tuple[tuple[PeerId, int], bytes]]:
        """(place, record) of all snapshots that are known, in the order of history."""
        rows = self.execute("SELECT peer, seq, record FROM snapshots")
        return [((PeerId(peer), seq), record) for peer, seq, record in rows]

    def get(self, peer: PeerId, seq: int) -> KnownSnapshot | None:
        row = self.execute(
            "SELECT peer, seq, root, time_ns, record FROM snapshots WHERE peer = ? AND seq = ?", (peer, seq)
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

    def shows(self, inode: Inode) -> bool:
        """Whether the newest snapshot has the inode as it is now, with its attributes and under its names.

        Not whether the remote has every block of it.
        """
        return inode.nlink > 0 and not self._inodes.is_changed(inode.number) and not self._names.has_moved(inode.number)

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

    @journaled(62)
    def mark(self, generation: int) -> None:
        """The next snapshot shows the moment of this record: from here on a recovery replays. Changes nothing."""

    @journaled(61)
    def learn(self, peer: PeerId, seq: int, root: TreeId, time_ns: int, record: bytes) -> None:
        """A snapshot is on the remote, and the live tree goes back to it."""
        self.execute("INSERT OR REPLACE INTO snapshots VALUES (?, ?, ?, ?, ?)", (peer, seq, root, time_ns, record))
        self.revision += 1
        self.database.set_state("head_peer", peer)
        self.database.set_state("head_seq", seq)

    def remember(self, found: KnownSnapshot) -> None:
        """A snapshot is on the remote. Not journaled: what is lost is listed again."""
        self.database.begin()
        row = (found.peer, found.seq, found.root, found.time_ns, found.record)
        self.execute("INSERT OR IGNORE INTO snapshots VALUES (?, ?, ?, ?, ?)", row)
        self.revision += 1

    def forget(self, peer: PeerId, seq: int) -> None:
        """A snapshot, not the head, is not on the remote any more. Not journaled: who looks there finds out again."""
        self.database.begin()
        self.execute("DELETE FROM snapshots WHERE peer = ? AND seq = ?", (peer, seq))
        self.revision += 1

    def forget_cached(self) -> None:
        self.revision += 1

    def published(
        self, generation: int, trees: Mapping[int, DirectoryTree], extents: Mapping[int, TreeId | None] = _NONE
    ) -> None:
        """Remember the trees of a publication and forget the changes up to *generation* that it holds.

        *trees* are those of directories; *extents* the trees of all files whose extents changed, None where they
        are few.

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
        self._extents_published(generation, extents)
        for table in ("changed", "changed_names", "changed_extents"):
            self.execute(f"DELETE FROM {table} WHERE generation <= ?", (generation,))

    def _extents_published(self, generation: int, extents: Mapping[int, TreeId | None]) -> None:
        noted = self.execute("SELECT DISTINCT inode FROM changed_extents WHERE generation <= ?", (generation,))
        for number in {row[0] for row in noted} - set(extents):  # without a name, so not looked at
            self.execute("DELETE FROM trees WHERE inode = ?", (number,))
        for number, tree in extents.items():
            if tree is None:
                self.execute("DELETE FROM trees WHERE inode = ?", (number,))
            elif self._inodes.get(number) is not None:
                missed = self._missed_extents(number, generation)
                # Not REPLACE: that may count as a DELETE, whose trigger forgets what changed meanwhile.
                self.execute(
                    "INSERT INTO trees VALUES (?, ?, 0) ON CONFLICT DO UPDATE SET id = excluded.id", (number, tree)
                )
                if missed:
                    whole = (number, 0, FILE_END_MAX, self._inodes.generation)
                    self.execute("INSERT OR REPLACE INTO changed_extents VALUES (?, ?, ?, ?)", whole)

    def _missed_extents(self, number: int, generation: int) -> bool:
        """Whether extents of the file came or went after *generation* that nobody noted: it had no tree yet."""
        if self.execute("SELECT 1 FROM trees WHERE inode = ?", (number,)).fetchone() is not None:
            return False
        return self._changed_after(number, generation)

    def _missed_names(self, number: int, generation: int) -> bool:
        """Whether names came or went in the directory after *generation* that nobody noted: it was not large yet."""
        if number in self._names.large:
            return False
        return self._changed_after(number, generation)

    def _changed_after(self, number: int, generation: int) -> bool:
        later = self.execute("SELECT 1 FROM changed WHERE inode = ? AND generation > ?", (number, generation))
        return later.fetchone() is not None
