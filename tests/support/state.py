"""Everything that can be seen of a tree: noted once, and compared with what is seen of it later."""

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.collection import Manifest, differences, manifest
from tests.support.syscalls import status
from tests.support.syscalls_data import DT_BLK, DT_CHR, DT_DIR, DT_FIFO, DT_LNK, DT_REG, DT_SOCK, Directory

TYPES = {"directory": DT_DIR, "-": DT_REG, "l": DT_LNK, "p": DT_FIFO, "s": DT_SOCK, "c": DT_CHR, "b": DT_BLK}


@dataclass(slots=True)
class State:
    """
    Attributes:
        entries: kinds, modes, owners, times, links, sizes, devices, attributes and contents.
        identities: the inode number and the time of the last change (ctime) in nanoseconds, by relative path.
        listings: a hash of all names, inode numbers and types that a directory lists, by relative path.
    """

    entries: Manifest
    identities: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    listings: dict[bytes, bytes] = field(default_factory=dict)


def state(top: Path, *, large_bytes: int | None = None, crowd: int | None = None) -> State:
    """Look at everything below *top*; what the kernel remembers, and what directories say, must agree with it.

    *large_bytes* and *crowd* are those of `manifest`; all names of a crowded directory are in `listings` all the same.
    """
    found = State(manifest(top, large_bytes=large_bytes, crowd=crowd))
    for path in found.entries:
        noted = status(os.path.normpath(os.path.join(os.fsencode(top), path)))
        found.identities[path] = (noted.number, noted.ctime_ns)
    for path, entry in found.entries.items():
        if entry.kind == "directory":
            with Directory(top / os.fsdecode(path)) as directory:
                children = sorted((os.fsencode(child.name), child.inode, child.type) for child in directory)
            found.listings[path] = hashlib.sha256(repr(children).encode()).digest()
            for name, number, kind in children:
                child = os.path.normpath(os.path.join(path, name))
                if child in found.entries:
                    assert (number, kind) == (found.identities[child][0], TYPES[found.entries[child].kind]), child
                else:
                    assert crowd is not None and len(children) > crowd, child
    return found


def assert_same(before: State, after: State) -> None:
    assert differences(before.entries, after.entries) == []
    changed = {path: (was, after.identities[path]) for path, was in before.identities.items()}
    assert {path: pair for path, pair in changed.items() if pair[0] != pair[1]} == {}
    assert [path for path, was in before.listings.items() if after.listings[path] != was] == []
