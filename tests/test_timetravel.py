"""Questions to history as the commands ask them, on an engine without a mount."""

import time
from pathlib import Path
from typing import Any

import pytest
import trio

from syncer import timetravel
from syncer.errors import SyncerError, UsageError
from syncer.snapshots.moments import moment_of
from syncer.values import ROOT_INODE
from tests.snapshots.rig import Peer, Remote, opened


async def ask(peer: Peer, what: str, **question: object) -> dict[str, Any]:
    with trio.fail_after(60):
        return await timetravel.answer(peer.engine, what, question, lambda done, total: None)


def said(text: str) -> dict[str, object]:
    return {"text": text}


async def test_a_snapshot_with_a_label_is_taken_even_if_nothing_has_changed(tmp_path: Path) -> None:
    remote = Remote()
    async with opened(tmp_path / "data", remote) as peer:
        await peer.file(b"file", b"1")
        first = await ask(peer, "snapshot")
        assert await ask(peer, "snapshot") == first
        labelled = await ask(peer, "snapshot", label="as delivered")
        assert labelled["name"].endswith("_as delivered") and labelled["place"] == "1/2"
        assert [(shot.label, shot.reason) for shot in remote.snapshots()] == [
            (None, "manual"),
            ("as delivered", "manual"),
        ]
        assert remote.snapshots()[0].root == remote.snapshots()[1].root


@pytest.mark.parametrize("label", ["", " ", "a/b", "a\nb", "a\0b", "x" * 101, "latest", "now", "kept", "\udcff"])
async def test_a_label_that_cannot_be_is_refused(tmp_path: Path, label: str) -> None:
    remote = Remote()
    async with opened(tmp_path / "data", remote) as peer:
        await ask(peer, "snapshot", label="kept")
        with pytest.raises(UsageError):
            await ask(peer, "snapshot", label=label)
        assert len(remote.snapshots()) == 1


async def test_of_two_with_the_same_label_at_once_one_is_taken(tmp_path: Path) -> None:
    remote = Remote()
    refused = 0
    async with opened(tmp_path / "data", remote) as peer:

        async def take() -> None:
            nonlocal refused
            try:
                await ask(peer, "snapshot", label="one")
            except UsageError:
                refused += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(take)
            nursery.start_soon(take)
    assert refused == 1
    assert [shot.label for shot in remote.snapshots()] == ["one"]


async def test_a_snapshot_is_not_deleted_by_a_moment(tmp_path: Path) -> None:
    """A name with a slip in it is a moment, too, and the newest snapshot before it one that is to stay."""
    async with opened(tmp_path / "data", Remote()) as peer:
        kept = await ask(peer, "snapshot", label="kept")
        await ask(peer, "snapshot", label="other")
        await ask(peer, "snapshot", label="last")
        slip = {"text": "2038-01-01_00-00-00", "moment_ns": kept["time_ns"]}
        assert (await ask(peer, "diff", old=slip))["old"] == kept
        with pytest.raises(UsageError, match="no snapshot is called '2038-01-01_00-00-00'"):
            await ask(peer, "delete", snapshot=slip)
        assert (await ask(peer, "delete", snapshot=said("other")))["label"] == "other"
        assert (await ask(peer, "delete", snapshot=said(kept["name"])))["label"] == "kept"
        with pytest.raises(UsageError, match="newest snapshot stays"):
            await ask(peer, "delete", snapshot=said("latest"))


async def test_who_only_reads_asks_for_what_others_have_published(tmp_path: Path) -> None:
    """Else `latest` and `yesterday` would be what they were when it was mounted."""
    remote = Remote()
    async with opened(tmp_path / "data", remote) as peer:
        await peer.file(b"one", b"1")
        await ask(peer, "snapshot")
        async with opened(tmp_path / "other", remote, read_only=True) as reader:
            await peer.file(b"two", b"1")
            second = await ask(peer, "snapshot")
            await peer.file(b"three", b"1")
            third = await ask(peer, "snapshot")
            between = {"text": "some time ago", "moment_ns": third["time_ns"] - 1}
            answer = await ask(reader, "diff", old=between, new=said("latest"))
            assert (answer["old"]["id"], answer["new"]["id"]) == (second["id"], third["id"])


async def test_what_differs_from_now_is_told_without_publishing(tmp_path: Path) -> None:
    remote = Remote()
    async with opened(tmp_path / "data", remote) as peer:
        folder = peer.directory(b"folder")
        number = await peer.file(b"file", b"x" * 100_000, folder)
        await ask(peer, "snapshot", label="begin")
        await peer.write(number, 500, b"y")
        await peer.file(b"\xff\n", b"1", folder)
        objects = len(remote.objects)
        answer = await ask(peer, "diff", old=said("begin"))
        assert [(item["change"], item["path"]) for item in answer["items"]] == [
            ("modified", "folder/file"),
            ("added", "folder/\udcff\n"),
        ]
        assert answer["stat"] == {
            **{"added": 1, "removed": 0, "modified": 1, "renamed": 0, "more_bytes": 1, "fewer_bytes": 0}
        }
        assert answer["new"] is None and answer["old"]["label"] == "begin"
        assert len(remote.objects) == objects
        inside = await ask(peer, "diff", old=said("begin"), path="folder/file")
        assert [item["path"] for item in inside["items"]] == ["folder/file"]


async def test_a_path_that_neither_state_has_is_refused(tmp_path: Path) -> None:
    """Nothing to tell would look like nothing has changed, to somebody who has mistyped."""
    async with opened(tmp_path / "data", Remote()) as peer:
        await peer.file(b"old", b"1")
        await ask(peer, "snapshot", label="begin")
        peer.file_system.unlink(ROOT_INODE, b"old")
        gone = await ask(peer, "diff", old=said("begin"), path="old")
        assert [item["change"] for item in gone["items"]] == ["removed"]
        with pytest.raises(UsageError, match="folder/none is in neither"):
            await ask(peer, "diff", old=said("begin"), path="folder/none")
        with pytest.raises(UsageError, match=r"no snapshot is called 'begni', .*, and begni is in neither"):
            await ask(peer, "diff", old=said("begin"), new=said("begni"), path_unless="begni")


async def test_a_word_is_a_snapshot_or_else_a_path(tmp_path: Path) -> None:
    async with opened(tmp_path / "data", Remote()) as peer:
        await ask(peer, "snapshot", label="one")
        await peer.file(b"two", b"1")
        await peer.file(b"three", b"1")
        await ask(peer, "snapshot", label="two")
        await peer.file(b"four", b"1")

        async def paths(word: str) -> list[str]:
            new = {"text": word, "moment_ns": moment_of(word, time.time_ns())}
            found = await ask(peer, "diff", old=said("one"), new=new, path_unless=word)
            return [item["path"] for item in found["items"]]

        assert await paths("two") == ["three", "two"]
        assert await paths("three") == ["three"]
        for word in ("now", "Now", " NOW "):
            assert await paths(word) == ["four", "three", "two"]
        with pytest.raises(UsageError, match="this moment"):
            await ask(peer, "snapshot", label="NOW")


@pytest.mark.parametrize("word", ["now", "Now", " now"])
async def test_now_is_no_snapshot(tmp_path: Path, word: str) -> None:
    """Taken for the newest snapshot, it would say that nothing has changed since, and bring back what is older."""
    async with opened(tmp_path / "data", Remote()) as peer:
        number = await peer.file(b"file", b"1")
        await ask(peer, "snapshot", label="one")
        await peer.write(number, 0, b"2")
        moment = {"text": word, "moment_ns": time.time_ns()}
        with pytest.raises(UsageError, match="is no snapshot"):
            await ask(peer, "diff", old=moment, new=said("latest"))
        with pytest.raises(UsageError, match="is no snapshot"):
            await ask(peer, "restore", snapshot=moment, path="file")
        assert (await ask(peer, "diff", old=said("one")))["stat"]["modified"] == 1


async def test_the_live_tree_needs_no_network_to_be_compared(tmp_path: Path) -> None:
    remote = Remote()
    async with opened(tmp_path / "data", remote) as peer:
        for name in (b"a", b"b"):
            folder = peer.directory(name)
            for index in range(50):
                await peer.file(b"%d" % index, b"1", folder)
        await ask(peer, "snapshot", label="begin")
        await peer.file(b"new", b"1")
        await ask(peer, "diff", old=said("begin"))  # brings the snapshot's nodes here
        await peer.file(b"newer", b"1")
        remote.get = remote.put = remote.list = None  # type: ignore[assignment, method-assign]
        answer = await ask(peer, "diff", old=said("begin"))
        assert [item["path"] for item in answer["items"]] == ["new", "newer"]


async def test_a_request_that_makes_no_sense_is_refused(tmp_path: Path) -> None:
    async with opened(tmp_path / "data", Remote()) as peer:
        for question in ({}, {"snapshot": 1, "path": "x"}, {"snapshot": said("latest"), "path": None}):
            with pytest.raises(SyncerError):
                await timetravel.answer(peer.engine, "restore", question, lambda done, total: None)
        with pytest.raises(SyncerError):
            await timetravel.answer(peer.engine, "fly", {}, lambda done, total: None)
