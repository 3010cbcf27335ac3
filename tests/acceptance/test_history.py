"""History as users meet it: `.snapshots` in a real mount, and mounts of nothing but history."""

import errno
import os
import signal
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from scripts.benchmark.collection import make_files
from tests.acceptance.conftest import MakeRemote
from tests.support.collection import Manifest, build, copy, differences, manifest
from tests.support.long_form import LONG, long
from tests.support.mount import Mount, forget_pages
from tests.support.mounted import wait_until
from tests.support.processor import processor_s

pytestmark = pytest.mark.slow

HISTORY = ".snapshots"


def names(folder: Path) -> list[str]:
    """The snapshots behind an entrance, oldest first, without `latest`."""
    return sorted(name for name in os.listdir(folder) if name != "latest")


def snapshot(mount: Mount, known: int) -> str:
    """Take one; returns its name. Snapshots of one second would have longer names."""
    before = set(names(mount.path / HISTORY)) if known else set()
    mount.flush()
    taken = int(time.time())
    wait_until(lambda: int(time.time()) > taken, "the next second has begun")
    (new,) = set(names(mount.path / HISTORY)) - before
    return new


def unlike_now(noted: Manifest) -> Manifest:
    """Without the root: its times are those of the mountpoint's last change."""
    return {path: entry for path, entry in noted.items() if path != b"."}


def make_states(mount: Mount, place: Path) -> dict[str, Manifest]:
    """Three snapshots of a small collection that is changed in between, and what they must show."""
    source = build(place / "source", 3_000_000, real_files=40, real_bytes=1_000_000)
    states: dict[str, Manifest] = {}
    copy(source, mount.path / "c")
    changes: list[Callable[[], object]] = [
        lambda: None,
        lambda: subprocess.run(["rm", "-rf", mount.path / "c" / "odd"], check=True),
        lambda: (mount.path / "c" / "media").rename(mount.path / "moved"),
    ]
    for change in changes:
        change()
        with open(mount.path / "log", "ab") as file:
            file.write(os.urandom(100_000))
        states[snapshot(mount, len(states))] = manifest(mount.path)
    return states


def test_every_state_is_there_byte_for_byte(place: Path, remote_of: MakeRemote) -> None:
    remote = remote_of("s3")
    with Mount(place, remote.url, 64, extra=remote.environment) as mount:
        mount.start()
        states = make_states(mount, place)
        assert HISTORY not in os.listdir(mount.path)
        assert names(mount.path / HISTORY) == list(states)
        for name, state in states.items():
            assert differences(unlike_now(state), unlike_now(manifest(mount.path / HISTORY / name))) == []
        assert os.readlink(mount.path / HISTORY / "latest") == list(states)[-1]
        with os.scandir(mount.path / HISTORY) as entries:
            for entry in entries:
                assert entry.inode() == entry.stat(follow_symlinks=False).st_ino
                assert entry.is_symlink() == (entry.name == "latest") != entry.is_dir(follow_symlinks=False)
        mount.umount()
        mount.forget_data()  # everything from the remote
        mount.start("--read-only")
        for name, state in states.items():
            assert differences(unlike_now(state), unlike_now(manifest(mount.path / HISTORY / name))) == []
        mount.stop()
        mount.finish()


def refused(call: Callable[[], object]) -> int:
    with pytest.raises(OSError) as caught:
        call()
    return caught.value.errno or 0


def test_nothing_behind_snapshots_can_be_changed(place: Path, remote_of: MakeRemote) -> None:
    with Mount(place, remote_of("folder").url, 64) as mount:
        mount.start()
        (mount.path / "folder").mkdir()
        (mount.path / "file").write_bytes(b"as it was")
        past = mount.path / HISTORY / snapshot(mount, 0)
        file, folder = past / "file", past / "folder"
        for call in (
            lambda: file.write_bytes(b""),
            lambda: os.open(file, os.O_RDWR),
            lambda: os.open(file, os.O_RDONLY | os.O_TRUNC),
            lambda: os.truncate(file, 0),
            lambda: file.unlink(),
            lambda: folder.rmdir(),
            lambda: file.chmod(0o600),
            lambda: os.chown(file, os.getuid(), os.getgid()),
            lambda: os.utime(file),
            lambda: os.setxattr(file, "user.x", b""),
            lambda: os.removexattr(file, "user.x"),
            lambda: os.link(file, past / "link"),
            lambda: os.symlink("x", past / "link"),
            lambda: os.mkfifo(past / "fifo"),
            lambda: (past / "new").write_bytes(b""),
            lambda: (past / "new").mkdir(),
            lambda: file.rename(past / "renamed"),
            lambda: (mount.path / HISTORY / "new").mkdir(),
            lambda: (mount.path / HISTORY / "latest").unlink(),
            lambda: (mount.path / HISTORY).rmdir(),
            lambda: (mount.path / HISTORY).rename(mount.path / "other"),
            lambda: (folder / HISTORY).mkdir(),
        ):
            assert refused(call) == errno.EROFS, call
        assert refused(lambda: (mount.path / HISTORY).mkdir()) == errno.EEXIST
        assert refused(lambda: file.rename(mount.path / "file2")) in (errno.EROFS, errno.EXDEV)
        assert refused(lambda: os.link(file, mount.path / "link")) == errno.EROFS
        assert file.read_bytes() == b"as it was"
        mount.stop()
        mount.finish()


def test_programs_do_not_wander_in(place: Path, remote_of: MakeRemote) -> None:
    with Mount(place, remote_of("folder").url, 64) as mount:
        mount.start()
        (mount.path / "folder").mkdir()
        (mount.path / "folder" / "file").write_bytes(b"x" * 100_000)
        os.link(mount.path / "folder" / "file", mount.path / "twice")
        name = snapshot(mount, 0)
        found = subprocess.run(["find", mount.path], capture_output=True, text=True, check=True).stdout
        assert HISTORY not in found
        past = mount.path / HISTORY / name
        used = [
            subprocess.run(["du", "-s", "--apparent-size", "-B1", path], capture_output=True, text=True, check=True)
            for path in (mount.path, past)
        ]
        assert [int(line.stdout.split()[0]) for line in used] == [100_000, 100_000]
        assert (past / "twice").stat().st_ino == (past / "folder" / "file").stat().st_ino
        assert (past / "twice").stat().st_ino != (mount.path / "twice").stat().st_ino
        copied = place / "copied"
        subprocess.run(["cp", "-a", past, copied], check=True)
        assert (copied / "twice").read_bytes() == b"x" * 100_000
        subprocess.run(["rm", "-r", mount.path / "folder"], check=True)
        assert os.listdir(mount.path) == ["twice"]
        mount.stop()
        mount.finish()


@long
def test_a_file_larger_than_the_budget_comes_back_in_order(place: Path, remote_of: MakeRemote) -> None:
    size = 200_000_000 if LONG else 90_000_000
    with Mount(place, remote_of("folder").url, 64) as mount:
        mount.start()
        part = os.urandom(1_000_000)
        with open(mount.path / "large", "wb") as file:
            for number in range(size // len(part)):
                file.write(number.to_bytes(8, "big") + part[8:])
        past = mount.path / HISTORY / snapshot(mount, 0) / "large"
        (mount.path / "large").unlink()
        with open(past, "rb") as file:
            for number in range(size // len(part)):
                assert file.read(len(part)) == number.to_bytes(8, "big") + part[8:]
        forget_pages(past)
        with open(past, "rb") as file:
            file.seek(size // 2)
            assert file.read(8) == (size // len(part) // 2).to_bytes(8, "big")
        mount.stop()
        mount.finish()


def waits_for_us(pid: int) -> bool:
    """Whether the process sleeps in the kernel's part of FUSE."""
    return Path(f"/proc/{pid}/wchan").read_text() in ("request_wait_answer", "__fuse_simple_request", "0")


def test_a_signal_frees_who_waits_for_the_past(place: Path, remote_of: MakeRemote) -> None:
    remote = remote_of("ssh", own=True)
    with Mount(place, remote.url, 64, extra=remote.environment, network_deadline_s=30.0) as mount:
        mount.expected_warnings = "did not deliver|cannot be listed|a call failed|cannot be asked"
        mount.start()
        (mount.path / "folder").mkdir()
        (mount.path / "folder" / "file").write_bytes(b"x")
        past = mount.path / HISTORY / snapshot(mount, 0) / "folder"
        mount.umount()
        mount.forget_data()
        mount.start("--read-only")
        assert past.parent.name in names(mount.path / HISTORY)
        with remote.outage("frozen"):
            process = subprocess.Popen(["ls", past], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            wait_until(lambda: waits_for_us(process.pid), "it waits for the tree")
            assert os.listdir(mount.path) == ["folder"], "others are served meanwhile"
            begin = time.monotonic()
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=20)
            assert time.monotonic() - begin < 10
        assert os.listdir(past) == ["file"]
        mount.stop()
        mount.finish()


def test_history_alone_can_be_mounted_from_data_and_from_a_remote(place: Path, remote_of: MakeRemote) -> None:
    remote = remote_of("ssh")
    history = place / "history"
    history.mkdir()
    with Mount(place, remote.url, 64, extra=remote.environment) as mount:
        mount.start()
        states = make_states(mount, place)
        mount.umount()
        objects = remote.keys()
        for words in ((mount.data,), ("--remote", remote.url)):
            mount.run("snapshots", *words, "--mount", history, "--background")
            try:
                assert names(history)[: len(states)] == list(states)
                for name, state in states.items():
                    assert differences(unlike_now(state), unlike_now(manifest(history / name))) == []
                assert refused(lambda: (history / "new").mkdir()) == errno.EROFS
                assert stat.S_ISLNK((history / "latest").lstat().st_mode)
            finally:
                mount.run("umount", history)
        assert remote.keys() == objects, "looking at history wrote to the remote"
        mount.finish()


def test_a_whole_snapshot_is_listed_like_the_live_tree(place: Path, remote_of: MakeRemote) -> None:
    """`ls -lR`: in at most twice the time that it takes of this process on the live tree, and in little memory."""
    count = 100_000 if LONG else 4_000
    with Mount(place, remote_of("folder").url, 400 if LONG else 64, lifetime_s=1800.0 if LONG else 120.0) as mount:
        mount.start()
        mount.umount()
        make_files(mount.data, count)
        mount.start()
        past = mount.path / HISTORY / names(mount.path / HISTORY)[-1] / "files"
        before_bytes, spent = memory_bytes(mount.pid), []
        for folder in (mount.path / "files", past):
            begin = processor_s(mount.pid)
            listed = subprocess.run(["ls", "-lR", folder], capture_output=True, check=True).stdout
            assert listed.count(b"\n-rw") == count
            spent.append(processor_s(mount.pid) - begin)
        assert spent[1] <= 2 * spent[0] + 0.2, spent
        assert memory_bytes(mount.pid) - before_bytes < 100_000_000
        mount.stop()
        mount.finish()


def memory_bytes(pid: int) -> int:
    return psutil.Process(pid).memory_info().rss
