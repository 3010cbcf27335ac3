"""What must be done to bring back a state of the past: the names in which the live tree differs from it.

Pure, and for the worker thread that holds a moment of the live tree. A directory that is gone is one step, whatever was
in it, so a plan grows with what differs in the directories that are there.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from stat import S_ISDIR

from syncer.snapshots.diff import join_path
from syncer.snapshots.nodes import Entry, Load
from syncer.snapshots.tree import diff_directory, find_entry, iter_directory
from syncer.values import TreeId


@dataclass(frozen=True, slots=True)
class Step:
    """One name to be made as it was. *parent* is the inode of its directory, None where that must be made first.

    *wanted* None: it is to go. *shallow*: a directory that is there, of which only its own attributes are meant; the
    steps for what is in it come before.
    """

    path: bytes
    parent: int | None
    name: bytes
    now: Entry | None
    wanted: Entry | None
    shallow: bool = False


@dataclass(slots=True)
class Plan:
    """*left*: how many names the past does not know, and which stay."""

    steps: list[Step] = field(default_factory=list)
    left: int = 0


def find_path(root: Entry, path: bytes, load: Load, ready: Callable[[Entry], None]) -> Entry | None:
    """What is at *path* below *root*; None when nothing is. *ready* is called with each directory before a look."""
    entry: Entry | None = root
    for name in filter(None, path.split(b"/")):
        if entry is None or entry.tree is None or not S_ISDIR(entry.mode):
            return None
        ready(entry)
        entry = find_entry(TreeId(entry.tree), name, load)
    return entry


def is_as_wanted(now: Entry, wanted: Entry) -> bool:
    """Whether a name looks as it should: neither its number nor what follows from changes elsewhere counts."""
    if not is_dressed(now, wanted) or (now.mtime_ns, now.target, now.rdev) != (
        *(wanted.mtime_ns, wanted.target, wanted.rdev),
    ):
        return False
    return S_ISDIR(now.mode) or (now.size, now.extents, now.tree) == (wanted.size, wanted.extents, wanted.tree)


def is_dressed(now: Entry, wanted: Entry) -> bool:
    """Whether mode, owner and extended attributes are as wanted."""
    return (now.mode, now.uid, now.gid, now.xattrs) == (wanted.mode, wanted.uid, wanted.gid, wanted.xattrs)


class _Links:
    """Names that look as they should, but are of another inode than they were, and these have several names.

    They are as they were if just the names of the one inode are now those of the other.
    """

    def __init__(self) -> None:
        self._found: Counter[tuple[int, int, int, int]] = Counter()
        self._wrong: set[tuple[int, int]] = set()

    def is_other(self, now: Entry, wanted: Entry) -> bool:
        """Note the name; whether it is known to be one of other files than it was."""
        if S_ISDIR(now.mode) or now.inode == wanted.inode or now.nlink == wanted.nlink == 1:
            return False
        self._found[now.inode, wanted.inode, now.nlink, wanted.nlink] += 1
        return (now.inode, wanted.inode) in self._wrong

    def add_up(self) -> bool:
        """After all names were noted: whether any is of other files than it was, and is known to be from now on."""
        self._wrong = {key[:2] for key, count in self._found.items() if not count == key[2] == key[3]}
        return bool(self._wrong)


def make_plan(
    top: Step, load: Load, ready: Callable[[Entry], None] = lambda directory: None, *, delete: bool = False
) -> Plan:
    """The steps to what *top* wants, those inside of a directory before its own.

    *ready* is called with each directory of the live tree before it is looked into. With *delete*, what the past does
    not know is to go.
    """
    links = _Links()
    plan = _walk(top, load, ready, links, delete=delete)
    return _walk(top, load, ready, links, delete=delete) if links.add_up() else plan


def _walk(top: Step, load: Load, ready: Callable[[Entry], None], links: _Links, *, delete: bool) -> Plan:
    plan = Plan()
    waiting: list[tuple[Step, Iterator[Step] | None, tuple[int, int]]] = [(top, None, (0, 0))]
    while waiting:
        step, inside, begun = waiting.pop()
        if inside is None:
            if step.wanted is None:
                plan.left += not delete
                if delete:
                    plan.steps.append(step)
            elif step.now is not None and S_ISDIR(step.now.mode) and S_ISDIR(step.wanted.mode):
                ready(step.now)
                inside = _inside(step, step.now, step.wanted, load)
                waiting.append((step, inside, (len(plan.steps), plan.left)))
            elif step.now is None or not is_as_wanted(step.now, step.wanted) or links.is_other(step.now, step.wanted):
                plan.steps.append(step)
        elif (following := next(inside, None)) is not None:
            waiting += [(step, inside, begun), (following, None, (0, 0))]
        elif _is_touched(step, len(plan.steps) > begun[0], plan.left > begun[1]):
            plan.steps.append(Step(step.path, step.parent, step.name, step.now, step.wanted, shallow=True))
    return plan


def _is_touched(step: Step, changed: bool, has_newer: bool) -> bool:
    """Whether a directory that is there needs its own attributes back: mtime may be that of a newer name in it."""
    now, wanted = step.now, step.wanted
    assert now is not None and wanted is not None
    return changed or not (is_dressed(now, wanted) if has_newer else is_as_wanted(now, wanted))


def _inside(step: Step, now: Entry, wanted: Entry, load: Load) -> Iterator[Step]:
    if now.tree != wanted.tree and now.tree is not None and wanted.tree is not None:
        for name, one, other in diff_directory(TreeId(now.tree), TreeId(wanted.tree), load):
            yield Step(join_path(step.path, name), now.inode, name, one, other)


def unknown_names(now: Entry, wanted: Entry, load: Load) -> Iterator[bytes]:
    """Names in the directory *now* that stand for nothing of the same type in *wanted*."""
    assert now.tree is not None and wanted.tree is not None
    for name, one, other in diff_directory(TreeId(now.tree), TreeId(wanted.tree), load):
        if one is not None and (other is None or S_ISDIR(one.mode) != S_ISDIR(other.mode)):
            yield name


def totals_of(entry: Entry, load: Load) -> tuple[int, int]:
    """(names that are no directories, sizes of these in bytes) of what an entry stands for. Looks at all of it."""
    files = size_bytes = 0
    waiting = [entry]
    while waiting:
        found = waiting.pop()
        if not S_ISDIR(found.mode):
            files, size_bytes = files + 1, size_bytes + found.size
        elif found.tree is not None:
            waiting.extend(iter_directory(TreeId(found.tree), load))
    return files, size_bytes
