"""Prunes beside a busy mount on a real S3 server: what is left is what is needed, and all of it."""

import json
import random
import threading
from pathlib import Path

import pytest

from tests.acceptance.conftest import MakeRemote, Remote, _s3_keys, s3_client
from tests.support.collection import differences, manifest
from tests.support.long_form import LONG
from tests.support.mount import Mount
from tests.support.remote_view import RemoteView
from tests.support.servers import S3Server

pytestmark = pytest.mark.slow

PRUNES = 50 if LONG else 2
FILES = 12


def objects(remote: Remote) -> dict[str, bytes]:
    """Everything on the server."""
    assert isinstance(remote.server, S3Server)
    client, prefix = s3_client(remote.server), remote.url.split("/", 3)[3] + "/"
    bucket = remote.server.bucket
    return {
        key: client.get_object(Bucket=bucket, Key=prefix + key)["Body"].read()
        for key in _s3_keys(remote.server, remote.url)
    }


class Writer:
    """Makes, changes, appends to, renames and removes files until it is stopped."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder = folder
        self._random = random.Random(seed)
        self._stop = threading.Event()
        self._failed: list[BaseException] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._folder.mkdir(exist_ok=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stop.wait(0.01):
                self._change()
        except BaseException as error:  # noqa: BLE001 - raised by `stop`
            self._failed.append(error)

    def _change(self) -> None:
        rng = self._random
        path = self._folder / f"f{rng.randrange(FILES)}"
        match rng.randrange(4):
            case 0:
                path.write_bytes(rng.randbytes(rng.choice([100, 30_000, 500_000])))
            case 1 if path.exists():
                with path.open("ab") as file:
                    file.write(rng.randbytes(40_000))
            case 2 if path.exists():
                path.rename(self._folder / f"f{rng.randrange(FILES)}")
            case 3:
                path.unlink(missing_ok=True)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(60)
        if self._failed:
            raise self._failed[0]


def test_prunes_interleaved_with_writing(remote_of: MakeRemote, place: Path) -> None:
    remote = remote_of("s3")
    with Mount(place, remote.url, 100, extra=remote.environment, lifetime_s=60.0 * PRUNES + 120) as mount:
        mount.start()
        freed = 0
        for count in range(PRUNES):
            writer = Writer(mount.path / "w", count)
            try:
                mount.run("snapshot", mount.data)
                if count % 10 == 1:
                    mount.run("snapshot", mount.data, "--label", f"kept {count}")
                keep = "none" if count % 2 else "last=1min,hourly=1d"
                freed += json.loads(mount.run("prune", mount.data, "--keep", keep, "--json", timeout_s=120))[
                    "freed_bytes"
                ]
            finally:
                writer.stop()
        mount.run("snapshot", mount.data)
        mount.run("snapshot", mount.data, "--delete", "kept 1")
        mount.run("prune", mount.data, "--keep", "none", timeout_s=120)
        assert freed > 0
        before = manifest(mount.path)
        view = RemoteView(objects(remote))
        labels = [record.label for record in view.snapshots().values() if record.label]
        assert labels == [f"kept {count}" for count in range(10, PRUNES) if count % 10 == 1]
        for record in view.snapshots().values():
            view.picture(record.root)
        assert view.dead_share() < 0.25
        assert "nothing is wrong" in mount.run("check", mount.data, "--remote", "--read-data", timeout_s=120)
        mount.umount()
        mount.forget_data()
        mount.start()
        assert differences(before, manifest(mount.path)) == []
        mount.stop()
        mount.finish()
