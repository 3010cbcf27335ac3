"""`check --remote`: damage to the objects of a remote, found with the paths it hits, mended where DATA has copies."""

import contextlib
import os
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import trio

from syncer import checking, config
from syncer.backends.base import Backend
from syncer.backends.folder import FolderBackend
from syncer.checking import CheckRequest
from syncer.errors import RemoteUnreachable, WrongRepository
from syncer.snapshots.repository import Wish
from syncer.snapshots.verified import Verified
from tests.support.check_world import CheckWorld
from tests.support.core_data import make_data


def _pack_of(world: CheckWorld, path: str) -> Path:
    """The pack that holds the first block of a file."""
    name = os.path.basename(path)
    with world.database() as connection:
        row = connection.execute(
            "SELECT hex(p.id) FROM dentries d JOIN extents e ON e.inode = d.inode JOIN blocks b ON b.number = e.source"
            " JOIN packs p ON p.number = b.pack WHERE d.name = ? LIMIT 1",
            (name.encode(),),
        ).fetchone()
    pack = str(row[0]).lower()
    return world.remote / "packs" / pack[:2] / pack


def _objects(world: CheckWorld, folder: str) -> list[Path]:
    return sorted(path for path in (world.remote / folder).rglob("*") if path.is_file())


def _tree_packs(world: CheckWorld) -> list[Path]:
    with world.database() as connection:
        rows = connection.execute("SELECT lower(hex(id)) FROM packs WHERE kind = 1 ORDER BY number").fetchall()
    return [world.remote / "packs" / name[:2] / name for (name,) in rows]


def _flip(path: Path, place: int) -> None:
    held = bytearray(path.read_bytes())
    held[place] ^= 1
    path.write_bytes(held)


Spoil = Callable[[Path], None]
SPOILS: dict[str, Spoil] = {
    "missing": lambda path: path.unlink(),
    "size": lambda path: os.truncate(path, path.stat().st_size - 1),
    "damaged": lambda path: _flip(path, 100),
}


@pytest.mark.parametrize("why", SPOILS)
def test_a_spoiled_pack_of_blocks_that_are_here_is_sent_again(world: CheckWorld, why: str) -> None:
    SPOILS[why](_pack_of(world, "/linked"))
    report = world.check(remote=True, percent=100.0)
    assert {finding.code for finding in report.found} == {f"pack-{why}"}, report.found
    hit = {os.fsdecode(path) for finding in report.found for path in finding.paths}
    assert hit & {"/linked", "/dir/link", "/holes", "/row"}, hit
    if why == "missing":
        assert {"/linked", "/dir/link"} <= hit
    mended = world.check(remote=True, percent=100.0, repair=True)
    assert not mended.left, mended.left
    assert any("next flush" in note for note in mended.notes)
    assert world.read() == world.files
    after = world.check(remote=True, percent=100.0)
    assert not after.found, after.found
    assert world.read_elsewhere() == world.files


@pytest.mark.parametrize("why", SPOILS)
def test_a_spoiled_pack_of_blocks_that_are_not_here_is_told(world: CheckWorld, why: str) -> None:
    SPOILS[why](_pack_of(world, "/evicted"))
    mended = world.check(remote=True, percent=100.0, repair=True)
    assert [finding.code for finding in mended.left] == [f"pack-{why}"]
    hit = {os.fsdecode(path) for finding in mended.left for path in finding.paths}
    assert hit
    assert hit <= {"/evicted", "1/1:/gone", *(path for path in world.files if path.startswith("/dir/deep/"))}
    if why == "missing":
        assert {"/evicted", "1/1:/gone"} <= hit
        shown = world.read()
        assert isinstance(shown["/evicted"], str), "wrong bytes were read"


@pytest.mark.parametrize("why", ["missing", "damaged"])
def test_lost_trees_are_made_anew(world: CheckWorld, why: str) -> None:
    assert world.read() == world.files  # and publish it: what is lost now is the live tree
    for pack in _tree_packs(world)[1:]:
        SPOILS[why](pack)
    report = world.check(remote=True)
    assert {finding.code for finding in report.found} == {f"pack-{why}"}, report.found
    mended = world.check(remote=True, repair=True)
    assert not mended.left, mended.left
    assert world.read() == world.files
    after = world.check(remote=True)
    assert {path.partition(b":")[0] for finding in after.found for path in finding.paths} <= {b"1/2"}, "only history"
    assert world.read_elsewhere() == world.files


@pytest.mark.parametrize("spoil", ["missing", "damaged"])
def test_lost_records_are_put_anew(world: CheckWorld, spoil: str) -> None:
    SPOILS[spoil](_objects(world, "snapshots")[-1])
    SPOILS[spoil](_objects(world, "index")[-1])
    report = world.check(remote=True)
    codes = {finding.code for finding in report.found}
    assert {f"snapshot-{spoil}", "pack-unlisted"} <= codes, codes
    assert ("index-damaged" in codes) == (spoil == "damaged")
    mended = world.check(remote=True, repair=True)
    assert not mended.left, mended.left
    assert world.read() == world.files
    after = world.check(remote=True)
    assert not after.found, after.found
    assert world.read_elsewhere() == world.files


def test_a_data_that_others_took_over_from_puts_nothing_on_the_remote(world: CheckWorld) -> None:
    """What it knows of was deleted there since, maybe, with the packs; its snapshot again would name what is gone."""
    other = CheckWorld(world.place / "other", {})
    make_data(other.data)
    other.remote.symlink_to(world.remote)

    async def take_over() -> None:
        async with other.opened(Wish(read_only=False, take_over=True, uid=0, gid=0)):
            pass

    trio.run(take_over)
    first, second = _objects(world, "snapshots")
    held = second.read_bytes()
    second.unlink()
    assert [finding.code for finding in world.check(remote=True).found] == ["snapshot-missing"], "the newest stays"
    second.write_bytes(held)
    first.unlink()
    assert not world.check(remote=True).found, "the new writer may have thinned it out"
    second.write_bytes(b"?")
    mended = world.check(remote=True, repair=True)
    assert not first.exists() and second.read_bytes() == b"?"
    assert [finding.code for finding in mended.left] == ["snapshot-damaged"]
    assert any("writes" in note for note in mended.notes), mended.notes


def test_format_and_peers_are_told(world: CheckWorld) -> None:
    _objects(world, "peers")[0].write_bytes(b"?")
    report = world.check(remote=True)
    assert [finding.code for finding in report.found] == ["peer-damaged"]
    (world.remote / "format").write_bytes(b"?")
    assert "format" in {finding.code for finding in world.check(remote=True).found}


def test_another_repository_is_refused(world: CheckWorld) -> None:
    (world.remote / "format").write_text('{"version": 1, "repository": "%s", "created_ns": 1}' % ("ab" * 16))
    with pytest.raises(WrongRepository):
        world.check(remote=True)


def test_a_bad_copy_is_no_help(world: CheckWorld) -> None:
    """Both copies of a block are wrong: neither is taken for the other's rescue."""
    _pack_of(world, "/linked").unlink()
    with world.database() as connection:
        rows = connection.execute("SELECT lower(hex(id)) FROM blocks WHERE cached = 1 AND pack IS NOT NULL").fetchall()
    for (name,) in rows:
        _flip(world.data / "cache" / name[:2] / name, 5)
    mended = world.check(remote=True, percent=100.0, repair=True)
    assert {finding.code for finding in mended.left} == {"pack-missing"}
    kept = {path.name for path in (world.data / "lost+found").iterdir()}
    assert kept == {f"cache-{name[:2]}-{name}" for (name,) in rows}


class Recording(FolderBackend):
    """Notes which packs are read; fails after *left* of them."""

    def __init__(self, world: CheckWorld, left: int) -> None:
        super().__init__(world.remote)
        self.parallelism = 1
        self.read: list[str] = []
        self._left = left

    async def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        if key.startswith("packs/"):
            if not self._left:
                raise RemoteUnreachable("the line is cut")
            self._left -= 1
            self.read.append(key)
        return await super().get(key, offset, length)


def _check_through(world: CheckWorld, backend: Backend, percent: float = 100.0) -> checking.Report:
    @contextlib.asynccontextmanager
    async def opened(settings: config.Config) -> AsyncIterator[Backend]:
        yield backend

    settings = config.load(world.data / "config.toml")
    request = CheckRequest(data=world.data, config=settings, percent=percent, remote=True, repair=False)
    return checking.check(request, opened, lambda what, done, total: None)


def test_an_interrupted_check_goes_on(world: CheckWorld) -> None:
    walk = Recording(world, 1000)
    assert not _check_through(world, walk).found
    trees = len(_tree_packs(world))
    packs = len(_objects(world, "packs"))
    assert len(walk.read) == trees + packs  # the walk through the trees, then every byte
    assert not (world.data / "verified").exists(), "a check that came to its end leaves no notes"
    with pytest.raises(RemoteUnreachable):
        _check_through(world, Recording(world, trees + packs - 1))
    assert (world.data / "verified").exists()
    rest = Recording(world, 1000)
    assert not _check_through(world, rest).found
    assert len(rest.read) == trees + 1
    assert not (world.data / "verified").exists()


def test_one_that_is_killed_leaves_nothing_in_the_temporary_folder(
    world: CheckWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder := tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    seen: list[list[Path]] = []

    class Watched(FolderBackend):
        async def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
            seen.append(list(folder.iterdir()))
            return await super().get(key, offset, length)

    assert not _check_through(world, Watched(world.remote)).found
    assert seen and not any(seen), seen


def test_notes_are_for_the_same_check_only(world: CheckWorld) -> None:
    path, repository = world.data / "verified", bytes(16)

    def begin(remote: str = "r", percent: float = 100.0) -> set[bytes]:
        notes = Verified(path, remote, repository, percent)
        notes.close(complete=False)
        return notes.ids

    notes = Verified(path, "r", repository, 100.0)
    names = {bytes([count]) * 32 for count in range(5)}
    for name in sorted(names):
        notes.add(name)
    seed = notes.seed
    notes.close(complete=False)
    assert begin() == names
    os.truncate(path, path.stat().st_size - 3)  # a record that was cut short
    assert begin() == names - {bytes([4]) * 32}
    assert Verified(path, "r", repository, 100.0).seed == seed
    assert begin(percent=5.0) == set()
    assert begin() == set(), "another check has begun meanwhile"
    notes = Verified(path, "r", repository, 100.0)
    notes.add(bytes(32))
    notes.close(complete=False)
    _flip(path, 30)
    assert begin() == set()


def test_a_sample_is_about_as_large_as_asked_for(tmp_path: Path) -> None:
    notes = Verified(tmp_path / "verified", "r", bytes(16), 10.0)
    chosen = sum(notes.chooses(os.urandom(32), 10.0) for _ in range(20_000))
    notes.close(complete=True)
    assert 1700 < chosen < 2300
    assert not any(tmp_path.iterdir())
