"""Trees: the canonical, immutable encoding of directories and of long extent lists. docs/format.md, "Trees".

A directory is cut into leaf nodes after entries whose name's hash ends in zero bits, and lists of nodes likewise, so
that a change rewrites one node a level and equal directories have equal ids, however they came to be. The same is done
with the extents of big files, cut by block ids and addressed relative to their node, so that bytes inserted at the
front of a file change only the nodes at its front.

Pure: nodes come from a `load` function and go to an `emit` function. All sequences are sorted.
"""

import operator
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Annotated

import msgspec
from blake3 import blake3

from syncer.errors import ObjectCorrupt
from syncer.values import ID_BYTES, NAME_MAX_BYTES, TreeId

VERSION = 1
BITS_A_LEVEL = 8
"""A node ends where this many bits of a hash are zero: 256 entries on average."""
EXTENTS_INLINE = 64
"""Files with more extents than this get a tree of their own for them."""
EXTENTS_A_LEAF = 4096
"""An extent leaf ends here at the latest: one block repeated for ever may never end it by its id."""
NODE_MAX_BYTES = 8 * 1024 * 1024
DEPTH_MAX = 12

Load = Callable[[TreeId], bytes]
Emit = Callable[[TreeId, bytes], None]

# What is checked when a node is decoded: whatever a remote holds, the numbers fit the tables they go into.
_Id = Annotated[bytes, msgspec.Meta(min_length=ID_BYTES, max_length=ID_BYTES)]
_Name = Annotated[bytes, msgspec.Meta(max_length=NAME_MAX_BYTES)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
_Positive = Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]
_Time = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
_Mode = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF)]
_Owner = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF_FFFF)]
_Level = Annotated[int, msgspec.Meta(ge=1, le=64)]


class Extent(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """*length* bytes of the file at *start* are those at *offset* of the block. In a leaf *start* is relative to it."""

    start: _Count
    length: _Positive
    block: _Id
    offset: _Count


class Entry(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """A name with its inode. Times in nanoseconds; *target* of a symlink, *extents* of a file, *tree* of a directory
    or of a file whose extents are a tree."""

    name: _Name
    inode: _Positive
    mode: _Mode
    uid: _Owner
    gid: _Owner
    mtime_ns: _Time
    ctime_ns: _Time
    nlink: _Positive
    size: _Count
    rdev: _Count
    target: bytes | None
    xattrs: tuple[tuple[bytes, bytes], ...]
    extents: tuple[Extent, ...]
    tree: _Id | None


class DirectoryLeaf(msgspec.Struct, array_like=True, frozen=True, tag="dl", forbid_unknown_fields=True):
    version: int
    entries: tuple[Entry, ...]


class NameChild(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """A node below a branch: the last name in it, and how many entries."""

    last_name: _Name
    tree: _Id
    count: _Count


class DirectoryBranch(msgspec.Struct, array_like=True, frozen=True, tag="db", forbid_unknown_fields=True):
    version: int
    level: _Level
    children: tuple[NameChild, ...]


class ExtentLeaf(msgspec.Struct, array_like=True, frozen=True, tag="el", forbid_unknown_fields=True):
    version: int
    extents: tuple[Extent, ...]


class SpanChild(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """A node below an extent branch: how many bytes of the file it spans, and how many extents."""

    span: _Count
    tree: _Id
    count: _Count


class ExtentBranch(msgspec.Struct, array_like=True, frozen=True, tag="eb", forbid_unknown_fields=True):
    version: int
    level: _Level
    children: tuple[SpanChild, ...]


class Root(msgspec.Struct, array_like=True, frozen=True, tag="ro", forbid_unknown_fields=True):
    """The root of a snapshot: the root directory's own attributes (its name is empty) with its tree."""

    version: int
    entry: Entry


Node = DirectoryLeaf | DirectoryBranch | ExtentLeaf | ExtentBranch | Root
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Node)


def node_id(data: bytes) -> TreeId:
    return TreeId(blake3(data).digest())


def decode_node(data: bytes) -> Node:
    """Raises: ObjectCorrupt: it is no tree node of a version known here."""
    if len(data) > NODE_MAX_BYTES:
        raise ObjectCorrupt("a tree node is impossibly long")
    try:
        node: Node = _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ObjectCorrupt(f"a tree node cannot be decoded: {error}") from error
    if node.version != VERSION:
        raise ObjectCorrupt(f"a tree node has version {node.version}, which this syncer does not know")
    if isinstance(node, DirectoryLeaf):
        _check_names([entry.name for entry in node.entries])
    elif isinstance(node, DirectoryBranch):
        _check_names([child.last_name for child in node.children])
    return node


def _check_names(names: Sequence[bytes]) -> None:
    """Raises: ObjectCorrupt: they are not sorted, or no directory can hold them."""
    joined = b"".join(names)
    if b"/" in joined or b"\0" in joined or not {b"", b".", b".."}.isdisjoint(names):
        raise ObjectCorrupt("a directory's tree has an impossible name in it")
    if not all(map(operator.lt, names, names[1:])):
        raise ObjectCorrupt("a directory's tree is not in the order of its names")


def _emit(node: Node, emit: Emit) -> TreeId:
    data = _encoder.encode(node)
    tree = node_id(data)
    emit(tree, data)
    return tree


def _levels(digest: bytes) -> int:
    """How many levels of nodes end after something with this hash."""
    value = int.from_bytes(digest[:8], "little")
    return 64 // BITS_A_LEVEL if not value else ((value & -value).bit_length() - 1) // BITS_A_LEVEL


def boundary_level(name: bytes) -> int:
    """How many levels of nodes end after the entry *name*: 0 for most, 1 for one in 256."""
    return _levels(blake3(name).digest(8))


# --- directories ------------------------------------------------------------------------------------------------


def build_directory(entries: Iterable[Entry], emit: Emit) -> TreeId:
    """Emit the nodes of a directory with these *entries*, sorted by name, and return its tree."""
    return _join_leaves(list(_leaves(entries, emit)), emit)


def _leaves(entries: Iterable[Entry], emit: Emit) -> Iterator[NameChild]:
    group: list[Entry] = []
    for entry in entries:
        group.append(entry)
        if boundary_level(entry.name):
            yield _leaf(group, emit)
            group = []
    if group:
        yield _leaf(group, emit)


def _leaf(group: Sequence[Entry], emit: Emit) -> NameChild:
    return NameChild(group[-1].name, _emit(DirectoryLeaf(VERSION, tuple(group)), emit), len(group))


def _join_leaves(children: list[NameChild], emit: Emit) -> TreeId:
    """The root above a list of leaves."""
    if not children:
        return _emit(DirectoryLeaf(VERSION, ()), emit)
    level = 1
    while len(children) > 1:
        above: list[NameChild] = []
        group: list[NameChild] = []
        for child in children:
            group.append(child)
            if boundary_level(child.last_name) > level:
                above.append(_branch(level, group, emit))
                group = []
        if group:
            above.append(_branch(level, group, emit))
        children, level = above, level + 1
    return TreeId(children[0].tree)


def _branch(level: int, group: Sequence[NameChild], emit: Emit) -> NameChild:
    tree = _emit(DirectoryBranch(VERSION, level, tuple(group)), emit)
    return NameChild(group[-1].last_name, tree, sum(child.count for child in group))


def update_directory(root: TreeId, changes: Mapping[bytes, Entry | None], load: Load, emit: Emit) -> TreeId:
    """The tree of the directory *root* with *changes* (None removes a name).

    Loads and emits only what is on the way to a changed name; the result is what `build_directory` would give.
    """
    leaves = list(_leaf_refs(root, load))
    by_leaf: dict[int, dict[bytes, Entry | None]] = {}
    last_names = [leaf.last_name for leaf in leaves]
    for name, entry in changes.items():
        index = min(bisect_left(last_names, name), max(0, len(leaves) - 1))
        by_leaf.setdefault(index, {})[name] = entry
    result: list[NameChild] = []
    carried: list[Entry] = []
    for index, leaf in enumerate(leaves):
        here = by_leaf.get(index)
        if here is None and not carried:
            result.append(leaf)
            continue
        merged = {entry.name: entry for entry in _leaf_entries(TreeId(leaf.tree), load)}
        for name, entry in (here or {}).items():
            if entry is None:
                merged.pop(name, None)
            else:
                merged[name] = entry
        ordered = carried + [merged[name] for name in sorted(merged)]
        complete = _complete_part(ordered)
        result.extend(_leaves(ordered[:complete], emit))
        carried = ordered[complete:]
    if not leaves:
        carried = [entry for _, entry in sorted(changes.items()) if entry is not None]
    result.extend(_leaves(carried, emit))
    return _join_leaves(result, emit)


def _complete_part(entries: Sequence[Entry]) -> int:
    """How many of *entries* belong to leaves that end among them."""
    for count in range(len(entries), 0, -1):
        if boundary_level(entries[count - 1].name):
            return count
    return 0


def _leaf_refs(root: TreeId, load: Load, depth: int = 0) -> Iterator[NameChild]:
    node = decode_node(load(root))
    if isinstance(node, DirectoryLeaf):
        if node.entries:
            yield NameChild(node.entries[-1].name, root, len(node.entries))
        return
    for child in _name_children(node, depth):
        if isinstance(node, DirectoryBranch) and node.level == 1:
            yield child
        else:
            yield from _leaf_refs(TreeId(child.tree), load, depth + 1)


def _name_children(node: Node, depth: int) -> tuple[NameChild, ...]:
    if not isinstance(node, DirectoryBranch) or depth > DEPTH_MAX:
        raise ObjectCorrupt("a directory's tree has a node of another kind in it, or no end")
    return node.children


def _leaf_entries(tree: TreeId, load: Load) -> tuple[Entry, ...]:
    node = decode_node(load(tree))
    if not isinstance(node, DirectoryLeaf):
        raise ObjectCorrupt("a directory's tree has a node of another kind in it")
    return node.entries


def iter_directory(root: TreeId, load: Load, after: bytes | None = None) -> Iterator[Entry]:
    """The entries of a directory in the order of their names, those behind *after* if it is given."""
    for leaf in _leaf_refs(root, load):
        if after is None or leaf.last_name > after:
            for entry in _leaf_entries(TreeId(leaf.tree), load):
                if after is None or entry.name > after:
                    yield entry


def find_entry(root: TreeId, name: bytes, load: Load) -> Entry | None:
    """The entry *name*, loading one node a level."""
    tree = root
    for _ in range(DEPTH_MAX):
        node = decode_node(load(tree))
        if isinstance(node, DirectoryLeaf):
            return next((entry for entry in node.entries if entry.name == name), None)
        child = next((child for child in _name_children(node, 0) if child.last_name >= name), None)
        if child is None:
            return None
        tree = TreeId(child.tree)
    raise ObjectCorrupt("a directory's tree has no end")


# --- extents ----------------------------------------------------------------------------------------------------


def build_extents(extents: Iterable[Extent], emit: Emit) -> TreeId:
    """Emit the nodes for the extents of a file, in order, and return their tree."""
    children: list[tuple[SpanChild, int]] = []
    group: list[Extent] = []
    base = 0
    for extent in extents:
        group.append(Extent(extent.start - base, extent.length, extent.block, extent.offset))
        levels = _levels(extent.block)
        if levels or len(group) >= EXTENTS_A_LEAF:
            children.append((_extent_leaf(group, emit), levels))
            base, group = extent.start + extent.length, []
    if group or not children:
        children.append((_extent_leaf(group, emit), 0))
    level = 1
    while len(children) > 1:
        children, level = _extent_branches(children, level, emit), level + 1
    return TreeId(children[0][0].tree)


def _extent_leaf(group: Sequence[Extent], emit: Emit) -> SpanChild:
    span = group[-1].start + group[-1].length if group else 0
    return SpanChild(span, _emit(ExtentLeaf(VERSION, tuple(group)), emit), len(group))


def _extent_branches(children: list[tuple[SpanChild, int]], level: int, emit: Emit) -> list[tuple[SpanChild, int]]:
    above: list[tuple[SpanChild, int]] = []
    group: list[SpanChild] = []
    for position, (child, levels) in enumerate(children):
        group.append(child)
        if levels > level or len(group) >= EXTENTS_A_LEAF or position + 1 == len(children):
            tree = _emit(ExtentBranch(VERSION, level, tuple(group)), emit)
            span, count = sum(part.span for part in group), sum(part.count for part in group)
            above.append((SpanChild(span, tree, count), levels))
            group = []
    return above


def iter_extents(root: TreeId, load: Load, base: int = 0, depth: int = 0) -> Iterator[Extent]:
    """All extents of a file, with absolute starts.

    Raises: ObjectCorrupt.
    """
    node = decode_node(load(root))
    if isinstance(node, ExtentLeaf):
        for extent in node.extents:
            yield Extent(base + extent.start, extent.length, extent.block, extent.offset)
    elif isinstance(node, ExtentBranch) and depth <= DEPTH_MAX:
        for child in node.children:
            yield from iter_extents(TreeId(child.tree), load, base, depth + 1)
            base += child.span
    else:
        raise ObjectCorrupt("an extent tree has a node of another kind in it, or no end")


def encode_root(entry: Entry) -> bytes:
    """The root node of a snapshot."""
    return _encoder.encode(Root(VERSION, entry))


def load_root(root: TreeId, load: Load) -> Entry:
    """The root directory of a snapshot. Raises: ObjectCorrupt."""
    node = decode_node(load(root))
    if not isinstance(node, Root):
        raise ObjectCorrupt("a snapshot's root is no root")
    return node.entry
