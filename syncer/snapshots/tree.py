"""Directories as trees: built, changed, read and compared node by node. docs/format.md, "Trees".

A directory's entries, sorted by name, are cut into leaves by the hashes of their names, the leaves into branches and
so on (levels.py), so that a change rewrites one node a level and equal directories have equal ids, however they came
to be.

Pure: nodes come from a `load` function and go to an `emit` function. What `load` raises comes out. A tree that breaks
its own rules is ObjectCorrupt; entries that break the limits of nodes.py are ValueError.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial

import msgspec
from blake3 import blake3

from syncer.errors import ObjectCorrupt
from syncer.snapshots.levels import SHAPE, Levels, Shape, levels_ended, lowest_root
from syncer.snapshots.nodes import (
    VERSION,
    XATTRS_A_NODE_BYTES,
    XATTRS_INLINE_BYTES,
    DirectoryBranch,
    DirectoryLeaf,
    Emit,
    Entry,
    Load,
    NameChild,
    Root,
    XattrNode,
    decode_node,
    emit_node,
)
from syncer.values import XATTRS_MAX_BYTES, TreeId

_Directory = DirectoryLeaf | DirectoryBranch
_Levels = Levels[Entry, NameChild]


def boundary_level(name: bytes, shape: Shape = SHAPE) -> int:
    """On how many levels nodes end after the entry *name*: 0 for most, 1 for one in 256."""
    return levels_ended(blake3(name).digest(8), shape)


# --- building ---------------------------------------------------------------------------------------------------


def build_directory(entries: Iterable[Entry], emit: Emit, shape: Shape = SHAPE) -> TreeId:
    """Emit the nodes of a directory with these *entries* and return its tree.

    Holds one unfinished node a level, so that directories of any length can be built from an iterator.

    Raises:
        ValueError: the entries are not sorted by name, or one breaks a limit.
    """
    levels = _levels(emit, shape)
    before = b""
    for entry in entries:
        if entry.name <= before:
            raise ValueError(f"{entry.name!r} comes after {before!r}: entries must be sorted and have names")
        before = entry.name
        levels.add(_without_long_xattrs(entry, emit), boundary_level(entry.name, shape))
    found = levels.finish()
    return emit_node(DirectoryLeaf(VERSION, ()), emit) if found is None else TreeId(found[1].tree)


def _levels(emit: Emit, shape: Shape) -> _Levels:
    return Levels(partial(_leaf, emit), partial(_branch, emit), shape)


def _leaf(emit: Emit, entries: Sequence[Entry]) -> NameChild:
    return NameChild(entries[-1].name, emit_node(DirectoryLeaf(VERSION, tuple(entries)), emit), len(entries))


def _branch(emit: Emit, level: int, children: Sequence[NameChild]) -> NameChild:
    tree = emit_node(DirectoryBranch(VERSION, level, tuple(children)), emit)
    return NameChild(children[-1].last_name, tree, sum(child.count for child in children))


def build_root(entry: Entry, emit: Emit) -> TreeId:
    """Emit the root node of a snapshot: the root directory's own *entry*, without a name and with its tree.

    Raises: ValueError: it breaks a limit.
    """
    return emit_node(Root(VERSION, _without_long_xattrs(entry, emit)), emit)


def _without_long_xattrs(entry: Entry, emit: Emit) -> Entry:
    """The entry as a node holds it. Long attributes become a chain of nodes, its end first."""
    if not entry.xattrs or sum(len(name) + len(value) for name, value in entry.xattrs) <= XATTRS_INLINE_BYTES:
        return entry
    rest: TreeId | None = None
    for chunk in reversed(list(_chunks(entry.xattrs))):
        rest = emit_node(XattrNode(VERSION, chunk, rest), emit)
    return msgspec.structs.replace(entry, xattrs=(), xattr_tree=rest)


def _chunks(xattrs: Sequence[tuple[bytes, bytes]]) -> Iterator[tuple[tuple[bytes, bytes], ...]]:
    chunk: list[tuple[bytes, bytes]] = []
    size = 0
    for name, value in xattrs:
        chunk.append((name, value))
        size += len(name) + len(value)
        if size >= XATTRS_A_NODE_BYTES:
            yield tuple(chunk)
            chunk, size = [], 0
    if chunk:
        yield tuple(chunk)


# --- changing ---------------------------------------------------------------------------------------------------


def update_directory(
    root: TreeId, changes: Mapping[bytes, Entry | None], load: Load, emit: Emit, shape: Shape = SHAPE
) -> TreeId:
    """The tree of the directory *root* with *changes*; None removes a name, and may name what is not there.

    Loads the nodes on the way to a changed name, and neighbours as far as a cut has moved. Emits those that are new.
    The result is what `build_directory` would give.

    Raises:
        ValueError: an entry breaks a limit or stands under another name than its own.
    """
    ordered = sorted(changes.items())
    for name, entry in ordered:
        if entry is not None and entry.name != name:
            raise ValueError(f"the entry {entry.name!r} stands under {name!r}")
    if not ordered:
        return root
    change = _Change(load, emit, shape)
    change.merge(change.load(root), ordered)
    return change.finish()


_Changes = Sequence[tuple[bytes, Entry | None]]


class _Change:
    """One walk over an old tree that brings in changes, taking over what is between them."""

    def __init__(self, load: Load, emit: Emit, shape: Shape) -> None:
        self._load = load
        self._emit = emit
        self._shape = shape
        self._levels = _levels(self._emit_new, shape)
        self._loaded: set[TreeId] = set()
        self._made: set[TreeId] = set()

    def load(self, tree: TreeId) -> _Directory:
        self._loaded.add(tree)
        return _load_directory(tree, self._load)

    def _emit_new(self, tree: TreeId, data: bytes) -> None:
        self._made.add(tree)
        if tree not in self._loaded:
            self._emit(tree, data)

    def merge(self, node: _Directory, changes: _Changes) -> None:
        """Append what is below *node*, changed."""
        if isinstance(node, DirectoryLeaf):
            for entry in _merged(node.entries, changes):
                stored = _without_long_xattrs(entry, self._emit_new)
                self._levels.add(stored, boundary_level(entry.name, self._shape))
            return
        begin = 0
        for child in node.children:
            end = begin
            while end < len(changes) and (changes[end][0] <= child.last_name or child is node.children[-1]):
                end += 1
            self._merge_child(node.level, child, changes[begin:end])
            begin = end

    def _merge_child(self, level: int, child: NameChild, changes: _Changes) -> None:
        if not changes and self._levels.can_take(level):
            self._levels.take(level, child, boundary_level(child.last_name, self._shape))
        else:
            self._loaded.add(TreeId(child.tree))
            self.merge(_load_child(level, child, self._load), changes)

    def finish(self) -> TreeId:
        found = self._levels.finish()
        if found is None:
            return emit_node(DirectoryLeaf(VERSION, ()), self._emit_new)
        return TreeId(lowest_root(*found, self._taken_children).tree)

    def _taken_children(self, level: int, child: NameChild) -> Sequence[NameChild]:
        if TreeId(child.tree) in self._made:
            return ()
        node = _load_child(level, child, self._load)
        return () if isinstance(node, DirectoryLeaf) else node.children


def _merged(entries: Sequence[Entry], changes: _Changes) -> Iterable[Entry]:
    """*entries* with *changes*, both sorted, sorted."""
    if not changes:
        return entries
    merged = {entry.name: entry for entry in entries}
    for name, entry in changes:
        if entry is None:
            merged.pop(name, None)
        else:
            merged[name] = entry
    return (merged[name] for name in sorted(merged))


# --- reading ----------------------------------------------------------------------------------------------------


def _load_directory(tree: TreeId, load: Load) -> _Directory:
    node = decode_node(load(tree))
    if not isinstance(node, DirectoryLeaf | DirectoryBranch):
        raise ObjectCorrupt("a directory's tree has a node of another kind in it")
    return node


def _load_child(level: int, child: NameChild, load: Load) -> _Directory:
    """The node that is *child* of a branch of *level*, which must be as the branch says.

    Raises: ObjectCorrupt.
    """
    node = _load_directory(TreeId(child.tree), load)
    if isinstance(node, DirectoryLeaf):
        below, last = 0, node.entries[-1].name if node.entries else b""
        count = len(node.entries)
    else:
        below, last = node.level, node.children[-1].last_name
        count = sum(part.count for part in node.children)
    if (below, last, count) != (level - 1, child.last_name, child.count):
        raise ObjectCorrupt("a node of a directory's tree is not what the node above says")
    return node


def iter_directory(root: TreeId, load: Load, after: bytes = b"", skip: int = 0) -> Iterator[Entry]:
    """The entries of a directory in the order of their names: those behind *after*, and not the first *skip* of all.

    Loads each node when its first entry is asked for, and none that has only entries which are left out.
    """
    waiting: list[tuple[int, int, NameChild]] = []
    base, node = 0, _load_directory(root, load)
    while True:
        if isinstance(node, DirectoryLeaf):
            for entry in node.entries[max(0, skip - base) :]:
                if entry.name > after:
                    yield _with_long_xattrs(entry, load)
        else:
            waiting.extend(reversed(_wanted(node, base, after, skip)))
        if not waiting:
            return
        base, level, child = waiting.pop()
        node = _load_child(level, child, load)


def _wanted(node: DirectoryBranch, base: int, after: bytes, skip: int) -> list[tuple[int, int, NameChild]]:
    """(how many entries come before it, level of the branch, child) of the children with entries not left out."""
    found = []
    for child in node.children:
        if child.last_name > after and base + child.count > skip:
            found.append((base, node.level, child))
        base += child.count
    return found


def find_entry(root: TreeId, name: bytes, load: Load) -> Entry | None:
    """The entry *name*, None when there is none. Loads one node a level."""
    node = _load_directory(root, load)
    while isinstance(node, DirectoryBranch):
        child = next((child for child in node.children if child.last_name >= name), None)
        if child is None:
            return None
        node = _load_child(node.level, child, load)
    found = next((entry for entry in node.entries if entry.name == name), None)
    return None if found is None else _with_long_xattrs(found, load)


def load_root(root: TreeId, load: Load) -> Entry:
    """The root directory's own entry in a snapshot.

    Raises: ObjectCorrupt: it is no root of a snapshot.
    """
    node = decode_node(load(root))
    if not isinstance(node, Root):
        raise ObjectCorrupt("a snapshot's root is no root")
    return _with_long_xattrs(node.entry, load)


def _with_long_xattrs(entry: Entry, load: Load) -> Entry:
    """The entry as it was given, its long attributes fetched."""
    if entry.xattr_tree is None:
        return entry
    xattrs: list[tuple[bytes, bytes]] = list(entry.xattrs)
    rest: bytes | None = entry.xattr_tree
    total = 0
    while rest is not None:
        node = decode_node(load(TreeId(rest)))
        if not isinstance(node, XattrNode):
            raise ObjectCorrupt("a chain of extended attributes has a node of another kind in it")
        xattrs.extend(node.xattrs)
        total += sum(len(name) + len(value) for name, value in node.xattrs)
        if total > XATTRS_MAX_BYTES:
            raise ObjectCorrupt("a chain of extended attributes is longer than any can be")
        rest = node.rest
    return msgspec.structs.replace(entry, xattrs=tuple(xattrs), xattr_tree=None)


# --- comparing --------------------------------------------------------------------------------------------------


def diff_directory(a: TreeId, b: TreeId, load: Load) -> Iterator[tuple[bytes, Entry | None, Entry | None]]:
    """Each name whose entry differs between the directories *a* and *b*: (name, entry in a, entry in b), sorted.

    Loads only nodes that are not in both, and a few of their neighbours.
    """
    if a == b:
        return
    old, new = _Front(a, load), _Front(b, load)
    while True:
        _skip_equal(old, new)
        before, after = old.entry(), new.entry()
        if before is None and after is None:
            return
        name = min(entry.name for entry in (before, after) if entry is not None)
        before = before if before is not None and before.name == name else None
        after = after if after is not None and after.name == name else None
        if before is not None:
            old.drop()
        if after is not None:
            new.drop()
        if before != after:
            yield (
                name,
                None if before is None else _with_long_xattrs(before, load),
                None if after is None else _with_long_xattrs(after, load),
            )


class _Front:
    """A place on the way through a directory's entries: what is still ahead, its nodes opened as needed."""

    def __init__(self, root: TreeId, load: Load) -> None:
        self._load = load
        self._ahead: list[Entry | tuple[int, NameChild]] = []
        """The next last: entries, and nodes not opened yet with the level of the branch they are children of."""
        self._open(_load_directory(root, load))

    def _open(self, node: _Directory) -> None:
        if isinstance(node, DirectoryLeaf):
            self._ahead.extend(reversed(node.entries))
        else:
            self._ahead.extend((node.level, child) for child in reversed(node.children))

    def node(self) -> tuple[int, NameChild] | None:
        """The node that comes next, if a node does."""
        return self._ahead[-1] if self._ahead and isinstance(self._ahead[-1], tuple) else None

    def open(self) -> None:
        """Replace the next node by what is in it."""
        head = self._ahead.pop()
        assert isinstance(head, tuple)
        self._open(_load_child(*head, self._load))

    def drop(self) -> None:
        """Go past what comes next."""
        self._ahead.pop()

    def entry(self) -> Entry | None:
        """The next entry, opening the nodes before it; None at the end."""
        while self.node() is not None:
            self.open()
        head = self._ahead[-1] if self._ahead else None
        assert not isinstance(head, tuple)
        return head


def _skip_equal(old: _Front, new: _Front) -> None:
    """Go past equal nodes for as long as both have a node next, opening the higher of two that differ."""
    while (a := old.node()) is not None and (b := new.node()) is not None:
        if a[1].tree == b[1].tree:
            old.drop()
            new.drop()
        elif a[0] >= b[0]:
            old.open()
        else:
            new.open()
