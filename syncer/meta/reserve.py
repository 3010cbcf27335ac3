"""Room on the disk that is kept for when there is no other: on a full disk, deleting must still be possible.

A deletion has to be recorded and committed before it frees anything. Owned by the Database; on the event loop's thread.
"""

import contextlib
import os
from pathlib import Path

from syncer.disk import take_room

RESERVE = "reserve"
"""The file's name, beside meta.db."""
RESERVE_BYTES = 2 * 1024 * 1024
_AMPLE = 8
"""The room is taken again once so many times as much is free."""


def free_bytes(folder: Path) -> int:
    """What the disk of *folder* has left."""
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize


class Reserve:
    def __init__(self, path: Path) -> None:
        self._path = path
        self.size = self._taken()
        """What it takes of the disk. The run before may have left it there, on a disk that is full by now."""
        self.renew()

    def _taken(self) -> int:
        try:
            return self._path.stat().st_blocks * 512
        except FileNotFoundError:
            return 0

    def release(self, *heirs: tuple[Path, int]) -> bool:
        """Give the room back to the disk, for what is tried again now. False when that was done before.

        *heirs* are files with as many bytes as each gets of it, behind its end and at once: whoever fills the disk
        would take them before what is tried again gets that far.
        """
        if not self.size:
            return False
        with contextlib.ExitStack() as stack:
            takers: list[tuple[int, int, int]] = []
            for path, room_bytes in heirs:
                with contextlib.suppress(OSError):
                    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
                    stack.callback(os.close, descriptor)
                    takers.append((descriptor, os.fstat(descriptor).st_size, room_bytes))
            os.truncate(self._path, 0)
            for taker in takers:
                take_room(*taker)
        self.size = 0
        return True

    def renew(self) -> None:
        """Take the room, if it is not taken and the disk has plenty."""
        if self.size >= RESERVE_BYTES:
            return
        if free_bytes(self._path.parent) < _AMPLE * RESERVE_BYTES:
            return
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            with contextlib.suppress(OSError):  # filled by others just now, or a file system that cannot
                os.posix_fallocate(descriptor, 0, RESERVE_BYTES)
        finally:
            os.close(descriptor)
            self.size = self._taken()
