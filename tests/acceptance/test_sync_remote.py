"""`--sync=remote`: an fsync that returned is on the remote, in a snapshot; one that cannot be fails."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.acceptance.conftest import MakeRemote
from tests.support.mount import Mount
from tests.support.mounted import wait_until

pytestmark = pytest.mark.slow

SYNC = "import os, sys; print('syncing', flush=True); os.fsync(os.open(sys.argv[1], os.O_RDONLY))"


def written(path: Path, content: bytes) -> None:
    """Written and fsynced. Raises: OSError."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


@pytest.mark.parametrize("option", ["--sync=remote", "--option=sync=remote"])
def test_an_fsync_reaches_the_remote(option: str, place: Path, remote_of: MakeRemote) -> None:
    remote = remote_of("folder")
    words = option.replace("--option=", "-o ").split()
    with Mount(place, remote.url, 64, upload_delay_s=3600.0) as mount:
        mount.start(*words)
        written(mount.path / "small", b"small")
        written(mount.path / "large", bytes(range(256)) * 4096)
        assert os.getxattr(mount.path / "large", "user.syncer.state") == b"uploaded"
        (mount.path / "not synced").write_bytes(b"here alone")
        mount.kill()
        mount.forget_data()
        mount.start("--take-over")
        assert sorted(os.listdir(mount.path)) == ["large", "small"]
        assert (mount.path / "small").read_bytes() == b"small"
        assert (mount.path / "large").read_bytes() == bytes(range(256)) * 4096
        mount.stop()
        mount.finish()


def test_without_the_remote(place: Path, remote_of: MakeRemote) -> None:
    remote = remote_of("ssh", own=True)
    with Mount(place, remote.url, 64, extra=remote.environment, network_deadline_s=2.0) as mount:
        mount.start("--sync=remote")
        written(mount.path / "before", b"before")
        mount.expected_warnings = r" WARNING syncer\."
        with remote.outage("frozen"):
            (mount.path / "interrupted").write_bytes(b"interrupted")
            command = [sys.executable, "-c", SYNC, str(mount.path / "interrupted")]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            assert process.stdout and process.stdout.readline() == b"syncing\n"
            wait_until(lambda: Path(f"/proc/{process.pid}/syscall").read_text().startswith("74 "), "it is in fsync(2)")
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=1.5)
        with remote.outage("stopped"), pytest.raises(OSError) as caught:
            written(mount.path / "refused", b"refused")
        assert caught.value.errno == errno.EIO
        written(mount.path / "after", b"after")
        assert os.getxattr(mount.path / "refused", "user.syncer.state") == b"uploaded"
        mount.stop()
        mount.finish()
