"""What marking and counting cost when there are many blocks: memory stays bounded, whatever the collection holds."""

import resource
import sys
import time
from multiprocessing import get_context
from pathlib import Path

from syncer.meta.marks import HISTORY, LIVE, Marks
from syncer.meta.store import MetaStore
from syncer.values import ID_BYTES, TREE, TreeId
from tests.support.long_form import LONG

BLOCKS = 10_000_000 if LONG else 50_000
A_NODE, A_PACK = 250, 1000
MEMORY_BYTES = 600_000_000 if LONG else 250_000_000


def identity(number: int) -> bytes:
    """In order, so that filling the tables does not take hours."""
    return number.to_bytes(ID_BYTES, "big")


def fill(data: Path) -> list[TreeId]:
    """Blocks in packs, all named by nodes below two roots: the newest names three quarters, the older one all."""
    meta = MetaStore(data)
    execute, many = meta.database.connection.execute, meta.database.connection.executemany
    meta.database.begin()
    nodes = BLOCKS // A_NODE
    many(
        "INSERT INTO packs VALUES (?, ?, ?, 0, 1)",
        ((n, identity(n), A_PACK * 1_000_000) for n in range(1, BLOCKS // A_PACK + 2)),
    )
    many(
        "INSERT INTO blocks(number, id, size, refs, kind, pack, pack_offset, sealed_bytes, cached, used, born)"
        " VALUES (?, ?, 1000000, 0, ?, ?, 0, 990000, 0, 0, 0)",
        (
            (n, identity(n), int(n <= nodes + 2), (n - 1) // A_PACK + 1)
            for n in range(1, BLOCKS + nodes + 3)
            if (n - 1) // A_PACK + 1 <= BLOCKS // A_PACK + 1
        ),
    )
    first = nodes + 3
    many(
        "INSERT INTO node_refs VALUES (?, ?, 0)",
        ((2 + node, first + node * A_NODE - A_NODE + at) for node in range(1, nodes + 1) for at in range(A_NODE)),
    )
    many(f"INSERT INTO node_refs VALUES (1, ?, {TREE})", ((2 + n,) for n in range(1, nodes * 3 // 4 + 1)))
    many(f"INSERT INTO node_refs VALUES (2, ?, {TREE})", ((2 + n,) for n in range(1, nodes + 1)))
    many("INSERT INTO read_nodes VALUES (?)", ((n,) for n in range(1, nodes + 3)))
    roots = [execute("SELECT id FROM blocks WHERE number = ?", (n,)).fetchone()[0] for n in (1, 2)]
    meta.commit()
    meta.close()
    return [TreeId(root) for root in roots]


def mark(data: Path, folder: Path, roots: list[TreeId]) -> None:
    """In a process of its own, whose memory is looked at."""
    before = _memory()
    begin = time.monotonic()
    marks = Marks(folder / "marks.db", data / "meta.db")
    marks.rely()
    assert marks.add_root(roots[0], LIVE)
    marks.expand(LIVE)
    assert marks.add_root(roots[1], HISTORY)
    marks.expand(HISTORY)
    assert not marks.any_unreadable() and not marks.outdated()
    marks.add_up()
    marks.choose(0.1, 1 << 62)
    took, size = time.monotonic() - begin, (folder / "marks.db").stat().st_size
    grown = _memory() - before
    print(f"{BLOCKS} blocks: {took:.1f} s, {grown / 1e6:.0f} MB of memory, {size / 1e6:.0f} MB on the disk")
    assert marks.held_bytes(HISTORY) > BLOCKS // 4 * 900_000
    marks.close()
    sys.exit(0 if grown < MEMORY_BYTES else 3)


def _memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_marking_takes_little_memory(tmp_path: Path) -> None:
    (tmp_path / "journal").mkdir()
    roots = fill(tmp_path)
    process = get_context("spawn").Process(target=mark, args=(tmp_path, tmp_path, roots))
    process.start()
    process.join(3600)
    assert process.exitcode == 0
