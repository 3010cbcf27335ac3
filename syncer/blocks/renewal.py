"""Files of ours that may lack on the disk what it has refused: made anew, as other files that take their names.

When a sync fails the kernel may take for written what is not, so the next one would succeed without it. Nor does it
help to write the same bytes over themselves: what ext4 could not write to blocks that were new to a file stays unread
however often it is written, and is zeros after a power cut. So such a file is copied, and the copy synced and renamed
over it.

Owned by the BlockStore. On the event loop's thread but for the copying.
"""

import contextlib
import errno
import itertools
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import trio
from blake3 import blake3

from syncer.blocks.budget import Budget
from syncer.blocks.cache import BlockCache
from syncer.blocks.dirty import BytesDropped, DirtyFiles
from syncer.disk import NewNames, copy_ranges, copy_sparse, path_of, sync_paths
from syncer.errors import BudgetExhausted
from syncer.meta.doubt import DoubtNote
from syncer.values import BlockId

log = logging.getLogger(__name__)

RESERVE_S = 30.0


@dataclass(frozen=True, slots=True)
class MadeAnew:
    """The file at *path*, open as *descriptor* while this is told, is another with the same bytes."""

    path: Path
    inode_before: int
    descriptor: int


class _Copy:
    """A file and a copy of it under way. Closing it deletes what took nobody's place."""

    def __init__(self, path: Path, new: Path, block_id: BlockId | None) -> None:
        """Raises: OSError."""
        self.path = path
        self.source = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.inode = os.fstat(self.source).st_ino
        self._new = new
        self._block_id = block_id
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            self.target = os.open(new, flags, 0o600)
        except OSError:
            os.close(self.source)
            raise

    def fill(self) -> None:
        """Copy all bytes, and sync them. Safe in a thread. Raises: OSError, BytesDropped among them."""
        copy_sparse(self.source, self.target)
        if self._block_id is not None:
            data = os.pread(self.target, os.fstat(self.target).st_size, 0)
            if blake3(data).digest() != self._block_id:
                raise BytesDropped(errno.EIO, f"{self.path.name} has lost what the disk did not take")
        os.fdatasync(self.target)

    def place(self, since: Iterable[tuple[int, int]], check: Callable[[Path, int], None]) -> bool:
        """Take the file's name, with the ranges written to it *since*. False when it is elsewhere now, or gone.

        ATOMIC. What was written since is no more durable than it was. *check* is asked whether the copy will do.
        Raises: OSError, BytesDropped among them.
        """
        with contextlib.suppress(FileNotFoundError):
            if os.stat(self.path).st_ino == self.inode:
                copy_ranges(self.source, self.target, since)
                check(self.path, self.target)
                os.replace(self._new, self.path)
                return True
        return False

    def close(self) -> None:
        os.close(self.source)
        os.close(self.target)
        self._new.unlink(missing_ok=True)


class Renewal:
    def __init__(
        self,
        dirty: DirtyFiles,
        cache: BlockCache,
        names: NewNames,
        note: DoubtNote,
        unsynced: Callable[[], Iterable[Path]],
    ) -> None:
        """*unsynced* gives the cache files that may not survive a power cut."""
        self._dirty = dirty
        self._cache = cache
        self._names = names
        self._note = note
        self._unsynced = unsynced
        self._turn = trio.Lock()
        self._count = itertools.count()
        self._in_doubt: set[int] = set()
        """Inode numbers below of files that may lack something, as a file keeps its own when it moves. One that was
        freed meanwhile may come back with another file: that is then made anew for nothing."""
        dirty.in_doubt = self._in_doubt
        self._told: set[Path] = set()
        """Files that the last attempt to make everything anew has failed for; the log has a line of each."""
        self.failures = 0
        """How often a sync has failed in this run, or in the one before that has left a note of it."""
        self.budget: Budget | None = None
        self.on_made_anew: list[Callable[[MadeAnew], None]] = []

    def doubt(self, others: Iterable[Path] = ()) -> None:
        """A sync has failed: every file that may not have been durable before it may lack something; *others* too."""
        self.failures += 1
        self._note.write()
        self._cache.verify_all_again()
        for path in (*self._files(), *others):
            with contextlib.suppress(OSError):
                self._in_doubt.add(os.stat(path).st_ino)

    def _files(self) -> list[Path]:
        return [*self._dirty.paths(), *self._unsynced()]

    def is_in_doubt(self, file: Path | int) -> bool:
        """Whether the file, a path or a descriptor, may lack something; one that has no name any more does not."""
        if not self._in_doubt:
            return False
        try:
            status = os.stat(file)
        except FileNotFoundError:
            return False
        return status.st_nlink > 0 and status.st_ino in self._in_doubt

    async def renew(self, files: Iterable[Path | int], patience_s: float | None = None) -> None:
        """Make those of *files* anew that are in doubt. Their new names may not be durable before `NewNames.sync`.

        Raises: OSError: ENOSPC too, where the budget has no room for a copy within *patience_s* (RESERVE_S);
            they stay in doubt.
        """
        for file in files:
            while self.is_in_doubt(file):  # it may move meanwhile
                path = file if isinstance(file, Path) else path_of(file)
                if path is not None:
                    await self._renew(path, RESERVE_S if patience_s is None else patience_s)

    async def renew_all(self) -> bool:
        """Make all files anew that are in doubt, as far as that can be done now. Whether nothing is in doubt then."""
        failed: set[Path] = set()
        while todo := [path for path in self._files() if path not in failed and self.is_in_doubt(path)]:
            for path in todo:  # one that moves meanwhile is among those of the next round
                try:
                    await self.renew([path], patience_s=0.0)
                except OSError as error:
                    log.log(
                        logging.DEBUG if path in self._told else logging.ERROR,
                        "%s may lack what the disk did not take: %s", path, error,
                    )  # fmt: skip
                    failed.add(path)
        self._told = failed
        if not failed:
            self._in_doubt.clear()  # the others are gone
        return not failed

    async def _renew(self, path: Path, patience_s: float) -> None:
        room_bytes = os.stat(path).st_blocks * 512
        assert self.budget is not None
        try:
            await self.budget.reserve(room_bytes, patience_s, sealing=True)
        except BudgetExhausted as error:
            raise OSError(errno.ENOSPC, str(error)) from error
        with self.budget.hold(room_bytes):
            async with self._turn:  # not before: a checkpoint, which makes room, must not wait for who waits for it
                if self.is_in_doubt(path):  # it may have moved, or been made anew by another
                    with self._dirty.watched(path) as written, self._copying(path) as copy:
                        self._dirty.check_whole(path, copy.source)  # before much is copied for nothing
                        await trio.to_thread.run_sync(copy.fill)
                        self._place(copy, written)

    @contextlib.contextmanager
    def _copying(self, path: Path) -> Iterator[_Copy]:
        """Raises: OSError."""
        new = self._cache.incoming / f"renewed-{next(self._count)}"
        with contextlib.closing(_Copy(path, new, self._cache.block_at(path))) as copy:
            try:
                yield copy
            except BytesDropped:
                self._cache.verify_again(path)
                raise

    def _place(self, copy: _Copy, written: Iterable[tuple[int, int]] = ()) -> None:
        if copy.place(written, self._dirty.check_whole):
            self._names.note(copy.path.parent)
            self._in_doubt.discard(copy.inode)
            self._dirty.made_anew(copy.path, copy.target)
            self._cache.verify_again(copy.path)
            for action in self.on_made_anew:
                action(MadeAnew(copy.path, copy.inode, copy.target))

    def renew_here(self, paths: Iterable[Path]) -> None:
        """`renew`, without an await and without asking for room: for few small files. Raises: OSError."""
        for path in paths:
            if self.is_in_doubt(path):
                with self._copying(path) as copy:
                    copy.fill()
                    self._place(copy)

    def sync_here(self, paths: Iterable[Path]) -> None:
        """Make the files durable, names and all, before the next await; for few small ones. Raises: OSError."""
        files = list(paths)
        self.renew_here(files)
        try:
            sync_paths(files)
            self._names.sync({path.parent for path in files})
        except OSError:
            self.doubt()
            raise

    def end(self) -> None:
        """Nothing is in doubt any more, the journal and meta.db neither. Raises: OSError."""
        self.failures = 0
        self._note.clear()
