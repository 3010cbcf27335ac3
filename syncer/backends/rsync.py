"""A remote that is a module of an rsync daemon, reached through the rsync program.

A run of rsync costs a tenth of a second before its first byte, so puts and deletes that wait go together in one run.
rsync has no ranges: a get fetches the whole object and cuts the range out; the last few objects are kept for the ranges
that follow.

Objects on their way never touch the local disk: rsync reads them from memory, through links in a temporary folder, and
writes what it fetches, FETCHES objects at most at once, to a file system in memory (MEMORY_FOLDER).
The daemon writes them in `tmp~/` (no key, so never listed) and renames them into place.
"""

import itertools
import os
import re
import tempfile
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import trio

from syncer.backends.base import (
    Backend,
    ObjectInfo,
    check_key,
    check_prefix,
    check_range,
    is_segment,
    resolve_range,
)
from syncer.backends.batches import Batches
from syncer.backends.pages import Pages
from syncer.backends.rsync_program import RsyncProgram
from syncer.errors import ObjectMissing, RemoteUnreachable

TEMPORARY = "tmp~"
TEMPORARY_AGE_S = 2 * 24 * 3600
"""A temporary file older than this was left by a put that died. Compared with our clock, so with a day of room."""
BATCH_BYTES = 64 * 2**20
KEPT_BYTES = 32 * 2**20
"""How much of the last objects fetched is kept in memory."""
FETCHES = 4
MEMORY_FOLDER = "/dev/shm"
"""Where the C library keeps shared memory. A machine without it has such files where all temporary files are."""
PAGE_LINES = 1000

# "-rw-r--r--     8388608 2026/11/21 07:06:32 packs/ab/k1"
_LINE = re.compile(r"(?P<kind>.)\S+\s+(?P<size>[\d,.]+) (?P<time>\d{4}/\d\d/\d\d \d\d:\d\d:\d\d) (?P<name>.+)")


@dataclass(frozen=True, slots=True)
class _Put:
    key: str
    data: bytes | memoryview


class RsyncBackend(Backend):
    """See `Backend`. Needs rsync 3.1 or newer on both sides; asks for fsync from 3.2.4 on."""

    parallelism = 8

    def __init__(
        self,
        name: str,
        *,
        host: str,
        module: str,
        path: str = "",
        user: str | None = None,
        port: int | None = None,
        password_file: Path | None = None,
    ) -> None:
        """*path* is relative to the module and may be empty."""
        self.name = name
        at = f"{user}@" if user else ""
        address = f"[{host}]" if ":" in host else host
        self._module = f"rsync://{at}{address}{f':{port}' if port else ''}/{module}/"
        self._path = f"{path}/" if path else ""
        self._program = RsyncProgram(name, password_file=password_file)
        self._puts = Batches(self._put_all, size_of=lambda put: memoryview(put.data).nbytes, most=BATCH_BYTES)
        self._deletes = Batches(self._delete_all, size_of=lambda key: 1, most=1000)
        self._fetches = trio.Semaphore(FETCHES)
        self._kept = _KeptObjects(KEPT_BYTES)
        self._prepared = False
        self._seen = False

    async def put(self, key: str, data: bytes | memoryview) -> None:
        self._kept.forget(check_key(key))
        await self._puts.add(_Put(key, data))
        self._seen = True

    async def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        check_key(key)
        check_range(offset, length)
        async with self._kept.alone(key):
            data = self._kept.find(key)
            if data is None:
                data = await self._fetch(key)
                self._kept.keep(key, data)
        wanted = resolve_range(key, len(data), offset, length)
        return data if wanted == len(data) else data[offset : offset + wanted]

    async def stat(self, key: str) -> ObjectInfo:
        source = self._url(check_key(key))
        with tempfile.TemporaryFile(dir=_memory()) as output:
            try:
                async with self._fetches:
                    await self._program.list(source, output, recursive=False)
            except ObjectMissing:
                await self._check_there()
                raise ObjectMissing(f"{self.name} has no {key}") from None
            for line in _lines(output):
                if line["kind"] == "-":
                    self._seen = True
                    return ObjectInfo(key, _size(line))
        raise ObjectMissing(f"{self.name} has no {key}")

    def list(self, prefix: str = "") -> Pages:
        """The whole listing is written to a temporary file first, so that it is complete or fails as a whole."""
        source = self._url(check_prefix(prefix))
        listing: Iterator[re.Match[str]] | None = None

        async def next_page() -> list[ObjectInfo] | None:
            nonlocal listing
            if listing is None:
                listing = await self._listing(source)
            lines = list(itertools.islice(listing, PAGE_LINES))
            if not lines:
                return None
            return [ObjectInfo(prefix + line["name"], _size(line)) for line in lines if _is_object(line)]

        return Pages(next_page)

    async def delete(self, key: str) -> None:
        self._kept.forget(check_key(key))
        await self._deletes.add(key)

    async def close(self) -> None:
        """Kills the runs under way; the daemon drops what they had not finished."""
        self._puts.close()
        self._deletes.close()
        await trio.lowlevel.checkpoint()

    def _url(self, key: str) -> str:
        return f"{self._module}{self._path}{key}"

    async def _put_all(self, puts: Sequence[_Put]) -> None:
        contents = {self._path + put.key: put.data for put in puts}
        staged = _Stage()
        try:
            await trio.to_thread.run_sync(staged.fill, contents)
            if not self._prepared:
                await self._prepare()
            temporary = f"--temp-dir={self._path}{TEMPORARY}"
            try:
                await self._program.send(f"{staged.folder}/", self._module, list(contents), temporary)
            except ObjectMissing as error:  # of the folders it writes to
                self._prepared = not await self._has_anything()
                raise RemoteUnreachable(f"{self.name} has lost its folder {TEMPORARY}: {error}") from error
        finally:
            staged.close()

    async def _prepare(self) -> None:
        """Have the folder and its `tmp~/` on the remote, and clear away what dead puts have left there."""
        folder = self._path + TEMPORARY
        with (
            tempfile.TemporaryDirectory(prefix="syncer-rsync-", dir=_memory()) as empty,
            tempfile.TemporaryFile(dir=_memory()) as output,
        ):
            os.makedirs(f"{empty}/{folder}")
            await self._program.make_folder(f"{empty}/", self._module, folder)
            await self._program.list(f"{self._module}{folder}/", output, recursive=False)
            limit = time.strftime("%Y/%m/%d %H:%M:%S", time.localtime(time.time() - TEMPORARY_AGE_S))
            old = [
                f"{folder}/{line['name']}" for line in _lines(output) if line["kind"] == "-" and line["time"] < limit
            ]
        if old:
            await self._remove(old)
        self._prepared = True

    async def _delete_all(self, keys: Sequence[str]) -> None:
        await self._remove([self._path + key for key in keys])

    async def _remove(self, names: Sequence[str]) -> None:
        """Delete files of the module. Their folders must be missing on our side as well: Debian's rsync of 2026 takes
        a missing name in a folder that it was told of for a breach of the protocol.
        """
        with tempfile.TemporaryDirectory(prefix="syncer-rsync-", dir=_memory()) as empty:
            await self._program.remove(f"{empty}/", self._module, names)

    async def _fetch(self, key: str) -> bytes:
        with tempfile.TemporaryDirectory(prefix="syncer-rsync-", dir=_memory()) as folder:
            path = f"{folder}/object"
            try:
                async with self._fetches:
                    await self._program.fetch(self._url(key), path)
                data = await trio.Path(path).read_bytes()
            except (ObjectMissing, FileNotFoundError):
                await self._check_there()
                raise ObjectMissing(f"{self.name} has no {key}") from None
        self._seen = True
        return data

    async def _listing(self, source: str) -> "Iterator[re.Match[str]]":
        output = tempfile.TemporaryFile(dir=_memory())  # noqa: SIM115 - closed when the listing is dropped
        try:
            async with self._fetches:
                await self._program.list(source, output, recursive=True)
            if source == self._url(""):
                await self._check_there()  # a bare mountpoint can be read as well
        except ObjectMissing:
            output.close()
            await self._check_there()
            return iter(())
        except BaseException:
            output.close()
            raise
        return _lines(output)

    async def _check_there(self) -> None:
        """Raises: RemoteUnreachable: there were objects, and now the folder is gone or bare (its disk not mounted)."""
        if self._seen and not await self._has_anything():
            raise RemoteUnreachable(
                f"the folder of {self.name} is gone", hint="let the server mount the disk that holds it"
            )

    async def _has_anything(self) -> bool:
        """Whether anything lies in the folder that is ours."""
        with tempfile.TemporaryFile(dir=_memory()) as output:
            try:
                await self._program.list(self._url(""), output, recursive=False)
            except ObjectMissing:
                return False
            names = {line["name"] for line in _lines(output)} - {"."}
            return any(name == TEMPORARY or is_segment(name) for name in names)


def _memory() -> str | None:
    """A folder whose files take no disk; None for the usual one."""
    return MEMORY_FOLDER if os.access(MEMORY_FOLDER, os.W_OK | os.X_OK) else None


class _Stage:
    """A folder of links to objects in memory, for rsync to send."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self.folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="syncer-rsync-", dir=_memory()))

    def fill(self, contents: dict[str, bytes | memoryview]) -> None:
        for name, data in contents.items():
            file = os.memfd_create("syncer-object", os.MFD_CLOEXEC)
            self._stack.callback(os.close, file)
            os.fchmod(file, 0o666)
            rest = memoryview(data).cast("B")
            while rest:
                rest = rest[os.write(file, rest) :]
            path = f"{self.folder}/{name}"
            os.makedirs(os.path.dirname(path), exist_ok=True)
            os.symlink(f"/proc/{os.getpid()}/fd/{file}", path)

    def close(self) -> None:
        self._stack.close()


class _KeptObjects:
    """The objects fetched last, and for each key one task at a time that fetches it."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._objects: OrderedDict[str, bytes] = OrderedDict()
        self._bytes = 0
        self._locks: dict[str, tuple[trio.Lock, int]] = {}  # with the number of tasks that hold it or wait for it

    @asynccontextmanager
    async def alone(self, key: str) -> AsyncIterator[None]:
        """Let one task at a time inside, for each key."""
        lock, users = self._locks.get(key, (trio.Lock(), 0))
        self._locks[key] = lock, users + 1
        try:
            async with lock:
                yield
        finally:
            lock, users = self._locks.pop(key)
            if users > 1:
                self._locks[key] = lock, users - 1

    def find(self, key: str) -> bytes | None:
        data = self._objects.get(key)
        if data is not None:
            self._objects.move_to_end(key)
        return data

    def keep(self, key: str, data: bytes) -> None:
        """Keep *data* and let go of the oldest; an object that is too large on its own is not kept."""
        self.forget(key)
        self._objects[key] = data
        self._bytes += len(data)
        while self._bytes > self._most_bytes:
            _, dropped = self._objects.popitem(last=False)
            self._bytes -= len(dropped)

    def forget(self, key: str) -> None:
        self._bytes -= len(self._objects.pop(key, b""))


def _lines(output: IO[bytes]) -> Iterator[re.Match[str]]:
    """What `rsync --list-only` wrote, from its start; *output* is closed at the end."""
    with output:
        output.seek(0)
        for line in output:
            match = _LINE.fullmatch(line.decode(errors="replace").rstrip("\n"))
            if match is not None:
                yield match


def _size(line: re.Match[str]) -> int:
    return int(re.sub(r"\D", "", line["size"]))


def _is_object(line: re.Match[str]) -> bool:
    return line["kind"] == "-" and all(map(is_segment, line["name"].split("/")))
