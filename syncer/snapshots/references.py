"""Records what tree nodes name (meta/nodetable.py), and reads the nodes of which that is not known yet.

On the event loop, a slice at a time: nodes of 1,024 entries name thousands of blocks, and nobody is to wait for them.
"""

import itertools
from collections.abc import Mapping

import trio

from syncer.meta.store import MetaStore
from syncer.values import TreeId

SLICE = 256
"""So many names are looked up and recorded at once: a few milliseconds."""


async def note_names(meta: MetaStore, node: TreeId, names: Mapping[bytes, bool]) -> bool:
    """Record all that *node* names: ids, and whether each is a node's. False when some of it is not known here."""
    left = iter(names.items())
    while some := list(itertools.islice(left, SLICE)):
        meta.nodes.note(node, some)
        await trio.lowlevel.checkpoint()
    return meta.nodes.complete(node, len(names))
