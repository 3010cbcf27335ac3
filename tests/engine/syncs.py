"""What the tests of durability share: files of random bytes, and a record of what is synced."""

import os
import random
from pathlib import Path

import pytest

from syncer.engine import Engine
from syncer.meta.blocktable import CACHED_FILE
from tests.support.opened import create

WRITE_BYTES = 131_072

chance = random.Random(1)


def random_bytes(length: int) -> bytes:
    """The same in every run, so that they are cut in the same places: a short last block is synced at once."""
    return chance.randbytes(length)


class Flushes:
    """The files that were synced, in order, with "journal" for each flush of the journal."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.seen: list[str] = []
        fdatasync = os.fdatasync

        def watched(descriptor: int) -> None:
            fdatasync(descriptor)
            path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
            name = "journal" if path.parent.name == "journal" else path.name
            if self.seen[-1:] != ["journal"] or name != "journal":  # all segments of it are one flush
                self.seen.append(name)

        patch.setattr(os, "fdatasync", watched)


def note_deletions(flushes: Flushes, patch: pytest.MonkeyPatch) -> None:
    """Have "deleted" among what is seen, for each cache or dirty file."""
    unlink = Path.unlink

    def watched(path: Path, missing_ok: bool = False) -> None:
        if "cache" in path.parts or path.parent.name == "dirty":
            flushes.seen.append("deleted")
        unlink(path, missing_ok)

    patch.setattr(Path, "unlink", watched)


async def write(engine: Engine, name: bytes, data: bytes) -> tuple[int, int]:
    number, handle = create(engine, name)
    for offset in range(0, len(data), WRITE_BYTES):
        await engine.file_system.write(handle, offset, data[offset : offset + WRITE_BYTES])
    return number, handle


def cache_files(engine: Engine, number: int) -> set[str]:
    blocks = [engine.meta.blocks.get(extent.source) for extent in engine.meta.extents.find(number, 0, 2**40)]
    return {block.id.hex() for block in blocks if block.cached == CACHED_FILE}
