"""Lists of snapshots: what came with each, the versions of a path, and what was deleted."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from syncer import timetravel
from syncer.backends.memory import MemoryBackend
from syncer.snapshots.decoded import DecodedNodes
from syncer.snapshots.live import LiveTree
from syncer.snapshots.versions import versions
from syncer.values import ROOT_INODE
from tests.snapshots.rig import Peer, Remote, opened
from tests.support.opened import evict_all


async def listed(peer: Peer, **question: object) -> list[dict[str, Any]]:
    answer = await timetravel.answer(peer.engine, "list", question, lambda done, total: None)
    items = answer["items"]
    assert isinstance(items, list)
    return items


async def make_history(peer: Peer) -> None:
    """Five snapshots: a/x and y; a/x longer; a/x renamed to a/z; y deleted and a new; a deleted."""
    folder = peer.directory(b"a")
    number = await peer.file(b"x", b"1" * 70_000, folder)
    await peer.file(b"y", b"22")
    await peer.publish()
    await peer.write(number, 70_000, b"2" * 80_000)
    await peer.publish()
    peer.file_system.rename(folder, b"x", folder, b"z")
    await peer.publish()
    peer.file_system.unlink(ROOT_INODE, b"y")
    await peer.file(b"new", b"333", folder)
    await peer.publish()
    for name in (b"z", b"new"):
        peer.file_system.unlink(folder, name)
    peer.file_system.rmdir(ROOT_INODE, b"a")
    await peer.publish()


def counts(item: dict[str, Any]) -> tuple[int, ...]:
    return tuple(item["changes"][kind] for kind in ("added", "removed", "modified", "renamed"))


async def test_a_list_tells_what_came_with_each(tmp_path: Path) -> None:
    async with opened(tmp_path / "data", Remote()) as peer:
        await make_history(peer)
        evict_all(peer.engine)
        items = await listed(peer, changes=9)
        assert [item["place"] for item in items] == ["1/1", "1/2", "1/3", "1/4", "1/5"]
        assert [counts(item) for item in items] == [
            (3, 0, 0, 0),
            (0, 0, 1, 0),
            (0, 0, 0, 1),
            (1, 1, 0, 0),
            (0, 3, 0, 0),
        ]
        assert [item["new_bytes"] for item in items] == [70_002, 80_000, 0, 3, 0]
        assert [(item["files"], item["logical_bytes"]) for item in items][:2] == [(2, 70_002), (2, 150_002)]


async def test_only_of_the_newest_is_told_what_came_with_them(tmp_path: Path) -> None:
    async with opened(tmp_path / "data", Remote()) as peer:
        await make_history(peer)
        items = await listed(peer, changes=2)
        assert [item["changes"] is not None for item in items] == [False, False, False, True, True]
        assert counts(items[3]) == (1, 1, 0, 0)
        since, until = items[1]["time_ns"], items[2]["time_ns"]
        assert [item["place"] for item in await listed(peer, since_ns=since, until_ns=until)] == ["1/2", "1/3"]


async def test_the_versions_of_a_path(tmp_path: Path) -> None:
    async with opened(tmp_path / "data", Remote()) as peer:
        await make_history(peer)
        assert [(item["place"], item["size"]) for item in await listed(peer, path="a/x")] == [
            ("1/1", 70_000),
            ("1/2", 150_000),
            ("1/3", None),
        ]
        assert [(item["place"], item["type"]) for item in await listed(peer, path="/a/")] == [
            *[(f"1/{seq}", "directory") for seq in (1, 2, 3, 4)],
            ("1/5", None),
        ]
        assert [item["place"] for item in await listed(peer, path="y")] == ["1/1", "1/4"]
        assert await listed(peer, path="never/was") == []


async def test_what_was_deleted_is_listed_with_where_it_last_was(tmp_path: Path) -> None:
    async with opened(tmp_path / "data", Remote()) as peer:
        await make_history(peer)
        everything = [(item["path"], item["place"]) for item in await listed(peer, deleted=True)]
        assert everything == [("a", "1/4"), ("a/new", "1/4"), ("a/z", "1/4"), ("y", "1/3")]
        assert [item["path"] for item in await listed(peer, deleted=True, path="a")] == ["a", "a/new", "a/z"]
        await peer.file(b"y", b"again")
        await peer.publish()
        assert "y" not in [item["path"] for item in await listed(peer, deleted=True)]


async def test_what_was_deleted_since_the_newest_snapshot_is_deleted_too(tmp_path: Path) -> None:
    async with opened(tmp_path / "data", Remote()) as peer:
        directory = peer.directory(b"d")
        for name in (b"goes", b"moves", b"stays"):
            await peer.file(name, name, directory)
        await peer.file(b"early", b"1")
        await peer.publish()
        peer.file_system.unlink(ROOT_INODE, b"early")
        await peer.publish()
        peer.file_system.unlink(directory, b"goes")
        peer.file_system.rename(directory, b"moves", ROOT_INODE, b"moved")
        await peer.file(b"early", b"again")

        async def gone(**more: object) -> list[tuple[str, str]]:
            return [(item["path"], item["place"]) for item in await listed(peer, deleted=True, **more)]

        assert await gone() == [("d/goes", "1/2")], "what is there again is not deleted, nor what was renamed"
        assert await gone(path="d/goes") == [("d/goes", "1/2")]
        assert await gone(path="d/stays") == []
        newest = peer.engine.history.known()[-1].time_ns
        assert await gone(until_ns=newest) == [("early", "1/1")], "what is said of then does not look at now"
        peer.file_system.unlink(directory, b"stays")
        peer.file_system.rmdir(ROOT_INODE, b"d")
        assert ("d", "1/2") in await gone() and ("d/stays", "1/2") in await gone()


async def test_trees_that_are_equal_are_not_looked_into(tmp_path: Path) -> None:
    async with opened(tmp_path / "data", Remote()) as peer:
        deep: int = ROOT_INODE
        for _ in range(5):
            deep = peer.directory(b"d", deep)
        await peer.file(b"x", b"", deep)
        for number in range(6):
            await peer.file(b"other%d" % number, b"")
            await peer.publish()
        history, asked = peer.engine.history, []
        find = history.find

        async def counted(*arguments: Any) -> Any:
            asked.append(arguments)
            return await find(*arguments)

        history.find = counted  # type: ignore[method-assign, assignment]
        found = await versions(history, b"d/d/d/d/d/x", history.known())
        assert len(found) == 1
        assert len(asked) == 6 + 5, "the way down once, and one look at the root of each"


class Counting(MemoryBackend):
    """Counts how often it is asked for a part of a pack."""

    gets = 0

    async def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        self.gets += key.startswith("packs/")
        return await super().get(key, offset, length)


async def test_a_fetched_node_brings_its_neighbours(tmp_path: Path) -> None:
    remote = Counting()
    async with opened(tmp_path / "data", remote) as peer:
        for number in range(60):
            folder = peer.directory(b"d%d" % number)
            await peer.file(b"file", b"%d" % number, folder)
        await peer.publish()
        evict_all(peer.engine)
        remote.gets, history = 0, peer.engine.history
        for number in range(60):
            assert await history.lookup(history.known()[0], b"d%d/file" % number) is not None
        assert remote.gets <= 2


async def test_what_a_list_has_told_is_remembered(tmp_path: Path) -> None:
    remote = Remote()
    async with opened(tmp_path / "data", remote) as peer:
        await make_history(peer)
        items = await listed(peer, changes=9)
        evict_all(peer.engine)
        peer.engine.history._decoded = DecodedNodes()
        remote.get = None  # type: ignore[method-assign, assignment]
        assert await listed(peer, changes=9) == items


async def test_a_comparison_with_now_that_gives_way_counts_nothing_twice(tmp_path: Path) -> None:
    async with opened(tmp_path / "data", Remote()) as peer:
        await make_history(peer)
        for name in (b"b", b"c"):
            await peer.file(name, b"1")
        once = await listed(peer, deleted=True), await compared(peer)
        examine = peer.engine.publisher.examine

        async def twice(question: Callable[[LiveTree], Any]) -> Any:
            await examine(question)
            return await examine(question)

        peer.engine.publisher.examine = twice  # type: ignore[method-assign]
        assert (await listed(peer, deleted=True), await compared(peer)) == once
        assert once[1]["stat"]["added"] == 2


async def compared(peer: Peer) -> dict[str, Any]:
    question = {"old": {"text": "latest"}, "new": {"text": "now"}}
    answer = await timetravel.answer(peer.engine, "diff", question, lambda done, total: None)
    return {**answer, "items": list(cast(Sequence[object], answer["items"]))}


@pytest.mark.parametrize("published", [True, False])
async def test_what_a_renamed_directory_brought_back_is_not_deleted(tmp_path: Path, published: bool) -> None:
    """Of a renamed directory only what differs is told: what it holds is there again under a path that was deleted."""
    async with opened(tmp_path / "data", Remote()) as peer:
        old, other = peer.directory(b"d"), peer.directory(b"e")
        deep = peer.directory(b"deep", old)
        for parent, names in ((old, (b"in", b"lost", b"off")), (deep, (b"x",)), (other, (b"in", b"off", b"out"))):
            for name in names:
                await peer.file(name, b"1", parent)
        await peer.file(b"x", b"2", peer.directory(b"deep", other))
        await peer.publish()
        peer.file_system.unlink(deep, b"x")
        peer.file_system.rmdir(old, b"deep")
        for name in (b"in", b"lost", b"off"):
            peer.file_system.unlink(old, name)
        peer.file_system.rmdir(ROOT_INODE, b"d")
        await peer.publish()
        peer.file_system.rename(ROOT_INODE, b"e", ROOT_INODE, b"d")
        peer.file_system.unlink(other, b"out")
        peer.file_system.unlink(other, b"off")
        if published:
            await peer.publish()
        found = [(item["path"], item["place"]) for item in await listed(peer, deleted=True)]
        assert [(path, place) for path, place in found if path.startswith("d")] == [("d/lost", "1/1"), ("d/off", "1/1")]
