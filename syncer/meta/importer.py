"""Fills an empty meta.db from the remote: packs from index objects, directories from trees.

Not journaled: a build that is interrupted starts over, because the store belongs to no repository before it is
finished. Commits now and then, so that the transaction stays small.
"""

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from syncer.errors import ObjectCorrupt
from syncer.meta.database import Database
from syncer.meta.inodes import Totals
from syncer.values import CONTENT, PLAIN_MAX_BYTES, BlockId, PackId, TreeId

COMMIT_ROWS = 20_000
_Extent = tuple[int, int, int, int, BlockId]
"""(inode, start, length, offset in the block, block)"""


@dataclass(frozen=True, slots=True)
class ImportedInode:
    """An inode as a tree gives it. Times in nanoseconds."""

    number: int
    mode: int
    uid: int
    gid: int
    nlink: int
    size: int
    mtime_ns: int
    ctime_ns: int
    rdev: int
    target: bytes | None
    xattrs: Sequence[tuple[bytes, bytes]]
    extents: Sequence[tuple[int, int, BlockId, int]]


class Importer:
    def __init__(self, database: Database) -> None:
        self._database = database
        self._execute = database.connection.execute
        self._executemany = database.connection.executemany
        self._rows = 0
        self._totals = Totals()
        self.unlisted: dict[BlockId, int] = {}
        """Blocks that the trees name and no index lists, with how long they are at least: whoever made the snapshot
        could not read them any more."""

    def add_pack(
        self,
        pack_id: PackId,
        size: int,
        kind: int,
        seq: int | None,
        entries: Iterable[tuple[BlockId, int, int, int]],
        *,
        late: bool = False,
    ) -> None:
        """A pack with its blocks: (block id, offset, sealed bytes, plain bytes). The last pack to list a block counts:
        it is put a second time when its first copy has turned out bad, and when a prune copies it.

        One that comes *late*, out of its order, counts for what no other lists.
        """
        self._database.begin()
        cursor = self._execute(
            "INSERT OR IGNORE INTO packs(id, size, kind, indexed) VALUES (?, ?, ?, ?)", (pack_id, size, kind, seq)
        )
        if not cursor.rowcount:
            return
        pack = cursor.lastrowid
        cursor = self._executemany(
            "INSERT INTO blocks(id, size, refs, kind, pack, pack_offset, sealed_bytes, cached, used, born)"
            " VALUES (?, ?, 0, ?, ?, ?, ?, 0, 0, 0) ON CONFLICT(id) DO UPDATE SET size = excluded.size,"
            " pack = excluded.pack, pack_offset = excluded.pack_offset, sealed_bytes = excluded.sealed_bytes"
            + (" WHERE blocks.pack IS NULL" if late else ""),
            [(block_id, plain, kind, pack, offset, sealed) for block_id, offset, sealed, plain in entries],
        )
        self._count(cursor.rowcount)

    def forget_packs(self) -> None:
        """All packs and blocks that were added: before there is anything that names them."""
        self._database.begin()
        self._execute("DELETE FROM blocks")
        self._execute("DELETE FROM packs")

    def add_root(self, inode: ImportedInode, tree: TreeId) -> None:
        self._database.begin()
        self._add_inodes([inode])
        self._add_tree(inode.number, tree)

    def add_entries(
        self, parent: int, entries: Sequence[tuple[bytes, ImportedInode]], trees: Sequence[tuple[int, TreeId]]
    ) -> None:
        """Entries of one directory, with (inode, tree) of those that are directories.

        A block that no index lists is damaged from then on, and the rest of its file whole.

        Raises:
            ObjectCorrupt: the entries are none that a tree can have.
        """
        self._database.begin()
        try:
            self._executemany(
                "INSERT INTO dentries(parent, name, inode) VALUES (?, ?, ?)",
                [(parent, name, inode.number) for name, inode in entries],
            )
        except sqlite3.IntegrityError as error:
            raise ObjectCorrupt(f"inode {parent} has a name twice in its tree") from error
        self._add_inodes([inode for _, inode in entries])
        for number, tree in trees:
            self._add_tree(number, tree)
        self._count(len(entries))

    def mark_large(self, number: int) -> None:
        """The directory has so many entries that it is published by its changes."""
        self._database.begin()
        self._execute("UPDATE trees SET large = 1 WHERE inode = ?", (number,))

    def _add_tree(self, number: int, tree: TreeId) -> None:
        self._execute("INSERT OR REPLACE INTO trees VALUES (?, ?, 0)", (number, tree))

    def _add_inodes(self, inodes: Iterable[ImportedInode]) -> None:
        fresh = [inode for inode in inodes if self._add_inode(inode)]
        self._executemany(
            "INSERT INTO symlinks VALUES (?, ?)", [(i.number, i.target) for i in fresh if i.target is not None]
        )
        self._executemany(
            "INSERT INTO xattrs VALUES (?, ?, ?)", [(i.number, name, value) for i in fresh for name, value in i.xattrs]
        )
        extents = [
            (i.number, start, length, offset, block) for i in fresh for start, length, block, offset in i.extents
        ]
        if extents and self._add_extents(extents) != len(extents):
            self._add_unlisted(extents)
        for _, _, length, offset, block in extents if self.unlisted else ():
            if self.unlisted.get(block, length + offset) < length + offset:
                self._lengthen(block, length + offset)

    def _add_extents(self, extents: Sequence[_Extent]) -> int:
        """How many of them are of a block that is known; the others are left out."""
        return self._executemany(
            "INSERT INTO extents(inode, start, length, source, source_offset)"
            " SELECT ?1, ?2, ?3, number, ?4 FROM blocks WHERE id = ?5",
            extents,
        ).rowcount

    def _add_unlisted(self, extents: Sequence[_Extent]) -> None:
        """Those that were left out, with rows for the blocks they name."""
        left_out = [
            e for e in extents if self._execute("SELECT 1 FROM blocks WHERE id = ?", (e[4],)).fetchone() is None
        ]
        for block in {extent[4] for extent in left_out}:
            cursor = self._execute(
                "INSERT INTO blocks(id, size, refs, kind, cached, used, born) VALUES (?, 0, 0, ?, 0, 0, 0)",
                (block, CONTENT),
            )
            self._execute("INSERT INTO damaged VALUES (?)", (cursor.lastrowid,))
            self.unlisted[block] = 0
        self._add_extents(left_out)

    def _lengthen(self, block: BlockId, size: int) -> None:
        """A block that was never seen is at least as long as what files name of it."""
        if size > PLAIN_MAX_BYTES:
            raise ObjectCorrupt(f"a file names byte {size} of a block; none is so long")
        more = size - self.unlisted[block]
        self.unlisted[block] = size
        self._execute("UPDATE blocks SET size = ? WHERE id = ?", (size, block))
        self._execute("UPDATE sums SET unique_bytes = unique_bytes + ?", (more,))

    def list_again(self) -> None:
        """More packs were added: what of the unlisted is in them is not damaged."""
        self._database.begin()
        self._execute("DELETE FROM damaged WHERE number IN (SELECT number FROM blocks WHERE pack IS NOT NULL)")
        self._execute("UPDATE sums SET unique_bytes = (SELECT ifnull(sum(size), 0) FROM blocks WHERE refs > 0)")
        self.unlisted = {
            block: size
            for block, size in self.unlisted.items()
            if self._execute("SELECT 1 FROM blocks WHERE id = ? AND pack IS NULL", (block,)).fetchone()
        }

    def _add_inode(self, inode: ImportedInode) -> bool:
        """False for a further name of an inode that is here already. Raises: ObjectCorrupt."""
        cursor = self._execute(
            "INSERT OR IGNORE INTO inodes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0, 0, 0, 0)",
            (
                *(inode.number, inode.mode, inode.uid, inode.gid, inode.nlink, inode.size),
                *(inode.mtime_ns, inode.mtime_ns, inode.ctime_ns, inode.rdev),
            ),
        )
        is_directory = inode.mode & 0o170000 == 0o040000
        if not cursor.rowcount:
            if is_directory:
                raise ObjectCorrupt(f"directory {inode.number} has two places in the tree")
            self._check_same_kind(inode)
            return False
        if is_directory:
            self._totals.directories += 1
        else:
            self._totals.files += 1
            self._totals.logical_bytes += inode.size
        return True

    def _check_same_kind(self, inode: ImportedInode) -> None:
        """A second name is of the same kind as the first: one of a directory would make a circle of the tree."""
        row = self._execute("SELECT mode FROM inodes WHERE inode = ?", (inode.number,)).fetchone()
        if row[0] & 0o170000 != inode.mode & 0o170000:
            raise ObjectCorrupt(f"inode {inode.number} is of two kinds in the tree")

    def _count(self, rows: int) -> None:
        self._rows += rows
        if self._rows >= COMMIT_ROWS:
            self._rows = 0
            self._database.commit()
            self._database.checkpoint_here()  # the engine that does this later does not run yet

    def finish(self) -> Totals:
        """What was imported; the caller stores it with the repository's identity and commits."""
        return self._totals
