"""One tree with everything in it, looked at again after each thing that may happen to a mount: it must be the same.

A remount, an eviction of all its contents, a crash, and a rebuild from the remote alone.
"""

import os
import random
import signal
import struct
from pathlib import Path

import pytest

from syncer.values import SMALL_BYTES
from tests.acceptance.conftest import MakeRemote
from tests.support.collection import make_oddities, random_bytes, write_media
from tests.support.core_check import check_stopped
from tests.support.mount import Mount
from tests.support.posix import as_root
from tests.support.state import State, assert_same, state

pytestmark = pytest.mark.slow

MEGABYTES, LIFETIME_S = 64, 300.0
MANY, DEPTH = 2000, 120
LARGE_BYTES = 9_000_000
BALLAST_BYTES, SMALL_BALLAST = 60_000_000, 1300
CAPABILITY = struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0)
SECOND_NS = 10**9
FAR_NS = (9_000_000_000 * SECOND_NS + 987_654_321, -9_000_000_000 * SECOND_NS + 1)
"""In the years 2255 and 1684."""


# --- the tree --------------------------------------------------------------------------------------------------------


def build(top: Path, chance: random.Random) -> None:
    top.mkdir()
    make_oddities(top / "odd", chance)
    make_names(top / "names")
    make_many(top / "many", chance)
    make_attributes(top / "attributes")
    make_links(top, chance)
    for name in ("appended", "edited", "holed", "shortened", "kept", "moved"):
        write_media(top / name, LARGE_BYTES, chance)
    for name in ("far", "past"):
        (top / name).write_bytes(name.encode())


def make_names(folder: Path) -> None:
    """Every byte a name can have: alone, in the middle, and in the name of a directory and of a symlink's target."""
    folder.mkdir()
    place = os.fsencode(folder)
    for number in set(range(1, 256)) - {ord("/")}:
        byte = bytes([number])
        if byte != b".":
            os.mkdir(os.path.join(place, byte))
        with open(os.path.join(place, b"a" + byte + b"z"), "wb") as file:
            file.write(byte * number)
        os.symlink(byte, os.path.join(place, byte + b" target"))


def make_many(folder: Path, chance: random.Random) -> None:
    """A directory with thousands of entries, and a deep one."""
    folder.mkdir()
    for number in range(MANY):
        (folder / f"{number:05}").write_bytes(chance.randbytes(number % 50))
    deep = folder.joinpath(*(f"{level:03}" for level in range(DEPTH)))
    deep.mkdir(parents=True)
    (deep / "bottom").write_bytes(chance.randbytes(100_000))


def make_attributes(folder: Path) -> None:
    folder.mkdir()
    (folder / "file").touch()
    (folder / "directory").mkdir()
    os.mkfifo(folder / "fifo")
    (folder / "symlink").symlink_to("x" * 4000)
    for path in folder.iterdir():
        os.setxattr(path, "trusted.binary", bytes(range(256)), follow_symlinks=False)
        os.setxattr(path, "security.note", b"", follow_symlinks=False)
        os.chown(path, 61001, 61002, follow_symlinks=False)
        if not path.is_symlink():
            path.chmod(0o7531)
    os.setxattr(folder / "file", "security.capability", CAPABILITY)
    os.setxattr(folder / "file", "user.largest", random_bytes(1 << 16, seed=5))
    os.setxattr(folder / "directory", "user." + "n" * 250, b"a long name")
    for number in range(30):
        os.setxattr(folder / "directory", f"user.{number}", b"%d" % number)


def make_links(top: Path, chance: random.Random) -> None:
    """One file with names in many directories."""
    write_media(top / "linked", 300_000, chance)
    for number in range(20):
        (top / "links" / f"{number}").mkdir(parents=True)
        os.link(top / "linked", top / "links" / f"{number}" / "name")
    os.unlink(top / "linked")


def change(top: Path, chance: random.Random) -> None:
    """Change what is on the remote already: overlays, tails, holes, names."""
    with open(top / "edited", "r+b") as file:
        for _ in range(300):
            file.seek(chance.randrange(LARGE_BYTES))
            file.write(chance.randbytes(chance.choice((1, 100, 4096, 70_000))))
        file.seek(LARGE_BYTES + 5_000_000)
        file.write(b"past the end")
    with open(top / "appended", "ab") as file:
        file.write(chance.randbytes(100_001))
    with open(top / "holed", "r+b") as file:
        file.seek(1_000_000)
        file.write(bytes(4_000_000))
    os.truncate(top / "shortened", 1_234_567)
    os.truncate(top / "shortened", 3_000_000)
    (top / "new place").mkdir()
    os.rename(top / "moved", top / "new place" / "moved")
    os.rename(top / "many" / "00000", top / "many" / "renamed")
    os.unlink(top / "many" / "00001")
    os.rename(top / "odd" / "links", top / "new place" / "links")
    for name, time_ns in zip(("far", "past"), FAR_NS, strict=True):
        os.utime(top / name, ns=(time_ns, time_ns))


# --- what happens to it ----------------------------------------------------------------------------------------------


def evict_everything(mount: Mount, noted: State) -> None:
    """Let newer bytes take the place of all others, large and small: afterwards the tree's own must be fetched."""
    ballast = mount.path / "ballast"
    ballast.mkdir()
    for number in range(SMALL_BALLAST):
        (ballast / f"{number}").write_bytes(random_bytes(SMALL_BYTES - 1000, seed=number))
    (ballast / "large").write_bytes(random_bytes(BALLAST_BYTES, seed=-1))
    mount.flush()
    before = mount.status()["fetched_bytes"]
    assert_same(noted, state(mount.path / "tree"))
    fetched = mount.status()["fetched_bytes"] - before
    assert fetched > 5 * LARGE_BYTES, "it did not need to come back"


@as_root
def test_everything_is_as_it_was_whatever_happened(place: Path, remote_of: MakeRemote) -> None:
    with Mount(place, remote_of("folder").url, MEGABYTES, lifetime_s=LIFETIME_S) as mount:
        mount.start()
        top = mount.path / "tree"
        chance = random.Random(21)
        build(top, chance)
        mount.flush()
        change(top, chance)
        orphan = open(top / "removed while open", "w+b")  # noqa: SIM115 - it outlives the mount
        orphan.write(random_bytes(2_000_000, seed=6))
        orphan.flush()
        os.unlink(top / "removed while open")
        noted = state(top)
        assert len(noted.entries) > MANY + 900

        mount.stop()
        check_stopped(mount.data)
        mount.start()
        assert_same(noted, state(top))

        evict_everything(mount, noted)

        pid = mount.pid
        make_attributes(mount.path / "late")
        late = state(mount.path / "late")
        os.kill(pid, signal.SIGSTOP)  # or what was done last would be committed before the kill
        mount.kill()
        mount.start()
        assert_same(late, state(mount.path / "late"))
        assert_same(noted, state(top))

        orphan.close()

        mount.umount(wait=True)
        mount.forget_data()
        mount.start()
        assert_same(noted, state(top))
        mount.stop()
        check_stopped(mount.data)
        mount.finish()


@pytest.mark.parametrize("seconds", [9_300_000_000, 100_000_000_000, -9_300_000_000])
def test_a_time_too_far_is_the_farthest_and_harms_nothing(place: Path, remote_of: MakeRemote, seconds: int) -> None:
    with Mount(place, remote_of("folder").url, MEGABYTES) as mount:
        mount.start()
        path = mount.path / "file"
        path.write_bytes(b"content")
        os.utime(path, ns=(seconds * SECOND_NS, seconds * SECOND_NS))
        found_ns = path.stat().st_mtime_ns
        assert abs(found_ns) > 9_200_000_000 * SECOND_NS and (found_ns > 0) == (seconds > 0)
        mount.stop()
        mount.start()
        assert (path.read_bytes(), path.stat().st_mtime_ns) == (b"content", found_ns)
        mount.stop()
        mount.finish()
