"""The set-user-ID and set-group-ID bits: what takes them away, what leaves them, and what hands them on.

A program that somebody else could change must not run with its owner's rights: chown(2), write(2) and truncate(2) take
the bits away unless the caller may do anything. The set-group-ID bit without group execution is no such right (it once
meant mandatory locking), and stays.
"""

import errno
import mmap
import os
import stat
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.kinds import make
from tests.support.posix import ALICE, BOB, FRIENDS, User, acting_as, as_root, raises
from tests.support.syscalls import status

pytestmark = as_root

CAPABILITIES = struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0)
"""What `setcap cap_net_bind_service=ep` sets."""


SOURCE = open(__file__, "rb")  # noqa: SIM115 - as long as the tests run


@pytest.fixture(autouse=True)
def no_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def mode_of(path: Path | int) -> int:
    return stat.S_IMODE(status(path).mode)


def program(folder: Path, mode: int, user: User = ALICE) -> Path:
    path = folder / "program"
    path.write_bytes(b"program" * 10)
    os.chown(path, user.uid, user.gid)
    path.chmod(mode)
    return path


# --- changing the bytes ----------------------------------------------------------------------------------------------


def written(path: Path) -> None:
    with open(path, "r+b", buffering=0) as file:
        file.write(b"x")


def appended(path: Path) -> None:
    with open(path, "ab", buffering=0) as file:
        file.write(b"x")


def truncated_open(path: Path) -> None:
    with open(path, "r+b", buffering=0) as file:
        os.ftruncate(file.fileno(), 3)


def emptied(path: Path) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))


def written_directly(path: Path) -> None:
    file = os.open(path, os.O_WRONLY | os.O_DIRECT)
    with mmap.mmap(-1, 4096) as page:
        os.pwritev(file, [page], 0)
    os.close(file)


def copied_into(path: Path) -> None:
    file = os.open(path, os.O_RDWR)
    os.copy_file_range(file, file, 5, 0, 20)
    os.close(file)


def sent_into(path: Path) -> None:
    file = os.open(path, os.O_WRONLY)
    os.sendfile(file, SOURCE.fileno(), 0, 5)
    os.close(file)


def spliced_into(path: Path) -> None:
    reader, writer = os.pipe()
    os.write(writer, b"piped")
    file = os.open(path, os.O_WRONLY)
    os.splice(reader, file, 5)
    for descriptor in (reader, writer, file):
        os.close(descriptor)


def reserved(path: Path) -> None:
    file = os.open(path, os.O_RDWR)
    os.posix_fallocate(file, 0, 10_000)
    os.close(file)


CHANGES: dict[str, Callable[[Path], object]] = {
    "write": written,
    "append": appended,
    "O_DIRECT": written_directly,
    "copy_file_range": copied_into,
    "sendfile": sent_into,
    "splice": spliced_into,
    "posix_fallocate": reserved,
    "truncate-to-the-same": lambda path: os.truncate(path, path.stat().st_size),
    "truncate": lambda path: os.truncate(path, 3),
    "ftruncate": truncated_open,
    "extend": lambda path: os.truncate(path, 1000),
    "O_TRUNC": emptied,
}
# Before, and after a change by an ordinary user. In the last two the group may not run it: the bit stays, if the user
# is in the group (for others Linux changed its mind in 6.2).
TAKEN = {0o6777: 0o0777, 0o4777: 0o0777, 0o2777: 0o0777, 0o7777: 0o1777, 0o0777: 0o0777}
TAKEN_BY_A_MEMBER = {**TAKEN, 0o6767: 0o2767, 0o2767: 0o2767}


@pytest.mark.parametrize("mode", TAKEN, ids=oct)
@pytest.mark.parametrize("change", CHANGES)
def test_an_ordinary_user_who_changes_the_bytes_takes_them(folder: Path, change: str, mode: int) -> None:
    path = program(folder, mode)
    with acting_as(BOB):
        CHANGES[change](path)
    assert mode_of(path) == TAKEN[mode]


@pytest.mark.parametrize("mode", TAKEN_BY_A_MEMBER, ids=oct)
@pytest.mark.parametrize("change", CHANGES)
def test_the_owner_who_changes_the_bytes_takes_them_too(folder: Path, change: str, mode: int) -> None:
    path = program(folder, mode)
    with acting_as(ALICE):
        CHANGES[change](path)
    assert mode_of(path) == TAKEN_BY_A_MEMBER[mode]


@pytest.mark.parametrize("change", CHANGES)
def test_root_changes_the_bytes_and_they_stay(folder: Path, change: str) -> None:
    path = program(folder, 0o6777)
    CHANGES[change](path)
    assert mode_of(path) == 0o6777


@pytest.mark.parametrize("mode", TAKEN, ids=oct)
def test_what_is_taken_counts_at_the_write_not_at_the_open(folder: Path, mode: int) -> None:
    path = program(folder, 0o777)
    with acting_as(BOB):
        descriptor = os.open(path, os.O_WRONLY)
    path.chmod(mode)
    with acting_as(BOB):
        os.write(descriptor, b"x")
    assert mode_of(path) == mode_of(descriptor) == TAKEN[mode]
    os.close(descriptor)


@pytest.mark.parametrize("change", ["write", "ftruncate"])
@pytest.mark.parametrize(
    ("opener", "changer", "after"), [(None, BOB, 0o777), (BOB, None, 0o6777)], ids=["user-changes", "root-changes"]
)
def test_who_changes_it_counts_not_who_opened_it(
    folder: Path, change: str, opener: User | None, changer: User | None, after: int
) -> None:
    path = program(folder, 0o6777)
    with acting_as(opener):
        descriptor = os.open(path, os.O_WRONLY)
    with acting_as(changer):
        if change == "write":
            os.write(descriptor, b"x")
        else:
            os.ftruncate(descriptor, 3)
    assert mode_of(path) == mode_of(descriptor) == after
    os.close(descriptor)


@pytest.mark.parametrize("change", [*CHANGES, "chown"])
@pytest.mark.parametrize("user", [None, BOB], ids=["root", "user"])
def test_capabilities_go_with_every_change(folder: Path, change: str, user: User | None) -> None:
    """File capabilities (capabilities(7)): even root's change takes them."""
    path = program(folder, 0o777, BOB)
    os.setxattr(path, "security.capability", CAPABILITIES)
    assert os.getxattr(path, "security.capability") == CAPABILITIES
    with acting_as(user):
        if change == "chown":
            os.chown(path, -1, BOB.gid)
        else:
            CHANGES[change](path)
    assert "security.capability" not in os.listxattr(path)
    raises(errno.ENODATA, os.getxattr, path, "security.capability")
    path.chmod(0o4711)
    assert mode_of(path) == 0o4711


def test_capabilities_stay_without_a_change(folder: Path) -> None:
    path = program(folder, 0o777)
    os.setxattr(path, "security.capability", CAPABILITIES)
    path.chmod(0o755)
    os.utime(path)
    os.close(os.open(path, os.O_RDWR))
    path.rename(folder / "moved")
    assert os.getxattr(folder / "moved", "security.capability") == CAPABILITIES


def test_reading_and_stamping_leave_them(folder: Path) -> None:
    path = program(folder, 0o6777)
    with acting_as(BOB):
        path.read_bytes()
        os.utime(path)
    with acting_as(ALICE):
        os.utime(path, (1, 2))
        path.rename(folder / "moved")
        os.link(folder / "moved", folder / "linked")
    assert mode_of(folder / "linked") == 0o6777


def test_writing_nothing_leaves_them(folder: Path) -> None:
    path = program(folder, 0o6777)
    with acting_as(BOB):
        descriptor = os.open(path, os.O_WRONLY)
        os.write(descriptor, b"")
        os.close(descriptor)
    assert mode_of(path) == 0o6777


# --- changing the owner ----------------------------------------------------------------------------------------------

GIVEN = {"both": (BOB.uid, BOB.gid), "user": (BOB.uid, -1), "group": (-1, BOB.gid), "neither": (-1, -1)}


@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize(
    ("mode", "after"), [(0o6755, 0o755), (0o4755, 0o755), (0o2755, 0o755), (0o6711, 0o711), (0o6745, 0o2745)]
)
def test_root_who_gives_a_file_away_takes_them(folder: Path, given: str, mode: int, after: int) -> None:
    path = program(folder, mode)
    os.chown(path, *GIVEN[given])
    assert mode_of(path) == after


@pytest.mark.parametrize(("mode", "after"), [(0o6755, 0o755), (0o4755, 0o755), (0o2755, 0o755)])
def test_the_owner_who_changes_the_group_takes_them(folder: Path, mode: int, after: int) -> None:
    path = program(folder, mode)
    with acting_as(ALICE):
        os.chown(path, -1, FRIENDS)
    assert mode_of(path) == after


@pytest.mark.parametrize("way", ["write", "truncate", "chown"])
def test_a_mark_for_locks_is_ended_by_an_owner_outside_the_group(folder: Path, way: str) -> None:
    path = program(folder, 0o2644)
    os.chown(path, -1, BOB.gid)
    path.chmod(0o2644)
    with acting_as(ALICE):
        if way == "write":
            with path.open("r+b") as file:
                file.write(b"x")
        elif way == "truncate":
            os.truncate(path, 3)
        else:
            os.chown(path, -1, -1)
    assert mode_of(path) == 0o644


@pytest.mark.parametrize("mode", [0o6755, 0o2745, 0o7777], ids=oct)
def test_directories_that_are_given_away_keep_them(folder: Path, mode: int) -> None:
    path = make("directory", folder / "d", mode)
    os.chown(path, BOB.uid, BOB.gid)
    assert mode_of(path) == mode
    os.chown(path, ALICE.uid, ALICE.gid)
    with acting_as(ALICE):
        os.chown(path, -1, FRIENDS)
    assert mode_of(path) == mode


# --- chmod -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["regular", "directory"])
@pytest.mark.parametrize(
    ("user", "group", "may"),
    [
        (ALICE, ALICE.gid, True),
        (ALICE, FRIENDS, True),
        (ALICE, BOB.gid, False),
        (ALICE, 0, False),
        (None, BOB.gid, True),
    ],
    ids=["own-group", "another-of-hers", "strangers", "root's", "root"],
)
def test_the_group_bit_is_for_members_to_set(folder: Path, kind: str, user: User | None, group: int, may: bool) -> None:
    path = make(kind, folder / "x", 0o755)
    os.chown(path, ALICE.uid, group)
    with acting_as(user):
        path.chmod(0o6755)
    assert mode_of(path) == (0o6755 if may else 0o4755)


def test_a_stranger_to_the_group_loses_the_bit_with_any_chmod(folder: Path) -> None:
    path = make("regular", folder / "x")
    os.chown(path, ALICE.uid, BOB.gid)
    path.chmod(0o2755)
    with acting_as(ALICE):
        path.chmod(0o2711)
    assert mode_of(path) == 0o711


# --- handing on the group --------------------------------------------------------------------------------------------


@pytest.fixture
def shared(folder: Path) -> Path:
    """A directory of a group that Bob is not in, with the bit; everybody may write."""
    return make_shared(folder / "shared")


def make_shared(path: Path) -> Path:
    path.mkdir()
    os.chown(path, ALICE.uid, FRIENDS)
    path.chmod(0o2777)
    return path


@pytest.mark.parametrize("kind", ["regular", "fifo", "socket", "symlink", "directory"])
@pytest.mark.parametrize("user", [None, ALICE, BOB], ids=["root", "member", "stranger"])
def test_what_is_made_in_it_has_its_group(shared: Path, kind: str, user: User | None) -> None:
    with acting_as(user):
        made = shared / "x"
        if kind == "directory":
            made.mkdir(mode=0o755)
        elif kind == "symlink":
            made.symlink_to("x")
        else:
            os.mknod(made, {"regular": stat.S_IFREG, "fifo": stat.S_IFIFO, "socket": stat.S_IFSOCK}[kind] | 0o644)
    found = status(made)
    assert (found.uid, found.gid) == (user.uid if user else 0, FRIENDS)
    assert bool(found.mode & stat.S_ISGID) == (kind == "directory")


def test_directories_hand_it_on_to_any_depth(shared: Path) -> None:
    with acting_as(BOB):
        (shared / "a" / "b" / "c").mkdir(parents=True)
    for path in (shared / "a", shared / "a" / "b", shared / "a" / "b" / "c"):
        assert (mode_of(path), status(path).gid) == (0o2777, FRIENDS)


def test_what_moves_in_keeps_its_group(folder: Path, shared: Path) -> None:
    with acting_as(BOB):
        (folder / "x").touch()
        (folder / "x").rename(shared / "x")
        (folder / "d").mkdir()
        (folder / "d").rename(shared / "d")
        (folder / "y").touch()
        os.link(folder / "y", shared / "y")
    for name in "xdy":
        assert status(shared / name).gid == BOB.gid
    assert mode_of(shared / "d") == 0o777


@pytest.mark.parametrize(
    ("user", "mode", "given"),
    [
        (None, 0o2775, 0o2775),
        (ALICE, 0o2775, 0o2775),
        (BOB, 0o2775, 0o775),
        (BOB, 0o2765, 0o2765),
        (BOB, 0o4775, 0o4775),
    ],
    ids=["root", "member", "stranger", "stranger-not-executable", "stranger-user-bit"],
)
def test_a_stranger_makes_no_program_that_runs_as_the_group(
    shared: Path, user: User | None, mode: int, given: int
) -> None:
    with acting_as(user):
        os.close(os.open(shared / "x", os.O_CREAT | os.O_WRONLY, mode))
        os.mknod(shared / "y", stat.S_IFREG | mode)
    assert (mode_of(shared / "x"), mode_of(shared / "y")) == (given, given)


def test_without_the_bit_the_group_is_the_makers(folder: Path) -> None:
    os.chown(folder, ALICE.uid, FRIENDS)
    with acting_as(BOB):
        (folder / "x").touch()
        (folder / "d").mkdir()
    assert [status(folder / name).gid for name in "xd"] == [BOB.gid, BOB.gid]


@pytest.mark.parametrize(("user", "stays"), [(ALICE, True), (BOB, False)], ids=["member", "stranger"])
@pytest.mark.parametrize("change", [lambda path: os.truncate(path, 3), lambda path: path.write_bytes(b"new")])
def test_the_mark_of_a_group_stays_with_its_members(
    folder: Path, change: Callable[[Path], object], user: User, stays: bool
) -> None:
    """Alice is in the file's group, though it is not her first."""
    path = folder / "x"
    path.write_bytes(b"data")
    os.chown(path, 0, FRIENDS)
    path.chmod(0o2666)
    with acting_as(user):
        change(path)
    assert mode_of(path) == (0o2666 if stays else 0o666)
