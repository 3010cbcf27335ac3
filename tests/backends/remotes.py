"""Every kind of remote the contract is tested on: a new backend is one more entry in KINDS."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from syncer.backends import memory, rsync, s3
from syncer.backends.base import Backend
from syncer.backends.faulty import Fault, FaultyBackend, Operation
from syncer.backends.folder import FolderBackend
from syncer.backends.memory import MemoryBackend
from syncer.backends.open import open_backend
from syncer.backends.retry import RetryingBackend
from syncer.errors import RemoteUnreachable
from tests.support.server_process import Server
from tests.support.servers import SshServer

_numbers = itertools.count()
SMALL_PAGE = 7


@dataclass(frozen=True)
class Remote:
    """One empty place on a remote."""

    open: Callable[[], Backend]
    """A further backend on the same place, with connections of its own."""
    root: Path | None = None
    """Where its files lie on this machine's disk, for a remote that has files."""


def _memory() -> Remote:
    objects: dict[str, bytes] = {}

    def open_it() -> MemoryBackend:
        backend = MemoryBackend()
        backend.objects = objects
        return backend

    return Remote(open_it)


def _folder(request: pytest.FixtureRequest) -> Remote:
    root = request.getfixturevalue("tmp_path") / "deep" / "blobs"
    return Remote(lambda: FolderBackend(root), root)


def _on_server(server: Server, request: pytest.FixtureRequest) -> Remote:
    monkeypatch = request.getfixturevalue("monkeypatch")
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    path = f"place-{next(_numbers)}/deep/blobs"
    root = getattr(server, "root", None)
    return Remote(lambda: open_backend(server.url(path)), root and root / path)


def _ssh_without_extensions(request: pytest.FixtureRequest) -> Remote:
    """A server of the plain draft: no atomic rename over a file, no fsync, no limits, no statvfs; and no commands."""
    banned = "posix-rename,fsync,limits,statvfs,fstatvfs,hardlink,copy-data"
    server = SshServer(f"Subsystem sftp internal-sftp -P {banned}", "ForceCommand internal-sftp -P " + banned)
    request.addfinalizer(server.close)
    return _on_server(server, request)


def _ssh_with_one_session(request: pytest.FixtureRequest) -> Remote:
    server = SshServer("MaxSessions 1")
    request.addfinalizer(server.close)
    return _on_server(server, request)


def _wrapped(inner: Remote, wrap: Callable[[Backend], Backend]) -> Remote:
    return Remote(lambda: wrap(inner.open()), inner.root)


def _retrying(backend: Backend) -> Backend:
    return RetryingBackend(backend, first_delay_s=0.001)


def _failing(backend: Backend) -> FaultyBackend:
    """The first calls of every operation fail, before or after the remote has done its part."""
    operations: tuple[Operation, ...] = ("put", "get", "stat", "delete")
    lost = RemoteUnreachable("lost on the way")
    return FaultyBackend(
        backend,
        *(Fault(operation=operation, error=lost) for operation in operations),
        *(Fault(operation=operation, error=lost, late=True, skip=1) for operation in operations),
        *(Fault(operation="list", error=lost, skip=skip) for skip in range(0, 30, 5)),
    )


KINDS: dict[str, Callable[[pytest.FixtureRequest], Remote]] = {
    "memory": lambda request: _memory(),
    "folder": _folder,
    "ssh": lambda request: _on_server(request.getfixturevalue("ssh_server"), request),
    "ssh-without-extensions": _ssh_without_extensions,
    "ssh-with-one-session": _ssh_with_one_session,
    "rsync": lambda request: _on_server(request.getfixturevalue("rsync_server"), request),
    "s3": lambda request: _on_server(request.getfixturevalue("s3_server"), request),
    "retry(memory)": lambda request: _wrapped(_memory(), _retrying),
    "retry(faulty(memory))": lambda request: _wrapped(_memory(), lambda inner: _retrying(_failing(inner))),
    "retry(faulty(folder))": lambda request: _wrapped(_folder(request), lambda inner: _retrying(_failing(inner))),
    "faulty(folder)": lambda request: _wrapped(_folder(request), FaultyBackend),
}


def kinds(wanted: Callable[[str], bool]) -> list[object]:
    """The wanted kinds as parameters of a test, those that start a server marked as slow."""
    return [
        pytest.param(kind, marks=() if "memory" in kind or "folder" in kind else pytest.mark.slow)
        for kind in KINDS
        if wanted(kind)
    ]


WITH_FILES = kinds(lambda kind: "memory" not in kind and kind != "s3")
WITH_LINKS = kinds(lambda kind: "memory" not in kind and kind not in ("s3", "rsync"))
"""Where a link counts as what it points to; an rsync daemon does not let links out."""


def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every listing take several pages."""
    monkeypatch.setattr(memory, "_PAGE", SMALL_PAGE)
    monkeypatch.setattr(rsync, "PAGE_LINES", SMALL_PAGE)
    monkeypatch.setattr(s3, "PAGE_KEYS", SMALL_PAGE)
