"""What makes packs of blocks and puts them: here, in threads, or in a process of its own (`porter.py`).

The uploader alone uses it. It decides what goes into a pack, and records where a pack went: a packer knows no tables.
"""

import errno
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import trio

from syncer.backends.base import Backend
from syncer.backends.confirmed import put_seen
from syncer.blocks.codec import block_id, seal
from syncer.blocks.pack import Pack, PackBuilder, pack_key
from syncer.meta.blocktable import block_file
from syncer.values import BlockId, PackId


@dataclass(frozen=True, slots=True)
class Parcel:
    """A block that is to go into a pack: its *size* bytes, or None where they are a file of the cache."""

    id: BlockId
    size: int
    data: bytes | None


class MadePack(ABC):
    """A pack that waits to be put. Whoever got it calls `drop` in the end: it takes memory until then."""

    id: PackId
    size_bytes: int
    locations: list[tuple[BlockId, int, int, int]]
    """(block id, offset, sealed length, plain length) of each block."""

    @abstractmethod
    async def put(self) -> None:
        """Return when the remote shows it with the right length. May be called again.

        Raises: BackendError; PorterLost: there is no telling what became of it, and it is gone here.
        """

    @abstractmethod
    def drop(self) -> None:
        """Forget it."""


class Packer(ABC):
    @abstractmethod
    async def make(self, parcels: Sequence[Parcel]) -> tuple[MadePack | None, list[int]]:
        """A pack of the blocks, each verified; None when there is nothing to put into one.

        Also the places in *parcels* of blocks that cannot be read here, or are not what their ids say.

        Raises: OSError: of the local disk; PorterLost.
        """


class LocalPacker(Packer):
    """Makes packs in a thread of this process, and puts them on *backend*."""

    def __init__(self, cache: Path, backend: Backend, level: int) -> None:
        """*cache* is the folder of the cache files, *level* zstd's."""
        self._cache = cache
        self._backend = backend
        self._level = level

    async def make(self, parcels: Sequence[Parcel]) -> tuple[MadePack | None, list[int]]:
        pack, unreadable = await trio.to_thread.run_sync(make_pack, self._cache, parcels, self._level)
        return (None if pack is None else _LocalPack(self._backend, pack)), unreadable


class _LocalPack(MadePack):
    def __init__(self, backend: Backend, pack: Pack) -> None:
        self._backend = backend
        self._data = pack.data
        self.id = pack.id
        self.size_bytes = len(pack.data)
        self.locations = pack.locations()

    async def put(self) -> None:
        await put_seen(self._backend, pack_key(self.id), self._data)

    def drop(self) -> None:
        self._data = memoryview(b"")


def make_pack(cache: Path, parcels: Sequence[Parcel], level: int) -> tuple[Pack | None, list[int]]:
    """Verify, seal and pack the blocks; also the places of those that cannot be read. For a thread. Raises: OSError."""
    builder = PackBuilder()
    unreadable: list[int] = []
    for place, parcel in enumerate(parcels):
        data = _read_file(cache, parcel.id) if parcel.data is None else parcel.data
        if data is None or block_id(data) != parcel.id:
            unreadable.append(place)
        else:
            builder.add(parcel.id, seal(data, level), len(data))
    return (builder.finish() if len(builder) else None), unreadable


def _read_file(cache: Path, block_id: BlockId) -> bytes | None:
    """The cache file; None when it is gone or cannot be read: the others must not be kept from leaving."""
    try:
        return block_file(cache, block_id).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return None
