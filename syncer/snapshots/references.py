"""Records what tree nodes name (meta/nodetable.py), and reads the nodes of which that is not known yet.

On the event loop, a slice at a time: nodes of 1,024 entries name thousands of blocks, and nobody is to wait for them.
"""

import itertools
from collections import OrderedDict
from collections.abc import Mapping

import trio

from syncer.backends.base import Backend
from syncer.blocks.codec import open_sealed
from syncer.blocks.pack import pack_key
from syncer.errors import ObjectCorrupt
from syncer.meta.marks import UnreadNode
from syncer.meta.store import MetaStore
from syncer.snapshots.build import PACKS_KEPT, TREE_PACK_MAX_BYTES
from syncer.snapshots.inventory import HINT
from syncer.snapshots.nodes import names_in
from syncer.snapshots.reading import read_bounded
from syncer.values import BlockId, PackId, TreeId

SLICE = 256
"""So many names are looked up and recorded at once: a few milliseconds."""


async def note_names(meta: MetaStore, node: TreeId, names: Mapping[bytes, bool]) -> bool:
    """Record all that *node* names: ids, and whether each is a node's. False when some of it is not known here."""
    left = iter(names.items())
    while some := list(itertools.islice(left, SLICE)):
        meta.nodes.note(node, some)
        await trio.lowlevel.checkpoint()
    return meta.nodes.complete(node, len(names))


class NodeReader:
    """Reads nodes pack by pack, as they lie together, and records what they name."""

    def __init__(self, meta: MetaStore, backend: Backend) -> None:
        self._meta = meta
        self._backend = backend
        self._packs: OrderedDict[PackId, bytes] = OrderedDict()
        self.unknown = 0
        """How many names were of blocks that no index lists, nor anything here knows: they are lost."""

    async def read(self, node: UnreadNode) -> None:
        """Record what the node names, as far as it is known here.

        Raises: BackendError: the node cannot be read; ObjectCorrupt among them, or it names a node that is nowhere,
        and what is needed below that one cannot be told.
        """
        data = await self._pack(node.location.pack)
        names = await trio.to_thread.run_sync(_names, data, node)
        if not await note_names(self._meta, node.id, names):
            missing = self._meta.blocks.unknown(BlockId(name) for name, is_node in names.items() if is_node)
            if missing is not None:
                raise ObjectCorrupt(f"no index lists tree node {missing.hex()}, which a snapshot needs", hint=HINT)
            self.unknown += 1

    async def _pack(self, pack_id: PackId) -> bytes:
        pack = self._packs.get(pack_id)
        if pack is None:
            pack = await read_bounded(self._backend, pack_key(pack_id), TREE_PACK_MAX_BYTES)
            self._packs[pack_id] = pack
            if len(self._packs) > PACKS_KEPT:
                self._packs.popitem(last=False)
        self._packs.move_to_end(pack_id)
        return pack


def _names(pack: bytes, node: UnreadNode) -> dict[bytes, bool]:
    """Raises: ObjectCorrupt."""
    place = node.location
    return names_in(open_sealed(memoryview(pack)[place.offset : place.offset + place.length], node.id))
