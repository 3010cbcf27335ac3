"""Trouble that every remote with a disk or a server can have: full, gone, killed, silent."""

import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from syncer.backends.base import Backend
from syncer.backends.open import open_backend
from syncer.backends.retry import RetryingBackend
from syncer.errors import BackendError, ObjectMissing, RemoteFull, RemoteRefused, RemoteUnreachable
from tests.backends.test_contract import content, listed
from tests.support.server_disks import needs_root, remount, small_disk
from tests.support.server_process import Server
from tests.support.servers import RsyncServer, S3Server, SshServer

pytestmark = pytest.mark.slow

SERVERS = {"ssh": SshServer, "rsync": RsyncServer, "s3": S3Server}
MIB = 2**20
CHECKOUT = Path(__file__).parents[2]


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server that may be broken."""
    with SERVERS[request.param]() as started:
        for name, value in started.environment.items():
            monkeypatch.setenv(name, value)
        yield started


@pytest.fixture(params=["folder", "ssh", "rsync"])
def place(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[tuple[str, Path]]:
    """A remote's URL, and the folder on this machine's disk that holds its files."""
    if request.param == "folder":
        yield str(tmp_path / "blobs"), tmp_path / "blobs"
        return
    server = request.getfixturevalue(f"{request.param}_server")
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    name = f"place-{tmp_path.name}"
    yield server.url(name), server.root / name
    shutil.rmtree(server.root / name, ignore_errors=True)


@needs_root
async def test_a_full_disk(place: tuple[str, Path]) -> None:
    url, folder = place
    with small_disk(folder, 4 * MIB):
        async with open_backend(url) as backend:
            await backend.put("packs/small", content(MIB))
            for _ in range(2):
                with pytest.raises(RemoteFull):
                    await backend.put("packs/large", content(6 * MIB))
                assert await listed(backend) == {"packs/small": MIB}
                assert not any((folder / "tmp~").iterdir())
            assert await backend.get("packs/small") == content(MIB)
            await backend.delete("packs/small")
            await backend.put("packs/other", content(2 * MIB))


@needs_root
async def test_no_inodes_left(place: tuple[str, Path]) -> None:
    url, folder = place
    with small_disk(folder, 4 * MIB):
        remount(folder, "nr_inodes=20")
        async with open_backend(url) as backend:
            with pytest.raises(RemoteFull):
                for number in range(30):
                    await backend.put(f"packs/{number}", b"small")
            found = await listed(backend)
            assert 5 < len(found) < 20
            assert set(found.values()) == {5}


async def test_a_disk_that_is_taken_away_is_not_an_empty_remote(place: tuple[str, Path]) -> None:
    """What is left is the bare mountpoint; nothing may be written below it, nor found missing there."""
    url, folder = place
    elsewhere = folder.with_name(f"{folder.name}-elsewhere")
    backend = open_backend(url)
    await backend.put("packs/object", b"precious")
    assert await backend.get("packs/object") == b"precious"
    folder.rename(elsewhere)
    for mountpoint_is_there in (False, True):
        if mountpoint_is_there:
            folder.mkdir()
        for call in (
            lambda: backend.put("packs/other", b"not below the mountpoint"),
            lambda: backend.get("packs/other"),
            lambda: backend.stat("packs/object"),
            lambda: listed(backend),
            lambda: listed(backend, "packs/"),
        ):
            with pytest.raises(RemoteUnreachable):
                await call()
    assert list(folder.iterdir()) == []
    folder.rmdir()
    elsewhere.rename(folder)
    await backend.put("packs/other", b"again")
    assert await listed(backend) == {"packs/object": 8, "packs/other": 5}
    await backend.close()


async def test_the_temporary_folder_may_be_deleted(place: tuple[str, Path]) -> None:
    url, folder = place
    async with RetryingBackend(open_backend(url), first_delay_s=0.001) as backend:
        await backend.put("packs/1", b"one")
        (folder / "tmp~").rmdir()
        await backend.put("packs/2", b"two")
        assert await listed(backend) == {"packs/1": 3, "packs/2": 3}


PUTTING = """
import hashlib, os, sys, trio
from syncer.backends.open import open_backend

async def put_for_ever(backend):
    while True:
        data = os.urandom(3_000_000)
        key = hashlib.sha256(data).hexdigest()
        await backend.put(f"packs/{key[:2]}/{key}", data)
        print(key, flush=True)

async def main():
    backend = open_backend(sys.argv[1])
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(put_for_ever, backend)

trio.run(main)
"""


def put_and_be_killed(url: str, lines: int) -> list[str]:
    """What a process was told to be on the remote when it was killed in the middle of further puts."""
    process = subprocess.Popen(
        [sys.executable, "-c", PUTTING, url], stdout=subprocess.PIPE, text=True, cwd=CHECKOUT, start_new_session=True
    )
    try:
        assert process.stdout
        return [process.stdout.readline().strip() for _ in range(lines)]
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


async def check_whole(backend: Backend, promised: list[str]) -> None:
    """What is listed is whole, and what was promised is listed."""
    found = await listed(backend)
    for key in found:
        assert hashlib.sha256(await backend.get(key)).hexdigest() == key.rpartition("/")[2]
    assert set(promised) <= {key.rpartition("/")[2] for key in found}


@pytest.mark.parametrize("lines", [1, 4])
async def test_our_process_is_killed_while_it_puts(place: tuple[str, Path], lines: int) -> None:
    promised = await trio.to_thread.run_sync(put_and_be_killed, place[0], lines)
    async with open_backend(place[0]) as backend:
        await check_whole(backend, promised)


@pytest.mark.parametrize("after", [0, 3])
async def test_the_server_is_killed_while_it_takes_puts(server: Server, after: int) -> None:
    promised: list[str] = []
    backend = open_backend(server.url())
    await backend.put(f"packs/{hashlib.sha256(b'first').hexdigest()}", b"first")
    enough = trio.Event()

    async def put_until_it_breaks() -> None:
        try:
            while True:
                data = os.urandom(3_000_000)
                key = hashlib.sha256(data).hexdigest()
                if len(promised) >= after:
                    enough.set()
                await backend.put(f"packs/{key[:2]}/{key}", data)
                promised.append(key)
        except RemoteUnreachable:
            return

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(put_until_it_breaks)
        await enough.wait()
        server.stop()
    with pytest.raises(RemoteUnreachable):
        await backend.stat("packs/object")
    server.start()
    await check_whole(backend, promised)
    await backend.put("packs/object", b"once more")
    assert await backend.get("packs/object") == b"once more"
    await backend.close()


async def test_the_call_after_an_outage_works(server: Server) -> None:
    async with open_backend(server.url()) as backend:
        await backend.put("object", b"data")
        async with trio.open_nursery() as nursery:  # so that several connections or sessions are kept
            for _ in range(4):
                nursery.start_soon(backend.get, "object")
        for _ in range(2):
            server.stop()
            server.start()
            assert (await backend.stat("object")).size_bytes == 4
            await backend.put("object", b"data")
            assert await listed(backend) == {"object": 4}


async def test_a_silent_server(server: Server) -> None:
    """It takes everything and answers nothing: every call ends in time, more of them than there are threads."""
    backend = open_backend(server.url())
    impatient = RetryingBackend(backend, attempt_s=0.5, total_s=1.2)
    await backend.put("object", b"data")
    refusals: list[BackendError] = []

    async def try_it(number: int) -> None:
        try:
            await (impatient.put(f"packs/{number}", b"data") if number % 2 else impatient.stat("object"))
        except RemoteUnreachable as error:
            refusals.append(error)

    with server.frozen(), trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            for number in range(30):
                nursery.start_soon(try_it, number)
    assert len(refusals) == 30
    patient = RetryingBackend(backend)
    assert (await patient.stat("object")).size_bytes == 4
    await patient.put("packs/after", b"wards")
    assert await patient.get("packs/after") == b"wards"
    with trio.fail_after(5):
        await patient.close()


@pytest.fixture
def black_hole() -> Iterator[int]:
    """A port that takes connections and never says a word."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.mark.parametrize("kind", SERVERS)
async def test_a_server_that_never_greets(kind: str, black_hole: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    url = {
        "ssh": f"ssh://127.0.0.1:{black_hole}/blobs",
        "rsync": f"rsync://127.0.0.1:{black_hole}/blobs",
        "s3": f"s3://bucket/blobs?endpoint=http://127.0.0.1:{black_hole}",
    }[kind]
    async with RetryingBackend(open_backend(url), attempt_s=0.4, total_s=1) as backend:
        with trio.fail_after(5), pytest.raises(RemoteUnreachable):
            await backend.put("object", b"data")
        with trio.fail_after(5), pytest.raises(RemoteUnreachable):
            await backend.get("object")


async def test_a_server_that_is_not_there(server: Server) -> None:
    server.stop()
    async with open_backend(server.url()) as backend:
        for call in (backend.get, backend.stat, backend.delete):
            with pytest.raises(RemoteUnreachable):
                await call("object")
        with pytest.raises(RemoteUnreachable):
            await backend.put("object", b"data")
        with pytest.raises(RemoteUnreachable):
            await listed(backend)


@needs_root
async def test_a_remote_that_may_not_be_written(place: tuple[str, Path]) -> None:
    url, folder = place
    with small_disk(folder, 4 * MIB):
        async with open_backend(url) as backend:
            await backend.put("packs/object", b"data")
            remount(folder, "ro")
            with pytest.raises(RemoteRefused):
                await backend.put("packs/other", b"data")
            with pytest.raises(RemoteRefused):
                await backend.delete("packs/object")
            assert await backend.get("packs/object") == b"data"
            with pytest.raises(ObjectMissing):
                await backend.get("packs/other")
