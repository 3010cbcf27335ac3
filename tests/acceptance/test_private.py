"""What others may see and do: nothing of DATA, no secret of ours, no place here that a remote may name."""

import contextlib
import os
import re
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from syncer.backends.base import ObjectInfo
from syncer.backends.memory import MemoryBackend
from syncer.backends.open import check_url
from syncer.errors import UsageError
from tests.acceptance.conftest import MakeRemote
from tests.support.command import syncer
from tests.support.long_form import long
from tests.support.mount import Mount
from tests.support.mounted import wait_until
from tests.support.opened import create, flush, opened
from tests.support.proxy import Proxy, Weather
from tests.support.servers import RsyncServer, S3Server

pytestmark = pytest.mark.slow


def modes_of(data: Path) -> dict[str, str]:
    """What is not as it should be: folders 0700, everything else 0600."""
    found = {}
    for path in [data, *data.rglob("*")]:
        with contextlib.suppress(FileNotFoundError):
            mode = path.lstat().st_mode
            if stat.S_IMODE(mode) != (0o700 if stat.S_ISDIR(mode) else 0o600):
                found[str(path.relative_to(data))] = stat.filemode(mode)
    return found


def test_data_is_for_its_owner_alone(place: Path) -> None:
    (place / "blobs").mkdir()
    before = os.umask(0)
    try:
        with Mount(place, str(place / "blobs"), 64, upload_delay_s=3600.0) as mount:
            mount.start()
            (mount.path / "small").write_bytes(b"small")
            (mount.path / "large").write_bytes(os.urandom(3_000_000))
            with open(mount.path / "large", "r+b") as file:
                file.write(b"overlay")
            names = {path.name for path in mount.data.iterdir()}
            assert {"control.sock", "meta.db", "meta.db-wal", "meta.db-shm", "log", "lock"} <= names
            assert all(any((mount.data / folder).rglob("*")) for folder in ("cache", "dirty", "journal"))
            assert modes_of(mount.data) == {}
            mount.stop()
            assert modes_of(mount.data) == {}
            mount.finish()
    finally:
        os.umask(before)


def command_lines(pid: int) -> list[str]:
    """Of the process and all it has started, as `ps` shows them."""
    lines = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                lines.append(" ".join(process.cmdline()))
    return lines


@pytest.mark.parametrize("kind", ["s3", pytest.param("rsync", marks=long)])
def test_secrets_are_told_to_nobody(kind: str, place: Path, remote_of: MakeRemote) -> None:
    remote = remote_of(kind)
    server = remote.server
    assert isinstance(server, S3Server | RsyncServer)
    secret = server.secret_key if isinstance(server, S3Server) else server.password
    with Proxy(server.port) as proxy:
        extra = {**remote.environment}
        if kind == "s3":
            extra["AWS_ENDPOINT_URL"] = proxy.endpoint
        url = remote.url.replace(f":{server.port}/", f":{proxy.port}/")
        with Mount(place, url, 64, extra=extra, network_deadline_s=3.0, upload_delay_s=0.2) as mount:
            mount.expected_warnings = r" (WARNING|ERROR) syncer\."
            mount.start("--log-level", "debug")
            (mount.path / "f").write_bytes(os.urandom(1_000_000))
            mount.flush()
            seen: list[str] = []
            with proxy.bad(Weather(answer="ExpiredToken") if kind == "s3" else Weather(refusing=True)):
                proxy.cut()
                (mount.path / "g").write_bytes(os.urandom(1_000_000))

                def failed() -> bool:
                    seen.extend(command_lines(mount.pid))
                    return mount.status()["remote_ok"] is False

                wait_until(failed, "the upload fails")
                seen.append(mount.run("status", mount.data))
            said = mount.stop()
            logs = "".join(path.read_text() for path in mount.data.glob("log*"))
            config = (mount.data / "config.toml").read_text()
            for text in (said, logs, config, mount.output, *seen):
                assert secret not in text
            wrong = {**extra, "AWS_SECRET_ACCESS_KEY": "wrong-and-secret", "RSYNC_PASSWORD": "wrong-and-secret"}
            outcome = syncer("mount", place / "other", url, mount.path, 64, extra=wrong)
            assert outcome.returncode == 22
            assert "secret" not in outcome.stderr.replace("AWS_SECRET_ACCESS_KEY", "") and secret not in outcome.stderr
            mount.finish()


@pytest.mark.parametrize(
    "url",
    [
        "ssh://me:hunter2@host/path",
        "ssh://me:hunter2@host:port/path",
        "rsync://me:hunter2@host/",
        "ftp://me:hunter2@host/path",
        "me:hunter2@host:path",
        "me:hun/ter2:hunter2@host:path",
        "s3://key:hunter2@bucket/prefix",
        "s3://bucket/prefix?secret_access_key=hunter2",
        "s3://bucket/prefix?region=a&token=hunter2",
        "https://me:hunter2@host",
    ],
)
def test_a_password_in_a_url_is_not_repeated(url: str) -> None:
    try:
        check_url(url)
    except UsageError as error:
        assert "hunter2" not in f"{error} {error.hint}"


class HostileListing(MemoryBackend):
    """Lists names that nobody put, beside those that are there; and holds its callers to keys."""

    NAMES = (
        *("../../etc/passwd", "peers/../../x", "/etc/passwd", "peers//1", "peers/000001/../x", "", ".", "..", "a\0b"),
        *("packs/../../../root/.ssh/authorized_keys", "index/000001/..", "snapshots/000001/99999999999999999999"),
        *(
            "peers/FFFFFF",
            "peers/0000001",
            "peers/000000",
            "index/zzzzzz/000000000001",
            "snapshots/000001/-00000000001",
        ),
        *("snapshots/000001/\u0661\u0662\u0663\u0661\u0662\u0663\u0661\u0662\u0663\u0661\u0662\u0663",),
    )

    def list(self, prefix: str = "") -> AsyncIterator[ObjectInfo]:  # type: ignore[override]
        return self._hostile(super().list(prefix))

    async def _hostile(self, found: AsyncIterator[ObjectInfo]) -> AsyncIterator[ObjectInfo]:
        for name in self.NAMES:
            yield ObjectInfo(name, 2**62)
        async for info in found:
            yield info


async def test_names_that_a_remote_lists_are_never_used_as_they_are(tmp_path: Path) -> None:
    remote = MemoryBackend()
    async with opened(tmp_path / "one", remote) as engine:
        create(engine, b"precious")
        await flush(engine)
    hostile = HostileListing()
    hostile.objects = remote.objects
    async with opened(tmp_path / "two", hostile) as engine:
        assert engine.meta.names.lookup(1, b"precious") is not None
    inside = {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*")}
    assert inside == {"one", "two"}
    assert not [key for key in hostile.objects if re.search(r"\.\.|\A/", key)]
