"""The remote cannot be reached: what is here works on, what is not fails in time, and everything comes back."""

import errno
import os
import random
import time
from pathlib import Path

import pytest

from tests.acceptance.conftest import MakeRemote
from tests.support.long_form import seldom
from tests.support.mount import Mount, forget_pages
from tests.support.mounted import wait_until

pytestmark = pytest.mark.slow

DEADLINE_S = 2.0
GRACE_S = 3.0
"""What a busy machine may add to a deadline."""
PROMPT_S = 2.0
"""What needs no network must not take longer, network or not."""

EDIT = b"edited!!" * 512
EDIT_PLACE = 5000 * 4096
"""A page of the kernel's: for a part of one it would have to read the rest."""
CASES = [
    ("folder", "stopped"),
    ("ssh", "stopped"),
    ("ssh", "frozen"),
    ("rsync", "stopped"),
    ("s3", "stopped"),
    ("s3", "frozen"),
]


@pytest.mark.parametrize(("kind", "manner"), seldom(CASES, ("rsync", "stopped"), ("ssh", "stopped")))
def test_without_the_remote(kind: str, manner: str, place: Path, remote_of: MakeRemote) -> None:
    remote = remote_of(kind, own=True)
    old, new = random.Random(1).randbytes(40_000_000), random.Random(2).randbytes(40_000_000)
    with Mount(
        place, remote.url, 64, extra=remote.environment, network_deadline_s=DEADLINE_S, upload_delay_s=1.0
    ) as mount:
        mount.start()
        (mount.path / "old").write_bytes(old)
        mount.flush()
        (mount.path / "new").write_bytes(new)
        mount.flush()
        forget_pages(mount.path / "old")
        mount.expected_warnings = r" WARNING syncer\."
        with remote.outage(manner):
            _names_need_no_network(mount)
            _reads_of_what_is_not_here_fail_in_time(mount)
            _local_work_goes_on(mount, new)
        _service_returns(mount, old)
        mount.umount(wait=True)
        mount.forget_data()
        mount.start()
        assert (mount.path / "new").read_bytes() == new
        assert (mount.path / "written meanwhile").read_bytes() == new[:3_000_000]
        assert (mount.path / "old").read_bytes() == old[:EDIT_PLACE] + EDIT + old[EDIT_PLACE + 4096 :]
        mount.stop()
        mount.finish()


def _names_need_no_network(mount: Mount) -> None:
    begin = time.monotonic()
    assert sorted(os.listdir(mount.path)) == ["new", "old"]
    assert (mount.path / "old").stat().st_size == 40_000_000
    os.statvfs(mount.path)
    assert mount.status()["mounted"]
    assert time.monotonic() - begin < PROMPT_S


def _reads_of_what_is_not_here_fail_in_time(mount: Mount) -> None:
    begin = time.monotonic()
    with pytest.raises(OSError) as caught, open(mount.path / "old", "rb", buffering=0) as file:
        while file.read(1_000_000):  # its end may be here still
            pass
    assert caught.value.errno == errno.EIO
    assert time.monotonic() - begin < DEADLINE_S + GRACE_S


def _local_work_goes_on(mount: Mount, new: bytes) -> None:
    begin = time.monotonic()
    forget_pages(mount.path / "new")
    with open(mount.path / "new", "rb", buffering=0) as file:
        assert os.pread(file.fileno(), 1_000_000, 30_000_000) == new[30_000_000:31_000_000]
    (mount.path / "written meanwhile").write_bytes(new[:3_000_000])
    assert (mount.path / "written meanwhile").read_bytes() == new[:3_000_000]
    with open(mount.path / "old", "r+b", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # no reading ahead
        os.pwrite(file.fileno(), EDIT, EDIT_PLACE)
        os.fsync(file.fileno())
        assert os.pread(file.fileno(), len(EDIT), EDIT_PLACE) == EDIT
    (mount.path / "directory").mkdir()
    (mount.path / "directory").rename(mount.path / "renamed")
    (mount.path / "renamed").rmdir()
    assert time.monotonic() - begin < PROMPT_S


def _service_returns(mount: Mount, old: bytes) -> None:
    def reads() -> bool:
        try:
            with open(mount.path / "old", "rb", buffering=0) as file:
                return os.pread(file.fileno(), 100_000, 1_000_000) == old[1_000_000:1_100_000]
        except OSError as error:
            assert error.errno == errno.EIO
            return False

    wait_until(reads, "reads are served again")
    mount.flush()
    assert mount.status()["remote_ok"] is True


def test_no_network_at_mount_time_is_no_reason_not_to_mount(place: Path, remote_of: MakeRemote) -> None:
    remote = remote_of("ssh", own=True)
    with Mount(place, remote.url, 64, extra=remote.environment, network_deadline_s=DEADLINE_S) as mount:
        mount.start()
        (mount.path / "x").write_bytes(b"kept")
        mount.umount(wait=True)
        mount.expected_warnings = r" WARNING syncer\."
        with remote.outage("stopped"):
            mount.start()
            assert (mount.path / "x").read_bytes() == b"kept"
            (mount.path / "y").write_bytes(b"later")
            assert "safe in DATA" in mount.stop()
        mount.start()
        mount.umount(wait=True)
        mount.forget_data()
        mount.start()
        assert (mount.path / "y").read_bytes() == b"later"
        mount.stop()
        mount.finish()
