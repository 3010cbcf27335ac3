"""Files that nothing refers to any more, kept until that would survive a power cut.

After one the tables may be those of an earlier moment, and name what has been released since: an old copy of a file
whose new one was not fsynced, say. So a file is deleted only once the operations that released it are durable.

Owned by the BlockStore; on the event loop's thread.
"""

from collections import deque
from pathlib import Path

from syncer.meta.blocktable import CACHED_FILE
from syncer.meta.store import MetaStore
from syncer.values import BlockId


class Retired:
    def __init__(self, meta: MetaStore) -> None:
        self._meta = meta
        self._waiting: deque[tuple[int, Path, int, BlockId | None]] = deque()
        """(position of the commit that released it, file, bytes on the disk, the block when it is a cache file)."""
        self.total_bytes = 0

    def add(self, path: Path, block_id: BlockId | None = None) -> None:
        """The last commit has released the file; *block_id* when it is in the cache."""
        try:
            size = path.stat().st_blocks * 512
        except FileNotFoundError:
            size = 0
        self._waiting.append((self._meta.database.committed_position, path, size, block_id))
        self.total_bytes += size

    def delete_durable(self) -> bool:
        """Delete what is released durably by now. Whether that was anything."""
        durable, blocks = self._meta.database.durable_position, []
        before = len(self._waiting)
        while self._waiting and self._waiting[0][0] <= durable:
            _, path, size, block_id = self._waiting.popleft()
            self.total_bytes -= size
            if block_id is None or not self._is_cached_again(block_id):
                path.unlink(missing_ok=True)
            if block_id is not None:
                blocks.append(block_id)
        if blocks:
            self._meta.blocks.deleted(blocks)
        return len(self._waiting) < before

    def _is_cached_again(self, block_id: BlockId) -> bool:
        block = self._meta.blocks.find(block_id)
        return block is not None and block.cached == CACHED_FILE
