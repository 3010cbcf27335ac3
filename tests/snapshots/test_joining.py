"""Joining a repository: who may write, what a new DATA is built from, and what is refused."""

from pathlib import Path

import pytest

from syncer.errors import ObjectCorrupt, ObjectMissing, RemoteUnreachable, SyncerError, WrongRepository
from syncer.snapshots.records import PeerRecord, decode, decode_format, peer_key
from syncer.values import ROOT_INODE, peer_of
from tests.snapshots.rig import Remote, built_from, opened, same

HELD = "writes to this repository"
REPLACED = "has taken over this repository"


def record(remote: Remote, peer: int) -> PeerRecord:
    return decode(remote.objects[peer_key(peer)], PeerRecord)


async def one_file(data: Path, remote: Remote, *, released: bool) -> None:
    """A first peer publishes a file of some content and goes."""
    async with opened(data, remote) as peer:
        await peer.file(b"file", b"content" * 50_000)
        await peer.publish(released=released)


async def test_the_first_machine_makes_the_repository(tmp_path: Path) -> None:
    remote = Remote()
    async with opened(tmp_path / "one", remote) as peer:
        assert peer.membership.read_only_reason is None
        assert sorted(remote.objects) == ["format", "peers/000001"]
        assert (record(remote, 1).after, record(remote, 1).forced) == ((), False)
        assert len(decode_format(remote.objects["format"]).repository) == 32
        assert peer_of(peer.file_system.getattr(await peer.file(b"file", b"")).number) == 1
        await peer.publish()
        assert [(s.peer, s.seq, s.parents, s.released) for s in remote.snapshots()] == [(1, 1, (), False)]


async def test_reading_alone_makes_nothing(tmp_path: Path) -> None:
    remote = Remote()
    with pytest.raises(WrongRepository, match="no repository"):
        async with opened(tmp_path / "one", remote, read_only=True):
            pass
    assert not remote.objects


async def test_packs_without_a_format_are_not_taken_for_an_empty_remote(tmp_path: Path) -> None:
    remote = Remote()
    await one_file(tmp_path / "one", remote, released=True)
    del remote.objects["format"]
    before = dict(remote.objects)
    with pytest.raises(WrongRepository, match="no format"):
        async with opened(tmp_path / "two", remote):
            pass
    assert remote.objects == before


async def test_a_repository_that_is_held_is_only_read(tmp_path: Path) -> None:
    remote = Remote()
    await one_file(tmp_path / "one", remote, released=False)
    before = dict(remote.objects)
    async with opened(tmp_path / "two", remote) as peer:
        assert HELD in (peer.membership.read_only_reason or "")
        with pytest.raises(OSError, match="read-only"):
            peer.directory(b"mine")
        await peer.picture_as_read()
    assert remote.objects == before


async def test_a_released_repository_changes_hands_and_comes_back(tmp_path: Path) -> None:
    remote = Remote()
    await one_file(tmp_path / "one", remote, released=True)
    async with opened(tmp_path / "two", remote) as second:
        assert second.membership.read_only_reason is None
        assert (record(remote, 2).after, record(remote, 2).forced) == (((1, 1),), False)
        assert peer_of(second.file_system.getattr(await second.file(b"second's", b"2")).number) == 2
        await second.publish()
        async with opened(tmp_path / "one", remote) as first:  # the old writer comes back
            assert REPLACED in (first.membership.read_only_reason or "")
        await second.publish(released=True)
    async with opened(tmp_path / "three", remote) as third:
        assert third.membership.read_only_reason is None and third.engine.publisher.released
        await third.publish()
    assert [(s.peer, s.seq, s.parents, s.released) for s in remote.snapshots()] == [
        (1, 1, (), True),
        (2, 1, ((1, 1),), False),
        (2, 2, ((2, 1),), True),
        (3, 1, ((2, 2),), False),
    ]


async def test_a_writer_that_is_replaced_publishes_nothing_more(tmp_path: Path) -> None:
    remote = Remote()
    async with opened(tmp_path / "one", remote) as first:
        await first.file(b"file", b"1")
        await first.publish()
        async with opened(tmp_path / "two", remote, take_over=True) as second:
            assert second.membership.read_only_reason is None
            assert (record(remote, 2).after, record(remote, 2).forced) == (((1, 1),), True)
            first.directory(b"too late")
            with pytest.raises(WrongRepository, match=REPLACED):
                await first.publish()
            await second.publish()
            expected = second.picture()
    assert [(s.peer, s.seq) for s in remote.snapshots()] == [(1, 1), (2, 1)]
    async with opened(tmp_path / "three", remote, read_only=True) as third:
        assert third.picture().keys() == expected.keys()


async def test_who_joined_a_released_repository_holds_it_before_publishing_anything(tmp_path: Path) -> None:
    remote = Remote()
    await one_file(tmp_path / "one", remote, released=True)
    async with opened(tmp_path / "two", remote):
        async with opened(tmp_path / "three", remote) as third:
            assert HELD in (third.membership.read_only_reason or "")
        async with opened(tmp_path / "one", remote) as first:
            assert REPLACED in (first.membership.read_only_reason or "")


async def test_who_joined_and_changed_nothing_releases_at_the_end_all_the_same(tmp_path: Path) -> None:
    remote = Remote()
    await one_file(tmp_path / "one", remote, released=True)
    async with opened(tmp_path / "two", remote) as second:
        await second.engine.put_down(30)
    async with opened(tmp_path / "three", remote) as third:
        assert third.membership.read_only_reason is None


async def test_writers_that_published_nothing_hand_on_what_they_began_with(tmp_path: Path) -> None:
    remote = Remote()
    await one_file(tmp_path / "one", remote, released=False)
    for name in ("two", "three", "four"):
        async with opened(tmp_path / name, remote, take_over=True) as peer:
            assert peer.file_system.names.lookup(ROOT_INODE, b"file") is not None, name
    assert [record(remote, peer).after for peer in (2, 3, 4)] == [((1, 1),), ((2, 0),), ((3, 0),)]


async def test_a_read_only_view_follows_its_repository(tmp_path: Path) -> None:
    remote = Remote()
    await one_file(tmp_path / "one", remote, released=False)
    first_view = await built_from(remote, tmp_path / "two")
    async with opened(tmp_path / "one", remote) as peer:
        peer.directory(b"later")
        await peer.publish()
    async with opened(tmp_path / "two", remote, read_only=True) as view:
        assert view.picture().keys() - first_view.keys() == {b"/later"}


async def test_data_of_another_repository_is_refused(tmp_path: Path) -> None:
    one, other = Remote(), Remote()
    await one_file(tmp_path / "one", one, released=True)
    await one_file(tmp_path / "other", other, released=True)
    before = dict(other.objects)
    for data in ("one", "view"):
        if data == "view":
            await built_from(one, tmp_path / data)
        with pytest.raises(WrongRepository, match="another repository"):
            async with opened(tmp_path / data, other):
                pass
    assert other.objects == before


async def test_nothing_is_sent_to_a_place_where_the_repository_is_not(tmp_path: Path) -> None:
    """A disk that is not plugged in leaves an empty folder; what went there would count as stored."""
    remote, empty = Remote(), Remote()
    await one_file(tmp_path / "one", remote, released=True)
    async with opened(tmp_path / "one", empty) as peer:
        assert peer.membership.read_only_reason is None, "no remote is no reason not to mount"
        peer.directory(b"made offline")
        with pytest.raises(RemoteUnreachable, match="not at memory now"):
            await peer.engine.uploader.verify()
        with pytest.raises(RemoteUnreachable, match="not at memory now"):
            await peer.publish()
    assert not empty.objects


# --- interrupted joins ------------------------------------------------------------------------------------------


async def test_a_machine_whose_join_was_answered_too_late_is_the_writer(tmp_path: Path) -> None:
    """The remote took the peer's record, and the answer was lost: the second try must not find a stranger's."""
    for released in (None, True):
        remote = Remote()
        if released:
            await one_file(tmp_path / "before", remote, released=True)
        peer = 2 if released else 1

        class Deaf(Remote):
            async def put(self, key: str, data: bytes | memoryview) -> None:
                await super().put(key, data)
                if key.startswith("peers/"):
                    raise RemoteUnreachable("the answer was lost")

        deaf = Deaf()
        deaf.objects = remote.objects
        data = tmp_path / f"one{released}"
        with pytest.raises(RemoteUnreachable):
            async with opened(data, deaf):
                pass
        assert peer_key(peer) in remote.objects
        async with opened(data, remote) as first:
            assert first.membership.read_only_reason is None
            assert first.meta.peer == peer and peer_key(peer + 1) not in remote.objects
            await first.file(b"mine", b"1")
            await first.publish()


async def test_a_repository_of_which_only_the_format_was_written_is_joined(tmp_path: Path) -> None:
    remote = Remote()
    await one_file(tmp_path / "one", remote, released=True)
    begun = Remote()
    begun.objects["format"] = remote.objects["format"]
    async with opened(tmp_path / "two", begun) as peer:
        assert peer.membership.read_only_reason is None and peer.meta.peer == 1


# --- what is missing or damaged ---------------------------------------------------------------------------------


def keys_under(remote: Remote, prefix: str) -> list[str]:
    return [key for key in remote.objects if key.startswith(prefix)]


@pytest.mark.parametrize("damage", ["missing", "cut", "flipped"])
@pytest.mark.parametrize("prefix", ["index/", "snapshots/", "peers/"])
async def test_a_lost_or_damaged_object_is_said_and_nothing_is_shown(tmp_path: Path, prefix: str, damage: str) -> None:
    """Except a lost snapshot or peer: who never saw it cannot know of it."""
    whole = Remote()
    await one_file(tmp_path / "one", whole, released=True)
    expected = await built_from(whole, tmp_path / "two")
    for key in keys_under(whole, prefix):
        remote = whole.copy()
        data = bytearray(remote.objects.pop(key))
        if damage != "missing":
            data[len(data) // 2] ^= 1
            remote.objects[key] = bytes(data if damage == "flipped" else data[: len(data) // 2])
        elif prefix != "index/":
            continue
        before = dict(remote.objects)
        with pytest.raises(ObjectCorrupt):
            async with opened(tmp_path / "three", remote):
                pass
        assert remote.objects == before
        same(await built_from(whole, tmp_path / "three"), expected)


async def test_a_missing_index_names_its_remedy(tmp_path: Path) -> None:
    remote = Remote()
    await one_file(tmp_path / "one", remote, released=True)
    for key in keys_under(remote, "index/"):
        del remote.objects[key]
    with pytest.raises(ObjectCorrupt) as caught:
        async with opened(tmp_path / "two", remote):
            pass
    assert "index objects are missing" in caught.value.hint


async def test_content_that_is_missing_or_damaged_is_an_error_and_never_zeros(tmp_path: Path) -> None:
    whole = Remote()
    await one_file(tmp_path / "one", whole, released=True)
    kinds: list[str] = []
    for key in keys_under(whole, "packs/"):
        for damaged in (False, True):
            remote = whole.copy()
            if damaged:
                remote.objects[key] = bytes(len(remote.objects[key]))
            else:
                del remote.objects[key]
            try:
                async with opened(tmp_path / f"{key[9:]} {damaged}", remote, read_only=True) as peer:
                    kinds.append("content")
                    with pytest.raises((SyncerError, OSError)):
                        await peer.picture_as_read()
            except (ObjectMissing, ObjectCorrupt):
                kinds.append("trees")
    assert sorted(kinds) == ["content", "content", "trees", "trees"]


@pytest.mark.parametrize("prefix", ["index/", "snapshots/", "peers/"])
async def test_an_object_under_the_key_of_another_is_corrupt(tmp_path: Path, prefix: str) -> None:
    remote = Remote()
    await one_file(tmp_path / "one", remote, released=True)
    async with opened(tmp_path / "two", remote) as peer:
        await peer.file(b"second", b"2")
        await peer.publish(released=True)
    first, *_, last = sorted(keys_under(remote, prefix))
    remote.objects[last] = remote.objects[first]
    with pytest.raises(ObjectCorrupt, match="another"):
        await built_from(remote, tmp_path / "three")
