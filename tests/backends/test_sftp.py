"""What becomes of calls that are given up before they have a session."""

import threading

import pytest
import trio

from syncer.backends import sftp_pool, sftp_session
from syncer.backends.base import Backend
from syncer.backends.sftp import SftpBackend
from syncer.backends.sftp_session import SftpSession
from syncer.errors import ObjectCorrupt, ObjectMissing, RemoteUnreachable
from tests.support.servers import SshServer

pytestmark = pytest.mark.slow


@pytest.fixture
def place(ssh_server: SshServer, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("SYNCER_SSH_CONFIG", str(ssh_server.config))
    return f"{ssh_server.root}/given-up"


def gated(server: SshServer, place: str, gate: threading.Event, waiting: threading.Event) -> SftpBackend:
    """A backend that cannot connect before *gate* is set."""
    from syncer.backends import ssh

    def connect() -> ssh.SshConnection:
        waiting.set()
        assert gate.wait(20)
        return ssh.connect("127.0.0.1", port=server.port)

    return SftpBackend("ssh://gated", connect, place)


async def give_up(call: Backend, waiting: threading.Event) -> None:
    """Ask *call* to delete `object`, and go away while it waits for its connection."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(call.delete, "object")
        await trio.to_thread.run_sync(waiting.wait, 20)
        nursery.cancel_scope.cancel()


async def test_a_delete_that_was_given_up_does_not_happen_later(ssh_server: SshServer, place: str) -> None:
    gate, waiting = threading.Event(), threading.Event()
    open_gate = threading.Event()
    open_gate.set()
    async with gated(ssh_server, place, open_gate, threading.Event()) as other:
        await other.put("object", b"data")
        async with gated(ssh_server, place, gate, waiting) as backend:
            await give_up(backend, waiting)
            gate.set()
            # The thread of the deletion is the first to have a session; this call comes after it.
            assert await backend.get("object") == b"data"
        assert await other.get("object") == b"data"


async def test_closing_while_it_connects(ssh_server: SshServer, place: str) -> None:
    gate, waiting = threading.Event(), threading.Event()
    backend = gated(ssh_server, place, gate, waiting)
    refused: list[str] = []

    async def get() -> None:
        with pytest.raises(RemoteUnreachable) as caught:
            await backend.get("object")
        refused.append(str(caught.value))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(get)
        await trio.to_thread.run_sync(waiting.wait, 20)
        await backend.close()
        gate.set()
    assert refused == ["ssh://gated is closed"]
    await get()


async def test_blocks_of_a_pack_cost_one_open(
    ssh_server: SshServer, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[bytes] = []
    ordinary = SftpSession.open

    def counted(session: SftpSession, path: bytes) -> bytes:
        opened.append(path)
        return ordinary(session, path)

    monkeypatch.setattr(SftpSession, "open", counted)
    gate = threading.Event()
    gate.set()
    data = bytes(range(256)) * 1000
    async with gated(ssh_server, place, gate, threading.Event()) as backend:
        await backend.put("packs/a", data)
        for start in (1, 1000, 200_000):
            assert await backend.get("packs/a", start, 999) == data[start : start + 999]
        assert len(opened) == 1
        with pytest.raises(ObjectCorrupt):
            await backend.get("packs/a", 255_999, 2)
        await backend.delete("packs/a")
        with pytest.raises(ObjectMissing):
            await backend.get("packs/a", 1, 999)


async def test_an_idle_connection_keeps_no_file_open(
    ssh_server: SshServer, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sftp_session, "KEPT_S", 0.2)
    monkeypatch.setattr(sftp_pool, "KEPT_S", 0.3)
    closed = threading.Event()
    ordinary = SftpSession.close_handle

    def noted(session: SftpSession, handle: bytes) -> None:
        ordinary(session, handle)
        closed.set()

    monkeypatch.setattr(SftpSession, "close_handle", noted)
    gate = threading.Event()
    gate.set()
    async with gated(ssh_server, place, gate, threading.Event()) as backend:
        await backend.put("packs/a", b"0123456789")
        closed.clear()
        assert await backend.get("packs/a", 3, 4) == b"3456"
        assert await trio.to_thread.run_sync(closed.wait, 20)
        assert await backend.get("packs/a", 3, 4) == b"3456"
