"""Publishing and building again: what the remote holds is the file system as it was, whatever went on meanwhile."""

import random
from functools import partial
from pathlib import Path

import pytest

from syncer.meta.database import Database
from syncer.meta.treereader import TreeReader
from syncer.snapshots import planter, publisher
from syncer.snapshots.extenttree import build_extents
from syncer.snapshots.levels import Shape
from syncer.snapshots.tree import build_directory, update_directory
from tests.snapshots.rig import Picture, Remote, built_from, opened, same

SMALL = Shape(bits=2, items_max=8)


@pytest.fixture
def small_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Directories of a few entries are large, and their trees have several levels."""
    for function in (build_directory, update_directory, build_extents):
        monkeypatch.setattr(planter, function.__name__, partial(function, shape=SMALL))
    monkeypatch.setattr(planter, "LARGE_ENTRIES", 6)
    monkeypatch.setattr(planter, "EXTENTS_INLINE", 3)


@pytest.mark.parametrize("seed", range(4))
async def test_a_new_machine_sees_what_was_published(tmp_path: Path, seed: int) -> None:
    rng, remote = random.Random(seed), Remote()
    async with opened(tmp_path / "one", remote) as peer:
        for _ in range(3):
            for _ in range(60):
                await peer.change(rng)
            await peer.publish()
        expected = peer.picture()
        same(await peer.picture_as_read(), expected)
        totals = peer.meta.inodes.totals
    same(await built_from(remote, tmp_path / "two"), expected)
    async with opened(tmp_path / "two", remote, read_only=True) as other:
        assert other.meta.inodes.totals == totals
    newest = remote.snapshots()[-1]
    assert (newest.files, newest.directories, newest.logical_bytes) == (
        *(totals.files, totals.directories, totals.logical_bytes),
    )


@pytest.mark.usefixtures("small_nodes")
@pytest.mark.parametrize("seed", range(6))
async def test_the_snapshot_is_of_one_moment_whatever_changes_during_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Names change while each object is on its way. The moment is when the reader of the tree is opened."""
    rng, remote = random.Random(seed), Remote()
    async with opened(tmp_path / "one", remote) as peer:
        moments: list[Picture] = []

        def watched(database: Database) -> TreeReader:
            moments.append(peer.picture())
            return TreeReader(database)

        monkeypatch.setattr(publisher, "TreeReader", watched)
        remote.on_put = lambda key: peer.change_names(rng)
        for round_ in range(5):
            for _ in range(25):
                await peer.change(rng)
            await peer.publish()
            same(await built_from(remote, tmp_path / f"two{round_}"), moments[-1])
