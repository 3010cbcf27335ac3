"""Logging in as ssh would, on real servers: host keys, configuration, keys, agent, jump hosts, poor servers."""

import getpass
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from syncer.backends import sftp
from syncer.backends.base import Backend
from syncer.backends.open import open_backend
from syncer.backends.retry import RetryingBackend
from syncer.errors import RemoteRefused, RemoteUnreachable
from tests.support.servers import SshServer

pytestmark = pytest.mark.slow


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[SshServer]:
    """A server whose files may be changed; no agent, and an empty home."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    with SshServer() as started:
        monkeypatch.setenv("SYNCER_SSH_CONFIG", str(started.config))
        yield started


async def works(url: str) -> None:
    async with open_backend(url) as backend:
        await backend.put("object", b"data")
        assert await backend.get("object") == b"data"


async def refused(url: str) -> RemoteRefused:
    async with open_backend(url) as backend:
        with pytest.raises(RemoteRefused) as caught:
            await backend.get("object")
    assert "\n" not in f"{caught.value} {caught.value.hint}"
    return caught.value


def replace_host_key(server: SshServer, kind: str = "ed25519") -> None:
    server.stop()
    server.make_key("host_key", kind)
    server.start()


async def accept(error: RemoteRefused) -> None:
    """Do what the hint says."""
    command = error.hint.partition("accept it with: ")[2]
    assert command
    await trio.run_process(["sh", "-c", command], capture_stdout=True, capture_stderr=True)


async def test_an_unknown_host_key(server: SshServer) -> None:
    server.known_hosts.unlink()
    error = await refused(server.url())
    assert f"the host key of [127.0.0.1]:{server.port} is not known: ssh-ed25519 SHA256:" in str(error)
    assert server.host_key in error.hint
    assert not server.known_hosts.exists()
    await accept(error)
    await works(server.url())


async def test_a_changed_host_key(server: SshServer) -> None:
    await works(server.url())
    before = server.known_hosts.read_text()
    replace_host_key(server)
    error = await refused(server.url())
    assert "CHANGED" in str(error)
    assert server.known_hosts.read_text() == before
    await accept(error)
    await works(server.url())


async def test_a_key_that_changes_while_we_are_connected(server: SshServer) -> None:
    async with open_backend(server.url()) as backend:
        await backend.put("object", b"data")
        replace_host_key(server)
        with pytest.raises(RemoteRefused, match="CHANGED"):
            await backend.get("object")


async def test_a_revoked_host_key(server: SshServer) -> None:
    server.add_known_hosts(f"@revoked * {server.host_key}\n")
    assert "revoked" in str(await refused(server.url()))


@pytest.mark.parametrize("kind", ["rsa", "ecdsa"])
async def test_other_kinds_of_host_key(server: SshServer, kind: str) -> None:
    replace_host_key(server, kind)
    await accept(await refused(server.url()))
    await works(server.url())


async def test_the_kind_of_key_that_is_known_is_asked_for(server: SshServer) -> None:
    """A server may have several; one that is known by its RSA key must show that one, as to ssh."""
    rsa = server.make_key("host_key_rsa", "rsa")
    server.stop()
    server.add_option(f"HostKey {rsa}")
    server.start()
    listed = " ".join(Path(f"{rsa}.pub").read_text().split()[:2])
    server.known_hosts.write_text(f"[127.0.0.1]:{server.port} {listed}\n")
    await works(server.url())


async def test_names_from_the_configuration(server: SshServer) -> None:
    server.config.write_text(
        f"Host *\n  Include {server.folder}/more_*\n  UserKnownHostsFile {server.known_hosts}\n"
        "  User nobody-of-this-name\n  Port 1\n"
    )
    (server.folder / "more_config").write_text(
        f"Host Blobs\n  HostName 127.0.0.1\n  User {getpass.getuser()}\n  Port {server.port}\n"
        f"  IdentityFile {server.identity}\n  IdentitiesOnly yes\n"
        "Host another\n  Compression yes\n"
    )
    await works(f"Blobs:{server.root}/blobs")
    await works(f"ssh://Blobs{server.root}/blobs")
    async with open_backend(f"nobody@Blobs:{server.root}/blobs") as backend:
        with pytest.raises(RemoteRefused, match=r"nobody@127\.0\.0\.1"):
            await backend.get("object")
    async with open_backend(f"ssh://Blobs:1{server.root}/blobs") as backend:
        with pytest.raises(RemoteUnreachable, match=":1: "):
            await backend.get("object")


async def test_the_users_own_configuration(server: SshServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without the variable: ~/.ssh with its config, default keys and known_hosts."""
    monkeypatch.delenv("SYNCER_SSH_CONFIG")
    home = tmp_path / ".ssh"
    home.mkdir()
    (home / "config").write_text(f"Host blobs\n  HostName 127.0.0.1\n  Port {server.port}\n")
    server.identity.rename(home / "id_ed25519")
    error = await refused(f"blobs:{server.root}/blobs")
    assert f">> {home}/known_hosts" in error.hint
    await accept(error)
    await works(f"blobs:{server.root}/blobs")


async def test_the_home_folder(server: SshServer) -> None:
    """A path without a slash, and one with ~, start there."""
    name = f"syncer-test-{os.getpid()}"
    home = Path(os.path.expanduser(f"~{getpass.getuser()}"))
    url = re.sub("/tmp/.*", "", server.url())
    async with open_backend(f"{url}/~/{name}/blobs") as backend:
        try:
            await backend.put("object", b"data")
            assert (home / name / "blobs" / "object").read_bytes() == b"data"
            await backend.delete("object")
        finally:
            shutil.rmtree(home / name)


async def test_no_key_that_fits(server: SshServer) -> None:
    server.authorized_keys.write_text(Path(f"{server.make_key('other')}.pub").read_text())
    error = await refused(server.url())
    assert "accepts none of our keys" in str(error)
    assert str(server.identity) in str(error)
    assert "ssh-copy-id" in error.hint


async def test_no_key_at_all(server: SshServer) -> None:
    server.config.write_text(f"Host *\n  UserKnownHostsFile {server.known_hosts}\n")
    assert "there are none" in str(await refused(server.url()))


async def test_a_key_with_a_passphrase(server: SshServer) -> None:
    await trio.run_process(["ssh-keygen", "-q", "-p", "-P", "", "-N", "secret", "-f", server.identity])
    error = await refused(server.url())
    assert f"{server.identity} cannot be used without a passphrase" in str(error)
    assert "ssh-add" in error.hint


@pytest.fixture
def agent(server: SshServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An ssh-agent that alone has the key; the path where its public half lies."""
    socket = server.folder / "agent"
    process = subprocess.Popen(["ssh-agent", "-D", "-a", socket], stdout=subprocess.PIPE)
    assert process.stdout
    process.stdout.readline()
    monkeypatch.setenv("SSH_AUTH_SOCK", str(socket))
    subprocess.run(["ssh-add", "-q", server.identity], check=True, capture_output=True)
    server.identity.unlink()
    yield server.identity
    process.kill()
    process.communicate()


async def test_a_key_in_the_agent(server: SshServer, agent: Path) -> None:
    server.config.write_text(f"Host *\n  UserKnownHostsFile {server.known_hosts}\n")
    await works(server.url())


async def test_identities_only_with_the_agent(server: SshServer, agent: Path) -> None:
    """The agent may then offer only what an IdentityFile names, if by its public half."""
    await works(server.url())
    other = server.make_key("other")
    server.config.write_text(server.config.read_text().replace(str(agent), str(other)))
    assert "from the agent" not in str(await refused(server.url()))


async def test_many_keys_in_the_agent(server: SshServer, agent: Path) -> None:
    """A server's patience ends after six keys: the one that is named goes first."""
    for number in range(8):
        await trio.run_process(["ssh-add", "-q", server.make_key(f"other{number}")], capture_stderr=True)
    server.config.write_text(f"Host *\n  UserKnownHostsFile {server.known_hosts}\n  IdentityFile {agent}\n")
    await works(server.url())


@pytest.mark.parametrize("hops", [1, 2])
async def test_jump_hosts(server: SshServer, hops: int) -> None:
    with SshServer() as first, SshServer() as second:
        own = server.config.read_text()
        jumps = [f"{getpass.getuser()}@127.0.0.1:{first.port}", "second"][:hops]
        server.config.write_text(
            f"Host target\n  HostName 127.0.0.1\n  Port {server.port}\n  ProxyJump {','.join(jumps)}\n"
            f"Host second\n  HostName 127.0.0.1\n  Port {second.port}\n"
            f"Host *\n  IdentityFile {first.identity}\n  IdentityFile {second.identity}\n" + own
        )
        server.add_known_hosts(first.known_hosts.read_text() + second.known_hosts.read_text())
        url = f"target:{server.root}/blobs"
        await works(url)
        for jump in (first, second)[:hops]:
            assert "Accepted publickey" in (jump.folder / "output").read_text()
        if hops == 1:
            assert "Accepted publickey" not in (second.folder / "output").read_text()
        async with open_backend(url) as backend:
            await backend.get("object")
            first.stop()
            with pytest.raises(RemoteUnreachable):
                await backend.get("object")
            first.start()
            await backend.get("object")


async def test_a_jump_host_is_checked_too(server: SshServer) -> None:
    with SshServer() as first:
        own = server.config.read_text()
        server.config.write_text(
            f"Host target\n  HostName 127.0.0.1\n  Port {server.port}\n  ProxyJump 127.0.0.1:{first.port}\n{own}"
        )
        assert f"[127.0.0.1]:{first.port} is not known" in str(await refused(f"target:{server.root}/blobs"))


async def test_jump_hosts_in_a_circle(server: SshServer) -> None:
    server.config.write_text("Host *\n  ProxyJump other\n")
    assert "too many jump hosts" in str(await refused(server.url()))


async def test_configurations_that_cannot_be_followed(server: SshServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.config.write_text("Host *\n  ProxyCommand nc %h %p\n")
    assert "ProxyCommand" in str(await refused(server.url()))
    server.config.write_text("Host *\n  Port many\n")
    assert "makes no sense" in str(await refused(server.url()))
    server.config.write_text("Host\n")
    assert "configuration" in str(await refused(server.url()))
    monkeypatch.setenv("SYNCER_SSH_CONFIG", "/nowhere")
    assert "/nowhere" in str(await refused(server.url()))


async def test_a_server_without_sftp(monkeypatch: pytest.MonkeyPatch) -> None:
    with SshServer("Subsystem sftp /bin/false") as server:
        monkeypatch.setenv("SYNCER_SSH_CONFIG", str(server.config))
        error = await refused(server.url())
        assert "offers no SFTP" in str(error)
        assert "Subsystem sftp" in error.hint


async def test_a_server_that_allows_no_session_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    with SshServer("MaxSessions 0") as server:
        monkeypatch.setenv("SYNCER_SSH_CONFIG", str(server.config))
        assert "MaxSessions" in (await refused(server.url())).hint


async def test_something_that_is_no_ssh_server() -> None:
    async with trio.open_nursery() as nursery:

        async def chatter(stream: trio.SocketStream) -> None:
            await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 200)

        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, chatter, [listener])
        port = listener.socket.getsockname()[1]
        async with open_backend(f"ssh://127.0.0.1:{port}/blobs") as backend:
            with pytest.raises(RemoteUnreachable):
                await backend.get("object")
        nursery.cancel_scope.cancel()


async def test_one_connection_serves_everybody(server: SshServer) -> None:
    async with open_backend(server.url()) as backend:
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(backend.put, f"packs/{number}", b"data")
        await backend.get("packs/1")
    assert (server.folder / "output").read_text().count("Accepted publickey") == 1


async def test_a_session_that_died_while_nobody_used_it(server: SshServer) -> None:
    """The server's process for it was killed; the connection stands. Nobody need notice."""
    async with open_backend(server.url()) as backend:
        await backend.put("object", b"data")
        sessions = [process for process in server.family() if "internal-sftp" in " ".join(process.cmdline())]
        assert sessions
        for process in sessions:
            process.kill()
        assert await backend.get("object") == b"data"


async def test_a_silent_connection_is_not_kept(server: SshServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Giving a call up breaks a connection that says nothing, and a new one is made; one that speaks stays."""
    monkeypatch.setattr(sftp, "SILENCE_S", 0.2)
    async with RetryingBackend(open_backend(server.url()), attempt_s=0.5, total_s=1) as backend:
        await backend.put("object", b"data")
        with server.frozen(), pytest.raises(RemoteUnreachable):
            await backend.get("object")
        patient = RetryingBackend(backend)
        assert await patient.get("object") == b"data"
    assert (server.folder / "output").read_text().count("Accepted publickey") >= 2


async def test_a_put_that_is_given_up_does_not_break_the_others(server: SshServer) -> None:
    data = os.urandom(4_000_000)

    async def put_and_get(backend: Backend, number: int) -> None:
        await backend.put(f"packs/{number}", data)
        assert await backend.get(f"packs/{number}") == data

    async with open_backend(server.url()) as backend:
        await backend.put("object", b"data")
        async with trio.open_nursery() as nursery:
            for number in range(4):
                nursery.start_soon(put_and_get, backend, number)
            for delay_ms in range(1, 30, 5):
                with trio.move_on_after(delay_ms / 1000):
                    await backend.put("cut/short", data)
        await backend.get("object")
    assert (server.folder / "output").read_text().count("Accepted publickey") == 1
