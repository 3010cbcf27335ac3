"""Finding mounts and what a path means, against real mounts that would hang whoever touches them."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from syncer import mounts
from syncer.datadir import DataDirectory
from syncer.errors import DataUnusable, NotMounted
from tests.support.hung_mount import hung_mount

pytestmark = pytest.mark.slow

ODD = "da ta,%41\\ñ#\n\t=x"
"""Everything that mount options, mountinfo or percent-encoding might garble."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with DATA (an odd name) mounted on `my mnt`, both real."""
    folder = tmp_path_factory.mktemp("mounts")
    (folder / "my mnt").mkdir()
    with DataDirectory.open(folder / ODD) as directory:
        directory.config.write_text("")
    with hung_mount(folder / "my mnt", folder / ODD):
        yield folder


def test_a_mount_tells_where_its_data_is(place: Path) -> None:
    assert mounts.Mount(place / "my mnt", place / ODD, os.geteuid()) in mounts.find_mounts()
    assert mounts.is_mountpoint(place / "my mnt")
    assert not mounts.is_mountpoint(place)


@pytest.mark.parametrize("below", ["", "photos/2020", "a/../b", "../my mnt/x", "../other/../my mnt"])
def test_any_path_inside_means_its_data(place: Path, below: str) -> None:
    assert mounts.resolve(place / "my mnt" / below) == place / ODD


def test_links_are_followed_up_to_the_mount(place: Path) -> None:
    links = place / "links"
    links.mkdir()
    (links / "to").symlink_to("../my mnt")
    (links / "again").symlink_to(links / "to" / "deep" / "er")
    assert mounts.resolve(links / "to" / "x") == place / ODD
    assert mounts.resolve(links / "again") == place / ODD
    (links / "round").symlink_to("round")
    with pytest.raises(DataUnusable, match="symbolic links"):
        mounts.resolve(links / "round")


def test_relative_paths_start_in_the_working_directory(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    assert mounts.resolve(Path("my mnt")) == place / ODD
    assert mounts.resolve(Path(ODD)) == place / ODD


def test_a_working_directory_that_was_removed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(DataUnusable, match="working directory was removed"):
        mounts.locate(Path("below"))
    assert mounts.locate(tmp_path / "other") == (tmp_path / "other", None)


def test_leaving_a_mount_by_dots_means_what_is_beside_it(place: Path) -> None:
    assert mounts.locate(place / "my mnt" / ".." / ODD) == (place / ODD, None)
    assert mounts.resolve(place / "my mnt" / ".." / ODD) == place / ODD


def test_data_itself_needs_no_mount(tmp_path: Path) -> None:
    with DataDirectory.open(tmp_path / "data") as directory:
        directory.config.write_text("")
    (tmp_path / "link").symlink_to("data")
    assert mounts.resolve(tmp_path / "link") == tmp_path / "data"


def test_other_paths_are_refused_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(DataUnusable, match="does not exist") as missing:
        mounts.resolve(tmp_path / "no")
    with pytest.raises(NotMounted, match="neither DATA nor inside a mount") as foreign:
        mounts.resolve(tmp_path)
    assert missing.value.hint and foreign.value.hint


def test_a_name_that_only_begins_alike_is_outside(place: Path) -> None:
    (place / "my mnt too").mkdir()
    with pytest.raises(NotMounted, match="neither"):
        mounts.resolve(place / "my mnt too")


def test_another_file_system_inside_or_over_a_mount_hides_it(tmp_path: Path) -> None:
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    data = tmp_path / "data"
    DataDirectory.open(data).close()
    if os.geteuid() != 0:
        pytest.skip("only root can mount a tmpfs over it")
    with hung_mount(mountpoint, data):
        # -i: no helper, and nothing that looks at the mountpoint first
        subprocess.run(["mount", "-i", "-t", "tmpfs", "none", str(mountpoint)], check=True, timeout=20)
        try:
            assert mounts.locate(mountpoint / "x") == (mountpoint / "x", None)
            assert data in [mount.data for mount in mounts.find_mounts()]
        finally:
            subprocess.run(["umount", "-l", str(mountpoint)], check=True, timeout=20)
        assert mounts.resolve(mountpoint) == data


def in_own_namespace(code: str, *arguments: object) -> str:
    """Run *code* where no mounts of ours are but those it makes; returns what it prints."""
    command = ["unshare", "-m", sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


WITHOUT_A_NAME = """
import subprocess, sys
from contextlib import ExitStack
from pathlib import Path
from syncer import mounts
from tests.support.hung_mount import hung_mount
for mount in mounts.find_mounts():
    subprocess.run(["umount", "-l", mount.mountpoint], check=True)

def tell():
    try:
        print(mounts.resolve(None).name)
    except mounts.NotMounted as error:
        print(type(error).__name__, error)

with ExitStack() as stack:
    tell()
    for name in ("one", "two"):
        stack.enter_context(hung_mount(Path(sys.argv[1], name), Path(sys.argv[1], name + " data")))
        tell()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may have a mount namespace of its own")
def test_no_name_means_the_only_mount(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    assert in_own_namespace(WITHOUT_A_NAME, tmp_path).splitlines() == [
        "NotMounted nothing is mounted",
        "one data",
        f"NotMounted 2 mounts are running: {tmp_path}/one, {tmp_path}/two",
    ]
