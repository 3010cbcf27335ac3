"""Snapshots as directories: what `.snapshots` shows, without FUSE in it.

Every directory of the live tree has an entrance, `.snapshots`, that no listing shows. Behind it stand the snapshots in
which that directory, by its path, differs from the one before; any other that has it can be named. Below, everything
is as it was, read-only. On the event loop's thread.

Inode numbers here have the highest bit, which none of the live tree has. They are given out when something is looked
up and kept until the kernel forgets it, so memory goes with what is looked at. Everything that one entrance shows has
numbers of its own, because a directory may be in one place only; hard links in a snapshot share theirs.
"""

import contextlib
import errno
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from stat import S_IFDIR, S_IFLNK, S_ISDIR, S_ISLNK, S_ISREG
from typing import NamedTuple

import trio

from syncer.fs.filesystem import FileSystemStatus
from syncer.fs.handles import O_ACCMODE, O_TRUNC
from syncer.fs.pastfile import PastFile, PastFiles
from syncer.meta.inodes import Inode
from syncer.snapshots.history import History, Place, Snapshot
from syncer.snapshots.naming import find_by_long_name, snapshot_names
from syncer.snapshots.nodes import Entry
from syncer.snapshots.versions import directory_versions
from syncer.values import NAME_MAX_BYTES, ROOT_INODE, TreeId

PAST = 1 << 63
"""Inode numbers and handles from here on are history's."""
LATEST = b"latest"
RECENT = 2048
"""So many entries are kept at hand: programs ask several times about each file of a listing."""
FIRST_WAIT_S = 5.0
"""How long the first who looks waits for the remote to say which snapshots there are; later ones are not kept."""
IN_USE_S = 600.0
"""Who has looked into a snapshot may do so again for so long: a copying program comes back after each long file."""
FOREVER_S, BRIEFLY_S, NEVER_S = 3600.0, 1.0, 0.0
"""How long the kernel may believe what it was told: of what never changes; of which snapshots there are, which it would
else ask for with every path that leads through; and of where `latest` leads."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What stat(2) shows, times in nanoseconds. For how long, in seconds, the kernel may believe that, and the name."""

    number: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    stat_s: float = FOREVER_S
    name_s: float = FOREVER_S


class Hint(NamedTuple):
    """What a listing says of a name that nobody has looked up: the number it will have, and its type as a mode.

    The kernel makes nothing of it but the directory entry: it asks for what somebody wants to know more of.
    """

    number: int
    mode: int


class _Node:
    """Something that has a number. *parent* is the directory in which it was met first, by the name *name*."""

    __slots__ = ("inode", "lookups", "name", "number", "parent", "tree", "view")

    def __init__(self, number: int, view: "_View | None", parent: "_Node | None", name: bytes, inode: int) -> None:
        self.number = number
        self.view = view
        self.parent = parent
        self.name = name
        self.inode = inode
        self.lookups = 0
        self.tree: TreeId | None = None
        """Of a directory in a snapshot, once it is known."""


class _Entrance(_Node):
    """The `.snapshots` of a live directory, whose number is *inode*."""

    __slots__ = ("latest", "listing", "listing_revision", "numbers", "views")

    def __init__(self, number: int, directory: int) -> None:
        super().__init__(number, None, None, b"", directory)
        self.views: dict[Place, _View] = {}
        self.numbers: dict[Place | None, int] = {}
        """Of what was listed or looked up: a snapshot's, or that of `latest` (None)."""
        self.latest: _Node | None = None
        self.listing: Sequence[Place] = ()
        self.listing_revision: tuple[int, bytes] | None = None


class _View(_Node):
    """What a snapshot has in the place of the entrance's directory."""

    __slots__ = ("entry", "nodes", "snapshot")

    def __init__(self, number: int, entrance: _Entrance, name: bytes, snapshot: Snapshot) -> None:
        super().__init__(number, None, entrance, name, 0)
        self.snapshot = snapshot
        self.entry: Entry | None = None
        self.nodes: dict[int, _Node] = {}
        """By the inode number in the snapshot."""


class _Directory:
    """An open directory: of an entrance the names it had then, of another the page that was read last."""

    __slots__ = ("names", "node", "page", "skip")

    def __init__(self, node: _Node, names: Sequence[bytes]) -> None:
        self.node = node
        self.names = names
        self.skip = 0
        self.page: Sequence[Entry] = ()


Listed = tuple[bytes, Seen | Hint, int]
"""(name, what it is, cookie). A hint is no look-up."""


class HistoryTree:
    def __init__(
        self,
        history: History,
        files: PastFiles,
        live: Callable[[int], Inode | Seen],
        path: Callable[[int], bytes],
    ) -> None:
        """*live* gives a directory of the live tree, *path* where it is from the root on; both raise OSError."""
        self._history = history
        self._files = files
        self._live: Callable[[int], Inode | Seen] = live
        self._path = path
        self.interruptible: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext
        """Around each call that may wait for the remote; a signal for the caller ends it with OSError EINTR."""
        self._nodes: dict[int, _Node] = {}
        self._entrances: dict[int, _Entrance] = {}
        self._recent: OrderedDict[int, Entry] = OrderedDict()
        self._directories: dict[int, _Directory] = {}
        self._open: dict[int, PastFile] = {}
        self._open_in: dict[int, Place] = {}
        self._looked_at: dict[Place, float] = {}
        """When somebody looked into a snapshot last."""
        self._last_number = PAST
        self._names: dict[bytes, Snapshot] = {}
        self._names_of: dict[Place, bytes] = {}
        self._names_revision = -1

    # --- numbers -------------------------------------------------------------------------------------------------

    def new_number(self) -> int:
        """A number of history's, for an inode or a handle, that nothing else gets in this run."""
        self._last_number += 1
        return self._last_number

    def _node(self, number: int) -> _Node:
        """Raises: OSError ESTALE."""
        node = self._nodes.get(number)
        if node is None:
            raise OSError(errno.ESTALE, "nobody has looked this up")
        return node

    def _enter(self, directory: int) -> _Entrance:
        entrance = self._entrances.get(directory)
        if entrance is None:
            entrance = self._entrances[directory] = _Entrance(self.new_number(), directory)
            self._nodes[entrance.number] = entrance
        return entrance

    def _number(self, entrance: _Entrance, place: Place | None) -> int:
        number = entrance.numbers.get(place)
        if number is None:
            number = entrance.numbers[place] = self.new_number()
        return number

    def _view(self, entrance: _Entrance, name: bytes, snapshot: Snapshot) -> _View:
        view = entrance.views.get(snapshot.place)
        if view is None:
            view = entrance.views[snapshot.place] = _View(
                self._number(entrance, snapshot.place), entrance, name, snapshot
            )
            self._nodes[view.number] = view
        return view

    def _met(self, view: _View, parent: _Node, entry: Entry) -> _Node:
        """The node of an entry of *parent*."""
        node = view.nodes.get(entry.inode)
        if node is None:
            node = view.nodes[entry.inode] = _Node(self.new_number(), view, parent, entry.name, entry.inode)
            self._nodes[node.number] = node
            if S_ISDIR(entry.mode) and entry.tree is not None:
                node.tree = TreeId(entry.tree)
        self._recent[node.number] = entry
        if len(self._recent) > RECENT:
            self._recent.popitem(last=False)
        return node

    def looked_up(self, number: int) -> None:
        """The kernel was given the number once more."""
        self._nodes[number].lookups += 1

    def forget(self, items: Iterable[tuple[int, int]]) -> None:
        """The kernel gives back *count* look-ups of each (number, count)."""
        for number, count in items:
            node = self._nodes.get(number)
            if node is not None:
                node.lookups -= count
                self._let_go(node)

    def unused(self, numbers: Iterable[int]) -> None:
        """The kernel was not given these after all, though they were meant for it."""
        for number in numbers:
            if (node := self._nodes.get(number)) is not None:
                self._let_go(node)

    def _let_go(self, node: _Node) -> None:
        if node.lookups > 0:
            return
        self._nodes.pop(node.number, None)
        self._recent.pop(node.number, None)
        if isinstance(node, _Entrance):
            self._entrances.pop(node.inode, None)
        elif isinstance(node, _View):
            assert isinstance(node.parent, _Entrance)
            node.parent.views.pop(node.snapshot.place, None)
        elif node.view is not None:
            node.view.nodes.pop(node.inode, None)
        elif isinstance(node.parent, _Entrance):
            node.parent.latest = None

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """A wait for the remote, however many things are asked of it. Raises: DeadlinePassed; OSError EINTR."""
        with self.interruptible(), self._history.in_time():
            yield

    # --- who looks -----------------------------------------------------------------------------------------------

    def in_use(self) -> set[Place]:
        """The snapshots that somebody has a file open of, or has looked into lately. To list their names is no look."""
        begin = trio.current_time() - IN_USE_S
        self._looked_at = {place: at for place, at in self._looked_at.items() if at >= begin}
        return {*self._looked_at, *self._open_in.values()}

    def _look(self, node: _Node) -> None:
        view = node if isinstance(node, _View) else node.view
        if view is not None:
            self._looked_at[view.snapshot.place] = trio.current_time()

    # --- which snapshots -----------------------------------------------------------------------------------------

    async def prepare(self) -> None:
        """Read what is known and name it, so that the first who lists ten thousand snapshots need not wait."""
        await self._history.prepare()
        self._named()

    def _named(self) -> dict[bytes, Snapshot]:
        known = self._history.known()
        if self._names_revision != self._history.revision:
            self._names = snapshot_names(known)
            self._names_of = {snapshot.place: name for name, snapshot in self._names.items()}
            self._names_revision = self._history.revision
        return self._names

    async def _refreshed(self) -> None:
        """See to it that `_named` has what the remote has; waits for that only where it was never asked before."""
        if self._history.was_listed:
            self._history.look()
        else:
            await self._history.snapshots(FIRST_WAIT_S)

    async def _listing(self, entrance: _Entrance) -> list[bytes]:
        """The names behind an entrance, oldest first. Raises: SyncerError."""
        names, path = self._named(), self._path(entrance.inode)
        if not path:
            return list(names)
        revision = self._names_revision, path
        if entrance.listing_revision != revision:
            found = await directory_versions(self._history, path, list(names.values()))
            entrance.listing = [snapshot.place for snapshot in found]
            entrance.listing_revision = revision
        return [self._names_of[place] for place in entrance.listing if place in self._names_of]

    # --- names ---------------------------------------------------------------------------------------------------

    def entrance(self, directory: int) -> Seen:
        """The `.snapshots` of a live directory. Raises: OSError."""
        return self._entrance_seen(self._enter(directory))

    def become_root(self, uid: int, gid: int) -> None:
        """Show the root's entrance as the root itself, owned by *uid* and *gid*: a mount of nothing but history."""
        self._live = lambda number: Seen(number, S_IFDIR | 0o755, 2, uid, gid, 0, 0, 0, 0, 0)
        root = self._enter(ROOT_INODE)
        del self._nodes[root.number]
        root.number, root.lookups = ROOT_INODE, 1
        self._nodes[ROOT_INODE] = root

    async def lookup(self, parent: int, name: bytes) -> Seen | None:
        """What *name* is, None when it is nothing. Raises: OSError, SyncerError."""
        if len(name) > NAME_MAX_BYTES:
            raise OSError(errno.ENAMETOOLONG, "name too long")
        directory = self._node(parent)
        with self.waiting():
            if name == b".":
                return await self._seen(directory)
            if name == b"..":
                above = directory.parent
                return None if above is None else await self._seen(above)
            if isinstance(directory, _Entrance):
                return await self._behind(directory, name)
            self._look(directory)
            tree = await self._tree(directory)
            entry = await self._history.find(tree, name)
        if entry is None:
            return None
        return _entry_seen(self._met(_view_of(directory), directory, entry), entry)

    def absence_s(self, parent: int) -> float:
        """How long the kernel may believe that a name is not in the directory *parent*."""
        return NEVER_S if isinstance(self._nodes.get(parent), _Entrance) else FOREVER_S

    async def _behind(self, entrance: _Entrance, name: bytes) -> Seen | None:
        if name == LATEST:
            return await self._latest_seen(entrance)
        snapshot = self._named().get(name)
        if snapshot is None:
            await self._refreshed()
            snapshot = self._named().get(name) or find_by_long_name(name, self._history.known())
        if snapshot is None:
            return None
        view = self._view(entrance, name, snapshot)
        view.lookups += 1  # whoever else was given it and gives it back must not take it away from under this look-up
        try:
            seen = _entry_seen(view, await self._entry(view))
        except BaseException as error:
            self.forget([(view.number, 1)])
            if isinstance(error, FileNotFoundError):
                return None
            raise
        view.lookups -= 1
        return seen

    async def _tree(self, directory: _Node) -> TreeId:
        """Raises: OSError ENOTDIR."""
        tree = directory.tree
        if isinstance(directory, _View) and tree is None:
            entry = await self._entry(directory)
            tree = None if entry.tree is None else TreeId(entry.tree)
        if tree is None:
            raise OSError(errno.ENOTDIR, "not a directory")
        return tree

    async def _entry(self, node: _Node) -> Entry:
        """Raises: OSError ENOENT, SyncerError."""
        if isinstance(node, _View):
            return await self._view_entry(node)
        entry = self._recent.get(node.number)
        if entry is None:
            assert node.parent is not None
            entry = await self._history.find(await self._tree(node.parent), node.name)
        if entry is None:
            raise OSError(errno.ENOENT, "no such name")
        return entry

    async def _view_entry(self, view: _View) -> Entry:
        """The directory that a view shows. Raises: OSError ENOENT: the snapshot has none there, or was deleted."""
        self._named()
        if view.snapshot.place not in self._names_of:
            raise OSError(errno.ENOENT, "the snapshot was deleted")
        if view.entry is None:
            assert view.parent is not None
            entry = await self._history.lookup(view.snapshot, self._path(view.parent.inode))
            if entry is None or not S_ISDIR(entry.mode) or entry.tree is None:
                raise OSError(errno.ENOENT, "there was no such directory then")
            view.entry, view.tree = entry, TreeId(entry.tree)
        return view.entry

    # --- attributes ----------------------------------------------------------------------------------------------

    async def getattr(self, number: int) -> Seen:
        """Raises: OSError, SyncerError."""
        node = self._node(number)
        with self.waiting():
            return await self._seen(node)

    async def _seen(self, node: _Node) -> Seen:
        if isinstance(node, _Entrance):
            return self._entrance_seen(node)
        if isinstance(node.parent, _Entrance) and not isinstance(node, _View):
            latest = await self._latest_seen(node.parent)
            if latest is None:
                raise OSError(errno.ENOENT, "there is no snapshot any more")
            return latest
        return _entry_seen(node, await self._entry(node))

    def _entrance_seen(self, entrance: _Entrance) -> Seen:
        """As accessible as the live directory, and of the time of the newest snapshot."""
        live, known = self._live(entrance.inode), self._history.known()
        time_ns = known[-1].time_ns if known else live.ctime_ns
        mode = S_IFDIR | live.mode & 0o555
        return Seen(entrance.number, mode, 2, live.uid, live.gid, 0, 0, *3 * (time_ns,), BRIEFLY_S, BRIEFLY_S)

    async def _latest_seen(self, entrance: _Entrance) -> Seen | None:
        target = await self._target(entrance)
        if target is None:
            return None
        if entrance.latest is None:
            entrance.latest = _Node(self._number(entrance, None), None, entrance, LATEST, 0)
            self._nodes[entrance.latest.number] = entrance.latest
        live, time_ns = self._live(entrance.inode), self._names[target].time_ns
        number = entrance.latest.number
        return Seen(number, S_IFLNK | 0o777, 1, live.uid, live.gid, 0, len(target), *3 * (time_ns,), NEVER_S, NEVER_S)

    async def _target(self, entrance: _Entrance) -> bytes | None:
        """Where `latest` leads: to the last name of the listing; None when that is empty."""
        await self._refreshed()
        names = await self._listing(entrance)
        return names[-1] if names else None

    async def readlink(self, number: int) -> bytes:
        """Raises: OSError, SyncerError."""
        node = self._node(number)
        with self.waiting():
            if isinstance(node.parent, _Entrance) and not isinstance(node, _View):
                target = await self._target(node.parent)
            else:
                entry = await self._entry(node)
                target = entry.target if S_ISLNK(entry.mode) else None
        if target is None:
            raise OSError(errno.EINVAL, "not a symlink")
        return target

    async def xattrs(self, number: int) -> dict[bytes, bytes]:
        """All extended attributes. Raises: OSError, SyncerError."""
        node = self._node(number)
        if isinstance(node, _Entrance) or (node.view is None and not isinstance(node, _View)):
            return {}
        with self.waiting():
            return dict((await self._entry(node)).xattrs)

    # --- directories ---------------------------------------------------------------------------------------------

    async def opendir(self, number: int) -> int:
        """A handle for `entries`; that of an entrance keeps the names that there are now. Raises: OSError."""
        node = self._node(number)
        names: Sequence[bytes] = ()
        if isinstance(node, _Entrance):
            with self.waiting():
                await self._refreshed()
                found = await self._listing(node)
            names = [*found, LATEST] if found else ()
        handle = self.new_number()
        self._directories[handle] = _Directory(node, names)
        return handle

    def releasedir(self, handle: int) -> None:
        del self._directories[handle]

    def dots(self, handle: int) -> tuple[Seen, Seen]:
        """What `.` and `..` are in an open directory, as far as a listing shows it."""
        node = self._directories[handle].node
        above = node.inode if isinstance(node, _Entrance) else node.parent.number if node.parent else node.number
        return bare(node.number), bare(above)

    async def entries(self, handle: int, after: int, limit: int) -> list[Listed]:
        """Up to *limit* entries of an open directory after the cookie *after* (0: from the begin on).

        Who does not pass them on says so with `unused`. Raises: OSError, SyncerError.
        """
        directory = self._directories[handle]
        with self.waiting():
            if isinstance(directory.node, _Entrance):
                return self._names_after(directory, after, limit)
            return await self._entries_after(directory, after, limit)

    def _names_after(self, directory: _Directory, after: int, limit: int) -> list[Listed]:
        """What the snapshots are like is not looked at: that costs a node of each, which may be on the remote."""
        entrance = directory.node
        assert isinstance(entrance, _Entrance)
        known, found = self._named(), list[Listed]()
        while not found and after < len(directory.names):
            for cookie, name in enumerate(directory.names[after : after + limit], after + 1):
                if name == LATEST:
                    found.append((name, Hint(self._number(entrance, None), S_IFLNK), cookie))
                elif name in known:  # else it was deleted meanwhile
                    found.append((name, Hint(self._number(entrance, known[name].place), S_IFDIR), cookie))
            after += limit
        return found

    async def _entries_after(self, directory: _Directory, after: int, limit: int) -> list[Listed]:
        self._look(directory.node)
        skipped = after - directory.skip
        if not 0 <= skipped < len(directory.page):
            tree = await self._tree(directory.node)
            directory.page = await self._history.entries(tree, after, limit)
            directory.skip, skipped = after, 0
        view, found = _view_of(directory.node), list[Listed]()
        for cookie, entry in enumerate(directory.page[skipped:], after + 1):
            found.append((entry.name, _entry_seen(self._met(view, directory.node, entry), entry), cookie))
        return found

    # --- files ---------------------------------------------------------------------------------------------------

    async def open(self, number: int, flags: int) -> int:
        """A handle of a regular file. Raises: OSError, SyncerError."""
        if flags & (O_ACCMODE | O_TRUNC):
            raise OSError(errno.EROFS, "history cannot be changed")
        node = self._node(number)
        with self.waiting():
            entry = await self._entry(node)
        if not S_ISREG(entry.mode):
            raise OSError(errno.EINVAL, "not a regular file")
        self._look(node)
        handle = self.new_number()
        self._open[handle], self._open_in[handle] = PastFile(entry), _view_of(node).snapshot.place
        return handle

    async def read(self, handle: int, offset: int, length: int) -> bytes:
        """Raises: OSError, SyncerError."""
        with self.waiting():
            return await self._files.read(self._open[handle], offset, length)

    def release(self, handle: int) -> None:
        del self._open[handle]
        place = self._open_in.pop(handle)
        self._looked_at[place] = trio.current_time()

    def keeps_pages(self, handle: int) -> bool:
        """Whether what the kernel has cached of the file is what an open file holds: nothing here ever changes."""
        return True

    def status(self) -> FileSystemStatus:
        """What statfs(2) shows: none of it takes room, and there is none."""
        return FileSystemStatus(0, 0, 0, 0)


def _view_of(node: _Node) -> _View:
    view = node if isinstance(node, _View) else node.view
    assert view is not None
    return view


def _entry_seen(node: _Node, entry: Entry) -> Seen:
    return seen_of(node.number, entry, FOREVER_S, BRIEFLY_S if isinstance(node, _View) else FOREVER_S)


def seen_of(number: int, entry: Entry, stat_s: float, name_s: float) -> Seen:
    """Access times are not part of snapshots: the time of the last change stands for them, as after a rebuild."""
    return Seen(
        *(number, entry.mode, entry.nlink, entry.uid, entry.gid, entry.rdev, entry.size),
        *(entry.mtime_ns, entry.mtime_ns, entry.ctime_ns, stat_s, name_s),
    )


def bare(number: int) -> Seen:
    """What a listing shows of `.` and `..`."""
    return Seen(number, S_IFDIR | 0o555, 2, 0, 0, 0, 0, 0, 0, 0)
