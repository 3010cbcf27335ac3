"""A server that cannot be reached is told of in one line of words, whatever the library below us has raised."""

import gc
import re
import socket
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from syncer.backends.open import open_backend
from syncer.backends.retry import RetryingBackend
from syncer.backends.unreachable import unreachable
from syncer.errors import BackendError, NobodyListens, RemoteUnreachable

MIB = 2**20
RAW = re.compile(r"Errno|\(\d+\)|Error\b|object at 0x|urllib|Max retries")


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port on which nobody listens, and nobody else begins to."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What the clients ask for before they connect."""
    (tmp_path / "config").write_text("")
    monkeypatch.setenv("SYNCER_SSH_CONFIG", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nothing-to-see")


URLS = [
    "rsync://127.0.0.1:{port}/module",
    "ssh://127.0.0.1:{port}/blobs",
    "s3://bucket/blobs?endpoint=http://127.0.0.1:{port}&region=us-east-1",
]


@pytest.mark.parametrize("url", URLS, ids=lambda url: url.partition(":")[0])
async def test_a_port_that_refuses_is_told_apart_and_soon(url: str, closed_port: int) -> None:
    url = url.format(port=closed_port)
    async with open_backend(url) as inner:
        with pytest.raises(NobodyListens) as caught:
            await inner.stat("format")
        assert "no server takes connections there" in str(caught.value)
        assert not RAW.search(str(caught.value)), caught.value
        assert "which port" in caught.value.hint
    async with RetryingBackend(open_backend(url)) as backend:
        with trio.fail_after(15), backend.not_waiting_for_a_server(), pytest.raises(NobodyListens):
            await backend.stat("format")


@pytest.mark.parametrize("url", ["rsync://no-such-host.invalid/module", "ssh://no-such-host.invalid/blobs"])
async def test_a_host_that_nobody_knows(url: str) -> None:
    async with open_backend(url) as backend:
        with pytest.raises(RemoteUnreachable, match="no host of that name") as caught:
            await backend.stat("format")
        assert not RAW.search(str(caught.value))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ConnectionResetError(104, "Connection reset by peer"), "nas: it has broken off the connection"),
        (BrokenPipeError(32, "Broken pipe"), "nas: it has broken off the connection"),
        (EOFError(), "nas: it has broken off the connection"),
        (TimeoutError(110, "Connection timed out"), "nas: it does not answer"),
        (TimeoutError(), "nas: it does not answer"),
        (OSError(113, "No route to host"), "nas: there is no way to it (No route to host)"),
        (OSError(5, "Input/output error"), "nas: Input/output error"),
        (ValueError("what it says of itself"), "nas: what it says of itself"),
        (ValueError(), "nas: ValueError"),
    ],
)
def test_in_words(error: Exception, said: str) -> None:
    assert str(unreachable("nas", error)) == said


def test_what_was_wrapped_is_found() -> None:
    try:
        try:
            raise ConnectionRefusedError(111, "Connection refused")
        except OSError as inner:
            raise ValueError("something went wrong") from inner
    except ValueError as error:
        assert isinstance(unreachable("nas", error), NobodyListens)


class Body(bytearray):
    """Bytes of which one can be told when they are gone."""


@pytest.mark.parametrize("url", [*URLS, "/dev/null/blobs"], ids=lambda url: url.partition(":")[0])
async def test_what_could_not_be_put_does_not_stay_in_memory(url: str, closed_port: int) -> None:
    """Nor wait for a collection of cycles: it is a pack. An idle thread may still know of the last one."""

    async def attempt(backend: RetryingBackend) -> weakref.ref[Body]:
        body = Body(MIB)
        with pytest.raises(BackendError):
            await backend.put("packs/ab/abcd", memoryview(body))
        return weakref.ref(body)

    gc.collect()
    gc.disable()
    try:
        async with RetryingBackend(open_backend(url.format(port=closed_port)), total_s=1.0) as backend:
            bodies = [await attempt(backend) for _ in range(3)]
            assert [body for body in bodies[:-1] if body() is not None] == []
    finally:
        gc.enable()
