"""`syncer snapshot`, `diff` and `restore` as a user runs them: inside of a mount, beside it, and without one."""

import contextlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.command import syncer
from tests.support.mount import Mount, place_for_a_mount

pytestmark = pytest.mark.slow


@pytest.fixture
def mount() -> Iterator[Mount]:
    with place_for_a_mount() as place:
        (place / "blobs").mkdir()
        with Mount(place, str(place / "blobs"), 100) as mount:
            yield mount


def album(root: Path) -> dict[str, tuple[object, ...]]:
    year = root / "photos" / "2019"
    year.mkdir(parents=True)
    for index in range(4):
        (year / f"{index}.jpg").write_bytes(os.urandom(400_000))
    (year / "note").write_text("the first note")
    os.link(year / "0.jpg", root / "photos" / "best.jpg")
    os.symlink("2019/1.jpg", root / "photos" / "cover")
    os.setxattr(year / "1.jpg", "user.tag", b"sunset")
    os.chmod(year / "2.jpg", 0o600)
    os.utime(year / "3.jpg", ns=(1, 1_400_000_000_123_456_789))
    return seen(root)


def seen(root: Path) -> dict[str, tuple[object, ...]]:
    """Everything below *root* that a restoration must bring back."""
    found: dict[str, tuple[object, ...]] = {}
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = Path(folder) / name
            at = path.lstat()
            own: tuple[object, ...] = (at.st_ino, at.st_mode, at.st_uid, at.st_nlink, at.st_mtime_ns)
            if stat.S_ISREG(at.st_mode):
                xattrs = {key: os.getxattr(path, key) for key in os.listxattr(path)}
                own = (*own, at.st_size, path.read_bytes(), tuple(xattrs.items()))
            elif stat.S_ISLNK(at.st_mode):
                own = (*own, os.readlink(path))
            found[str(path.relative_to(root))] = own
    return found


def test_a_deleted_album_is_found_and_comes_back(mount: Mount) -> None:
    mount.start()
    before = album(mount.path)
    taken = mount.run("snapshot", mount.data, "--label", "before cleanup")
    assert "_before cleanup (1/1, id " in taken
    for name in os.listdir(mount.path / "photos" / "2019"):
        os.unlink(mount.path / "photos" / "2019" / name)
    os.rmdir(mount.path / "photos" / "2019")
    assert not (mount.path / "photos" / "2019").exists()  # and the kernel remembers that
    told = syncer("diff", "before cleanup", cwd=mount.path).stdout.splitlines()
    assert told == ["- photos/2019/", *(f"- photos/2019/{n}" for n in ("0.jpg", "1.jpg", "2.jpg", "3.jpg", "note"))]
    assert mount.run("diff", "before cleanup", "--stat", "--data", mount.data) == (
        "0 added, 6 removed, 0 modified, 0 renamed; 0 bytes more, 1.60 MB less\n"
    )
    planned = syncer("restore", "before cleanup", "2019", "--dry-run", cwd=mount.path / "photos").stdout
    assert planned.splitlines()[0] == "make   photos/2019  (5 files, 1.60 MB)"
    outcome = syncer("restore", "before cleanup", ".", cwd=mount.path / "photos")
    assert (outcome.returncode, outcome.stderr) == (0, "")
    assert ": 6 made, 0 changed, 0 removed; before it was as in 1/2\n" in outcome.stdout
    assert seen(mount.path) == before
    mount.umount()
    mount.forget_data()
    mount.start()
    assert seen(mount.path) == before
    mount.umount()
    mount.finish()


def test_open_files_and_what_the_kernel_has_cached_follow(mount: Mount) -> None:
    mount.start()
    path = mount.path / "file"
    path.write_bytes(b"old" * 50_000)
    (mount.path / "gone").write_bytes(b"1")
    mount.run("snapshot", mount.data, "--label", "old")
    os.unlink(mount.path / "gone")
    assert not (mount.path / "gone").exists()
    (mount.path / "newer").mkdir()
    with open(path, "r+b", buffering=0) as file:
        file.write(b"new" * 60_000)
        assert path.read_bytes() == b"new" * 60_000
        mount.run("restore", "old", "/", "--data", mount.data)
        assert os.pread(file.fileno(), 200_000, 0) == b"old" * 50_000 == path.read_bytes()
        assert os.stat(path).st_size == 150_000
        assert (mount.path / "gone").read_bytes() == b"1"
        assert sorted(os.listdir(mount.path)) == ["file", "gone", "newer"]
        os.pwrite(file.fileno(), b"later", 0)
        mount.run("restore", "latest", "/", "--data", mount.data, "--delete")  # the state before the first restoration
        assert path.read_bytes() == b"new" * 60_000
        assert sorted(os.listdir(mount.path)) == ["file", "newer"]
    mount.umount()
    mount.finish()


def test_a_kernel_that_collects_writes_shows_no_wrong_byte(mount: Mount) -> None:
    mount.start("--writeback")
    path = mount.path / "file"
    path.write_bytes(b"old" * 50_000)
    mount.run("snapshot", mount.data, "--label", "old")
    path.write_bytes(b"new" * 60_000)
    with open(path, "rb"):
        outcome = syncer("restore", "old", "/", "--data", mount.data)
        assert outcome.returncode == 1 and "file: somebody has it open" in outcome.stderr
        assert path.read_bytes() == b"new" * 60_000
    mount.run("restore", "old", "/", "--data", mount.data)
    assert path.read_bytes() == b"old" * 50_000
    assert path.stat().st_size == 150_000
    mount.umount()
    mount.finish()


def test_without_a_mount_and_elsewhere(mount: Mount) -> None:
    mount.start()
    before = album(mount.path)
    mount.umount()
    assert "_kept (1/" in mount.run("snapshot", mount.data, "--label", "kept")
    refused = syncer("snapshot", mount.data, "--label", "kept")
    assert refused.returncode == 2 and "a snapshot called 'kept' already" in refused.stderr
    mount.run("restore", "kept", "photos/2019", "--to", "copies/year", "--data", mount.data)
    lines = mount.run("diff", "kept", "now", "/copies", "--data", mount.data, "--json").splitlines()
    assert [json.loads(line)["path"] for line in lines][:3] == ["copies", "copies/year", "copies/year/0.jpg"]
    mount.start()
    after = seen(mount.path)
    assert {path: after[path] for path in before} == before
    copies = {path.removeprefix("copies/year/"): found[5:] for path, found in after.items() if path.count("/") == 2}
    assert copies == {p.removeprefix("photos/2019/"): f[5:] for p, f in before.items() if p.count("/") == 2} | copies
    assert len(copies) >= 5
    mount.umount()
    mount.finish()


def test_what_cannot_be_is_said_plainly(mount: Mount) -> None:
    mount.start()
    album(mount.path)
    mount.run("snapshot", mount.data)
    for arguments, code, words in [
        (["restore", "nonsense", "."], 2, "no snapshot is called 'nonsense'"),
        (["restore", "1990-01-01", "."], 2, "no snapshot is as old as '1990-01-01'; the oldest is 20"),
        (["restore", "latest", "nowhere"], 2, "nowhere is not in that snapshot"),
        (["restore", "latest", "photos", "--to", "photos/2019"], 2, "which is not what would be restored"),
        (["restore", "latest", "photos", "--to", "/tmp"], 8, "not inside a mount"),
        (["diff", "ffff"], 2, "no snapshot is called 'ffff'"),
        (["diff", "a", "b", "c", "d"], 2, "4 words make no comparison"),
        (["snapshot", ".", "--label", "a/b"], 2, "cannot be a label"),
    ]:
        outcome = syncer(*arguments, cwd=mount.path)
        assert outcome.returncode == code and words in outcome.stderr, (arguments, outcome)
        assert len(outcome.stderr.splitlines()) == 1
    os.mkdir(mount.path / "in the way")
    (mount.path / "in the way" / "file").write_bytes(b"1")
    with contextlib.suppress(FileExistsError):
        os.rename(mount.path / "photos" / "cover", mount.path / "moved")
    os.rename(mount.path / "in the way", mount.path / "photos" / "cover")
    outcome = syncer("restore", "latest", "photos", "--no-snapshot", cwd=mount.path)
    assert (outcome.returncode, outcome.stderr) == (
        *(1, "syncer: photos/cover: a directory that is not empty is in its place\n"),
    )
    mount.umount()
    mount.finish()
