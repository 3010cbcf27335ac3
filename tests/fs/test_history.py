"""What `.snapshots` shows, without a mount: every state as it was, numbers, names, and what an absent remote does."""

import contextlib
import errno
import os
import random
import stat
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import trio

from syncer.backends.memory import MemoryBackend
from syncer.errors import DeadlinePassed
from syncer.fs.history import LATEST, PAST, Hint, HistoryTree, Seen
from syncer.meta.snapshottable import KnownSnapshot
from syncer.snapshots import versions
from syncer.snapshots.decoded import DecodedNodes
from syncer.snapshots.records import SnapshotRecord, decode, encode, snapshot_key
from syncer.snapshots.repository import Membership
from syncer.snapshots.retention import parse
from syncer.values import ROOT_INODE, PeerId, TreeId
from tests.snapshots.pruning import prune
from tests.snapshots.rig import ME, Peer, Picture, Remote, opened, same
from tests.snapshots.rig import Seen as State
from tests.support.opened import GatedBackend, evict_all
from tests.support.opened import opened as engine_of


class Kernel:
    """Looks at history the way a kernel does: counts its look-ups, and gives them all back in the end."""

    def __init__(self, past: HistoryTree) -> None:
        self.past = past
        self.counts: dict[int, int] = {}

    def entrance(self, directory: int = ROOT_INODE) -> Seen:
        return self._took(self.past.entrance(directory))

    def _took(self, seen: Seen) -> Seen:
        self.past.looked_up(seen.number)
        self.counts[seen.number] = self.counts.get(seen.number, 0) + 1
        return seen

    async def find(self, parent: Seen, *names: bytes) -> Seen | None:
        seen: Seen | None = parent
        for name in names:
            if seen is None:
                return None
            seen = await self.past.lookup(seen.number, name)
            if seen is not None:
                self._took(seen)
        return seen

    async def need(self, parent: Seen, *names: bytes) -> Seen:
        seen = await self.find(parent, *names)
        assert seen is not None, names
        return seen

    async def list(self, directory: Seen, page: int = 5) -> dict[bytes, Seen]:
        handle = await self.past.opendir(directory.number)
        found: dict[bytes, Seen] = {}
        cookie = 0
        while entries := await self.past.entries(handle, cookie, page):
            taken = max(1, len(entries) - 1)  # as if the last one did not fit any more
            for name, seen, _ in entries[:taken]:
                assert name not in found
                found[name] = await self._ask(directory, name, seen) if isinstance(seen, Hint) else self._took(seen)
            self.past.unused([seen.number for _, seen, _ in entries[taken:]])
            cookie = entries[taken - 1][2]
        self.past.releasedir(handle)
        return found

    async def _ask(self, directory: Seen, name: bytes, hint: Hint) -> Seen:
        seen = await self.need(directory, name)
        assert (seen.number, stat.S_IFMT(seen.mode)) == hint
        return seen

    async def picture(self, top: Seen, inodes: dict[int, int]) -> Picture:
        """Everything below *top* as the rig's pictures have it; *inodes* gives the number of each there."""
        result: Picture = {b"": await self._state(top, inodes)}
        todo = [(b"", top)]
        while todo:
            path, directory = todo.pop()
            for name, seen in (await self.list(directory)).items():
                below = path + b"/" + name
                result[below] = await self._state(seen, inodes)
                if stat.S_ISDIR(seen.mode):
                    todo.append((below, seen))
        return result

    async def _state(self, seen: Seen, inodes: dict[int, int]) -> State:
        content = target = None
        if stat.S_ISREG(seen.mode):
            handle = await self.past.open(seen.number, 0)
            content = await self.past.read(handle, 0, seen.size + 1)
            self.past.release(handle)
        elif stat.S_ISLNK(seen.mode):
            target = await self.past.readlink(seen.number)
        attributes = (inodes.setdefault(seen.number, len(inodes)), seen.mode, seen.uid, seen.gid, seen.nlink, seen.size)
        times = seen.mtime_ns, seen.ctime_ns, seen.rdev
        xattrs = sorted((await self.past.xattrs(seen.number)).items())
        return State((*attributes, *times), target, tuple(xattrs), content)

    def forget_all(self) -> None:
        """Give everything back, the last first, as a kernel must: nothing of it may be kept then."""
        for number, count in reversed(self.counts.items()):
            self.past.forget([(number, count)])
        assert not self.past._nodes and not self.past._entrances and not self.past._recent


def renumbered(picture: Picture) -> Picture:
    """With inode numbers that only say which names are one file."""
    groups: dict[int, bytes] = {}
    for path in sorted(picture):
        groups.setdefault(picture[path].attributes[0], path)
    order = {number: index for index, number in enumerate(groups)}
    return {
        path: replace(state, attributes=(order[state.attributes[0]], *state.attributes[1:]))
        for path, state in picture.items()
    }


@pytest.mark.parametrize("seed", range(3))
async def test_every_snapshot_stays_as_it_was(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    pictures: list[Picture] = []
    async with opened(tmp_path / "data", Remote()) as peer:
        for _ in range(4):
            for _ in range(40):
                await peer.change(rng)
            pictures.append(peer.picture())
            await peer.publish()
        for _ in range(40):
            await peer.change(rng)
        for evicted in (False, True):
            kernel = Kernel(peer.engine.past)
            names = [name for name in await kernel.list(kernel.entrance()) if name != LATEST]
            assert len(names) == len(pictures)
            for name, picture in zip(names, pictures, strict=True):
                if evicted:
                    evict_all(peer.engine)
                top = await kernel.need(kernel.entrance(), name)
                same(renumbered(await kernel.picture(top, {})), renumbered(picture))
            kernel.forget_all()


async def make_album(peer: Peer) -> None:
    """Three snapshots: albums/old is made, something else changes, and then albums/old has another picture."""
    albums = peer.directory(b"albums")
    old = peer.directory(b"old", albums)
    await peer.file(b"one", b"1", old)
    await peer.publish()
    await peer.file(b"unrelated", b"")
    await peer.publish()
    await peer.file(b"two", b"2" * 300_000, old)
    await peer.publish()


async def test_a_directory_shows_the_snapshots_in_which_it_changed(tmp_path: Path) -> None:
    async with opened(tmp_path / "data", Remote()) as peer:
        await make_album(peer)
        kernel, walk = Kernel(peer.engine.past), {path: inode.number for path, inode in peer.walk()}
        everything = [name for name in await kernel.list(kernel.entrance()) if name != LATEST]
        entrance = kernel.entrance(walk[b"/albums/old"])
        listed = await kernel.list(entrance)
        assert list(listed) == [everything[0], everything[2], LATEST]
        assert await peer.engine.past.readlink(listed[LATEST].number) == everything[2]
        for name, expected in zip(everything, ({b"one"}, {b"one"}, {b"one", b"two"}), strict=True):
            assert set(await kernel.list(await kernel.need(entrance, name))) == expected, "unlisted, but there"
        kernel.forget_all()


async def test_snapshots_from_here_are_looked_at_without_the_remote(tmp_path: Path) -> None:
    remote = GatedBackend()
    async with engine_of(tmp_path / "data", remote) as engine:
        peer = Peer(engine, Membership(None))
        await make_album(peer)
        remote.gate, remote.asked = trio.Event(), trio.Event()
        kernel = Kernel(engine.past)
        entrance = kernel.entrance()
        for name in await kernel.list(entrance):
            await kernel.need(entrance, name)
        assert not remote.asked.is_set()
        kernel.forget_all()


async def test_several_snapshots_are_asked_for_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each may cost a round trip."""
    monkeypatch.setattr(versions, "STRETCH", 4)
    remote = Crowded()
    async with opened(tmp_path / "data", remote) as peer:
        directory, count = peer.directory(b"d"), 16
        for number in range(count):
            await peer.file(b"%d" % number, b"", directory)
            await peer.publish()
        evict_all(peer.engine)
        remote.most = 0
        kernel = Kernel(peer.engine.past)
        assert len(await kernel.list(kernel.entrance(directory))) == count + 1
        assert remote.most == 4
        kernel.forget_all()


class Crowded(MemoryBackend):
    """Knows how many have waited for it at once."""

    active = most = 0

    async def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        self.active += 1
        self.most = max(self.most, self.active)
        try:
            await trio.lowlevel.checkpoint()
            return await super().get(key, offset, length)
        finally:
            self.active -= 1


async def test_a_path_is_followed_and_not_a_file(tmp_path: Path) -> None:
    """Another directory of that name goes on where the first one ends; under its new name the first begins anew."""
    async with opened(tmp_path / "data", Remote()) as peer:
        first = peer.directory(b"a")
        await peer.file(b"x", b"", first)
        await peer.publish()
        peer.file_system.rename(ROOT_INODE, b"a", ROOT_INODE, b"b")
        await peer.publish()
        second = peer.directory(b"a")
        await peer.file(b"y", b"", second)
        await peer.publish()
        kernel = Kernel(peer.engine.past)
        one, two, three = [name for name in await kernel.list(kernel.entrance()) if name != LATEST]
        assert list(await kernel.list(kernel.entrance(second))) == [one, three, LATEST]
        assert list(await kernel.list(kernel.entrance(first))) == [two, LATEST]
        assert await kernel.find(kernel.entrance(second), two) is None
        kernel.forget_all()


async def test_numbers_are_history_s_own_and_hard_links_share_them(tmp_path: Path) -> None:
    async with opened(tmp_path / "data", Remote()) as peer:
        number = await peer.file(b"one", b"1")
        peer.file_system.link(number, peer.directory(b"below"), b"two")
        await peer.publish()
        await peer.publish(released=True)
        kernel = Kernel(peer.engine.past)
        tops = [await kernel.need(kernel.entrance(), name) for name in list(await kernel.list(kernel.entrance()))[:2]]
        one, again = [await kernel.need(top, b"one") for top in tops]
        two = await kernel.need(tops[0], b"below", b"two")
        assert one.number == two.number != again.number
        assert all(number >= PAST for number in kernel.counts)
        assert one == await peer.engine.past.getattr(one.number)
        kernel.forget_all()


async def test_snapshots_of_one_second_have_names_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(tmp_path / "data", Remote()) as peer:
        for number, time_ns in enumerate((1, 2, 2, 10**9)):
            monkeypatch.setattr("time.time_ns", lambda time_ns=time_ns: 1_700_000_000_000_000_000 + time_ns)
            await peer.file(b"%d" % number, b"")
            await peer.publish()
        kernel = Kernel(peer.engine.past)
        *names, plain, _ = await kernel.list(kernel.entrance())
        second = plain[:-1] + b"0"
        assert names == [second + b".000000001", second + b".000000002", second + b".000000002-2"]
        top = await kernel.need(kernel.entrance(), names[1])
        assert set(await kernel.list(top)) == {b"0", b"1"}
        one, _, three, _ = peer.engine.history.known()
        for other in (one, three):  # the second is left alone in its second, while somebody is on the way through it
            await peer.engine.thinner.delete(other)
        assert list(await kernel.list(kernel.entrance())) == [second, plain, LATEST]
        assert await kernel.need(kernel.entrance(), names[1]) == await kernel.need(kernel.entrance(), second) == top
        assert await kernel.find(kernel.entrance(), names[0]) is None


async def test_a_label_is_part_of_the_name(tmp_path: Path) -> None:
    remote = Remote()
    async with opened(tmp_path / "data", remote) as peer:
        await peer.file(b"x", b"")
        await peer.publish()
    record = decode(remote.objects[snapshot_key(PeerId(1), 1)], SnapshotRecord)
    labelled = SnapshotRecord(
        **{**{f: getattr(record, f) for f in record.__struct_fields__}, "seq": 7, "label": "a/b c"}
    )
    remote.objects[snapshot_key(PeerId(1), 7)] = encode(labelled)
    async with opened(tmp_path / "other", remote, read_only=True) as peer:
        kernel = Kernel(peer.engine.past)
        await peer.engine.history.refresh()
        first, second, _ = await kernel.list(kernel.entrance())
        assert second == first + b"_a-b c"


async def test_new_snapshots_appear_and_deleted_ones_vanish(tmp_path: Path) -> None:
    remote = Remote()
    async with opened(tmp_path / "data", remote) as peer:
        await make_album(peer)
        kernel = Kernel(peer.engine.past)
        names = list(await kernel.list(kernel.entrance()))
        top = await kernel.need(kernel.entrance(), names[0])
        await peer.file(b"more", b"")
        await peer.publish()
        assert len(await kernel.list(kernel.entrance())) == len(names) + 1
        await remote.delete(snapshot_key(PeerId(1), 1))
        await peer.engine.history.refresh()
        assert names[0] not in await kernel.list(kernel.entrance())
        assert await kernel.find(kernel.entrance(), names[0]) is None
        with pytest.raises(OSError, match="was deleted"):
            await peer.engine.past.getattr(top.number)


async def test_what_somebody_copies_from_is_not_thinned_out_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path / "data", Remote()) as peer:
        await make_album(peer)
        kernel, past, none = Kernel(peer.engine.past), peer.engine.past, parse("none")
        thinner, pruner = peer.engine.thinner, peer.engine.pruner
        first, second, *_ = await kernel.list(kernel.entrance())

        def left() -> list[int]:
            return [one.seq for one in peer.engine.history.known()]

        picture = await kernel.need(kernel.entrance(), first, b"albums", b"old", b"one")
        await kernel.need(kernel.entrance(), second)  # as `ls -l` does, which looks into none
        assert await thinner.thin(none) == 1
        await pruner.prune(none, lambda event: None, spare=thinner.in_use)
        assert left() == [1, 3]
        handle = await past.open(picture.number, os.O_RDONLY)
        monkeypatch.setattr("syncer.fs.history.IN_USE_S", -1.0)  # time goes by
        assert await thinner.thin(none) == 0
        past.release(handle)
        assert await thinner.thin(none) == 1
        assert left() == [3]


async def test_what_somebody_copies_from_goes_if_that_is_asked_for(tmp_path: Path) -> None:
    async with opened(tmp_path / "data", Remote()) as peer:
        await make_album(peer)
        kernel = Kernel(peer.engine.past)
        first, second, *_ = await kernel.list(kernel.entrance())
        for name in (first, second):
            await kernel.need(kernel.entrance(), name, b"albums")
        await peer.engine.thinner.delete(peer.engine.history.known()[0])
        await prune(peer)
        assert len(peer.engine.history.known()) == 1


async def test_ten_thousand_snapshots_are_listed_without_looking_into_one(tmp_path: Path) -> None:
    remote = GatedBackend()
    async with engine_of(tmp_path / "data", remote) as engine:
        await make_album(Peer(engine, Membership(None)))
        evict_all(engine)
        record = decode(remote.objects[snapshot_key(PeerId(1), 1)], SnapshotRecord)
        for seq in range(10, 10_010):
            time_ns = record.time_ns - seq * 60 * 10**9
            data = encode(msgspec.structs.replace(record, seq=seq, time_ns=time_ns))
            engine.meta.snapshots.remember(KnownSnapshot(PeerId(1), seq, TreeId(record.root), time_ns, data))
            remote.objects[snapshot_key(PeerId(1), seq)] = data
        remote.gate, remote.asked = trio.Event(), trio.Event()
        past = engine.past
        entrance = past.entrance(ROOT_INODE)
        past.looked_up(entrance.number)
        handle = await past.opendir(entrance.number)
        assert len(await past.entries(handle, 0, 256)) == 256
        assert len(past._nodes) == 1, "nothing was looked up"
        assert len(await past.entries(handle, 9_990, 256)) == 14, "any place in the list is as near"
        assert not remote.asked.is_set()
        past.releasedir(handle)
        again = encode(msgspec.structs.replace(record, seq=20_000, time_ns=record.time_ns + 1))
        engine.meta.snapshots.remember(KnownSnapshot(PeerId(1), 20_000, TreeId(record.root), record.time_ns + 1, again))
        asked: list[str] = []
        engine.meta.database.connection.set_trace_callback(asked.append)
        handle = await past.opendir(entrance.number)
        cookie = 0
        while entries := await past.entries(handle, cookie, 256):
            cookie = entries[-1][2]
        engine.meta.database.connection.set_trace_callback(None)
        assert cookie == 10_005
        assert ["20000" in line for line in asked if "record" in line] == [True], "no other one is read again"
        assert len(asked) < 10, asked
        past.releasedir(handle)


async def test_only_who_may_not_know_them_all_waits_for_the_remote(tmp_path: Path) -> None:
    remote = Remote()
    async with opened(tmp_path / "data", remote) as peer:
        assert peer.engine.history.was_listed, "nobody has taken one before"
        await make_album(peer)
        await peer.publish(released=True)
    async with opened(tmp_path / "next", remote) as peer:
        past = peer.engine.past
        assert not peer.engine.history.was_listed
        entrance = past.entrance(ROOT_INODE)
        past.looked_up(entrance.number)
        handle = await past.opendir(entrance.number)
        assert len(await past.entries(handle, 0, 256)) == 4 + 1
        past.releasedir(handle)
        assert peer.engine.history.was_listed


async def test_the_name_is_kept_for_history(tmp_path: Path) -> None:
    async with opened(tmp_path / "data", Remote()) as peer:
        number, name, system = await peer.file(b"file", b""), b".snapshots", peer.file_system
        peer.directory(b"folder")
        refused: list[tuple[int, Callable[[], object]]] = [
            (errno.EEXIST, lambda: system.create(ROOT_INODE, name, stat.S_IFREG | 0o644, ME)),
            (errno.EEXIST, lambda: peer.directory(name)),
            (errno.EEXIST, lambda: system.link(number, ROOT_INODE, name)),
            (errno.EEXIST, lambda: system.rename(ROOT_INODE, b"folder", ROOT_INODE, name)),
            (errno.EROFS, lambda: system.rename(ROOT_INODE, name, ROOT_INODE, b"other")),
            (errno.EROFS, lambda: system.exchange(ROOT_INODE, b"file", ROOT_INODE, name)),
            (errno.EROFS, lambda: system.unlink(ROOT_INODE, name)),
            (errno.EROFS, lambda: system.rmdir(ROOT_INODE, name)),
        ]
        for number, call in refused:
            with pytest.raises(OSError) as caught:
                call()
            assert caught.value.errno == number


async def test_a_name_from_before_is_a_name_like_any_other(tmp_path: Path) -> None:
    async with opened(tmp_path / "data", Remote()) as peer:
        peer.file_system.history_name = None
        inner = peer.directory(b".snapshots")
        await peer.file(b"mine", b"", inner)
        peer.file_system.history_name = b".snapshots"
        found = peer.file_system.names.lookup(ROOT_INODE, b".snapshots")
        assert found is not None and found.number == inner
        peer.file_system.unlink(inner, b"mine")
        peer.file_system.rename(ROOT_INODE, b".snapshots", ROOT_INODE, b"moved")
        with pytest.raises(FileExistsError):
            peer.directory(b".snapshots")


async def test_a_remote_that_says_nothing_ends_in_an_error_at_the_deadline(tmp_path: Path) -> None:
    remote = GatedBackend()
    async with engine_of(tmp_path / "data", remote, network_deadline_s=0.5) as engine:
        await make_album(Peer(engine, Membership(None)))
        kernel = Kernel(engine.past)
        listed = await kernel.list(kernel.entrance())
        evict_all(engine)
        remote.gate = trio.Event()
        begin = trio.current_time()
        with pytest.raises(DeadlinePassed):
            await engine.past.lookup(next(iter(listed.values())).number, b"albums")
        assert trio.current_time() - begin < 5
        assert list(await kernel.list(kernel.entrance())) == list(listed), "what is known needs no remote"


async def test_one_deadline_holds_for_all_that_a_call_waits_for(tmp_path: Path) -> None:
    class Slow(MemoryBackend):
        delay_s = 0.0

        async def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
            await trio.sleep(self.delay_s if key.startswith("packs/") else 0)
            return await super().get(key, offset, length)

    remote = Slow()
    async with engine_of(tmp_path / "data", remote, network_deadline_s=0.5) as engine:
        peer = Peer(engine, Membership(None))
        album = peer.directory(b"album")
        for number in range(8):
            await peer.file(b"%d" % number, b"", album)
            await peer.publish()
        entrance = Kernel(engine.past).entrance(album)
        evict_all(engine)
        engine.history._decoded = DecodedNodes()
        remote.delay_s = 0.35  # what a snapshot has comes in time, what all have does not
        begin = trio.current_time()
        with pytest.raises(DeadlinePassed):
            await engine.past.opendir(entrance.number)
        assert trio.current_time() - begin < 2
        with trio.fail_after(10):
            while True:  # what has come stays
                with contextlib.suppress(DeadlinePassed):
                    await engine.past.opendir(entrance.number)
                    break


async def test_a_signal_ends_the_wait(tmp_path: Path) -> None:
    remote = GatedBackend()
    async with engine_of(tmp_path / "data", remote) as engine:
        await make_album(Peer(engine, Membership(None)))
        kernel = Kernel(engine.past)
        listed = await kernel.list(kernel.entrance())
        evict_all(engine)
        remote.gate, remote.asked = trio.Event(), trio.Event()

        @contextlib.contextmanager
        def heard() -> Iterator[None]:
            with trio.CancelScope() as scope:
                scopes.append(scope)
                yield
            raise OSError(errno.EINTR, "interrupted")

        scopes: list[trio.CancelScope] = []
        engine.past.interruptible = heard
        async with trio.open_nursery() as nursery:

            async def look() -> None:
                with pytest.raises(InterruptedError):
                    await engine.past.lookup(next(iter(listed.values())).number, b"albums")

            nursery.start_soon(look)
            await remote.asked.wait()
            scopes[0].cancel()


async def test_a_long_sparse_file_is_read_anywhere(tmp_path: Path) -> None:
    """With so many extents that they have a tree of their own, and holes between them."""
    async with opened(tmp_path / "data", Remote()) as peer:
        number, chance = await peer.file(b"long", b""), random.Random(5)
        for place in range(700):
            await peer.write(number, place * 200_000, chance.randbytes(200))
        content = bytes(peer.contents[number])
        await peer.publish()
        peer.file_system.unlink(ROOT_INODE, b"long")
        await peer.publish()
        evict_all(peer.engine)
        kernel = Kernel(peer.engine.past)
        name = next(iter(await kernel.list(kernel.entrance())))
        seen = await kernel.need(kernel.entrance(), name, b"long")
        handle = await peer.engine.past.open(seen.number, 0)
        for offset in (0, 699 * 200_000, 1_000_000, 350 * 200_000 - 50, seen.size - 10, seen.size):
            assert await peer.engine.past.read(handle, offset, 200_100) == content[offset : offset + 200_100]
        for flags in (os.O_WRONLY, os.O_RDWR, os.O_TRUNC):
            with pytest.raises(OSError, match="cannot be changed"):
                await peer.engine.past.open(seen.number, flags)


async def test_two_who_read_a_long_file_through_one_handle_get_their_own_bytes(tmp_path: Path) -> None:
    """While one waits for its blocks the other has the extents of another stretch looked up."""
    async with opened(tmp_path / "data", Remote()) as peer:
        number, chance = await peer.file(b"long", b""), random.Random(6)
        for place in range(700):
            await peer.write(number, place * 200_000, chance.randbytes(200))
        content = bytes(peer.contents[number])
        await peer.publish()
        kernel = Kernel(peer.engine.past)
        name = next(iter(await kernel.list(kernel.entrance())))
        seen = await kernel.need(kernel.entrance(), name, b"long")
        handle = await peer.engine.past.open(seen.number, 0)

        async def read(offset: int) -> None:
            assert await peer.engine.past.read(handle, offset, 100_000) == content[offset : offset + 100_000], offset

        for _ in range(3):
            evict_all(peer.engine)
            async with trio.open_nursery() as nursery:
                for place in (0, 690, 10, 680):
                    nursery.start_soon(read, place * 200_000)


async def test_a_name_that_is_being_looked_up_is_not_let_go_by_a_listing(tmp_path: Path) -> None:
    """A listing of which the kernel did not take all gives back numbers that somebody else is about to be given."""
    remote = GatedBackend()
    async with engine_of(tmp_path / "data", remote) as engine:
        await make_album(Peer(engine, Membership(None)))
        past = engine.past
        entrance = past.entrance(ROOT_INODE)
        past.looked_up(entrance.number)
        name = next(iter(past._named()))
        evict_all(engine)
        engine.history._decoded = DecodedNodes()
        remote.gate, remote.asked = trio.Event(), trio.Event()
        async with trio.open_nursery() as nursery:

            async def look() -> None:
                seen = await past.lookup(entrance.number, name)
                assert seen is not None
                past.looked_up(seen.number)
                assert (await past.getattr(seen.number)).number == seen.number
                past.forget([(seen.number, 1)])

            nursery.start_soon(look)
            await remote.asked.wait()
            handle = await past.opendir(entrance.number)
            past.unused([seen.number for _, seen, _ in await past.entries(handle, 0, 100)])
            past.releasedir(handle)
            remote.gate.set()
        past.forget([(entrance.number, 1)])
        assert not past._nodes
