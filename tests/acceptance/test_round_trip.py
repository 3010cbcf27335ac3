"""A collection far larger than the budget goes in, DATA is lost, and everything comes back from the remote alone."""

from pathlib import Path

import pytest

from tests.acceptance.conftest import KINDS, Collection, MakeRemote, Scale
from tests.support.collection import copy, differences, manifest
from tests.support.long_form import seldom
from tests.support.mount import Mount

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("kind", seldom(KINDS, "rsync"))
def test_everything_comes_back_from_the_remote_alone(
    kind: str, remote_of: MakeRemote, place: Path, collection: Collection, scale: Scale
) -> None:
    remote = remote_of(kind)
    with Mount(place, remote.url, scale.megabytes, extra=remote.environment, lifetime_s=scale.lifetime_s) as mount:
        mount.start()
        copy(collection.path, mount.path / "c", timeout_s=scale.lifetime_s)
        assert mount.umount(wait=True, timeout_s=scale.lifetime_s).endswith("; 0 bytes wait for upload")
        mount.forget_data()
        mount.start()
        assert mount.status()["fetched_bytes"] < scale.collection_bytes / 100, "contents came with the tree"
        assert differences(collection.manifest, manifest(mount.path / "c")) == []
        status = mount.status()
        assert (status["pending_upload_bytes"], status["remote_ok"]) == (0, True)
        assert status["fetched_bytes"] > scale.collection_bytes / 2
        mount.stop()
        mount.finish()
