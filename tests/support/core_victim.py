"""A process to be killed: works on a DATA without end, and tells on its standard output what it was told is done.

    python -m tests.support.core_victim DATA SEED

Each file's content follows from its name, so whoever comes after the kill knows what must be there: a line
"made <name>" or "gone <name>" says what had returned, "doing <name>" what had begun.
"""

import os
import random
import sys
import threading
from pathlib import Path

import trio

from syncer.backends.folder import FolderBackend
from syncer.engine import Engine, Settings
from syncer.meta.store import MetaStore
from syncer.snapshots.repository import join
from tests.support.core_driver import fill_bytes
from tests.support.core_world import NEVER_S, WISH, write_file

BUDGET_BYTES = 400_000_000


def content_of(name: str) -> bytes:
    """A size and a kind of content of its own for each name; some span several blocks, some are small."""
    choose = random.Random(name)
    return fill_bytes(choose.randrange(1000), choose.choice([0, 10, 5000, 70_000, 300_000, 1_500_000]))


def open_settings() -> Settings:
    return Settings(budget_bytes=BUDGET_BYTES, snapshot_interval_s=NEVER_S, upload_delay_s=0.0)


def remote_of(data: Path) -> FolderBackend:
    """The remote that outlives the process: what was evicted comes from there."""
    root = data.parent / "remote"
    root.mkdir(exist_ok=True)
    return FolderBackend(root)


async def work(data: Path, seed: str) -> None:
    meta = MetaStore(data)
    remote = remote_of(data)
    await join(meta, remote, WISH)
    async with Engine.open(data, meta, remote, open_settings()) as engine:
        names: list[str] = []
        choose = random.Random(seed)
        for count in range(1_000_000):
            name = f"{seed}-{count}"
            tell("doing", name)
            content = content_of(name)
            middle = len(content) // 2
            await write_file(engine, name.encode(), content[:middle])
            await write_file(engine, name.encode(), content[middle:], offset=middle)
            tell("made", name)
            names.append(name)
            if len(names) > 8:
                old = names.pop(choose.randrange(len(names)))
                tell("doing", old)
                engine.file_system.unlink(1, old.encode())
                tell("gone", old)
            match choose.randrange(12):
                case 0:
                    await engine.checkpoint()
                case 1:
                    meta.commit()
                case 2:
                    await engine.sealer.seal_quiet(0.0)
                case 3:
                    engine.store.cache.evict(meta.blocks.evictable(5))
                case _:
                    await trio.lowlevel.checkpoint()


def tell(*words: str) -> None:
    sys.stdout.write(" ".join(words) + "\n")
    sys.stdout.flush()


def die_with_parent() -> None:
    """End when standard input does: a test that was killed itself must not leave us working."""
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=die_with_parent, daemon=True).start()
    trio.run(work, Path(sys.argv[1]), sys.argv[2])
