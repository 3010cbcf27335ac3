"""Puts what was salvaged of a damaged meta.db over a tree that was built from a snapshot, and makes a whole of it.

Plain SQL on tables that nobody uses yet: nothing is journaled, and a recovery that is interrupted starts over.
"""

from pathlib import Path

from syncer.meta.inodes import Totals
from syncer.meta.salvage import Salvaged
from syncer.meta.store import MetaStore
from syncer.values import ROOT_INODE, SMALL_BYTES, BlockId

_REGULAR, _SYMLINK, _DIRECTORY, _TYPE = 0o100000, 0o120000, 0o040000, 0o170000

_TAKEN = """
CREATE TEMP TABLE taken AS
SELECT o.inode AS inode, o.ctime_ns > ifnull(m.ctime_ns, -9223372036854775808) AS newer
FROM old.inodes o LEFT JOIN main.inodes m ON m.inode = o.inode
WHERE typeof(o.inode) = 'integer' AND o.inode > 0 AND o.nlink > 0 AND typeof(o.mode) = 'integer'
AND typeof(o.size) = 'integer' AND o.size >= 0 AND typeof(o.ctime_ns) = 'integer'
AND (m.inode IS NULL OR o.ctime_ns >= m.ctime_ns)
AND (m.inode IS NULL OR m.mode & 61440 = o.mode & 61440)
AND NOT EXISTS (SELECT 1 FROM old.doubtful d WHERE d.kind = 'inode' AND o.inode BETWEEN d.first AND d.last)
AND NOT EXISTS (SELECT 1 FROM old.doubtful d JOIN old.overlays v ON v.dirty BETWEEN d.first AND d.last
    WHERE d.kind = 'dirty' AND v.inode = o.inode)
AND (o.overlay = 0 OR NOT EXISTS
    (SELECT 1 FROM old.doubtful d WHERE d.kind = 'dirty' AND o.overlay BETWEEN d.first AND d.last))
AND (o.mode & 61440 <> 40960 OR EXISTS
    (SELECT 1 FROM old.symlinks s WHERE s.inode = o.inode AND length(s.target) = o.size))
AND (o.content = 0 OR EXISTS (SELECT 1 FROM old.contents c WHERE c.inode = o.inode AND length(c.data) = o.size))
AND NOT EXISTS (SELECT 1 FROM old.extents e WHERE e.inode = o.inode AND e.start < o.size
    AND (e.start < 0 OR e.length <= 0 OR e.start + e.length > o.size
        OR (e.source > 0 AND e.source NOT IN (SELECT old FROM source)) OR e.source = 0
        OR EXISTS (SELECT 1 FROM source s JOIN main.blocks b ON b.number = s.new
            WHERE s.old = e.source AND e.source_offset + e.length > b.size)
        OR EXISTS (SELECT 1 FROM old.extents f
            WHERE f.inode = e.inode AND f.start > e.start AND f.start < e.start + e.length)));
CREATE INDEX temp.taken_inode ON taken(inode);
"""
"""Files, directories and so on that are known completely, and not older than in the snapshot."""

_MERGE = """
CREATE TEMP TABLE moved AS SELECT inode FROM taken WHERE newer;
DELETE FROM main.extents WHERE inode IN moved;
DELETE FROM main.xattrs WHERE inode IN moved;
DELETE FROM main.symlinks WHERE inode IN moved;
INSERT OR REPLACE INTO main.inodes SELECT * FROM old.inodes WHERE inode IN moved;
INSERT OR REPLACE INTO main.contents SELECT * FROM old.contents c WHERE inode IN
    (SELECT inode FROM old.inodes WHERE content = 1 AND inode IN moved);
INSERT OR REPLACE INTO main.symlinks SELECT * FROM old.symlinks WHERE inode IN moved;
INSERT OR REPLACE INTO main.xattrs SELECT * FROM old.xattrs WHERE inode IN moved;
INSERT OR IGNORE INTO main.extents SELECT e.inode, e.start, e.length, ifnull(s.new, e.source), e.source_offset
    FROM old.extents e JOIN old.inodes o ON o.inode = e.inode LEFT JOIN source s ON s.old = e.source
    WHERE e.inode IN moved AND e.start < o.size;
INSERT OR REPLACE INTO main.overlays SELECT * FROM old.overlays WHERE inode IN moved;
CREATE TEMP TABLE named AS SELECT d.parent, d.name, d.inode FROM old.dentries d
    JOIN main.inodes p ON p.inode = d.parent JOIN main.inodes i ON i.inode = d.inode
    WHERE typeof(d.name) = 'blob' AND length(d.name) BETWEEN 1 AND 255 AND d.name NOT IN (x'2e', x'2e2e')
    AND instr(d.name, x'2f') = 0 AND instr(d.name, x'00') = 0 AND p.mode & 61440 = 16384
    AND d.parent IN (SELECT inode FROM taken);
CREATE INDEX temp.named_name ON named(parent, name);
CREATE INDEX temp.named_inode ON named(inode);
CREATE TEMP TABLE unnamed AS SELECT cookie, parent, inode FROM main.dentries d
    WHERE (parent IN (SELECT inode FROM taken) OR (?1 AND parent NOT IN (SELECT inode FROM old.inodes)))
    AND NOT EXISTS (SELECT 1 FROM named n WHERE n.parent = d.parent AND n.name = d.name AND n.inode = d.inode)
    AND (?1 OR EXISTS (SELECT 1 FROM named n WHERE n.parent = d.parent AND n.name = d.name)
        OR EXISTS (SELECT 1 FROM named n JOIN main.inodes i ON i.inode = n.inode
            WHERE n.inode = d.inode AND i.mode & 61440 = 16384));
INSERT OR REPLACE INTO main.changed SELECT inode, ?2 FROM moved UNION SELECT parent, ?2 FROM unnamed
    UNION SELECT n.parent, ?2 FROM named n WHERE NOT EXISTS
        (SELECT 1 FROM main.dentries d WHERE d.parent = n.parent AND d.name = n.name AND d.inode = n.inode);
DELETE FROM main.dentries WHERE cookie IN (SELECT cookie FROM unnamed);
INSERT OR IGNORE INTO main.dentries(parent, name, inode) SELECT parent, name, inode FROM named;
"""
"""?1: whether all inodes and names were read, so that one which is missing was removed. ?2: the generation."""

_MEND = """
DELETE FROM main.dentries WHERE NOT EXISTS (SELECT 1 FROM main.inodes i WHERE i.inode = dentries.inode)
    OR NOT EXISTS (SELECT 1 FROM main.inodes p WHERE p.inode = dentries.parent AND p.mode & 61440 = 16384);
DELETE FROM main.dentries WHERE cookie IN (SELECT d.cookie FROM main.dentries d JOIN main.inodes i ON i.inode = d.inode
    WHERE i.mode & 61440 = 16384 AND d.cookie > (SELECT min(o.cookie) FROM main.dentries o WHERE o.inode = d.inode));
CREATE TEMP TABLE links(inode INTEGER PRIMARY KEY, nlink INTEGER NOT NULL);
INSERT INTO links SELECT i.inode, CASE WHEN i.mode & 61440 = 16384
    THEN 2 + (SELECT count(*) FROM main.dentries d JOIN main.inodes c ON c.inode = d.inode
        WHERE d.parent = i.inode AND c.mode & 61440 = 16384)
    ELSE (SELECT count(*) FROM main.dentries d WHERE d.inode = i.inode) END FROM main.inodes i;
INSERT OR REPLACE INTO main.changed
    SELECT i.inode, ?1 FROM main.inodes i JOIN links l ON l.inode = i.inode WHERE i.nlink <> l.nlink;
UPDATE main.inodes SET nlink = (SELECT nlink FROM links l WHERE l.inode = inodes.inode)
    WHERE nlink <> (SELECT nlink FROM links l WHERE l.inode = inodes.inode);
UPDATE main.trees SET large = 0;
DROP TABLE links;
"""
"""Names without an inode or a directory go, a directory has one name, link counts are counted. ?1: the generation."""


class Rebuild:
    """Works on the tables of *meta*, whose caches are empty."""

    def __init__(self, meta: MetaStore) -> None:
        self._meta = meta
        self._execute = meta.database.connection.execute

    def _script(self, script: str, *values: object) -> None:
        for statement in script.split(";\n"):
            if statement.strip():
                wanted = max((n for n in range(1, len(values) + 1) if f"?{n}" in statement), default=0)
                self._execute(statement, values[:wanted])

    def merge(self, salvaged_file: Path, salvaged: Salvaged, cached: dict[BlockId, int], now_s: int) -> set[int]:
        """Lay what was salvaged over the tree; returns the inodes that are as they were at its last commit.

        *cached*: the good files of the cache.
        """
        self._meta.commit()
        self._execute("ATTACH ? AS old", (str(salvaged_file),))
        self._meta.database.begin()
        self._map_blocks(cached, now_s)
        self._script(_TAKEN)
        whole = not salvaged.gaps & {"inodes", "dentries"}
        self._script(_MERGE, int(whole), self._meta.inodes.generation)
        if whole:
            self._erase_removed()
        trusted = {row[0] for row in self._execute("SELECT inode FROM taken")}
        self._settled_again()
        self._meta.forget_cached()
        self._meta.commit()
        self._execute("DETACH old")
        return trusted

    def _map_blocks(self, cached: dict[BlockId, int], now_s: int) -> None:
        """The table `source`: which of our blocks each old one is, where its bytes are somewhere."""
        from blake3 import blake3

        from syncer.meta.blocktable import CACHED_FILE, CACHED_ROW

        execute = self._execute
        execute("CREATE TEMP TABLE source(old INTEGER PRIMARY KEY, new INTEGER NOT NULL)")
        execute(
            "INSERT INTO source SELECT o.number, m.number FROM old.blocks o JOIN main.blocks m ON m.id = o.id"
            " WHERE m.size = o.size"
        )
        missing = execute(
            "SELECT o.number, o.id, o.size, d.data, t.dirty FROM old.blocks o LEFT JOIN old.block_data d USING (number)"
            " LEFT JOIN old.settling t USING (number) WHERE o.number NOT IN (SELECT old FROM source) GROUP BY o.number"
        ).fetchall()
        for number, block_id, size, data, dirty in missing:
            if not isinstance(block_id, bytes) or not isinstance(size, int):
                continue
            if cached.get(BlockId(block_id)) == size or dirty:
                new = self._meta.blocks.add(BlockId(block_id), size, CACHED_FILE, None, now_s)
            elif isinstance(data, bytes) and len(data) == size <= SMALL_BYTES and blake3(data).digest() == block_id:
                new = self._meta.blocks.add(BlockId(block_id), size, CACHED_ROW, data, now_s)
            else:
                continue
            execute("INSERT INTO source VALUES (?, ?)", (number, new))

    def _erase_removed(self) -> None:
        """What the snapshot had and the database had not any more."""
        removed = self._execute(
            "SELECT inode FROM main.inodes i WHERE inode NOT IN (SELECT inode FROM old.inodes)"
            " AND NOT EXISTS (SELECT 1 FROM main.dentries d WHERE d.inode = i.inode)"
        ).fetchall()
        for (number,) in removed:
            self._meta.database.replay(52, (number,))

    def _settled_again(self) -> None:
        self._execute(
            "INSERT OR IGNORE INTO main.settling SELECT t.dirty, s.new, t.length FROM old.settling t"
            " JOIN source s ON s.old = t.number JOIN main.blocks b ON b.number = s.new WHERE b.cached <> 2"
        )

    def mend(self) -> list[int]:
        """Make the names one tree again; returns inodes that no name leads to, each the top of what hangs below it."""
        self._meta.commit()
        self._meta.database.begin()
        self._script(_MEND, self._meta.inodes.generation)
        self._meta.forget_cached()
        self._meta.commit()
        return self._unreachable()

    def _unreachable(self) -> list[int]:
        lost = self._execute(
            "WITH RECURSIVE reached(inode) AS (SELECT ? UNION SELECT d.inode FROM dentries d JOIN reached r"
            " ON d.parent = r.inode) SELECT inode FROM inodes WHERE inode NOT IN reached ORDER BY inode",
            (ROOT_INODE,),
        ).fetchall()
        left = {row[0] for row in lost}
        tops: list[int] = []
        for number in sorted(left):  # first what has no parent; then, of a circle, its lowest
            if not self._meta.names.parents(number):
                tops.append(number)
                self._drop_below(number, left)
        while left:
            number = min(left)
            self._meta.database.begin()
            self._execute("DELETE FROM dentries WHERE inode = ?", (number,))
            tops.append(number)
            self._drop_below(number, left)
        self._meta.commit()
        return tops

    def _drop_below(self, number: int, left: set[int]) -> None:
        waiting = [number]
        while waiting:
            number = waiting.pop()
            if number in left:
                left.discard(number)
                waiting += [row[0] for row in self._execute("SELECT inode FROM dentries WHERE parent = ?", (number,))]

    def count(self) -> None:
        """Count anew what is kept as totals."""
        self._meta.commit()
        row = self._execute(
            "SELECT ifnull(sum(mode & 61440 <> 16384), 0), ifnull(sum(mode & 61440 = 16384), 0),"
            " ifnull(sum(iif(mode & 61440 <> 16384, size, 0)), 0) FROM inodes WHERE nlink > 0"
        ).fetchone()
        self._meta.inodes.set_totals(Totals(*row))
        self._execute(
            "UPDATE sums SET unique_bytes = (SELECT ifnull(sum(size), 0) FROM blocks WHERE refs > 0),"
            " pack_bytes = (SELECT ifnull(sum(size), 0) FROM packs)"
        )
        self._meta.commit()
