"""Somebody else fills the disk that DATA is on: writers are told so, everything else goes on, and nothing is lost."""

import errno
import os
import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.acceptance.conftest import MakeRemote
from tests.support.core_check import check_stopped
from tests.support.long_form import LONG
from tests.support.mount import Mount
from tests.support.mounted import wait_until
from tests.support.server_disks import needs_root

pytestmark = [pytest.mark.slow, needs_root]

DISK_BYTES = (300 if LONG else 120) << 20
FILE_BYTES = 700_000
DEADLINE_S = 2.0


@contextmanager
def ext4_disk(place: Path) -> Iterator[Path]:
    """A folder on an ext4 file system of its own."""
    image, folder = place / "image", place / "disk"
    folder.mkdir()
    with open(image, "wb") as file:
        file.truncate(DISK_BYTES)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill(file: Path) -> None:
    """Take all the room there is, to the last block."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        for size in (1 << 24, 1 << 20, 1 << 16, 1 << 12):
            try:
                while True:
                    os.write(descriptor, bytes(size))
            except OSError as error:
                assert error.errno == errno.ENOSPC
    finally:
        os.close(descriptor)


def test_a_disk_filled_by_others(place: Path, remote_of: MakeRemote) -> None:
    with ext4_disk(place) as disk:
        remote = remote_of("folder")
        with Mount(place, remote.url, 200, data=disk / "data", network_deadline_s=DEADLINE_S) as mount:
            mount.expected_warnings = r" (WARNING|ERROR) syncer\..*(full|No space|no room|budget|not at|is gone)"
            mount.start()
            with remote.outage("stopped"):
                written = write_until_full(mount.path, disk / "others")
                check(mount.path, written)
                for name in sorted(written)[3:]:
                    os.unlink(mount.path / name)
                    del written[name]
                wait_until(lambda: os.statvfs(disk).f_bavail > 2000, "what was deleted makes room")
                fill(disk / "others")
                check(mount.path, written)
                with pytest.raises(OSError) as caught:
                    (mount.path / "more").write_bytes(bytes(range(256)) * 40_000)
                assert caught.value.errno == errno.ENOSPC
            (disk / "others").unlink()
            wait_until(lambda: works_again(mount.path), "the mount takes writes again")
            written["again"] = (mount.path / "again").read_bytes()
            (mount.path / "more").unlink(missing_ok=True)
            mount.kill()
            mount.start()
            check(mount.path, written)
            mount.umount(wait=True)
            check_stopped(mount.data)
            mount.forget_data()
            mount.start()
            check(mount.path, written)
            mount.stop()


def write_until_full(folder: Path, others: Path) -> dict[str, bytes]:
    """Write files; at the thirtieth somebody fills the disk. What was written, until there was an error."""
    chance, written = random.Random(1), dict[str, bytes]()
    for number in range(1000):
        if number == 30:
            fill(others)
        name, data = f"{number}", chance.randbytes(FILE_BYTES if number % 3 else 20_000)
        try:
            (folder / name).write_bytes(data)
        except OSError as error:
            assert error.errno == errno.ENOSPC and number >= 30
            (folder / name).unlink(missing_ok=True)
            return written
        written[name] = data
    raise AssertionError("the disk never was full")


def check(folder: Path, written: dict[str, bytes]) -> None:
    assert set(os.listdir(folder)) - {"more"} == set(written)
    for name, data in written.items():
        assert (folder / name).read_bytes() == data, name


def works_again(folder: Path) -> bool:
    try:
        (folder / "again").write_bytes(random.Random(2).randbytes(3_000_000))
    except OSError as error:
        assert error.errno == errno.ENOSPC
        return False
    return True
