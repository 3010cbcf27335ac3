"""One way to damage a DATA for each kind of finding: what is done, what must be found, and which files may suffer."""

import os
from collections.abc import Callable
from dataclasses import dataclass

from tests.support.check_world import CheckWorld

Damage = Callable[[CheckWorld], object]


@dataclass(frozen=True, slots=True)
class Case:
    """*suffer*: paths that need not be as before; all others must. *percent*: bytes must be read to see it."""

    name: str
    damage: Damage
    codes: tuple[str, ...]
    suffer: tuple[str, ...] = ()
    percent: float = 0.0


def _sql(name: str, codes: str, *statements: str, suffer: tuple[str, ...] = (), percent: float = 0.0) -> Case:
    return Case(name, lambda world: world.change(*statements), tuple(codes.split()), suffer, percent)


def _inode(name: str) -> str:
    return f"(SELECT inode FROM dentries WHERE name = CAST('{name}' AS BLOB))"


def _block(name: str) -> str:
    return f"(SELECT min(source) FROM extents WHERE inode = {_inode(name)} AND source > 0)"


S0, S1, DEEP, DIR = _inode("s0"), _inode("s1"), _inode("deep"), _inode("dir")
SMALL, PENDING, CHANGED, HOLES = _inode("small"), _inode("pending"), _inode("changed"), _inode("holes")
EVICTED, FROZEN, SYMLINK, LINKED = _inode("evicted"), _inode("frozen"), _inode("symlink"), _inode("linked")
NOBODY = 1 << 40 | 12345
S_FILES = tuple(f"/dir/deep/s{count}" for count in range(20))
BELOW_DIR = (*S_FILES, "/dir/link")

NAMESPACE = [
    _sql("links too many", "link-count", f"UPDATE inodes SET nlink = 7 WHERE inode = {S0}"),
    _sql("links too few", "link-count", f"UPDATE inodes SET nlink = 1 WHERE inode = {LINKED}"),
    _sql("links of a directory", "link-count", f"UPDATE inodes SET nlink = 2 WHERE inode = {DIR}"),
    _sql("a file without a name", "inode-unnamed", f"DELETE FROM dentries WHERE inode = {S0}", suffer=(S_FILES[0],)),
    _sql(
        "a directory without a name", "inode-unnamed link-count", f"DELETE FROM dentries WHERE inode = {DEEP}",
        suffer=S_FILES,
    ),
    _sql(
        "a name of nothing", "name-dangling",
        f"INSERT INTO dentries(parent, name, inode) VALUES (1, x'6e6f', {NOBODY})",
    ),
    _sql("a file whose inode is gone", "inode-missing name-dangling totals", f"DELETE FROM inodes WHERE inode = {S0}"),
    _sql("a content whose inode is gone", "inode-missing name-dangling totals",
         f"DELETE FROM inodes WHERE inode = {SMALL}"),
    _sql("a directory whose inode is gone", "inode-missing name-dangling link-count tree-stray totals",
         f"DELETE FROM inodes WHERE inode = {DEEP}"),
    _sql("no root", "root-missing inode-missing tree-stray totals", "DELETE FROM inodes WHERE inode = 1"),
    _sql("a type that is none", "inode-type", f"UPDATE inodes SET mode = 420 WHERE inode = {SYMLINK}"),
    _sql("a type that is none, of a directory", "inode-type parent-no-directory link-count totals",
         f"UPDATE inodes SET mode = 493 WHERE inode = {DEEP}"),
    _sql(
        "a slash in a name", "name-invalid", f"UPDATE dentries SET name = x'612f62' WHERE inode = {S0}",
        suffer=(S_FILES[0],),
    ),
    _sql("an empty name", "name-invalid", f"UPDATE dentries SET name = x'' WHERE inode = {S0}", suffer=(S_FILES[0],)),
    _sql(
        "a name in a file", "parent-no-directory", f"UPDATE dentries SET parent = {SMALL} WHERE inode = {S0}",
        suffer=(S_FILES[0],),
    ),
    _sql("a directory with two names", "directory-names link-count",
         f"INSERT INTO dentries(parent, name, inode) VALUES (1, x'7477', {DEEP})"),
    _sql("a name of the root", "directory-names link-count",
         f"INSERT INTO dentries(parent, name, inode) VALUES ({DEEP}, x'7477', 1)"),
    _sql(
        "a cycle", "directory-cycle link-count", f"UPDATE dentries SET parent = {DEEP} WHERE inode = {DIR}",
        suffer=BELOW_DIR,
    ),
    _sql("a number that is none", "inode-number inode-missing inode-unnamed name-dangling",
         "UPDATE inodes SET inode = -4"
         f" WHERE inode = {LINKED}", suffer=("/linked", "/dir/link")),
    _sql("an impossible value", "column", f"UPDATE inodes SET mtime_ns = x'6162' WHERE inode = {S0}"),
    _sql("attributes that cannot be", "inode-range", f"UPDATE inodes SET uid = -1 WHERE inode = {S0}"),
    _sql("totals", "totals", "UPDATE state SET value = value + 3 WHERE key = 'logical_bytes'"),
]  # fmt: skip

CONTENT = [
    _sql("no target", "symlink-target", f"DELETE FROM symlinks WHERE inode = {SYMLINK}", suffer=("/symlink",)),
    _sql("an attribute without a name", "xattr-invalid", "UPDATE xattrs SET name = x''"),
    _sql("target size", "symlink-size totals", f"UPDATE inodes SET size = 3 WHERE inode = {SYMLINK}"),
    _sql("no content", "content-missing", f"DELETE FROM contents WHERE inode = {SMALL}", suffer=("/small",)),
    _sql("a content that is none", "content-stray", f"UPDATE inodes SET content = 0 WHERE inode = {SMALL}"),
    _sql("a content of a large file", "content-stray", f"INSERT INTO contents VALUES ({HOLES}, x'616263')"),
    _sql("content size", "content-size totals", f"UPDATE inodes SET size = 3 WHERE inode = {SMALL}"),
    _sql("two forms", "form", f"UPDATE extents SET inode = {SMALL} WHERE inode = {S0}", suffer=(S_FILES[0],)),
    _sql("tail before its file", "tail-range extent-beyond dirty-short",
         f"UPDATE inodes SET tail_start = -5 WHERE inode = {PENDING}", suffer=("/pending",)),
    _sql("an extent of nothing", "extent-invalid block-refs", f"UPDATE extents SET source = 0 WHERE inode = {S0}",
         suffer=(S_FILES[0],)),
    _sql("extents over each other", "extent-overlap",
         f"UPDATE extents SET start = 60000 WHERE inode = {HOLES} AND start = 400000", suffer=("/holes",)),
    _sql("an extent beyond the end", "extent-beyond totals", f"UPDATE inodes SET size = 10 WHERE inode = {S0}"),
    _sql("an extent of no block", "extent-block block-refs", f"UPDATE extents SET source = 99999 WHERE inode = {S0}",
         suffer=(S_FILES[0],)),
    _sql("an extent behind its block", "extent-in-block",
         f"UPDATE extents SET source_offset = 5 WHERE inode = {S0}", suffer=(S_FILES[0],)),
    _sql("ranges that are none", "overlay-bounds", "UPDATE overlays SET bounds = x'93010203'", suffer=("/changed",)),
    _sql("ranges beyond the end", "overlay-beyond extent-beyond totals",
         f"UPDATE inodes SET size = 290000 WHERE inode = {CHANGED}"),
    _sql("an overlay of the past", "overlay-newer", f"UPDATE inodes SET overlay = 1 WHERE inode = {CHANGED}"),
    Case("an overlay of two files", lambda world: world.change(
        f"INSERT INTO overlays SELECT dirty, region - 1, {HOLES}, bounds FROM overlays"), ("overlay-owner",)),
]  # fmt: skip

BLOCKS = [
    _sql("references", "block-refs", f"UPDATE blocks SET refs = 5 WHERE number = {_block('s0')}"),
    _sql("a block nobody needs", "block-leaked", "INSERT INTO blocks(id, size, refs, kind, cached, used, born)"
         " VALUES (randomblob(32), 5, 0, 0, 0, 0, 0)"),
    _sql("no pack", "block-place", f"UPDATE blocks SET pack = 999 WHERE number = {_block('linked')}"),
    _sql("nowhere", "block-nowhere", f"UPDATE blocks SET pack = NULL WHERE number = {_block('evicted')}",
         suffer=("/evicted",)),
    _sql("a wrong size", "cache-size extent-in-block sums",
         f"UPDATE blocks SET size = 9 WHERE number = {_block('linked')}"),
    _sql("cached somehow", "block-cached", f"UPDATE blocks SET cached = 9 WHERE number = {_block('evicted')}"),
    _sql("no row", "row-missing", f"DELETE FROM block_data WHERE number = {_block('row')}"),
    _sql("a short row", "row-size", f"UPDATE block_data SET data = x'00' WHERE number = {_block('row')}"),
    _sql("a wrong row", "row-damaged", f"UPDATE block_data SET data = randomblob(5000) WHERE number = {_block('row')}",
         percent=100.0),
    _sql("a row that counts as none", "row-stray", f"UPDATE blocks SET cached = 0 WHERE number = {_block('row')}"),
    _sql("a row of no block", "row-stray", "INSERT INTO block_data VALUES (88888, x'6162')"),
    _sql("sums", "sums", "UPDATE sums SET pack_bytes = pack_bytes - 1"),
    _sql("a tree of nothing", "tree-stray", f"INSERT INTO trees VALUES ({NOBODY}, randomblob(32), 0)"),
]  # fmt: skip


def _cut_file(where: str, length: int) -> Damage:
    return lambda world: os.truncate(world.block_file(where), length)


def _flip_file(where: str) -> Damage:
    def flip(world: CheckWorld) -> None:
        path = world.block_file(where)
        held = bytearray(path.read_bytes())
        held[len(held) // 2] ^= 1
        path.write_bytes(held)

    return flip


def _dirty(world: CheckWorld, query: str) -> str:
    return str(world.data / "dirty" / str(world.value(query)))


TAIL = "SELECT tail FROM inodes WHERE tail > 0"
OVERLAY = "SELECT dirty FROM overlays"
FROZEN_FILE = "SELECT -source FROM extents WHERE source < 0"
FILES = [
    Case("a cache file gone", lambda w: w.block_file("pack IS NOT NULL").unlink(), ("cache-missing",)),
    Case("the only copy gone", lambda w: w.block_file("pack IS NULL").unlink(), ("cache-missing",), ("/pending",)),
    Case("a short cache file", _cut_file("pack IS NOT NULL", 5), ("cache-size",)),
    Case("the only copy short", _cut_file("pack IS NULL", 5), ("cache-size",), ("/pending",)),
    Case("a wrong cache file", _flip_file("pack IS NOT NULL"), ("cache-damaged",), percent=100.0),
    Case("the only copy wrong", _flip_file("pack IS NULL"), ("cache-damaged",), ("/pending",), 100.0),
    _sql("a cache file that counts as none", "cache-unknown",
         "UPDATE blocks SET cached = 0 WHERE number = (SELECT min(number) FROM blocks WHERE cached = 1)"),
    Case("an unknown cache file", lambda w: (w.data / "cache/ab" / ("ab" * 32)).write_bytes(b"?"),
         ("cache-unknown",)),
    Case("a stranger in the cache", lambda w: (w.data / "cache/ab/mine").write_bytes(b"?"), ("file-unknown",)),
    Case("an unknown dirty file", lambda w: (w.data / "dirty/4711").write_bytes(b"?"), ("dirty-unknown",)),
    Case("a tail gone", lambda w: os.unlink(_dirty(w, TAIL)), ("dirty-missing",), ("/pending",)),
    Case("a short tail", lambda w: os.truncate(_dirty(w, TAIL), 9), ("dirty-short",), ("/pending",)),
    Case("an overlay gone", lambda w: os.unlink(_dirty(w, OVERLAY)), ("dirty-missing",), ("/changed",)),
    Case("a short overlay", lambda w: os.truncate(_dirty(w, OVERLAY), 350_000), ("dirty-short",), ("/changed",)),
    Case("a frozen file gone", lambda w: os.unlink(_dirty(w, FROZEN_FILE)), ("dirty-missing",), ("/frozen",)),
    Case("a short frozen file", lambda w: os.truncate(_dirty(w, FROZEN_FILE), 9), ("dirty-short",), ("/frozen",)),
]  # fmt: skip

LOCAL = [*NAMESPACE, *CONTENT, *BLOCKS, *FILES]
