"""What a change costs on the way to the remote: never the whole file, never an object a file, nothing for nothing."""

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.acceptance.conftest import MakeRemote, Scale
from tests.support.collection import digest, random_bytes
from tests.support.long_form import LONG
from tests.support.mount import Mount, forget_pages

pytestmark = pytest.mark.slow

INSERT_SHARE = 0.02 if LONG else 0.05
"""A changed block or two weigh more in the smaller file of the short form."""
HEADER_BYTES = 4096


@pytest.fixture
def mount(place: Path, remote_of: MakeRemote, scale: Scale) -> Iterator[Mount]:
    """A mount with room for three large files."""
    megabytes = 3 * scale.large_file_bytes // 1_000_000 + 20
    with Mount(place, remote_of("folder").url, megabytes, lifetime_s=scale.lifetime_s) as mount:
        mount.start()
        yield mount
        mount.stop()
        mount.finish()


def uploaded_by(mount: Mount, change: Callable[[], object]) -> int:
    """How many bytes leave for the remote because of *change*, everything included."""
    mount.flush()
    before: int = mount.status()["uploaded_bytes"]
    change()
    mount.flush()
    after: int = mount.status()["uploaded_bytes"]
    return after - before


def save_in_place(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def save_beside(path: Path, data: bytes) -> None:
    """As most editors do: a new file under another name, synced, renamed over the old one."""
    new = path.with_name("new")
    with open(new, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    new.rename(path)


@pytest.mark.parametrize("save", [save_in_place, save_beside])
def test_a_byte_inserted_at_the_front(mount: Mount, scale: Scale, save: Callable[[Path, bytes], None]) -> None:
    data = random_bytes(scale.large_file_bytes, 2)
    path = mount.path / "large"
    assert uploaded_by(mount, lambda: path.write_bytes(data)) > len(data)
    sent = uploaded_by(mount, lambda: save(path, b"!" + data))
    assert 0 < sent < INSERT_SHARE * len(data)
    forget_pages(path)
    assert path.read_bytes() == b"!" + data


def test_a_header_that_grows(mount: Mount, scale: Scale) -> None:
    """As when a tag is added to a music file: the header becomes 4 KiB longer, the music stays."""
    music = random_bytes(scale.large_file_bytes, 3)
    path = mount.path / "song.mp3"
    uploaded_by(mount, lambda: path.write_bytes(b"ID3" + bytes(HEADER_BYTES) + music))
    tagged = b"ID3" + b"artist" * (HEADER_BYTES // 3) + music
    sent = uploaded_by(mount, lambda: save_beside(path, tagged))
    assert 0 < sent < INSERT_SHARE * len(music)
    forget_pages(path)
    assert path.read_bytes() == tagged


def test_an_edit_in_the_middle_of_a_file_that_is_here(mount: Mount, scale: Scale) -> None:
    data = bytearray(random_bytes(scale.large_file_bytes, 4))
    path = mount.path / "large"
    path.write_bytes(data)
    place, edit = len(data) // 2 + 77, random_bytes(4096, 5)

    def change() -> None:
        with open(path, "r+b") as file:
            file.seek(place)
            file.write(edit)

    assert 4096 < uploaded_by(mount, change) < 65536
    data[place : place + 4096] = edit
    forget_pages(path)
    assert path.read_bytes() == data


@pytest.mark.parametrize("kind", ["folder", "ssh"])
def test_an_edit_in_a_file_that_is_evicted_while_the_remote_is_gone(
    kind: str, place: Path, remote_of: MakeRemote, scale: Scale
) -> None:
    remote = remote_of(kind, own=True)
    data = bytearray(random_bytes(40_000_000, 6))
    with Mount(place, remote.url, 64, extra=remote.environment, network_deadline_s=5.0) as mount:
        mount.start()
        path = mount.path / "edited"
        path.write_bytes(data)
        mount.flush()
        (mount.path / "other").write_bytes(random_bytes(60_000_000, 7))  # pushes the first one out
        mount.flush()
        forget_pages(path)
        # A page of the kernel's: for a part of one it would have to read the rest.
        place_in_file, edit = 5000 * 4096, random_bytes(4096, 8)
        before = mount.status()["uploaded_bytes"]
        mount.expected_warnings = r"WARNING syncer\."
        with remote.outage("stopped"), open(path, "r+b", buffering=0) as file:
            assert os.pwrite(file.fileno(), edit, place_in_file) == 4096
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # no reading ahead, which would need the remote
            assert os.pread(file.fileno(), 4096, place_in_file) == edit
        mount.flush()
        assert 4096 < mount.status()["uploaded_bytes"] - before < 65536
        assert mount.status()["fetched_bytes"] < 5_000_000, "the file was not evicted, or the edit fetched it"
        data[place_in_file : place_in_file + 4096] = edit
        forget_pages(path)
        assert path.read_bytes() == data
        mount.stop()
        mount.finish()


@pytest.mark.parametrize("kind", ["s3", "folder"])
def test_small_files_share_objects(kind: str, place: Path, remote_of: MakeRemote) -> None:
    remote = remote_of(kind)
    chance = random.Random(9)
    with Mount(place, remote.url, 64, extra=remote.environment) as mount:
        mount.start()
        for number in range(2000):
            (mount.path / f"{number:04}").write_bytes(chance.randbytes(10_240))
        mount.umount(wait=True)
        keys = remote.keys()
        assert len(keys) <= 10, sorted(keys)
        assert {key.split("/")[0] for key in keys} == {"format", "packs", "index", "snapshots", "peers"}
        mount.finish()


def test_files_that_live_for_a_moment_are_never_sent(mount: Mount) -> None:
    def come_and_go() -> None:
        for number in range(30):
            path = mount.path / f"temporary {number}"
            with open(path, "wb") as file:
                file.write(os.urandom(1_000_000 if number % 2 else 5_000))
                file.flush()
                if number % 3 == 0:
                    os.fsync(file.fileno())
            path.unlink()

    (mount.path / "one that stays").write_bytes(b"x")
    assert uploaded_by(mount, come_and_go) < 10_000
    assert mount.status()["pending_upload_bytes"] == 0


def test_the_same_content_is_sent_once(mount: Mount) -> None:
    data = random_bytes(6_000_000, 10)
    (mount.path / "one").write_bytes(data)
    (mount.path / "small one").write_bytes(data[:20_000])

    def copy() -> None:
        (mount.path / "two").write_bytes(data)
        (mount.path / "small two").write_bytes(data[:20_000])

    assert uploaded_by(mount, copy) < 20_000
    assert digest(mount.path / "two") == digest(mount.path / "one")
