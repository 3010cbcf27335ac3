"""How fast the C extension finds cut points and zero runs, on one core and without a file system."""

import os
import time

from scripts.benchmark.results import Column, Table
from scripts.benchmark.rows import MEBIBYTE, Row
from scripts.benchmark.settings import Settings

KEY = "cutter"
ROUNDS = 4


def measure(settings: Settings) -> Table:
    """Fed in pieces of 1 MiB, as writes would."""
    from syncer.native import Cutter
    from syncer.values import BLOCK_MAX_BYTES, BLOCK_MEAN_BYTES, BLOCK_MIN_BYTES, ZERO_RUN_BYTES

    table = Table(KEY, "The native cutter")
    table.announce(
        (
            Row(key="random", title="random bytes", unit="GB/s", per_unit=1e9),
            Row(key="zeros", title="zeros", unit="GB/s", per_unit=1e9),
        ),
        [Column("native", "native cutter")],
    )
    contents = {"random": os.urandom(settings.sizes.paged_bytes), "zeros": bytes(settings.sizes.paged_bytes)}
    for _ in range(settings.passes):
        for row, content in contents.items():
            pieces = [memoryview(content)[at : at + MEBIBYTE] for at in range(0, len(content), MEBIBYTE)]
            cutter = Cutter(BLOCK_MIN_BYTES, BLOCK_MEAN_BYTES, BLOCK_MAX_BYTES, ZERO_RUN_BYTES)
            before = time.perf_counter()
            for _ in range(ROUNDS):
                for piece in pieces:
                    cutter.feed(piece)
            figure = table.rows[row].rate(len(content) * ROUNDS, time.perf_counter() - before)
            table.add(row, "native", figure)
            settings.say(f"{KEY}: {row} {figure:.2f} GB/s")
    return table
