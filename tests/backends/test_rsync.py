"""The rsync daemon's own ways: passwords, modules, batches, old versions, and what rsync's messages mean."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from syncer.backends.open import open_backend
from syncer.backends.rsync_program import RsyncProgram, translate
from syncer.errors import BackendError, NobodyListens, ObjectMissing, RemoteFull, RemoteRefused, RemoteUnreachable
from tests.backends.test_contract import content, listed
from tests.support.servers import RsyncServer

pytestmark = pytest.mark.slow


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[RsyncServer]:
    with RsyncServer() as started:
        monkeypatch.setenv("RSYNC_PASSWORD", started.password)
        yield started


def runs(server: RsyncServer) -> int:
    """How many times a client has come to the module."""
    return len(re.findall(r"rsync (to|on) blobs/", (server.folder / "log").read_text()))


async def refused(url: str, password_file: Path | None = None) -> str:
    messages = set()
    async with open_backend(url, password_file=password_file) as backend:
        for call in (
            lambda: backend.put("object", b""),
            lambda: backend.get("object"),
            lambda: backend.stat("object"),
            lambda: backend.delete("object"),
            lambda: listed(backend),
        ):
            with pytest.raises(RemoteRefused) as caught:
                await call()
            messages.add(f"{caught.value} ({caught.value.hint})")
    assert len(messages) == 1, messages
    return messages.pop()


async def test_passwords(server: RsyncServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in ("wrong", None):
        if wrong is None:
            monkeypatch.delenv("RSYNC_PASSWORD")
        else:
            monkeypatch.setenv("RSYNC_PASSWORD", wrong)
        said = await refused(server.url())
        assert "auth failed on module blobs" in said
        assert "RSYNC_PASSWORD" in said
    async with open_backend(server.url(), password_file=server.password_file) as backend:
        await backend.put("object", b"data")
        assert await backend.get("object") == b"data"


async def test_a_password_file_that_is_not_there(server: RsyncServer, tmp_path: Path) -> None:
    assert "password" in await refused(server.url(), tmp_path / "missing")


async def test_an_unknown_module(server: RsyncServer) -> None:
    url = server.url().replace("/blobs/", "/nowhere/", 1)
    assert "Unknown module 'nowhere'" in await refused(url)


async def test_no_rsync_program(server: RsyncServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert "install rsync" in await refused(server.url())


async def test_puts_that_wait_go_together(server: RsyncServer) -> None:
    async with open_backend(server.url()) as backend:
        await backend.put("first", b"")
        before = runs(server)
        async with trio.open_nursery() as nursery:
            for number in range(30):
                nursery.start_soon(backend.put, f"packs/{number}", content(10_000, number))
        assert 1 <= runs(server) - before <= 2  # the first may go alone, the others go together
        async with trio.open_nursery() as nursery:
            for number in range(30):
                nursery.start_soon(backend.delete, f"packs/{number}")
        assert 2 <= runs(server) - before <= 4
        assert await listed(backend) == {"first": 0}


async def test_ranges_of_one_object_fetch_it_once(server: RsyncServer) -> None:
    data = content(500_000)
    async with open_backend(server.url()) as backend:
        await backend.put("pack", data)
        before = runs(server)

        async def get(offset: int) -> None:
            assert await backend.get("pack", offset, 1000) == data[offset : offset + 1000]

        async with trio.open_nursery() as nursery:
            for offset in range(0, 400_000, 20_000):
                nursery.start_soon(get, offset)
        assert runs(server) - before == 1
        await backend.delete("pack")
        with pytest.raises(ObjectMissing):
            await backend.get("pack", 0, 10)


async def test_what_is_kept_is_bounded(server: RsyncServer) -> None:
    async with open_backend(server.url()) as backend:
        for number in range(5):
            await backend.put(f"pack/{number}", content(9_000_000, number))
        before = runs(server)
        for number in (0, 1, 2, 3, 2, 1, 0):  # three of them fit
            assert len(await backend.get(f"pack/{number}", 5, 10)) == 10
        assert runs(server) - before == 5


async def test_an_rsync_that_knows_no_fsync(
    server: RsyncServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    refusal = 'echo "rsync: --fsync: unknown option" >&2; exit 1'
    script = f'case " $* " in *" --fsync "*) {refusal};; esac\nexec {shutil.which("rsync")} "$@"'
    stand_in(tmp_path, monkeypatch, script)
    async with open_backend(server.url()) as backend:
        await backend.put("object", b"data")
        await backend.put("other", b"data")
        assert await listed(backend) == {"object": 4, "other": 4}


async def test_nothing_of_ours_stays_on_this_machine(
    server: RsyncServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = len(os.listdir("/proc/self/fd"))
    async with open_backend(server.url()) as backend:
        await backend.put("object", content(3_000_000))
        with trio.move_on_after(0.05):
            await backend.put("cut/short", content(20_000_000))
        assert len(await backend.get("object")) == 3_000_000
        with trio.move_on_after(0.05):
            await backend.get("object")
        await listed(backend)
        await backend.delete("object")
    assert list(tmp_path.iterdir()) == []
    assert len(os.listdir("/proc/self/fd")) <= before + 1


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Let a shell script be what `rsync` runs."""
    (folder / "rsync").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "rsync").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


async def test_how_rsync_is_run(server: RsyncServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Messages are read, so they are in English; a password is never on the command line; there is no terminal."""
    monkeypatch.setenv("LANGUAGE", "de")
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    stand_in(tmp_path, monkeypatch, f'{{ env; echo "$@"; echo $$; ps -o sid= -p $$; }} > {tmp_path}/said; exit 12')
    async with open_backend(server.url()) as backend:
        with pytest.raises(RemoteUnreachable):
            await backend.get("object")
    said = (tmp_path / "said").read_text()
    assert "LC_ALL=C\n" in said
    assert "LANGUAGE" not in said
    assert said.count(server.password) == said.count(f"RSYNC_PASSWORD={server.password}") == 1
    process, session = said.split()[-2:]
    assert process == session


async def test_a_run_that_is_given_up_is_killed(
    server: RsyncServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stand_in(tmp_path, monkeypatch, 'trap "" TERM INT HUP; exec sleep 100')
    async with open_backend(server.url()) as backend:
        with trio.fail_after(3):
            for call in (backend.get, backend.stat, backend.delete):
                with trio.move_on_after(0.2):
                    await call("object")


@pytest.mark.parametrize(
    ("code", "said", "expected"),
    [
        (5, "@ERROR: auth failed on module m\nrsync error: (code 5)", RemoteRefused),
        (5, "@ERROR: max connections (4) reached -- try again later", RemoteUnreachable),
        (5, "rsync: did not see server greeting\n", RemoteUnreachable),
        (10, "rsync: failed to connect to h: Connection refused (111)\n", NobodyListens),
        (10, "rsync: failed to connect to h: Connection timed out (110)\n", RemoteUnreachable),
        (10, "rsync: getaddrinfo: nowhere 873: Name or service not known\n", RemoteUnreachable),
        (30, "[sender] io timeout after 30 seconds -- exiting\n", RemoteUnreachable),
        (11, 'rsync: [receiver] write failed on "x" (in m): No space left on device (28)\n', RemoteFull),
        (11, 'rsync: [receiver] write failed on "x" (in m): Disk quota exceeded (122)\n', RemoteFull),
        (23, 'rsync: [receiver] mkstemp ".x" (in m) failed: Permission denied (13)\n', RemoteRefused),
        (23, 'rsync: [receiver] mkstemp ".x" (in m) failed: Read-only file system (30)\n', RemoteRefused),
        (23, 'rsync: [sender] link_stat "/x" (in m) failed: No such file or directory (2)\n', ObjectMissing),
        (12, "rsync: connection unexpectedly closed (0 bytes received so far) [sender]\n", RemoteUnreachable),
        (1, "rsync: --nonsense: unknown option\n", RemoteRefused),
        (20, "", RemoteUnreachable),
    ],
)
def test_what_messages_mean(code: int, said: str, expected: type[BackendError]) -> None:
    translated = translate("rsync://host/module", code, said)
    assert type(translated) is expected
    assert str(translated).startswith("rsync://host/module: ")
    assert "\n" not in str(translated)


def test_the_cause_is_said_not_what_has_vanished() -> None:
    said = 'file has vanished: "/tmp/x"\ninvalid file mode 00 for x [Receiver]\nrsync error: ... (code 2)\n'
    assert (
        str(translate("rsync://host/module", 2, said)) == "rsync://host/module: invalid file mode 00 for x [Receiver]"
    )


async def test_what_is_fetched_takes_no_disk(server: RsyncServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The temporary folder of this machine, outside of every budget, stays as it is."""
    places: list[str] = []
    run = RsyncProgram.fetch

    async def fetch(self: RsyncProgram, source: str, path: str) -> None:
        places.append(subprocess.check_output(["stat", "--file-system", "--format=%T", Path(path).parent], text=True))  # noqa: ASYNC221
        await run(self, source, path)

    monkeypatch.setattr(RsyncProgram, "fetch", fetch)
    async with open_backend(server.url("no-disk")) as backend:
        await backend.put("packs/object", b"data")
        backend._kept.forget("packs/object")  # type: ignore[attr-defined]
        assert await backend.get("packs/object") == b"data"
    assert places == ["tmpfs\n"]
