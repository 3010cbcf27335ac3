"""Everything at once: eight processes of different kinds, far more data than the budget, and a network with faults.

No call may fail, no byte may be another, memory stays flat, and the log holds nothing but the network's faults.
"""

import random
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.core_check import check_stopped
from tests.support.logged_state import after_a_kill
from tests.support.logged_workers import Workers
from tests.support.long_form import LONG
from tests.support.mount import Mount, forget_pages
from tests.support.programs import run
from tests.support.proxy import Proxy, Weather
from tests.support.server_disks import needs_root, small_disk
from tests.support.servers import S3Server

pytestmark = [
    pytest.mark.slow,
    needs_root,
    pytest.mark.skipif(not LONG, reason="takes half an hour: part of the long form (scripts/test --long)"),
]

LOAD_S = 1800.0
MEGABYTES = 200
DISK_BYTES = 1_000_000_000
"""Of the file system that DATA has to itself, so that it can be asked how much that takes at one instant."""
DEADLINE_S = 120.0
"""Longer than any fault, so that no call may fail."""
FAULT_S = 8.0
FAULTS = (
    Weather(answer="SlowDown"),
    Weather(delay_s=0.05),
    Weather(black_hole=True),
    Weather(bytes_per_s=500_000),
    Weather(refusing=True),
    Weather(answer="InternalError"),
)
WRITERS = 5
COLD_FILES, COLD_BYTES = 60, 8_000_000
FLAT_BYTES = 40_000_000
"""So much more memory may be in use at the end than half-way."""
STRESSORS = ("dentry", "dir", "hdd", "iomix", "rename", "link", "symlink", "xattr", "utime", "touch")

Job = Callable[[float], object]


def cold(number: int) -> bytes:
    return random.Random(number).randbytes(COLD_BYTES)


def read_cold(folder: Path, end: float) -> int:
    """Read what does not fit into the budget, over and over; how many files were read."""
    chance, count = random.Random(1), 0
    while time.monotonic() < end:
        number = chance.randrange(COLD_FILES)
        forget_pages(folder / str(number))
        assert (folder / str(number)).read_bytes() == cold(number), f"cold/{number}"
        count += 1
    return count


def fio(folder: Path, end: float) -> int:
    """Random writes with their own verification, over and over; how many runs."""
    count = 0
    while time.monotonic() < end or not count:
        options = ["--name=x", f"--directory={folder}", "--size=64m", "--rw=randrw", "--bsrange=512-64k"]
        options += ["--bs_unaligned=0", "--fsync=200", "--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0"]
        run("fio", *options, f"--randseed={count}", within_s=LOAD_S + 600)
        count += 1
    return count


def stress(folder: Path, end: float) -> str:
    """stress-ng's file system class, for as long as it takes."""
    seconds = max(1, int(end - time.monotonic()))
    stressors = [word for name in STRESSORS for word in (f"--{name}", 1)]
    limits = ["--hdd-bytes", "8m", "--iomix-bytes", "8m", "--oomable"]
    command = ["stress-ng", "--temp-path", folder, "--verify", "--timeout", seconds, *stressors, *limits]
    printed = run(*command, merged=True, within_s=LOAD_S + 600)
    assert "successful run completed" in printed and " fail:" not in printed, printed
    return printed


def change_the_weather(proxy: Proxy, end: float) -> int:
    """A fault, and good weather for twice as long; how many faults."""
    count = 0
    while time.monotonic() < end:
        proxy.weather = FAULTS[count % len(FAULTS)]
        if count % 2:
            proxy.cut()
        time.sleep(FAULT_S)
        proxy.weather = Weather()
        time.sleep(2 * FAULT_S)
        count += 1
    return count


def resident_bytes(pid: int) -> int:
    """What the process has in memory now."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


def test_under_load_with_faults(place: Path, tmp_path: Path) -> None:
    with S3Server() as server, Proxy(server.port) as proxy, small_disk(place / "disk", DISK_BYTES) as disk:
        extra = {**server.environment, "AWS_ENDPOINT_URL": proxy.endpoint}
        with Mount(
            place,
            server.url(place.name),
            MEGABYTES,
            data=disk / "data",
            alone=True,
            extra=extra,
            lifetime_s=LOAD_S + 1200,
            network_deadline_s=DEADLINE_S,
            upload_delay_s=1.0,
            snapshot_interval_s=10.0,
        ) as mount:
            mount.expected_warnings = r" WARNING syncer\.(blocks\.uploader|snapshots\.publisher|backends\.retry)"
            mount.start()
            for folder in ("cold", "fio", "stress"):
                (mount.path / folder).mkdir()
            for number in range(COLD_FILES):
                (mount.path / "cold" / str(number)).write_bytes(cold(number))
            mount.flush()
            workers = Workers(mount.path, tmp_path, WRITERS)
            workers.make_folders()
            with workers.working("load"):
                half_way = _load(mount, proxy)
                assert workers.ended() == [], "a call failed"
            at_the_end = resident_bytes(mount.pid)
            assert at_the_end < half_way + FLAT_BYTES, f"{half_way} bytes of memory half-way, {at_the_end} at the end"
            workers.judge(after_a_kill)
            assert workers.operations > 100
            mount.flush(timeout_s=300)
            mount.umount(wait=True, timeout_s=300)
            check_stopped(mount.data)
            mount.forget_data()
            mount.start()
            workers.judge(after_a_kill)
            assert read_cold(mount.path / "cold", time.monotonic() + 1)
            mount.stop()
            mount.finish()


def _load(mount: Mount, proxy: Proxy) -> int:
    """All the work but the writers'; how much memory was in use half-way. Raises: AssertionError."""
    end = time.monotonic() + LOAD_S
    with ThreadPoolExecutor(4) as pool:
        jobs: list[Future[object]] = [
            pool.submit(read_cold, mount.path / "cold", end),
            pool.submit(fio, mount.path / "fio", end),
            pool.submit(stress, mount.path / "stress", end),
            pool.submit(change_the_weather, proxy, end),
        ]
        time.sleep(LOAD_S / 2)
        half_way = resident_bytes(mount.pid)
        for job in jobs:
            assert job.result(), "nothing was done"
    return half_way
