"""Where the POSIX tests run: each on a plain folder, which says that the test itself is right, and on a mount.

What the tests leave behind must then survive a remount, and the loss of everything local: it is noted at the end and
compared after each.

With `--posix-on DIR` they run below that folder alone, whatever file system it is on.
"""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.long_form import LONG
from tests.support.mount import Mount, place_for_a_mount
from tests.support.state import State, assert_same, state

LIFETIME_S = 8 * 3600.0 if LONG else 3600.0
LARGE_BYTES, CROWD = 32 << 20, 2000
"""Files beyond that are sampled in the end (some have a terabyte of holes), and so are directories."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "top" in metafunc.fixturenames:
        kinds = ["given"] if metafunc.config.getoption("--posix-on") else ["plain", "syncer"]
        if metafunc.module.__name__.endswith("heavy_programs") and not LONG:
            kinds = [kind for kind in kinds if kind != "plain"]  # half a minute for what is known
        metafunc.parametrize("top", kinds, indirect=True, scope="package")


@pytest.fixture(scope="package")
def top(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A folder of the kind under test, shared by all tests of this package. Every user may pass through it."""
    if request.param != "syncer":
        with tempfile.TemporaryDirectory(prefix="syncer-plain-", dir=request.config.getoption("--posix-on")) as folder:
            os.chmod(folder, 0o755)
            yield Path(folder)
        return
    with place_for_a_mount() as place:
        os.chmod(place, 0o755)
        with Mount(place, f"{place}/blobs", 200, lifetime_s=LIFETIME_S) as mount:
            options = ["--allow-other"] if os.geteuid() == 0 else []
            mount.start(*options)
            os.chmod(mount.path, 0o755)
            yield mount.path
            noted = end_state(mount)
            mount.stop()
            mount.start(*options)
            survived(noted, mount)
            mount.umount(wait=True)
            mount.forget_data()
            mount.start(*options)
            survived(noted, mount)
            mount.stop()
            mount.finish()


def end_state(mount: Mount) -> State | None:
    """What the tests have left behind; None where only root may look at all of it."""
    return state(mount.path, large_bytes=LARGE_BYTES, crowd=CROWD) if os.geteuid() == 0 else None


def survived(noted: State | None, mount: Mount) -> None:
    if noted is not None:
        assert_same(noted, state(mount.path, large_bytes=LARGE_BYTES, crowd=CROWD))


@pytest.fixture
def folder(top: Path) -> Path:
    """An empty folder for one test, with mode 0777: every user may make files in it."""
    folder = Path(tempfile.mkdtemp(prefix="t-", dir=top))
    folder.chmod(0o777)
    return folder
