"""What must hold among the tables of meta.db, a query for each rule: its rows are what breaks it.

A row is (inode, name, block, text), the first three NULL where they do not apply; a name without an inode is a file in
DATA. Each query goes over its tables in the order of an index or sorts on the disk, so that memory stays bounded, and
is true of every commit by itself. `dirty_files` and `cache_files` are temporary tables with what lies in the folders
(see check.py).
"""

from dataclasses import dataclass

_TYPE = "(i.mode & 0xF000)"
DIRECTORY, REGULAR, SYMLINK = 0x4000, 0x8000, 0xA000
_IS_DIRECTORY = f"{_TYPE} = {DIRECTORY}"
_NAMES = "(SELECT count(*) FROM dentries d WHERE d.inode = i.inode)"
_HAS_NAME = "EXISTS (SELECT 1 FROM dentries d WHERE d.inode = i.inode)"
_HAS_ENTRIES = "EXISTS (SELECT 1 FROM dentries d WHERE d.parent = i.inode)"
_SUBDIRECTORIES = (
    "(SELECT count(*) FROM dentries d JOIN inodes c ON c.inode = d.inode"
    f" WHERE d.parent = i.inode AND (c.mode & 0xF000) = {DIRECTORY})"
)
LINKS = (
    f"CASE WHEN {_IS_DIRECTORY} THEN iif({_HAS_NAME} OR i.inode = 1 OR {_HAS_ENTRIES}, 2 + {_SUBDIRECTORIES}, 0)"
    f" ELSE {_NAMES} END"
)
"""How many links the inode i should have."""
_SEEN = "e.start < ifnull((SELECT c.start FROM cuts c WHERE c.inode = e.inode), e.start + 1)"
"""Of the extent e: it has not been cut off its file, to be removed soon."""
_END = "iif(i.tail > 0, i.tail_start, i.size)"

INODES_WITH_DATA = (
    "SELECT inode FROM contents UNION SELECT inode FROM symlinks UNION SELECT DISTINCT inode FROM xattrs"
    " UNION SELECT DISTINCT inode FROM extents UNION SELECT DISTINCT inode FROM overlays"
    " UNION SELECT DISTINCT parent FROM dentries"
)
REACHED = (
    "WITH RECURSIVE reached(inode) AS ("
    f"SELECT 1 UNION SELECT i.inode FROM inodes i WHERE {_IS_DIRECTORY} AND NOT EXISTS ("
    "SELECT 1 FROM dentries d JOIN inodes p ON p.inode = d.parent WHERE d.inode = i.inode"
    f" AND (p.mode & 0xF000) = {DIRECTORY})"
    " UNION SELECT d.inode FROM reached r JOIN dentries d ON d.parent = r.inode JOIN inodes i ON i.inode = d.inode"
    f" WHERE {_IS_DIRECTORY})"
)
"""Directories that hang below the root, or below one that has no proper place itself; the others are in a cycle."""
CYCLE = f"i.inode NOT IN (SELECT inode FROM reached) AND {_IS_DIRECTORY}"
UNNAMED = f"i.inode <> 1 AND NOT {_HAS_NAME} AND (i.nlink > 0 OR {_HAS_ENTRIES})"
BAD_NAME = (
    "typeof(name) <> 'blob' OR length(name) NOT BETWEEN 1 AND 255 OR name IN (x'2e', x'2e2e')"
    " OR instr(name, x'2f') OR instr(name, x'00')"
)
BAD_ATTRIBUTES = (
    "mode NOT BETWEEN 0 AND 0xFFFF OR uid NOT BETWEEN 0 AND 0xFFFFFFFF OR gid NOT BETWEEN 0 AND 0xFFFFFFFF"
    " OR size < 0 OR rdev < 0 OR tail < 0 OR overlay < 0 OR content NOT IN (0, 1)"
)
BAD_XATTR = "length(name) NOT BETWEEN 1 AND 255 OR length(value) > 1048576"
NO_PLACE = (
    "(pack IS NOT NULL AND (pack_offset IS NULL OR sealed_bytes IS NULL"
    " OR NOT EXISTS (SELECT 1 FROM packs p WHERE p.number = pack)))"
)
OVERLAPS = (
    "SELECT inode, start, length, ifnull(max(start + length) OVER ("
    "PARTITION BY inode ORDER BY start ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0) AS before FROM extents"
)
USES = "SELECT source AS number, count(*) AS uses FROM extents WHERE source > 0 GROUP BY source"
TOTALS = (
    f"SELECT 'files' AS key, count(*) AS value FROM inodes i WHERE i.nlink > 0 AND NOT {_IS_DIRECTORY}"
    f" UNION ALL SELECT 'directories', count(*) FROM inodes i WHERE i.nlink > 0 AND {_IS_DIRECTORY}"
    f" UNION ALL SELECT 'logical_bytes', ifnull(sum(i.size), 0) FROM inodes i WHERE i.nlink > 0 AND NOT {_IS_DIRECTORY}"
)
SUMS = (
    "SELECT (SELECT ifnull(sum(size), 0) FROM blocks WHERE refs > 0) AS unique_bytes,"
    " (SELECT ifnull(sum(size), 0) FROM packs) AS pack_bytes"
)
DIRTY_NEEDS = (
    "SELECT i.tail AS number, i.inode AS inode, i.size - i.tail_start AS needs FROM inodes i WHERE i.tail > 0"
    " UNION ALL SELECT -source, inode, max(source_offset + length) FROM extents WHERE source < 0 GROUP BY source, inode"
    " UNION ALL SELECT dirty, inode, 0 FROM overlays GROUP BY dirty, inode"
)
"""Dirty files that hold bytes, whose they are, and how long each must be."""

UNUSED = (
    f"f.length > 0 AND f.number NOT IN (SELECT number FROM ({DIRTY_NEEDS}))"
    " AND f.number NOT IN (SELECT dirty FROM settling)"
    " AND f.number NOT IN (SELECT overlay FROM inodes WHERE overlay > 0)"
)
"""Of the dirty file f: it holds bytes, and nothing refers to it."""


@dataclass(frozen=True, slots=True)
class Rule:
    code: str
    query: str
    still: bool = False
    """Holds only of a DATA that is not mounted: a mount has such states on the way to others."""
    lost: bool = False


def _of_inode(code: str, text: str, where: str, source: str = "inodes i", *, lost: bool = False) -> Rule:
    return Rule(code, f"SELECT i.inode, NULL, NULL, {text} FROM {source} WHERE {where}", lost=lost)


def _of_block(code: str, text: str, where: str, source: str = "blocks b", *, lost: bool = False) -> Rule:
    return Rule(code, f"SELECT NULL, NULL, b.number, {text} FROM {source} WHERE {where}", lost=lost)


NAMESPACE = (
    Rule(
        "root-missing",
        "SELECT NULL, NULL, NULL, 'there is no root directory'"
        f" WHERE NOT EXISTS (SELECT 1 FROM inodes i WHERE i.inode = 1 AND {_IS_DIRECTORY})"
        " AND EXISTS (SELECT 1 FROM inodes)",
    ),
    Rule(
        "inode-number",
        "SELECT u.inode, NULL, NULL, 'no inode can have this number' FROM"
        f" ({INODES_WITH_DATA} UNION SELECT inode FROM inodes UNION SELECT inode FROM dentries) u WHERE u.inode <= 0",
    ),
    Rule(
        "inode-missing",
        f"SELECT u.inode, NULL, NULL, 'it has bytes, entries or attributes and is no inode' FROM ({INODES_WITH_DATA}) u"
        " LEFT JOIN inodes i ON i.inode = u.inode WHERE i.inode IS NULL",
    ),
    _of_inode(
        "inode-type", "printf('mode %o is of no kind of file', i.mode)",
        f"{_TYPE} NOT IN (0x1000, 0x2000, 0x4000, 0x6000, 0x8000, 0xA000, 0xC000)",
    ),
    Rule(
        "inode-range",
        f"SELECT inode, NULL, NULL, 'attributes that no file can have' FROM inodes WHERE {BAD_ATTRIBUTES}",
    ),
    Rule(
        "name-dangling",
        "SELECT d.parent, d.name, NULL, printf('the name of inode %d, which is not there', d.inode) FROM dentries d"
        " WHERE NOT EXISTS (SELECT 1 FROM inodes i WHERE i.inode = d.inode)",
        lost=True,
    ),
    Rule("name-invalid", f"SELECT parent, name, NULL, 'no file can have this name' FROM dentries WHERE {BAD_NAME}"),
    Rule(
        "parent-no-directory",
        "SELECT d.inode, NULL, NULL, printf('its name is in inode %d, which is no directory', d.parent)"
        f" FROM dentries d JOIN inodes i ON i.inode = d.parent WHERE NOT {_IS_DIRECTORY}",
    ),
    _of_inode(
        "directory-names", f"printf('a directory with %d names', {_NAMES})",
        f"{_IS_DIRECTORY} AND {_NAMES} > (i.inode <> 1)",
    ),
    Rule("directory-cycle", f"{REACHED} SELECT i.inode, NULL, NULL, 'no path leads to it' FROM inodes i WHERE {CYCLE}"),
    _of_inode("inode-unnamed", "'no directory has a name for it'", UNNAMED),
    _of_inode(
        "link-count", f"printf('%d links instead of %d', i.nlink, {LINKS})", f"i.nlink <> {LINKS} AND NOT ({UNNAMED})",
    ),
    Rule(
        "totals",
        "SELECT NULL, NULL, NULL, printf('%s is %d instead of %d', t.key, ifnull(s.value, 0), t.value)"
        f" FROM ({TOTALS}) t LEFT JOIN state s ON s.key = t.key WHERE ifnull(s.value, 0) <> t.value",
    ),
)  # fmt: skip

CONTENT = (
    _of_inode(
        "symlink-target", "'a symlink without a target'",
        f"{_TYPE} = {SYMLINK} AND NOT EXISTS (SELECT 1 FROM symlinks s WHERE s.inode = i.inode"
        " AND length(s.target) BETWEEN 1 AND 4095)", lost=True,
    ),
    _of_inode(
        "symlink-size", "printf('size %d, the target has %d bytes', i.size, length(s.target))",
        f"{_TYPE} = {SYMLINK} AND i.size <> length(s.target)", "symlinks s JOIN inodes i ON i.inode = s.inode",
    ),
    _of_inode(
        "content-missing", "printf('its %d bytes are not there', i.size)",
        "i.content = 1 AND NOT EXISTS (SELECT 1 FROM contents c WHERE c.inode = i.inode)", lost=True,
    ),
    _of_inode(
        "content-stray", "'it has a content that it should not have'",
        "i.content <> 1", "contents c JOIN inodes i ON i.inode = c.inode",
    ),
    _of_inode(
        "content-size", "printf('size %d, the content has %d bytes', i.size, length(c.data))",
        "i.content = 1 AND i.size <> length(c.data)", "contents c JOIN inodes i ON i.inode = c.inode",
    ),
    _of_inode(
        "form", "'it has extents, a tail or an overlay that it cannot have'",
        f"(i.content = 1 OR {_TYPE} <> {REGULAR}) AND (i.tail > 0 OR i.overlay > 0"
        f" OR EXISTS (SELECT 1 FROM extents e WHERE e.inode = i.inode AND {_SEEN})"
        " OR EXISTS (SELECT 1 FROM overlays o WHERE o.inode = i.inode))",
    ),
    _of_inode(
        "tail-range", "printf('a tail from %d on, size %d', i.tail_start, i.size)",
        "i.tail > 0 AND NOT i.tail_start BETWEEN 0 AND i.size",
    ),
    Rule(
        "xattr-invalid",
        f"SELECT inode, NULL, NULL, 'an attribute that no file can have' FROM xattrs WHERE {BAD_XATTR}",
    ),
    Rule(
        "extent-invalid",
        "SELECT inode, NULL, NULL, printf('extent %d+%d from %d+%d', start, length, source, source_offset) FROM extents"
        " WHERE length <= 0 OR start < 0 OR source = 0 OR source_offset < 0",
        lost=True,
    ),
    Rule(
        "extent-overlap",
        f"SELECT inode, NULL, NULL, printf('extent %d+%d overlaps the one before', start, length) FROM ({OVERLAPS})"
        " WHERE start < before",
    ),
    _of_inode(
        "extent-beyond", f"printf('extent %d+%d reaches beyond %d', e.start, e.length, {_END})",
        f"i.content = 0 AND e.start + e.length > {_END} AND {_SEEN}", "extents e JOIN inodes i ON i.inode = e.inode",
    ),
    Rule(
        "extent-block",
        "SELECT e.inode, NULL, NULL, printf('bytes %d+%d are of block %d, which is not there', start, length, source)"
        " FROM extents e WHERE source > 0 AND NOT EXISTS (SELECT 1 FROM blocks b WHERE b.number = e.source)",
        lost=True,
    ),
    Rule(
        "extent-in-block",
        "SELECT e.inode, NULL, NULL, printf('bytes %d+%d are beyond the end of block %d', start, length, source)"
        " FROM extents e JOIN blocks b ON b.number = e.source WHERE e.source_offset + e.length > b.size",
        lost=True,
    ),
    _of_inode(
        "overlay-newer", "printf('overlay %d is newer than %d, which takes writes', o.dirty, i.overlay)",
        "i.overlay > 0 AND o.dirty > i.overlay",
        "(SELECT DISTINCT dirty, inode FROM overlays) o JOIN inodes i ON i.inode = o.inode",
    ),
)  # fmt: skip

BLOCKS = (
    _of_block(
        "block-refs", "printf('%d references instead of %d', b.refs, ifnull(u.uses, 0))",
        "b.refs <> ifnull(u.uses, 0)", f"blocks b LEFT JOIN ({USES}) u ON u.number = b.number",
    ),
    Rule(
        "block-leaked",
        "SELECT NULL, NULL, number, 'nothing needs it, and it stays' FROM blocks WHERE pack IS NULL AND refs = 0"
        " AND number NOT IN (SELECT number FROM released)",
        still=True,
    ),
    Rule(
        "block-place",
        f"SELECT NULL, NULL, number, 'its place on the remote is not known' FROM blocks WHERE {NO_PLACE}",
    ),
    _of_block(
        "block-nowhere", "'it is neither here nor on the remote'",
        "b.pack IS NULL AND b.refs > 0 AND (b.cached = 0 OR b.cached = 2 AND"
        " NOT EXISTS (SELECT 1 FROM block_data d WHERE d.number = b.number))", lost=True,
    ),
    _of_block("block-cached", "printf('cached in no known way (%s)', b.cached)", "b.cached NOT IN (0, 1, 2)"),
    _of_block(
        "row-missing", "'the row that should hold it is not there'",
        "b.cached = 2 AND b.pack IS NOT NULL AND NOT EXISTS (SELECT 1 FROM block_data d WHERE d.number = b.number)",
    ),
    _of_block(
        "row-size", "printf('%d bytes of %d', length(d.data), b.size)",
        "b.cached = 2 AND length(d.data) <> b.size", "block_data d JOIN blocks b ON b.number = d.number",
    ),
    Rule(
        "row-stray",
        "SELECT NULL, NULL, d.number, 'the bytes of a block that does not count as a row' FROM block_data d"
        " LEFT JOIN blocks b ON b.number = d.number WHERE b.cached IS NOT 2",
    ),
    Rule(
        "sums",
        "SELECT NULL, NULL, NULL, printf('%d unique bytes and %d in packs instead of %d and %d',"
        " s.unique_bytes, s.pack_bytes, t.unique_bytes, t.pack_bytes)"
        f" FROM ({SUMS}) t LEFT JOIN sums s ON 1"
        " WHERE s.unique_bytes IS NOT t.unique_bytes OR s.pack_bytes IS NOT t.pack_bytes",
    ),
    Rule(
        "tree-stray",
        "SELECT NULL, NULL, NULL, printf('the published tree of inode %d, which is not there', t.inode) FROM trees t"
        " WHERE NOT EXISTS (SELECT 1 FROM inodes i WHERE i.inode = t.inode)",
    ),
)  # fmt: skip

FILES = (
    _of_block(
        "cache-missing", "'its file in the cache is not there'",
        "b.cached = 1 AND f.id IS NULL AND b.number NOT IN ("
        "SELECT s.number FROM settling s JOIN dirty_files d ON d.number = s.dirty)",
        "blocks b LEFT JOIN cache_files f ON f.id = b.id",
    ),
    _of_block(
        "cache-size", "printf('its file in the cache has %d bytes of %d', f.size, b.size)",
        "b.cached = 1 AND f.size <> b.size", "cache_files f JOIN blocks b ON b.id = f.id",
    ),
    Rule(
        "cache-unknown",
        "SELECT NULL, 'cache/' || substr(lower(hex(f.id)), 1, 2) || '/' || lower(hex(f.id)), NULL,"
        " 'nothing knows this file' FROM cache_files f LEFT JOIN blocks b ON b.id = f.id"
        " WHERE b.cached IS NOT 1 AND f.id NOT IN (SELECT id FROM deleting)",
        still=True,
    ),
    Rule(
        "dirty-missing",
        f"SELECT n.inode, NULL, NULL, printf('dirty/%d, which holds bytes of it, is not there', n.number)"
        f" FROM ({DIRTY_NEEDS}) n LEFT JOIN dirty_files f ON f.number = n.number WHERE f.number IS NULL",
        lost=True,
    ),
    Rule(
        "dirty-short",
        "SELECT n.inode, NULL, NULL, printf('dirty/%d has %d bytes of %d', n.number, f.length, n.needs)"
        f" FROM ({DIRTY_NEEDS}) n JOIN dirty_files f ON f.number = n.number WHERE f.length < n.needs",
        lost=True,
    ),
    Rule(
        "dirty-unknown",
        "SELECT NULL, 'dirty/' || f.number, NULL, 'nothing knows this file' FROM dirty_files f"
        f" WHERE {UNUSED}",
        still=True,
    ),
)  # fmt: skip
