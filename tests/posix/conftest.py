"""Where the POSIX tests run: each on a plain folder, which says that the test itself is right, and on a mount."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.mount import Mount, place_for_a_mount

LIFETIME_S = 300.0


@pytest.fixture(scope="package", params=["plain", "syncer"])
def top(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A folder of the kind under test, shared by all tests of this package."""
    if request.param == "plain":
        with tempfile.TemporaryDirectory(prefix="syncer-plain-") as folder:
            yield Path(folder)
        return
    with place_for_a_mount() as place, Mount(place, f"{place}/blobs", 200, lifetime_s=LIFETIME_S) as mount:
        mount.start()
        yield mount.path
        mount.stop()
        mount.finish()


@pytest.fixture
def folder(top: Path, request: pytest.FixtureRequest) -> Path:
    """An empty folder for one test."""
    return Path(tempfile.mkdtemp(prefix="t-", dir=top))
