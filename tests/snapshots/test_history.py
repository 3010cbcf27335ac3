"""Which snapshots there are and what is in them, from the local tables and from the remote."""

import stat
from pathlib import Path

import pytest
import trio

from syncer.errors import ObjectCorrupt
from syncer.snapshots.history import History, Snapshot
from syncer.snapshots.records import snapshot_key
from syncer.snapshots.tree import diff_directory
from syncer.values import PeerId, TreeId
from tests.snapshots.rig import Peer, Remote, opened
from tests.support.opened import evict_all


async def newest(history: History) -> Snapshot:
    return (await history.snapshots())[-1]


async def two_snapshots(peer: Peer) -> None:
    folder = peer.directory(b"folder")
    await peer.file(b"old", b"first", folder)
    await peer.publish()
    await peer.file(b"new", b"second", folder)
    await peer.publish(released=True)


async def test_a_writer_knows_its_own_snapshots_at_once(tmp_path: Path) -> None:
    remote = Remote()
    async with opened(tmp_path / "data", remote) as peer:
        assert not peer.engine.history.known()
        await two_snapshots(peer)
        found = peer.engine.history.known()
        assert [(shot.peer, shot.seq) for shot in found] == [(1, 1), (1, 2)]
        assert [(shot.root, shot.time_ns) for shot in found] == [(r.root, r.time_ns) for r in remote.snapshots()]
        assert found[1].parents == ((1, 1),)
        assert found[1].files == 2 and found[1].reason == "manual"


async def test_another_machine_learns_them_and_keeps_them(tmp_path: Path) -> None:
    remote = Remote()
    async with opened(tmp_path / "data", remote) as peer:
        await two_snapshots(peer)
        ids = [shot.id for shot in peer.engine.history.known()]
    async with opened(tmp_path / "other", remote, read_only=True) as peer:
        assert [shot.seq for shot in peer.engine.history.known()] == [2]
        assert [shot.id for shot in await peer.engine.history.snapshots()] == ids
    async with opened(tmp_path / "other", remote, read_only=True) as peer:
        assert [shot.id for shot in peer.engine.history.known()] == ids


async def test_the_order_is_that_of_history_whatever_the_clocks_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = Remote()
    async with opened(tmp_path / "data", remote) as peer:
        await two_snapshots(peer)
    monkeypatch.setattr("time.time_ns", lambda: 1_000)
    async with opened(tmp_path / "next", remote) as peer:
        await peer.file(b"later", b"")
        await peer.publish()
        found = await peer.engine.history.snapshots()
        assert [(shot.peer, shot.seq) for shot in found] == [(1, 1), (1, 2), (2, 1)]
        assert found[-1].time_ns == 1_000


async def test_without_the_remote_what_is_known_is_shown_in_time(tmp_path: Path) -> None:
    remote = Remote()
    async with opened(tmp_path / "data", remote) as peer:
        await two_snapshots(peer)

        async def silent(prefix: str = ""):  # type: ignore[no-untyped-def]
            if prefix:
                await trio.sleep_forever()
            yield prefix

        remote.list = silent  # type: ignore[method-assign]
        with trio.fail_after(5):
            assert len(await peer.engine.history.snapshots(wait_s=0.05)) == 2


async def test_what_was_deleted_is_forgotten_but_for_the_head(tmp_path: Path) -> None:
    remote = Remote()
    async with opened(tmp_path / "data", remote) as peer:
        await two_snapshots(peer)
        for seq in (1, 2):
            await remote.delete(snapshot_key(PeerId(1), seq))
        await peer.engine.history.refresh()
        assert [shot.seq for shot in peer.engine.history.known()] == [2]


async def test_what_a_listing_leaves_out_stays(tmp_path: Path) -> None:
    remote = Remote()
    async with opened(tmp_path / "data", remote) as peer:
        await two_snapshots(peer)
        listing, first = remote.list, snapshot_key(PeerId(1), 1)

        async def forgetful(prefix: str = ""):  # type: ignore[no-untyped-def]
            async for info in listing(prefix):
                if info.key != first:
                    yield info

        remote.list = forgetful  # type: ignore[method-assign]
        await peer.engine.history.refresh()
        assert len(peer.engine.history.known()) == 2


async def test_a_damaged_snapshot_is_left_out_and_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    remote = Remote()
    async with opened(tmp_path / "data", remote) as peer:
        await two_snapshots(peer)
    key = snapshot_key(PeerId(1), 1)
    remote.objects[key] = bytes(remote.objects[key][:-1]) + b"?"
    async with opened(tmp_path / "other", remote, read_only=True) as peer:
        for _ in range(2):
            await peer.engine.history.refresh()
        assert [shot.seq for shot in peer.engine.history.known()] == [2]
    assert caplog.text.count("a snapshot cannot be shown") == 1


async def test_paths_are_found_and_nodes_come_back(tmp_path: Path) -> None:
    async with opened(tmp_path / "data", Remote()) as peer:
        await two_snapshots(peer)
        history = peer.engine.history
        old, new = history.known()
        for _ in range(2):
            assert await history.lookup(old, b"folder/new") is None
            entry = await history.lookup(new, b"/folder//new")
            assert entry is not None and entry.size == 6
            assert await history.lookup(new, b"folder/new/below") is None
            top = await history.lookup(new, b"")
            assert top is not None and stat.S_ISDIR(top.mode)
            evict_all(peer.engine)


async def test_entries_come_in_pages(tmp_path: Path) -> None:
    async with opened(tmp_path / "data", Remote()) as peer:
        for number in range(600):
            await peer.file(b"%03d" % number, b"")
        await peer.publish()
        history = peer.engine.history
        top = await history.root(await newest(history))
        assert top.tree is not None
        for skip in (0, 1, 255, 300, 599, 600, 700):
            page = await history.entries(TreeId(top.tree), skip, 10)
            assert [entry.name for entry in page] == [b"%03d" % number for number in range(skip, min(600, skip + 10))]


async def test_a_thread_may_walk_trees(tmp_path: Path) -> None:
    async with opened(tmp_path / "data", Remote()) as peer:
        await two_snapshots(peer)
        history = peer.engine.history
        old, new = [await history.lookup(shot, b"folder") for shot in history.known()]
        assert old is not None and new is not None and old.tree and new.tree
        trees = TreeId(old.tree), TreeId(new.tree)
        changed = await trio.to_thread.run_sync(lambda: list(diff_directory(*trees, history.load)))
        assert [name for name, _, _ in changed] == [b"new"]


async def test_what_a_later_index_lists_is_learned(tmp_path: Path) -> None:
    remote = Remote()
    async with opened(tmp_path / "data", remote) as peer:
        await peer.file(b"one", b"1")
        await peer.publish()
        async with opened(tmp_path / "other", remote, read_only=True) as reader:
            await peer.file(b"two", b"2")
            await peer.publish()
            history = reader.engine.history
            entry = await history.lookup(await newest(history), b"two")
            assert entry is not None and entry.size == 1
            reader.meta.commit()


async def test_a_node_that_no_index_lists_is_an_error(tmp_path: Path) -> None:
    async with opened(tmp_path / "data", Remote()) as peer:
        await peer.publish()
        with pytest.raises(ObjectCorrupt, match="in no index"):
            await peer.engine.history.node(TreeId(bytes(32)))
