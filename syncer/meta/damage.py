"""What is known to be bad on the remote, and which files it is part of.

The table `damaged` names blocks that are neither here nor, as far as is known, sound on the remote. Whoever writes the
same bytes again gives such a block a new copy, which must go to the remote as if it had never been there.
"""

from collections.abc import Iterable, Sequence

from syncer.meta.blocktable import BlockTable
from syncer.meta.database import Database, Table, journaled
from syncer.meta.inodes import InodeTable
from syncer.meta.namespace import NamespaceTable
from syncer.values import CONTENT, BlockId, PackId


class DamageTable(Table):
    def __init__(self, database: Database, inodes: InodeTable, names: NamespaceTable, blocks: BlockTable) -> None:
        super().__init__(database)
        self._inodes = inodes
        self._names = names
        self._blocks = blocks

    @journaled(70)
    def distrusted(self, pack_id: PackId, block_ids: Sequence[BlockId]) -> None:
        """The remote's copies of these blocks are bad or gone; the others of their pack are not relied on any more.

        What is cached of the pack waits for upload again, so it is not evicted before; what is not is listed if it is
        one of *block_ids*.
        """
        row = self.execute("SELECT number FROM packs WHERE id = ?", (pack_id,)).fetchone()
        if row is None:
            return
        self._blocks.any_damaged = True
        self._blocks.take_out(row[0], CONTENT)
        self.executemany(
            "INSERT OR IGNORE INTO damaged SELECT number FROM blocks WHERE id = ? AND pack = ? AND cached = 0",
            [(block_id, row[0]) for block_id in block_ids],
        )

    @journaled(71)
    def lost(self, number: int) -> None:
        """The only copy of the block that can be had is bad. It stays where it is."""
        self._blocks.any_damaged = True
        self.execute("INSERT OR IGNORE INTO damaged SELECT number FROM blocks WHERE number = ?", (number,))

    @journaled(72)
    def sound(self, number: int) -> None:
        """A copy of the block has been found after all."""
        self.execute("DELETE FROM damaged WHERE number = ?", (number,))

    def try_again(self) -> None:
        """At a start: what could not be read here may be readable now, and is found again if not. Not journaled."""
        self.database.begin()
        self.execute(
            "DELETE FROM damaged WHERE EXISTS (SELECT 1 FROM blocks b WHERE b.number = damaged.number AND b.cached > 0)"
        )
        self._blocks.any_damaged = self.execute("SELECT 1 FROM damaged LIMIT 1").fetchone() is not None

    def numbers(self) -> set[int]:
        """The blocks that something needs and of which no sound copy is known."""
        if not self._blocks.any_damaged:
            return set()
        held = self._blocks.held_up_to
        rows = self.execute(  # CROSS: these few rows first, not all blocks
            "SELECT d.number FROM damaged d CROSS JOIN blocks b ON b.number = d.number"
            " WHERE b.refs > 0 OR b.number <= ?",
            (held,),
        )
        return {row[0] for row in rows}

    def unsendable(self) -> set[int]:
        """Those of them that the remote lacks."""
        return {number for number in self.numbers() if self._blocks.is_needed(number)}

    def of_file(self, number: int) -> list[int]:
        """The blocks of one file of which no sound copy is known. Looks at all its extents."""
        rows = self.execute(
            "SELECT DISTINCT source FROM extents WHERE inode = ? AND source IN (SELECT number FROM damaged)", (number,)
        )
        return [row[0] for row in rows]

    def paths(self, numbers: Iterable[int]) -> list[bytes]:
        """The files, from the root and without a slash before them, that have bytes of these blocks; sorted.

        One path a file, also for one with several names. Looks at every extent there is.
        """
        wanted = "[" + ",".join(map(str, numbers)) + "]"
        if wanted == "[]":
            return []
        rows = self.execute(
            "SELECT DISTINCT inode FROM extents WHERE source IN (SELECT value FROM json_each(?))", (wanted,)
        ).fetchall()
        return sorted(path for (inode,) in rows if (path := self._names.path(inode)) is not None)
