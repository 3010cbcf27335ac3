"""The power is cut under the work of eight processes: what was fsynced is there, and everything fits together.

DATA is on ext4 on a disk of ours that forgets what was not flushed (tests/support/forgetful_disk.py). The remote keeps
what it has.
"""

import errno
import os
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from syncer.disk import start_writing
from tests.acceptance.conftest import MakeRemote
from tests.support.altered import altered
from tests.support.core_check import check_stopped
from tests.support.forgetful_disk import Manner, PowerCutDisk
from tests.support.logged_state import after_a_power_cut
from tests.support.logged_workers import Workers
from tests.support.long_form import LONG
from tests.support.mount import Mount
from tests.support.server_disks import needs_root

pytestmark = [pytest.mark.slow, needs_root]

ROUNDS = 100 if LONG else 2
CHECK_EVERY = 5 if LONG else 2
SEEN = ("journal", "fsync-files")
"""What is noticed when it does not sync. Of the others test_fsync.py and test_durability.py see the order of calls."""
SEEN_WITHIN = 20
DISK_BYTES = 300 << 20
LOST = (
    r" WARNING syncer\..*(did not reach the disk before the power went|cached copy is damaged or gone)"
    r"| WARNING syncer\.fs\.errmap: a call failed: block .* local copy is damaged"
    r"| ERROR syncer\..*(block .* is damaged here, and the remote has none|blocks that are damaged here and not on the)"
)
MANNERS: tuple[Manner, ...] = ("none", "some", "some", "all")


@contextmanager
def written_back(data: Path, chance: random.Random) -> Iterator[None]:
    """The kernel below writes files of DATA back, and commits its own journal, whenever it likes."""
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(chance.random() * 0.1):
            files = [path for path in data.rglob("*") if path.is_file()]
            for path in chance.sample(files, min(3, len(files))):
                try:
                    with open(path, "rb") as file:
                        start_writing(file.fileno())
                except OSError:
                    continue

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def play(place: Path, remote: str, logs: Path, rounds: int, *alterations: str) -> None:
    """Work, cut the power, mount, compare; *rounds* times. Raises: AssertionError: something was lost."""
    chance = random.Random(rounds)
    with PowerCutDisk(place, DISK_BYTES) as disk:
        mount = Mount(
            place, remote, 64, data=disk.folder / "data", lifetime_s=1800.0, upload_delay_s=0.5, snapshot_interval_s=2.0
        )
        mount.expected_warnings = LOST
        mount.program = altered("rebooted", *alterations)
        with mount:
            mount.start()
            workers = Workers(mount.path, logs)
            workers.make_folders()
            for number in range(rounds):
                with workers.working(number):
                    with written_back(mount.data, chance):
                        workers.wait(chance.randrange(50, 800 if LONG else 400))
                    disk.cut(chance.choice(MANNERS), str(number))
                    mount.kill()
                disk.pull_out()
                disk.plug_in()
                mount.start()
                workers.judge(after_a_power_cut)
                if number % CHECK_EVERY == CHECK_EVERY - 1:
                    mount.stop()
                    check_stopped(mount.data, power_went=True)
                    mount.start()
            mount.stop()
            mount.finish()


def test_what_was_fsynced_survives_power_cuts(place: Path, remote_of: MakeRemote, tmp_path: Path) -> None:
    play(place, remote_of("folder").url, tmp_path, ROUNDS)


@pytest.mark.parametrize("block_bytes", [1024, 4096] if LONG else [1024])
@pytest.mark.parametrize("small", [True, False])
def test_an_fsync_after_one_that_failed_is_no_lie(
    small: bool, block_bytes: int, place: Path, remote_of: MakeRemote
) -> None:
    """The kernel forgets that it has not written what the disk refused: the next sync would succeed without it.

    With small blocks what is refused goes to some that are new to the file: those ext4 does not write again.
    """
    data = random.Random(1).randbytes(1000 if small else 300_000)
    with PowerCutDisk(place, DISK_BYTES, block_bytes=block_bytes) as disk:
        mount = Mount(
            place,
            remote_of("folder").url,
            64,
            data=disk.folder / "data",
            upload_delay_s=3600.0,
            snapshot_interval_s=1e9,
        )
        mount.expected_warnings = r" ERROR syncer\.engine: checkpoint"
        mount.program = altered("rebooted")
        with mount:
            mount.start()
            fsynced(mount.path / "before", b"before")
            (journal,) = (mount.data / "journal").iterdir()
            if not small:
                (mount.path / "f").write_bytes(data)
                fsynced(mount.path / "f", data)
            spoiled = journal if small else max((mount.data / "dirty").iterdir())  # the overlay, after the tail
            with disk.spoiled(spoiled), pytest.raises(OSError) as caught:
                fsynced(mount.path / "f", data[::-1])
            assert caught.value.errno == errno.EIO
            fsynced(mount.path / "f", b"")
            disk.cut("none", "")
            mount.kill()
            disk.pull_out()
            disk.plug_in()
            mount.start()
            assert (mount.path / "before").read_bytes() == b"before"
            assert (mount.path / "f").read_bytes() == data[::-1]
            mount.stop()
            check_stopped(mount.data, power_went=True)
            mount.finish()


def fsynced(path: Path, data: bytes) -> None:
    """Write *data* over the beginning of the file. Raises: OSError."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        assert os.pwrite(descriptor, data, 0) == len(data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@pytest.mark.skipif(not LONG, reason="takes minutes: only in the long form")
@pytest.mark.parametrize("call", SEEN)
def test_a_sync_that_is_left_out_is_noticed(call: str, place: Path, remote_of: MakeRemote, tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        play(place, remote_of("folder").url, tmp_path, SEEN_WITHIN, f"unsynced={call}")
