"""The room that is kept for a full disk."""

import contextlib
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from syncer.errors import LocalDamage
from syncer.meta.reserve import RESERVE_BYTES, Reserve
from syncer.meta.store import MetaStore
from syncer.values import ROOT_INODE
from tests.support.core_data import make_data
from tests.support.server_disks import needs_root, small_disk


def test_what_the_run_before_has_kept_is_there_for_a_start_on_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "reserve"
    assert Reserve(path).size == RESERVE_BYTES
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=0, f_frsize=4096))
    again = Reserve(path)
    assert again.size == RESERVE_BYTES, "it counts against the budget"
    assert again.release()
    assert not path.stat().st_blocks
    assert not again.release()
    again.renew()
    assert not again.size


@needs_root
def test_meta_db_is_opened_on_a_disk_that_is_full(tmp_path: Path) -> None:
    """After a clean end SQLite has to make files beside it; without any room that is not taken for damage."""
    with small_disk(tmp_path / "disk", 40_000_000) as disk:
        data = make_data(disk / "data")
        for _ in range(2):
            meta = MetaStore(data)
            meta.ensure_root(0, 0)
            meta.close()
            fill(disk / "others")
        with pytest.raises(LocalDamage) as caught:
            MetaStore(data)
        assert caught.value.hint is not None and "make room" in caught.value.hint
        (disk / "others").unlink()
        MetaStore(data).close()


@needs_root
def test_the_room_that_is_given_back_cannot_be_taken_by_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that fills the disk goes on trying, so what is free for a moment is gone before a commit gets there."""
    with small_disk(tmp_path / "disk", 40_000_000) as disk:
        meta = MetaStore(make_data(disk / "data"))
        meta.ensure_root(0, 0)
        for number in range(2, 400):
            meta.names.create(ROOT_INODE, b"%d" % number, number, 0o100644, 0, 0, 0, None, 1)
        meta.commit()
        release = Reserve.release

        def release_to_others(reserve: Reserve, *heirs: tuple[Path, int]) -> bool:
            released = release(reserve, *heirs)
            fill(disk / "others")
            return released

        monkeypatch.setattr(Reserve, "release", release_to_others)
        for number in range(2, 400):
            if number == 20:
                fill(disk / "others")
            meta.names.unlink(ROOT_INODE, b"%d" % number, 2)
        meta.commit()
        assert not meta.database.reserve.size
        monkeypatch.undo()
        (disk / "others").unlink()
        meta.close()


def fill(file: Path) -> None:
    """Take all the room there is."""
    with contextlib.suppress(OSError), open(file, "ab", buffering=0) as others:
        while True:
            others.write(bytes(4096))
