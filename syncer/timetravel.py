"""What the commands ask of history, answered by an open engine: take, compare, restore, delete snapshots, and prune.

Questions and answers are JSON: a mount gets and gives them over its control socket, and a command without a mount asks
an engine of its own the same way. Names are text with the bytes that are no UTF-8 escaped, as in `os.fsdecode`.
"""

import contextlib
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from functools import partial
from stat import S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFMT, S_IFREG, S_IFSOCK
from typing import TypeVar

import msgspec

from syncer.engine import Engine
from syncer.errors import SyncerError, UsageError, WrongRepository
from syncer.fs.restoring import Request, refusal
from syncer.snapshots.changelist import ChangeList
from syncer.snapshots.diff import Change, Stat, Tally, each_change
from syncer.snapshots.history import Place, Snapshot
from syncer.snapshots.listing import CompareNow, deleted
from syncer.snapshots.live import LiveTree
from syncer.snapshots.naming import snapshot_names
from syncer.snapshots.nodes import Entry
from syncer.snapshots.plan import find_path
from syncer.snapshots.prune import UNLIMITED, Plan, Step
from syncer.snapshots.retention import parse
from syncer.snapshots.selector import NoSuchSnapshot, check_label, is_now, named, select
from syncer.snapshots.tree import load_root
from syncer.snapshots.versions import versions
from syncer.values import ROOT_INODE

Q = TypeVar("Q", bound=msgspec.Struct)
log = logging.getLogger(__name__)
Tell = Callable[[int, int], None]
"""Is told (done, total) bytes now and then."""
LIST_WAIT_S = 10.0
"""How long a list waits for the remote to say what is new; then it shows what is known."""


class Said(msgspec.Struct, frozen=True):
    """A snapshot as somebody named it, and the moment that it is for them, if it is one."""

    text: str
    moment_ns: int | None = None


class SnapshotQuestion(msgspec.Struct, frozen=True):
    label: str | None = None


class DiffQuestion(msgspec.Struct, frozen=True):
    """*new* None: the live tree. *path*, from the root on; *path_unless* is it if *new* turns out to be no snapshot."""

    old: Said
    new: Said | None = None
    path: str = ""
    path_unless: str | None = None
    only_stat: bool = False


class ListQuestion(msgspec.Struct, frozen=True):
    """Snapshots from *since_ns* to *until_ns*; with a *path* its versions among them, or what was *deleted* below it.

    *changes*: of how many of them, the newest, it is to be told what came with them.
    """

    since_ns: int | None = None
    until_ns: int | None = None
    path: str = ""
    deleted: bool = False
    changes: int = 0


class RestoreQuestion(msgspec.Struct, frozen=True):
    snapshot: Said
    path: str
    to: str | None = None
    delete: bool = False
    dry_run: bool = False
    snapshot_first: bool = True


class DeleteQuestion(msgspec.Struct, frozen=True):
    snapshot: Said


class PruneQuestion(msgspec.Struct, frozen=True):
    """*keep* None: the policy of the settings. *max_repack* None: as much as it takes.

    *forget* names a machine that followed, and will not come back.
    """

    keep: str | None = None
    dry_run: bool = False
    max_repack: int | None = None
    forget: str | None = None


def only_looks(what: str, arguments: Mapping[str, object]) -> bool:
    """Whether the question may be asked where nothing may be written."""
    return what in ("diff", "list") or (what == "prune" and arguments.get("dry_run") is True)


async def answer(
    engine: Engine, what: str, arguments: Mapping[str, object], tell: Tell, *, released: bool = False
) -> dict[str, object]:
    """The answer to the question *what*: `snapshot`, `list`, `diff`, `restore`, `delete` or `prune`.

    *released* says that nobody will write from here afterwards, in the snapshot that is taken.

    Raises: SyncerError.
    """
    answers: dict[str, Callable[[], Awaitable[dict[str, object]]]] = {
        "snapshot": lambda: _snapshot(engine, _read(arguments, SnapshotQuestion), tell, released),
        "list": lambda: _list(engine, _read(arguments, ListQuestion)),
        "diff": lambda: _diff(engine, _read(arguments, DiffQuestion)),
        "restore": lambda: _restore(engine, _read(arguments, RestoreQuestion)),
        "delete": lambda: _delete(engine, _read(arguments, DeleteQuestion), released),
        "prune": lambda: _prune(engine, _read(arguments, PruneQuestion), tell, released),
    }
    if engine.follower is not None and what not in ("list", "diff"):
        raise WrongRepository("this mount follows another machine's", hint="ask there, or on its mount")
    if what not in answers:
        raise SyncerError(f"nothing is known here of {what!r}", hint="is it of another version?")
    try:
        return await answers[what]()
    except OSError as error:
        raise refusal(error) from error


def _read(arguments: Mapping[str, object], kind: type[Q]) -> Q:
    try:
        return msgspec.convert(dict(arguments), kind)
    except msgspec.ValidationError as error:
        raise SyncerError(f"the request makes no sense: {error}", hint="is it of another version?") from error


async def _select(engine: Engine, said: Said) -> Snapshot:
    """Raises: NoSuchSnapshot."""
    if engine.read_only:  # others go on writing: what is known here may lack the one that is meant
        await engine.history.snapshots(LIST_WAIT_S)
    try:
        return select(said.text, engine.history.known(), said.moment_ns)
    except NoSuchSnapshot:
        return select(said.text, await engine.history.snapshots(), said.moment_ns)


async def _named(engine: Engine, text: str) -> Snapshot:
    """The snapshot that is called *text*. What is to go for good is not looked for by a moment: a name that is mistyped
    may be one, and the newest snapshot before it another one than was meant.

    Raises: NoSuchSnapshot.
    """
    found = named(text, engine.history.known()) or named(text, await engine.history.snapshots())
    if found is None:
        hint = "give its name, its label or its id, no moment; `syncer snapshots` lists them"
        raise NoSuchSnapshot(f"no snapshot is called {text!r}", hint=hint)
    return found


def _described(engine: Engine, snapshot: Snapshot) -> dict[str, object]:
    names = snapshot_names(engine.history.known())
    name = next((name for name, found in names.items() if found.place == snapshot.place), b"")
    return {
        "name": os.fsdecode(name),
        "place": f"{snapshot.peer}/{snapshot.seq}",
        "id": snapshot.id,
        "time_ns": snapshot.time_ns,
        "label": snapshot.label,
    }


# --- taking one -------------------------------------------------------------------------------------------------


async def _snapshot(engine: Engine, question: SnapshotQuestion, tell: Tell, released: bool) -> dict[str, object]:
    engine.file_system.check_writable()
    label = question.label
    if label is not None:
        everybody = await engine.history.snapshots()
        check_label(label, everybody)
    await engine.publisher.publish(
        "manual",
        label=label,
        released=released,
        progress=tell,
        check=lambda: None if label is None else check_label(label, engine.history.known()),
    )
    return _described(engine, engine.history.known()[-1])


# --- listing ----------------------------------------------------------------------------------------------------


async def _list(engine: Engine, question: ListQuestion) -> dict[str, object]:
    known = await engine.history.snapshots(LIST_WAIT_S)
    low = -(2**63) if question.since_ns is None else question.since_ns
    high = 2**63 if question.until_ns is None else question.until_ns
    chosen = [snapshot for snapshot in known if low <= snapshot.time_ns <= high]
    names = {snapshot.place: os.fsdecode(name) for name, snapshot in snapshot_names(known).items()}
    path = os.fsencode(question.path).strip(b"/")
    found: list[tuple[Mapping[str, object], Mapping[str, object]]]
    if question.deleted:
        gone = await deleted(engine.history, path, chosen, _compare_now(engine) if question.until_ns is None else None)
        found = [(_one(item.snapshot, names), {"path": os.fsdecode(item.path), **_entry(item.entry)}) for item in gone]
    elif path:
        past = await versions(engine.history, path, chosen)
        found = [(_one(item.snapshot, names), _entry(item.entry)) for item in past]
    else:
        before = dict(zip((snapshot.place for snapshot in known), (None, *known), strict=False))
        told = {snapshot.place for snapshot in chosen[max(0, len(chosen) - question.changes) :]}
        found = [
            (_one(shot, names), await _news(engine, shot, before[shot.place]) if shot.place in told else NO_NEWS)
            for shot in chosen
        ]
    return {"items": [{**snapshot, **more} for snapshot, more in found]}


def _compare_now(engine: Engine) -> CompareNow | None:
    """What compares a snapshot with the live tree; None where there is none, because the repository is only visited."""
    if not (engine.meta.peer or engine.meta.snapshots.is_built()):
        return None

    def changes(snapshot: Snapshot, path: bytes, live: LiveTree) -> list[Change]:
        found: list[Change] = []
        _each_change(engine, snapshot, None, path, found.append, live)
        return found

    async def compare_now(snapshot: Snapshot, path: bytes) -> Sequence[Change]:
        return await engine.publisher.examine(partial(changes, snapshot, path))

    return compare_now


NO_NEWS: Mapping[str, object] = {"new_bytes": None, "changes": None}


async def _news(engine: Engine, snapshot: Snapshot, before: Snapshot | None) -> Mapping[str, object]:
    """What came with it, if the trees can be had."""
    try:
        news = await engine.lister.news_of(snapshot, before)
    except SyncerError as error:
        log.warning("what came with snapshot %d/%d cannot be told: %s", *snapshot.place, error)
        return NO_NEWS
    return {"new_bytes": news.new_bytes, "changes": msgspec.to_builtins(news.changes)}


def _one(snapshot: Snapshot, names: Mapping[Place, str]) -> dict[str, object]:
    return {
        "name": names[snapshot.place],
        "place": f"{snapshot.peer}/{snapshot.seq}",
        "id": snapshot.id,
        "time_ns": snapshot.time_ns,
        "label": snapshot.label,
        "reason": snapshot.reason,
        "host": snapshot.host,
        "files": snapshot.files,
        "directories": snapshot.directories,
        "logical_bytes": snapshot.logical_bytes,
        "unique_bytes": snapshot.unique_bytes,
    }


def _entry(entry: Entry | None) -> dict[str, object]:
    if entry is None:
        return {"type": None, "size": None, "mtime_ns": None, "mode": None, "inode": None}
    kind = _TYPES.get(S_IFMT(entry.mode), "other")
    return {"type": kind, "size": entry.size, "mtime_ns": entry.mtime_ns, "mode": entry.mode, "inode": entry.inode}


# --- comparing --------------------------------------------------------------------------------------------------


async def _diff(engine: Engine, question: DiffQuestion) -> dict[str, object]:
    old = await _select(engine, question.old)
    new = None if engine.follower is None else engine.follower.shown
    path, instead = question.path, ""
    if question.new is not None and not is_now(question.new.text):
        try:
            new = await _select(engine, question.new)
        except NoSuchSnapshot as error:
            if question.path_unless is None:
                raise
            path, instead = question.path_unless, f"{error}, and "
    if new is None and engine.meta.inodes.get(ROOT_INODE) is None:
        raise UsageError("nothing is mounted that could be compared with", hint="name two snapshots")
    differences = partial(_differences, engine, old, new, os.fsencode(path).strip(b"/"), question.only_stat)
    found = await engine.publisher.examine(differences)
    if found is None:
        raise UsageError(
            f"{instead}{path} is in neither of the two states",
            hint="name a path that is there now, or was; `syncer snapshots` lists the snapshots",
        )
    return {
        "old": _described(engine, old),
        "new": None if new is None else _described(engine, new),
        "stat": msgspec.to_builtins(found[0]),
        "items": found[1],
    }


def _differences(
    engine: Engine, old: Snapshot, new: Snapshot | None, path: bytes, only_stat: bool, live: LiveTree
) -> tuple[Stat, ChangeList] | None:
    """How much differs at *path*, and unless *only_stat* what; None when there is nothing in either state. In a
    thread."""
    tally, items = Tally(), ChangeList()

    def tell(change: Change) -> None:
        tally.add(change)
        if not only_stat:
            items.add(change.path, change.kind, _change(change))

    return (tally.stat(), items) if _each_change(engine, old, new, path, tell, live) else None


def _each_change(
    engine: Engine,
    old: Snapshot,
    new: Snapshot | None,
    path: bytes,
    tell: Callable[[Change], None],
    live: LiveTree,
) -> bool:
    """Tell what differs at *path*; False when there is nothing in either state. In a thread."""
    load = engine.history.load if new is not None else live.load(engine.history.load)
    ready: Callable[[Entry], None] = live.ready if new is None else lambda directory: None
    after = live.root() if new is None else load_root(new.root, load)
    before = find_path(load_root(old.root, load), path, load, lambda directory: None)
    now = find_path(after, path, load, ready)
    if before is None and now is None:
        return False
    each_change(before, now, load, tell, path, ready)
    return True


_TYPES = {
    S_IFREG: "file",
    S_IFDIR: "directory",
    S_IFLNK: "symlink",
    S_IFIFO: "fifo",
    S_IFSOCK: "socket",
    S_IFCHR: "device",
    S_IFBLK: "device",
}


def _change(change: Change) -> dict[str, object]:
    entry = change.new or change.old
    assert entry is not None
    return {
        "change": change.kind,
        "path": os.fsdecode(change.path),
        "old_path": None if change.old_path is None else os.fsdecode(change.old_path),
        "type": _TYPES.get(S_IFMT(entry.mode), "other"),
        "aspects": list(change.aspects),
        "old_size": None if change.old is None else change.old.size,
        "new_size": None if change.new is None else change.new.size,
        "inode": entry.inode,
    }


# --- restoring --------------------------------------------------------------------------------------------------


async def _restore(engine: Engine, question: RestoreQuestion) -> dict[str, object]:
    snapshot = await _select(engine, question.snapshot)
    report = await engine.restoring.restore(
        Request(
            snapshot=snapshot,
            path=os.fsencode(question.path).strip(b"/"),
            to=None if question.to is None else os.fsencode(question.to).strip(b"/"),
            delete=question.delete,
            dry_run=question.dry_run,
            snapshot_first=question.snapshot_first,
        )
    )
    return {
        "snapshot": _described(engine, snapshot),
        "before": None if report.before is None else "{}/{}".format(*report.before),
        "made": report.made,
        "changed": report.changed,
        "removed": report.removed,
        "left": report.left,
        "problems": [{"path": os.fsdecode(found.path), "reason": found.reason} for found in report.problems],
        "items": [
            {"path": os.fsdecode(step.path), "action": step.action, "files": step.files, "bytes": step.size_bytes}
            for step in report.planned
        ],
    }


# --- deleting ---------------------------------------------------------------------------------------------------


async def _delete(engine: Engine, question: DeleteQuestion, released: bool) -> dict[str, object]:
    engine.file_system.check_writable()
    snapshot = await _named(engine, question.snapshot.text)
    described = _described(engine, snapshot)
    async with _claimed(engine, released):
        await engine.thinner.delete(snapshot)
    return described


async def _prune(engine: Engine, question: PruneQuestion, tell: Tell, released: bool) -> dict[str, object]:
    policy = engine.housekeeper.policy if question.keep is None else parse(question.keep)
    most = UNLIMITED if question.max_repack is None else question.max_repack
    await engine.history.snapshots()
    names = {f"{one.peer}/{one.seq}": name for name, one in snapshot_names(engine.history.known()).items()}

    def hear(event: Step | Plan) -> None:
        if isinstance(event, Step):
            tell(event.done, event.total)

    if question.dry_run:
        plan = await engine.pruner.prune(policy, hear, dry_run=True, rewrite_max_bytes=most, forget=question.forget)
    else:
        engine.file_system.check_writable()
        async with _claimed(engine, released):
            plan = await engine.pruner.prune(policy, hear, rewrite_max_bytes=most, forget=question.forget)
    return {
        **{field: getattr(plan, field) for field in _FIGURES},
        "followers": [
            {
                "id": one.id,
                "host": one.host,
                "keeps": [os.fsdecode(names.get(f"{peer}/{seq}", b"%d/%d" % (peer, seq))) for peer, seq in one.places],
            }
            for one in plan.followers
        ],
        "items": [
            {**msgspec.to_builtins(going), "name": os.fsdecode(names.get(going.place, going.place.encode()))}
            for going in plan.going
        ],
    }


_FIGURES = (
    *("kept_snapshots", "remote_bytes", "history_bytes", "dead_bytes", "freed_bytes"),
    *("deleted_packs", "rewritten_packs", "rewritten_bytes"),
)


@contextlib.asynccontextmanager
async def _claimed(engine: Engine, release: bool) -> AsyncIterator[None]:
    """For the with block the remote says that somebody writes: nobody must join while packs are deleted.

    *release* says afterwards that nobody does any more.
    """
    if engine.publisher.released:
        await engine.publisher.publish("manual")
    try:
        yield
    finally:
        if release:
            with contextlib.suppress(SyncerError):  # the next one who publishes says so
                await engine.publisher.publish("unmount", released=True)
