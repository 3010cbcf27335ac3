"""What the acceptance tests share: remotes of every kind, a collection of files, and how large everything is.

In the short form everything is scaled down so that the whole suite takes minutes; SYNCER_TEST_LONG=1 asks for the
full sizes.
"""

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.collection import Manifest, build, manifest
from tests.support.long_form import LONG
from tests.support.mount import place_for_a_mount
from tests.support.server_process import Server
from tests.support.servers import RsyncServer, S3Server, SshServer

KINDS = ("folder", "ssh", "rsync", "s3")
SERVERS: Mapping[str, Callable[[], Server]] = {"ssh": SshServer, "rsync": RsyncServer, "s3": S3Server}


@dataclass(frozen=True, slots=True)
class Scale:
    """How large a run is: the budget in MB, and what goes through it."""

    megabytes: int
    collection_bytes: int
    real_files: int
    real_bytes: int
    large_file_bytes: int
    lifetime_s: float


SHORT_SCALE = Scale(64, 160_000_000, 2000, 40_000_000, 64 << 20, 120.0)
LONG_SCALE = Scale(200, 1_000_000_000, 12_000, 200_000_000, 256 << 20, 1800.0)


@dataclass(slots=True)
class Remote:
    """A remote of one test: nothing is in it yet, and nobody else uses it.

    Attributes:
        url: as the user writes it.
        environment: what a process needs to reach it.
    """

    kind: str
    url: str
    environment: dict[str, str] = field(default_factory=dict)
    server: Server | None = None

    @contextlib.contextmanager
    def outage(self, manner: str) -> Iterator[None]:
        """For the time of a with block nobody can reach it: `stopped`, or `frozen` (it takes everything, silently)."""
        if self.server is None:
            folder, elsewhere = Path(self.url), Path(f"{self.url}.elsewhere")
            folder.rename(elsewhere)
            yield
            elsewhere.rename(folder)
        elif manner == "frozen":
            with self.server.frozen():
                yield
        else:
            self.server.stop()
            yield
            self.server.start()

    def keys(self) -> set[str]:
        """Every object that is there, seen without syncer."""
        if isinstance(self.server, S3Server):
            return set(_s3_keys(self.server, self.url))
        root = Path(self.url) if self.server is None else Path(self.server.root, self.url.rpartition("/")[2])  # type: ignore[attr-defined]
        return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def _s3_keys(server: S3Server, url: str) -> Iterator[str]:
    client = s3_client(server)
    prefix = url.split("/", 3)[3] + "/"
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=server.bucket, Prefix=prefix):
        for item in page.get("Contents", ()):
            yield item["Key"][len(prefix) :]


def s3_client(server: S3Server):  # type: ignore[no-untyped-def]
    """A plain boto3 client of the test server."""
    import boto3

    return boto3.client(
        "s3",
        endpoint_url=server.endpoint,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
        region_name="us-east-1",
    )


@pytest.fixture(scope="session")
def scale() -> Scale:
    return LONG_SCALE if LONG else SHORT_SCALE


MakeRemote = Callable[..., Remote]


@pytest.fixture
def remote_of(request: pytest.FixtureRequest, place: Path) -> Iterator[MakeRemote]:
    """Makes an empty remote of a kind; with *own*, on a server that no other test uses, so that it may be stopped."""
    with contextlib.ExitStack() as stack:

        def make(kind: str, *, own: bool = False) -> Remote:
            if kind == "folder":
                (place / "blobs").mkdir()
                return Remote(kind, str(place / "blobs"))
            server = stack.enter_context(SERVERS[kind]()) if own else request.getfixturevalue(f"{kind}_server")
            return Remote(kind, server.url(place.name), server.environment, server)

        yield make


@pytest.fixture
def place() -> Iterator[Path]:
    """An empty folder for DATA and the mountpoint of a test."""
    with place_for_a_mount() as folder:
        yield folder


@dataclass(frozen=True, slots=True)
class Collection:
    """Files on a plain folder, and their list."""

    path: Path
    manifest: Manifest


@contextlib.contextmanager
def _built(wanted_bytes: int, real_files: int, real_bytes: int) -> Iterator[Collection]:
    folder = Path(tempfile.mkdtemp(prefix="syncer-collection-"))
    try:
        path = build(folder / "c", wanted_bytes, real_files=real_files, real_bytes=real_bytes)
        yield Collection(path, manifest(path))
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def collection(scale: Scale) -> Iterator[Collection]:
    """The input of the tests: well over the budget. Nobody changes it."""
    with _built(scale.collection_bytes, scale.real_files, scale.real_bytes) as built:
        yield built


@pytest.fixture(scope="session")
def small_collection(scale: Scale) -> Iterator[Collection]:
    """The same at half the size: still over the budget."""
    with _built(scale.collection_bytes // 2, scale.real_files // 3, scale.real_bytes // 3) as built:
        yield built
