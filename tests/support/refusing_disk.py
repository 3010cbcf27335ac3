"""A disk that refuses to take something, below ext4 at its worst, in this process."""

import errno
import os
from pathlib import Path

import pytest


class RefusingDisk:
    """While it `refuses`, no file is synced. One that was refused never gets to the disk, although its next sync
    succeeds: nothing may rely on such a file ever again. Folders are synced whatever happens."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.refuses = False
        self.synced: list[int] = []
        """Inode numbers of files, in order."""
        self.folders: list[str] = []
        """Names of folders whose names were synced, in order."""
        self._stuck: dict[int, int] = {}
        """Inode number -> a descriptor that stays open, so that no other file gets the number."""
        fdatasync, fsync = os.fdatasync, os.fsync

        def sync(descriptor: int) -> None:
            inode = os.fstat(descriptor).st_ino
            if self.refuses:
                if inode not in self._stuck:
                    self._stuck[inode] = os.dup(descriptor)
                raise OSError(errno.EIO, "the disk refuses")
            fdatasync(descriptor)
            self.synced.append(inode)

        def sync_name(descriptor: int) -> None:
            fsync(descriptor)
            path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
            if path.is_dir():
                self.folders.append(path.name)

        patch.setattr(os, "fdatasync", sync)
        patch.setattr(os, "fsync", sync_name)

    def lost(self, folder: Path) -> list[Path]:
        """The files below *folder* that a power cut would find without what was refused."""
        return [path for path in folder.rglob("*") if path.is_file() and path.stat().st_ino in self._stuck]

    def is_synced(self, path: Path) -> bool:
        """Whether the file that is there now was ever synced, and never refused."""
        return path.stat().st_ino in self.synced and not self.lost(path.parent).count(path)
