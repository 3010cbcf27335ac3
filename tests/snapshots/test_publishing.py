"""Publishing and building again: what the remote holds is the file system as it was, whatever went on meanwhile."""

import random
import shutil
import time
from functools import partial
from pathlib import Path

import pytest

from syncer.errors import RemoteFull
from syncer.meta.database import Database
from syncer.meta.treereader import TreeReader
from syncer.snapshots import planter, publisher
from syncer.snapshots.extenttree import build_extents, update_extents
from syncer.snapshots.levels import Shape
from syncer.snapshots.tree import build_directory, update_directory
from syncer.values import ROOT_INODE
from tests.snapshots.rig import ME, Peer, Picture, Remote, built_from, opened, publish_until_gone, same

SMALL = Shape(bits=2, items_max=8)


@pytest.fixture
def small_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Directories of a few entries are large, and their trees have several levels."""
    for function in (build_directory, update_directory, build_extents, update_extents):
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


@pytest.mark.usefixtures("small_nodes")
@pytest.mark.parametrize("published_before", [0, 1, 2])
async def test_a_name_that_goes_during_a_publication_is_gone_in_the_next(tmp_path: Path, published_before: int) -> None:
    """Only the note of the change can tell the next publication, which does not look at the other names."""
    remote = Remote()
    async with opened(tmp_path / "one", remote) as peer:
        crowd = peer.directory(b"crowd")
        for number in range(60):
            peer.file_system.create(crowd, b"file %d" % number, 0o100644, ME)
        for number in range(published_before):
            await peer.publish()
            peer.file_system.setattr(number_of(peer, crowd, b"file %d" % number), mode=0o600)
        going = [b"file 40", b"file 41"]

        def remove_one(key: str) -> None:
            if key.startswith("snapshots/"):
                peer.file_system.unlink(crowd, going.pop())

        remote.on_put = remove_one
        await peer.publish()
        await peer.publish()
        remote.on_put = lambda key: None
        await peer.publish()
        assert not going
        expected = peer.picture()
    same(await built_from(remote, tmp_path / "two"), expected)


# --- how much is uploaded ---------------------------------------------------------------------------------------


async def test_a_few_changes_among_many_files_cost_a_few_nodes(tmp_path: Path) -> None:
    """20,000 files in 100 directories, and 5,000 in one; then a new file, a changed one, and one that goes."""
    remote = Remote()
    async with opened(tmp_path / "one", remote) as peer:
        parents = [peer.directory(b"directory %d" % number) for number in range(100)]
        for parent in parents:
            for number in range(200):
                peer.file_system.create(parent, b"file %d" % number, 0o100644, ME)
        big = peer.directory(b"big")
        for number in range(5000):
            peer.file_system.create(big, b"file %d" % number, 0o100644, ME)
        await peer.publish()
        whole = remote.uploaded_bytes
        for parent in (parents[50], big):
            before = remote.uploaded_bytes
            await peer.file(b"new", b"content", parent)
            await peer.write(number_of(peer, parent, b"file 7"), 0, b"changed")
            peer.file_system.unlink(parent, b"file 8")
            await peer.publish()
            assert remote.uploaded_bytes - before < 25_000 < whole / 10
        expected = peer.picture()
    same(await built_from(remote, tmp_path / "two"), expected)


def number_of(peer: Peer, parent: int, name: bytes) -> int:
    inode = peer.file_system.names.lookup(parent, name)
    assert inode is not None
    return inode.number


async def test_nothing_changed_is_nothing_published(tmp_path: Path) -> None:
    remote = Remote()
    async with opened(tmp_path / "one", remote) as peer:
        await peer.file(b"file", b"content")
        await peer.publish()
        taken = list(remote.taken)
        await peer.publish()
        assert remote.taken == taken
    async with opened(tmp_path / "one", remote) as peer:
        await peer.publish()
        assert remote.taken == taken
        await peer.publish(released=True)
        assert remote.taken == [*taken, "snapshots/000001/000000000002"]
        await peer.publish(released=True)
        assert remote.taken == [*taken, "snapshots/000001/000000000002"]


async def test_what_was_built_from_the_remote_adds_only_its_claim(tmp_path: Path) -> None:
    """A built DATA knows all packs and trees: it sends none of them again, and its tree is the same."""
    rng, remote = random.Random(9), Remote()
    async with opened(tmp_path / "one", remote) as peer:
        for _ in range(150):
            await peer.change(rng)
        crowd = peer.directory(b"crowd")
        for number in range(planter.LARGE_ENTRIES + 1):
            peer.file_system.create(crowd, b"file %d" % number, 0o100644, ME)
        await peer.publish(released=True)
    taken = list(remote.taken)
    async with opened(tmp_path / "two", remote) as peer:
        assert peer.meta.names.large == {crowd}
        await peer.publish()
        peer.file_system.setattr(number_of(peer, crowd, b"file 7"), mtime_ns=5)
        peer.file_system.unlink(crowd, b"file 8")
        await peer.publish()
        expected = peer.picture()
    one, two, three = remote.snapshots()
    assert remote.taken[len(taken) : len(taken) + 2] == ["peers/000002", "snapshots/000002/000000000001"]
    assert one.root == two.root != three.root
    assert (two.parents, two.released) == (((1, 1),), False)
    assert built_keys(await built_from(remote, tmp_path / "three")) == built_keys(expected)


def built_keys(picture: Picture) -> dict[bytes, tuple[int, ...]]:
    return {path: seen.attributes for path, seen in picture.items()}


async def test_a_block_the_remote_has_is_not_sent_again(tmp_path: Path) -> None:
    remote, content = Remote(), random.Random(3).randbytes(3_000_000)
    async with opened(tmp_path / "one", remote) as peer:
        await peer.file(b"one", content)
        await peer.publish()
        before = remote.uploaded_bytes
        await peer.file(b"two", content)
        peer.file_system.unlink(ROOT_INODE, b"one")
        await peer.publish()
        assert remote.uploaded_bytes - before < 3000
        expected = peer.picture()
    same(await built_from(remote, tmp_path / "two"), expected)


# --- one state, one tree ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_nodes")
async def test_equal_states_have_equal_roots_however_they_came_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same files are made in the same order; what else happens, and when it is published, differs."""
    monkeypatch.setattr(time, "time_ns", lambda: 1_700_000_000_000_000_000)
    roots = set()
    for number, detours in enumerate((0.0, 0.3, 1.0)):
        rng, remote = random.Random(number), Remote()
        async with opened(tmp_path / f"{number}", remote) as peer:
            parents = [ROOT_INODE, peer.directory(b"a"), peer.directory(b"b"), peer.directory(b"c")]
            for index in range(80):
                await peer.file(b"file %d" % index, b"%d" % index * 1000, parents[index % 4])
                if rng.random() < detours:
                    await detour(peer, parents[index % 4], b"file %d" % index, rng)
                    await peer.publish()
            await peer.publish()
            roots.add(remote.root())
            same(await peer.picture_as_read(), peer.picture())
    assert len(roots) == 1


async def detour(peer: Peer, parent: int, name: bytes, rng: random.Random) -> None:
    """Change things, publish them so, and change them back."""
    inode = peer.file_system.names.lookup(parent, name)
    assert inode is not None
    content = bytes(peer.contents[inode.number])
    match rng.randrange(4):
        case 0:
            peer.file_system.rename(parent, name, ROOT_INODE, b"elsewhere")
            await peer.publish()
            peer.file_system.rename(ROOT_INODE, b"elsewhere", parent, name)
        case 1:
            peer.file_system.setattr(inode.number, mode=0o400)
            await peer.publish()
            peer.file_system.setattr(inode.number, mode=0o644)
        case 2:
            await peer.write(inode.number, 3, b"something else")
            await peer.publish()
            await peer.write(inode.number, 0, content)
        case _:
            peer.file_system.link(inode.number, ROOT_INODE, b"link")
            peer.file_system.setxattr(inode.number, b"user.x", b"1")
            await peer.publish()
            peer.file_system.unlink(ROOT_INODE, b"link")
            peer.file_system.removexattr(inode.number, b"user.x")


# --- interruptions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stored", [False, True], ids=["before the put", "after the put"])
async def test_a_publication_that_ends_at_any_put_leaves_a_whole_remote(tmp_path: Path, stored: bool) -> None:
    """Killed there, the remote still is at the last whole snapshot; DATA goes on and writes no key twice."""
    first, puts = Remote(), 0
    async with opened(tmp_path / "one", first) as peer:
        await peer.file(b"kept", b"kept" * 50_000)
        await peer.publish()
        before = peer.picture()
    while True:
        remote = first.copy()
        remote.go_away_after(puts, stored=stored)
        folder = tmp_path / f"{stored}{puts}"
        shutil.copytree(tmp_path / "one", folder / "alive")
        finished, expected = await change_and_publish(folder, remote)
        if finished:
            break
        back = remote.returned()
        seen = await built_from(back, folder / "new")
        same(seen, expected if len(back.snapshots()) == 2 else before)
        async with opened(folder / "killed", back) as peer:
            assert peer.membership.read_only_reason is None
            same(await peer.picture_as_read(), expected)
            peer.directory(b"afterwards")
            await peer.publish()
            later = await peer.picture_as_read()
        same(await built_from(back, folder / "new"), later)
        puts += 1
    assert puts == 5, "content, trees, index, snapshot, and one more of each kind that is new"


async def change_and_publish(folder: Path, remote: Remote) -> tuple[bool, Picture]:
    """Change, and publish until the remote is gone. True when it never was."""
    async with opened(folder / "alive", remote) as peer:
        peer.contents = {number: bytearray(b"kept" * 50_000) for number in [number_of(peer, ROOT_INODE, b"kept")]}
        await peer.file(b"new", random.Random(4).randbytes(9_000_000))
        peer.directory(b"folder")
        expected = peer.picture()
        await publish_until_gone(peer, remote, folder)
        return not remote.gone.is_set(), expected


async def test_a_publication_that_fails_is_made_up_by_the_next(tmp_path: Path) -> None:
    """The same engine goes on: the remote refuses a put of each kind once."""
    for prefix in ("packs/", "index/", "snapshots/"):
        remote = Remote()
        async with opened(tmp_path / prefix, remote) as peer:
            await peer.file(b"one", b"1")
            await peer.publish()
            # Content only known here already, so that the first pack is one of trees.
            peer.directory(b"folder")
            refuse_once(remote, prefix)
            with pytest.raises(RemoteFull):
                await peer.publish()
            assert len(remote.snapshots()) == 1
            await peer.publish()
            expected = await peer.picture_as_read()
        same(await built_from(remote, tmp_path / f"{prefix}two"), expected)


def refuse_once(remote: Remote, prefix: str) -> None:
    def refuse(key: str) -> None:
        if key.startswith(prefix):
            remote.on_put = lambda key: None
            raise RemoteFull("no room")

    remote.on_put = refuse


async def test_numbers_of_objects_are_never_used_twice_even_if_the_put_failed(tmp_path: Path) -> None:
    """It may have arrived all the same, and the next one says something else."""
    remote = Remote()
    async with opened(tmp_path / "one", remote) as peer:
        await peer.publish()
        for number in range(3):
            peer.directory(b"%d" % number)
            refuse_once(remote, "snapshots/")
            with pytest.raises(RemoteFull):
                await peer.publish()
        peer.directory(b"last")
        await peer.publish()
    assert [snapshot.seq for snapshot in remote.snapshots()] == [1, 5]
