"""The tables of meta.db. Made and migrated here, with sqlite-utils; used only by the other modules of this package.

Times are nanoseconds since 1970 unless a name says otherwise; sizes are bytes. Ids are the 32 bytes of a BLAKE3
hash. A *source* says where the bytes of an extent are: n > 0 is the block number n, n < 0 the dirty file -n.
"""

import sqlite3

VERSION = 4

_HISTORY = """
-- What the nodes of trees name, by the numbers of blocks. tree: 1 a node, 0 a block of files. What a node names never
-- changes; what is lost here is read from the node again.
CREATE TABLE node_refs(
    node INTEGER, block INTEGER, tree INTEGER NOT NULL, PRIMARY KEY(node, block)) WITHOUT ROWID;
-- Nodes of which all that they name is in node_refs.
CREATE TABLE read_nodes(node INTEGER PRIMARY KEY);
CREATE TRIGGER nodes_removed AFTER DELETE ON blocks BEGIN
    DELETE FROM node_refs WHERE node = old.number;
    DELETE FROM read_nodes WHERE node = old.number;
END;
-- Objects that are to be deleted from the remote; nothing here relies on them any more. pack: the id of a pack.
-- gone: 1 once that is done. The ids of deleted packs stay until the next prune: no pack may be put under such a key.
CREATE TABLE doomed(key TEXT PRIMARY KEY, pack BLOB, gone INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX doomed_pack ON doomed(pack) WHERE pack IS NOT NULL;
-- Packs on the remote that nothing knows. seq: the number of the snapshot that came next when each was first seen.
CREATE TABLE strays(pack BLOB PRIMARY KEY, seq INTEGER NOT NULL) WITHOUT ROWID;
"""
"""New in version 4."""

STATEMENTS = (
    """
-- Single values: journal position, counters, totals, the repository and peer this DATA belongs to.
CREATE TABLE state(key TEXT PRIMARY KEY, value) WITHOUT ROWID;

-- nlink 0 is an orphan: unlinked, still in use; removed when nobody uses it, at the latest at the next start.
-- size covers the tail: the tail holds [tail_start, size).
-- tail: dirty file number of the growing tail, 0 without one. overlay: dirty file that takes writes, 0 without one.
-- content: 1 when the whole content is a row of `contents` (then no extents, no tail, no overlay).
CREATE TABLE inodes(
    inode INTEGER PRIMARY KEY, mode INTEGER NOT NULL, uid INTEGER NOT NULL, gid INTEGER NOT NULL,
    nlink INTEGER NOT NULL, size INTEGER NOT NULL, atime_ns INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
    ctime_ns INTEGER NOT NULL, rdev INTEGER NOT NULL, tail INTEGER NOT NULL, tail_start INTEGER NOT NULL,
    overlay INTEGER NOT NULL, content INTEGER NOT NULL);
CREATE INDEX inodes_orphan ON inodes(inode) WHERE nlink = 0;
CREATE INDEX inodes_unsealed ON inodes(inode) WHERE content = 1 OR tail > 0 OR overlay > 0;

-- cookie: position for readdir, unique and never reused, so that a directory can change while it is read.
CREATE TABLE dentries(
    cookie INTEGER PRIMARY KEY AUTOINCREMENT, parent INTEGER NOT NULL, name BLOB NOT NULL, inode INTEGER NOT NULL);
CREATE UNIQUE INDEX dentries_name ON dentries(parent, name);
CREATE INDEX dentries_parent ON dentries(parent);
CREATE INDEX dentries_inode ON dentries(inode);

CREATE TABLE symlinks(inode INTEGER PRIMARY KEY, target BLOB NOT NULL);
CREATE TABLE xattrs(inode INTEGER, name BLOB, value BLOB NOT NULL, PRIMARY KEY(inode, name)) WITHOUT ROWID;

-- Contents up to SMALL_BYTES that are not sealed yet.
CREATE TABLE contents(inode INTEGER PRIMARY KEY, data BLOB NOT NULL);

-- INVARIANT: the extents of an inode do not overlap. What neither they nor an overlay covers, nor the tail, is a hole.
CREATE TABLE extents(
    inode INTEGER, start INTEGER, length INTEGER NOT NULL, source INTEGER NOT NULL, source_offset INTEGER NOT NULL,
    PRIMARY KEY(inode, start)) WITHOUT ROWID;
CREATE INDEX extents_dirty ON extents(inode, start) WHERE source < 0;
-- Files cut off, or being erased, that had more extents than one operation removes: those from start on are in no file
-- any more, and go a few at a time. INVARIANT: the file does not reach beyond start, and none of them is dirty.
CREATE TABLE cuts(inode INTEGER PRIMARY KEY, start INTEGER NOT NULL);
-- What an overlay holds of a region of its file, over the extents. bounds: begin and end of each range in turn, as an
-- array of offsets in the region (msgpack). INVARIANT: of a region without a range there is no row.
CREATE TABLE overlays(
    dirty INTEGER, region INTEGER, inode INTEGER NOT NULL, bounds BLOB NOT NULL,
    PRIMARY KEY(dirty, region)) WITHOUT ROWID;

-- refs: extents that name the block. pack NULL: not on the remote. cached: 0 no, 1 as a file, 2 as a row of
-- block_data. used: last use in seconds. born: when it was sealed, in seconds; the age in the upload queue.
-- kind: 0 content, 1 tree. Numbers are never reused: open files and a running snapshot go by them.
CREATE TABLE blocks(
    number INTEGER PRIMARY KEY AUTOINCREMENT, id BLOB NOT NULL UNIQUE, size INTEGER NOT NULL, refs INTEGER NOT NULL,
    kind INTEGER NOT NULL, pack INTEGER, pack_offset INTEGER, sealed_bytes INTEGER, cached INTEGER NOT NULL,
    used INTEGER NOT NULL, born INTEGER NOT NULL);
CREATE INDEX blocks_pending ON blocks(number) WHERE pack IS NULL;
-- INVARIANT: eviction reads this index only, so a block that is not on the remote cannot be evicted.
CREATE INDEX blocks_evictable ON blocks(cached, used) WHERE cached > 0 AND pack IS NOT NULL;
CREATE TABLE block_data(number INTEGER PRIMARY KEY, data BLOB NOT NULL);
-- Blocks whose last reference went; commit decides what becomes of them.
CREATE TABLE released(number INTEGER PRIMARY KEY);
-- A tail that became a block: dirty file to be cut to its length and moved into the cache. Gone once done.
CREATE TABLE settling(dirty INTEGER PRIMARY KEY, number INTEGER NOT NULL, length INTEGER NOT NULL);
-- Cache files about to be deleted. Gone once done; what a crash leaves here is done at the next start.
CREATE TABLE deleting(id BLOB PRIMARY KEY) WITHOUT ROWID;
-- Files of the cache, to be added up at the start.
CREATE INDEX blocks_files ON blocks(cached, size, pack) WHERE cached = 1;
-- One row. unique_bytes: of the blocks that extents name. pack_bytes: of all packs.
CREATE TABLE sums(unique_bytes INTEGER NOT NULL, pack_bytes INTEGER NOT NULL);
CREATE TRIGGER blocks_named AFTER UPDATE OF refs ON blocks WHEN (old.refs > 0) <> (new.refs > 0) BEGIN
    UPDATE sums SET unique_bytes = unique_bytes + iif(new.refs > 0, new.size, -new.size);
END;
CREATE TRIGGER extents_added AFTER INSERT ON extents WHEN new.source > 0 BEGIN
    UPDATE blocks SET refs = refs + 1 WHERE number = new.source;
END;
CREATE TRIGGER extents_removed AFTER DELETE ON extents WHEN old.source > 0 BEGIN
    UPDATE blocks SET refs = refs - 1 WHERE number = old.source;
    INSERT OR IGNORE INTO released SELECT number FROM blocks WHERE number = old.source AND refs = 0;
END;

-- indexed: sequence number of our index object that lists the pack, NULL while none does.
CREATE TABLE packs(
    number INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, size INTEGER NOT NULL, kind INTEGER NOT NULL, indexed INTEGER);
CREATE INDEX packs_unindexed ON packs(number) WHERE indexed IS NULL;
CREATE INDEX blocks_pack ON blocks(pack) WHERE pack IS NOT NULL;
CREATE TRIGGER packs_added AFTER INSERT ON packs BEGIN UPDATE sums SET pack_bytes = pack_bytes + new.size; END;
CREATE TRIGGER packs_removed AFTER DELETE ON packs BEGIN UPDATE sums SET pack_bytes = pack_bytes - old.size; END;

-- What the next snapshot must look at: inodes whose tree entry may differ, and names that came or went in large
-- directories. In others the new names of directories that moved: no snapshot has what is below them at its path.
-- generation: the snapshot period of the change.
CREATE TABLE changed(inode INTEGER PRIMARY KEY, generation INTEGER NOT NULL);
CREATE TABLE changed_names(
    parent INTEGER, name BLOB, generation INTEGER NOT NULL, PRIMARY KEY(parent, name)) WITHOUT ROWID;
-- Tree of each directory as last published, and of each file with many extents. large: a directory with so many
-- entries that it is published by its changes.
CREATE TABLE trees(inode INTEGER PRIMARY KEY, id BLOB NOT NULL, large INTEGER NOT NULL);
CREATE INDEX trees_large ON trees(inode) WHERE large = 1;
-- Where extents came or went in files with a tree: they began in the 64 MiB from begin on, and reached up to reach.
-- INVARIANT: outside of these ranges the extents of a file are those of its tree.
CREATE TABLE changed_extents(
    inode INTEGER, begin INTEGER, reach INTEGER NOT NULL, generation INTEGER NOT NULL,
    PRIMARY KEY(inode, begin)) WITHOUT ROWID;
CREATE TRIGGER trees_removed AFTER DELETE ON trees BEGIN DELETE FROM changed_extents WHERE inode = old.inode; END;
CREATE TRIGGER extents_came AFTER INSERT ON extents WHEN EXISTS (SELECT 1 FROM trees WHERE inode = new.inode) BEGIN
    INSERT INTO changed_extents SELECT new.inode, new.start >> 26 << 26, new.start + new.length, ifnull(max(value), 0)
        FROM state WHERE key = 'generation'
    ON CONFLICT DO UPDATE SET reach = max(reach, excluded.reach), generation = excluded.generation;
END;
CREATE TRIGGER extents_went AFTER DELETE ON extents WHEN EXISTS (SELECT 1 FROM trees WHERE inode = old.inode) BEGIN
    INSERT INTO changed_extents SELECT old.inode, old.start >> 26 << 26, old.start + old.length, ifnull(max(value), 0)
        FROM state WHERE key = 'generation'
    ON CONFLICT DO UPDATE SET reach = max(reach, excluded.reach), generation = excluded.generation;
END;
-- Blocks of which the remote's copy is bad or gone, and of which there is no copy here.
CREATE TABLE damaged(number INTEGER PRIMARY KEY);
-- Snapshots of every peer that are known here; record: the object as it is on the remote.
CREATE TABLE snapshots(
    peer INTEGER, seq INTEGER, root BLOB NOT NULL, time_ns INTEGER NOT NULL, record BLOB NOT NULL,
    PRIMARY KEY(peer, seq)) WITHOUT ROWID;
"""
    + _HISTORY
)


_STEPS = {
    2: (
        "CREATE TABLE cuts(inode INTEGER PRIMARY KEY, start INTEGER NOT NULL)",
        "CREATE TABLE IF NOT EXISTS damaged(number INTEGER PRIMARY KEY)",
    ),
    3: tuple(f"CREATE {text}" for text in _HISTORY.partition("CREATE ")[2].split("\nCREATE ")),
}
"""What makes the next version of each one that is still opened."""


def migrate(connection: sqlite3.Connection) -> int:
    """Bring the tables up to VERSION where that is known how; returns the version they have then, 0 without one."""
    row = connection.execute("SELECT value FROM state WHERE key = 'schema'").fetchone()
    version = int(row[0]) if row else 0
    while version in _STEPS:
        connection.execute("BEGIN IMMEDIATE")
        for statement in _STEPS[version]:
            connection.execute(statement)
        version += 1
        connection.execute("UPDATE state SET value = ? WHERE key = 'schema'", (version,))
        connection.execute("COMMIT")
    return version


def create(connection: sqlite3.Connection) -> None:
    """Make all tables in an empty database. auto_vacuum must be set before the first table is."""
    import sqlite_utils

    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    database = sqlite_utils.Database(connection, recursive_triggers=False)  # as in every later run
    connection.execute("PRAGMA journal_mode = WAL")
    connection.executescript(STATEMENTS)
    database.table("state").insert({"key": "schema", "value": VERSION}, pk="key")
    database.table("sums").insert({"unique_bytes": 0, "pack_bytes": 0})
