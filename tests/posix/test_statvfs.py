"""statvfs(3): that its fields agree with each other, with what is there, and with `df`."""

import errno
import os
import subprocess
from pathlib import Path

import pytest

from tests.support.posix import ALICE, acting_as, as_root, raises
from tests.support.syscalls_data import SYNCER, file_system, opened

MIB = 1024 * 1024


def test_its_fields_agree_with_each_other(folder: Path) -> None:
    found = os.statvfs(folder)
    for size in (found.f_bsize, found.f_frsize):
        assert 512 <= size <= 2**20 and size & (size - 1) == 0
    assert found.f_blocks >= found.f_bfree >= found.f_bavail > 0
    assert found.f_files >= found.f_ffree >= found.f_favail > 0
    assert found.f_blocks * found.f_frsize < 2**63
    assert found.f_namemax == 255 == os.pathconf(folder, "PC_NAME_MAX")
    assert not found.f_flag & os.ST_RDONLY


def test_every_path_and_descriptor_gives_the_same(folder: Path) -> None:
    (folder / "d").mkdir()
    (folder / "d" / "x").touch()
    (folder / "link").symlink_to("d/x")
    os.mkfifo(folder / "fifo")
    expected = os.statvfs(folder)
    with opened(folder / "d" / "x", os.O_RDONLY) as file, opened(folder / "d", os.O_PATH) as name_only:
        places: list[Path | int] = [folder / "d", folder / "d" / "x", folder / "link", folder / "fifo", file, name_only]
        for found in [os.statvfs(place) for place in places]:
            for field in ("f_bsize", "f_frsize", "f_namemax", "f_fsid", "f_flag"):
                assert getattr(found, field) == getattr(expected, field)


def test_what_is_not_there_has_none(folder: Path) -> None:
    (folder / "x").touch()
    raises(errno.ENOENT, os.statvfs, folder / "nothing")
    raises(errno.ENOTDIR, os.statvfs, folder / "x" / "y")
    raises(errno.EBADF, os.statvfs, 1_000_000)


@as_root
def test_everybody_may_ask(folder: Path) -> None:
    (folder / "secret").touch(mode=0o000)
    with acting_as(ALICE):
        assert os.statvfs(folder / "secret").f_namemax == 255


def test_names_and_bytes_are_counted(folder: Path) -> None:
    """On the mount, which counts at once; elsewhere others may write at the same time, and blocks come late."""
    before = os.statvfs(folder)
    for number in range(20):
        (folder / f"{number}").touch()
    (folder / "x").write_bytes(os.urandom(MIB))
    after = os.statvfs(folder)
    used = [found.f_blocks - found.f_bfree for found in (before, after)]
    names = [found.f_files - found.f_ffree for found in (before, after)]
    if file_system(folder) == SYNCER:
        assert used[1] - used[0] == MIB // before.f_frsize
        assert names[1] - names[0] == 21
    assert after.f_frsize == before.f_frsize


@pytest.mark.parametrize("field", ["size", "itotal"])
def test_df_agrees(folder: Path, field: str) -> None:
    found = os.statvfs(folder)
    expected = {"size": found.f_blocks * found.f_frsize, "itotal": found.f_files}[field]
    units = ["--block-size=1"] if field == "size" else []
    outcome = subprocess.run(["df", *units, f"--output={field}", folder], capture_output=True, check=True, timeout=60)
    assert int(outcome.stdout.split()[-1]) == expected
