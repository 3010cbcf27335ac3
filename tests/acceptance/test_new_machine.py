"""A machine that has nothing but the address of a remote: all names are there soon, with their identities."""

import os
import time
from pathlib import Path

import pytest

from tests.acceptance.conftest import LONG, MakeRemote
from tests.support.mount import Mount

pytestmark = pytest.mark.slow

FOLDERS, FILES = (1000, 100) if LONG else (20, 50)
BROWSABLE_S = 30.0
"""So long it may take until 100,000 files can be listed."""


def make(top: Path) -> None:
    for folder in range(FOLDERS):
        path = top / f"{folder:04d}"
        path.mkdir()
        for index in range(FILES):
            file = path / f"{index:03d}"
            file.write_bytes(b"%d in %d" % (index, folder))
            if index % 50 == 0:
                os.setxattr(file, "user.tag", b"%d" % folder)
                os.link(file, path / f"{index:03d}-again")


def listed(top: Path) -> dict[str, tuple[int, ...]]:
    """Path to (inode, mode, links, size, mtime) of everything below *top*."""
    found: dict[str, tuple[int, ...]] = {}
    for folder, folders, files in os.walk(top):
        for name in (*folders, *files):
            path = os.path.join(folder, name)
            at = os.lstat(path)
            found[os.path.relpath(path, top)] = (at.st_ino, at.st_mode, at.st_nlink, at.st_size, at.st_mtime_ns)
    return found


def test_all_names_are_there_soon(remote_of: MakeRemote, place: Path) -> None:
    remote = remote_of("ssh")
    with Mount(place, remote.url, 1000, extra=remote.environment, lifetime_s=1800.0 if LONG else 120.0) as mount:
        mount.start()
        make(mount.path)
        before = listed(mount.path)
        mount.umount(wait=True, timeout_s=1200.0)
        mount.forget_data()
        begin = time.monotonic()
        mount.start()
        ready = time.monotonic()
        after = listed(mount.path)
        done = time.monotonic()
        print(f"{len(after)} names: ready after {ready - begin:.1f} s, listed after {done - begin:.1f} s")
        assert after == before
        assert done - begin < BROWSABLE_S
        folder = mount.path / f"{FOLDERS - 1:04d}"
        assert os.getxattr(folder / "000", "user.tag") == b"%d" % (FOLDERS - 1)
        assert (folder / "007").read_bytes() == b"7 in %d" % (FOLDERS - 1)
        mount.umount()
        mount.finish()
