"""What snapshots are called where people see them as directories: their local time, and their label. Pure functions."""

import time
from collections.abc import Iterable

from syncer.snapshots.history import Snapshot
from syncer.values import NAME_MAX_BYTES

SUFFIX_BYTES = 16
"""Room for what tells snapshots of the same second and label apart."""


def snapshot_names(snapshots: Iterable[Snapshot]) -> dict[bytes, Snapshot]:
    """The name of each, in the order given: `2026-11-21_14-05-00`, with a label `2026-11-21_14-05-00_before-cleanup`.

    A name that is taken gets `-2`, `-3` and so on behind it, so what came later in history has the higher number.
    """
    named: dict[bytes, Snapshot] = {}
    for snapshot in snapshots:
        base = name = time_name(snapshot.time_ns) + (b"_" + _clean(snapshot.label) if snapshot.label else b"")
        count = 1
        while name in named:
            count += 1
            name = b"%s-%d" % (base, count)
        named[name] = snapshot
    return named


def time_name(time_ns: int) -> bytes:
    """The local time as a file name, to the second."""
    at = time.localtime(time_ns // 10**9)
    text = f"{at.tm_year:04d}-{at.tm_mon:02d}-{at.tm_mday:02d}_{at.tm_hour:02d}-{at.tm_min:02d}-{at.tm_sec:02d}"
    return text.encode()


def _clean(label: str) -> bytes:
    """A label as a part of a file name, which holds no slash and no NUL, and must not become too long."""
    text = label.replace("/", "-").replace("\0", "-").encode("utf-8", "surrogateescape")
    return text[: NAME_MAX_BYTES - SUFFIX_BYTES - len(time_name(0))]
