"""A peer whose snapshots are remembered as pictures, pruned and compared with what the remote alone says."""

import contextlib
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import trio

from syncer.backends.memory import MemoryBackend
from syncer.fs.restoring import Request
from syncer.meta.doomtable import DoomTable
from syncer.snapshots.prune import UNLIMITED, Plan, Step
from syncer.snapshots.retention import parse
from tests.snapshots.rig import Peer, Picture, opened, same
from tests.support.core_check import check_tables
from tests.support.remote_view import RemoteView, remote_findings

Place = tuple[int, int]


def packs(remote: MemoryBackend) -> int:
    """Bytes of all packs."""
    return sum(len(data) for key, data in remote.objects.items() if key.startswith("packs/"))


async def prune(
    peer: Peer,
    policy: str = "none",
    *,
    dry_run: bool = False,
    rewrite: int = UNLIMITED,
    forget: str | None = None,
) -> Plan:
    with trio.fail_after(120):
        told: list[Step | Plan] = []
        plan = await peer.engine.pruner.prune(
            parse(policy), told.append, dry_run=dry_run, rewrite_max_bytes=rewrite, forget=forget
        )
        assert plan in told
        return plan


class World:
    """A peer on a remote, with the pictures of its snapshots."""

    def __init__(self, peer: Peer, remote: MemoryBackend, folder: Path) -> None:
        self.peer = peer
        self.remote = remote
        self.folder = folder
        self.pictures: dict[Place, Picture] = {}

    async def publish(self, label: str | None = None) -> None:
        picture = self.peer.picture()
        with trio.fail_after(60):
            await self.peer.engine.publisher.publish("manual", label=label)
        head = self.peer.meta.snapshots.head()
        assert head is not None
        self._keep((head.peer, head.seq), picture)

    def _keep(self, place: Place, picture: Picture) -> None:
        """Takes memory for what is not as in the picture before."""
        before = next(reversed(self.pictures.values()), {})
        shared = {path: old if (old := before.get(path)) == seen else seen for path, seen in picture.items()}
        self.pictures.setdefault(place, shared)

    async def check(self) -> None:
        """Every snapshot on the remote shows what was there, and nothing else is wrong."""
        check_whole(self.remote.objects, self.pictures)
        assert set(RemoteView(self.remote.objects).snapshots()) == set(self.peer.meta.snapshots.places())
        self.peer.meta.commit()
        check_tables(self.peer.meta, set(self.peer.meta.inodes.orphans()))
        found = await remote_findings(self.remote, self.peer.meta.database.path, self.folder)
        assert not found, found

    async def churn(self, rng: random.Random, rounds: int = 5) -> None:
        for _ in range(rounds):
            for _ in range(8):
                await self.peer.change(rng)
            await self.publish()

    async def delete(self, rng: random.Random) -> None:
        """Delete some of the snapshots, not the newest."""
        places = self.peer.meta.snapshots.places()
        for place in rng.sample(places[:-1], len(places) // 2):
            snapshot = next(one for one in self.peer.engine.history.known() if one.place == place)
            await self.peer.engine.thinner.delete(snapshot)

    async def restore(self, rng: random.Random) -> None:
        """Bring back the state of some snapshot, after which the file system shows just that."""
        snapshot = rng.choice(self.peer.engine.history.known())
        before = self.peer.picture()
        with trio.fail_after(60):
            report = await self.peer.engine.restoring.restore(Request(snapshot=snapshot, path=b"", delete=True))
        assert not report.problems, report.problems
        assert report.before is not None
        self._keep(report.before, before)
        now = await self.peer.picture_as_read()
        same(_undated(now), _undated(self.pictures[snapshot.place]))
        self.peer.contents = {
            one.attributes[0]: bytearray(one.content) for one in now.values() if one.content is not None
        }


def _undated(picture: Picture) -> Picture:
    """Without what a restoration changes: inode numbers that others have by now, and times of change."""
    return {
        path: replace(seen, attributes=(*seen.attributes[1:7], seen.attributes[8])) for path, seen in picture.items()
    }


def check_whole(objects: dict[str, bytes], pictures: dict[Place, Picture]) -> None:
    """Every snapshot among the objects shows what its picture does."""
    view = RemoteView(objects)
    for place, record in view.snapshots().items():
        same(view.picture(record.root), pictures[place])


@dataclass(frozen=True, slots=True)
class Moment:
    """What would be left if everything had ended just then."""

    what: str
    data: Path
    objects: dict[str, bytes]


@dataclass(slots=True)
class Moments:
    """Keeps moments: before and after each thing that a prune records, puts or deletes, if *wanted* says so."""

    data: Path
    remote: MemoryBackend
    wanted: Callable[[int], bool]
    kept: list[Moment] = field(default_factory=list)
    count: int = 0

    def come(self, what: str) -> None:
        if self.wanted(self.count):
            copy = self.data.with_name(f"{self.data.name}-moment{self.count}")
            shutil.copytree(self.data, copy)
            self.kept.append(Moment(what, copy, dict(self.remote.objects)))
        self.count += 1

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        before: list[tuple[type, str, object]] = []
        calls = [(DoomTable, name) for name in _RECORDED] + [(type(self.remote), name) for name in ("put", "delete")]
        for owner, name in calls:
            before.append((owner, name, getattr(owner, name)))
            setattr(owner, name, self._wrapped(getattr(owner, name), name, is_async=owner is not DoomTable))
        try:
            yield
        finally:
            for owner, name, method in before:
                setattr(owner, name, method)

    def _wrapped(self, method: Callable[..., object], name: str, *, is_async: bool) -> Callable[..., object]:
        async def call_async(*arguments: object) -> object:
            self.come(f"before {name} {arguments[1]}")
            result = await method(*arguments)  # type: ignore[misc]
            self.come(f"after {name} {arguments[1]}")
            return result

        def call(*arguments: object) -> object:
            self.come(f"before {name}")
            result = method(*arguments)
            self.come(f"after {name}")
            return result

        wrapped: Callable[..., object] = call_async if is_async else call
        return wrapped


_RECORDED = (
    *("drop_snapshots", "moved", "forget_blocks", "doom_packs", "list_again", "merged", "doom_indexes", "deleted"),
)


async def go_on(moment: Moment, pictures: dict[Place, Picture], folder: Path) -> None:
    """What was left at the moment is whole, and the next prune ends what had begun."""
    check_whole(moment.objects, pictures)
    remote = MemoryBackend()
    remote.objects = dict(moment.objects)
    async with opened(moment.data, remote) as peer:
        world = World(peer, remote, folder)
        world.pictures = dict(pictures)
        peer.meta.commit()
        found = await remote_findings(remote, peer.meta.database.path, folder)
        assert not found, (moment.what, found)
        await prune(peer)
        await world.check()
        assert not peer.meta.doomed.keys("", -1), moment.what
        assert len(RemoteView(remote.objects).snapshots()) == 1
        assert RemoteView(remote.objects).dead_share() < 0.2, moment.what
        newest = world.pictures[max(RemoteView(remote.objects).snapshots())]
        same(await peer.picture_as_read(), newest)
    shutil.rmtree(moment.data)
