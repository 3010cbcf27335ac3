"""What a recovery finds below cache/ and dirty/: good blocks, bytes that a file still needs, and bytes of nobody known.

Used while nobody has DATA open. Nothing is deleted or moved here: what is of no use is listed, for the caller to keep.
"""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from blake3 import blake3

from syncer.disk import data_ranges
from syncer.meta.blocktable import CACHED_FILE, block_file, block_of_file
from syncer.meta.extent import DirtyNumber, Extent
from syncer.meta.inodes import Inode
from syncer.meta.store import MetaStore
from syncer.values import FILE_END_MAX, ROOT_INODE, BlockId, InodeNumber

FOUND_NAME = b"lost+found"
_READ_BYTES = 4 * 1024 * 1024


def good_blocks(cache: Path) -> tuple[dict[BlockId, int], list[Path]]:
    """(size of each file below cache/ that is the block it is called, the other files)."""
    good: dict[BlockId, int] = {}
    bad: list[Path] = []
    for folder in sorted(path for path in cache.iterdir() if path.is_dir()):
        for path in sorted(folder.iterdir()):
            block_id = block_of_file(folder.name, path.name)
            if block_id is not None and hash_of(path) == block_id:
                good[block_id] = path.stat().st_size
            else:
                bad.append(path)
    return good, bad


def hash_of(path: Path, length: int | None = None) -> bytes | None:
    """BLAKE3 of the file's first *length* bytes, or of all of it; None when it does not have them."""
    hasher = blake3()
    left = FILE_END_MAX if length is None else length
    try:
        with open(path, "rb") as file:
            while left and (data := file.read(min(left, _READ_BYTES))):
                hasher.update(data)
                left -= len(data)
    except OSError:
        return None
    return hasher.digest() if length is None or not left else None


@dataclass(slots=True)
class Placed:
    """How many files went to lost+found, and what was lost: names for people."""

    found: int = 0
    lost: list[str] = field(default_factory=list)
    unused: list[Path] = field(default_factory=list)


class Leftovers:
    """Fits the tables of *meta* and the files of DATA to each other, once the tables are as whole as they can be."""

    def __init__(self, meta: MetaStore, data: Path, good: dict[BlockId, int], uid: int, gid: int) -> None:
        self._meta = meta
        self._data = data
        self._good = good
        self._owner = uid, gid
        self._execute = meta.database.connection.execute
        self._folder = 0
        self.placed = Placed()

    def cache_path(self, block_id: BlockId) -> Path:
        return block_file(self._data / "cache", block_id)

    def _dirty_path(self, dirty: int) -> Path:
        return self._data / "dirty" / str(dirty)

    # --- blocks --------------------------------------------------------------------------------------------------

    def adopt_blocks(self, *, certain: bool) -> None:
        """Make the tables say what the cache holds. Blocks of no file go to lost+found, unless it is *certain* that
        nothing needs them."""
        self._finish_settling()
        self._meta.commit()
        self._meta.database.begin()
        cached = {row[0]: row[1] for row in self._execute("SELECT id, number FROM blocks WHERE cached = 1")}
        settling = {block_id for _, block_id, _ in self._meta.blocks.settling()}
        for block_id in set(cached) - set(self._good) - settling:
            self._execute("UPDATE blocks SET cached = 0 WHERE id = ?", (block_id,))
        gone = {row[0] for row in self._execute("SELECT id FROM deleting")}
        for block_id, size in self._good.items():
            if block_id not in gone or block_id in cached:
                self._adopt_block(block_id, size, certain)
        self._place_unnamed(certain)
        self._meta.commit()
        self._meta.forget_cached()

    def _adopt_block(self, block_id: BlockId, size: int, certain: bool) -> None:
        row = self._execute("SELECT cached FROM blocks WHERE id = ?", (block_id,)).fetchone()
        if row is None and not certain and size:
            self._meta.blocks.add(block_id, size, CACHED_FILE, None, int(time.time()))
        elif row is not None and not row[0]:
            self._execute("UPDATE blocks SET cached = ?, size = ? WHERE id = ?", (CACHED_FILE, size, block_id))
        elif row is None or row[0] != CACHED_FILE:
            self.placed.unused.append(self.cache_path(block_id))

    def _place_unnamed(self, certain: bool) -> None:
        """Blocks that no file names and the remote does not have."""
        rows = self._execute("SELECT number, id, size, cached FROM blocks WHERE refs = 0 AND pack IS NULL").fetchall()
        for number, block_id, size, cached in rows:
            if cached and not certain:
                inode = self._found_file(b"block-" + block_id.hex().encode()[:16])
                self._insert(inode, [Extent(0, size, number, 0)], size)
                continue
            if cached == CACHED_FILE:
                self._execute("UPDATE blocks SET cached = 0 WHERE number = ?", (number,))
                self.placed.unused.append(self.cache_path(block_id))
            self._execute("INSERT OR IGNORE INTO released VALUES (?)", (number,))

    def _finish_settling(self) -> None:
        """Dirty files that became blocks: those that have moved, or cannot because they are lost, are done."""
        self._meta.database.begin()
        for dirty, block_id, length in self._meta.blocks.settling():
            if block_id in self._good or hash_of(self._dirty_path(dirty), length) != block_id:
                self._meta.blocks.settled(dirty)

    # --- dirty files ---------------------------------------------------------------------------------------------

    def adopt_dirty(self, dropped: set[int], *, certain: bool) -> None:
        """Dirty files that no file needs go to lost+found, unless it is *certain* that they hold nothing of value."""
        self._meta.commit()
        used = self._meta.extents.dirty_in_use()
        for path in sorted((self._data / "dirty").iterdir()):
            if path.name.isdigit() and int(path.name) in used:
                continue
            ranges = data_ranges(path) if path.name.isdigit() else []
            if certain or not ranges or int(path.name) in dropped:
                self.placed.unused.append(path)
            else:
                self._adopt_file(int(path.name), path.stat().st_size, ranges)
        self._meta.commit()

    def _adopt_file(self, dirty: int, size: int, ranges: list[tuple[int, int]]) -> None:
        """A file with the bytes that the dirty file has, at the same offsets."""
        inode = self._found_file(b"dirty-%d" % dirty)
        now_ns = time.time_ns()
        replay = self._meta.database.replay
        if ranges == [(0, size)]:
            replay(44, (inode.number, dirty, 0, size, now_ns))
            return
        for start, end in ranges:
            replay(47, (inode.number, start, end - start, dirty, now_ns))

    # --- what is lost --------------------------------------------------------------------------------------------

    def mark_lost(self) -> None:
        """End each file before the first of its bytes that are nowhere; what follows them goes to lost+found."""
        self._meta.commit()
        blocks = {
            row[0] for row in self._execute("SELECT number FROM blocks WHERE refs > 0 AND pack IS NULL AND cached = 0")
        }
        lengths = {dirty: self._length(dirty) for dirty in self._meta.extents.dirty_in_use()}
        holders = {row[0] for row in self._execute("SELECT inode FROM extents WHERE source < 0")}
        holders |= set(self._meta.inodes.unsealed()) | set(self._meta.overlays.inodes())
        for number in blocks:
            holders |= {row[0] for row in self._execute("SELECT inode FROM extents WHERE source = ?", (number,))}
        for number in sorted(holders):
            inode = self._meta.inodes.get(number)
            if inode is not None and inode.is_regular and inode.content is None:
                self._mark_lost(inode, blocks, lengths)
        self._meta.commit()

    def _length(self, dirty: int) -> int:
        try:
            return self._dirty_path(dirty).stat().st_size
        except FileNotFoundError:
            return -1

    def _mark_lost(self, inode: Inode, blocks: set[int], lengths: Mapping[DirtyNumber, int]) -> None:
        parts = self._meta.extents.view(inode.number, 0, FILE_END_MAX)
        if inode.tail:
            parts.append(Extent(inode.tail_start, inode.size - inode.tail_start, -inode.tail, 0))

        def is_lost(part: Extent) -> bool:
            if part.source > 0:
                return part.source in blocks
            return part.source_offset + part.length > lengths.get(DirtyNumber(-part.source), -1)

        lost = [part for part in parts if is_lost(part)]
        if not lost:
            return
        run: list[Extent] = []
        for part in [*(part for part in parts if part.start > lost[0].start), None]:
            if part is not None and part not in lost:
                run.append(part)
            elif run:
                self._rescue(inode, run)
                run = []
        name = self._path(inode.number)
        self.placed.lost.append(f"{name}: {sum(part.length for part in lost)} bytes from {lost[0].start} on")
        self._meta.database.replay(51, (inode.number, lost[0].start, time.time_ns()))

    def _rescue(self, inode: Inode, run: list[Extent]) -> None:
        begin = run[0].start
        found = self._found_file(b"inode-%d-from-%d" % (inode.number, begin))
        shifted = [Extent(part.start - begin, part.length, part.source, part.source_offset) for part in run]
        self._insert(found, shifted, run[-1].end - begin)

    def _path(self, number: int) -> str:
        """Some path of the inode, for people."""
        names: list[bytes] = []
        while number != ROOT_INODE and len(names) < 1000:
            parents = self._meta.names.parents(number)
            if not parents:
                return f"inode {number}"
            number, name = parents[0]
            names.append(name)
        return os.fsdecode(b"/".join(reversed(names)))

    # --- lost+found ----------------------------------------------------------------------------------------------

    def attach(self, number: int) -> None:
        """Give an inode that no name leads to one in lost+found."""
        folder = self._found_folder()
        self._meta.database.replay(12, (number, folder, self._free_name(folder, b"inode-%d" % number), time.time_ns()))
        self.placed.found += 1

    def _found_folder(self) -> int:
        if not self._folder:
            number = self._meta.names.lookup(ROOT_INODE, FOUND_NAME)
            if number is None or not self._meta.inodes.need(number).is_directory:
                number = self._make(ROOT_INODE, self._free_name(ROOT_INODE, FOUND_NAME), 0o40700)
            self._folder = number
        return self._folder

    def _free_name(self, folder: int, name: bytes) -> bytes:
        chosen, count = name, 1
        while self._meta.names.lookup(folder, chosen) is not None:
            count += 1
            chosen = b"%s.%d" % (name, count)
        return chosen

    def _found_file(self, name: bytes) -> Inode:
        """A new empty file in lost+found."""
        folder = self._found_folder()
        self.placed.found += 1
        return self._meta.inodes.need(self._make(folder, self._free_name(folder, name), 0o100600))

    def _make(self, parent: int, name: bytes, mode: int) -> InodeNumber:
        number = self._meta.new_inode()
        self._meta.database.replay(10, (parent, name, number, mode, *self._owner, 0, None, time.time_ns()))
        return number

    def _insert(self, inode: Inode, parts: list[Extent], size: int) -> None:
        self._meta.database.replay(51, (inode.number, size, time.time_ns()))
        for part in parts:
            self._execute(
                "INSERT INTO extents VALUES (?, ?, ?, ?, ?)",
                (inode.number, part.start, part.length, part.source, part.source_offset),
            )
