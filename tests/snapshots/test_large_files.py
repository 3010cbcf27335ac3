"""Publishing files of very many extents: it costs what changed, and makes the tree that is built from scratch.

SYNCER_TEST_LONG=1 plays more random changes.
"""

import random
import shutil
import sqlite3
import stat
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import trio

from syncer.meta import schema
from syncer.meta.database import Database
from syncer.meta.treereader import TreeReader
from syncer.snapshots import planter, publisher
from syncer.snapshots.extenttree import build_extents, update_extents
from syncer.snapshots.levels import Shape
from syncer.snapshots.planter import Planter
from syncer.snapshots.tree import build_directory, update_directory
from syncer.values import ROOT_INODE, TreeId
from tests.snapshots.rig import ME, Peer, Remote, built_from, opened, publish_until_gone, same
from tests.support.core_scale import small_scale
from tests.support.core_world import eventually
from tests.support.long_form import LONG

MIB = 1 << 20
MANY = 20_000
STEPS_A_CALL = 100


class Watched(TreeReader):
    """Counts the instructions that SQLite carries out for it, in units of STEPS_A_CALL."""

    calls = 0

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self._connection.set_progress_handler(self._step, STEPS_A_CALL)

    def _step(self) -> int:
        Watched.calls += 1
        return 0


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "TreeReader", Watched)


async def steps_of_publishing(peer: Peer) -> int:
    Watched.calls = 0
    await peer.publish()
    return Watched.calls * STEPS_A_CALL


def large_file(peer: Peer, name: bytes, count: int, *, indexed: bool = True) -> int:
    """A file of *count* extents of 1 MiB, each a block that the remote seems to have."""
    number = peer.file_system.create(ROOT_INODE, name, stat.S_IFREG | 0o644, ME).number
    peer.file_system.setattr(number, size=count * MIB)
    ids = random.Random(number)
    peer.meta.database.begin()
    execute, executemany = peer.meta.database.connection.execute, peer.meta.database.connection.executemany
    pack = execute(
        "INSERT INTO packs(id, size, kind, indexed) VALUES (?, 1, 0, ?)", (ids.randbytes(32), 1 if indexed else None)
    ).lastrowid
    first = execute("SELECT ifnull(max(number), 0) + 1 FROM blocks").fetchone()[0]
    executemany(
        f"INSERT INTO blocks VALUES (?, ?, {MIB}, 0, 0, ?, ?, 1000, 0, 0, 0)",
        ((first + index, ids.randbytes(32), pack, index * 1000) for index in range(count)),
    )
    executemany(
        f"INSERT INTO extents VALUES (?, ?, {MIB}, ?, 0)",
        ((number, index * MIB, first + index) for index in range(count)),
    )
    peer.meta.commit()
    return number


def from_scratch(copy: Path) -> TreeId:
    """The root that a publication of meta.db at *copy* makes which remembers nothing of those before."""
    database = Database(copy, copy.parent / "no journal")
    execute = database.connection.execute
    for table in ("trees", "changed", "changed_names", "changed_extents"):
        execute(f"DELETE FROM {table}")
    execute("INSERT INTO changed SELECT inode, 0 FROM inodes")
    database.connection.close()
    reader = TreeReader(database)
    root = Planter(reader, 0, lambda pack, named: None).plant().root
    reader.close()
    return root


# --- how much is read -------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("watched")
async def test_what_happens_around_a_large_file_reads_none_of_its_extents(tmp_path: Path) -> None:
    remote = Remote()
    async with opened(tmp_path / "one", remote) as peer:
        number = large_file(peer, b"large", MANY)
        peer.file_system.link(number, ROOT_INODE, b"second name")
        first = await steps_of_publishing(peer)
        assert 5 * MANY < first < 15 * MANY, "read once, although it has two names"
        await peer.file(b"neighbour", b"content")
        assert await steps_of_publishing(peer) < 5000
        await peer.file(b"below", b"content", peer.directory(b"folder"))
        assert await steps_of_publishing(peer) < 5000
        peer.file_system.setattr(number, mode=0o600)
        peer.file_system.rename(ROOT_INODE, b"large", ROOT_INODE, b"renamed")
        assert await steps_of_publishing(peer) < 5000
        assert remote.root() == from_scratch(copy_of(peer, tmp_path))


@pytest.mark.usefixtures("watched")
async def test_a_change_of_a_large_file_reads_what_is_around_it(tmp_path: Path) -> None:
    remote = Remote()
    async with opened(tmp_path / "one", remote) as peer:
        number = large_file(peer, b"large", MANY)
        await peer.publish()
        for change in (
            partial(write, peer, number, MANY // 2 * MIB, b"changed"),
            partial(write, peer, number, MANY * MIB + 5000, b"appended"),
            partial(write, peer, number, 0, b"first"),
        ):
            await change()
            assert await steps_of_publishing(peer) < MANY / 2
            assert remote.root() == from_scratch(copy_of(peer, tmp_path))
        peer.file_system.setattr(number, size=MANY // 2 * MIB)
        assert await steps_of_publishing(peer) < MANY / 2
        assert remote.root() == from_scratch(copy_of(peer, tmp_path))


async def write(peer: Peer, number: int, offset: int, data: bytes) -> None:
    handle = peer.file_system.open(number, 2)
    await peer.file_system.write(handle, offset, data)
    peer.file_system.release(handle)


def copy_of(peer: Peer, folder: Path) -> Path:
    """A copy of meta.db as it is after a commit."""
    peer.meta.commit()
    copy = folder / "copy.db"
    copy.unlink(missing_ok=True)
    target = sqlite3.connect(copy)
    peer.meta.database.connection.backup(target)
    target.close()
    return copy


@pytest.mark.slow
@pytest.mark.usefixtures("watched")
async def test_a_new_machine_knows_the_trees_of_its_large_files(tmp_path: Path) -> None:
    """The first publication there makes the same tree of what did not change, without reading it."""
    remote = Remote()
    async with opened(tmp_path / "one", remote) as peer:
        large_file(peer, b"large", MANY, indexed=False)
        await peer.publish(released=True)
    async with opened(tmp_path / "two", remote) as peer:
        assert await steps_of_publishing(peer) < 5000
        assert remote.snapshots()[0].root == remote.root()
        await write(peer, number_of(peer, b"large"), 7 * MIB, b"changed")
        await peer.publish()
        assert remote.root() == from_scratch(copy_of(peer, tmp_path))


def number_of(peer: Peer, name: bytes) -> int:
    inode = peer.file_system.names.lookup(ROOT_INODE, name)
    assert inode is not None
    return inode.number


@pytest.mark.slow
async def test_building_a_large_tree_takes_the_memory_of_a_few_nodes(tmp_path: Path) -> None:
    """Python's share of it; as lists, the extents would be 20 MB."""
    async with opened(tmp_path / "one", Remote()) as peer:
        large_file(peer, b"large", 3 * MANY)
        generation = peer.meta.snapshots.begin_generation()
        peer.meta.commit()
        reader = TreeReader(peer.meta.database)
        tracemalloc.start()
        try:
            Planter(reader, generation, lambda pack, named: None).plant()
            assert tracemalloc.get_traced_memory()[1] < 10_000_000, "a pack that is not full yet, and little else"
        finally:
            tracemalloc.stop()
            reader.close()


# --- one state, one tree ----------------------------------------------------------------------------------------


@pytest.fixture
def small_nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Files of a few hundred KB have many extents and trees of several levels, and changes are noted by the KiB."""
    small = Shape(bits=2, items_max=8)
    for function in (build_directory, update_directory, build_extents, update_extents):
        monkeypatch.setattr(planter, function.__name__, partial(function, shape=small))
    monkeypatch.setattr(planter, "LARGE_ENTRIES", 6)
    monkeypatch.setattr(planter, "EXTENTS_INLINE", 3)
    assert schema.STATEMENTS.count(">> 26 << 26") == 2
    monkeypatch.setattr(schema, "STATEMENTS", schema.STATEMENTS.replace(">> 26 << 26", ">> 13 << 13"))
    with small_scale():
        yield


class Busy(Remote):
    """Has something happen while each object is on its way."""

    def __init__(self) -> None:
        super().__init__()
        self.meanwhile: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint

    async def put(self, key: str, data: bytes | memoryview) -> None:
        await self.meanwhile()
        await super().put(key, data)


async def change(peer: Peer, rng: random.Random) -> None:
    """Do something to one of a few files, which may have several names, or none at first."""
    name = b"file %d" % rng.randrange(4)
    inode = peer.file_system.names.lookup(ROOT_INODE, name)
    if inode is None:
        await peer.file(name, rng.randbytes(rng.choice([10, 5000, 100_000])))
        return
    match rng.randrange(16):
        case 0:
            peer.truncate(inode.number, rng.choice([0, 3000, inode.size // 2, inode.size * 9 // 10]))
        case 1:
            peer.truncate(inode.number, min(inode.size + 30_000, 300_000))
        case 2:
            peer.file_system.unlink(ROOT_INODE, name)
        case 3:
            peer.file_system.setattr(inode.number, mode=0o600 + rng.randrange(64))
        case 4:
            peer.file_system.rename(ROOT_INODE, name, ROOT_INODE, b"file %d" % rng.randrange(4))
        case 5 | 6 | 7:
            await peer.write(inode.number, inode.size, rng.randbytes(rng.choice([20, 5000])))
        case 8 if inode.nlink < 3:
            peer.file_system.link(inode.number, ROOT_INODE, b"link %d" % rng.randrange(10**9))
        case _:
            await peer.write(inode.number, rng.randrange(inode.size + 1), rng.randbytes(rng.choice([20, 300, 3000])))


@pytest.mark.slow
@pytest.mark.usefixtures("small_nodes")
@pytest.mark.parametrize("seed", range(40 if LONG else 2))
async def test_every_publication_makes_the_tree_that_is_built_from_scratch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Whatever changed since the one before, and while it was under way; the moment is when the reader is opened."""
    rng, remote = random.Random(seed), Busy()
    updated: list[TreeId] = []
    update = vars(planter)["update_extents"]

    def noted(*arguments: object, **named: object) -> TreeId:
        tree: TreeId = update(*arguments, **named)
        updated.append(tree)
        return tree

    monkeypatch.setattr(planter, "update_extents", noted)
    async with opened(tmp_path / "one", remote) as peer:

        def read(database: Database) -> TreeReader:
            copy_of(peer, tmp_path)
            return TreeReader(database)

        monkeypatch.setattr(publisher, "TreeReader", read)
        remote.meanwhile = partial(change, peer, rng)
        for round_ in range(30):
            for _ in range(rng.choice([0, 1, 2, 10])):
                await change(peer, rng)
            await peer.publish()
            assert remote.root() == from_scratch(tmp_path / "copy.db"), f"round {round_}"
        remote.meanwhile = trio.lowlevel.checkpoint
        await peer.publish()
        expected = peer.picture()
        same(await peer.picture_as_read(), expected)
        assert len(updated) > 5, "trees are made from those before"
        for name in [path[1:] for path in expected if path]:
            peer.file_system.unlink(ROOT_INODE, name)
        await eventually(lambda: not peer.meta.extents.cuts)
        await peer.publish()
        assert remote.root() == from_scratch(tmp_path / "copy.db")
        rows = peer.meta.database.connection.execute("SELECT inode FROM trees UNION SELECT inode FROM changed_extents")
        assert rows.fetchall() == [(ROOT_INODE,)], "nothing is kept of files that are gone"


# --- interruptions ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("small_nodes")
@pytest.mark.parametrize("stored", [False, True], ids=["before the put", "after the put"])
async def test_a_publication_that_ends_at_any_put_is_made_up_by_the_next(tmp_path: Path, stored: bool) -> None:
    """What was noted of the large file is noted still: what it knows of its tree is of the publication before."""
    first, puts = Remote(), 0
    async with opened(tmp_path / "one", first) as peer:
        number = await peer.file(b"large", random.Random(1).randbytes(100_000))
        await peer.publish()
        content = bytes(peer.contents[number])
    while True:
        remote, folder = first.copy(), tmp_path / f"{puts}"
        remote.go_away_after(puts, stored=stored)
        shutil.copytree(tmp_path / "one", folder / "alive")
        async with opened(folder / "alive", remote) as peer:
            peer.contents[number] = bytearray(content)
            await peer.write(number, 50_000, b"one")
            await publish_until_gone(peer, remote, folder)
        if not remote.gone.is_set():
            break
        back = remote.returned()
        async with opened(folder / "killed", back) as killed:
            killed.contents = {number: bytearray(content)}
            killed.contents[number][50_000:50_003] = b"one"
            await killed.write(number, 90_000, b"two")
            await killed.publish()
            assert back.root() == from_scratch(copy_of(killed, folder))
            expected = killed.picture()
        same(await built_from(back, folder / "new"), expected)
        puts += 1
    assert puts == 4, "content, trees, index, snapshot"
