"""Mounting as a user does: in processes of its own, on a folder remote, with the lines people and scripts rely on."""

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from syncer import config, datadir, mounts
from tests.support.command import SYNCER, environment, syncer
from tests.support.mounted import cleared, foreground, is_mounted, wait_until

ENDED = re.compile(r"syncer: (\S+) is unmounted; (\d+) bytes?( \(.*\))? wait for upload(; they are safe in DATA.*)?\n")

pytestmark = pytest.mark.slow


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "mnt").mkdir()
    (tmp_path / "blobs").mkdir()
    with cleared(tmp_path / "mnt"):
        yield tmp_path


def first_time(place: Path) -> list[object]:
    return [place / "data", place / "blobs", place / "mnt", 100]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_says_when_it_is_usable_and_when_it_has_ended(place: Path, number: signal.Signals) -> None:
    with foreground(*first_time(place), mountpoint=place / "mnt") as mount:
        assert mount.ready == f"syncer: {place}/mnt is ready ({place}/blobs, 100 MB)\n"
        assert is_mounted(place / "mnt")
        assert os.listdir(place / "mnt") == []
        end = ENDED.fullmatch(mount.end(number))
        assert end and end[1] == f"{place}/mnt"
    assert not is_mounted(place / "mnt")
    assert not datadir.is_locked(place / "data")


def test_the_systems_own_unmount_ends_it_cleanly(place: Path) -> None:
    with foreground(*first_time(place), mountpoint=place / "mnt") as mount:
        subprocess.run(["fusermount3", "-u", place / "mnt"], check=True, timeout=30)
        assert ENDED.fullmatch(mount.rest())
    assert not datadir.is_locked(place / "data")


def test_data_remembers_the_rest(place: Path) -> None:
    with foreground(*first_time(place), mountpoint=place / "mnt") as mount:
        mount.end()
    with foreground("mount", place / "data", place / "mnt", mountpoint=place / "mnt") as mount:
        assert mount.ready == f"syncer: {place}/mnt is ready ({place}/blobs, 100 MB)\n"
        mount.end()
    arguments = [place / "data", f"file://{place}/blobs/", place / "mnt", 200]  # the same folder, spelled otherwise
    with foreground(*arguments, mountpoint=place / "mnt") as mount:
        assert "200 MB" in mount.ready
        mount.end()
    assert config.load(place / "data" / "config.toml").budget_bytes == 200_000_000


def test_a_first_mount_on_an_empty_folder_of_the_users(place: Path) -> None:
    (place / "data").mkdir(mode=0o755)
    with foreground(*first_time(place), mountpoint=place / "mnt") as mount:
        assert (place / "data").stat().st_mode & 0o777 == 0o700
        mount.end()


def test_settings_come_from_a_file_on_request(place: Path) -> None:
    (place / "mine.toml").write_text(
        f'# mine\nremote = "{place}/blobs"\nbudget_bytes = 150000000\nupload_delay_s = 1\nlog_level = "debug"\n'
    )
    arguments = ["mount", "--config", place / "mine.toml", place / "data", place / "mnt"]
    with foreground(*arguments, mountpoint=place / "mnt") as mount:
        assert "150 MB" in mount.ready
        mount.end()
    assert config.load(place / "data" / "config.toml") == config.load(place / "mine.toml")


def test_every_command_finds_the_mount_by_data_by_a_path_or_by_itself(place: Path) -> None:
    with foreground(*first_time(place), mountpoint=place / "mnt") as mount:
        for target in (place / "data", place / "mnt", place / "mnt" / "some" / "where"):
            status = json.loads(syncer("status", target, "--json").stdout)
            assert (status["mounted"], status["mountpoint"]) == (True, f"{place}/mnt")
            assert status["remote"] == f"{place}/blobs"
            assert syncer("flush", target, "--timeout", 30).returncode == 0
        if len(mounts.find_mounts()) == 1:
            assert json.loads(syncer("status", "--json").stdout)["mounted"]
        mount.end()
    status = json.loads(syncer("status", place / "data", "--json").stdout)
    assert (status["mounted"], status["mountpoint"]) == (False, None)
    assert syncer("flush", place / "data").returncode == 0


def test_umount_returns_when_everything_is_over(place: Path) -> None:
    with foreground(*first_time(place), mountpoint=place / "mnt") as mount:
        outcome = syncer("umount", place / "mnt", "--wait")
        assert (outcome.returncode, outcome.stderr) == (0, "")
        assert outcome.stdout == f"syncer: {place}/mnt is unmounted; 0 bytes wait for upload\n"
        assert not is_mounted(place / "mnt")
        assert not datadir.is_locked(place / "data")
        assert mount.process.wait(30) == 0


def test_what_was_not_uploaded_waits_in_data_and_a_flush_without_a_mount_sends_it(place: Path) -> None:
    settings = config.Config(remote=str(place / "blobs"), budget_bytes=100_000_000, network_deadline_s=1.0)
    config.save(place / "hasty.toml", settings)
    arguments = ["--config", place / "hasty.toml", place / "data", place / "mnt"]
    with foreground("mount", *arguments, mountpoint=place / "mnt") as mount:
        (place / "blobs").rename(place / "away")
        (place / "blobs").touch()  # no folder: the disk is not plugged in
        (place / "mnt" / "x").write_bytes(os.urandom(3_000_000))
        for command in ("flush", "snapshot"):
            assert syncer(command, place / "data", "--timeout", 1).returncode in (10, 23)
        refused = syncer("umount", "--wait", place / "mnt")
        assert (refused.returncode, "blobs is gone; connect" in refused.stderr) == (23, True), refused.stderr
        assert is_mounted(place / "mnt")
        outcome = syncer("umount", place / "mnt")
        end = ENDED.fullmatch(mount.rest(expected_warning="blobs is gone"))
        assert end and int(end[2]) >= 3_000_000, end
        assert outcome.stdout == end[0], "umount and the mount itself tell the same"
    before = json.loads(syncer("status", place / "data", "--json").stdout)
    assert (before["mounted"], before["pending_upload_bytes"]) == (False, int(end[2]))
    (place / "blobs").unlink()
    (place / "away").rename(place / "blobs")
    outcome = syncer("flush", place / "data", "--timeout", 30)
    assert (outcome.returncode, outcome.stdout) == (0, "syncer: everything is on the remote\n"), outcome.stderr
    outcome = syncer("status", place / "data", "--json")
    assert outcome.returncode == 0, outcome.stderr
    after = json.loads(outcome.stdout)
    assert after["pending_upload_bytes"] == 0
    assert sum(path.stat().st_size for path in (place / "blobs").rglob("*") if path.is_file()) >= 3_000_000


def test_umount_wait_uploads_first(place: Path) -> None:
    with foreground(*first_time(place), mountpoint=place / "mnt") as mount:
        (place / "mnt" / "x").write_bytes(os.urandom(3_000_000))
        outcome = syncer("umount", "--wait", place / "mnt")
        end = f"syncer: {place}/mnt is unmounted; 0 bytes wait for upload\n"
        assert (outcome.returncode, outcome.stdout, mount.rest()) == (0, end, end), outcome.stderr


def test_in_the_background_it_returns_when_usable_and_goes_on(place: Path) -> None:
    # capture: had the mount kept our pipes open, this would not return
    outcome = syncer("mount", "--background", "data", "./blobs", "mnt", 100, cwd=place, timeout_s=60)
    assert (outcome.returncode, outcome.stderr) == (0, "")
    assert outcome.stdout == f"syncer: {place}/mnt is ready ({place}/blobs, 100 MB)\n"
    assert is_mounted(place / "mnt")
    pid = datadir.lock_pid(place / "data")
    assert pid
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    assert {os.readlink(f"/proc/{pid}/fd/{n}") for n in (0, 1, 2)} == {"/dev/null"}
    assert os.getsid(pid) not in (pid, os.getsid(0))
    assert syncer("data", "mnt", "--background", cwd=place).returncode == 5
    assert syncer("umount", "mnt", cwd=place).returncode == 0
    assert not Path(f"/proc/{pid}").exists() or not datadir.is_locked(place / "data")


def test_a_first_mount_that_fails_leaves_nothing_behind(place: Path) -> None:
    """The remote is refused only after DATA was made: it is unmade again, and the mountpoint is free."""
    (place / "blobs").rmdir()
    (place / "blobs").write_text("a file, no folder")
    for extra in ([], ["--background"]):
        outcome = syncer(*first_time(place), *extra)
        assert 20 <= outcome.returncode < 30, outcome.stderr
        assert outcome.stderr.startswith("syncer: ") and outcome.stderr.count("\n") == 1, outcome.stderr
        assert outcome.stdout == ""
        assert sorted(entry.name for entry in place.iterdir()) == ["blobs", "mnt"]
        assert not is_mounted(place / "mnt")


def test_read_only_mounts_say_so_and_refuse_changes(place: Path) -> None:
    with foreground(*first_time(place), mountpoint=place / "mnt") as mount:
        mount.end()
    for manner in (["--read-only"], ["-o", "noatime,ro"]):
        with foreground(place / "data", place / "mnt", *manner, mountpoint=place / "mnt") as mount:
            with pytest.raises(OSError, match="Read-only file system"):
                (place / "mnt" / "x").mkdir()
            mount.end()


def test_options_reach_the_kernel(place: Path) -> None:
    with foreground(*first_time(place), "-o", "noexec", "-o", "noatime", mountpoint=place / "mnt") as mount:
        line = next(line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f"{place}/mnt" in line)
        assert {"noexec", "noatime"} <= set(line.split()[5].split(","))
        assert f" fuse.syncer syncer:{place}/data " in line
        mount.end()


def test_what_is_printed_without_a_terminal_is_plain_text(place: Path) -> None:
    with foreground(*first_time(place), mountpoint=place / "mnt") as mount:
        for arguments in (["status"], ["status", "--json"], ["flush"], ["umount", "--wait"]):
            outcome = syncer(arguments[0], place / "data", *arguments[1:], extra={"TERM": "xterm-256color"})
            assert outcome.returncode == 0, outcome.stderr
            assert re.fullmatch(r"[^\x00-\x09\x0b-\x1f\x7f-\x9f]+", outcome.stdout)
            assert not outcome.stderr
            assert all(line == line.rstrip() for line in outcome.stdout.splitlines())
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", mount.rest())


def test_on_a_terminal_a_flush_shows_a_bar(place: Path) -> None:
    with foreground(*first_time(place), mountpoint=place / "mnt") as mount:
        (place / "mnt").joinpath("x").write_bytes(os.urandom(1_000_000))
        master, slave = os.openpty()
        command = subprocess.Popen(
            [*SYNCER, "flush", str(place / "data")],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=slave,
            env=environment({"TERM": "xterm-256color"}),
        )
        os.close(slave)
        out, _ = command.communicate(timeout=60)
        shown = os.read(master, 100_000)
        os.close(master)
        assert (command.returncode, out) == (0, b"syncer: everything is on the remote\n")
        assert b"uploading" in shown and b"\x1b[" in shown
        mount.end()


def test_the_state_survives_a_killed_process(place: Path) -> None:
    with foreground(*first_time(place), mountpoint=place / "mnt") as mount:
        (place / "mnt" / "x").write_bytes(b"written")
        mount.process.kill()
        wait_until(lambda: not datadir.is_locked(place / "data"), "the lock is free")
        with foreground(place / "data", place / "mnt", mountpoint=place / "mnt") as again:
            assert "; recovered after a crash: " in again.ready and " replayed, " in again.ready
            assert (place / "mnt" / "x").read_bytes() == b"written"
            again.process.send_signal(signal.SIGTERM)
            assert " is unmounted; " in again.rest("was still mounted by a syncer that has died; that is cleared away")
    with foreground(place / "data", place / "mnt", mountpoint=place / "mnt") as mount:
        assert "recovered" not in mount.ready, "after a clean end nothing is said"
        mount.end()


def test_a_dead_mount_of_another_data_is_left_alone(place: Path) -> None:
    with foreground(*first_time(place), mountpoint=place / "mnt") as mount:
        mount.process.kill()
        wait_until(lambda: not datadir.is_locked(place / "data"), "the lock is free")
        outcome = syncer(place / "other", place / "blobs", place / "mnt", 100)
        assert outcome.returncode == 5
        assert "still mounted by a syncer that has died; `syncer umount" in outcome.stderr
