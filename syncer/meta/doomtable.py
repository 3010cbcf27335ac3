"""What is to be deleted from the remote, and what a prune makes of blocks and packs here. All of it is journaled.

Nothing is deleted there that is not listed here, durably, and nothing is listed that anything here still relies on. So
whoever is killed in between leaves a list that the next prune works off.
"""

from collections.abc import Iterable, Sequence

from syncer.meta.blocktable import BlockTable
from syncer.meta.database import Database, Table, journaled
from syncer.meta.snapshottable import SnapshotTable
from syncer.values import BlockId, PackId

Moved = tuple[BlockId, int, int, PackId]
"""(block id, offset, sealed bytes, the pack it was copied from)."""


class DoomTable(Table):
    def __init__(self, database: Database, blocks: BlockTable, snapshots: SnapshotTable) -> None:
        super().__init__(database)
        self._blocks = blocks
        self._snapshots = snapshots

    # --- reading -------------------------------------------------------------------------------------------------

    def keys(self, prefix: str, limit: int) -> list[str]:
        """Up to *limit* objects under *prefix* that are to be deleted."""
        rows = self.execute(
            "SELECT key FROM doomed WHERE key >= ? AND key < ? AND gone = 0 LIMIT ?",
            (prefix, prefix + "\x7f", limit),
        )
        return [row[0] for row in rows.fetchall()]

    def is_listed(self, key: str) -> bool:
        """Whether the object is to be deleted."""
        return self.execute("SELECT 1 FROM doomed WHERE key = ? AND gone = 0", (key,)).fetchone() is not None

    def is_doomed(self, pack_id: PackId) -> bool:
        """Whether the pack is to be deleted, or was a while ago: a delete may take effect late."""
        return self.execute("SELECT 1 FROM doomed WHERE pack = ?", (pack_id,)).fetchone() is not None

    def is_free(self, pack_id: PackId) -> bool:
        """Whether no file of the live tree, and nothing that is being published, has a block in the pack, known here
        and listed by an index."""
        row = self.execute("SELECT number FROM packs WHERE id = ? AND indexed IS NOT NULL", (pack_id,)).fetchone()
        if row is None:
            return False
        used = self.execute(
            "SELECT 1 FROM blocks WHERE pack = ? AND (refs > 0 OR number <= ?) LIMIT 1",
            (row[0], self._blocks.held_up_to),
        )
        return used.fetchone() is None

    def numbers_in(self, pack_id: PackId, limit: int) -> list[int]:
        """Numbers of up to *limit* blocks that are read from the pack."""
        rows = self.execute(
            "SELECT b.number FROM packs p JOIN blocks b ON b.pack = p.number WHERE p.id = ? LIMIT ?", (pack_id, limit)
        )
        return [row[0] for row in rows.fetchall()]

    def strays(self) -> dict[PackId, int]:
        """Packs that nothing knows, with the number of the snapshot that came next when each was first seen."""
        return {PackId(pack): seq for pack, seq in self.execute("SELECT pack, seq FROM strays")}

    # --- changing ------------------------------------------------------------------------------------------------

    @journaled(100)
    def drop_snapshots(self, places: Sequence[tuple[int, int, str]]) -> None:
        """These snapshots, (peer, seq, key), are no more."""
        for peer, seq, key in places:
            self.execute("DELETE FROM snapshots WHERE peer = ? AND seq = ?", (peer, seq))
            self.execute("INSERT OR REPLACE INTO doomed VALUES (?, NULL, 0)", (key,))
        self._snapshots.revision += 1

    @journaled(101)
    def moved(self, pack_id: PackId, size: int, kind: int, entries: Sequence[Moved]) -> None:
        """A new pack on the remote holds copies of these blocks, and is where they are read from now on.

        A block that is not read from the pack it was copied from any more stays where it is.
        """
        self.execute("INSERT OR IGNORE INTO packs(id, size, kind) VALUES (?, ?, ?)", (pack_id, size, kind))
        self.executemany(
            "UPDATE blocks SET pack = (SELECT number FROM packs WHERE id = ?), pack_offset = ?, sealed_bytes = ?"
            " WHERE id = ? AND pack = (SELECT number FROM packs WHERE id = ?)",
            [(pack_id, offset, sealed, block_id, source) for block_id, offset, sealed, source in entries],
        )

    @journaled(102)
    def forget_blocks(self, numbers: Sequence[int]) -> None:
        """Nothing needs these blocks, nor their cached copies. The next commit removes those that nothing has named
        until then."""
        for number in numbers:
            self._blocks.leave_pack(number)

    @journaled(103)
    def doom_packs(self, packs: Sequence[tuple[str, PackId]]) -> None:
        """These packs, (key, id), hold nothing that anything needs."""
        for key, pack_id in packs:
            self.execute("DELETE FROM packs WHERE id = ?", (pack_id,))
            self.execute("DELETE FROM strays WHERE pack = ?", (pack_id,))
            self.execute("INSERT OR REPLACE INTO doomed VALUES (?, ?, 0)", (key, pack_id))

    @journaled(104)
    def doom_indexes(self, keys: Sequence[str]) -> None:
        """Newer index objects on the remote say all that these say and is still so."""
        self.executemany("INSERT OR REPLACE INTO doomed VALUES (?, NULL, 0)", [(key,) for key in keys])

    @journaled(105)
    def deleted(self, keys: Sequence[str]) -> None:
        """The remote has these no more."""
        self.executemany("UPDATE doomed SET gone = 1 WHERE key = ? AND pack IS NOT NULL", [(key,) for key in keys])
        self.executemany("DELETE FROM doomed WHERE key = ? AND pack IS NULL", [(key,) for key in keys])

    @journaled(106)
    def list_again(self, pack_ids: Sequence[PackId]) -> None:
        """The next index object lists these packs: those that listed them are about to go."""
        self.executemany("UPDATE packs SET indexed = NULL WHERE id = ?", [(pack_id,) for pack_id in pack_ids])

    @journaled(107)
    def merged(self, pack_ids: Sequence[PackId], seq: int) -> None:
        """Our index object *seq* lists these packs too, and is the one that stays. Those that are about to be listed
        anew still are."""
        self.executemany(
            "UPDATE packs SET indexed = ? WHERE id = ? AND indexed IS NOT NULL",
            [(seq, pack_id) for pack_id in pack_ids],
        )

    def forget_gone(self, there: Iterable[PackId]) -> None:
        """Packs that were deleted before may be put again, but for those that are still *there*: they go once more.

        Not journaled: it does no harm to be careful longer.
        """
        self.database.begin()
        self.executemany("UPDATE doomed SET gone = 0 WHERE pack = ?", [(pack_id,) for pack_id in there])
        self.execute("DELETE FROM doomed WHERE gone = 1")

    def saw_strays(self, found: Iterable[tuple[PackId, int]]) -> None:
        """These packs, and no others, lie on the remote and nothing knows them. Not journaled: seen again if lost."""
        self.database.begin()
        self.execute("DELETE FROM strays")
        self.executemany("INSERT INTO strays VALUES (?, ?)", list(found))
