"""The control socket: a real server task and real clients over a real unix socket."""

import contextlib
import json
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trio

from syncer import control
from syncer.control import Client, Progress, Status
from syncer.errors import BudgetExhausted, DeadlinePassed, NotMounted, RemoteUnreachable, SyncerError, UsageError

T = TypeVar("T")

STATUS = Status(
    mounted=True,
    mountpoint="/mnt/ph\udcffotos",
    remote="nas:blobs",
    remote_ok=None,
    budget_bytes=10**9,
    used_bytes=5 * 10**8,
    clean_bytes=4 * 10**8,
    dirty_bytes=9 * 10**7,
    metadata_bytes=10**7,
    pending_upload_bytes=123,
    pending_upload_blocks=4,
    oldest_pending_s=1.5,
    uploaded_bytes=1,
    fetched_bytes=2,
    files=3,
    directories=4,
    logical_bytes=5,
    unique_bytes=6,
    remote_bytes=7,
    head=None,
)
JSON_KEYS = [
    *("mounted", "mountpoint", "remote", "remote_ok", "budget_bytes", "used_bytes", "clean_bytes", "dirty_bytes"),
    *("metadata_bytes", "pending_upload_bytes", "pending_upload_blocks", "oldest_pending_s", "uploaded_bytes"),
    *("fetched_bytes", "files", "directories", "logical_bytes", "unique_bytes", "remote_bytes", "head"),
    *("remote_error", "replaced_copies", "damaged_blocks", "damaged_paths", "history_bytes", "dead_bytes"),
    *("follows", "shown_age_s", "snapshot_due"),
]


class Mount:
    """A service whose flush reports `steps` and ends once `release` is set, or raises `failure`."""

    def __init__(self) -> None:
        self.steps = [Progress(1, 10), Progress(5, 12)]
        self.failure: BaseException | None = None
        self.flushing = trio.Event()
        self.release = trio.Event()
        self.cancelled = trio.Event()
        self.stopped = trio.Event()

    def status(self) -> Status:
        if self.failure:
            raise self.failure
        return STATUS

    async def travel(
        self, what: str, arguments: dict[str, Any], progress: Callable[[Progress], None]
    ) -> dict[str, Any]:
        if what == "snapshot":
            await self.flush(progress)
        return {"what": what, **arguments, "items": list(range(1200))}

    async def flush(self, progress: Callable[[Progress], None]) -> None:
        self.flushing.set()
        try:
            for step in self.steps:
                progress(step)
                await trio.sleep(control.PROGRESS_STEP_S * 2)
            await self.release.wait()
        except trio.Cancelled:
            self.cancelled.set()
            raise
        if self.failure:
            raise self.failure

    def stop(self) -> None:
        self.stopped.set()


@asynccontextmanager
async def serving(data: Path) -> AsyncIterator[Mount]:
    mount = Mount()
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            await nursery.start(serve, data, mount)
            yield mount
            nursery.cancel_scope.cancel()


async def serve(data: Path, mount: Mount, *, task_status: "trio.TaskStatus[None]") -> None:
    await control.serve(data / control.SOCKET_NAME, mount, task_status=task_status)


async def ask(data: Path, question: Callable[[Client], T]) -> T:
    def in_thread() -> T:
        with Client.connect(data) as client:
            return question(client)

    return await trio.to_thread.run_sync(in_thread)


def test_the_keys_of_the_status_are_stable() -> None:
    assert [field.name for field in fields(Status)] == JSON_KEYS
    assert list(asdict(STATUS)) == JSON_KEYS


async def test_a_status_arrives_as_it_was_sent(tmp_path: Path) -> None:
    async with serving(tmp_path):
        assert await ask(tmp_path, lambda client: (client.status(), client.status())) == (STATUS, STATUS)


async def test_the_socket_is_private_and_goes_with_the_mount(tmp_path: Path) -> None:
    path = tmp_path / control.SOCKET_NAME
    path.write_text("left over")
    old = os.umask(0)
    try:
        async with serving(tmp_path):
            assert stat.S_ISSOCK(path.stat().st_mode)
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
    finally:
        os.umask(old)
    assert not path.exists()


async def test_a_path_too_long_for_a_socket_address_works(tmp_path: Path) -> None:
    data = tmp_path / ("d" * 100) / ("e" * 100)
    data.mkdir(parents=True)
    async with serving(data):
        assert await ask(data, lambda client: client.status()) == STATUS
    assert list(data.iterdir()) == []
    with pytest.raises(NotMounted):
        Client.connect(data)


def test_without_a_mount_there_is_nobody_to_ask(tmp_path: Path) -> None:
    with pytest.raises(NotMounted) as caught:
        Client.connect(tmp_path)
    assert f"syncer {tmp_path} MOUNTPOINT" in caught.value.hint
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(tmp_path / control.SOCKET_NAME))
    dead.close()
    with pytest.raises(NotMounted):
        Client.connect(tmp_path)


async def test_a_flush_reports_and_returns_when_done(tmp_path: Path) -> None:
    seen: list[Progress] = []
    async with serving(tmp_path) as mount:
        mount.release.set()
        await ask(tmp_path, lambda client: client.flush(seen.append, timeout_s=20))
    assert seen[-1] == Progress(5, 12)
    assert Progress(1, 10) in seen


async def test_a_flush_does_not_return_before_it_is_done(tmp_path: Path) -> None:
    returned = trio.Event()
    async with serving(tmp_path) as mount, trio.open_nursery() as nursery:

        async def flush() -> None:
            await ask(tmp_path, lambda client: client.flush(lambda _: None))
            returned.set()

        nursery.start_soon(flush)
        await mount.flushing.wait()
        assert await ask(tmp_path, lambda client: client.status()) == STATUS  # others are served meanwhile
        assert not returned.is_set()
        mount.release.set()
        await returned.wait()


@pytest.mark.parametrize(
    "wait",
    [
        lambda client: client.flush(lambda _: None, timeout_s=0.5),
        lambda client: client.travel("snapshot", {}, timeout_s=0.5),
    ],
    ids=["flush", "snapshot"],
)
async def test_what_takes_too_long_gives_up_and_is_cancelled(tmp_path: Path, wait: Callable[[Client], object]) -> None:
    async with serving(tmp_path) as mount:
        start = time.monotonic()
        with pytest.raises(DeadlinePassed, match=r"within 0\.5 s"):
            await ask(tmp_path, wait)
        assert 0.4 < time.monotonic() - start < 5
        await mount.cancelled.wait()
        assert await ask(tmp_path, lambda client: client.status()) == STATUS


def test_progress_that_never_ends_does_not_outrun_the_deadline(tmp_path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / control.SOCKET_NAME))
    listener.listen(1)

    def talk_without_end() -> None:
        peer, _ = listener.accept()
        with peer, contextlib.suppress(OSError):
            while True:
                peer.sendall(b'{"progress": {"done_bytes": 1, "total_bytes": 2}}\n' * 1000)

    talker = threading.Thread(target=talk_without_end)
    talker.start()
    end = time.monotonic() + 20

    def note(progress: Progress) -> None:
        assert time.monotonic() < end

    with Client.connect(tmp_path) as client, pytest.raises(DeadlinePassed, match=r"within 0\.3 s"):
        client.flush(note, timeout_s=0.3)
    talker.join()
    listener.close()


async def test_a_client_that_vanishes_cancels_its_own_flush_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(tmp_path) as mount, trio.open_nursery() as nursery:
        done = trio.Event()
        other = Mount.flush
        flushes = 0

        async def counted(progress: Callable[[Progress], None]) -> None:
            nonlocal flushes
            flushes += 1
            await other(mount, progress)
            done.set()

        mount.flush = counted  # type: ignore[method-assign]
        nursery.start_soon(ask, tmp_path, lambda client: client.flush(lambda _: None))
        await mount.flushing.wait()
        killed = await trio.open_unix_socket(str(tmp_path / control.SOCKET_NAME))
        await killed.send_all(b'{"do": "flush"}\n')
        while flushes < 2:
            await killed.receive_some(1)
        await killed.aclose()
        await mount.cancelled.wait()
        assert not done.is_set()
        mount.release.set()
        await done.wait()
    assert not caplog.records, "somebody pressed Ctrl-C: that is no defect"


async def test_a_client_that_has_left_when_the_answer_comes_is_no_defect(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(tmp_path) as mount:
        left = trio.Event()

        async def late(progress: Callable[[Progress], None]) -> None:
            mount.flushing.set()
            await left.wait()

        mount.flush = late  # type: ignore[method-assign]
        client = await trio.open_unix_socket(str(tmp_path / control.SOCKET_NAME))
        await client.send_all(b'{"do": "flush"}\n')
        await mount.flushing.wait()
        await client.aclose()
        left.set()
        assert await ask(tmp_path, lambda client: client.status()) == STATUS
    assert not caplog.records


async def test_a_long_flush_without_news_is_not_taken_for_a_hung_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "ANSWER_S", 0.6)
    monkeypatch.setattr(control, "HEARTBEAT_S", 0.1)
    async with serving(tmp_path) as mount:
        mount.steps = []
        with pytest.raises(DeadlinePassed, match=r"within 2 s"):
            await ask(tmp_path, lambda client: client.flush(lambda _: None, timeout_s=2))


async def test_a_mount_that_hangs_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "ANSWER_S", 0.3)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / control.SOCKET_NAME))
    listener.listen(1)
    for question in (Client.status, Client.stop, lambda client: client.flush(lambda _: None)):
        start = time.monotonic()
        with pytest.raises(DeadlinePassed, match=r"does not answer within 0\.3 s"):
            await ask(tmp_path, question)
        assert time.monotonic() - start < 3
    listener.close()


@pytest.mark.parametrize("kind", [RemoteUnreachable, BudgetExhausted, SyncerError])
async def test_errors_come_out_as_what_they_are(tmp_path: Path, kind: type[SyncerError]) -> None:
    async with serving(tmp_path) as mount:
        mount.failure = kind("nas does not answer", hint="plug it in")
        mount.release.set()
        for question in (Client.status, lambda client: client.flush(lambda _: None)):
            with pytest.raises(kind) as caught:
                await ask(tmp_path, question)
            assert type(caught.value) is kind
            assert (str(caught.value), caught.value.hint) == ("nas does not answer", "plug it in")


async def test_what_only_the_mount_knows_comes_out_as_the_kind_of_error_that_it_is(tmp_path: Path) -> None:
    """So the exit code does not depend on which modules the one who asks has loaded."""

    class Particular(UsageError):
        pass

    async with serving(tmp_path) as mount:
        mount.failure = Particular("nobody is called that")
        mount.release.set()
        with pytest.raises(UsageError) as caught:
            await ask(tmp_path, lambda client: client.flush(lambda _: None))
        assert type(caught.value) is UsageError


async def test_a_defect_in_a_request_is_reported_logged_and_survived(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(tmp_path) as mount:
        mount.release.set()
        mount.failure = KeyError("oops")
        for question in (Client.status, lambda client: client.flush(lambda _: None)):
            with pytest.raises(SyncerError, match="unexpected KeyError: 'oops'"):
                await ask(tmp_path, question)
        assert [record.exc_info is not None for record in caplog.records] == [True, True]
        caplog.clear()
        mount.failure = None
        assert await ask(tmp_path, lambda client: client.status()) == STATUS


async def test_stop_reaches_the_mount(tmp_path: Path) -> None:
    async with serving(tmp_path) as mount:
        await ask(tmp_path, lambda client: client.stop())
        assert mount.stopped.is_set()


async def test_a_stop_whose_sender_has_given_up_is_not_carried_out(tmp_path: Path) -> None:
    """It waited in the socket while the mount was stopped, and `umount` has said that nobody answers."""
    async with serving(tmp_path) as mount:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.connect(os.fsencode(tmp_path / "control.sock"))
            connection.sendall(b'{"do": "stop"}\n')  # the server has not run since: nothing was awaited
        assert await ask(tmp_path, Client.status) == STATUS
        assert not mount.stopped.is_set()
        await ask(tmp_path, Client.stop)
        assert mount.stopped.is_set()


async def test_a_mount_that_ends_instead_of_answering_is_not_mounted_any_more(tmp_path: Path) -> None:
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            mount = Mount()
            await nursery.start(serve, tmp_path, mount)

            async def end() -> None:
                await mount.flushing.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(end)
            with trio.CancelScope(shield=True), pytest.raises(NotMounted, match="ended before it answered"):
                await ask(tmp_path, lambda client: client.flush(lambda _: None))


@pytest.mark.parametrize("line", [b"nonsense\n", b"[1]\n", b'{"do": "dance"}\n', b'{"do": ["flush"]}\n'])
async def test_strange_requests_get_an_error_and_do_no_harm(
    tmp_path: Path, line: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(tmp_path):
        stream = await trio.open_unix_socket(str(tmp_path / control.SOCKET_NAME))
        await stream.send_all(line)
        answer = json.loads(await stream.receive_some(10_000))
        assert answer["error"]["name"] == "SyncerError"
        await stream.send_all(b'{"do": "status"}\n')
        assert json.loads(await stream.receive_some(10_000))["result"]["budget_bytes"] == 10**9
        await stream.aclose()
    assert not caplog.records


async def test_an_endless_line_is_hung_up_on(tmp_path: Path) -> None:
    async with serving(tmp_path):
        stream = await trio.open_unix_socket(str(tmp_path / control.SOCKET_NAME))
        with pytest.raises(trio.BrokenResourceError):
            while True:
                await stream.send_all(b"x" * 10_000)
        await stream.aclose()


AS_SOMEBODY_ELSE = """
import os, socket, sys
os.setuid(65534)
peer = socket.socket(socket.AF_UNIX)
peer.connect(sys.argv[1])
try:
    peer.sendall(b'{"do": "stop"}\\n')
    print(peer.recv(100))
except (BrokenPipeError, ConnectionResetError):
    print(b"")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
async def test_other_users_are_turned_away_even_with_access_to_the_socket(tmp_path: Path) -> None:
    import tempfile

    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o755)
        async with serving(Path(folder)) as mount:
            path = Path(folder, control.SOCKET_NAME)
            path.chmod(0o666)
            outcome = await trio.run_process(
                [sys.executable, "-c", AS_SOMEBODY_ELSE, str(path)], capture_stdout=True, stderr=subprocess.STDOUT
            )
            assert outcome.stdout.strip() == b"b''"
            assert not mount.stopped.is_set()
