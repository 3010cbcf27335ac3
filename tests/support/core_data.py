"""Folders for the tests of what lies below the engine."""

import os
import tempfile
from pathlib import Path


def fast_folder() -> Path:
    """A new folder in memory where there is such a place: what a kill leaves does not depend on the disk."""
    memory = Path("/dev/shm")
    return Path(tempfile.mkdtemp(prefix="syncer-test-", dir=memory if os.access(memory, os.W_OK) else None))


def make_data(data: Path) -> Path:
    """The folders of a new DATA."""
    for name in ("cache", "dirty", "journal"):
        (data / name).mkdir(parents=True)
    return data
