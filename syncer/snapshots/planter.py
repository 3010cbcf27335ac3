"""Builds the trees of one moment from meta.db: only the directories below which something changed.

Runs in one thread, on a TreeReader's connection. Nodes the remote does not have are sealed and handed over pack by
pack, so that few are in memory.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from syncer.blocks.codec import seal
from syncer.blocks.pack import Pack, PackBuilder
from syncer.meta.snapshottable import DirectoryTree
from syncer.meta.treereader import TreeReader, TreeRow
from syncer.snapshots.extenttree import build_extents
from syncer.snapshots.nodes import EXTENTS_INLINE, Entry, Extent
from syncer.snapshots.tree import build_directory, build_root, update_directory
from syncer.values import ROOT_INODE, TREE, BlockId, TreeId

LARGE_ENTRIES = 2048
"""Directories with more entries than this are published by their changes."""


class _NodeMissing(Exception):
    """A node of a large directory is not cached here; the directory is built from its entries."""


@dataclass(slots=True)
class Planted:
    """What was built: the root, the trees of the directories that were looked at, and totals of the whole state."""

    root: TreeId
    files: int
    directories: int
    logical_bytes: int
    unique_bytes: int
    trees: dict[int, DirectoryTree]
    nodes: dict[TreeId, bytes]
    """Nodes of large directories, worth keeping here for the next publication."""


class GaveWay(Exception):
    """The building was ended, because what it reads from must not be held any longer."""


class Planter:
    def __init__(self, reader: TreeReader, generation: int, store: Callable[[Pack], None]) -> None:
        """*store* puts a pack on the remote and returns when it is there."""
        self._reader = reader
        self._generation = generation
        self._store = store
        self._builder = PackBuilder(TREE)
        self._emitted: set[TreeId] = set()
        self._trees: dict[int, DirectoryTree] = {}
        self._nodes: dict[TreeId, bytes] = {}
        self.unwanted = False
        """Set by another thread: `plant` is to end soon, with GaveWay."""

    def plant(self) -> Planted:
        """Build everything that changed, children before their parents, and the root above it.

        Raises: GaveWay.
        """
        parents = self._reader.affected(self._generation)
        for directory in _children_first(parents):
            self._trees[directory] = self._directory(directory)
        root = self._entry(self._reader.root(), self._trees[ROOT_INODE].id)
        root_id = build_root(root, self._emit)
        if len(self._builder):
            self._store(self._builder.finish())
        files, directories, logical_bytes, unique_bytes = self._reader.totals()
        return Planted(root_id, files, directories, logical_bytes, unique_bytes, self._trees, self._nodes)

    def _emit(self, tree: TreeId, data: bytes) -> None:
        if tree in self._emitted or self._reader.is_stored(tree):
            return
        self._emitted.add(tree)
        self._builder.add(BlockId(tree), seal(data), len(data))
        if self._builder.is_full:
            self._store(self._builder.finish())

    def _emit_kept(self, tree: TreeId, data: bytes) -> None:
        self._emit(tree, data)
        self._nodes[tree] = data

    def _directory(self, directory: int) -> DirectoryTree:
        published = self._reader.published(directory)
        large = self._reader.count(directory) > LARGE_ENTRIES
        if large and published is not None and published[1]:
            try:
                return DirectoryTree(self._update(directory, published[0]), True)
            except _NodeMissing:
                pass  # evicted meanwhile: cheaper to build than to fetch
        emit = self._emit_kept if large else self._emit
        return DirectoryTree(build_directory(self._entries(directory), emit), large)

    def _entries(self, directory: int) -> Iterator[Entry]:
        for row in self._reader.entries(directory):
            yield self._entry(row, self._tree_of(row))

    def _tree_of(self, row: TreeRow) -> TreeId | None:
        built = self._trees.get(row.inode)
        return row.tree if built is None else built.id

    def _entry(self, row: TreeRow, tree: TreeId | None) -> Entry:
        if self.unwanted:
            raise GaveWay
        extents = tuple(Extent(*extent) for extent in row.extents)
        if len(extents) > EXTENTS_INLINE:
            tree, extents = build_extents(extents, self._emit), ()
        return Entry(
            *(row.name, row.inode, row.mode, row.uid, row.gid, row.mtime_ns, row.ctime_ns, row.nlink, row.size),
            *(row.rdev, row.target, row.xattrs, extents, tree),
        )

    def _update(self, directory: int, root: TreeId) -> TreeId:
        changes: dict[bytes, Entry | None] = {}
        names = self._reader.changed_names(directory, self._generation)
        names.update(self._reader.names_of(directory, self._trees))
        for name in names:
            row = self._reader.entry(directory, name)
            changes[name] = None if row is None else self._entry(row, self._tree_of(row))
        return update_directory(root, changes, self._load, self._emit_kept)

    def _load(self, tree: TreeId) -> bytes:
        data = self._nodes.get(tree) or self._reader.node(tree)
        if data is None:
            raise _NodeMissing
        return data


def _children_first(parents: dict[int, int]) -> list[int]:
    """The directories of *parents* (each with its parent) in an order in which no parent precedes a child."""
    waiting: dict[int, int] = dict.fromkeys(parents, 0)
    for parent in parents.values():
        if parent in waiting:
            waiting[parent] += 1
    ready = [directory for directory, count in waiting.items() if not count]
    order: list[int] = []
    while ready:
        directory = ready.pop()
        order.append(directory)
        parent = parents[directory]
        if parent in waiting:
            waiting[parent] -= 1
            if not waiting[parent]:
                ready.append(parent)
    return order
