"""What somebody writes between the plan of a restoration and its work is in no snapshot: it is left, and named."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from syncer.fs.restorer import NEWER, Restorer
from syncer.fs.restoring import Report
from syncer.snapshots.history import Snapshot
from syncer.values import ROOT_INODE
from tests.fs.restoration import assert_same, remove, restore, snapshot
from tests.snapshots.rig import Peer, Remote, opened
from tests.support.core_check import check_tables

Change = Callable[[Peer], Awaitable[object]]


async def restored_beside(
    peer: Peer, shot: Snapshot, change: Change, monkeypatch: pytest.MonkeyPatch, **wishes: object
) -> Report:
    """Restore all of *shot*; *change* comes when everything is planned, and nothing is done yet."""
    run = Restorer.run

    async def late(restorer: Restorer, steps: object) -> None:
        await change(peer)
        await run(restorer, steps)  # type: ignore[arg-type]

    monkeypatch.setattr(Restorer, "run", late)
    try:
        return await restore(peer, shot, **wishes)  # type: ignore[arg-type]
    finally:
        monkeypatch.setattr(Restorer, "run", run)


async def contents(peer: Peer) -> dict[bytes, bytes | None]:
    peer.meta.commit()
    check_tables(peer.meta, set(peer.meta.inodes.orphans()))
    return {path: seen.content for path, seen in (await peer.picture_as_read()).items() if seen.content is not None}


def named(report: Report) -> list[bytes]:
    assert all(problem.reason == NEWER for problem in report.problems), report.problems
    return sorted(problem.path for problem in report.problems)


async def test_a_file_that_is_written_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(tmp_path / "data", Remote()) as peer:
        folder = peer.directory(b"d")
        number = await peer.file(b"f", b"old", folder)
        other = await peer.file(b"g", b"old", folder)
        shot = await snapshot(peer)
        await peer.write(number, 0, b"newer")
        await peer.write(other, 0, b"newer")
        report = await restored_beside(peer, shot, lambda peer: peer.write(number, 0, b"newest"), monkeypatch)
        assert named(report) == [b"d/f"]
        assert await contents(peer) == {b"/d/f": b"newest", b"/d/g": b"old"}
        assert not (await restore(peer, shot)).problems
        assert await contents(peer) == {b"/d/f": b"old", b"/d/g": b"old"}


async def test_a_file_that_is_made_where_one_was_missing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path / "data", Remote()) as peer:
        folder = peer.directory(b"d")
        await peer.file(b"f", b"old", folder)
        await peer.file(b"g", b"old", folder)
        shot = await snapshot(peer)
        remove(peer, b"/d")

        async def make(peer: Peer) -> None:
            await peer.file(b"f", b"newest", peer.directory(b"d"))

        report = await restored_beside(peer, shot, make, monkeypatch)
        assert named(report) == [b"d/f"]
        assert await contents(peer) == {b"/d/f": b"newest", b"/d/g": b"old"}


async def test_what_is_to_go_stays_when_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(tmp_path / "data", Remote()) as peer:
        await peer.file(b"f", b"old")
        shot = await snapshot(peer)
        inner = peer.directory(b"in", peer.directory(b"new"))
        for at in range(300):  # more than are looked at together
            await peer.file(b"%03d" % at, b"", inner)
        number = await peer.file(b"goes on", b"new", inner)

        async def write(peer: Peer) -> None:
            await peer.write(number, 0, b"newest")
            await peer.file(b"made", b"newest", inner)

        report = await restored_beside(peer, shot, write, monkeypatch, delete=True)
        assert named(report) == [b"new/in/goes on", b"new/in/made"]
        assert report.removed == 300
        assert await contents(peer) == {
            **{b"/f": b"old", b"/new/in/goes on": b"newest", b"/new/in/made": b"newest"},
        }
        assert not (await restore(peer, shot, delete=True)).problems
        assert await contents(peer) == {b"/f": b"old"}


async def test_hard_links_that_it_changes_itself_are_no_others_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each name of a file changes its time; the next one must not be taken for a change by somebody else."""
    async with opened(tmp_path / "data", Remote()) as peer:
        folder = peer.directory(b"d")
        number = await peer.file(b"one", b"old", folder)
        for name in (b"two", b"zwei"):
            peer.file_system.link(number, folder, name)
        shot, before = await snapshot(peer), peer.picture()

        async def nothing(peer: Peer) -> None:
            pass

        async def in_turn(change: Callable[[], Awaitable[object]]) -> None:
            await change()
            for delete in (False, True):
                report = await restored_beside(peer, shot, nothing, monkeypatch, delete=delete)
                assert not report.problems, report
            assert_same(await peer.picture_as_read(), before)

        await in_turn(lambda: peer.write(number, 0, b"written through one of them"))
        peer.file_system.unlink(folder, b"two")
        await in_turn(lambda: peer.file(b"two", b"another file", folder))
        peer.file_system.rename(folder, b"zwei", ROOT_INODE, b"elsewhere")
        await in_turn(lambda: peer.write(number, 1, b"again"))
        remove(peer, b"/d")
        await in_turn(lambda: peer.file(b"new", b"1"))


async def test_a_link_to_what_is_written_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name that is missing would get the inode that others write through its other name."""
    async with opened(tmp_path / "data", Remote()) as peer:
        number = await peer.file(b"one", b"old")
        peer.file_system.link(number, ROOT_INODE, b"two")
        shot = await snapshot(peer)
        peer.file_system.unlink(ROOT_INODE, b"two")
        report = await restored_beside(peer, shot, lambda peer: peer.write(number, 0, b"newest"), monkeypatch)
        assert named(report) == [b"two"]
        assert await contents(peer) == {b"/one": b"newest"}


@pytest.mark.parametrize("delete", [False, True])
async def test_what_is_written_between_two_names_of_a_file_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, delete: bool
) -> None:
    """With its first name the file is as it was; the time of change it has by then is the restoration's own."""
    async with opened(tmp_path / "data", Remote()) as peer:
        number = await peer.file(b"one", b"old")
        peer.file_system.link(number, ROOT_INODE, b"two")
        shot = await snapshot(peer)
        await peer.write(number, 0, b"newer")
        enter, entered = Restorer._enter_file, list[bytes]()

        async def watched(restorer: Restorer, parent: int, name: bytes, *rest: object) -> None:
            if entered:
                await peer.write(number, 0, b"newest")
            entered.append(name)
            await enter(restorer, parent, name, *rest)  # type: ignore[arg-type]

        monkeypatch.setattr(Restorer, "_enter_file", watched)
        report = await restore(peer, shot, delete=delete)
        assert sorted(entered) == [b"one", b"two"]
        assert not report.problems
        assert await contents(peer) == {b"/one": b"newest", b"/two": b"newest"}


async def test_a_time_of_change_that_is_to_come_is_no_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock was years ahead when the file was written."""
    async with opened(tmp_path / "data", Remote()) as peer:
        number = await peer.file(b"f", b"old")
        shot = await snapshot(peer)
        with monkeypatch.context() as ahead:
            ahead.setattr("time.time_ns", lambda: 4 * 10**18)
            await peer.write(number, 0, b"new")
        assert not (await restore(peer, shot)).problems
        assert await contents(peer) == {b"/f": b"old"}


async def test_a_file_that_is_open_without_a_name_stays_its_writers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path / "data", Remote()) as peer:
        number = await peer.file(b"f", b"old")
        shot = await snapshot(peer)
        handle = peer.file_system.open(number, 2)
        peer.file_system.unlink(ROOT_INODE, b"f")
        report = await restored_beside(
            peer, shot, lambda peer: peer.file_system.write(handle, 0, b"newest"), monkeypatch
        )
        assert not report.problems
        assert await peer.file_system.read(handle, 0, 100) == b"newest"
        assert await contents(peer) == {b"/f": b"old"}
        peer.file_system.release(handle)
