"""What the kernel knows of a mount that follows: numbers, and the places they were met in last.

Used by following.py, on the event loop; `knows` and `in_use` by worker threads too.
"""

import itertools
from collections.abc import Callable, Iterator
from weakref import WeakValueDictionary

from syncer.errors import ObjectCorrupt
from syncer.fs.history import Seen
from syncer.fs.moving import Changes, Way, content_of
from syncer.snapshots.nodes import Entry
from syncer.values import ROOT_INODE, TreeId


def look_of(entry: Entry) -> int:
    """What tells whether the kernel was told another size or other times: a number, as there may be a million."""
    return hash((entry.size, entry.mtime_ns, entry.ctime_ns))


class Node:
    """Something the kernel has a number of. *parent* and *name* are the place it was met in last."""

    __slots__ = (
        *("content", "entry", "handles", "inode", "lookups", "name", "number", "parent"),
        *("revision", "said", "seen", "tree", "__weakref__"),
    )

    def __init__(self, number: int, inode: int, parent: "Node | None", name: bytes) -> None:
        self.number = number
        self.inode = inode
        self.parent = parent
        self.name = name
        self.lookups = 0
        self.handles = 0
        self.content: bytes | None = None
        """What the file held when it was last opened: what the pages are of that the kernel has, and all handles."""
        self.entry: Entry | None = None
        """While it is open: what it was like then."""
        self.tree: TreeId | None = None
        self.revision = -1
        """Of a directory: its tree, and of which state of the view that is."""
        self.seen: Seen | None = None
        """Of a directory: what it was said to be like."""
        self.said: int | None = None
        """The look of what the kernel was told last."""

    def fits(self, entry: Entry) -> bool:
        """Whether the kernel may know *entry*, of the same inode, by this number: not while others have it open."""
        return not self.handles or self.content == content_of(entry)


class Nodes:
    def __init__(self, new_number: Callable[[], int]) -> None:
        """*new_number* gives numbers that no inode has."""
        self._new_number = new_number
        self.root = Node(ROOT_INODE, ROOT_INODE, None, b"")
        self.root.lookups = 1
        self._nodes: dict[int, Node] = {ROOT_INODE: self.root}
        self._others: dict[int, list[Node]] = {}
        """By inode: what has a number of its own because another content of the file was open when it was met."""
        self._between: WeakValueDictionary[int, Node] = WeakValueDictionary()
        """Directories that the kernel has no number of, while something it has one of is below."""
        self.met_count = 0
        """How many there were so far: a higher number says that there are new ones."""

    def __contains__(self, number: int) -> bool:
        return number in self._nodes

    def __iter__(self) -> Iterator[Node]:
        return iter(self._nodes.values())

    def get(self, number: int) -> Node | None:
        return self._nodes.get(number)

    def of(self, inode: int) -> tuple[Node, ...]:
        """All that are this inode, the one whose number is the inode's first."""
        node = self._directory(inode)
        others = self._others.get(inode, ())
        return tuple(others) if node is None else (node, *others)

    def _directory(self, inode: int) -> Node | None:
        return self._nodes.get(inode) or self._between.get(inode)

    def knows(self, inode: int) -> bool:
        """Whether the kernel knows the inode by some number, or something below it."""
        return inode in self._nodes or inode in self._others or inode in self._between

    def in_use(self, inode: int) -> bool:
        """Whether somebody may use it without asking for its name: a file that is open, or any directory."""
        return inode in self._between or any(node.handles or node.seen is not None for node in self.of(inode))

    def meet(self, parent: Node, entry: Entry) -> Node:
        """The node of an entry of *parent*, as it is now. Raises: ObjectCorrupt: it cannot be there."""
        if entry.inode == ROOT_INODE:
            raise ObjectCorrupt("a directory has the root in it")
        found = next((node for node in self.of(entry.inode) if node.fits(entry)), None)
        if found is None:
            first = entry.inode not in self._nodes
            number = entry.inode if first else self._new_number()
            found = self._nodes[number] = Node(number, entry.inode, parent, entry.name)
            if not first:
                self._others.setdefault(entry.inode, []).append(found)
            self.met_count += 1
        elif self._between.pop(entry.inode, None) is not None:
            self._nodes[entry.inode] = found
            self.met_count += 1
        found.parent, found.name = parent, entry.name
        return found

    def moved(self, inode: int, way: Way) -> None:
        """The inode is where *way* leads to by now."""
        parent = self._directory(way[0][0])
        if parent is None:
            return  # forgotten meanwhile, and so is what was in it
        for (_, name), (below, _) in itertools.pairwise(way):
            above, parent = parent, self._directory(below)
            if parent is None:
                parent = self._between[below] = Node(below, below, above, name)
        for node in self.of(inode):
            node.parent, node.name = parent, way[-1][1]

    def forget(self, node: Node, count: int) -> None:
        """The kernel gives *count* look-ups back."""
        node.lookups -= count
        self.let_go(node)

    def let_go(self, node: Node) -> None:
        """Forget it if nobody has it any more."""
        if node.lookups > 0 or node.handles:
            return
        if self._nodes.pop(node.number, None) is not None and node.seen is not None:
            self._between[node.inode] = node
        others = self._others.get(node.inode, [])
        if node in others:
            others.remove(node)
            if not others:
                del self._others[node.inode]

    def everything(self) -> Changes:
        """What differs between two snapshots if it cannot be told what does."""
        found = Changes(inodes={node.inode for node in self})
        found.entries = [(node.parent.number, node.name) for node in self if node.parent is not None]
        return found
