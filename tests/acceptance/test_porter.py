"""The porter beside a mount: on every remote, under a kill of either process, and at an unmount while it hangs."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.conftest import KINDS, MakeRemote
from tests.support.collection import random_bytes
from tests.support.long_form import seldom
from tests.support.mount import Mount, children, forget_pages
from tests.support.mounted import wait_until

pytestmark = pytest.mark.slow

LARGE_BYTES = 40 << 20
PROMPT_S = 20.0
"""An unmount with nothing to publish takes less; one that waited for a porter that hangs would take for ever."""


@pytest.fixture
def busy(place: Path, remote_of: MakeRemote, request: pytest.FixtureRequest) -> Iterator[Mount]:
    """A mount with a large file that has just begun to leave, and with a porter."""
    remote = remote_of(request.param)
    with Mount(place, remote.url, 200, extra=remote.environment, upload_delay_s=0.5) as mount:
        mount.start()
        (mount.path / "large").write_bytes(random_bytes(LARGE_BYTES, 7))
        wait_until(lambda: any(map(is_set_up, children(mount.pid))), "there is a porter")
        yield mount


def is_set_up(porter: int) -> bool:
    """Whether it has come to lower its priority, the last of what it does to itself."""
    return os.sched_getscheduler(porter) == os.SCHED_IDLE


def read_again(mount: Mount) -> None:
    forget_pages(mount.path / "large")
    assert (mount.path / "large").read_bytes() == random_bytes(LARGE_BYTES, 7)


def end(mount: Mount) -> None:
    mount.stop()
    mount.run("check", mount.data, "--remote", "--read-data")
    mount.finish()


@pytest.mark.parametrize("busy", seldom(KINDS, "rsync", "ssh"), indirect=True)
def test_all_that_goes_through_it_arrives(busy: Mount) -> None:
    busy.flush()
    assert children(busy.pid), "it was lost on the way"
    assert busy.status()["pending_upload_bytes"] == 0
    end(busy)


@pytest.mark.parametrize("busy", ["folder"], indirect=True)
def test_a_kill_of_the_porter(busy: Mount) -> None:
    busy.expected_warnings = "the porter"
    os.kill(children(busy.pid)[0], signal.SIGKILL)
    busy.flush()
    end(busy)


@pytest.mark.parametrize("busy", ["folder"], indirect=True)
def test_a_kill_of_the_mount_takes_the_porter_along(busy: Mount) -> None:
    (porter,) = children(busy.pid)
    os.kill(porter, signal.SIGSTOP)
    busy.kill()
    wait_until(lambda: not Path(f"/proc/{porter}/root").exists(), "the porter is gone")
    busy.start()
    read_again(busy)
    busy.flush()
    end(busy)


@pytest.mark.parametrize("busy", ["folder"], indirect=True)
def test_an_unmount_while_the_porter_hangs(busy: Mount) -> None:
    busy.flush()
    (porter,) = children(busy.pid)
    os.kill(porter, signal.SIGSTOP)
    begin = time.monotonic()
    busy.stop()
    assert time.monotonic() - begin < PROMPT_S
    assert not Path(f"/proc/{porter}").exists()
    busy.finish()
