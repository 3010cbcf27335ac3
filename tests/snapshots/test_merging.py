"""Index objects are merged while snapshots are published: few of them remain, and nothing of what they say is lost."""

import random
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from syncer.backends.base import ObjectInfo
from syncer.backends.faulty import Fault, FaultyBackend
from syncer.backends.memory import MemoryBackend
from syncer.blocks.pack import parse_pack_key
from syncer.errors import ObjectCorrupt, RemoteRefused, SyncerError, WrongRepository
from syncer.meta.store import MetaStore
from syncer.snapshots import merging, reading
from syncer.snapshots.build import learn_packs
from syncer.snapshots.elsewhere import Elsewhere
from syncer.snapshots.inventory import take_inventory
from syncer.snapshots.merging import FULL_BYTES, MANY, how_many
from syncer.snapshots.records import IndexRecord, decode, index_key, parse_seq_key
from syncer.snapshots.retention import parse
from syncer.values import ROOT_INODE, PackId
from tests.snapshots.pruning import Moments, World, check_whole, prune
from tests.snapshots.rig import Peer, Remote, built_from, opened, same
from tests.support.long_form import LONG
from tests.support.remote_view import RemoteView, remote_findings

MINUTE_NS = 60 * 10**9
BOUND = MANY + merging.LOOK_EVERY + 8
DEFAULT = "last=2h,hourly=2d,daily=60d,weekly=2y,monthly=forever"


def indexes(remote: MemoryBackend) -> list[str]:
    return sorted(key for key in remote.objects if key.startswith("index/"))


def packs(remote: MemoryBackend) -> list[str]:
    return sorted(key for key in remote.objects if key.startswith("packs/"))


async def publications(world: World, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Snapshots a minute apart, each after something was changed, with what the housekeeper does after each."""
    begin = len(world.pictures)
    for number in range(begin, begin + count):
        now = 1_700_000_000 * 10**9 + number * MINUTE_NS
        monkeypatch.setattr("syncer.snapshots.publisher.time.time_ns", lambda now=now: now)
        await world.peer.file(b"f%05d" % number, random.Random(number).randbytes(3000))
        await world.publish()
        await world.peer.engine.thinner.thin(parse(DEFAULT))
        await world.peer.engine.merger.merge()


async def test_a_few_hundred_publications_leave_few_objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remote = Remote()
    async with opened(tmp_path / "data", remote) as peer:
        world = World(peer, remote, tmp_path)
        most = 0
        for _ in range(8 if LONG else 3):
            await publications(world, 150, monkeypatch)
            most = max(most, len(indexes(remote)))
        assert most <= BOUND, "the index objects grow with the publications"
        kept = len(peer.meta.snapshots.places())
        assert kept < 150
        await world.check()
        same(await built_from(remote, tmp_path / "new"), peer.picture())
        assert sum(key.startswith("index/") for key in remote.taken) < 1.2 * len(world.pictures)
        await prune(peer, DEFAULT)
        await world.check()
        assert not peer.meta.doomed.keys("", -1)
        same(await built_from(remote, tmp_path / "new"), peer.picture())
