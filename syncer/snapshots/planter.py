"""Builds the trees of one moment from meta.db: only the directories below which something changed.

Runs in one thread, on a TreeReader's connection. Nodes the remote does not have are sealed and handed over pack by
pack, so that few are in memory; extents are read one by one where they are many, and only where they changed.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from stat import S_ISDIR

from syncer.blocks.codec import seal
from syncer.blocks.pack import Pack, PackBuilder
from syncer.meta.snapshottable import DirectoryTree
from syncer.meta.treereader import TreeReader, TreeRow
from syncer.snapshots.extenttree import build_extents, update_extents
from syncer.snapshots.nodes import EXTENTS_INLINE, Entry, Extent, names_in
from syncer.snapshots.tree import build_directory, build_root, update_directory
from syncer.values import FILE_END_MAX, ROOT_INODE, TREE, BlockId, TreeId

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
    extents: dict[int, TreeId | None]
    """The extent trees of files whose extents changed; None where the extents are few."""
    nodes: dict[TreeId, bytes]
    """Nodes of large directories, and branches of extent trees: worth keeping here for the next publication. And the
    root, for who lists snapshots with their attributes."""


class GaveWay(Exception):
    """The building was ended, because what it reads from must not be held any longer."""


Names = Mapping[TreeId, Mapping[bytes, bool]]
"""What each of some nodes names: ids, and whether each is a node's."""


class Planter:
    def __init__(self, reader: TreeReader, generation: int, store: Callable[[Pack, Names], None]) -> None:
        """*store* puts a pack, whose nodes name what it is told, on the remote and returns when it is there."""
        self.reader = reader
        self._generation = generation
        self._store = store
        self._builder = PackBuilder(TREE)
        self._named: dict[TreeId, dict[bytes, bool]] = {}
        self._emitted: set[TreeId] = set()
        self._trees: dict[int, DirectoryTree] = {}
        self._extents: dict[int, TreeId | None] = {}
        self._nodes: dict[TreeId, bytes] = {}
        self.unwanted = False
        """Set by another thread: `plant` is to end soon, with GaveWay."""

    def plant(self) -> Planted:
        """Build everything that changed, children before their parents, and the root above it.

        Raises: GaveWay.
        """
        parents = self.reader.affected(self._generation)
        for directory in _children_first(parents):
            self._trees[directory] = self._directory(directory)
        root = self._entry(self.reader.root(), self._trees[ROOT_INODE].id)
        root_id = build_root(root, self._emit_kept)
        if len(self._builder):
            self._store_pack()
        files, directories, logical_bytes, unique_bytes = self.reader.totals()
        return Planted(
            *(root_id, files, directories, logical_bytes, unique_bytes, self._trees, self._extents, self._nodes)
        )

    def _emit(self, tree: TreeId, data: bytes) -> None:
        if tree in self._emitted or self.reader.is_stored(tree):
            return
        self._emitted.add(tree)
        self._builder.add(BlockId(tree), seal(data), len(data))
        self._named[tree] = names_in(data)
        if self._builder.is_full:
            self._store_pack()

    def _store_pack(self) -> None:
        named, self._named = self._named, {}
        self._store(self._builder.finish(), named)

    def _emit_kept(self, tree: TreeId, data: bytes) -> None:
        self._emit(tree, data)
        self._nodes[tree] = data

    def _directory(self, directory: int) -> DirectoryTree:
        published = self.reader.published(directory)
        large = self.reader.count(directory) > LARGE_ENTRIES
        if large and published is not None and published[1]:
            try:
                return DirectoryTree(self._update(directory, published[0]), True)
            except _NodeMissing:
                pass  # evicted meanwhile: cheaper to build than to fetch
        emit = self._emit_kept if large else self._emit
        return DirectoryTree(build_directory(self._entries(directory), emit), large)

    def _entries(self, directory: int) -> Iterator[Entry]:
        for row in self.reader.entries(directory, EXTENTS_INLINE):
            yield self._entry(row, self._tree_of(row))

    def _tree_of(self, row: TreeRow) -> TreeId | None:
        if S_ISDIR(row.mode):
            built = self._trees.get(row.inode)
            return row.tree if built is None else built.id
        return None if row.extents is not None else self._tree_of_file(row.inode, row.tree)

    def _tree_of_file(self, inode: int, published: TreeId | None) -> TreeId | None:
        """The tree of a file's extents; None where they are few."""
        if inode not in self._extents:
            changed = [] if published is None else self.reader.changed_ranges(inode, self._generation)
            if published is not None and not changed:
                return published
            self._extents[inode] = self._extent_tree(_File(self, inode), published, changed)
        return self._extents[inode]

    def _extent_tree(self, file: "_File", published: TreeId | None, changed: list[tuple[int, int]]) -> TreeId | None:
        if not self.reader.has_more_extents(file.inode, EXTENTS_INLINE):
            return None
        if published is not None:
            try:
                return update_extents(published, changed, file, self._load, self._emit, emit_branch=self._emit_kept)
            except _NodeMissing:
                pass  # evicted meanwhile, or never kept
        return build_extents(file.extents(), self._emit, emit_branch=self._emit_kept)

    def _entry(self, row: TreeRow, tree: TreeId | None) -> Entry:
        if self.unwanted:
            raise GaveWay
        extents: tuple[Extent, ...] = ()
        if row.extents is not None:
            extents = tuple(Extent(*extent) for extent in row.extents)
        elif tree is None:
            extents = tuple(_File(self, row.inode).extents())
        return Entry(
            *(row.name, row.inode, row.mode, row.uid, row.gid, row.mtime_ns, row.ctime_ns, row.nlink, row.size),
            *(row.rdev, row.target, row.xattrs, extents, tree),
        )

    def _update(self, directory: int, root: TreeId) -> TreeId:
        changes: dict[bytes, Entry | None] = {}
        names = self.reader.changed_names(directory, self._generation)
        names.update(self.reader.names_of(directory, self._trees))
        for name in names:
            row = self.reader.entry(directory, name, EXTENTS_INLINE)
            changes[name] = None if row is None else self._entry(row, self._tree_of(row))
        return update_directory(root, changes, self._load, self._emit_kept)

    def _load(self, tree: TreeId) -> bytes:
        data = self._nodes.get(tree) or self.reader.node(tree)
        if data is None:
            raise _NodeMissing
        return data


class _File:
    """The extents of one file, as `update_extents` wants them."""

    def __init__(self, planter: Planter, inode: int) -> None:
        self.inode = inode
        self._planter = planter

    def extents(self, start: int = 0, end: int = FILE_END_MAX) -> Iterator[Extent]:
        """Raises: GaveWay."""
        for row in self._planter.reader.extents(self.inode, start, end):
            if self._planter.unwanted:
                raise GaveWay
            yield Extent(*row)

    def last_block(self, end: int) -> BlockId:
        return self._planter.reader.last_block(self.inode, end)


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
