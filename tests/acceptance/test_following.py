"""A second machine that follows the writer: two real mounts on one remote."""

import contextlib
import json
import mmap
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from syncer.control import Client
from tests.acceptance.conftest import MakeRemote, Remote
from tests.support.collection import Manifest, build, copy, differences, manifest
from tests.support.command import syncer
from tests.support.long_form import seldom
from tests.support.mount import Mount, forget_pages
from tests.support.mounted import wait_until

pytestmark = pytest.mark.slow

SOON_S = 10.0
"""A snapshot that was published is to be seen within this."""
AWAY = "cannot be (told|asked|listed|read)|still keeps|failed|did not deliver|nothing was published"


@contextlib.contextmanager
def mounts(place: Path, remote: Remote, **settings: Any) -> Iterator[tuple[Mount, Mount]]:
    """The mount of the writer, started, and one that is to follow."""
    with (
        Mount(place / "writer", remote.url, 64, extra=remote.environment, **settings) as writer,
        Mount(place / "follower", remote.url, 64, extra=remote.environment, **settings) as follower,
    ):
        writer.start()
        yield writer, follower


def follow(follower: Mount) -> None:
    follower.start("--follow")


def shown(mount: Mount) -> str | None:
    """The snapshot that a mount is at, without a process for the question."""
    with Client.connect(mount.data) as client:
        return client.status().head


def published(writer: Mount, follower: Mount) -> None:
    """Have the writer publish, and wait until the follower shows it."""
    writer.flush()
    head = shown(writer)
    wait_until(lambda: shown(follower) == head, "the follower shows what was published", SOON_S)


def end(*ended: Mount) -> None:
    for mount in ended:
        mount.stop()
        mount.finish()


def tree_of(mount: Mount) -> Manifest:
    return {path: entry for path, entry in manifest(mount.path).items() if path != b"."}


def inodes(mount: Mount) -> dict[str, int]:
    return {str(path.relative_to(mount.path)): path.lstat().st_ino for path in mount.path.rglob("*")}


def same(writer: Mount, follower: Mount) -> None:
    assert differences(tree_of(writer), tree_of(follower)) == []
    assert inodes(writer) == inodes(follower)


def followers_of(remote: Remote) -> set[str]:
    return {key for key in set(remote.keys()) if key.startswith("followers/")}


@pytest.mark.parametrize("kind", seldom(["ssh", "folder", "s3"], "folder", "s3"))
def test_what_changes_is_seen_and_what_is_open_stays(place: Path, remote_of: MakeRemote, kind: str) -> None:
    remote = remote_of(kind)
    with mounts(place, remote) as (writer, follower):
        there, here = writer.path, follower.path
        copy(build(place / "source", 2_000_000, real_files=30, real_bytes=500_000), there / "c")
        (there / "d" / "deep").mkdir(parents=True)
        for name in ("replaced", "truncated", "appended", "renamed", "removed", "moded", "linked", "d/deep/f"):
            (there / name).write_bytes(name.encode() * 20_000)
        writer.flush()
        follow(follower)
        same(writer, follower)
        names = ("replaced", "truncated", "appended", "renamed", "removed")
        with contextlib.ExitStack() as stack:
            files = {name: stack.enter_context(open(here / name, "rb", buffering=0)) for name in names}
            half = {name: file.read(30_000) for name, file in files.items()}
            mapped = stack.enter_context(mmap.mmap(files["truncated"].fileno(), 0, prot=mmap.PROT_READ))
            inside = os.open(here / "d" / "deep", os.O_RDONLY)
            stack.callback(os.close, inside)
            standing = stack.enter_context(stands_in(here / "d" / "deep"))
            change(there)
            published(writer, follower)
            assert differences(tree_of(writer), tree_of(follower)) == []
            for name, file in files.items():
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                assert half[name] + file.read() == name.encode() * 20_000
                assert os.fstat(file.fileno()).st_size == len(name) * 20_000
            assert os.fstat(files["removed"].fileno()).st_nlink == 0
            assert mapped[:] == b"truncated" * 20_000
            assert os.listdir(inside) == ["f"] and os.fstat(inside).st_ino == (there / "e" / "deep").stat().st_ino
            assert standing() == "d/deep/f" * 20_000
            (there / "up" / "down").mkdir(parents=True)
            (there / "e").rename(there / "up" / "down" / "e")
            published(writer, follower)
            assert standing() == "d/deep/f" * 20_000
            (there / "up" / "down" / "e" / "deep" / "f").write_bytes(b"longer than it was" * 20_000)
            published(writer, follower)
            assert standing() == "longer than it was" * 20_000
        wait_until(lambda: inodes(writer) == inodes(follower), "all have the writer's numbers again", SOON_S)
        (there / "replaced").write_bytes(b"once more")
        published(writer, follower)
        same(writer, follower)
        wait_until(lambda: len(followers_of(remote)) == 1, "what was open is not needed any more")
        end(follower, writer)
        assert followers_of(remote) == set()


def change(there: Path) -> None:
    """Everything that can become of a file or a directory."""
    (there / "new").write_bytes(b"2" * 100_000)
    (there / "new").rename(there / "replaced")
    os.truncate(there / "truncated", 50_000)
    with open(there / "appended", "ab") as file:
        file.write(b"more" * 10_000)
    (there / "renamed").rename(there / "d" / "other")
    (there / "removed").unlink()
    (there / "moded").chmod(0o600)
    os.link(there / "linked", there / "d" / "link")
    (there / "d").rename(there / "e")
    (there / "made").mkdir()
    (there / "made" / "file").write_bytes(b"new")


@contextlib.contextmanager
def stands_in(folder: Path) -> Iterator[Callable[[], str]]:
    """A process with *folder* as its working directory; what is yielded has it read the file `f` there."""
    code = "import sys\nfor _ in sys.stdin: print(open('f').read(), flush=True)"
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin and process.stdout

    def read() -> str:
        assert process.stdin and process.stdout
        process.stdin.write("\n")
        process.stdin.flush()
        return process.stdout.readline().strip()

    try:
        yield read
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait(20)


def test_a_prune_leaves_what_an_open_file_needs(place: Path, remote_of: MakeRemote) -> None:
    remote = remote_of("folder")
    size = 30_000_000
    with mounts(place, remote) as (writer, follower):
        old, new = os.urandom(size), os.urandom(size)
        (writer.path / "file").write_bytes(old)
        writer.flush()
        follow(follower)
        packs = {key for key in set(remote.keys()) if key.startswith("packs/")}
        with open(follower.path / "file", "rb", buffering=0) as file:
            assert file.read(100_000) == old[:100_000]
            (writer.path / "file").write_bytes(new)
            published(writer, follower)
            assert (follower.path / "file").read_bytes() == new
            assert len(followers_of(remote)) == 2
            plan = json.loads(writer.run("prune", writer.data, "--keep", "none", "--json"))
            assert plan["followers"][0]["host"] == os.uname().nodename
            assert packs <= remote.keys()
            file.seek(0)
            assert b"".join(iter(lambda: file.read(1 << 20), b"")) == old
        wait_until(lambda: len(followers_of(remote)) == 1, "the old snapshot is not needed any more")
        writer.run("prune", writer.data, "--keep", "none")
        assert not packs <= remote.keys()
        forget_pages(follower.path / "file")
        assert (follower.path / "file").read_bytes() == new
        end(follower, writer)


def test_a_killed_follower_takes_back_what_it_said(place: Path, remote_of: MakeRemote) -> None:
    remote = remote_of("folder")
    with mounts(place, remote) as (writer, follower):
        (writer.path / "file").write_bytes(b"1")
        writer.flush()
        follow(follower)
        left = followers_of(remote)
        follower.kill()
        assert followers_of(remote) == left != set()
        (writer.path / "file").write_bytes(b"2")
        writer.flush()
        follow(follower)
        assert (follower.path / "file").read_bytes() == b"2"
        wait_until(lambda: len(followers_of(remote)) == 1, "the record of before is gone")
        assert followers_of(remote) != left
        end(follower, writer)
        assert followers_of(remote) == set()


def test_without_the_network_the_last_state_is_shown(place: Path, remote_of: MakeRemote) -> None:
    remote = remote_of("ssh", own=True)
    with mounts(place, remote, network_deadline_s=5.0) as (writer, follower):
        writer.expected_warnings = follower.expected_warnings = AWAY
        (writer.path / "file").write_bytes(b"1" * 100_000)
        writer.flush()
        follow(follower)
        assert (follower.path / "file").read_bytes() == b"1" * 100_000
        with remote.outage("stopped"):
            forget_pages(follower.path / "file")
            assert (follower.path / "file").read_bytes() == b"1" * 100_000
            follower.stop()
            follow(follower)
            assert (follower.path / "file").read_bytes() == b"1" * 100_000
            (writer.path / "file").write_bytes(b"2")
        writer.flush()
        head = shown(writer)
        wait_until(lambda: shown(follower) == head, "the follower has gone on")
        assert (follower.path / "file").read_bytes() == b"2"
        end(follower, writer)


def test_programs_go_on_beside_a_busy_writer(place: Path, remote_of: MakeRemote) -> None:
    with mounts(place, remote_of("folder")) as (writer, follower):
        for folder in range(20):
            (writer.path / f"d{folder}").mkdir()
            for name in range(20):
                (writer.path / f"d{folder}" / f"f{name}").write_bytes(b"0" * 5000)
        writer.flush()
        follow(follower)
        ended = threading.Event()

        def write() -> None:
            turn = 0
            while not ended.is_set():
                turn += 1
                for folder in range(20):
                    file = writer.path / f"d{folder}" / f"f{turn % 20}"
                    new = file.with_name("new")
                    new.write_bytes(b"%d" % (turn % 10) * 5000)
                    new.rename(file)
                writer.run("snapshot", writer.data)

        busy = threading.Thread(target=write)
        busy.start()
        try:
            until, seen = time.monotonic() + 5, set()
            while time.monotonic() < until:
                found = subprocess.run(["find", follower.path, "-type", "f"], capture_output=True, check=True)
                assert found.stdout.count(b"\n") == 400 and not found.stderr
                for name in range(20):
                    content = (follower.path / "d7" / f"f{name}").read_bytes()
                    assert len(content) == 5000 and len(set(content)) == 1
                seen.add(shown(follower))
        finally:
            ended.set()
            busy.join()
        assert len(seen) > 1
        published(writer, follower)
        same(writer, follower)
        end(follower, writer)


def test_history_and_questions_work_on_a_follower(place: Path, remote_of: MakeRemote) -> None:
    with mounts(place, remote_of("folder")) as (writer, follower):
        (writer.path / "d").mkdir()
        (writer.path / "d" / "file").write_bytes(b"1")
        writer.flush()
        follow(follower)
        (writer.path / "d" / "file").write_bytes(b"two")
        published(writer, follower)
        past = follower.path / "d" / ".snapshots"
        wait_until(lambda: len(os.listdir(past)) == 3, "both snapshots are listed")
        first = sorted(os.listdir(past))[0]
        assert (past / first / "file").read_bytes() == b"1"
        status = follower.status()
        assert status["follows"] and status["files"] == 1 and status["shown_age_s"] < 60
        assert "this mount follows the writer" in follower.run("status", follower.data)
        assert "M d/file" in syncer("diff", first, cwd=follower.path).stdout
        refused = syncer("prune", follower.data)
        assert refused.returncode == 7, refused.stderr
        with pytest.raises(OSError, match="Read-only"):
            (follower.path / "new").write_bytes(b"")
        follower.stop()
        assert len(json.loads(follower.run("snapshots", follower.data, "--json"))) >= 2
        follower.run("check", follower.data)
        follow(follower)
        end(follower, writer)


def test_what_a_writer_has_is_not_taken_for_a_follower(place: Path, remote_of: MakeRemote) -> None:
    remote = remote_of("folder")
    with mounts(place, remote) as (writer, follower):
        writer.flush()
        follow(follower)
        follower.stop()
        writer.stop()
        for mount, words, code in (
            (writer, ["--follow"], 3),
            (follower, [], 3),
            (follower, ["--follow", "--take-over"], 2),
            (follower, ["--follow", "--writeback"], 2),
            (follower, ["--follow", "--sync", "remote"], 2),
        ):
            outcome = syncer(mount.data, remote.url, mount.path, 64, *words)
            assert outcome.returncode == code and outcome.stderr.count("\n") <= 2, (words, outcome)
        follower.start("--follow", "--read-only")
        follower.stop()
        writer.finish()
