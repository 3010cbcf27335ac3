"""Every kind of file in DATA is damaged in every way in turn, and mounted: no wrong byte, no defect, no hang.

What a mount may do with a damaged file is serve what it knows to be right, or refuse with one line and its exit code.
"""

import errno
import itertools
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from syncer import datadir
from tests.acceptance.conftest import MakeRemote
from tests.support.command import syncer
from tests.support.long_form import LONG
from tests.support.mount import Mount
from tests.support.mounted import wait_until

pytestmark = pytest.mark.slow

LARGE, SMALL = random.Random(1).randbytes(700_000), random.Random(2).randbytes(20_000)
PENDING = random.Random(3).randbytes(200_000)
SAFE = {"large": LARGE, "small": SMALL}
"""On the remote too."""
KINDS = ("cache", "dirty", "journal", "meta.db", "meta.db-wal", "config.toml", "lock", "log")
MANNERS = ("flipped", "cut short", "deleted")
PLACES = 6 if LONG else 1
LOCAL = list(itertools.product(KINDS, MANNERS))
LOCAL_SHORT = [("journal", "cut short"), ("meta.db", "flipped")]
TYPED = (*range(2, 13), 30)
"""Exit codes of errors that name their cause: what the user gave us, and LocalDamage."""


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What a mount leaves that was killed: files on the remote, one that is not, one that is half written."""
    place = Path(tmp_path_factory.mktemp("k"))
    (place / "blobs").mkdir()
    with Mount(place, str(place / "blobs"), 64, upload_delay_s=3600.0) as mount:
        mount.start()
        for name, data in SAFE.items():
            (mount.path / name).write_bytes(data)
        mount.flush()
        (mount.path / "pending").write_bytes(PENDING)
        mount.kill()
    yield place
    shutil.rmtree(place)


def files_of(data: Path, kind: str) -> list[Path]:
    place = data / kind
    return [path for path in sorted(place.rglob("*")) if path.is_file()] if place.is_dir() else [place]


def damage(path: Path, manner: str, chance: random.Random) -> None:
    data = bytearray(path.read_bytes())
    if manner == "deleted":
        path.unlink()
        return
    at = chance.randrange(len(data)) if data else 0
    if manner == "flipped" and data:
        data[at] ^= 1 << chance.randrange(8)
    path.write_bytes(data if manner == "flipped" else data[:at])


@pytest.mark.parametrize(("kind", "manner"), LOCAL if LONG else LOCAL_SHORT)
def test_a_damaged_file_in_data(killed: Path, place: Path, kind: str, manner: str) -> None:
    chance = random.Random(f"{kind} {manner}")
    for number in range(PLACES):
        here = place / str(number)
        _copy(killed, here)
        for path in chance.sample(found := files_of(here / "data", kind), min(len(found), 2)):
            damage(path, manner, chance)
        _survives(here, kind, manner)
        shutil.rmtree(here)


def _copy(killed: Path, here: Path) -> None:
    """DATA and its remote at another place."""
    shutil.copytree(killed, here, ignore=shutil.ignore_patterns(datadir.SOCKET))
    config = here / "data" / datadir.CONFIG
    config.write_text(config.read_text().replace(str(killed), str(here)))


def _survives(here: Path, kind: str, manner: str) -> None:
    mount = Mount(here, str(killed_remote := here / "blobs"), 64, upload_delay_s=3600.0, network_deadline_s=5.0)
    mount.expected_warnings = r" (WARNING|ERROR) syncer\."
    arguments = ["mount", "--background", str(here / "data"), str(here / "mnt")]
    if kind == "config.toml" and manner == "deleted":
        arguments = ["mount", "--background", str(here / "data"), str(killed_remote), str(here / "mnt"), "64"]
    with mount:
        outcome = syncer(*arguments, timeout_s=60.0)
        assert "Traceback" not in outcome.stderr and "defect" not in outcome.stderr, outcome.stderr
        if outcome.returncode:
            assert outcome.returncode in TYPED, (outcome.returncode, outcome.stderr)
            assert outcome.stderr.startswith("syncer: ") and outcome.stderr.count("\n") == 1 and ";" in outcome.stderr
            return
        try:
            _reads_right(here / "mnt", kind)
            with _may_be_refused(kind):
                (here / "mnt" / "new").write_bytes(b"new")
                assert (here / "mnt" / "new").read_bytes() == b"new"
        finally:
            outcome = syncer("umount", here / "mnt", timeout_s=60.0)
        assert "Traceback" not in outcome.stderr, outcome.stderr
        wait_until(lambda: not datadir.is_locked(here / "data"), "the mount has ended")
        for log in (here / "data").glob("log*"):
            assert kind == "log" or "Traceback" not in log.read_text(errors="replace"), log.read_text(errors="replace")


class _may_be_refused:
    """A database that is damaged may take no changes, and a DATA that has lost it is a reader of its repository."""

    def __init__(self, kind: str) -> None:
        self._allowed = kind.startswith("meta.db")

    def __enter__(self) -> None:
        return

    def __exit__(self, _: object, error: BaseException | None, __: object) -> bool:
        return self._allowed and isinstance(error, OSError) and error.errno in (errno.EIO, errno.ENOENT, errno.EROFS)


def _reads_right(folder: Path, kind: str) -> None:
    """What is on the remote is read, whatever became of the copies here; nothing is wrong but what has no hash."""
    for name, data in {**SAFE, "pending": PENDING}.items():
        try:
            got = (folder / name).read_bytes()
        except OSError as error:
            assert error.errno in (errno.EIO, errno.ENOENT), error
            assert kind not in ("cache", "lock", "log", "config.toml") or name == "pending", f"{name} is lost"
            continue
        if name == "pending" and kind == "dirty":
            continue  # dirty bytes have no hash yet: their damage cannot be seen (docs/semantics.md)
        if name == "pending" and kind in ("journal", "meta.db", "meta.db-wal"):
            assert data.startswith(got) or len(got) == len(data), "made shorter by a journal that ends earlier"
            continue
        assert got == data, f"{name} is wrong"


def test_what_is_damaged_on_the_remote_is_listed(place: Path) -> None:
    """EIO for just the bytes that are bad; `syncer status` names the files; what is written again is good again."""
    (place / "blobs").mkdir()
    with Mount(place, str(place / "blobs"), 64, network_deadline_s=5.0) as mount:
        mount.expected_warnings = r" (WARNING|ERROR) syncer\."
        mount.start()
        (mount.path / "folder").mkdir()
        for name, data in SAFE.items():
            (mount.path / "folder" / name).write_bytes(data)
            mount.flush()  # a pack of its own
        mount.umount(wait=True)
        packs = {path.stat().st_size: path for path in (place / "blobs" / "packs").rglob("*") if path.is_file()}
        pack = bytearray(packs[max(packs)].read_bytes())
        pack[300_000] ^= 1
        packs[max(packs)].write_bytes(pack)
        mount.forget_data()
        mount.start()
        assert (mount.path / "folder" / "small").read_bytes() == SMALL
        with pytest.raises(OSError) as caught:
            (mount.path / "folder" / "large").read_bytes()
        assert caught.value.errno == errno.EIO
        status = mount.status()
        assert status["damaged_blocks"] == 1 and status["damaged_paths"] == ["folder/large"]
        assert "damaged" in (said := mount.run("status", mount.data)) and "1 block of folder/large" in said
        descriptor = os.open(mount.path / "folder" / "large", os.O_RDONLY)
        good = 0
        for offset in range(0, len(LARGE), 4096):
            try:
                assert os.pread(descriptor, 4096, offset) == LARGE[offset : offset + 4096]
                good += 1
            except OSError:
                continue
        os.close(descriptor)
        (mount.path / "folder" / "large").write_bytes(LARGE)
        mount.flush()
        assert mount.status()["damaged_paths"] == []
        mount.umount(wait=True)
        mount.forget_data()
        mount.start()
        assert (mount.path / "folder" / "large").read_bytes() == LARGE
        mount.stop()
        mount.finish()


def test_what_is_damaged_before_it_is_sent_keeps_nothing_else_here(place: Path, remote_of: MakeRemote) -> None:
    """The snapshot is there and lacks the block; `flush`, `status` and `check` say so until the bytes come back."""
    remote = remote_of("folder")
    with Mount(place, remote.url, 64, network_deadline_s=5.0, upload_delay_s=0.5) as mount:
        mount.expected_warnings = r" (WARNING|ERROR) syncer\."
        mount.start()
        mount.flush()
        with remote.outage("stopped"):
            (mount.path / "bad").write_bytes(PENDING)
            wait_until(lambda: any(files_of(mount.data, "cache")), "it is sealed")
            (file,) = files_of(mount.data, "cache")
            file.write_bytes(bytes(len(PENDING)))
            (mount.path / "good").write_bytes(LARGE)
        outcome = syncer("flush", mount.data)
        assert outcome.returncode == 30 and "1 block of bad, damaged here" in outcome.stderr, outcome.stderr
        assert outcome.stderr.count("\n") == 1
        assert mount.status()["damaged_paths"] == ["bad"]
        said = syncer("check", mount.data, "--remote")
        assert said.returncode == 2 and "/bad" in said.stdout + said.stderr, said
        mount.stop()
        mount.forget_data()
        mount.start()
        assert (mount.path / "good").read_bytes() == LARGE
        with pytest.raises(OSError) as caught:
            (mount.path / "bad").read_bytes()
        assert caught.value.errno == errno.EIO
        assert mount.status()["damaged_paths"] == ["bad"]
        (mount.path / "again").write_bytes(PENDING)
        mount.flush()
        assert (mount.path / "bad").read_bytes() == PENDING
        mount.umount(wait=True)
        mount.run("check", mount.data, "--remote", "--read-data")
        mount.finish()


REMOTE = list(itertools.product(("format", "packs", "index", "snapshots", "peers"), MANNERS))
REMOTE_SHORT = [("index", "flipped")]


@pytest.mark.parametrize(("kind", "manner"), REMOTE if LONG else REMOTE_SHORT)
def test_a_damaged_object_and_a_machine_that_joins(killed: Path, place: Path, kind: str, manner: str) -> None:
    """It refuses with one line, or shows what is right."""
    chance = random.Random(f"{kind} {manner}")
    for number in range(PLACES):
        here = place / str(number)
        shutil.copytree(killed / "blobs", here / "blobs")
        (here / "mnt").mkdir()
        for path in chance.sample(found := files_of(here / "blobs", kind), min(len(found), 2)):
            damage(path, manner, chance)
        arguments = ("mount", "--background", "--read-only", here / "data", here / "blobs", here / "mnt", 64)
        with Mount(here, str(here / "blobs"), 64):
            outcome = syncer(*arguments, timeout_s=60.0)
            assert "Traceback" not in outcome.stderr and "defect" not in outcome.stderr, outcome.stderr
            if outcome.returncode:
                assert outcome.returncode in (7, 20, 21, 22, 23, 25), (outcome.returncode, outcome.stderr)
                assert outcome.stderr.startswith("syncer: ") and outcome.stderr.count("\n") == 1
                continue
            for name, data in SAFE.items():
                try:
                    assert (here / "mnt" / name).read_bytes() == data
                except OSError as error:
                    assert error.errno in (errno.EIO, errno.ENOENT)
            subprocess.run(["fusermount3", "-u", here / "mnt"], check=True, timeout=20)
            wait_until(lambda here=here: not datadir.is_locked(here / "data"), "the mount has ended")  # type: ignore[misc]
