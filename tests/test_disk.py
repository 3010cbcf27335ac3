"""Calls to the local file system that threads share."""

import os
import subprocess
import sys
import threading
from mmap import PAGESIZE
from pathlib import Path

import pytest

from syncer import disk


def test_a_name_that_another_thread_is_making_durable_is_not_taken_for_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint syncs all names while an fsync comes, which must not return before its own is durable."""
    names, begun, go_on, synced = disk.NewNames(), threading.Event(), threading.Event(), list[Path]()

    def slow(folder: Path) -> None:
        begun.set()
        assert go_on.wait(10)

    monkeypatch.setattr(disk, "sync_file_system", slow)
    monkeypatch.setattr(disk, "sync_folder", synced.append)
    names.note(tmp_path)
    thread = threading.Thread(target=names.sync_all, args=(tmp_path,))
    thread.start()
    try:
        assert begun.wait(10)
        names.sync([tmp_path])
        assert synced == [tmp_path]
        names.sync([tmp_path])
        assert synced == [tmp_path], "once is enough"
        names.note(tmp_path)
    finally:
        go_on.set()
        thread.join()
    assert names.is_any, "this name came after the sync of all had begun"


def test_a_name_stays_new_where_its_folder_cannot_be_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(folder: Path) -> None:
        raise OSError(5, "the disk refuses")

    names = disk.NewNames()
    names.note(tmp_path)
    for call in ("sync_folder", "sync_file_system"):
        monkeypatch.setattr(disk, call, refused)
    with pytest.raises(OSError, match="refuses"):
        names.sync([tmp_path])
    with pytest.raises(OSError, match="refuses"):
        names.sync_all(tmp_path)
    assert names.is_any


def test_a_hole_is_no_data_and_an_empty_range_has_none(tmp_path: Path) -> None:
    path, end = tmp_path / "f", 4 * PAGESIZE
    with open(path, "w+b") as file:
        file.truncate(end)
        os.pwrite(file.fileno(), b"x", PAGESIZE)
        assert disk.has_data(file.fileno(), PAGESIZE, 2 * PAGESIZE)
        assert disk.has_data(file.fileno(), PAGESIZE + 5, PAGESIZE + 6)
        assert not disk.has_data(file.fileno(), PAGESIZE - 1, PAGESIZE + 1)
        assert not disk.has_data(file.fileno(), PAGESIZE, 2 * PAGESIZE + 1)
        assert not disk.has_data(file.fileno(), 3 * PAGESIZE, end)
        assert disk.has_data(file.fileno(), end, end), "a tail that was cut off down to nothing"


def test_memory_between_what_is_in_use_is_given_back() -> None:
    """In a process of its own, whose heap nothing else uses."""
    script = """
import os
from syncer.disk import give_back_memory, tune_allocator

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

tune_allocator()
buffers = [bytearray(os.urandom(60_000)) for _ in range(1000)]
last = buffers[-1]
del buffers
held = resident()
give_back_memory()
print(held - resident())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, timeout=60)
    assert int(done.stdout) > 40_000_000
