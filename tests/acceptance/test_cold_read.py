"""How fast a large file comes from the remote that was never read here, beside the usual tool on the same server.

Alternating passes in one run; the best of each counts, so that a busy machine disturbs both alike.
"""

import random
import shutil
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.acceptance.conftest import MakeRemote, Scale, s3_client
from tests.support.mount import Mount
from tests.support.servers import S3Server, SshServer

pytestmark = pytest.mark.slow

PASSES = 3
SHARE = 0.8
READ_BYTES = 1 << 20


def seconds(action: Callable[[], object]) -> float:
    begin = time.monotonic()
    action()
    return time.monotonic() - begin


def read_through(path: Path) -> int:
    total = 0
    with open(path, "rb", buffering=0) as file:
        while part := file.read(READ_BYTES):
            total += len(part)
    return total


def filled(mount: Mount, scale: Scale) -> bytes:
    """Put one large file on the remote; DATA is gone afterwards."""
    data = random.Random(13).randbytes(scale.large_file_bytes)
    mount.start()
    (mount.path / "large").write_bytes(data)
    mount.umount(wait=True)
    mount.forget_data()
    return data


def cold_pass(mount: Mount, size: int) -> float:
    """Mount with an empty DATA and read the file; the mounting itself does not count."""
    mount.start()
    taken = seconds(lambda: _read_exactly(mount.path / "large", size))
    mount.stop()
    mount.forget_data()
    return taken


def _read_exactly(path: Path, size: int) -> None:
    assert read_through(path) == size


def test_over_ssh_beside_sshfs(place: Path, remote_of: MakeRemote, scale: Scale) -> None:
    if shutil.which("sshfs") is None:
        pytest.skip("sshfs, the tool to compare with, is not installed")
    remote = remote_of("ssh")
    server = remote.server
    assert isinstance(server, SshServer)
    ours, theirs = [], []
    with Mount(place, remote.url, 64, extra=remote.environment, lifetime_s=scale.lifetime_s) as mount:
        data = filled(mount, scale)
        (server.root / "large").write_bytes(data)
        for _ in range(PASSES):
            ours.append(cold_pass(mount, len(data)))
            theirs.append(_sshfs_pass(server, place / "sshfs", len(data)))
    _compare(ours, theirs, len(data))


def _sshfs_pass(server: SshServer, mountpoint: Path, size: int) -> float:
    mountpoint.mkdir(exist_ok=True)
    source = f"root@127.0.0.1:{server.root}"
    command = ["timeout", "60", "sshfs", "-F", str(server.config), "-p", str(server.port), source, str(mountpoint)]
    subprocess.run(command, check=True, timeout=60, capture_output=True)
    try:
        return seconds(lambda: _read_exactly(mountpoint / "large", size))
    finally:
        subprocess.run(["fusermount3", "-u", "-z", mountpoint], check=True, timeout=30)


def test_over_s3_beside_boto3(place: Path, remote_of: MakeRemote, scale: Scale) -> None:
    remote = remote_of("s3")
    server = remote.server
    assert isinstance(server, S3Server)
    ours, theirs = [], []
    with Mount(place, remote.url, 64, extra=remote.environment, lifetime_s=scale.lifetime_s) as mount:
        data = filled(mount, scale)
        packs = [f"{place.name}/{key}" for key in sorted(remote.keys()) if key.startswith("packs/")]

        def fetch_all() -> None:
            client = s3_client(server)  # a new one each time: connecting counts for both

            def fetch(key: str) -> int:
                return len(client.get_object(Bucket=server.bucket, Key=key)["Body"].read())

            with ThreadPoolExecutor(4) as threads:
                assert sum(threads.map(fetch, packs)) >= len(data)

        for _ in range(PASSES):
            ours.append(cold_pass(mount, len(data)))
            theirs.append(seconds(fetch_all))
    _compare(ours, theirs, len(data))


def _compare(ours: list[float], theirs: list[float], size: int) -> None:
    rates = [size / min(times) / 1e6 for times in (ours, theirs)]
    print(f"syncer {rates[0]:.0f} MB/s, the other {rates[1]:.0f} MB/s")
    assert rates[0] >= SHARE * rates[1], f"syncer {rates[0]:.0f} MB/s, the other {rates[1]:.0f} MB/s"
