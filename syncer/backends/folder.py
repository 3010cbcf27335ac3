"""A remote that is a folder: a USB disk, a NAS mount, or a disk of this machine.

An object is a file at its key. It is written under a name in `tmp~/` (which is no key, so it is never listed), made
durable, and renamed into place. File calls run in threads, because a network file system may block for minutes.
"""

import contextlib
import errno
import os
import secrets
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import trio

from syncer.backends.base import (
    Backend,
    ObjectInfo,
    check_key,
    check_range,
    is_segment,
    resolve_range,
)
from syncer.backends.pages import Folder, Pages, walk
from syncer.backends.threads import in_thread
from syncer.errors import BackendError, ObjectCorrupt, ObjectMissing, RemoteFull, RemoteRefused, RemoteUnreachable

T = TypeVar("T")

TEMPORARY = "tmp~"
TEMPORARY_AGE_S = 24 * 3600
"""A temporary file older than this was left by a put that died: no put takes a day."""

_FULL = {errno.ENOSPC, errno.EDQUOT}
_REFUSED = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.ELOOP,
    errno.EFBIG,
    errno.ENAMETOOLONG,
}
_NO_FSYNC = {errno.EINVAL, errno.ENOTSUP, errno.EROFS}
"""What a file system answers that cannot fsync a directory."""


class FolderBackend(Backend):
    """See `Backend`. The folder is made by the first put; once seen it must stay the same folder.

    A folder that vanishes or turns into another one (the disk was unplugged and its mountpoint is bare) is
    RemoteUnreachable until it is back, so nothing is ever written below a mountpoint by mistake.
    """

    parallelism = 4

    def __init__(self, root: Path) -> None:
        """*root* is absolute; it need not exist yet."""
        self.name = str(root)
        self._root = str(root)
        self._identity: tuple[int, int] | None = None
        self._cleaned = False
        self._limiter = trio.CapacityLimiter(self.parallelism)

    async def put(self, key: str, data: bytes | memoryview) -> None:
        path = self._path(key)
        await self._in_thread(lambda: self._put(path, data))

    async def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        path = self._path(key)
        check_range(offset, length)
        return await self._in_thread(lambda: self._get(key, path, offset, length))

    async def stat(self, key: str) -> ObjectInfo:
        path = self._path(key)
        return await self._in_thread(lambda: self._stat(key, path))

    def list(self, prefix: str = "") -> Pages:
        async def read_folder(prefix: str) -> Folder:
            return await self._in_thread(lambda: self._read_folder(prefix))

        return walk(read_folder, prefix)

    async def delete(self, key: str) -> None:
        path = self._path(key)
        await self._in_thread(lambda: self._delete(path))

    async def close(self) -> None:
        """Nothing to release: each call opens and closes its own file."""
        await trio.lowlevel.checkpoint()

    def _path(self, key: str) -> str:
        return f"{self._root}/{check_key(key)}"

    async def _in_thread(self, work: Callable[[], T]) -> T:
        def translated() -> T:
            try:
                return work()
            except OSError as error:
                raise _translate(error, self.name) from error

        return await in_thread(translated, self._limiter)

    # --- in a thread from here on; only OSError and BackendError come out -----------------------------------------

    def _put(self, path: str, data: bytes | memoryview) -> None:
        self._prepare()
        temporary = f"{self._root}/{TEMPORARY}/{secrets.token_hex(16)}"
        try:
            _write(temporary, data)
            folder = os.path.dirname(path)
            _make_folders(folder, self._root)
            os.rename(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        _fsync_folder(folder)

    def _get(self, key: str, path: str, offset: int, length: int | None) -> bytes:
        try:
            file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise self._absent(key) from error
        try:
            state = os.fstat(file)
            if not stat.S_ISREG(state.st_mode):
                raise self._absent(key)
            wanted = resolve_range(key, state.st_size, offset, length)
            parts = []
            while wanted:
                part = os.pread(file, wanted, offset)
                if not part:
                    raise ObjectCorrupt(f"{self.name}: {key} was cut short while it was read")
                parts.append(part)
                offset += len(part)
                wanted -= len(part)
            return parts[0] if len(parts) == 1 else b"".join(parts)
        finally:
            os.close(file)

    def _stat(self, key: str, path: str) -> ObjectInfo:
        try:
            state = os.stat(path)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise self._absent(key) from error
        if not stat.S_ISREG(state.st_mode):
            raise self._absent(key)
        return ObjectInfo(key, state.st_size)

    def _read_folder(self, prefix: str) -> Folder:
        folders: list[str] = []
        objects: list[ObjectInfo] = []
        if not prefix:
            self._check_there()  # a bare mountpoint can be read as well
        try:
            with os.scandir(f"{self._root}/{prefix}") as entries:
                for entry in entries:
                    if not is_segment(entry.name):
                        continue
                    if entry.is_dir():
                        folders.append(f"{prefix}{entry.name}/")
                    elif entry.is_file():
                        with contextlib.suppress(FileNotFoundError):  # deleted since the folder was read
                            objects.append(ObjectInfo(prefix + entry.name, entry.stat().st_size))
        except (FileNotFoundError, NotADirectoryError):
            self._check_there()
        return Folder(folders, objects)

    def _delete(self, path: str) -> None:
        try:
            os.unlink(path)
        except (FileNotFoundError, NotADirectoryError):
            self._check_there()
        except IsADirectoryError:
            return  # no such object

    def _prepare(self) -> None:
        """Have the folder and its `tmp~/`, and on the first put clear away what dead puts have left there."""
        temporary = f"{self._root}/{TEMPORARY}"
        if self._identity is None:
            try:
                _make_folders(self._root, "/")
            except FileNotFoundError as error:  # such as /proc
                raise RemoteRefused(f"{self.name}: no folder can be made there", hint="name another place") from error
        self._check_there()
        _make_folders(temporary, self._root)
        if self._cleaned:
            return
        self._cleaned = True
        with os.scandir(temporary) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # another machine clears up too
                    if entry.stat().st_mtime < time.time() - TEMPORARY_AGE_S:
                        os.unlink(entry.path)

    def _check_there(self) -> None:
        """Raises: RemoteUnreachable: the folder was seen before, and is gone or another one."""
        try:
            state = os.stat(self._root)
        except FileNotFoundError:
            if self._identity is None:
                return
            raise self._gone() from None
        identity = (state.st_dev, state.st_ino)
        if self._identity not in (None, identity):
            raise self._gone()
        self._identity = identity

    def _absent(self, key: str) -> BackendError:
        self._check_there()
        return ObjectMissing(f"{self.name} has no {key}")

    def _gone(self) -> BackendError:
        return RemoteUnreachable(
            f"the folder {self.name} is gone", hint="connect or mount the disk that holds it, at the same place"
        )


def _translate(error: OSError, name: str) -> BackendError:
    message = f"{name}: {error.strerror or error}"
    if error.errno in _FULL:
        return RemoteFull(message, hint="make room there")
    if error.errno in _REFUSED:
        return RemoteRefused(message, hint="check the folder's owner and permissions")
    return RemoteUnreachable(message)


def _write(path: str, data: bytes | memoryview) -> None:
    """A new file with *data*, on stable storage."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        rest = memoryview(data).cast("B")
        while rest:
            rest = rest[os.write(file, rest) :]
        os.fsync(file)
    finally:
        os.close(file)


def _make_folders(path: str, top: str) -> None:
    """Create *path* and what is missing above it, up to *top*, each entry durable."""
    if path == top or os.path.isdir(path):
        return
    parent = os.path.dirname(path)
    _make_folders(parent, top)
    with contextlib.suppress(FileExistsError):  # another put was faster
        os.mkdir(path, 0o777)
    _fsync_folder(parent)


def _fsync_folder(path: str) -> None:
    file = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno not in _NO_FSYNC:
            raise
    finally:
        os.close(file)
