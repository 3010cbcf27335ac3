"""Brings back a state of the past without moving a byte: names are made, and files linked to the blocks they had.

One restoration at a time, as a task on the event loop: a name is restored in one step between two awaits, others get
their turn between names, and no more is in memory than a batch of them. Nothing is recorded of a restoration as such:
one that was killed is finished by asking for it again, because what is there already is passed over.
"""

import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from stat import S_IFMT, S_ISDIR, S_ISLNK, S_ISREG

import trio

from syncer.errors import ObjectCorrupt
from syncer.fs.filesystem import METADATA_BYTES, FileSystem
from syncer.fs.relinker import PART_BYTES, Relinker
from syncer.fs.sinceplan import SincePlan
from syncer.meta.inodes import Inode
from syncer.meta.store import MetaStore
from syncer.snapshots.diff import join_path
from syncer.snapshots.history import History, Snapshot
from syncer.snapshots.nodes import Entry
from syncer.snapshots.plan import Step
from syncer.snapshots.tree import iter_directory
from syncer.values import ROOT_INODE, InodeNumber, TreeId, peer_of

BATCH_ENTRIES = 256
NEWER = "it was changed while this was under way, and is left; ask again to have it as it was"
TOLD_AT_ONCE = 256
"""So many changes the kernel is told of together."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What could not be restored, or not wholly, and why."""

    path: bytes
    reason: str


@dataclass(slots=True)
class Outcome:
    """How many names were made, changed and removed, and what went wrong."""

    made: int = 0
    changed: int = 0
    removed: int = 0
    problems: list[Problem] = field(default_factory=list)


class _InTheWay(Exception):
    """A directory that is not empty stands where something else was."""


class _InUse(Exception):
    """Somebody has the file open, and the kernel would not believe its new size."""


class _Newer(Exception):
    """Somebody has changed the file since it was planned what is to be done: in no snapshot is what it holds."""


@dataclass(slots=True)
class _Frame:
    """A directory whose names are being restored: its inode, what it was, and the names that are still to come."""

    number: int
    path: bytes
    wanted: Entry
    was_there: bool
    after: bytes = b""
    batch: deque[Entry] = field(default_factory=deque)


@dataclass(slots=True)
class _Going:
    """A name that is to go; *after*: the cookie of the last name in it that has been looked at."""

    parent: int
    name: bytes
    path: bytes
    after: int = 0


class Restorer:
    """One restoration, from *snapshot*."""

    def __init__(
        self,
        file_system: FileSystem,
        meta: MetaStore,
        history: History,
        snapshot: Snapshot,
        path: bytes,
        *,
        pace: Callable[[], Awaitable[None]],
        planned_ns: int,
        elsewhere: bool,
        delete: bool,
    ) -> None:
        """*path* is what is restored, from the root on. *pace* is awaited now and then. *planned_ns*: when the plan was
        begun, by the clock that inodes are stamped with; files changed since are left. *elsewhere*: what is made are
        copies, with inode numbers of their own. *delete*: what the past does not know is removed."""
        self._fs = file_system
        self._meta = meta
        self._history = history
        self._snapshot = snapshot
        self._path = path
        self._pace = pace
        self._since = SincePlan(planned_ns)
        self._elsewhere = elsewhere
        self._delete = delete
        self._content = Relinker(file_system, meta, history)
        self._numbers: dict[int, int] = {}
        """Of inodes with several names: which one stands for it now."""
        self._restored: dict[int, int] = {}
        """Files with several names that are as they were, each with its inode number of then."""
        self._to_make: set[bytes] = set()
        """Paths of steps that make something and have not begun yet."""
        self._entries: list[tuple[int, bytes]] = []
        self._inodes: set[int] = set()
        self.outcome = Outcome()

    async def run(self, steps: Sequence[Step]) -> None:
        """Take the *steps*; what is to go goes last.

        Raises:
            SyncerError: nodes of the snapshot's trees cannot be had. What was restored until then stays.
            OSError: ENOSPC.
        """
        self._to_make = {step.path for step in steps if step.wanted is not None and not step.shallow}
        try:
            for step in steps:
                if step.wanted is not None and not step.shallow:
                    self._to_make.discard(step.path)
                    await self._put(await self._parent_of(step), step.name, step.wanted, step.path)
            for step in steps:  # after what takes the place of another name, so that as much as possible can be moved
                if step.wanted is None:
                    await self._remove(await self._parent_of(step), step.name, step.path)
            for step in steps:  # last, because all of that has changed the times of directories
                if step.wanted is not None and step.shallow:
                    await self._dress_directory(step, step.wanted)
        finally:
            await self._tell()

    async def _parent_of(self, step: Step) -> int:
        """The inode of the directory that the name is in. Raises: OSError ENOTDIR."""
        if step.parent is not None:
            return step.parent
        return (await self.make_directories(step.path.rpartition(b"/")[0])).number

    async def _dress_directory(self, step: Step, wanted: Entry) -> None:
        number: int | None = ROOT_INODE
        if step.path:
            number = self._meta.names.lookup(await self._parent_of(step), step.name)
        inode = None if number is None else self._meta.inodes.get(number)
        if inode is not None and inode.is_directory and inode.nlink:
            await self._breathe()
            self._dress(inode.number, wanted)

    async def make_directories(self, path: bytes) -> Inode:
        """The directory *path*, with all above it; those that are not there are made, as the snapshot had them.

        Raises: OSError ENOTDIR.
        """
        number: int = ROOT_INODE
        here = b""
        for name in filter(None, path.split(b"/")):
            here = join_path(here, name)
            found = self._fs.names.lookup(number, name)
            if found is None:
                wanted = None if self._elsewhere else await self._history.lookup(self._snapshot, here)
                await self._breathe()
                self._make_directory(number, name, wanted)
                found = self._fs.names.lookup(number, name)
                assert found is not None
                if wanted is not None:
                    self._dress(found.number, wanted)
            number = found.number
        return self._fs.names.directory(number)

    # --- names ---------------------------------------------------------------------------------------------------

    async def _put(self, parent: int, name: bytes, wanted: Entry, path: bytes) -> None:
        """Restore one name, and everything below it."""
        frame = await self._enter(parent, name, wanted, path)
        frames = [] if frame is None else [frame]
        while frames:
            frame = frames[-1]
            entry = await self._next(frame)
            if entry is None:
                frames.pop()
                if self._delete and frame.was_there:
                    await self._remove_unknown(frame)
                self._dress(frame.number, frame.wanted)
            elif (
                inner := await self._enter(frame.number, entry.name, entry, join_path(frame.path, entry.name))
            ) is not None:
                frames.append(inner)

    async def _next(self, frame: _Frame) -> Entry | None:
        tree = frame.wanted.tree
        if not frame.batch and tree is not None:
            found = await self._history.ask(
                lambda load: list(islice(iter_directory(TreeId(tree), load, frame.after), BATCH_ENTRIES))
            )
            frame.batch.extend(found)
        if not frame.batch:
            return None
        entry = frame.batch.popleft()
        frame.after = entry.name
        return entry

    async def _enter(self, parent: int, name: bytes, wanted: Entry, path: bytes) -> _Frame | None:
        """Restore a name, of a directory without what is in it: that is for whoever gets the frame."""
        try:
            if S_ISDIR(wanted.mode):
                return await self._enter_directory(parent, name, wanted, path)
            await self._enter_file(parent, name, wanted, path)
        except _InTheWay:
            self._trouble(path, "a directory that is not empty is in its place")
        except _InUse:
            self._trouble(path, "somebody has it open, and the kernel collects writes to it (--writeback)")
        except _Newer:
            self._trouble(path, NEWER)
        except ObjectCorrupt as error:
            self._trouble(path, str(error))
        return None

    def _trouble(self, path: bytes, reason: str) -> None:
        self.outcome.problems.append(Problem(path, reason))

    async def _enter_directory(self, parent: int, name: bytes, wanted: Entry, path: bytes) -> _Frame | None:
        await self._breathe()
        await self._bring_back(parent, name, wanted)
        if self._gone(parent, path):
            return None
        found = self._fs.names.lookup(parent, name)
        if found is not None and found.is_directory:
            return _Frame(found.number, path, wanted, was_there=True)
        if found is not None:
            await self._make_way(parent, name, found, path)
        self._make_directory(parent, name, wanted)
        made = self._meta.names.lookup(parent, name)
        assert made is not None
        return _Frame(made, path, wanted, was_there=False)

    def _make_directory(self, parent: int, name: bytes, wanted: Entry | None) -> None:
        now = time.time_ns()
        if wanted is None:
            above = self._meta.inodes.need(parent)
            number, mode, uid, gid = self._meta.new_inode(), 0o40755, above.uid, above.gid
        else:
            free = not self._elsewhere and self._is_free(wanted.inode)
            number = InodeNumber(wanted.inode) if free else self._meta.new_inode()
            mode, uid, gid = wanted.mode, wanted.uid, wanted.gid
        self._meta.names.create(parent, name, number, mode, uid, gid, 0, None, now)
        self._note(parent, name, number)
        self.outcome.made += 1

    def _gone(self, parent: int, path: bytes) -> bool:
        """Whether the directory that a name belongs into was removed meanwhile."""
        inode = self._meta.inodes.get(parent)
        if inode is not None and inode.is_directory and inode.nlink:
            return False
        self._trouble(path, "its directory was removed meanwhile")
        return True

    async def _bring_back(self, parent: int, name: bytes, wanted: Entry) -> None:
        """Where all is to be as it was: what has another name there now, which it did not have then, gets its own."""
        if not self._delete or self._elsewhere or self._meta.names.lookup(parent, name) is not None:
            return
        inode = self._meta.inodes.get(wanted.inode)
        if inode is None or not inode.nlink or S_IFMT(inode.mode) != S_IFMT(wanted.mode) or self._since.is_newer(inode):
            return
        for place, called in self._meta.names.parents(wanted.inode):
            if not await self._may_leave(wanted.inode, place, called):
                continue
            try:
                self._fs.names.rename(place, called, parent, name, replace=False)
            except OSError:  # into itself, or somebody was faster: then it is made anew
                return
            self._since.own(wanted.inode)
            self._note(place, called, wanted.inode)
            self._note(parent, name, wanted.inode)
            return

    async def _may_leave(self, number: int, parent: int, name: bytes) -> bool:
        """Whether the inode need not stand for the name: the snapshot has no such name, or it is still to be made.

        What is outside of the path that is restored stays there.
        What looks as it did under that name was not planned to be made again, whatever its number was.
        """
        above = self._meta.names.path(parent)
        if above is None:
            return True
        path = join_path(above, name)
        if self._path and not (path + b"/").startswith(self._path + b"/"):
            return False
        found = await self._history.lookup(self._snapshot, path)
        if found is None or found.inode == number:
            return found is None
        parts = path.split(b"/")
        return any(b"/".join(parts[:end]) in self._to_make for end in range(1, len(parts) + 1))

    async def _is_home(self, number: int, parent: int, name: bytes) -> bool:
        """Whether the snapshot has the inode under this name too."""
        above = self._meta.names.path(parent)
        if above is None:
            return False
        found = await self._history.lookup(self._snapshot, join_path(above, name))
        return found is not None and found.inode == number

    def _is_free(self, number: int) -> bool:
        """Whether an inode may be made anew under its old number."""
        if self._meta.inodes.get(number) is not None:
            return False
        return peer_of(InodeNumber(number)) != self._meta.peer or number < self._meta.next_inode

    # --- files ---------------------------------------------------------------------------------------------------

    async def _enter_file(self, parent: int, name: bytes, wanted: Entry, path: bytes) -> None:
        is_regular = S_ISREG(wanted.mode)
        parts = await self._content.need_blocks(wanted) if is_regular else None
        await self._breathe(METADATA_BYTES + PART_BYTES * len(parts or ()))
        await self._bring_back(parent, name, wanted)
        shared = await self._living(wanted)
        found = self._meta.names.lookup(parent, name)
        if found is not None and self._meta.inodes.need(found).is_directory:
            await self._make_way(parent, name, self._meta.inodes.need(found), path)
        if self._gone(parent, path):
            return
        # ATOMIC: the name is there with its content, unless that is long.
        self._content.check_blocks(parts or ())
        shared = self._check_not_newer(self._meta.names.lookup(parent, name), shared)
        number, is_made = self._inode_at(parent, name, wanted, shared)
        if self._restored.get(number) == wanted.inode:
            self.outcome.changed += not is_made
            return  # with another name; what it holds by now others have written
        is_changed = False
        if parts is not None and not self._content.is_linked(number, parts, wanted.size):
            self._check_resizable(number)
            self._content.relink(number, parts, wanted.size)
            is_changed = True
        elif parts is None and is_regular:
            self._check_resizable(number)
            is_changed = await self._content.relink_long(number, wanted, self._breathe)
        is_changed = self._dress(number, wanted) or is_changed
        self.outcome.changed += is_changed and not is_made
        if wanted.nlink > 1:
            self._restored[number] = wanted.inode
        if is_regular and self._content.is_damaged(number):
            self._trouble(path, "bytes of it are damaged on the remote, and cannot be read")

    def _check_not_newer(self, found: int | None, shared: int | None) -> int | None:
        """Nothing that others have changed since the plan is replaced: neither what a name has *found*, nor an inode
        that is *shared* with other names. Returns the latter, None if it has no name and is better left to its writer.

        Raises: _Newer.
        """
        inode = None if shared is None else self._meta.inodes.get(shared)
        if inode is not None and self._since.is_newer(inode):
            if inode.nlink:
                raise _Newer
            shared = None
        inode = None if found is None else self._meta.inodes.need(found)
        if inode is not None and self._since.is_newer(inode):
            raise _Newer
        return shared

    def _check_resizable(self, number: int) -> None:
        """See to it that the kernel will believe the size that the file gets. Raises: _InUse."""
        if not self._fs.kernel_keeps_sizes:
            return
        if self._meta.inodes.need(number).pins:
            raise _InUse
        self._entries += self._meta.names.parents(number)  # without its names it forgets the file

    async def _living(self, wanted: Entry) -> int | None:
        """The inode that other names of *wanted* have here, and that it gets a further name of."""
        known = self._numbers.get(wanted.inode)
        inode = self._meta.inodes.get(wanted.inode if known is None else known)
        if inode is None or S_IFMT(inode.mode) != S_IFMT(wanted.mode) or inode.number in self._meta.extents.cuts:
            return None
        if known is not None:
            return known if inode.nlink else None
        if self._elsewhere:
            return None
        if not inode.nlink:
            return inode.number  # its last name went, and somebody has it open
        if wanted.nlink > 1:
            for place, called in self._meta.names.parents(wanted.inode):
                if await self._is_home(wanted.inode, place, called):
                    return wanted.inode
        return None

    def _inode_at(self, parent: int, name: bytes, wanted: Entry, shared: int | None) -> tuple[int, bool]:
        """The inode that *name* has now and may be changed into *wanted*, and whether the name was made: where it must
        be, it is.

        Raises: _InTheWay.
        """
        found = self._fs.names.lookup(parent, name)
        if found is not None:
            own = shared if shared is not None or self._elsewhere else wanted.inode
            same = found.number == own
            # One that only this name has keeps its identity where that of the past is taken.
            taken = shared is None and (self._elsewhere or not self._is_free(wanted.inode))
            if same or (taken and found.nlink == 1 and self._may_become(found, wanted)):
                self._inodes.add(found.number)
                self._remember(found.number, wanted)
                return found.number, False
            if found.is_directory:
                raise _InTheWay  # made meanwhile
            self._unlink(parent, name, found.number)
            self._note(parent, name, found.number)
        now = time.time_ns()
        if shared is not None and self._meta.inodes.get(shared) is not None:
            self._meta.names.link(shared, parent, name, now)
            number = shared
        else:
            free = not self._elsewhere and self._is_free(wanted.inode)
            number = wanted.inode if free else self._meta.new_inode()
            self._meta.names.create(
                *(parent, name, number, wanted.mode, wanted.uid, wanted.gid, wanted.rdev, wanted.target, now)
            )
        self._remember(number, wanted)
        self._note(parent, name, number)
        if found is None:
            self.outcome.made += 1
        else:
            self.outcome.changed += 1
        return number, True

    def _may_become(self, found: Inode, wanted: Entry) -> bool:
        """Whether all in which an inode differs from *wanted* can be changed: not what a symlink or a device says."""
        if S_IFMT(found.mode) != S_IFMT(wanted.mode):
            return False
        target = self._fs.names.readlink(found.number) if S_ISLNK(found.mode) else None
        return (target, found.rdev) == (wanted.target, wanted.rdev)

    def _remember(self, number: int, wanted: Entry) -> None:
        """What stands for *wanted* now, if it may be met again under another name."""
        if wanted.nlink > 1:
            self._numbers[wanted.inode] = number
        if wanted.nlink > 1 or self._meta.inodes.need(number).nlink > 1:
            self._since.own(number)

    def _unlink(self, parent: int, name: bytes, number: int) -> None:
        self._fs.unlink(parent, name)
        inode = self._meta.inodes.get(number)
        if inode is not None and inode.nlink:
            self._since.own(number)

    async def _make_way(self, parent: int, name: bytes, found: Inode, path: bytes) -> None:
        """Remove what stands where something of another type was. Raises: _InTheWay, _Newer."""
        if found.is_directory and not self._delete and not self._meta.names.is_empty(found.number):
            raise _InTheWay
        if self._since.is_newer(found):
            raise _Newer
        await self._remove(parent, name, path)
        if self._meta.names.lookup(parent, name) is not None:
            raise _InTheWay  # something in it is newer, and was named

    def _dress(self, number: int, wanted: Entry) -> bool:
        """Give an inode the attributes it had; whether they were others. ATOMIC."""
        inode = self._meta.inodes.get(number)
        if inode is None:
            return False
        now = time.time_ns()
        held, had = self._meta.inodes.xattrs(inode), dict(wanted.xattrs)
        for name in [name for name in held if name not in had]:
            self._meta.inodes.set_xattr(number, name, None, now)
        for name, value in had.items():
            if held.get(name) != value:
                self._meta.inodes.set_xattr(number, name, value, now)
        own = (inode.mode, inode.uid, inode.gid, inode.mtime_ns)
        is_other = own != (wanted.mode, wanted.uid, wanted.gid, wanted.mtime_ns)
        if is_other:
            self._meta.inodes.set_attributes(
                number, wanted.mode & 0o7777, wanted.uid, wanted.gid, None, wanted.mtime_ns, now
            )
        self._inodes.add(number)
        return is_other or held != had

    # --- removing ------------------------------------------------------------------------------------------------

    async def _remove_unknown(self, frame: _Frame) -> None:
        """Remove what the past does not know of a directory that was there already."""
        after = 0
        while entries := self._meta.names.entries(frame.number, after, BATCH_ENTRIES):
            after = entries[-1].cookie
            for name in [entry.name for entry in entries]:
                if await self._history.child(frame.wanted, name) is None:
                    await self._remove(frame.number, name, join_path(frame.path, name))

    async def _remove(self, parent: int, name: bytes, path: bytes) -> None:
        """Remove a name with everything below it, but for files that others have changed since the plan."""
        waiting = [_Going(parent, name, path)]
        while waiting:
            await self._breathe(0)
            going = waiting[-1]
            found = self._meta.names.lookup(going.parent, going.name)
            inode = None if found is None else self._meta.inodes.need(found)
            inside = []
            if inode is not None and inode.is_directory:
                inside = self._meta.names.entries(inode.number, going.after, BATCH_ENTRIES)
            if inode is not None and inside:
                going.after = inside[-1].cookie
                waiting += [_Going(inode.number, each.name, join_path(going.path, each.name)) for each in inside]
                continue
            if inode is not None:
                self._remove_one(going, inode)
            waiting.pop()

    def _remove_one(self, going: "_Going", inode: Inode) -> None:
        """ATOMIC: remove a file, or a directory if nothing was left in it."""
        if inode.is_directory:
            if not self._meta.names.is_empty(inode.number):
                return  # what it holds was named
            self._fs.rmdir(going.parent, going.name)
        elif self._since.is_newer(inode):
            self._trouble(going.path, NEWER)
            return
        else:
            self._unlink(going.parent, going.name, inode.number)
        self._note(going.parent, going.name, inode.number)
        self.outcome.removed += 1

    # --- others --------------------------------------------------------------------------------------------------

    def _note(self, parent: int, name: bytes, number: int) -> None:
        """The kernel must hear of it; of the directory too, because it may not know the name."""
        self._entries.append((parent, name))
        self._inodes |= {parent, number}

    async def _breathe(self, amount: int = METADATA_BYTES) -> None:
        """Between two names: wait for room, tell the kernel, let others have their turn."""
        if len(self._entries) + len(self._inodes) >= TOLD_AT_ONCE:
            await self._tell()
            await self._pace()
        await trio.lowlevel.checkpoint()
        if amount:
            await self._fs.room(amount)
        else:
            await self._fs.keep_up()
        self._meta.inodes.shed()

    async def _tell(self) -> None:
        entries, self._entries = self._entries, []
        inodes, self._inodes = self._inodes - {0}, set()
        if entries or inodes:
            with trio.CancelScope(shield=True):
                await self._fs.changed_behind(entries, sorted(inodes))
