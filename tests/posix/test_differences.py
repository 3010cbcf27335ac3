"""What random operations once did differently on a mount and elsewhere, each by itself."""

import dataclasses
import errno
import os
import stat
import subprocess
from pathlib import Path

import pytest

from tests.support.differential_steps import Side
from tests.support.kinds import make
from tests.support.posix import BOB, acting_as, as_root, raises
from tests.support.syscalls import status
from tests.support.syscalls_data import SYNCER, file_system, opened, pass_time


@as_root
@pytest.mark.parametrize("mode", [0o4755, 0o2755, 0o6777])
def test_only_its_owner_ends_the_set_id_bits_of_a_file_by_giving_it_to_nobody(folder: Path, mode: int) -> None:
    """chown(2) with neither an owner nor a group is a chmod of these bits, and that is not everybody's."""
    make("regular", folder / "x", mode)
    with acting_as(BOB):
        raises(errno.EPERM, os.chown, folder / "x", -1, -1)
    assert stat.S_IMODE(os.stat(folder / "x").st_mode) == mode
    os.chown(folder / "x", -1, -1)
    assert stat.S_IMODE(os.stat(folder / "x").st_mode) == mode & 0o777


@pytest.mark.parametrize("kind", ["regular", "symlink", "directory", "fifo"])
@as_root
def test_who_owns_nothing_gives_it_to_nobody_without_a_trace_but_ctime(folder: Path, kind: str) -> None:
    path = make(kind, folder / "x")
    before = status(path)
    with acting_as(BOB):
        os.chown(path, -1, -1, follow_symlinks=False)
    after = status(path)
    assert after == dataclasses.replace(before, ctime_ns=after.ctime_ns)


def test_a_directory_that_changes_while_it_is_listed_is_read_again(folder: Path) -> None:
    """readdir(3p): each time the directory is actually read, not only the first time, is an access."""
    (folder / "a").touch()
    with opened(folder, os.O_RDONLY) as directory:
        side = Side(b"")
        side.open[0] = directory
        ended, _ = side.do_list(0, 9)
        assert ended
        (folder / "b").touch()
        changed = status(folder)
        pass_time(changed.mtime_ns)
        side.do_list(0, 1)
        assert status(folder).atime_ns > changed.mtime_ns


@pytest.mark.parametrize("call", ["read", "write"])
def test_who_uses_a_fifo_is_told_to_ordinary_file_systems_alone(folder: Path, call: str) -> None:
    """The kernel passes the bytes on without a word to a file system in user space."""
    os.mkfifo(folder / "x")
    with opened(folder / "x", os.O_RDWR | os.O_NONBLOCK) as fifo:
        os.write(fifo, b"x")
        before = status(folder / "x")
        pass_time(max(before.ctime_ns, before.mtime_ns))
        if call == "read":
            os.read(fifo, 1)
        else:
            os.write(fifo, b"x")
        after = status(folder / "x")
    assert (after == before) == (file_system(folder) == SYNCER)


def test_what_statistics_a_mount_makes_up_or_lacks(folder: Path) -> None:
    """docs/semantics.md: the sizes of directories and of blocks, times of birth, and reads that must not wait."""
    (folder / "x").write_bytes(b"data")
    if file_system(folder) != SYNCER:
        return
    assert (os.stat(folder).st_size, os.stat(folder / "x").st_blksize) == (0, 131_072)
    with opened(folder / "x", os.O_RDONLY) as file:
        raises(errno.EOPNOTSUPP, os.preadv, file, [bytearray(4)], 0, os.RWF_NOWAIT)
        assert os.pread(file, 4, 0) == b"data"


@as_root
@pytest.mark.parametrize("mode", [0o4755, 0o755], ids=oct)
def test_with_whose_rights_a_program_runs(folder: Path, mode: int) -> None:
    """A mount is without `suid` unless somebody asks for it."""
    path = folder / "id"
    path.write_bytes(Path("/usr/bin/id").read_bytes())
    os.chown(path, BOB.uid, BOB.gid)
    path.chmod(mode)
    nosuid = bool(os.statvfs(folder).f_flag & os.ST_NOSUID)
    assert nosuid or file_system(folder) != SYNCER
    said = subprocess.run([path, "-u"], capture_output=True, check=True, timeout=60).stdout
    assert int(said) == (BOB.uid if mode & stat.S_ISUID and not nosuid else 0)
