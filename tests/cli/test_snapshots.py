"""`syncer snapshots` as a user runs it: inside of a mount, beside it, without one, and from a remote alone."""

import json
import os
from collections.abc import Iterator

import pytest

from tests.support.command import syncer
from tests.support.mount import Mount, place_for_a_mount

pytestmark = pytest.mark.slow


@pytest.fixture
def mount() -> Iterator[Mount]:
    """With three snapshots: an album, one picture less, another one."""
    with place_for_a_mount() as place, Mount(place, str(place / "blobs"), 64) as mount:
        (place / "blobs").mkdir()
        mount.start()
        album = mount.path / "photos" / "2019"
        album.mkdir(parents=True)
        for name in ("1.jpg", "2.jpg"):
            (album / name).write_bytes(os.urandom(100_000))
        mount.flush()
        (album / "1.jpg").unlink()
        mount.flush()
        (album / "3\n.jpg").write_bytes(os.urandom(50_000))
        mount.flush()
        yield mount


def test_the_same_is_listed_with_a_mount_without_one_and_from_the_remote(mount: Mount) -> None:
    inside = mount.run("snapshots", mount.path, "--json")
    items = json.loads(inside)
    assert [item["files"] for item in items] == [2, 1, 2]
    assert [item["new_bytes"] for item in items] == [200_000, 0, 50_000]
    table = mount.run("snapshots", mount.data).splitlines()
    assert [line.split()[5] for line in table[1:]] == ["200", "0", "50.0"]
    assert [line.split()[0] for line in table[1:]] == [item["name"] for item in items]
    assert mount.run("snapshots", "--data", mount.data, "--since", "2 days ago", "--json") == inside
    assert mount.run("snapshots", "--data", mount.data, "--until", "2 days ago", "--json") == "[]\n"
    mount.stop()
    again = json.loads(mount.run("snapshots", mount.data, "--json"))
    assert again[:3] == items
    assert json.loads(mount.run("snapshots", "--remote", mount.data.parent / "blobs", "--json")) == again
    mount.finish()


def test_versions_and_deleted_files(mount: Mount) -> None:
    one = mount.path / "photos" / "2019" / "1.jpg"
    versions = mount.run("snapshots", one).splitlines()
    assert versions[1].endswith("file") and versions[2].endswith("deleted") and len(versions) == 3
    assert len(json.loads(mount.run("snapshots", one.parent, "--json"))) == 3
    deleted = mount.run("snapshots", mount.path / "photos", "--deleted").splitlines()
    assert [line.split()[-1] for line in deleted[1:]] == ["photos/2019/1.jpg"]
    found = json.loads(mount.run("snapshots", mount.path, "--deleted", "--json"))
    past = mount.path / ".snapshots" / found[0]["name"] / found[0]["path"]
    assert past.stat().st_size == 100_000
    mount.stop()
    remote = mount.data.parent / "blobs"
    assert len(json.loads(mount.run("snapshots", "photos/2019/1.jpg", "--remote", remote, "--json"))) == 2
    mount.finish()


def test_an_empty_list_says_what_was_looked_for(mount: Mount) -> None:
    (mount.path / "photos" / "2019" / "2.jpg").unlink()  # after the last snapshot
    for words, told in (
        ([mount.path / "photos" / "2091"], "has photos/2091;"),
        ([mount.path / "photos" / "2091", "--deleted"], "below photos/2091;"),
        ([mount.data, "--until", "2 days ago"], "no snapshot is from that time; without --since and --until"),
        ([mount.data, "--since", "2099-01-01"], "no snapshot is from that time; "),
    ):
        outcome = syncer("snapshots", *words)
        assert (outcome.returncode, outcome.stdout) == (0, "")
        assert outcome.stderr.startswith("syncer: ") and told in outcome.stderr, outcome.stderr
    mount.stop()
    mount.finish()


def test_what_makes_no_sense_is_refused(mount: Mount) -> None:
    history = mount.data.parent / "history"
    history.mkdir()
    for code, words in (
        (2, [mount.data, "--mount", history]),  # it is mounted
        (2, [mount.data, "--background"]),
        (2, ["--data", mount.data, "--remote", "/x"]),
        (2, [mount.data, "--mount", history, "--json"]),
        (2, [mount.data, "--since", "the day the music died"]),
        (7, ["--remote", history]),
        (7, ["--remote", history, "--mount", mount.data.parent / "mnt2"]),
        (8, [history]),
    ):
        (mount.data.parent / "mnt2").mkdir(exist_ok=True)
        outcome = syncer("snapshots", *words)
        assert outcome.returncode == code, (words, outcome.stderr)
        assert outcome.stderr.startswith(("syncer: ", "Usage: ")) and "Traceback" not in outcome.stderr
    assert os.listdir(history) == []
    mount.stop()
    mount.finish()
