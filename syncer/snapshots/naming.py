"""What snapshots are called where people see them as directories: their local time, and their label. Pure functions."""

import functools
import re
import time
from collections import Counter
from collections.abc import Iterable

from syncer.snapshots.history import Snapshot
from syncer.values import NAME_MAX_BYTES

SUFFIX_BYTES = 24
"""Room for what tells snapshots of the same second and label apart."""
REMEMBERED = 16_384
"""So many names are remembered: after each snapshot only one is new."""


def snapshot_names(snapshots: Iterable[Snapshot]) -> dict[bytes, Snapshot]:
    """The name of each, in the order given: `2026-11-21_14-05-00`, with a label `2026-11-21_14-05-00_before-cleanup`.

    Where several would have the same name, all have the parts of the second as well: so when one of them is deleted,
    no name of it becomes that of another. Those that agree even there have `-2`, `-3` and so on behind their names.
    """
    known = list(snapshots)
    names = [_plain(snapshot.time_ns // 10**9, snapshot.label) for snapshot in known]
    counts = Counter(names)
    named: dict[bytes, Snapshot] = {}
    for snapshot, plain in zip(known, names, strict=True):
        name = base = plain
        if counts[plain] > 1:
            name = base = _long(snapshot, plain)
        count = 1
        while name in named:
            count += 1
            name = b"%s-%d" % (base, count)
        named[name] = snapshot
    return named


def find_by_long_name(name: bytes, snapshots: Iterable[Snapshot]) -> Snapshot | None:
    """The one that *name*, with the parts of the second, stands for, also when the others of that second are gone."""
    match = _LONG.match(name)
    if match is None:
        return None
    alike = (snapshot for snapshot in snapshots if snapshot.time_ns % 10**9 == int(match[1]))
    return next((one for one in alike if name == _long(one, _plain(one.time_ns // 10**9, one.label))), None)


_LONG = re.compile(rb"[-_0-9]+\.([0-9]{9})")


def _long(snapshot: Snapshot, plain: bytes) -> bytes:
    """With the parts of the second."""
    begin = time_name(snapshot.time_ns)
    return begin + b".%09d" % (snapshot.time_ns % 10**9) + plain.removeprefix(begin)


@functools.lru_cache(REMEMBERED)
def _plain(second: int, label: str | None) -> bytes:
    """Of a snapshot that has its second and label to itself."""
    return time_name(second * 10**9) + (b"_" + _clean(label) if label else b"")


def time_name(time_ns: int) -> bytes:
    """The local time as a file name, to the second."""
    return b"%04d-%02d-%02d_%02d-%02d-%02d" % time.localtime(time_ns // 10**9)[:6]


def _clean(label: str) -> bytes:
    """A label as a part of a file name, which holds no slash and no NUL, and must not become too long."""
    text = label.replace("/", "-").replace("\0", "-").encode("utf-8", "surrogateescape")
    return text[: NAME_MAX_BYTES - SUFFIX_BYTES - len(time_name(0))]
