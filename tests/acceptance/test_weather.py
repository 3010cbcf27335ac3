"""A network that is bad in every way we know, between a real mount and a real server.

Whatever it does: what is here works on at its speed, what is not fails at its deadline, a signal frees who waits, and
when it is good again everything goes on by itself, without a loss.
"""

import contextlib
import errno
import os
import random
import signal
import statistics
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.acceptance.conftest import SERVERS
from tests.support.long_form import LONG, long
from tests.support.mount import Mount, forget_pages
from tests.support.mounted import wait_until
from tests.support.proxy import Proxy, Weather
from tests.support.server_disks import needs_root, remount, small_disk
from tests.support.server_process import Server
from tests.support.servers import SshServer

pytestmark = pytest.mark.slow

DEADLINE_S = 2.0
GRACE_S = 4.0
"""What a busy machine may add to a deadline."""
PROMPT_S = 2.0
"""No call that needs no network takes longer, whatever the network does."""
UMOUNT_S = 25.0
"""10 s for written pages that the kernel holds, 10 s for a last snapshot, and what a busy machine adds."""
COLD_BYTES = 1_500_000
WORK_S = 0.2
"""How long local work goes on at least in each kind of weather."""
SPELLS, SPELL_S = 12, 1.0
"""Bad and good weather by turns, so many times and so long each, to compare the speed of local work."""
SPEED = 0.9
"""What is left of it in bad weather, at least."""
EITHER, FAILS, WORKS = "either", "fails", "works"


@dataclass(frozen=True, slots=True)
class Case:
    """A kind of bad weather, and what a read that needs the remote makes of it; *often* is for the short form too."""

    name: str
    weather: Weather
    cold_read: str = FAILS
    often: bool = False


BOTH = (
    Case("delay", Weather(delay_s=0.02), WORKS),
    Case("throttled", Weather(bytes_per_s=100_000), EITHER),
    Case("black hole", Weather(black_hole=True), often=True),
    Case("refusing", Weather(refusing=True)),
)
CASES = {
    "ssh": BOTH,
    "s3": (
        *BOTH,
        Case("slow down", Weather(answer="SlowDown"), often=True),
        Case("broken", Weather(answer="InternalError")),
        Case("expired", Weather(answer="ExpiredToken")),
        Case("full", Weather(answer="XMinioStorageFull", only=(b"PUT",)), WORKS, often=True),
    ),
}


def bytes_of(name: str, size: int = COLD_BYTES) -> bytes:
    return random.Random(name).randbytes(size)


@dataclass(slots=True)
class Place:
    """A mount behind the proxy, in front of it a server of its own."""

    mount: Mount
    proxy: Proxy
    server: Server


@pytest.fixture(params=[pytest.param("ssh", marks=long), "s3"])
def behind(request: pytest.FixtureRequest, place: Path) -> Iterator[Place]:
    with SERVERS[request.param]() as server, Proxy(server.port) as proxy:
        url, extra = server.url(place.name), dict(server.environment)
        if isinstance(server, SshServer):
            server.add_known_hosts(f"[127.0.0.1]:{proxy.port} {server.host_key}\n")
            url = url.replace(f":{server.port}/", f":{proxy.port}/")
        else:
            extra["AWS_ENDPOINT_URL"] = proxy.endpoint
        with Mount(
            place, url, 64, extra=extra, network_deadline_s=DEADLINE_S, upload_delay_s=0.5, lifetime_s=600.0
        ) as mount:
            mount.expected_warnings = r" (WARNING|ERROR) syncer\."
            yield Place(mount, proxy, server)


def kept_elsewhere(mount: Mount, names: list[str]) -> None:
    """Files of these names, whose bytes are on the remote alone."""
    mount.start()
    for name in names:
        (mount.path / name).write_bytes(bytes_of(name))
    mount.umount(wait=True)
    mount.forget_data()
    mount.start()


def read_cold(path: Path) -> bytes | None:
    """What a read brings that needs the remote; None for EIO, which must come at the deadline."""
    forget_pages(path)
    begin = time.monotonic()
    try:
        with open(path, "rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            data = file.read(4096)
    except OSError as error:
        assert error.errno == errno.EIO
        data = None
    took_s = time.monotonic() - begin
    assert took_s < DEADLINE_S + GRACE_S, f"it took {took_s:.1f} s"
    return data


def work_locally(folder: Path, name: str, work_s: float = WORK_S) -> list[float]:
    """Write, read, rename, stat and delete for a while; how long each round took. Leaves the file *name*."""
    rounds: list[float] = []
    begin = time.monotonic()
    data = bytes_of(name, 200_000)
    while time.monotonic() - begin < work_s or len(rounds) < 5:
        start = time.monotonic()
        path = folder / f"{name} temporary"
        path.write_bytes(data[:100_000])
        with open(path, "r+b") as file:
            file.seek(50_000)
            file.write(b"edited")
        forget_pages(path)
        assert path.read_bytes()[49_999:50_007] == data[49_999:50_000] + b"edited" + data[50_006:50_007]
        path.rename(folder / f"{name} renamed")
        assert (folder / f"{name} renamed").stat().st_size == 100_000
        assert path.name not in os.listdir(folder)
        os.statvfs(folder)
        (folder / f"{name} renamed").unlink()
        rounds.append(time.monotonic() - start)
    (folder / name).write_bytes(data)
    return rounds


def test_every_kind_of_weather(behind: Place) -> None:
    mount, proxy = behind.mount, behind.proxy
    cases = [case for case in CASES["ssh" if isinstance(behind.server, SshServer) else "s3"] if LONG or case.often]
    kept_elsewhere(mount, [case.name for case in cases])
    for case in cases:
        with proxy.bad(case.weather):
            if case.cold_read != WORKS:
                proxy.cut()
            rounds = work_locally(mount.path, f"in {case.name}")
            assert max(rounds) < PROMPT_S, f"{case.name}: a round took {max(rounds):.1f} s"
            got = read_cold(mount.path / case.name)
            assert case.cold_read == EITHER or (got is None) == (case.cold_read == FAILS), case.name
            assert got in (None, bytes_of(case.name)[:4096])
        wait_until(lambda case=case: read_cold(mount.path / case.name) is not None, f"{case.name} is over")  # type: ignore[misc]
    mount.flush()
    assert mount.status()["remote_ok"] is True
    assert mount.status()["damaged_blocks"] == 0
    with proxy.bad(Weather(black_hole=True)):
        (mount.path / "last").write_bytes(b"last")
        begin = time.monotonic()
        assert "unmounted" in mount.umount(wait=False)
        assert time.monotonic() - begin < UMOUNT_S
        mount.start()  # no network is no reason not to mount
        assert (mount.path / "last").read_bytes() == b"last"
    mount.umount(wait=True)
    mount.forget_data()
    mount.start()
    for case in cases:
        assert (mount.path / case.name).read_bytes() == bytes_of(case.name)
        assert (mount.path / f"in {case.name}").read_bytes() == bytes_of(f"in {case.name}", 200_000)
    assert (mount.path / "last").read_bytes() == b"last"
    mount.stop()
    mount.finish()


@long
def test_local_work_keeps_its_speed(behind: Place) -> None:
    """By turns with good weather in one run: what else the machine does falls on both."""
    mount, proxy = behind.mount, behind.proxy
    mount._config = replace(mount._config, network_deadline_s=10.0)
    mount.start()
    work_locally(mount.path, "before")
    mount.flush()
    speeds: dict[str, float] = {}
    for case in CASES["ssh" if isinstance(behind.server, SshServer) else "s3"]:
        bad: list[float] = []
        good: list[float] = []
        for _ in range(SPELLS):
            with proxy.bad(case.weather):
                proxy.cut()
                bad += work_locally(mount.path, case.name, SPELL_S)
            good += work_locally(mount.path, case.name, SPELL_S)
        speeds[case.name] = statistics.median(good) / statistics.median(bad)
        mount.flush()
    print(speeds)
    assert min(speeds.values()) >= SPEED, speeds
    mount.stop()
    mount.finish()


READ_AND_CATCH = """
import os, sys
file = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT)
print("reading", flush=True)
try:
    os.read(file, 65536)
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.parametrize("behind", ["ssh"], indirect=True)
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=long)])
def test_a_signal_frees_who_waits(behind: Place, number: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that reads ahead, one that reads past the page cache, and the others go on waiting."""
    mount, proxy = behind.mount, behind.proxy
    mount._config = mount._config.__class__(
        remote=mount._config.remote, budget_bytes=64_000_000, network_deadline_s=30.0
    )
    kept_elsewhere(mount, ["a", "b"])
    for name in ("a", "b"):
        forget_pages(mount.path / name)
    with proxy.bad(Weather(black_hole=True)):
        cat = ["cat", str(mount.path / "a")]
        direct = ["python3", "-c", READ_AND_CATCH, str(mount.path / "a")]
        waiting = [subprocess.Popen(command, stdout=subprocess.PIPE) for command in (cat, direct, direct)]
        for process in waiting[1:]:
            assert process.stdout and process.stdout.readline() == b"reading\n"
        for process in waiting:
            wait_until(lambda process=process: _is_waiting(process.pid), "it waits for its bytes")  # type: ignore[misc]
        work_locally(mount.path, "meanwhile")
        for process in waiting[:2]:
            begin = time.monotonic()
            process.send_signal(number)
            said = process.communicate(timeout=20)[0]
            assert time.monotonic() - begin < PROMPT_S
            assert said == (b"interrupted\n" if process is waiting[1] and number == signal.SIGINT else b"")
        assert waiting[2].poll() is None, "nobody has sent it a signal"
    waiting[2].communicate(timeout=60)
    assert waiting[2].returncode == 0
    assert (mount.path / "a").read_bytes() == bytes_of("a")
    mount.stop()
    mount.finish()


def _is_waiting(pid: int) -> bool:
    """Whether the process sleeps in the kernel's part of FUSE, or for a page."""
    return Path(f"/proc/{pid}/wchan").read_text() in (
        *("request_wait_answer", "folio_wait_bit_common", "fuse_get_req", "folio_put_wait_locked"),
        *("__fuse_simple_request", "0"),
    )


WRITE_AND_CATCH = """
import os, random, sys
file, chance = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT), random.Random(1)
try:
    while True:
        os.write(file, chance.randbytes(131072))
except KeyboardInterrupt:
    print("interrupted")
"""


def stands_still(path: Path) -> bool:
    """Whether the file has grown large, and not been written to for two seconds."""
    found = path.stat() if path.exists() else None
    return found is not None and found.st_size > 30_000_000 and time.time() - found.st_mtime > 2.0


@pytest.mark.parametrize("behind", ["ssh"], indirect=True)
def test_a_signal_frees_who_waits_for_room(behind: Place) -> None:
    """The budget is full of what the remote does not take."""
    mount, proxy = behind.mount, behind.proxy
    mount._config = replace(mount._config, network_deadline_s=60.0)
    mount.start()
    mount.flush()
    with proxy.bad(Weather(black_hole=True)), contextlib.ExitStack() as stack:
        command = ["python3", "-c", WRITE_AND_CATCH, str(mount.path / "f")]
        writer = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE))
        stack.callback(writer.kill)
        wait_until(lambda: stands_still(mount.path / "f"), "it waits for room")
        begin = time.monotonic()
        writer.send_signal(signal.SIGINT)
        assert writer.communicate(timeout=20)[0] == b"interrupted\n"
        assert time.monotonic() - begin < PROMPT_S
        size = (mount.path / "f").stat().st_size
    mount.flush()
    chance = random.Random(1)
    assert (mount.path / "f").read_bytes() == b"".join(chance.randbytes(131_072) for _ in range(size // 131_072))
    mount.stop()
    mount.finish()


def has_large_file(folder: Path) -> bool:
    return any(path.is_file() and path.stat().st_size > 1_000_000 for path in folder.rglob("*"))


@pytest.mark.parametrize("behind", ["ssh"], indirect=True)
def test_a_server_that_starts_anew_in_the_middle_of_an_upload(behind: Place) -> None:
    mount, proxy, server = behind.mount, behind.proxy, behind.server
    data = bytes_of("sent", 30_000_000)
    mount._config = replace(mount._config, network_deadline_s=20.0)
    mount.start()
    mount.flush()
    assert isinstance(server, SshServer)
    proxy.weather = Weather(bytes_per_s=1_000_000)
    (mount.path / "sent").write_bytes(data)
    wait_until(lambda: has_large_file(server.root), "a part of a pack is there")
    server.stop()
    assert mount.status()["pending_upload_bytes"] > 0
    (mount.path / "meanwhile").write_bytes(data[:1_000_000])
    server.start()
    proxy.weather = Weather()
    mount.flush()
    mount.umount(wait=True)
    mount.run("check", mount.data, "--remote", "--read-data")
    mount.forget_data()
    mount.start()
    assert (mount.path / "sent").read_bytes() == data
    assert (mount.path / "meanwhile").read_bytes() == data[:1_000_000]
    mount.stop()
    mount.finish()


@long
@pytest.mark.parametrize("behind", ["ssh"], indirect=True)
def test_keys_that_the_server_does_not_take_any_more(behind: Place) -> None:
    mount, server = behind.mount, behind.server
    assert isinstance(server, SshServer)
    kept_elsewhere(mount, ["cold"])
    keys = server.authorized_keys.read_text()
    server.authorized_keys.write_text("")
    behind.proxy.cut()
    work_locally(mount.path, "local")
    assert read_cold(mount.path / "cold") is None
    wait_until(lambda: mount.status()["remote_ok"] is False, "the trouble is noticed")
    server.authorized_keys.write_text(keys)
    wait_until(lambda: read_cold(mount.path / "cold") is not None, "the key is taken again")
    mount.flush()
    assert mount.status()["pending_upload_bytes"] == 0
    mount.stop()
    mount.finish()


@needs_root
@pytest.mark.parametrize("kind", ["folder", "ssh"])
def test_a_remote_that_is_full(kind: str, place: Path) -> None:
    """It takes no more: what waits stays here, and leaves when there is room."""
    with contextlib.ExitStack() as stack:
        disk, url, extra = place / "disk", str(place / "disk" / "blobs"), dict[str, str]()
        if kind == "ssh":
            server = stack.enter_context(SshServer())
            disk, url, extra = server.root / "disk", server.url("disk/blobs"), dict(server.environment)
        stack.enter_context(small_disk(disk, 6_000_000))
        mount = stack.enter_context(Mount(place, url, 64, extra=extra, network_deadline_s=10.0, upload_delay_s=0.5))
        mount.expected_warnings = r" WARNING syncer\."
        mount.start()
        (mount.path / "fits").write_bytes(bytes_of("fits"))
        mount.flush()
        (mount.path / "too much").write_bytes(bytes_of("too much", 7_000_000))
        wait_until(lambda: mount.status()["remote_ok"] is False, "the remote is full")
        assert (mount.path / "too much").read_bytes() == bytes_of("too much", 7_000_000)
        assert mount.status()["pending_upload_bytes"] > 0
        work_locally(mount.path, "local")
        remount(disk, "size=40000000")
        mount.flush()
        assert mount.status()["pending_upload_bytes"] == 0
        mount.stop()
        mount.finish()
