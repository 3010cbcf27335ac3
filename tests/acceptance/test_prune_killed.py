"""A mount dies at each named point of a prune: every snapshot that is left shows what it did, and the next ends it."""

import contextlib
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from syncer.control import Client
from syncer.errors import NotMounted
from tests.support.altered import altered
from tests.support.collection import Manifest, differences, manifest
from tests.support.core_check import check_stopped
from tests.support.kill_points import PRUNE_POINTS
from tests.support.long_form import LONG
from tests.support.mount import Mount, place_for_a_mount
from tests.support.remote_view import RemoteView

pytestmark = pytest.mark.slow

SHORT_POINTS = ("put-copies/after", "doom-packs/after")
SHORT_POINTS_ALONE = ("delete-index/after",)
OF_COUNTS = ("thin/before", "thin/after", "count/before", "count/after")
"""Points that only a mount which prunes by itself comes to."""
DEAD_SHARE = 0.15
"""So much of the remote may be dead after a prune: a tenth is not worth copying, and there are few packs here."""


@dataclass(slots=True)
class Work:
    """A DATA at rest with a history of which much is dead, put back for each test.

    Attributes:
        live: what the file system shows.
        pictures: what each snapshot shows, by its place.
    """

    place: Path
    live: Manifest = field(default_factory=dict)
    pictures: dict[str, Manifest] = field(default_factory=dict)

    @property
    def remote(self) -> Path:
        return self.place / "remote"

    def mount(self, keep: str) -> Mount:
        return Mount(self.place, str(self.remote), 64, upload_delay_s=0.05, snapshot_interval_s=3600.0, keep=keep)

    def make(self) -> None:
        self.remote.mkdir()
        chance = random.Random(5)
        with self.mount("last=forever") as mount:
            mount.start()
            folder = mount.path / "d"
            folder.mkdir()
            for change in (self._first, self._second, self._third, self._last):
                change(folder, chance)
                taken = ask(mount, "snapshot", label="kept" if change == self._second else None)
                self.pictures[taken["place"]] = manifest(mount.path)
            self.live = manifest(mount.path)
            mount.stop()
            mount.finish()
        self.pictures["1/5"] = self.live  # it says that nobody writes any more
        for name in ("data", "remote"):
            shutil.copytree(self.place / name, self.place / f"saved-{name}")

    def put_back(self) -> None:
        for name in ("data", "remote"):
            shutil.rmtree(self.place / name)
            shutil.copytree(self.place / f"saved-{name}", self.place / name)

    def _first(self, folder: Path, chance: random.Random) -> None:
        """A pack, of which little is needed later."""
        for number in range(8):
            (folder / f"f{number}").write_bytes(chance.randbytes(100_000))

    def _second(self, folder: Path, chance: random.Random) -> None:
        for number in range(6):
            (folder / f"f{number}").unlink()
        (folder / "g").write_bytes(chance.randbytes(150_000))

    def _third(self, folder: Path, chance: random.Random) -> None:
        """A pack that stays, listed with a tree that goes."""
        (folder / "stays").write_bytes(chance.randbytes(400_000))
        (folder / "goes").write_bytes(chance.randbytes(20_000))

    def _last(self, folder: Path, chance: random.Random) -> None:
        (folder / "f6").unlink()
        (folder / "goes").unlink()
        (folder / "g").rename(folder / "moved")

    def view(self) -> RemoteView:
        return RemoteView(self.objects())

    def objects(self) -> dict[str, bytes]:
        files = [path for path in self.remote.rglob("*") if path.is_file()]
        return {str(path.relative_to(self.remote)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def made() -> Iterator[Work]:
    with place_for_a_mount() as place:
        work = Work(place)
        work.make()
        yield work


@pytest.fixture
def work(made: Work) -> Work:
    made.put_back()
    return made


def ask(mount: Mount, what: str, **question: object) -> dict[str, Any]:
    with Client.connect(mount.data) as client:
        return client.travel(what, question)


@pytest.mark.parametrize("point", [point for point in PRUNE_POINTS if point not in OF_COUNTS] if LONG else SHORT_POINTS)
def test_a_prune_that_was_asked_for(point: str, work: Work) -> None:
    with work.mount("last=forever") as mount:
        mount.program = altered(f"kill={point}:1")
        mount.start()
        with pytest.raises(NotMounted):
            ask(mount, "prune", keep="none")
        mount.crashed()
        assert f"killed at {point}" in mount.output
    _judge(work)


@pytest.mark.parametrize("point", PRUNE_POINTS if LONG else SHORT_POINTS_ALONE)
def test_a_prune_that_the_mount_makes_by_itself(point: str, work: Work) -> None:
    with work.mount("none") as mount:
        mount.program = altered(f"kill={point}:1", "counts=1")
        mount.start()
        with contextlib.suppress(NotMounted):  # it may have died before the answer had gone out
            ask(mount, "snapshot", label="one more")  # with a label, so that it is taken: nothing has changed
        mount.crashed()
        assert f"killed at {point}" in mount.output
    _judge(work)


def _judge(work: Work) -> None:
    """What is left is whole, also for who has the remote alone; and the next prune does what is left to do."""
    left = work.view()
    for record in left.snapshots().values():
        left.picture(record.root)
    with work.mount("last=forever") as mount:
        mount.start()
        _judge_mounted(work, mount)
        mount.stop()
        check_stopped(mount.data)
        mount.finish()


def _judge_mounted(work: Work, mount: Mount) -> None:
    live = work.live
    assert differences(live, manifest(mount.path)) == []
    _compare(mount, work.pictures, live)
    if LONG:
        assert "nothing is wrong" in mount.run("check", mount.data, "--remote", "--read-data")
    ask(mount, "prune", keep="none")
    _compare(mount, work.pictures, live)
    (mount.path / "later").write_bytes(b"l" * 1000)  # a pack that nothing lists goes when it is seen after a snapshot
    live = manifest(mount.path)
    ask(mount, "snapshot")
    ask(mount, "prune", keep="none")
    nothing = ask(mount, "prune", keep="none", dry_run=True)
    assert not nothing["items"] and not nothing["freed_bytes"], nothing
    assert "nothing is wrong" in mount.run("check", mount.data, "--remote", "--read-data")
    assert differences(live, manifest(mount.path)) == []
    _check_nothing_dead(work)


def _compare(mount: Mount, pictures: dict[str, Manifest], newest: Manifest) -> None:
    """Every snapshot that there is shows what it did, those without a picture the newest state."""
    for item in ask(mount, "list")["items"]:
        shown = manifest(mount.path / ".snapshots" / item["name"])
        assert differences(pictures.get(item["place"], newest), shown) == [], item


def _check_nothing_dead(work: Work) -> None:
    objects, view = work.objects(), work.view()
    *others, _newest = view.snapshots().values()
    assert others and all(record.label for record in others)
    assert view.dead_share() < DEAD_SHARE
    unlisted = {key for key in objects if key.startswith("packs/")} - view.listed_packs()
    assert not unlisted, "packs that no index lists are left"
