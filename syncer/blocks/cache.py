"""Plain blocks on the local disk: files under cache/, or rows of meta.db up to SMALL_BYTES.

Owned by the BlockStore; nothing else touches the folder. Methods are synchronous and run on the event loop's thread,
so each is atomic to other tasks; `write_temporary` may run in threads.
"""

import contextlib
import logging
import os
import resource
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from syncer.blocks.background import Background, opened, verified
from syncer.blocks.retired import Retired
from syncer.disk import NewNames
from syncer.errors import LocalDamage
from syncer.meta.blocktable import CACHED_FILE, CACHED_ROW, Block, block_file
from syncer.meta.store import MetaStore
from syncer.values import BlockId

log = logging.getLogger(__name__)

OPEN_FILES = 1024
"""At most; a quarter of what the process may have open."""
VERIFIED_FILES = 65536

_FileState = tuple[int, int, int]
"""Inode number, size and ctime: whoever changes a file changes one of them."""


def _state(descriptor: int) -> _FileState:
    status = os.fstat(descriptor)
    return status.st_ino, status.st_size, status.st_ctime_ns


@dataclass(frozen=True, slots=True)
class Incoming:
    """A fetched, verified block in a temporary file, with a descriptor that reads it."""

    path: Path
    descriptor: int


class BlockCache:
    def __init__(
        self, folder: Path, meta: MetaStore, background: Background, retired: Retired, names: NewNames
    ) -> None:
        """*folder* exists. Finishes what a crash left: temporary files, deletions. *names* is told of new files."""
        self.folder = folder
        self._names = names
        self._background = background
        self._meta = meta
        self._files: dict[int, int] = {}
        """Descriptors of files known to be good, by block number; the one opened first is closed first."""
        self._verified: dict[int, _FileState] = {}
        """What files that were good were like when they were closed."""
        self._open_files = min(OPEN_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)
        self.replaced = 0
        """Cached copies found wrong since the start; each was dropped and is fetched again."""
        self.incoming = folder / "incoming"
        """Files without a place yet: none of them outlives a run."""
        self.incoming.mkdir(mode=0o700, exist_ok=True)
        for byte in range(256):
            (folder / f"{byte:02x}").mkdir(mode=0o700, exist_ok=True)
        for path in self.incoming.iterdir():
            path.unlink()
        self.delete_files(meta.blocks.deletions())
        meta.blocks.on_released = self._released
        self._retired = retired

    def path(self, block_id: BlockId) -> Path:
        return block_file(self.folder, block_id)

    def close(self) -> None:
        while self._files:
            os.close(self._files.popitem()[1])

    # --- reading -------------------------------------------------------------------------------------------------

    def read(self, block: Block, offset: int, length: int) -> bytes | None:
        """Bytes of a cached block, or None when there is no sound copy here (then the block counts as not cached).

        Raises:
            LocalDamage: the copy is bad or gone, and the remote has none either.
        """
        if not block.cached:
            return None
        try:
            data = self._read(block, offset, length)
        except OSError as error:
            log.warning("block %s: the local disk does not give the cached copy: %s", block.id.hex(), error)
            data = None
        if data is None:
            self._distrust(block)
        else:
            self._meta.blocks.use(block.number)
        return data

    def _read(self, block: Block, offset: int, length: int) -> bytes | None:
        """None when the copy is missing or wrong. Raises: OSError."""
        if block.cached == CACHED_ROW:
            data = self._meta.blocks.data(block.number)
            return data[offset : offset + length] if data is not None and blake3(data).digest() == block.id else None
        descriptor = self._descriptor(block)
        return None if descriptor is None else os.pread(descriptor, length, offset)

    def _descriptor(self, block: Block) -> int | None:
        """An open file of the block, verified when it is opened; None when it is missing or wrong."""
        descriptor = self._files.get(block.number)
        if descriptor is not None:
            return descriptor
        descriptor = self._background.take(block.number)
        if descriptor is None:
            descriptor = self._reopened(block)
        if descriptor is None:
            descriptor = verified(opened(self.path(block.id), block.size), block.id, block.size)
        if descriptor is not None:
            self.keep_open(block.number, descriptor)
        return descriptor

    def _reopened(self, block: Block) -> int | None:
        """The file of a block that was verified before, if it is as it was then."""
        before = self._verified.pop(block.number, None)
        if before is None:
            return None
        try:
            descriptor = os.open(self.path(block.id), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        if _state(descriptor) == before:
            return descriptor
        os.close(descriptor)
        return None

    def read_ahead(self, number: int) -> None:
        """Have the block's file read and verified in the background, if it is one and not open yet."""
        if number not in self._files and number not in self._verified:
            block = self._meta.blocks.get(number)
            if block.cached == CACHED_FILE:
                self._background.read_ahead(number, self.path(block.id), block.id, block.size)

    def read_open(self, number: int, offset: int, length: int) -> bytes | None:
        """Bytes of a block whose file is open; None when it is not. The fast way of `read`."""
        descriptor = self._files.get(number)
        if descriptor is None:
            return None
        self._meta.blocks.use(number)
        try:
            return os.pread(descriptor, length, offset)
        except OSError:
            self._close(number)  # `read` opens it again, and sees what is wrong
            return None

    def keep_open(self, number: int, descriptor: int) -> None:
        """Take over a descriptor that is known to have the bytes of block *number*."""
        if number in self._files:
            os.close(descriptor)
            return
        if len(self._files) >= self._open_files:
            self._put_away()
        self._files[number] = descriptor

    def _put_away(self) -> None:
        """Close the file that has been open longest; while it stays as it is now it need not be verified again."""
        number = next(iter(self._files))
        descriptor = self._files.pop(number)
        if len(self._verified) >= VERIFIED_FILES:
            del self._verified[next(iter(self._verified))]
        self._verified[number] = _state(descriptor)
        os.close(descriptor)

    def _distrust(self, block: Block) -> None:
        """A cached copy is missing or wrong."""
        self._close(block.number)
        if block.location is None:
            if not self._meta.blocks.is_damaged(block.number):
                self._meta.damage.lost(block.number)
            raise LocalDamage(f"block {block.id.hex()}: the local copy is damaged, and the remote has none yet")
        self.replaced += 1
        log.warning("block %s: the cached copy is damaged or gone; it is fetched again", block.id.hex())
        self.evict([block])

    # --- changing ------------------------------------------------------------------------------------------------

    def write_temporary(self, block: Block, data: bytes | memoryview) -> Incoming:
        """Write a fetched, verified block under a temporary name; `install` gives it its own. Safe in a thread."""
        path = self.incoming / block.id.hex()
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            with open(descriptor, "wb", closefd=False) as file:
                file.write(data)
        except BaseException:
            os.close(descriptor)
            path.unlink()
            raise
        return Incoming(path, descriptor)

    def install(self, block: Block, incoming: Incoming) -> None:
        """Make a fetched file the cached copy of *block*. ATOMIC: record first, so no file is unaccounted.

        Raises:
            KeyError: the block is gone; so is the file then.
        """
        try:
            if self._meta.blocks.get(block.number).cached:
                self.discard(incoming)
                return
        except KeyError:
            self.discard(incoming)
            raise
        self._meta.blocks.fetched(block.id)
        incoming.path.rename(self.path(block.id))
        self._meta.blocks.use(block.number)
        self.keep_open(block.number, incoming.descriptor)

    def discard(self, incoming: Incoming) -> None:
        """Delete a fetched file that nobody needs."""
        os.close(incoming.descriptor)
        incoming.path.unlink(missing_ok=True)

    def adopt(self, block_id: BlockId, path: Path) -> None:
        """Move a sealed dirty file, already recorded as this block's copy, into the cache."""
        target = self.path(block_id)
        path.rename(target)
        self._names.note(target.parent)

    def block_at(self, path: Path) -> BlockId | None:
        """The block whose copy is the file at *path*; None when it is no file of the cache."""
        return BlockId(bytes.fromhex(path.name)) if path.parent.parent == self.folder else None

    def verify_again(self, path: Path) -> None:
        """Before the file at *path* is read: it is another with the same bytes, or may have lost some."""
        block_id = self.block_at(path)
        block = None if block_id is None else self._meta.blocks.find(block_id)
        if block is not None:
            self._close(block.number)

    def verify_all_again(self) -> None:
        """`verify_again` for all files."""
        for number in {*self._files, *self._verified}:
            self._close(number)

    def evict(self, blocks: Sequence[Block]) -> None:
        """Delete the cached copies of clean blocks. ATOMIC: record first, so no block claims a file that is gone."""
        self._meta.blocks.evicted([block.number for block in blocks])
        for block in blocks:
            self._close(block.number)
        self.delete_files([block.id for block in blocks if block.cached == CACHED_FILE])

    def _released(self, gone: Sequence[tuple[int, BlockId]]) -> None:
        """Blocks nobody needs any more: their rows are gone already."""
        for number, block_id in gone:
            self._close(number)
            self._retired.add(self.path(block_id), block_id)

    def _close(self, number: int) -> None:
        self._verified.pop(number, None)
        self._background.forget(number)
        descriptor = self._files.pop(number, None)
        if descriptor is not None:
            os.close(descriptor)

    def sweep(self) -> None:
        """After a power cut: delete the files that no row speaks of, which would take room that nobody counts."""
        for byte in range(256):
            folder = self.folder / f"{byte:02x}"
            known = {block_id.hex() for block_id in self._meta.blocks.cached_files(byte)}
            for name in os.listdir(folder):
                if name not in known:
                    log.info("cache file %s is of no use any more", name)
                    with contextlib.suppress(OSError):  # no file of ours
                        (folder / name).unlink()

    def delete_files(self, block_ids: Sequence[BlockId]) -> None:
        """Unlink cache files whose deletion is recorded."""
        for block_id in block_ids:
            self.path(block_id).unlink(missing_ok=True)
        if block_ids:
            self._meta.blocks.deleted(block_ids)
