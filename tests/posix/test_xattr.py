"""Extended attributes: name spaces, sizes, flags, who may, and the programs that copy them."""

import errno
import os
import stat
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.posix import ALICE, BOB, User, acting_as, as_root, raises
from tests.support.syscalls_data import EXT4, SYNCER, file_system, opened, pass_time

PAST_NS = 1_000_000_000 * 10**9
LONGEST_NAME = "user." + "n" * 250
LARGEST_VALUE = 65_536
VALUES = (b"", b"\0", b"text", bytes(range(256)), b"v" * 3000)
CAPABILITY = struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0)
"""security.capability, version 2: CAP_NET_BIND_SERVICE, permitted and effective."""


def made(folder: Path, kind: str) -> Path:
    path = folder / kind
    match kind:
        case "file":
            path.touch()
        case "directory":
            path.mkdir()
        case "symlink":
            path.symlink_to("nothing")
        case "fifo":
            os.mkfifo(path)
    return path


def get(path: Path, name: str) -> bytes:
    return os.getxattr(path, name, follow_symlinks=False)


def put(path: Path, name: str, value: bytes, flags: int = 0) -> None:
    os.setxattr(path, name, value, flags, follow_symlinks=False)


def remove(path: Path, name: str) -> None:
    os.removexattr(path, name, follow_symlinks=False)


def names_of(path: Path) -> list[str]:
    return sorted(os.listxattr(path, follow_symlinks=False))


# --- the life of an attribute ----------------------------------------------------------------------------------------


@as_root
@pytest.mark.parametrize(
    ("kind", "space"),
    [
        ("file", "user"),
        ("directory", "user"),
        ("file", "trusted"),
        ("directory", "trusted"),
        ("symlink", "trusted"),
        ("fifo", "trusted"),
        ("file", "security"),
        ("symlink", "security"),
    ],
)
def test_an_attribute_is_set_read_listed_and_removed(folder: Path, kind: str, space: str) -> None:
    path = made(folder, kind)
    assert names_of(path) == []
    for number, value in enumerate(VALUES):
        put(path, f"{space}.{number}", b"before")
        put(path, f"{space}.{number}", value)
    assert names_of(path) == [f"{space}.{number}" for number in range(len(VALUES))]
    for number, value in enumerate(VALUES):
        assert get(path, f"{space}.{number}") == value
        remove(path, f"{space}.{number}")
        raises(errno.ENODATA, get, path, f"{space}.{number}")
        raises(errno.ENODATA, remove, path, f"{space}.{number}")
    assert names_of(path) == []


@pytest.mark.parametrize(
    ("there", "flags", "number"),
    [
        (True, 0, None),
        (False, 0, None),
        (True, os.XATTR_CREATE, errno.EEXIST),
        (False, os.XATTR_CREATE, None),
        (True, os.XATTR_REPLACE, None),
        (False, os.XATTR_REPLACE, errno.ENODATA),
        (True, 4, errno.EINVAL),
    ],
)
def test_create_and_replace(folder: Path, there: bool, flags: int, number: int | None) -> None:
    path = made(folder, "file")
    if there:
        put(path, "user.a", b"old")
    if number is None:
        put(path, "user.a", b"new", flags)
    else:
        raises(number, put, path, "user.a", b"new", flags)
    assert names_of(path) == (["user.a"] if there or number is None else [])
    if there or number is None:
        assert get(path, "user.a") == (b"new" if number is None else b"old")


def test_descriptors_links_and_renames_lead_to_the_same_attributes(folder: Path) -> None:
    path = made(folder, "file")
    (folder / "soft").symlink_to("file")
    os.link(path, folder / "hard")
    with opened(path, os.O_RDONLY) as file:
        os.setxattr(file, "user.a", b"1")
        os.setxattr(folder / "soft", "user.b", b"2")
        path.rename(folder / "moved")
        assert sorted(os.listxattr(file)) == names_of(folder / "hard") == ["user.a", "user.b"]
        os.unlink(folder / "moved")
        os.unlink(folder / "hard")
        assert os.getxattr(file, "user.b") == b"2"
        os.removexattr(file, "user.a")
        assert os.listxattr(file) == ["user.b"]
    made(folder, "file")
    assert names_of(path) == []  # the next file of that name has none


def test_attributes_change_ctime_alone(folder: Path) -> None:
    path = made(folder, "file")
    path.write_bytes(b"data")
    os.utime(path, ns=(PAST_NS, PAST_NS))
    calls: list[Callable[[], None]] = [
        lambda: put(path, "user.a", b"1"),
        lambda: put(path, "user.a", b"2"),
        lambda: remove(path, "user.a"),
    ]
    for call in calls:
        before = path.stat()
        pass_time(before.st_ctime_ns)
        call()
        after = path.stat()
        assert after.st_ctime_ns > before.st_ctime_ns
        assert (after.st_mtime_ns, after.st_atime_ns, after.st_size) == (PAST_NS, PAST_NS, 4)


def test_attributes_outlive_what_happens_to_the_bytes(folder: Path) -> None:
    path = made(folder, "file")
    put(path, "user.a", b"kept")
    for size in (10, 100_000, 3, 0):
        path.write_bytes(b"x" * size)
        os.truncate(path, size // 2)
        assert get(path, "user.a") == b"kept"


# --- sizes and names -------------------------------------------------------------------------------------------------


def test_many_attributes_of_many_sizes(folder: Path) -> None:
    path = made(folder, "file")
    values = {f"user.{'n' * number}{number}": bytes([number]) * number * 2 for number in range(25)}
    for name, value in values.items():
        put(path, name, value)
    assert names_of(path) == sorted(values)
    for name in list(values)[::2]:
        remove(path, name)
        del values[name]
    assert {name: get(path, name) for name in names_of(path)} == values


def test_the_largest_value(folder: Path) -> None:
    path = made(folder, "file")
    value = bytes(range(256)) * (LARGEST_VALUE // 256)
    if file_system(folder) == EXT4:
        raises(errno.ENOSPC, put, path, "user.a", value)  # it has one block for all of them
        assert names_of(path) == []
    elif file_system(folder) == SYNCER:
        put(path, "user.a", value)
        assert get(path, "user.a") == value
        put(path, "user.b", value[::-1])
        assert get(path, "user.b") == value[::-1]
    raises(errno.E2BIG, put, path, "user.c", value + b"x")
    assert "user.c" not in names_of(path)


def test_a_buffer_that_is_too_small(folder: Path) -> None:
    path = made(folder, "file")
    put(path, "user.a", b"0123456789")
    for size, number in [(9, errno.ERANGE), (10, None), (100, None), (0, None)]:
        outcome = subprocess.run(["python3", "-c", SMALL_BUFFER, path, f"{size}"], capture_output=True, check=True)
        assert outcome.stdout.split() == [b"%d" % (number or 0), b"%d" % (0 if number else 10)]


SMALL_BUFFER = """
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
found = libc.getxattr(sys.argv[1].encode(), b"user.a", ctypes.create_string_buffer(200), int(sys.argv[2]))
print(ctypes.get_errno(), max(found, 0))
"""


@pytest.mark.parametrize("name", ["user.a", "user.with space", "user.é", "user.a.b", "user.\udcff", LONGEST_NAME])
def test_names_that_are_allowed(folder: Path, name: str) -> None:
    path = made(folder, "file")
    put(path, name, b"value")
    assert names_of(path) == [name]
    assert get(path, name) == b"value"
    raises(errno.ENODATA, get, path, name[:-1] + "?")


@as_root
@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("", errno.ERANGE),
        (LONGEST_NAME + "n", errno.ERANGE),
        ("plain", errno.EOPNOTSUPP),
        ("other.a", errno.EOPNOTSUPP),
        ("User.a", errno.EOPNOTSUPP),
        ("user", errno.EOPNOTSUPP),
        ("user.", errno.EINVAL),
        ("trusted.", errno.EINVAL),
        ("system.nothing", errno.EOPNOTSUPP),
    ],
)
def test_names_that_are_refused(folder: Path, name: str, number: int) -> None:
    path = made(folder, "file")
    raises(number, put, path, name, b"value")
    raises(number, get, path, name)
    raises(number, remove, path, name)
    assert names_of(path) == []


@pytest.mark.parametrize("name", ["system.posix_acl_access", "system.posix_acl_default"])
def test_acls_are_a_kind_of_attribute_that_a_mount_has_not(folder: Path, name: str) -> None:
    path = made(folder, "directory")
    value = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", tag, 7, 2**32 - 1) for tag in (1, 4, 0x20))
    if file_system(folder) == SYNCER:
        raises(errno.EOPNOTSUPP, put, path, name, value)
        raises(errno.EOPNOTSUPP, get, path, name)
    elif file_system(folder) == EXT4:
        put(path, name, value)
    assert stat.S_IMODE(path.stat().st_mode) in (0o755, 0o777)


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_the_attribute_that_a_mount_has_of_its_own_is_read_alone(folder: Path, kind: str) -> None:
    path = made(folder, kind)
    if file_system(folder) == SYNCER:
        raises(errno.EPERM, put, path, "user.syncer.state", b"uploaded")
        raises(errno.EPERM, remove, path, "user.syncer.state")
        if kind == "file":
            assert get(path, "user.syncer.state") in (b"dirty", b"local", b"uploaded")
        else:
            raises(errno.ENODATA, get, path, "user.syncer.state")
    put(path, "user.syncer.another", b"1")
    assert names_of(path) == ["user.syncer.another"]


# --- who may ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["symlink", "fifo"])
def test_only_files_and_directories_have_user_attributes(folder: Path, kind: str) -> None:
    path = made(folder, kind)
    raises(errno.EPERM, put, path, "user.a", b"1")
    raises(errno.ENODATA, get, path, "user.a")
    raises(errno.EPERM, remove, path, "user.a")
    assert names_of(path) == []


@as_root
@pytest.mark.parametrize(
    ("mode", "user", "read", "write"),
    [
        (0o600, None, True, True),
        (0o000, None, True, True),
        (0o600, ALICE, True, True),
        (0o400, ALICE, True, False),
        (0o200, ALICE, False, True),
        (0o066, ALICE, False, False),
        (0o604, BOB, True, False),
        (0o602, BOB, False, True),
        (0o606, BOB, True, True),
        (0o660, BOB, False, False),
    ],
)
@pytest.mark.parametrize("kind", ["file", "directory"])
def test_user_attributes_follow_the_permissions(
    folder: Path, kind: str, mode: int, user: User | None, read: bool, write: bool
) -> None:
    path = made(folder, kind)
    put(path, "user.a", b"1")
    os.chown(path, ALICE.uid, ALICE.gid)
    path.chmod(mode)
    with acting_as(user):
        if read:
            assert get(path, "user.a") == b"1"
            raises(errno.ENODATA, get, path, "user.b")
        else:
            raises(errno.EACCES, get, path, "user.a")
        if write:
            put(path, "user.a", b"2")
            put(path, "user.b", b"3")
            remove(path, "user.b")
        else:
            raises(errno.EACCES, put, path, "user.a", b"2")
            raises(errno.EACCES, remove, path, "user.a")
        assert names_of(path) == ["user.a"]  # names are no secret
    assert get(path, "user.a") == (b"2" if write else b"1")


@as_root
def test_in_a_sticky_directory_only_the_owner_sets_its_attributes(folder: Path) -> None:
    path = made(folder, "directory")
    os.chown(path, ALICE.uid, ALICE.gid)
    path.chmod(0o1777)
    with acting_as(BOB):
        raises(errno.EPERM, put, path, "user.a", b"1")
    with acting_as(ALICE):
        put(path, "user.a", b"1")


@as_root
@pytest.mark.parametrize("user", [ALICE, BOB])
def test_trusted_attributes_are_for_root_alone(folder: Path, user: User) -> None:
    path = made(folder, "file")
    path.chmod(0o666)
    os.chown(path, ALICE.uid, ALICE.gid)
    put(path, "trusted.a", b"1")
    put(path, "user.a", b"1")
    with acting_as(user):
        raises(errno.ENODATA, get, path, "trusted.a")
        raises(errno.EPERM, put, path, "trusted.a", b"2")
        raises(errno.EPERM, remove, path, "trusted.a")
        assert names_of(path) == ["user.a"]
    assert get(path, "trusted.a") == b"1"


@as_root
def test_security_attributes_are_read_by_all_and_set_by_root(folder: Path) -> None:
    path = made(folder, "file")
    path.chmod(0o666)
    put(path, "security.syncer", b"1")
    with acting_as(ALICE):
        assert get(path, "security.syncer") == b"1"
        raises(errno.EPERM, put, path, "security.syncer", b"2")
        raises(errno.EPERM, remove, path, "security.syncer")


@as_root
@pytest.mark.parametrize("change", ["write", "truncate", "chown"])
def test_capabilities_of_a_program_end_when_it_is_changed(folder: Path, change: str) -> None:
    path = made(folder, "file")
    path.write_bytes(b"program")
    put(path, "security.capability", CAPABILITY)
    assert get(path, "security.capability") == CAPABILITY
    match change:
        case "write":
            with opened(path, os.O_WRONLY) as file:
                os.pwrite(file, b"P", 0)
        case "truncate":
            os.truncate(path, 3)
        case "chown":
            os.chown(path, ALICE.uid, ALICE.gid)
    raises(errno.ENODATA, get, path, "security.capability")
    assert names_of(path) == []


# --- programs --------------------------------------------------------------------------------------------------------


@as_root
@pytest.mark.parametrize(
    "command", [["cp", "-a"], ["rsync", "-aX"], ["cp", "--preserve=xattr", "-r"], ["mv"]], ids=" ".join
)
def test_programs_copy_attributes(folder: Path, tmp_path: Path, command: list[str]) -> None:
    """To the file system under test, and back."""
    source = tmp_path / "source"
    (source / "d").mkdir(parents=True)
    (source / "d" / "file").write_bytes(b"data")
    (source / "link").symlink_to("d/file")
    put(source / "d", "user.directory", b"1")
    put(source / "d" / "file", "user.text", b"\0\xff")
    put(source / "d" / "file", "user.empty", b"")
    put(source / "d" / "file", "trusted.t", b"t" * 500)
    put(source / "d" / "file", "security.capability", CAPABILITY)
    expected = {
        "d": {"user.directory": b"1"},
        "d/file": {
            "user.text": b"\0\xff",
            "user.empty": b"",
            "trusted.t": b"t" * 500,
            "security.capability": CAPABILITY,
        },
        "link": {},
    }
    for start, end in [(source, folder / "there"), (folder / "there", tmp_path / "back")]:
        from_, to = (f"{start}/", f"{end}/") if command[0] == "rsync" else (start, end)
        subprocess.run([*command, from_, to], check=True, timeout=60)
        found = {path: {name: get(end / path, name) for name in names_of(end / path)} for path in expected}
        assert found == expected
