"""DATA: recognised, locked, made and taken back, with nothing foreign ever touched."""

import fcntl
import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from syncer import datadir
from syncer.datadir import Condition, DataDirectory
from syncer.errors import DataInUse, DataUnusable
from tests.support.picture import picture

HOLDER = """
import sys
import threading
from pathlib import Path
from syncer.datadir import DataDirectory
with DataDirectory.open(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""


def start_holder(data: Path) -> "subprocess.Popen[str]":
    """Another process that holds the lock of *data* until its standard input closes."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(data)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout and process.stdout.readline() == "locked\n"
    return process


def make_used(data: Path) -> None:
    with DataDirectory.open(data) as directory:
        directory.config.write_text("")
        directory.database.write_bytes(b"db")


def test_a_new_directory_has_its_parts_and_is_private(tmp_path: Path) -> None:
    with DataDirectory.open(tmp_path / "data") as directory:
        assert directory.fresh
        assert stat.S_IMODE(directory.path.stat().st_mode) == 0o700
        assert {entry.name for entry in directory.path.iterdir()} == {"cache", "dirty", "journal", "lock"}
        assert datadir.lock_pid(directory.path) == os.getpid()
        assert datadir.is_locked(directory.path)
    assert not datadir.is_locked(tmp_path / "data")
    assert datadir.lock_pid(tmp_path / "data") is None


def test_an_existing_folder_is_made_private(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir(mode=0o755)
    with DataDirectory.open(data):
        assert stat.S_IMODE(data.stat().st_mode) == 0o700


def test_a_used_directory_is_recognised(tmp_path: Path) -> None:
    data = tmp_path / "data"
    assert not datadir.is_data(data)
    make_used(data)
    assert datadir.inspect(data) is Condition.OURS
    assert datadir.is_data(data)
    with DataDirectory.open(data) as directory:
        assert not directory.fresh


def test_what_an_interrupted_first_mount_left_counts_as_fresh(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with DataDirectory.open(data) as directory:
        directory.config.write_text("")
    assert datadir.inspect(data) is Condition.UNUSED
    (data / "dirty").rmdir()
    assert datadir.inspect(data) is Condition.UNUSED
    with DataDirectory.open(data) as directory:
        assert directory.fresh
        (directory.dirty / "1.tail").write_bytes(b"x")
    assert datadir.inspect(data) is Condition.OURS


def test_the_root_of_a_new_disk_counts_as_empty(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    assert datadir.inspect(tmp_path) is Condition.EMPTY


@pytest.mark.parametrize("name", ["photo.jpg", "config.toml/x", ".git/HEAD"])
def test_a_folder_with_something_else_in_it_is_refused_and_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    if name == "config.toml/x":
        (tmp_path / "other").write_text("mine")
    before = picture(tmp_path)
    with pytest.raises(DataUnusable, match="not empty and not a syncer directory"):
        DataDirectory.open(tmp_path)
    assert picture(tmp_path) == before


def test_places_that_cannot_be_data(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    dangling = tmp_path / "dangling"
    dangling.symlink_to("nowhere")
    for path, message in [
        (file, "is not a folder"),
        (file / "data", "is not a folder"),
        (tmp_path / "no" / "data", "no is not a folder"),
        (dangling, "link to nowhere"),
        (Path("/proc/data"), "/proc"),
    ]:
        with pytest.raises(DataUnusable, match=message) as caught:
            DataDirectory.open(path)
        assert caught.value.hint
    assert {entry.name for entry in tmp_path.iterdir()} == {"file", "dangling"}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody who may not write")
def test_a_folder_one_may_not_write_to_is_refused() -> None:
    with tempfile.TemporaryDirectory() as place:  # tmp_path lies in a folder that only root may enter
        os.chmod(place, 0o755)
        (Path(place) / "theirs").mkdir(mode=0o755)
        os.seteuid(65534)
        try:
            with pytest.raises(DataUnusable, match="theirs is not writable"):
                datadir.inspect(Path(place) / "theirs")
            with pytest.raises(DataUnusable, match="not writable"):
                datadir.inspect(Path(place) / "new")
        finally:
            os.seteuid(0)


def test_one_process_at_a_time_and_the_other_is_named(tmp_path: Path) -> None:
    data = tmp_path / "data"
    holder = start_holder(data)
    with pytest.raises(DataInUse, match=f"in use by process {holder.pid}") as caught:
        DataDirectory.open(data)
    assert f"syncer umount {data}" in caught.value.hint
    holder.communicate()
    DataDirectory.open(data).close()


def test_a_killed_process_leaves_no_lock(tmp_path: Path) -> None:
    data = tmp_path / "data"
    holder = start_holder(data)
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    assert not datadir.is_locked(data)
    with DataDirectory.open(data) as directory:
        assert datadir.lock_pid(directory.path) == os.getpid()


def test_a_glance_at_the_lock_makes_no_mount_fail(tmp_path: Path) -> None:
    data = tmp_path / "data"
    DataDirectory.open(data).close()
    descriptor = os.open(data / "lock", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    threading.Timer(datadir.CONTENTION_S / 4, os.close, [descriptor]).start()
    DataDirectory.open(data).close()


def test_a_lock_file_that_was_just_removed_is_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another first mount takes itself back between our opening the lock file and locking it."""
    lock = fcntl.flock

    def late_lock(descriptor: int, operation: int) -> None:
        monkeypatch.undo()
        (tmp_path / "data" / "lock").unlink()
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late_lock)
    with DataDirectory.open(tmp_path / "data") as directory:
        assert datadir.is_locked(directory.path)
    assert not datadir.is_locked(tmp_path / "data")


def test_discarding_takes_back_a_folder_that_was_made(tmp_path: Path) -> None:
    directory = DataDirectory.open(tmp_path / "data")
    for name in ("config.toml", "meta.db", "meta.db-wal", "log", "log.1", "journal/1", "cache/ab"):
        (directory.path / name).write_text("x")
    directory.discard()
    assert list(tmp_path.iterdir()) == []


def test_discarding_leaves_a_given_folder_as_it_was(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir(mode=0o751)
    before = picture(data)
    directory = DataDirectory.open(data)
    (directory.path / "meta.db").write_text("x")
    directory.discard()
    assert picture(data) == before


def test_discarding_an_unused_one_keeps_its_settings(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with DataDirectory.open(data) as directory:
        directory.config.write_text("settings")
    directory = DataDirectory.open(data)
    directory.database.write_text("x")
    (directory.journal / "1").write_text("x")
    directory.discard()
    assert datadir.inspect(data) is Condition.UNUSED
    assert directory.config.read_text() == "settings"


def test_discarding_never_takes_anything_from_a_used_one(tmp_path: Path) -> None:
    data = tmp_path / "data"
    make_used(data)
    before = picture(data)
    DataDirectory.open(data).discard()
    assert picture(data) == before


def test_discarding_spares_what_is_not_ours(tmp_path: Path) -> None:
    directory = DataDirectory.open(tmp_path / "data")
    (directory.path / "letter.txt").write_text("mine")
    directory.discard()
    assert [entry.name for entry in directory.path.iterdir()] == ["letter.txt"]
    assert not datadir.is_locked(directory.path)
