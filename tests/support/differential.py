"""A mount and a plain folder, given the same steps: whatever can be observed must be the same after each.

`Pair` has the two places and the two processes that make the calls (see `differential_steps`). It looks at both from
outside, as root where the test runs as root, after each step: attributes of every name and of every open file, and the
bytes and xattrs of what the step changed. `check` compares what that leaves out: listings and everybody's bytes.
"""

import ast
import contextlib
import os
import shutil
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from syncer.control import Client
from tests.support.child import Child
from tests.support.command import CHECKOUT
from tests.support.differential_steps import Outcome, Step
from tests.support.mount import forget_pages
from tests.support.syscalls import Status, status
from tests.support.syscalls_data import CLOCK_REALTIME_COARSE, pass_time

PLACES = ("plain", "mount")
WORKERS = 2
NAMES = (b"a", b"b", b"c", b"d", b"\xff\xfe odd\n", b"n" * 255)
"""All that files are called: so that steps meet, and that it is known where to look."""
TOP = b"."
NEAR_NS = 3600 * 10**9
"""Times that are farther from now were set by a step."""
AS_THEY_LIKE = ("number", "atime_ns", "mtime_ns", "ctime_ns")
"""What of a Status is compared otherwise than as it is."""
READERS = ("read", "pread", "readv", "load", "store", "copy")
"""Steps that read regular files, or map them: the kernel may serve them from its page cache."""
_WORKER = """
import sys
sys.path.insert(0, sys.argv[1])
from tests.support.differential_steps import serve
serve(sys.argv[2] == "ordinary", sys.argv[3:])
"""
WRITERS = ("write", "writev")
"""Steps that write to a FIFO, of which a file system in user space is not told."""

Handle = tuple[int, int]
"""A worker and a slot."""


@dataclass(frozen=True, slots=True)
class Held:
    """An open file of a worker."""

    descriptor: int
    flags: int
    position: int | None
    status: Status


@dataclass(slots=True)
class View:
    """What one place looks like: the names that are there, `.` first, and the open files."""

    tree: dict[bytes, Status | int] = field(default_factory=dict)
    """An errno where we may not look."""
    held: dict[Handle, Held] = field(default_factory=dict)

    def statuses(self) -> dict[int, Status]:
        """By inode number."""
        found = [*self.tree.values(), *(held.status for held in self.held.values())]
        return {seen.number: seen for seen in found if isinstance(seen, Status)}

    def names(self, number: int) -> set[bytes] | None:
        """What the directory of that number has in it; None when it is not in the tree."""
        for path, seen in self.tree.items():
            if isinstance(seen, Status) and seen.number == number:
                below = b"" if path == TOP else path + b"/"
                inside = [other for other in self.tree if other != TOP and other.startswith(below)]
                return {other[len(below) :] for other in inside if b"/" not in other[len(below) :]}
        return None


@dataclass(slots=True)
class Scan:
    """An open directory that is being listed while it changes."""

    throughout: set[bytes]
    """Names that were there all the time: each is listed once."""
    ever: set[bytes]
    seen: tuple[list[bytes], list[bytes]] = field(default_factory=lambda: ([], []))
    ended: list[bool] = field(default_factory=lambda: [False, False])


class Pair:
    """A context manager: the two processes end with it. One `begin` for each sequence of steps.

    Attributes:
        view: the plain folder as it was after the last step; from it steps choose their names and open files.
        steps: how many were played in all.
    """

    def __init__(self, plain: Path, mount: Path, data: Path) -> None:
        """*data* is the mount's DATA."""
        self._roots = (os.fsencode(plain), os.fsencode(mount))
        self._data = data
        self._stack = contextlib.ExitStack()
        self._workers: list[Child] = []
        self._views = (View(), View())
        self._numbers: dict[int, int] = {}
        """Inode numbers of the plain folder -> of the mount, of all that is in the views."""
        self._scans: dict[Handle, Scan] = {}
        self._loose: set[int] = set()
        """Directories that were listed piece by piece (the mount notes the first of the calls alone), and FIFOs that
        were used."""
        self._outer: tuple[bytes, ...] = ()
        self._roots_now: tuple[bytes, ...] = ()
        self._begun = 0
        self._step: Step = ()
        self._began_ns = self._ended_ns = 0
        self.steps = 0
        self._played = 0
        """How many steps since `begin`: the same when the same steps are played again."""

    def __enter__(self) -> Self:
        with self._stack:
            for number in range(WORKERS):
                kind = "ordinary" if number and os.geteuid() == 0 else "same"
                roots = [os.fsdecode(root) for root in self._roots]
                child = Child(_WORKER, CHECKOUT, kind, *roots)
                self._workers.append(self._stack.enter_context(child))
                assert child.says() == "ready"
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    @property
    def view(self) -> View:
        return self._views[0]

    def begin(self) -> None:
        """Empty both places, and close what is open."""
        self._begun += 1
        name = f"{self._begun}".encode()
        old = self._outer
        self._outer = tuple(root + b"/" + name for root in self._roots)
        # Two levels: a symlink to `..` stays among what is ours.
        self._roots_now = tuple(outer + b"/root" for outer in self._outer)
        for folder in (*self._outer, *self._roots_now):
            os.mkdir(folder)
            os.chmod(folder, 0o777)
        for worker in range(WORKERS):
            self._tell(worker, ("begin", name + b"/root"))
        for folder in old:
            remove(folder)
        self._played = 0
        self._scans.clear()
        self._loose.clear()
        self._numbers.clear()
        self._views = self._look()
        self._compare_views()

    # --- a step ------------------------------------------------------------------------------------------------------

    def play(self, worker: int, step: Step) -> Outcome:
        """Let the worker do it on both places and compare what can be observed. Returns what came of it.

        Raises: AssertionError: something differs.
        """
        pass_time(self._ended_ns)
        self.steps += 1
        self._played += 1
        self._step = step
        self._began_ns = time.clock_gettime_ns(CLOCK_REALTIME_COARSE)
        outcomes, _ = self._tell(worker, step)
        self._ended_ns = time.time_ns()
        before, self._views = self._views, self._look()
        if step[0] == "list":
            self._note_listed((worker, step[1]), outcomes)
        else:
            self._same("outcome", *outcomes)
        self._follow_scans(worker, step, outcomes[0])
        self._compare_views()
        self._compare_times(before)
        self._compare_changed(before)
        return outcomes[0]

    def forget(self, *, everything: bool) -> None:
        """Make the kernel drop what it has cached of the mount: its files' bytes, or names and inodes as well."""
        for path in self._regular():
            with contextlib.suppress(PermissionError):
                forget_pages(self._roots_now[1] + b"/" + path)
        if everything and os.geteuid() == 0:
            Path("/proc/sys/vm/drop_caches").write_text("2")

    def flush(self) -> None:
        """Make blocks of all bytes, and send them to the remote."""
        with Client.connect(self._data) as client:
            client.flush(lambda _: None, 60.0)

    def check(self) -> None:
        """Compare everything: listings, bytes and xattrs too."""
        self._step = ("check",)
        pass_time(self._ended_ns)
        for path, seen in self.view.tree.items():
            if isinstance(seen, Status):
                if stat.S_ISDIR(seen.mode):
                    self._same(f"listing of {path!r}", *(self._listing(side, path) for side in range(2)))
                self._compare_file(path)
        for handle in self.view.held:
            self._compare_open(handle)
        self._ended_ns = time.time_ns()
        self._views = self._look()
        self._compare_views()

    # --- looking -----------------------------------------------------------------------------------------------------

    def _tell(self, worker: int, step: Step) -> tuple[list[Outcome], list[dict[int, Any]]]:
        answer = self._workers[worker].ask(repr(step))
        assert answer, f"worker {worker} ended at {step}"
        outcomes, found = ast.literal_eval(answer)
        return outcomes, found

    def _look(self) -> tuple[View, View]:
        plain, mount = (View(dict(self._tree(root))) for root in self._roots_now)
        for worker in range(WORKERS):
            _, found = self._tell(worker, ("look",))
            for view, slots in zip((plain, mount), found, strict=True):
                for slot, (descriptor, flags, position, fields) in slots.items():
                    view.held[worker, slot] = Held(descriptor, flags, position, Status(*fields))
        return plain, mount

    def _tree(self, root: bytes) -> Iterator[tuple[bytes, Status | int]]:
        todo = [TOP]
        while todo:
            path = todo.pop()
            try:
                seen = status(root + b"/" + path)
            except FileNotFoundError:
                continue
            except PermissionError as error:
                yield path, error.errno or 0
                continue
            yield path, seen
            if stat.S_ISDIR(seen.mode):
                todo += [name if path == TOP else path + b"/" + name for name in NAMES]

    def _regular(self) -> list[bytes]:
        tree = self.view.tree.items()
        return [path for path, seen in tree if isinstance(seen, Status) and stat.S_ISREG(seen.mode)]

    def _listing(self, side: int, path: bytes) -> object:
        """Names and kinds. Raises: AssertionError: a number is not the one that lstat tells."""
        try:
            entries = list(os.scandir(self._roots_now[side] + b"/" + path))
        except PermissionError as error:
            return error.errno
        tree = self._views[side].tree
        for entry in entries:
            seen = tree.get(entry.name if path == TOP else path + b"/" + entry.name)
            assert not isinstance(seen, Status) or seen.number == entry.inode(), f"{PLACES[side]}: {entry}"
        return sorted((entry.name, entry.is_dir(follow_symlinks=False), entry.is_symlink()) for entry in entries)

    # --- comparing ---------------------------------------------------------------------------------------------------

    def _same(self, what: str, plain: object, mount: object) -> None:
        assert plain == mount, f"{self._step}: {what}: plain {plain!r}, mount {mount!r}"

    def _compare_views(self) -> None:
        """Names, attributes, open files; and that equal inode numbers here are equal ones there, and stay so."""
        plain, mount = self._views
        self._same("names", sorted(plain.tree), sorted(mount.tree))
        self._same("open files", sorted(plain.held), sorted(mount.held))
        pairs = [(f"{path!r}", seen, mount.tree[path]) for path, seen in plain.tree.items()]
        for handle, held in plain.held.items():
            other = mount.held[handle]
            self._same(f"place of {handle}", (held.flags, held.position), (other.flags, other.position))
            pairs.append((f"open file {handle}", held.status, other.status))
        numbers: dict[int, int] = {}
        for what, one, two in pairs:
            self._same(what, _compared(one), _compared(two))
            if isinstance(one, Status) and isinstance(two, Status):
                expected = numbers.get(one.number, self._numbers.get(one.number, two.number))
                assert two.number == expected, f"{self._step}: {what} became another inode in the mount"
                numbers[one.number] = two.number
        assert len(set(numbers.values())) == len(numbers), f"{self._step}: one inode in the mount is several elsewhere"
        self._numbers = numbers

    def _compare_times(self, before: tuple[View, View]) -> None:
        """Which times changed, that new ones are of now, and that those that were set are as they were set."""
        old, new = ([view.statuses() for view in views] for views in (before, self._views))
        named = {seen.number for seen in self.view.tree.values() if isinstance(seen, Status)}
        for number, plain in new[0].items():
            if number not in old[0] and number not in named:
                continue  # opened through a symlink that leads out of the tree: it is older than this step
            mount = new[1][self._numbers[number]]
            regular, fifo = stat.S_ISREG(plain.mode), stat.S_ISFIFO(plain.mode)
            if fifo and self._step[0] in (*READERS, *WRITERS):
                self._loose.add(number)
            if fifo and number in self._loose:
                continue
            atimes = self._step[0] not in READERS if regular else number not in self._loose
            for name in ("atime_ns", "mtime_ns", "ctime_ns") if atimes else ("mtime_ns", "ctime_ns"):
                what = f"{name} of {plain} and {mount}"
                times = getattr(plain, name), getattr(mount, name)
                if times[0] == times[1]:
                    continue  # set by this step, perhaps to what one of them was: reads are noted differently
                changed = []
                for side, (seen, now) in enumerate(zip((plain, mount), times, strict=True)):
                    earlier = old[side].get(seen.number)
                    changed.append(earlier is None or getattr(earlier, name) != now)
                    if changed[-1] and self._is_near(now):
                        assert self._began_ns <= now <= self._ended_ns, f"{self._step}: {PLACES[side]}: {what}"
                self._same(f"change of {what}", *changed)
                if changed[0] or not regular:
                    self._same(what, *(None if self._is_near(now) else now for now in times))

    def _is_near(self, time_ns: int) -> bool:
        return abs(time_ns - self._ended_ns) < NEAR_NS

    def _compare_changed(self, before: tuple[View, View]) -> None:
        """Bytes and xattrs of what has another size or another time of change than before, and of what was open."""
        old, new = ([view.statuses() for view in views] for views in (before, self._views))
        changed = {
            seen.number
            for seen in new[0].values()
            for mount in [new[1][self._numbers[seen.number]]]
            if _version(seen) != _version(old[0].get(seen.number))
            or _version(mount) != _version(old[1].get(mount.number))
        }
        done: set[int] = set()
        for path, one in self.view.tree.items():
            if isinstance(one, Status) and one.number in changed - done:
                done.add(one.number)
                self._compare_file(path)
        for handle, held in self.view.held.items():
            if held.status.number in changed - done:
                done.add(held.status.number)
                self._compare_open(handle)

    def _compare_file(self, path: bytes) -> None:
        paths = [root + b"/" + path for root in self._roots_now]
        self._same(f"xattrs of {path!r}", *map(_xattrs, paths))
        seen = self.view.tree[path]
        if isinstance(seen, Status) and stat.S_ISREG(seen.mode):
            self._compare_bytes(f"{path!r}", paths)

    def _compare_open(self, handle: Handle) -> None:
        """Of an open file, whether it has a name or not."""
        if stat.S_ISREG(self.view.held[handle].status.mode):
            pid = self._workers[handle[0]].process.pid
            paths = [b"/proc/%d/fd/%d" % (pid, view.held[handle].descriptor) for view in self._views]
            self._compare_bytes(f"open file {handle}", paths)

    def _compare_bytes(self, what: str, paths: list[bytes]) -> None:
        """The whole content, in every second step past the page cache of the mount."""
        if self._played % 2:
            with contextlib.suppress(PermissionError):
                forget_pages(paths[1])
        plain, mount = map(_contents, paths)
        if plain != mount and isinstance(plain, bytes) and isinstance(mount, bytes):
            pairs = zip(plain, mount, strict=False)
            first = next((place for place, (one, other) in enumerate(pairs) if one != other), "the end")
            raise AssertionError(f"{self._step}: {what}: {len(plain)} bytes, {len(mount)} in the mount; from {first}")
        self._same(what, plain, mount)

    # --- directories that are listed while they change ---------------------------------------------------------------

    def _note_listed(self, handle: Handle, outcomes: list[Outcome]) -> None:
        """Order and pace of a listing are a file system's own; that it fails or not is not."""
        self._same("outcome", *((kind, value if kind == "error" else None) for kind, value in outcomes))
        scan = self._scans.get(handle)
        if scan is None or outcomes[0][0] == "error":
            return
        self._loose.add(self.view.held[handle].status.number)
        for side, (_, (ended, names)) in enumerate(outcomes):
            if scan.ended[side]:
                continue
            scan.ended[side] = ended
            scan.seen[side].extend(name for name in names if name not in (b".", b".."))
            if ended:
                once = sorted(name for name in scan.seen[side] if name in scan.throughout)
                text = f"{PLACES[side]} listed {scan.seen[side]} of {scan.throughout}, and of {scan.ever} at times"
                assert once == sorted(scan.throughout) and set(scan.seen[side]) <= scan.ever, text

    def _follow_scans(self, worker: int, step: Step, outcome: Outcome) -> None:
        """What is opened or rewound is listed anew; what is there, and what is not, counts for all others."""
        for handle in [handle for handle in self._scans if handle not in self.view.held]:
            del self._scans[handle]
        for handle, scan in list(self._scans.items()):
            names = self.view.names(self.view.held[handle].status.number)
            scan.throughout &= names or set()
            scan.ever |= names or set()
        if outcome[0] == "value" and step[0] in ("open", "seek"):
            handle = worker, step[1]
            seen = self.view.held[handle].status
            names = self.view.names(seen.number)
            self._scans.pop(handle, None)
            if stat.S_ISDIR(seen.mode) and names is not None:
                self._scans[handle] = Scan(set(names), set(names))


def _version(seen: Status | None) -> tuple[int, ...]:
    return (seen.size, seen.mtime_ns, seen.ctime_ns) if seen else ()


def _compared(seen: Status | int) -> object:
    """What two places must have in common. A directory may have the size it likes."""
    if isinstance(seen, int):
        return seen
    left_out = (*AS_THEY_LIKE, "size") if stat.S_ISDIR(seen.mode) else AS_THEY_LIKE
    return {name: getattr(seen, name) for name in Status.__slots__ if name not in left_out}


def _contents(path: bytes) -> bytes | int | None:
    """All bytes of a file, without a trace of the reading. An errno where we may not."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOATIME)
    except PermissionError as error:
        return error.errno
    try:
        return os.pread(descriptor, os.fstat(descriptor).st_size + 1, 0)
    finally:
        os.close(descriptor)


def _xattrs(path: bytes) -> object:
    try:
        names = os.listxattr(path, follow_symlinks=False)
        return {name: os.getxattr(path, name, follow_symlinks=False) for name in names}
    except PermissionError as error:
        return error.errno


def remove(folder: bytes) -> None:
    """Everything below and the folder itself, whatever its modes are."""
    for place, names, _ in os.walk(folder):
        for name in names:
            path = os.path.join(place, name)
            if not os.path.islink(path):
                os.chmod(path, 0o700)
    shutil.rmtree(folder)
