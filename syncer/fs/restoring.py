"""Restoring as the user asks for it: the snapshot before, the plan, the work, the report. One at a time."""

import errno
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from stat import S_IFMT, S_ISDIR
from typing import Literal

import trio

from syncer.errors import BudgetExhausted, RemoteUnreachable, SyncerError, UsageError, WrongRepository
from syncer.fs.filesystem import FileSystem
from syncer.fs.restorer import Problem, Restorer
from syncer.meta.store import MetaStore
from syncer.snapshots.diff import join_path
from syncer.snapshots.extenttree import iter_extents
from syncer.snapshots.history import History, Place, Snapshot
from syncer.snapshots.live import LiveTree
from syncer.snapshots.nodes import Entry, Load
from syncer.snapshots.plan import Plan, Step, find_path, is_dressed, make_plan, totals_of, unknown_names
from syncer.snapshots.publisher import Publisher
from syncer.values import TreeId

REASON = "before restore"
SNAPSHOTS_FIRST = 3
"""So many snapshots are taken before, if things change while they are taken: each one sends what is new since the one
before it, and takes less time."""

Action = Literal["make", "change", "remove"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is to be restored. *path* and *to* are from the root on.

    *to*: where a directory's content, or a file itself, is to stand as a copy; None: where it was. *delete*: what the
    snapshot does not know is removed, *path* itself if that is so. *snapshot_first*: what changed since the last
    snapshot gets into one before, so that the restoration can be undone.
    """

    snapshot: Snapshot
    path: bytes
    to: bytes | None = None
    delete: bool = False
    dry_run: bool = False
    snapshot_first: bool = True


@dataclass(frozen=True, slots=True)
class Planned:
    """What would be done to one name; *files* and *size_bytes* are those below it."""

    path: bytes
    action: Action
    files: int
    size_bytes: int


@dataclass(slots=True)
class Report:
    """What was done, or would be. *before*: the snapshot that has all that was changed as it was; None where none has.
    *left*: names that the past does not know, and that stay."""

    before: Place | None = None
    planned: list[Planned] = field(default_factory=list)
    made: int = 0
    changed: int = 0
    removed: int = 0
    left: int = 0
    problems: list[Problem] = field(default_factory=list)


class Restoring:
    def __init__(
        self,
        file_system: FileSystem,
        meta: MetaStore,
        history: History,
        publisher: Publisher,
        *,
        pace: Callable[[], Awaitable[None]],
    ) -> None:
        self._fs = file_system
        self._meta = meta
        self._history = history
        self._publisher = publisher
        self._pace = pace
        self._turn = trio.Lock()

    async def restore(self, request: Request) -> Report:
        """Bring back what is asked for, and say what was done.

        Raises:
            UsageError: the snapshot has no such path, or the place to restore to holds something else.
            SyncerError: the snapshot before cannot be taken, or trees cannot be had.
            OSError: EROFS, ENOSPC, ENOTDIR.
        """
        if not request.dry_run:
            self._fs.check_writable()
        with self._history.hold(request.snapshot.place):
            if request.snapshot not in self._history.known():
                raise UsageError(
                    "the snapshot has just been deleted", hint="`syncer snapshots` lists those that are left"
                )
            async with self._turn:
                return await self._restore(request)

    async def _restore(self, request: Request) -> Report:
        wanted = await self._history.lookup(request.snapshot, request.path)
        goes = request.delete and request.snapshot_first and request.to is None  # a slip is then undone
        if wanted is None and not goes:
            raise _unknown(request)
        if not request.dry_run and request.snapshot_first:
            await self._snapshot_first()
        # ATOMIC: what is not in the newest snapshot by now has been changed since the moment that it shows.
        head, since_ns, has_changes = self._meta.snapshots.head(), time.time_ns(), self._publisher.has_changes()
        before = None
        if head is not None and (request.snapshot_first or not has_changes):
            before = head.peer, head.seq
            since_ns = head.time_ns if has_changes else since_ns
        plan, planned = await self._publisher.examine(lambda live: self._plan(live, request, wanted))
        report = Report(planned=planned, left=plan.left)
        if request.dry_run:
            return report
        report.before = before
        await self._work(request, plan, since_ns, report)
        return report

    async def _snapshot_first(self) -> None:
        """Have what changed since the last snapshot in one, and what was written while that was on its way: to wait for
        the remote may take long.

        Raises: SyncerError.
        """
        try:
            for _ in range(SNAPSHOTS_FIRST):
                if not self._publisher.has_changes():
                    break
                await self._publisher.publish(REASON)
        except RemoteUnreachable as error:
            raise RemoteUnreachable(
                f"no snapshot can be taken before: {error}",
                hint="--no-snapshot restores without one, for good",
            ) from error

    async def _work(self, request: Request, plan: Plan, planned_ns: int, report: Report) -> None:
        restorer = Restorer(
            *(self._fs, self._meta, self._history, request.snapshot, request.path),
            pace=self._pace,
            planned_ns=planned_ns,
            elsewhere=request.to is not None,
            delete=request.delete,
        )
        await restorer.run(plan.steps)
        done = restorer.outcome
        report.made, report.changed, report.removed = done.made, done.changed, done.removed
        report.problems = done.problems
        self._meta.commit()

    def _plan(self, live: LiveTree, request: Request, wanted: Entry | None) -> tuple[Plan, list[Planned]]:
        """*wanted* None: there was nothing. In a thread. Raises: UsageError."""
        load = live.load(self._history.load)
        path = request.path.strip(b"/")
        if request.to is not None and wanted is not None:
            path = request.to.strip(b"/")
            if not S_ISDIR(wanted.mode):
                path = join_path(path, wanted.name)
        root = live.root()
        self._check_way(root, path, live, elsewhere=request.to is not None)
        now = find_path(root, path, load, live.ready)
        if now is None and wanted is None:
            raise _unknown(request)
        if request.to is not None and now is not None and wanted is not None:
            self._check_target(now, wanted, live, path)
        plan = make_plan(
            Step(path, None, path.rpartition(b"/")[2], now, wanted), load, live.ready, delete=request.delete
        )
        planned = [_planned(step, load) for step in plan.steps if _is_shown(step)] if request.dry_run else []
        return plan, planned

    def _check_way(self, root: Entry, path: bytes, live: LiveTree, *, elsewhere: bool) -> None:
        """Raises: UsageError: a name on the way is that of a file, or of the past, which nothing new may take."""
        above = b""
        for name in path.split(b"/"):
            above = join_path(above, name)
            shown = above.decode(errors="surrogateescape")
            now = find_path(root, above, live.load(self._history.load), live.ready)
            if now is None and elsewhere and name == self._fs.history_name:
                raise UsageError(f"{shown} is where the past is shown", hint="name another place")
            if now is not None and above != path and not S_ISDIR(now.mode):
                hint = "name another place" if elsewhere else f"restore {shown} itself, or name a place with --to"
                raise UsageError(f"{shown} is not a directory now", hint=hint)

    def _check_target(self, now: Entry, wanted: Entry, live: LiveTree, path: bytes) -> None:
        """Raises: UsageError: the place holds what is not of that snapshot."""
        shown = path.decode(errors="surrogateescape") or "/"
        hint = "name a place that is not there yet, or an empty directory"
        if S_ISDIR(now.mode) != S_ISDIR(wanted.mode) or not S_ISDIR(now.mode):
            if S_ISDIR(now.mode) or not _begins(now, wanted, live, self._history.load):
                raise UsageError(f"{shown} is there already", hint=hint)
            return
        live.ready(now)
        for name in unknown_names(now, wanted, live.load(self._history.load)):
            other = name.decode(errors="surrogateescape")
            raise UsageError(f"{shown} holds {other!r}, which is not what would be restored", hint=hint)


def _unknown(request: Request) -> UsageError:
    return UsageError(
        f"{request.path.decode(errors='surrogateescape')} is not in that snapshot",
        hint="`syncer diff` and `syncer snapshots PATH` show when it was there",
    )


def _begins(now: Entry, wanted: Entry, live: LiveTree, load: Load) -> bool:
    """Whether what is there is what is wanted; or a file with the begin of a long one, as a restoration leaves it that
    was killed: it ends where its last extent does."""
    if S_IFMT(now.mode) != S_IFMT(wanted.mode):
        return False
    if _content(now) == _content(wanted):
        return True
    if wanted.tree is None or now.size > wanted.size:
        return False
    end = 0
    rest = iter_extents(TreeId(wanted.tree), load)
    for extent in now.extents if now.tree is None else iter_extents(TreeId(now.tree), live.load(load)):
        if extent != next(rest, None):
            return False
        end = extent.start + extent.length
    return now.size == end


def _content(entry: Entry) -> tuple[object, ...]:
    return entry.size, entry.extents, entry.tree, entry.target, entry.rdev


def _is_shown(step: Step) -> bool:
    """Not what follows from other steps: that a directory has its times back."""
    return not (step.shallow and step.now is not None and step.wanted is not None and is_dressed(step.now, step.wanted))


def _planned(step: Step, load: Load) -> Planned:
    entry = step.now if step.wanted is None else step.wanted
    assert entry is not None
    action: Action = "remove" if step.wanted is None else "make" if step.now is None else "change"
    if step.shallow:
        return Planned(step.path, action, 0, 0)
    return Planned(step.path, action, *totals_of(entry, load))


def refusal(error: OSError) -> SyncerError:
    """What a command says when the file system refuses."""
    if error.errno == errno.EROFS:
        return WrongRepository("it is mounted read-only", hint="do that where it is mounted for writing")
    if error.errno == errno.ENOSPC:
        return BudgetExhausted("there is no room for more names", hint="give the mount more MB, and do it again")
    return SyncerError(f"the file system refuses: {error.strerror or error}")
