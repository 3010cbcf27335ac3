"""The power is cut under the work of eight processes: what was fsynced is there, and everything fits together.

DATA is on ext4 on a disk of ours that forgets what was not flushed (tests/support/forgetful_disk.py). The remote keeps
what it has.
"""

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
"""What is noticed when it does not sync. Of the others test_durability.py sees the order of calls."""
SEEN_WITHIN = 20
DISK_BYTES = 300 << 20
LOST = r" WARNING syncer\..*(did not reach the disk before the power went|cached copy is damaged or gone)"
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


@pytest.mark.skipif(not LONG, reason="takes minutes: only in the long form")
@pytest.mark.parametrize("call", SEEN)
def test_a_sync_that_is_left_out_is_noticed(call: str, place: Path, remote_of: MakeRemote, tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        play(place, remote_of("folder").url, tmp_path, SEEN_WITHIN, f"unsynced={call}")
