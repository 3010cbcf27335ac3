"""The nodes that trees are made of: their fields, encodings and limits. docs/format.md, "Trees".

A node is a msgpack array [kind, version, fields in their order], stored and named like a block. What a node refers to
by a TreeId was emitted before it. Pure functions, safe in any thread.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated

import msgspec
from blake3 import blake3

from syncer.blocks.codec import PLAIN_MAX_BYTES
from syncer.errors import ObjectCorrupt
from syncer.values import ID_BYTES, NAME_MAX_BYTES, TreeId

VERSION = 1
NODE_MAX_BYTES = PLAIN_MAX_BYTES
"""The limits below keep every node well under this."""
ITEMS_MAX = 1024
"""No node holds more entries, extents or children."""
LEVEL_MAX = 64
EXTENTS_INLINE = 16
"""Files with more extents than this get a tree of their own for them, so that a leaf stays cheap to rewrite."""
XATTRS_INLINE_BYTES = 1024
"""Extended attributes whose names and values are longer together are kept in nodes of their own."""
XATTRS_A_NODE_BYTES = 1024 * 1024

Load = Callable[[TreeId], "bytes | Node"]
"""Returns the node of that id, encoded or not; what it raises ends the walk."""
Emit = Callable[[TreeId, bytes], None]
"""Takes an encoded node, each one after those it refers to."""

_Id = Annotated[bytes, msgspec.Meta(min_length=ID_BYTES, max_length=ID_BYTES)]
_Name = Annotated[bytes, msgspec.Meta(max_length=NAME_MAX_BYTES)]
_Mode = Annotated[int, msgspec.Meta(ge=0, le=0o177777)]
_U32 = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]
_Links = Annotated[int, msgspec.Meta(ge=1, le=2**32 - 1)]
_Natural = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
_Positive = Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]
_Signed = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
_Level = Annotated[int, msgspec.Meta(ge=1, le=LEVEL_MAX)]
_Target = Annotated[bytes, msgspec.Meta(min_length=1, max_length=4095)]
_Xattr = tuple[
    Annotated[bytes, msgspec.Meta(min_length=1, max_length=255)], Annotated[bytes, msgspec.Meta(max_length=2**20)]
]
_MANY = msgspec.Meta(max_length=ITEMS_MAX)
_SOME = msgspec.Meta(min_length=1, max_length=ITEMS_MAX)


class Extent(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """*length* bytes of the file at *start* are those at *offset* of the block; what no extent covers is a hole.

    In an extent leaf, *start* counts from the end of the extent before the leaf (see extenttree.py).
    """

    start: _Natural
    length: _Positive
    block: _Id
    offset: _Natural


class Entry(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """A name with its inode: all that stat shows but atime, and where the content is. Times in nanoseconds.

    *target* is a symlink's. A file has *extents*, or a *tree* of them when they are more than EXTENTS_INLINE; a
    directory's *tree* holds its entries, while its own attributes are here, with its name. *xattrs* are sorted by
    name. *xattr_tree* stands for them inside a node when they are long; entries given and returned have None.
    """

    name: _Name
    inode: _Positive
    mode: _Mode
    uid: _U32
    gid: _U32
    mtime_ns: _Signed
    ctime_ns: _Signed
    nlink: _Links
    size: _Natural
    rdev: _Natural
    target: _Target | None
    xattrs: tuple[_Xattr, ...]
    extents: Annotated[tuple[Extent, ...], msgspec.Meta(max_length=EXTENTS_INLINE)]
    tree: _Id | None
    xattr_tree: _Id | None = None


class NameChild(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """A node of a directory, seen from above: the last name below it, its id, how many entries are below it."""

    last_name: _Name
    tree: _Id
    count: _Positive


class SpanChild(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """A node of an extent tree, seen from above: how many bytes of the file it spans, its id, how many extents."""

    span: _Positive
    tree: _Id
    count: _Positive


class DirectoryLeaf(msgspec.Struct, array_like=True, frozen=True, tag="dl", forbid_unknown_fields=True):
    version: int
    entries: Annotated[tuple[Entry, ...], _MANY]


class DirectoryBranch(msgspec.Struct, array_like=True, frozen=True, tag="db", forbid_unknown_fields=True):
    """*level* is 1 above leaves, 2 above those, and so on."""

    version: int
    level: _Level
    children: Annotated[tuple[NameChild, ...], _SOME]


class ExtentLeaf(msgspec.Struct, array_like=True, frozen=True, tag="el", forbid_unknown_fields=True):
    version: int
    extents: Annotated[tuple[Extent, ...], _MANY]


class ExtentBranch(msgspec.Struct, array_like=True, frozen=True, tag="eb", forbid_unknown_fields=True):
    version: int
    level: _Level
    children: Annotated[tuple[SpanChild, ...], _SOME]


class XattrNode(msgspec.Struct, array_like=True, frozen=True, tag="xa", forbid_unknown_fields=True):
    """Long extended attributes of one inode: some, and the node with the rest of them."""

    version: int
    xattrs: tuple[_Xattr, ...]
    rest: _Id | None


class Root(msgspec.Struct, array_like=True, frozen=True, tag="ro", forbid_unknown_fields=True):
    """The root of a snapshot: the root directory's own entry, whose name is empty."""

    version: int
    entry: Entry


Node = DirectoryLeaf | DirectoryBranch | ExtentLeaf | ExtentBranch | XattrNode | Root
_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Node] = msgspec.msgpack.Decoder(Node)


def named_by(node: Node) -> Iterator[tuple[bytes, bool]]:
    """(id, whether it is a node's) of each block and node that the node names, some more than once."""
    match node:
        case Root():
            yield from _named_by_entry(node.entry)
        case DirectoryLeaf():
            for entry in node.entries:
                yield from _named_by_entry(entry)
        case DirectoryBranch() | ExtentBranch():
            for child in node.children:
                yield child.tree, True
        case ExtentLeaf():
            for extent in node.extents:
                yield extent.block, False
        case XattrNode():
            if node.rest is not None:
                yield node.rest, True


def names_in(data: bytes | memoryview) -> dict[bytes, bool]:
    """What `named_by` gives of an encoded node; what is named both ways counts as a node. Raises: ObjectCorrupt."""
    found: dict[bytes, bool] = {}
    for block_id, is_node in named_by(decode_node(data)):
        found[block_id] = is_node or found.get(block_id, False)
    return found


def _named_by_entry(entry: Entry) -> Iterator[tuple[bytes, bool]]:
    for extent in entry.extents:
        yield extent.block, False
    for tree in (entry.tree, entry.xattr_tree):
        if tree is not None:
            yield tree, True


def node_id(data: bytes) -> TreeId:
    """The id of an encoded node: BLAKE3-256 of its bytes."""
    return TreeId(blake3(data).digest())


def encode_node(node: Node) -> bytes:
    """The encoded form, which is sure to be readable again: what breaks a limit must not reach a remote.

    Raises:
        ValueError: the node breaks a limit or is not in order.
    """
    try:
        data = _encoder.encode(node)
        decode_node(data)
    except (OverflowError, ObjectCorrupt) as error:
        raise ValueError(f"a tree node would be unreadable: {error}") from error
    return data


def emit_node(node: Node, emit: Emit) -> TreeId:
    """Encode and emit a node. Raises: ValueError, as `encode_node`."""
    data = encode_node(node)
    tree = node_id(data)
    emit(tree, data)
    return tree


def decode_node(data: "bytes | memoryview | Node") -> Node:
    """The node in *data*: within the limits and in order, as every node that was written is. One that has been decoded
    before is taken as it is.

    Raises:
        ObjectCorrupt: it is no tree node of a version known here.
    """
    if isinstance(data, msgspec.Struct):
        return data
    if len(data) > NODE_MAX_BYTES:
        raise ObjectCorrupt("a tree node is impossibly long")
    try:
        node = _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ObjectCorrupt(f"a tree node cannot be decoded: {error}") from error
    if node.version != VERSION:
        raise ObjectCorrupt(
            f"a tree node has version {node.version}, which is not known here", hint="use a newer syncer"
        )
    _check(node)
    return node


def _check(node: Node) -> None:
    """What the types cannot say. Raises: ObjectCorrupt."""
    match node:
        case DirectoryLeaf():
            _check_ascending([entry.name for entry in node.entries])
            for entry in node.entries:
                if b"/" in entry.name or b"\0" in entry.name or entry.name in (b".", b".."):
                    raise ObjectCorrupt("a tree node has a name in it that no file can have")
                _check_entry(entry)
        case DirectoryBranch():
            _check_ascending([child.last_name for child in node.children])
        case ExtentLeaf():
            _check_extents(node.extents)
        case XattrNode():
            _check_ascending([name for name, _ in node.xattrs])
        case Root():
            _check_entry(node.entry)


def _check_ascending(names: Sequence[bytes]) -> None:
    before = b""
    for name in names:
        if name <= before:
            raise ObjectCorrupt("a tree node is out of order, or has an empty name in it")
        before = name


def _check_entry(entry: Entry) -> None:
    if entry.xattrs:
        _check_ascending([name for name, _ in entry.xattrs])
    if entry.extents:
        _check_extents(entry.extents)


def _check_extents(extents: Sequence[Extent]) -> None:
    end = 0
    for extent in extents:
        if extent.start < end:
            raise ObjectCorrupt("extents overlap or are out of order")
        end = extent.start + extent.length
    if end > 2**63 - 1:
        raise ObjectCorrupt("an extent reaches beyond the longest file there can be")
