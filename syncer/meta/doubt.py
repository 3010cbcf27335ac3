"""A note, for the next run, that the disk has refused to take something.

What a sync could not write stays in the kernel's memory as if it had been written: who only syncs it again is told
that all is well. A run knows that of itself; one that begins after a kill is told by this file, which is in the same
memory, and gone with it at the latest. A checkpoint that has made up for everything deletes it. Owned by the Database;
from any thread.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

DOUBTED = "doubted"
"""The file's name, beside meta.db."""


class DoubtNote:
    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def is_there(self) -> bool:
        return self._path.exists()

    def write(self) -> None:
        """Nothing is better than an error on top of the one that there is: where there is no room it is left out."""
        with contextlib.suppress(OSError):
            os.close(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))

    def clear(self) -> None:
        """The disk has everything. Raises: OSError."""
        self._path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def unless_synced(self) -> Iterator[None]:
        """Write it when an OSError ends the with block, in which something is synced."""
        try:
            yield
        except OSError:
            self.write()
            raise
