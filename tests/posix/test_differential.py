"""Random steps on a mount and on a plain folder at the same time: whatever can be observed must be the same.

Two processes, one of them an ordinary user where root runs the test, make the same calls on both places. What is
compared after each step, and how, is in `tests.support.differential`. Not compared, because a file system may choose it
or because docs/semantics.md says so:

* the values of times that nobody set, beyond which changed and that they are of now; a regular file's atime after
  reads, which the kernel may answer without us; times of FIFOs that are read and written, which nobody tells us;
* an ordinary user's chown without owner and group while somebody has a file with set-id bits open for writing: to a
  mount it looks like what the kernel sends before a write;
* the set-id bits of a file after a write beyond the largest offset, which ends them in a mount although it fails;
* whether to set an xattr to the value that it has is a change: ext4 keeps the ctime;
* inode numbers, but for which are equal; the sizes of directories; blocks and device numbers; the order of a listing;
* SEEK_DATA and SEEK_HOLE before the end of a file; fallocate, O_TMPFILE, O_DIRECT, ACLs, ioctl: not asked for here.

`SYNCER_TEST_LONG=1` plays 100,000 steps or more, others each time. A failure is shown as the calls of a short sequence;
each that was found is a test of its own, in test_differences.py or with the call it is about.
"""

import fcntl
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from tests.support.differential import NAMES, TOP, WORKERS, Handle, Pair, View
from tests.support.differential_steps import Where
from tests.support.long_form import LONG
from tests.support.mount import Mount, place_for_a_mount
from tests.support.posix import ALICE, FRIENDS
from tests.support.syscalls import (
    AT_EACCESS,
    AT_SYMLINK_FOLLOW,
    AT_SYMLINK_NOFOLLOW,
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    UTIME_NOW,
    UTIME_OMIT,
    Status,
)

STEPS = 100_000 if LONG else 2_000
STEPS_AT_ONCE = 50
CHECK_EVERY = 50
LIFETIME_S = 4 * 3600.0 if LONG else 900.0
SLOTS = 4
END_BYTES = 1_500_000
TOO_FAR = 2**44

PLACE = st.tuples(
    st.sampled_from(("there", "there", "regular", "regular", "directory", "free", "free", "at", "odd")),
    st.integers(0, 60),
)
"""A kind of name, and the how-manieth of them, counted round."""
NEW = st.tuples(st.sampled_from(("free", "free", "free", "there", "at", "odd")), st.integers(0, 60))
INDEX = st.integers(0, 31)
WORKER = st.integers(0, WORKERS - 1)
BORDERS = (0, 1, 4096, 10_000, 65_536, 131_072, 262_144, 300_000, 1_000_000)
SIZE = st.builds(
    lambda border, delta: max(0, border + delta), st.sampled_from(BORDERS), st.sampled_from((0, 0, -1, 1, 100))
)
LENGTH = st.one_of(st.integers(0, 300), SIZE)
ODD_SIZE = st.one_of(SIZE, SIZE, SIZE, st.sampled_from((-1, TOO_FAR - 4096, TOO_FAR)))
SEED = st.integers(0, 5)
MODE = st.sampled_from((0o644, 0o755, 0o777, 0o600, 0o000, 0o070, 0o2775, 0o1777, 0o4755, 0o6777, 0o2644))
ACCESS = st.sampled_from((os.O_RDWR, os.O_RDWR, os.O_RDONLY, os.O_WRONLY, os.O_WRONLY | os.O_RDWR, os.O_PATH))
FLAGS = st.lists(
    st.sampled_from(
        (
            *(os.O_CREAT, os.O_CREAT, os.O_CREAT, os.O_EXCL, os.O_TRUNC, os.O_APPEND, os.O_NOFOLLOW, os.O_DIRECTORY),
            *(os.O_NOATIME, os.O_SYNC, os.O_DSYNC),
        )
    ),
    max_size=3,
)
TIME = st.sampled_from(
    ((0, UTIME_NOW), (0, UTIME_OMIT), (0, 0), (1, 999_999_999), (10**9, 123_456_789), (-5, 7), (2**32 + 5, 9))
)
XATTR = st.sampled_from(
    (b"user.a", b"user.b", b"user.\xff", b"trusted.a", b"security.a", b"user.", b"other.a", b"user." + b"n" * 250)
)
TARGETS = (*NAMES[:3], b"a/b", b"../a", b"..", b".", b"nothing", b"c/", NAMES[5], b"n" * 256, b"", b"a/" * 30)
FIRST = (
    (0, "mkdir", b"a", 0o755),
    (0, "chmod", b"a", 0o2777),
    (1, "mkdir", b"a/b", 0o755),
    (0, "open", 0, b"b", os.O_CREAT | os.O_RDWR, 0o666),
    (0, "write", 0, 2, 300_000),
    (1, "open", 0, b"c", os.O_CREAT | os.O_RDWR, 0o644),
    (1, "write", 0, 3, 10_000),
    (0, "chmod", b"b", 0o6777),
    (1, "open", 1, b"b", os.O_RDWR | os.O_APPEND, 0),
    (0, "setxattr", b"c", b"trusted.a", b"value", 0, True),
    (1, "link", b"c", b"a/c", 0),
    (1, "symlink", b"../b", b"a/d"),
    (0, "open", 1, b"a", os.O_RDONLY, 0),
    (1, "mknod", b"d", stat.S_IFIFO | 0o666, 0),
    (1, "open", 2, b"d", os.O_RDWR, 0),
    (1, "mkdir", b"a/a", 0o755),
    (1, "open", 3, b"a/a", os.O_RDONLY, 0),
)
"""What a sequence may begin with, so that the steps find something."""
BELOW = (b"/", b"/.", b"/a", b"/nothing/a", b"/" + b"n" * 256)


ALL_STEPS: list[st.SearchStrategy[tuple[str, dict[str, Any]]]] = []
CONDITIONS: dict[str, Callable[[View], bool]] = {}
"""By name of the method: when it can do anything."""

Method = TypeVar("Method", bound=Callable[..., None])


def always(view: View) -> bool:
    return True


def is_open(view: View) -> bool:
    return bool(view.held)


def has_directory(view: View) -> bool:
    return any(stat.S_ISDIR(held.status.mode) for held in view.held.values())


def step(condition: Callable[[View], bool], **arguments: st.SearchStrategy[Any]) -> Callable[[Method], Method]:
    """A method that is a kind of steps, all equally frequent.

    As rules of their own they would not be: Hypothesis leaves many of the rules out of each sequence, and what matters
    here is how different kinds meet.
    """

    def note_it(method: Method) -> Method:
        ALL_STEPS.append(st.tuples(st.just(method.__name__), st.fixed_dictionaries(arguments)))
        CONDITIONS[method.__name__] = condition
        return method

    return note_it


class Differential(RuleBasedStateMachine):
    pair: ClassVar[Pair]
    steps = 0
    same = False

    @initialize(first=st.sampled_from((0, 5, 11, len(FIRST), len(FIRST))))
    def begin(self, first: int) -> None:
        self.pair.begin()
        for worker, *step in FIRST[:first]:
            assert isinstance(worker, int)
            self._play(worker, *step)

    def teardown(self) -> None:
        if self.same:
            self.pair.check()

    # --- choosing ----------------------------------------------------------------------------------------------------

    def _play(self, worker: int, *step: object) -> None:
        note(f"worker {worker}: {step}")
        self.same = False
        outcome = self.pair.play(worker, step)
        self.same = True
        note(f"    {outcome}")
        self.steps += 1
        if self.steps % CHECK_EVERY == 0:
            self.pair.check()

    def _kinds(self, wanted: int) -> list[bytes]:
        tree = sorted(self.pair.view.tree.items())
        return [path for path, seen in tree if isinstance(seen, Status) and stat.S_IFMT(seen.mode) == wanted]

    def _where(self, worker: int, place: tuple[str, int]) -> Where:
        """A path of the wanted kind; of another where there is none."""
        kind, index = place
        tree = self.pair.view.tree
        there = sorted(path for path in tree if path != TOP)
        folders = self._kinds(stat.S_IFDIR)
        choice: list[Where]
        match kind:
            case "regular":
                choice = [*self._kinds(stat.S_IFREG)]
            case "directory":
                choice = [*folders[1:], TOP]
            case "at":
                slots = [slot for (who, slot), held in self._held() if who == worker and stat.S_ISDIR(held)]
                choice = [(slot, name) for slot in slots for name in NAMES[:3]]
            case "odd":
                choice = [path + end for path in there for end in BELOW]
                choice += [path + b"/.." for path in folders[1:]] + [TOP]
            case "free":
                paths = [name if path == TOP else path + b"/" + name for name in NAMES for path in folders]
                choice = [path for path in paths if path not in tree]
            case _:
                choice = [*there]
        choice = choice or [*there] or [NAMES[0]]
        return choice[index % len(choice)]

    def _held(self) -> list[tuple[Handle, int]]:
        """Open files and their modes."""
        return [(handle, held.status.mode) for handle, held in sorted(self.pair.view.held.items())]

    def _handle(self, index: int, wanted: int = 0) -> Handle:
        """An open file, of the wanted type where there is one."""
        held = self._held()
        handles = [handle for handle, mode in held if not wanted or stat.S_IFMT(mode) == wanted]
        handles = handles or [handle for handle, _ in held]
        return handles[index % len(handles)]

    def _regular(self, index: int) -> Handle:
        """A regular file; now and then whatever is open."""
        return self._handle(index // 4, stat.S_IFREG if index % 4 else 0)

    def _is_directory(self, handle: Handle) -> bool:
        """Where such a one stands is the file system's own; it may even be too far to read from (EINVAL)."""
        return stat.S_ISDIR(self.pair.view.held[handle].status.mode)

    @rule(name_and_arguments=st.deferred(lambda: st.one_of(ALL_STEPS)))
    def play(self, name_and_arguments: tuple[str, dict[str, Any]]) -> None:
        name, arguments = name_and_arguments
        if CONDITIONS[name](self.pair.view):
            getattr(self, name)(**arguments)

    # --- open files --------------------------------------------------------------------------------------------------

    @step(always, worker=WORKER, place=PLACE, access=ACCESS, flags=FLAGS, mode=MODE)
    def open(self, worker: int, place: tuple[str, int], access: int, flags: list[int], mode: int) -> None:
        taken = {slot for (who, slot), _ in self._held() if who == worker}
        if free := sorted(set(range(SLOTS)) - taken):
            for flag in flags:
                access |= flag
            self._play(worker, "open", free[0], self._where(worker, place), access, mode)

    @step(always, worker=WORKER, place=NEW, truncate=st.booleans(), append=st.booleans())
    def create(self, worker: int, place: tuple[str, int], truncate: bool, append: bool) -> None:
        flags = [os.O_CREAT, os.O_TRUNC * truncate, os.O_APPEND * append]
        self.open(worker, place, os.O_RDWR, flags, 0o666)

    @step(always, worker=WORKER, index=INDEX)
    def open_directory(self, worker: int, index: int) -> None:
        self.open(worker, ("directory", index), os.O_RDONLY, [], 0)

    @step(is_open, index=INDEX)
    def close(self, index: int) -> None:
        worker, slot = self._handle(index)
        self._play(worker, "close", slot)

    @step(is_open, index=INDEX, on=st.booleans())
    def append(self, index: int, on: bool) -> None:
        worker, slot = self._regular(index)
        self._play(worker, "append", slot, on)

    @step(is_open, index=INDEX, offset=st.one_of(st.integers(-300, 300), SIZE), whence=st.integers(0, 2))
    def seek(self, index: int, offset: int, whence: int) -> None:
        worker, slot = self._regular(index)
        directory = self._is_directory((worker, slot))
        self._play(worker, "seek", slot, *((0, os.SEEK_SET) if directory else (offset, whence)))

    @step(is_open, index=INDEX, behind=st.integers(0, 5000), whence=st.sampled_from((os.SEEK_DATA, os.SEEK_HOLE)))
    def seek_hole(self, index: int, behind: int, whence: int) -> None:
        """Only where everybody must say the same: at the end and behind it."""
        worker, slot = self._handle(index, stat.S_IFREG)
        status = self.pair.view.held[worker, slot].status
        if stat.S_ISREG(status.mode):
            self._play(worker, "seek", slot, status.size + behind, whence)

    # --- bytes -------------------------------------------------------------------------------------------------------

    @step(is_open, index=INDEX, length=LENGTH)
    def read(self, index: int, length: int) -> None:
        worker, slot = self._regular(index)
        if not self._is_directory((worker, slot)):
            self._play(worker, "read", slot, length)

    @step(is_open, index=INDEX, offset=ODD_SIZE, length=LENGTH)
    def pread(self, index: int, offset: int, length: int) -> None:
        worker, slot = self._regular(index)
        self._play(worker, "pread", slot, offset, length)

    @step(is_open, index=INDEX, lengths=st.lists(LENGTH, max_size=3))
    def readv(self, index: int, lengths: list[int]) -> None:
        worker, slot = self._regular(index)
        if not self._is_directory((worker, slot)):
            self._play(worker, "readv", slot, tuple(lengths))

    def _fits(self, handle: Handle, length: int) -> bool:
        """Files stay small: each is read whole again and again."""
        held = self.pair.view.held[handle]
        return max(held.position or 0, held.status.size) + length <= END_BYTES

    @step(is_open, index=INDEX, seed=SEED, length=LENGTH)
    def write(self, index: int, seed: int, length: int) -> None:
        worker, slot = self._regular(index)
        if self._fits((worker, slot), length):
            self._play(worker, "write", slot, seed, length)

    @step(is_open, index=INDEX, offset=ODD_SIZE, seed=SEED, length=LENGTH)
    def pwrite(self, index: int, offset: int, seed: int, length: int) -> None:
        worker, slot = self._regular(index)
        ends_bits = self.pair.view.held[worker, slot].status.mode & (stat.S_ISUID | stat.S_ISGID)
        if self._fits((worker, slot), length) and (offset < END_BYTES or (offset == TOO_FAR and not ends_bits)):
            self._play(worker, "pwrite", slot, offset, seed, length)

    @step(is_open, index=INDEX, seed=SEED, lengths=st.lists(LENGTH, max_size=3))
    def writev(self, index: int, seed: int, lengths: list[int]) -> None:
        worker, slot = self._regular(index)
        if self._fits((worker, slot), sum(lengths)):
            self._play(worker, "writev", slot, seed, tuple(lengths))

    @step(always, worker=WORKER, place=PLACE, size=ODD_SIZE)
    def truncate(self, worker: int, place: tuple[str, int], size: int) -> None:
        if size != TOO_FAR - 4096:
            self._play(worker, "truncate", self._where(worker, place), size)

    @step(is_open, index=INDEX, size=ODD_SIZE)
    def ftruncate(self, index: int, size: int) -> None:
        if size != TOO_FAR - 4096:
            worker, slot = self._regular(index)
            self._play(worker, "ftruncate", slot, size)

    @step(is_open, index=INDEX, offset=SIZE, seed=SEED, length=LENGTH)
    def store(self, index: int, offset: int, seed: int, length: int) -> None:
        worker, slot = self._regular(index)
        self._play(worker, "store", slot, offset, seed, length or 1)

    @step(is_open, index=INDEX, offset=SIZE, length=LENGTH)
    def load(self, index: int, offset: int, length: int) -> None:
        worker, slot = self._regular(index)
        self._play(worker, "load", slot, offset, length or 1)

    @step(is_open, index=INDEX, other=INDEX, offset=SIZE, place=SIZE, length=LENGTH)
    def copy(self, index: int, other: int, offset: int, place: int, length: int) -> None:
        worker, source = self._regular(index)
        slots = [slot for (who, slot), _ in self._held() if who == worker]
        target = slots[other % len(slots)]
        if self._fits((worker, target), length):
            self._play(worker, "copy", source, target, offset, place, length)

    @step(is_open, index=INDEX, call=st.sampled_from(("fsync", "fdatasync", "syncfs")))
    def sync(self, index: int, call: str) -> None:
        worker, slot = self._handle(index)
        if call == "syncfs":
            self._play(worker, "syncfs", slot)
        else:
            self._play(worker, "fsync", slot, call == "fdatasync")

    # --- names -------------------------------------------------------------------------------------------------------

    @step(always, worker=WORKER, place=NEW, mode=MODE)
    def mkdir(self, worker: int, place: tuple[str, int], mode: int) -> None:
        where = self._where(worker, place)
        if not isinstance(where, bytes) or where.count(b"/") < 3:
            self._play(worker, "mkdir", where, mode)

    @step(
        always,
        worker=WORKER,
        place=NEW,
        kind=st.sampled_from((stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR)),
    )
    def mknod(self, worker: int, place: tuple[str, int], kind: int) -> None:
        device = os.makedev(1, 3) if kind == stat.S_IFCHR else 0
        self._play(worker, "mknod", self._where(worker, place), kind | 0o664, device)

    @step(always, worker=WORKER, place=NEW, leads_to=st.sampled_from(TARGETS))
    def symlink(self, worker: int, place: tuple[str, int], leads_to: bytes) -> None:
        self._play(worker, "symlink", leads_to, self._where(worker, place))

    @step(always, worker=WORKER, place=PLACE)
    def readlink(self, worker: int, place: tuple[str, int]) -> None:
        self._play(worker, "readlink", self._where(worker, place))

    @step(always, worker=WORKER, place=PLACE, new=NEW, flags=st.sampled_from((0, 0, AT_SYMLINK_FOLLOW)))
    def link(self, worker: int, place: tuple[str, int], new: tuple[str, int], flags: int) -> None:
        self._play(worker, "link", self._where(worker, place), self._where(worker, new), flags)

    @step(always, worker=WORKER, place=PLACE)
    def unlink(self, worker: int, place: tuple[str, int]) -> None:
        self._play(worker, "unlink", self._where(worker, place))

    @step(always, worker=WORKER, place=PLACE)
    def rmdir(self, worker: int, place: tuple[str, int]) -> None:
        self._play(worker, "rmdir", self._where(worker, place))

    @step(
        always,
        worker=WORKER,
        place=PLACE,
        new=st.one_of(NEW, PLACE),
        flags=st.sampled_from((0, 0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE | RENAME_NOREPLACE)),
    )
    def rename(self, worker: int, place: tuple[str, int], new: tuple[str, int], flags: int) -> None:
        self._play(worker, "rename", self._where(worker, place), self._where(worker, new), flags)

    @step(always, worker=WORKER, place=PLACE, other=PLACE)
    def exchange(self, worker: int, place: tuple[str, int], other: tuple[str, int]) -> None:
        self._play(worker, "rename", self._where(worker, place), self._where(worker, other), RENAME_EXCHANGE)

    # --- directories -------------------------------------------------------------------------------------------------

    @step(always, worker=WORKER, place=PLACE)
    def listdir(self, worker: int, place: tuple[str, int]) -> None:
        self._play(worker, "listdir", self._where(worker, place))

    @step(has_directory, index=INDEX, calls=st.integers(1, 3))
    def go_on_listing(self, index: int, calls: int) -> None:
        worker, slot = self._handle(index, stat.S_IFDIR)
        self._play(worker, "list", slot, calls)

    @step(has_directory, index=INDEX)
    def rewind(self, index: int) -> None:
        worker, slot = self._handle(index, stat.S_IFDIR)
        self._play(worker, "seek", slot, 0, os.SEEK_SET)

    # --- attributes --------------------------------------------------------------------------------------------------

    @step(always, worker=WORKER, place=PLACE)
    def look_at(self, worker: int, place: tuple[str, int]) -> None:
        self._play(worker, "stat", self._where(worker, place))

    @step(always, worker=WORKER, place=PLACE, mode=st.integers(0, 7), flags=st.sampled_from((0, AT_EACCESS)))
    def access(self, worker: int, place: tuple[str, int], mode: int, flags: int) -> None:
        self._play(worker, "access", self._where(worker, place), mode, flags)

    @step(always, worker=WORKER, place=PLACE, mode=MODE)
    def chmod(self, worker: int, place: tuple[str, int], mode: int) -> None:
        self._play(worker, "chmod", self._where(worker, place), mode)

    @step(is_open, index=INDEX, mode=MODE)
    def fchmod(self, index: int, mode: int) -> None:
        worker, slot = self._handle(index)
        self._play(worker, "fchmod", slot, mode)

    @step(
        always,
        worker=WORKER,
        place=PLACE,
        uid=st.sampled_from((-1, 0, ALICE.uid)),
        gid=st.sampled_from((-1, 0, ALICE.gid, FRIENDS)),
        follow=st.booleans(),
    )
    def chown(self, worker: int, place: tuple[str, int], uid: int, gid: int, follow: bool) -> None:
        if not self._may_look_like_a_write(worker, uid, gid):
            self._play(worker, "chown", self._where(worker, place), uid, gid, follow)

    @step(is_open, index=INDEX, uid=st.sampled_from((-1, 0, ALICE.uid)), gid=st.sampled_from((-1, ALICE.gid, FRIENDS)))
    def fchown(self, index: int, uid: int, gid: int) -> None:
        worker, slot = self._handle(index)
        if not self._may_look_like_a_write(worker, uid, gid):
            self._play(worker, "fchown", slot, uid, gid)

    def _may_look_like_a_write(self, worker: int, uid: int, gid: int) -> bool:
        """Whether a mount cannot tell this chown from what the kernel sends before somebody's write."""
        held = self.pair.view.held.values()
        written = [one.status.mode for one in held if one.flags & os.O_ACCMODE and stat.S_ISREG(one.status.mode)]
        return worker == 1 and uid == gid == -1 and any(mode & (stat.S_ISUID | stat.S_ISGID) for mode in written)

    @step(always, worker=WORKER, place=PLACE, atime=TIME, mtime=TIME, flags=st.sampled_from((0, AT_SYMLINK_NOFOLLOW)))
    def utimens(
        self, worker: int, place: tuple[str, int], atime: tuple[int, int], mtime: tuple[int, int], flags: int
    ) -> None:
        self._play(worker, "utimens", self._where(worker, place), atime, mtime, flags)

    @step(always, worker=WORKER, mask=st.sampled_from((0o022, 0, 0o077)))
    def umask(self, worker: int, mask: int) -> None:
        self._play(worker, "umask", mask)

    @step(
        always,
        worker=WORKER,
        place=PLACE,
        name=XATTR,
        value=st.sampled_from((b"", b"value", b"\0\xff", b"x" * 200)),
        flags=st.sampled_from((0, 0, os.XATTR_CREATE, os.XATTR_REPLACE)),
        follow=st.booleans(),
    )
    def setxattr(
        self, worker: int, place: tuple[str, int], name: bytes, value: bytes, flags: int, follow: bool
    ) -> None:
        # Never the value that is there: whether that counts as a change is a file system's own affair.
        self._play(worker, "setxattr", self._where(worker, place), name, value + b"%d" % self.steps, flags, follow)

    @step(
        always,
        worker=WORKER,
        place=PLACE,
        call=st.sampled_from(("getxattr", "removexattr", "listxattr")),
        name=XATTR,
        follow=st.booleans(),
    )
    def xattr(self, worker: int, place: tuple[str, int], call: str, name: bytes, follow: bool) -> None:
        where = self._where(worker, place)
        self._play(worker, call, where, *([] if call == "listxattr" else [name]), follow)

    # --- locks -------------------------------------------------------------------------------------------------------

    @step(is_open, index=INDEX, kind=st.sampled_from((fcntl.LOCK_SH, fcntl.LOCK_EX, fcntl.LOCK_UN)))
    def flock(self, index: int, kind: int) -> None:
        worker, slot = self._handle(index)
        self._play(worker, "flock", slot, kind)

    @step(
        is_open,
        index=INDEX,
        call=st.sampled_from((fcntl.F_SETLK, fcntl.F_SETLK, fcntl.F_GETLK, fcntl.F_OFD_SETLK, fcntl.F_OFD_GETLK)),
        kind=st.sampled_from((fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK)),
        start=st.integers(0, 20),
        length=st.integers(0, 10),
    )
    def record(self, index: int, call: int, kind: int, start: int, length: int) -> None:
        worker, slot = self._regular(index)
        self._play(worker, "record", slot, call, kind, start, length)

    # --- what nobody may notice --------------------------------------------------------------------------------------

    @step(always, rare=st.integers(0, 7))
    def forget(self, rare: int) -> None:
        if rare > 3:
            note("the kernel forgets")
            self.pair.forget(everything=rare > 6)

    @step(always, rare=st.integers(0, 7))
    def flush(self, rare: int) -> None:
        if rare > 6:
            note("flush")
            self.pair.flush()


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    """A mount, a plain folder, and the processes that use both."""
    with (
        tempfile.TemporaryDirectory(prefix="syncer-plain-") as plain,
        place_for_a_mount() as place,
        Mount(place, f"{place}/blobs", 200, lifetime_s=LIFETIME_S) as mount,
    ):
        mount.start(*(["--allow-other", "-o", "dev"] if os.geteuid() == 0 else []))
        for folder in (Path(plain), place, mount.path):
            os.chmod(folder, 0o755)
        with Pair(Path(plain), mount.path, mount.data) as pair:
            yield pair
        mount.stop()
        mount.finish()


@pytest.mark.slow
def test_a_mount_and_a_plain_folder_are_the_same(pair: Pair) -> None:
    class Machine(Differential):
        pass

    Machine.pair = pair
    wanted = pair.steps + (STEPS if LONG else STEPS // 2)  # a sequence may be shorter than it could
    while pair.steps < wanted:
        run_state_machine_as_test(
            Machine,
            settings=settings(
                max_examples=STEPS // STEPS_AT_ONCE,
                stateful_step_count=STEPS_AT_ONCE,
                derandomize=not LONG,
                database=None,
                deadline=None,
                phases=(Phase.generate, Phase.shrink),
                suppress_health_check=list(HealthCheck),
            ),
        )
