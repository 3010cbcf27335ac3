"""`syncer recover` as a user meets it: after a crash that took meta.db, on a real mount with a real remote."""

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.collection import differences, manifest
from tests.support.command import CHECKOUT, environment, syncer
from tests.support.long_form import LONG
from tests.support.mount import Mount, place_for_a_mount
from tests.support.mounted import foreground

pytestmark = pytest.mark.slow

STEP = 1 if LONG else 6
DATA, IN_USE, UNREACHABLE, DAMAGE = 3, 4, 23, 30


@pytest.fixture
def place() -> Iterator[Path]:
    with place_for_a_mount() as folder:
        (folder / "blobs").mkdir()
        yield folder


def fill(folder: Path, rng: random.Random) -> None:
    """Files of every form: small, a tail, blocks, overwritten; a link, a directory."""
    folder.mkdir()
    for name, size in (("small", 100), ("medium", 70_000), ("large", 3_000_000)):
        (folder / name).write_bytes(rng.randbytes(size))
    with open(folder / "large", "r+b") as file:
        file.seek(1_000_000)
        file.write(b"over")
    os.link(folder / "small", folder / "linked")
    (folder / "way").symlink_to("small")


def test_a_lost_database_comes_back_with_what_was_never_uploaded(place: Path) -> None:
    rng = random.Random(1)
    with Mount(place, str(place / "blobs"), 100) as mount:
        mount.start()
        fill(mount.path / "uploaded", rng)
        mount.flush()
        fill(mount.path / "newer", rng)
        (mount.path / "uploaded" / "medium").unlink()
        refused = syncer("recover", mount.data)
        assert (refused.returncode, "in use" in refused.stderr) == (IN_USE, True)
        before = manifest(mount.path)
        mount.kill()
        refused = syncer("recover", mount.data)
        assert (refused.returncode, "nothing is wrong" in refused.stderr) == (DATA, True)
        lose_database(mount.data)
        refused = syncer(mount.data, mount.path)
        assert refused.returncode == DAMAGE
        assert "meta.db is gone; rebuild it: `syncer recover " in refused.stderr
        (place / "blobs").rename(place / "away")
        names = sorted(os.listdir(mount.data))
        refused = syncer("recover", mount.data)
        assert refused.returncode == UNREACHABLE
        assert sorted(os.listdir(mount.data)) == names, "without the remote nothing is done"
        (place / "away").rename(place / "blobs")
        said = mount.run("recover", mount.data, place / "blobs")
        assert "files from the remote, 4 newer ones from here, 0 in lost+found, 0 with lost bytes" in said
        mount.start()
        assert differences(before, manifest(mount.path)) == []
        counted = mount.status()["used_bytes"]
        on_disk = sum(path.lstat().st_blocks * 512 for path in mount.data.rglob("*") if path.is_file())
        assert abs(counted - on_disk) < 4_000_000, (counted, on_disk)
        mount.umount()
        mount.forget_data()
        mount.start("--take-over")
        assert differences(before, manifest(mount.path)) == []
        mount.stop()
        mount.finish()


def lose_database(data: Path) -> None:
    for path in data.glob("meta.db*"):
        path.unlink()


def test_damage_found_while_mounting_names_the_command(place: Path) -> None:
    with foreground(place / "data", place / "blobs", make(place / "mnt"), 100, mountpoint=place / "mnt") as mount:
        fill(place / "mnt" / "files", random.Random(2))
        before = manifest(place / "mnt")
        mount.end()
    with open(place / "data" / "meta.db", "r+b") as file:
        file.seek(100)
        file.write(os.urandom(20_000))
    refused = syncer(place / "data", place / "mnt")
    assert refused.returncode == DAMAGE
    assert "; rebuild it: `syncer recover " in refused.stderr
    assert syncer("recover", place / "data").returncode == 0
    with foreground(place / "data", place / "mnt", mountpoint=place / "mnt") as mount:
        assert differences(before, manifest(place / "mnt")) == []
        mount.end()


def make(folder: Path) -> Path:
    folder.mkdir()
    return folder


# --- killed half-way --------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from pathlib import Path
from syncer import app, config
from syncer.datadir import DataDirectory
from syncer.meta import store

data, count = Path(sys.argv[1]), int(sys.argv[2])

def killing(call):
    def counted(*arguments, **options):
        global count
        if not count:
            os.kill(os.getpid(), signal.SIGKILL)
        count -= 1
        return call(*arguments, **options)
    return counted

for name in ("rename", "replace", "unlink", "rmdir", "mkdir"):
    setattr(os, name, killing(getattr(os, name)))
store.MetaStore.commit = killing(store.MetaStore.commit)
with DataDirectory.open(data) as directory:
    app.recover(data, config.load(directory.config), force=False, say=lambda line: None)
"""
"""Recovers DATA, and dies before the change to the disk of that number."""


def test_a_recovery_may_be_killed_anywhere(place: Path) -> None:
    with Mount(place, str(place / "blobs"), 100) as mount:
        mount.start()
        fill(mount.path / "uploaded", random.Random(3))
        mount.flush()
        fill(mount.path / "newer", random.Random(4))
        before = manifest(mount.path)
        mount.kill()
        lose_database(mount.data)
        done = mount.data / "recovering" / "done"
        count = 0
        while not done.exists():
            assert not ended(mount.data, count), "it changed places before all was there"
            count += STEP
        assert count > STEP, "the work was killed, too"
        exchanged = 0
        while not ended(mount.data, exchanged):  # goes on where the one before was killed
            exchanged += 1
        assert exchanged > 2
        assert not done.parent.exists()
        mount.start()
        assert differences(before, manifest(mount.path)) == []
        mount.stop()
        mount.finish()


def ended(data: Path, count: int) -> bool:
    """Let a recovery of DATA run up to its change number *count*; True when it came to its end, or that before it."""
    command = [sys.executable, "-c", KILLED, str(data), str(count)]
    outcome = subprocess.run(
        command, cwd=CHECKOUT, env=environment(), timeout=60, check=False, stderr=subprocess.PIPE, text=True
    )
    if outcome.returncode == 1 and "DataUnusable: nothing is wrong with" in outcome.stderr:
        return True
    assert outcome.returncode in (0, -signal.SIGKILL), outcome.stderr
    return outcome.returncode == 0
