"""What a check has seen beside meta.db that a repair of it needs to know. Plain values."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

from syncer.values import BlockId, PackId


@dataclass(frozen=True, slots=True)
class Place:
    """Where the remote has a block that was found there: the pack, its size and kind, and the range in it."""

    pack: PackId
    pack_bytes: int
    kind: int
    offset: int
    sealed_bytes: int


@dataclass(slots=True, kw_only=True)
class Facts:
    """What the caller has seen in the folders and on the remote. Blocks by number.

    Attributes:
        dirty, cache: the files that are there, as `CheckReader.list_files` takes them.
        bad: blocks whose local copy is gone or wrong.
        sound: files of the cache that hold a block which does not count as cached.
        sizes: of blocks whose copy is sound, and not as long as was recorded.
        unsent: blocks that the remote should have and has not, with a sound copy here.
        lost_trees: packs with nodes of trees that the remote should have and has not.
        unlisted: packs that the next index must list.
        places: where the remote has blocks of which that was not known here.
        keep: saves bytes under a name in DATA/lost+found, durably.
    """

    dirty: Iterable[tuple[int, int]] = ()
    cache: Iterable[tuple[BlockId, int]] = ()
    bad: Collection[int] = ()
    sound: Collection[int] = ()
    sizes: Mapping[int, int] = field(default_factory=dict)
    unsent: Collection[int] = ()
    lost_trees: Collection[PackId] = ()
    unlisted: Collection[PackId] = ()
    places: Mapping[int, Place] = field(default_factory=dict)
    keep: Callable[[str, bytes], None] = lambda name, data: None
