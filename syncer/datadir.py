"""The folder DATA: what belongs in it, whether it is ours, and the lock that keeps it to one process.

`inspect` looks and changes nothing; `DataDirectory.open` makes what is missing and takes the lock. What the files
mean is the business of their owners: `config.py`, `control.py` and the layers below.
"""

import contextlib
import enum
import errno
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from syncer.errors import DataInUse, DataUnusable
from syncer.meta.doubt import DOUBTED
from syncer.meta.journal import NEW_SEGMENT
from syncer.meta.reserve import RESERVE

LOG_FILE_BYTES = 100_000
LOG_FILES = 3
"""`log` and its rotated predecessors; together at most LOG_FILE_BYTES * LOG_FILES, which counts against the budget."""

FOLDERS = ("cache", "dirty", "journal")
LOCK = "lock"
CONFIG = "config.toml"
DATABASE = "meta.db"
SOCKET = "control.sock"
LOG = "log"
PEER = "peer"
VERIFIED = "verified"
"""What an unfinished check of the remote's bytes has read (snapshots/verified.py)."""
STORE = frozenset({DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm", f"{DATABASE}-journal", RESERVE, DOUBTED, SOCKET})
"""Files of the live file system; with a folder that holds something, they show that DATA has been in use."""
_LOGS = (LOG, *(f"{LOG}.{number}" for number in range(1, LOG_FILES)))
KNOWN = STORE | {*FOLDERS, LOCK, CONFIG, f"{CONFIG}.new", PEER, f"{PEER}.new", VERIFIED, NEW_SEGMENT, *_LOGS}
FOREIGN = frozenset({"lost+found"})
"""What an otherwise empty folder may hold: the root of a fresh ext4 file system does."""

CONTENTION_S = 0.3
"""How long to try for the lock: `is_locked` holds it for a moment, and must not make a mount fail."""


class Condition(enum.Enum):
    """What `inspect` found at a path that can be DATA."""

    ABSENT = "it does not exist, its parent is writable"
    EMPTY = "an empty folder"
    UNUSED = "ours, but no file system has lived in it yet: what an interrupted first mount leaves"
    OURS = "ours, with a file system"


def inspect(path: Path) -> Condition:
    """Tell whether *path* can be DATA, without changing anything.

    Raises: DataUnusable: it cannot; the message says why.
    """
    try:
        names = set(os.listdir(path)) - FOREIGN
    except FileNotFoundError:
        return _inspect_parent(path)
    except NotADirectoryError:
        raise DataUnusable(f"{path} is not a folder", hint="name a folder for DATA") from None
    except OSError as error:
        raise _unusable(path, error) from error
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK, effective_ids=True):
        raise DataUnusable(f"{path} is not writable", hint="run syncer as its owner, or name another folder for DATA")
    if not names:
        return Condition.EMPTY
    complete = {LOCK, *FOLDERS} <= names
    used = not names.isdisjoint(STORE) or any(_holds_something(path / folder) for folder in FOLDERS)
    if complete and used:
        return Condition.OURS
    if not used and (names <= KNOWN or (complete and CONFIG in names)):
        return Condition.UNUSED
    raise DataUnusable(f"{path} is not empty and not a syncer directory", hint="name a new or an empty folder for DATA")


def is_data(path: Path) -> bool:
    """Whether *path* is a DATA directory that a mount has set up; unreadable ones are not."""
    try:
        return (path / LOCK).is_file() and (path / CONFIG).is_file() and all((path / name).is_dir() for name in FOLDERS)
    except OSError:
        return False


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock of the DATA directory *path* right now."""
    try:
        descriptor = os.open(path / LOCK, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


@contextlib.contextmanager
def kept_still(path: Path) -> Iterator[None]:
    """Keep everybody who would change the DATA directory *path* out while the body runs, and change nothing in it.

    Raises: DataUnusable; DataInUse: somebody is in already.
    """
    try:
        descriptor = os.open(path / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise _unusable(path, error) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise in_use(path) from None
    finally:
        os.close(descriptor)


def lock_pid(path: Path) -> int | None:
    """The process that took the lock of *path* last, as it wrote down itself; None when that cannot be told."""
    try:
        return int((path / LOCK).read_text("ascii"))
    except (OSError, ValueError):
        return None


class DataDirectory:
    """A DATA directory that this process holds the lock of. A context manager; leaving it frees the lock.

    Attributes:
        path: absolute.
        fresh: no file system has lived in it yet.
    """

    def __init__(self, path: Path, descriptor: int, before: Condition, mode: int | None) -> None:
        """For `open` alone; *before* and *mode* are how the folder was found."""
        self.path = path
        self.fresh = before is not Condition.OURS
        self._descriptor = descriptor
        self._before = before
        self._mode = mode

    @property
    def config(self) -> Path:
        return self.path / CONFIG

    @property
    def database(self) -> Path:
        return self.path / DATABASE

    @property
    def cache(self) -> Path:
        return self.path / "cache"

    @property
    def dirty(self) -> Path:
        return self.path / "dirty"

    @property
    def journal(self) -> Path:
        return self.path / "journal"

    @property
    def socket(self) -> Path:
        return self.path / SOCKET

    @property
    def log(self) -> Path:
        return self.path / LOG

    @classmethod
    def open(cls, path: Path) -> Self:
        """Lock *path* as DATA, and make what it lacks: the folder itself, with mode 0700, and its subfolders.

        All or nothing: when it raises, everything is as before.

        Raises: DataUnusable, DataInUse.
        """
        path = path.absolute()
        before = inspect(path)
        mode = None if before is Condition.ABSENT else path.stat().st_mode & 0o7777
        try:
            if before is Condition.ABSENT:
                path.mkdir(mode=0o700)
        except FileExistsError:
            return cls.open(path)  # somebody was faster; what is there now decides
        except OSError as error:
            raise _unusable(path, error) from error
        try:
            descriptor = _lock(path)
        except BaseException:
            if before is Condition.ABSENT:
                with contextlib.suppress(OSError):  # not empty: somebody else is at home there now
                    path.rmdir()
            raise
        directory = cls(path, descriptor, before, mode)
        try:
            os.chmod(path, 0o700)
            for name in FOLDERS:
                (path / name).mkdir(mode=0o700, exist_ok=True)
        except BaseException as error:
            directory.discard()
            if isinstance(error, OSError):
                raise _unusable(path, error) from error
            raise
        return directory

    def discard(self) -> None:
        """Free the lock and, unless a file system lived here before, take back all that was made since `open`.

        For a first mount that failed before anybody could use it. Nothing but syncer's own names is removed, and
        nothing at all from a directory that was in use.
        """
        try:
            if self._before in (Condition.ABSENT, Condition.EMPTY):
                self._remove(KNOWN)
                if self._before is Condition.ABSENT:
                    with contextlib.suppress(OSError):  # not empty: what is in it is not ours, and stays
                        self.path.rmdir()
            elif self._before is Condition.UNUSED:
                self._remove(STORE)
                for name in FOLDERS:
                    self._remove([name])
                    (self.path / name).mkdir(mode=0o700)
            if self._mode is not None:
                os.chmod(self.path, self._mode)
        finally:
            self.close()

    def _remove(self, names: "frozenset[str] | list[str]") -> None:
        for name in names:
            entry = self.path / name
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink(missing_ok=True)

    def close(self) -> None:
        """Free the lock; safe to call twice."""
        if self._descriptor >= 0:
            os.ftruncate(self._descriptor, 0)  # a free lock names nobody
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _inspect_parent(path: Path) -> Condition:
    parent = path.parent
    if path.is_symlink():
        raise DataUnusable(f"{path} is a link to nowhere", hint="remove it, or name another folder for DATA")
    if not parent.is_dir():
        raise DataUnusable(f"{parent} is not a folder", hint=f"make it (`mkdir -p {parent}`), or name another DATA")
    if not os.access(parent, os.W_OK | os.X_OK, effective_ids=True):
        raise DataUnusable(f"{path} cannot be made: {parent} is not writable", hint="name another folder for DATA")
    return Condition.ABSENT


def _holds_something(folder: Path) -> bool:
    try:
        with os.scandir(folder) as entries:
            return next(entries, None) is not None
    except FileNotFoundError:
        return False
    except NotADirectoryError:
        return True
    except OSError as error:
        raise _unusable(folder, error) from error


def _lock(path: Path) -> int:
    """Take the lock of *path* and write our process id into it; returns the descriptor that holds it."""
    end = time.monotonic() + CONTENTION_S
    while True:
        try:
            descriptor = os.open(path / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise _unusable(path, error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The file may have been removed by a first mount that took itself back while we waited for the lock.
            if os.path.samestat(os.fstat(descriptor), os.stat(path / LOCK)):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
                return descriptor
            os.close(descriptor)
        except BlockingIOError:
            os.close(descriptor)
            if time.monotonic() > end:
                raise in_use(path) from None
        except FileNotFoundError:
            os.close(descriptor)
        except OSError as error:
            os.close(descriptor)
            raise _unusable(path, error) from error
        time.sleep(0.02)


def in_use(path: Path) -> DataInUse:
    """The error for a *path* that `is_locked`."""
    pid = lock_pid(path)
    holder = f"process {pid}" if pid else "another process"
    return DataInUse(f"{path} is in use by {holder}", hint=f"`syncer umount {path}` ends a mount; or name another DATA")


def _unusable(path: Path, error: OSError) -> DataUnusable:
    reason = error.strerror or str(error)
    hints = {
        errno.EACCES: "run syncer as its owner, or name another folder for DATA",
        errno.ENOSPC: "make room on that disk",
        errno.EROFS: "name a folder on a writable disk for DATA",
    }
    return DataUnusable(
        f"{path} cannot be used as DATA: {reason}", hint=hints.get(error.errno or 0, "name another DATA")
    )


def need_database(data: Path) -> None:
    """Raises: DataUnusable: DATA has never been mounted."""
    if not (data / DATABASE).exists():
        raise DataUnusable(f"{data} holds no file system yet", hint="mount it once: syncer DATA REMOTE MOUNTPOINT MB")
