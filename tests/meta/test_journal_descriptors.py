"""What the journal holds open: a deleted segment must give its room back at once, fsync or no fsync."""

import os
from pathlib import Path

from syncer.meta.journal import SEGMENT_BYTES, Journal


def open_files(folder: Path) -> list[str]:
    """What this process has open below *folder*, as the kernel names it."""
    names = []
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            names.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        except FileNotFoundError:  # the one that lists them
            continue
    return sorted(name for name in names if name.startswith(f"{folder}/"))


def test_a_discarded_segment_is_closed_without_any_sync(tmp_path: Path) -> None:
    journal = Journal(tmp_path, 0)
    try:
        while len(list(tmp_path.iterdir())) < 5:
            journal.append(bytes(SEGMENT_BYTES // 4))
        journal.discard(journal.end)
        (left,) = tmp_path.iterdir()
        assert open_files(tmp_path) == [str(left)]
        journal.append(b"the next record")
        journal.sync()
        assert open_files(tmp_path) == [str(left)]
    finally:
        journal.close()
    assert open_files(tmp_path) == []
