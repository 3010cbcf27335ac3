"""The tree of a mount that follows the writer, without FUSE in it: read-only, and moving from snapshot to snapshot.

Files and directories have the inode numbers that they have at the writer, in every snapshot the same. What is kept of
each is the place it was met in, while the kernel knows it; what it is like is read from the tree of now. If its place
holds something else, that is ESTALE, and the kernel asks for the path anew.

An open file keeps its content, and the kernel keeps pages and sizes by number, so a number has one content while it is
open: whoever meets the file with another one gets a number of history's for it. Behind `.snapshots` is history.py's
tree. On the event loop's thread.
"""

import contextlib
import errno
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from stat import S_IFDIR, S_ISDIR, S_ISLNK, S_ISREG
from typing import TypeVar

import msgspec

from syncer.errors import RemoteUnreachable, SyncerError
from syncer.fs.filesystem import BLOCK_UNIT_BYTES, FileSystemStatus
from syncer.fs.followed import Node, Nodes, look_of
from syncer.fs.handles import O_ACCMODE, O_TRUNC
from syncer.fs.history import BRIEFLY_S, NEVER_S, RECENT, HistoryTree, Listed, Seen, bare, seen_of
from syncer.fs.moving import Changes, content_of
from syncer.fs.pastfile import PastFile, PastFiles
from syncer.snapshots.history import History, Place, Snapshot
from syncer.snapshots.nodes import Entry
from syncer.values import NAME_MAX_BYTES, ROOT_INODE, TreeId

T = TypeVar("T")

BELIEVED_S = 60.0
"""The kernel is told what has changed. An answer that was on its way just then is believed for no longer than this."""


class _File:
    """An open file, and the snapshot that has what it holds."""

    __slots__ = ("keeps_pages", "node", "past", "place")

    def __init__(self, node: Node, past: PastFile, place: Place, keeps_pages: bool) -> None:
        self.node = node
        self.past = past
        self.place = place
        self.keeps_pages = keeps_pages


class _Directory:
    """An open directory: the tree it had when its listing began, and the page that was read last.

    *place*: while the listing is under way, the snapshot that has that tree.
    """

    __slots__ = ("node", "page", "place", "skip", "tree")

    def __init__(self, node: Node, tree: TreeId | None) -> None:
        self.node = node
        self.tree = tree
        self.place: Place | None = None
        self.skip = 0
        self.page: Sequence[Entry] = ()


class FollowingTree:
    def __init__(self, history: History, files: PastFiles, history_name: bytes | None, uid: int, gid: int) -> None:
        """*uid* and *gid* own the root for as long as nothing can be shown."""
        self._history = history
        self._files = files
        self._history_name = history_name
        self._past = HistoryTree(history, files, self._directory_seen, self._path)
        self.nodes = Nodes(self._past.new_number)
        self._recent: OrderedDict[int, Entry] = OrderedDict()
        self._open: dict[int, _File] = {}
        self._directories: dict[int, _Directory] = {}
        self._freed: set[int] = set()
        """Inodes that have other numbers, too, and of which a file was closed lately."""
        self._moving = False
        self._revision = 0
        self.snapshot: Snapshot | None = None
        self.root = Entry(b"", ROOT_INODE, S_IFDIR | 0o555, uid, gid, 0, 0, 2, 0, 0, None, (), (), None)
        self.nodes.root.revision = 0

    # --- which snapshot ------------------------------------------------------------------------------------------

    @property
    def place(self) -> Place | None:
        return None if self.snapshot is None else self.snapshot.place

    @contextlib.contextmanager
    def moving(self) -> Iterator[None]:
        """While the block runs the kernel believes nothing that it is told: it may have changed before it is used."""
        self._moving = True
        try:
            yield
        finally:
            self._moving = False

    def show(self, snapshot: Snapshot, root: Entry, changes: Changes) -> tuple[list[tuple[int, bytes]], list[int]]:
        """Show another snapshot from now on. Returns what the kernel must forget: names in directories, attributes.

        *changes* is what differs from the one before, as far as the kernel knows it. ATOMIC.
        """
        for inode, way in changes.places.items():
            self.nodes.moved(inode, way)
        entries = list(changes.entries)
        for directory, name, inode in changes.contents:
            if any(node.handles for node in self.nodes.of(inode)):
                entries.append((directory, name))  # who comes by that name gets a number with the new content
        numbers = [node.number for inode in changes.inodes for node in self.nodes.of(inode)]
        self.snapshot, self.root = snapshot, root
        self._revision += 1
        self._recent.clear()
        self.nodes.root.tree = None if root.tree is None else TreeId(root.tree)
        self.nodes.root.revision = self._revision
        return entries, numbers

    async def needed(self) -> set[Place]:
        """The snapshots that what is shown, and all that is open, needs. What is as it was needs the one shown.

        Raises: nothing; of what cannot be told it is not believed that it is as it was.
        """
        for file in list(self._open.values()):
            with contextlib.suppress(OSError, SyncerError):
                if file.place != self.place and content_of(await self._now(file.node)) == content_of(file.past.entry):
                    file.place = self.place or file.place
        for directory in list(self._directories.values()):
            with contextlib.suppress(OSError, SyncerError):
                if directory.place not in (None, self.place) and await self._tree_now(directory.node) == directory.tree:
                    directory.place = self.place
        places = {self.place, *(file.place for file in self._open.values())}
        places.update(directory.place for directory in self._directories.values())
        return {place for place in places if place is not None}

    # --- numbers -------------------------------------------------------------------------------------------------

    def _meet(self, parent: Node, entry: Entry) -> Node:
        node = self.nodes.meet(parent, entry)
        self._keep(entry)
        return node

    def _keep(self, entry: Entry) -> None:
        self._recent[entry.inode] = entry
        if len(self._recent) > RECENT:
            self._recent.popitem(last=False)

    def looked_up(self, number: int) -> None:
        """The kernel was given the number once more."""
        node = self.nodes.get(number)
        if node is None:
            self._past.looked_up(number)
        else:
            node.lookups += 1

    def forget(self, items: Iterable[tuple[int, int]]) -> None:
        """The kernel gives back *count* look-ups of each (number, count)."""
        for number, count in items:
            node = self.nodes.get(number)
            if node is None:
                self._past.forget([(number, count)])
            else:
                self.nodes.forget(node, count)

    def unused(self, numbers: Iterable[int]) -> None:
        """The kernel was not given these after all, though they were meant for it."""
        for number in numbers:
            if (node := self.nodes.get(number)) is not None:
                node.said = None  # it may believe something older
                self.nodes.let_go(node)
            else:
                self._past.unused([number])

    # --- what is where -------------------------------------------------------------------------------------------

    async def _steadily(self, ask: Callable[[], Awaitable[T]]) -> T:
        """What *ask* answers of one snapshot: it is asked again if another one has come meanwhile."""
        while True:
            revision = self._revision
            try:
                found = await ask()
            except (OSError, SyncerError):
                if revision == self._revision:
                    raise
                continue
            if revision == self._revision:
                return found

    async def _tree(self, directory: Node) -> TreeId | None:
        """Of a directory now; None while nothing has ever been published.

        Raises: OSError ESTALE, ENOTDIR; RemoteUnreachable: it is not known what was published.
        """
        if self.snapshot is None and not self._history.is_empty:
            raise RemoteUnreachable("what the writer has published could not be read yet")
        way: list[Node] = []
        node = directory
        while node.revision != self._revision:
            assert node.parent is not None
            way.append(node)
            node = node.parent
        revision = self._revision
        for below in reversed(way):
            entry = await self._place(below, node.tree)
            if not S_ISDIR(entry.mode):
                raise OSError(errno.ENOTDIR, "not a directory")
            if revision != self._revision:
                raise _stale()
            below.tree, below.revision = None if entry.tree is None else TreeId(entry.tree), revision
            node = below
        return node.tree

    async def _place(self, node: Node, tree: TreeId | None) -> Entry:
        """What is in the place of *node*, if that is still the same inode; *tree* is its directory's."""
        entry = None if tree is None else await self._history.find(tree, node.name)
        if entry is None or entry.inode != node.inode:
            raise _stale()
        return entry

    async def _entry(self, node: Node) -> Entry:
        entry = self.root if node is self.nodes.root else self._recent.get(node.inode)
        if entry is None:
            assert node.parent is not None
            revision = self._revision
            entry = await self._place(node, await self._tree(node.parent))
            if revision == self._revision:
                self._keep(entry)
        return entry

    async def _now(self, node: Node) -> Entry:
        """What the inode is like now. Raises: OSError ESTALE, SyncerError."""
        return await self._steadily(lambda: self._entry(node))

    async def _tree_now(self, directory: Node) -> TreeId | None:
        return await self._steadily(lambda: self._tree(directory))

    async def _find(self, directory: Node, name: bytes) -> Entry | None:
        tree = await self._tree(directory)
        return None if tree is None else await self._history.find(tree, name)

    def _known(self, number: int) -> Node:
        """Raises: OSError ESTALE."""
        node = self.nodes.get(number)
        if node is None:
            raise _stale()
        return node

    def _path(self, number: int) -> bytes:
        """Where a directory is, from the root on. Raises: OSError ESTALE."""
        names: list[bytes] = []
        node = self._known(number)
        while node.parent is not None:
            names.append(node.name)
            node = node.parent
        return b"/".join(reversed(names))

    # --- names and attributes ------------------------------------------------------------------------------------

    @property
    def interruptible(self) -> Callable[[], contextlib.AbstractContextManager[None]]:
        """Around each call that may wait for the remote; a signal for the caller ends it with OSError EINTR."""
        return self._past.interruptible

    @interruptible.setter
    def interruptible(self, heard: Callable[[], contextlib.AbstractContextManager[None]]) -> None:
        self._past.interruptible = heard

    async def lookup(self, parent: int, name: bytes) -> Seen | None:
        """What *name* is, None when it is nothing. Raises: OSError, SyncerError."""
        directory = self.nodes.get(parent)
        if directory is None:
            return await self._past.lookup(parent, name)
        if len(name) > NAME_MAX_BYTES:
            raise OSError(errno.ENAMETOOLONG, "name too long")
        with self._past.waiting():
            if name in (b".", b".."):
                node = directory if name == b"." else directory.parent or directory
                return self._said(node, await self._now(node))
            entry = await self._steadily(lambda: self._find(directory, name))
        if entry is not None:
            return self._said(self._meet(directory, entry), entry)
        return self._past.entrance(parent) if name == self._history_name else None

    def absence_s(self, parent: int) -> float:
        """How long the kernel may believe that a name is not in the directory *parent*: one may come at any time."""
        return NEVER_S if parent in self.nodes else self._past.absence_s(parent)

    def _said(self, node: Node, entry: Entry, most_s: float = BELIEVED_S) -> Seen:
        """What the kernel is told, to be believed for *most_s* at most."""
        believed_s = NEVER_S if self._moving else most_s
        seen = seen_of(node.number, entry, believed_s, believed_s)
        if S_ISDIR(entry.mode):
            node.seen = seen
        node.said = look_of(entry)
        return seen

    async def _meant(self, node: Node) -> tuple[Entry, float]:
        """What its number stands for, and how long that may be believed: while it is open, and gone or another by now,
        what it was like then.

        Raises: OSError ESTALE, SyncerError.
        """
        try:
            with self._past.waiting():
                entry = await self._now(node)
        except OSError as error:
            if error.errno != errno.ESTALE or node.entry is None:
                raise
            return msgspec.structs.replace(node.entry, nlink=0), BRIEFLY_S
        if node.entry is not None and content_of(entry) != node.content:
            return node.entry, BRIEFLY_S
        return entry, BELIEVED_S

    def _directory_seen(self, number: int) -> Seen:
        """For history's entrances. Raises: OSError ESTALE."""
        seen = self._known(number).seen
        return seen_of(number, self.root, NEVER_S, NEVER_S) if seen is None else seen

    async def getattr(self, number: int) -> Seen:
        """Raises: OSError, SyncerError."""
        node = self.nodes.get(number)
        if node is None:
            return await self._past.getattr(number)
        return self._said(node, *await self._meant(node))

    async def readlink(self, number: int) -> bytes:
        """Raises: OSError, SyncerError."""
        if number not in self.nodes:
            return await self._past.readlink(number)
        with self._past.waiting():
            entry = await self._now(self._known(number))
        if not S_ISLNK(entry.mode) or entry.target is None:
            raise OSError(errno.EINVAL, "not a symlink")
        return entry.target

    async def xattrs(self, number: int) -> dict[bytes, bytes]:
        """All extended attributes; of a file that is open, and another by now, those of then."""
        if number not in self.nodes:
            return await self._past.xattrs(number)
        entry, _ = await self._meant(self._known(number))
        return dict(entry.xattrs)

    # --- directories ---------------------------------------------------------------------------------------------

    async def opendir(self, number: int) -> int:
        """A handle for `entries`. Raises: OSError."""
        if number not in self.nodes:
            return await self._past.opendir(number)
        node = self._known(number)
        with self._past.waiting():
            tree = await self._tree_now(node)
        handle = self._past.new_number()
        self._directories[handle] = _Directory(node, tree)
        return handle

    def releasedir(self, handle: int) -> None:
        if self._directories.pop(handle, None) is None:
            self._past.releasedir(handle)

    def dots(self, handle: int) -> tuple[Seen, Seen]:
        """What `.` and `..` are in an open directory, as far as a listing shows it."""
        directory = self._directories.get(handle)
        if directory is None:
            return self._past.dots(handle)
        node = directory.node
        return bare(node.number), bare((node.parent or node).number)

    async def entries(self, handle: int, after: int, limit: int) -> list[Listed]:
        """Up to *limit* entries of an open directory after the cookie *after* (0: as it is now, from the begin on).

        Names and their order are those of when the listing began; what they lead to is what is there now. Who does
        not pass them on says so with `unused`. Raises: OSError, SyncerError.
        """
        directory = self._directories.get(handle)
        if directory is None:
            return await self._past.entries(handle, after, limit)
        with self._past.waiting():
            if after == 0:
                directory.tree = await self._tree_now(directory.node)
                directory.place, directory.page = self.place, ()
            found, passed = await self._page_now(directory, after, limit)
            while passed and not found:
                after += passed
                found, passed = await self._page_now(directory, after, limit)
        if not passed:
            directory.place = None
        # ATOMIC up to the answer: nobody lets go of a new number.
        return [(entry.name, self._said(self._meet(directory.node, entry), entry), cookie) for cookie, entry in found]

    async def _page_now(self, directory: _Directory, after: int, limit: int) -> tuple[list[tuple[int, Entry]], int]:
        """Entries with their cookies, as they are now; and how many names that is with those that are gone."""
        return await self._steadily(lambda: self._page(directory, after, limit))

    async def _page(self, directory: _Directory, after: int, limit: int) -> tuple[list[tuple[int, Entry]], int]:
        skipped = after - directory.skip
        if not 0 <= skipped < len(directory.page):
            tree = directory.tree
            directory.page = [] if tree is None else await self._history.entries(tree, after, limit)
            directory.skip, skipped = after, 0
        listed = directory.page[skipped:]
        try:
            tree = await self._tree(directory.node)
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
            return [], 0  # removed: nothing is in it
        found = []
        for cookie, entry in enumerate(listed, after + 1):
            now: Entry | None = entry
            if tree != directory.tree:
                now = None if tree is None else await self._history.find(tree, entry.name)
            if now is not None:
                found.append((cookie, now))
        return found, len(listed)

    # --- files ---------------------------------------------------------------------------------------------------

    async def open(self, number: int, flags: int) -> int:
        """A handle of a regular file, which keeps its content.

        Raises: SyncerError; OSError ESTALE: it holds something else than what is open of it, or the kernel was told
        another size or time, by which it would cut off what it reads: it looks it up again then.
        """
        if number not in self.nodes:
            return await self._past.open(number, flags)
        if flags & (O_ACCMODE | O_TRUNC):
            raise OSError(errno.EROFS, "what follows a writer cannot be changed")
        node = self._known(number)
        with self._past.waiting():
            entry = await self._now(node)
        if not S_ISREG(entry.mode):
            raise OSError(errno.EINVAL, "not a regular file")
        # ATOMIC from here on: what was found is what is shown.
        content = content_of(entry)
        if (node.handles and node.content != content) or node.said != look_of(entry):
            raise _stale()
        assert self.place is not None
        handle = self._past.new_number()
        self._open[handle] = _File(node, PastFile(entry), self.place, node.content == content)
        node.content, node.entry = content, entry
        node.handles += 1
        return handle

    def keeps_pages(self, handle: int) -> bool:
        """Whether what the kernel has cached of the file is what an open file holds."""
        file = self._open.get(handle)
        return self._past.keeps_pages(handle) if file is None else file.keeps_pages

    async def read(self, handle: int, offset: int, length: int) -> bytes:
        """Raises: OSError, SyncerError."""
        file = self._open.get(handle)
        if file is None:
            return await self._past.read(handle, offset, length)
        with self._past.waiting():
            return await self._files.read(file.past, offset, length)

    def release(self, handle: int) -> None:
        file = self._open.pop(handle, None)
        if file is None:
            self._past.release(handle)
            return
        file.node.handles -= 1
        if not file.node.handles:
            file.node.entry = None
            if len(self.nodes.of(file.node.inode)) > 1 or file.node.number != file.node.inode:
                self._freed.add(file.node.inode)
            self.nodes.let_go(file.node)

    def freed(self) -> list[tuple[int, bytes]]:
        """Names in directories that need not lead to numbers of history's any more: what kept the inode's is closed."""
        inodes, self._freed = self._freed, set()
        others = (node for inode in inodes for node in self.nodes.of(inode) if node.number != inode)
        return [(node.parent.number, node.name) for node in others if node.parent is not None]

    def status(self) -> FileSystemStatus:
        """What statfs(2) shows: as much as all files are long, and no room."""
        shown = self.snapshot
        if shown is None:
            return FileSystemStatus(0, 0, 0, 0)
        return FileSystemStatus(-(-shown.logical_bytes // BLOCK_UNIT_BYTES), 0, shown.files + shown.directories, 0)


def _stale() -> OSError:
    return OSError(errno.ESTALE, "it is not there any more")
