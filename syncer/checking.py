"""`syncer check` put together: which parts are looked at, in which order, what is mended, and what is left.

Runs in the process of the command. Beside a mount it reads only: it asks the mount to commit, and sees commits through
a connection of its own. Without one it keeps others out of DATA. A DATA that was not closed in good order is copied,
as far as meta.db and its journal go, and the copy is brought up to date: DATA itself stays as it is.
"""

import contextlib
import functools
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path

import trio
from blake3 import blake3

from syncer import datadir
from syncer.backends.base import Backend
from syncer.blocks import check as folders
from syncer.config import Config
from syncer.control import Client
from syncer.errors import DataInUse, LocalDamage, NotMounted, alone
from syncer.meta.catalog import Catalog
from syncer.meta.check import CheckReader, check_journal, replay
from syncer.meta.facts import Facts
from syncer.meta.findings import Finding
from syncer.meta.repair import repair, repair_columns
from syncer.snapshots.check import Progress, RemoteCheck, RemoteResult
from syncer.snapshots.verified import Verified
from syncer.values import ID_BYTES, BlockId

LOG_SHARE = 16
"""A question gives way to a mount when the WAL has this share of the budget: half of what makes changes wait."""
BEYOND = "meta.db is beyond a repair of its rows: `syncer recover` rebuilds it"
_CACHE_NAME = len("cache/ab/") + 2 * ID_BYTES
_BAD_COPIES = ("cache-missing", "cache-size", "cache-damaged", "row-missing", "row-size", "row-damaged")
_UNREADABLE = ("database", "column")
_UNKNOWN_FILES = ("cache-unknown", "dirty-unknown", "file-unknown")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckRequest:
    """*percent* of the packs are read; 0 reads no bytes, neither there nor here."""

    data: Path
    config: Config
    percent: float
    remote: bool
    repair: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """*found* is all that did not fit, *left* what of it does not fit now; *notes* are lines for people."""

    found: tuple[Finding, ...]
    left: tuple[Finding, ...]
    notes: tuple[str, ...]


OpenBackend = Callable[[Config], AbstractAsyncContextManager[Backend]]


def check(request: CheckRequest, open_backend: OpenBackend, progress: Progress) -> Report:
    """Check a DATA, mounted or not, and mend it where that is asked for.

    Raises:
        DataInUse: it is mounted and is to be mended, or somebody else has it.
        BackendError, WrongRepository: the remote cannot be asked.
        LocalDamage: meta.db cannot be read at all.
    """
    datadir.need_database(request.data)
    try:
        client = Client.connect(request.data)
    except NotMounted:
        return _check_unmounted(request, open_backend, progress)
    with client:
        if request.repair:
            raise DataInUse(
                f"{request.data} is mounted, and only an unmounted DATA can be repaired",
                hint=f"`syncer umount {request.data}` first",
            )
        client.status()  # has it commit
        path = request.data / datadir.DATABASE
        limit = request.config.budget_bytes // LOG_SHARE
        with contextlib.closing(CheckReader(path, mounted=True, wal_limit_bytes=limit)) as reader:
            run = _Run(request, open_backend, progress, reader, leftovers=False)
            run.refresh, run.counted = lambda: _commit(client), lambda: client.status().used_bytes
            return _run(run.look)


def _run(work: Callable[[], Awaitable[Report]]) -> Report:
    try:
        return trio.run(work)
    except BaseExceptionGroup as group:
        raise alone(group) from None


def _commit(client: Client) -> None:
    client.status()


def _check_unmounted(request: CheckRequest, open_backend: OpenBackend, progress: Progress) -> Report:
    with contextlib.ExitStack() as stack:
        if request.repair:
            stack.enter_context(datadir.DataDirectory.open(request.data))
        else:
            stack.enter_context(datadir.kept_still(request.data))
        place, leftovers = request.data, not _is_closed(request.data)
        notes: list[str] = []
        if leftovers:
            if not request.repair:
                place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="syncer-check-")))
                _copy_tables(request.data, place)
            try:
                operations = replay(place)
            except LocalDamage as error:
                return _beyond(Finding("database", str(error), name=datadir.DATABASE.encode()))
            notes.append(f"DATA was not closed in good order; the journal has {operations} operations more")
        try:
            reader = CheckReader(place / datadir.DATABASE, mounted=False)
            stack.callback(reader.close)
            if not leftovers:
                check_journal(reader, place)
        except LocalDamage as error:
            return _beyond(Finding("database", str(error), name=datadir.DATABASE.encode()))
        run = _Run(request, open_backend, progress, reader, leftovers=leftovers, notes=notes)
        try:
            return _run(run.look_and_mend if request.repair else run.look)
        finally:
            run.reader.close()  # a repair opens another


def _beyond(finding: Finding) -> Report:
    return Report(found=(finding,), left=(finding,), notes=(BEYOND,))


def _is_closed(data: Path) -> bool:
    """Whether meta.db was closed in good order: SQLite removes the WAL then, and its journal is used up."""
    return not os.path.lexists(data / f"{datadir.DATABASE}-wal")


def _copy_tables(data: Path, place: Path) -> None:
    for name in (datadir.DATABASE, f"{datadir.DATABASE}-wal"):
        shutil.copyfile(data / name, place / name)
    shutil.copytree(data / "journal", place / "journal")


@dataclass(slots=True)
class _Run:
    """One check of one DATA, with the connection through which it is read."""

    request: CheckRequest
    open_backend: OpenBackend
    progress: Progress
    reader: CheckReader
    leftovers: bool
    notes: list[str] = field(default_factory=list)
    refresh: Callable[[], None] = lambda: None
    counted: Callable[[], int] | None = None
    _bytes_done: int = 0

    @property
    def data(self) -> Path:
        return self.request.data

    # --- looking -------------------------------------------------------------------------------------------------

    async def look(self) -> Report:
        """Read only."""
        found = self.local(with_bytes=bool(self.request.percent))
        async with self._remote(found) as remote:
            if remote is not None:
                found += (await self._ask(remote)).findings
        return Report(found=tuple(found), left=tuple(found), notes=tuple(self.notes))

    def local(self, *, with_bytes: bool) -> list[Finding]:
        """What does not fit in DATA, with the paths it is about."""
        self.progress("meta.db", 0, 0)
        found = self.reader.integrity()
        if found:
            self.notes.append(BEYOND)
            return found
        found = self.reader.columns()
        if found:
            self.notes.append("what else is wrong shows once these values are mended")
            return found
        found = self.reader.tables()
        self.progress("files", 0, 0)
        found += folders.check_files(self.reader, self.data, leftovers=self.leftovers, refresh=self.refresh)
        if not found and not self.leftovers:
            found += folders.check_usage(self.data, self.counted or self._counted)
        if with_bytes:
            found += folders.check_bytes(self.reader, self.data, self._read)
        return self.reader.with_paths(found)

    def _counted(self) -> int:
        return self.reader.usage() + folders.dirty_bytes(self.data) + folders.database_bytes(self.data)

    def _read(self, more: int) -> None:
        self._bytes_done += more
        self.progress("cache", self._bytes_done, 0)

    @contextlib.asynccontextmanager
    async def _remote(self, found: Sequence[Finding]) -> AsyncIterator["_Remote | None"]:
        """What is needed to look at the remote; None when that is not asked for, or meta.db cannot be read."""
        if not self.request.remote or any(finding.code in _UNREADABLE for finding in found):
            yield None
            return
        with tempfile.TemporaryDirectory(prefix="syncer-check-") as folder:
            catalog = Catalog(Path(folder) / "catalog.db")
        # Its name is gone by now: whoever kills this leaves nothing behind.
        with contextlib.closing(catalog):
            async with self.open_backend(self.request.config) as backend:
                check = RemoteCheck(backend, catalog, self.reader, self.progress)
                yield _Remote(check, catalog)

    async def _ask(self, remote: "_Remote") -> RemoteResult:
        """Look at the remote; what was read of its bytes is kept if that ends early."""
        repository = self.reader.state("repository")
        if not self.request.percent or not isinstance(repository, bytes):
            return await remote.check.run(None, 0)
        path = self.data / datadir.VERIFIED
        notes = Verified(path, self.request.config.remote, repository, self.request.percent)
        complete = False
        try:
            result = await remote.check.run(notes, self.request.percent)
            complete = True
        finally:
            notes.close(complete=complete)
        return result

    # --- mending -------------------------------------------------------------------------------------------------

    async def look_and_mend(self) -> Report:
        """Look, mend, and look again at what a repair may have changed."""
        found = self.local(with_bytes=bool(self.request.percent))
        before = [finding for finding in found if finding.code == "column"]
        if before:
            self._mend_columns()
            found = self.local(with_bytes=bool(self.request.percent))
        async with self._remote(found) as remote:
            result = RemoteResult() if remote is None else await self._ask(remote)
            every = tuple(before + found + result.findings)
            if not found + result.findings or any(finding.code in _UNREADABLE for finding in found):
                return Report(found=every, left=tuple(found), notes=tuple(self.notes))
            if remote is not None:
                refused = await remote.check.restore()
                self.notes += [] if refused is None else [refused]
                result = remote.check.conclude(self.reader)
            self._mend(found, result, None if remote is None else remote.catalog)
            left = self.local(with_bytes=False)
            if remote is not None:
                result = remote.check.conclude(self.reader)
                left += result.findings
                if result.waiting:
                    self.notes.append(f"{result.waiting} blocks and tree nodes go to the remote with the next flush")
        return Report(found=every, left=tuple(left), notes=tuple(self.notes))

    def _mend_columns(self) -> None:
        self.notes.clear()
        self.reader.close()
        database = self.data / datadir.DATABASE
        repair_columns(database)
        self.reader = CheckReader(database, mounted=False)

    def _mend(self, found: Sequence[Finding], remote: RemoteResult, catalog: Catalog | None) -> None:
        """Files first: once meta.db is being written, an end half-way makes unknown files look like leftovers."""
        bad = {finding.block for finding in found if finding.block is not None and finding.code in _BAD_COPIES}
        copies = self.reader.copies([*bad, *remote.lost_blocks])
        sizes = self._sizes(found, copies)
        bad -= set(sizes)
        gone = self.reader.waiting(bad) | (bad & set(remote.lost_blocks))
        sound, aside = self._sort_files([os.fsdecode(f.name or b"") for f in found if f.code in _UNKNOWN_FILES])
        aside += [str(folders.cache_file(self.data, copies[n][0]).relative_to(self.data)) for n in gone if n in copies]
        homeless = {**self.reader.homeless(), **{number: copies[number][0] for number in gone if number in copies}}
        places = {} if catalog is None else {number: catalog.place_of(block) for number, block in homeless.items()}
        unsent = [n for n in remote.lost_blocks if n in copies and n not in bad and self._is_sound(*copies[n])]
        folders.put_aside(self.data, aside)
        self.reader.close()
        status = self.data.stat()
        facts = Facts(
            dirty=folders.dirty_files(self.data),
            cache=folders.cache_files(self.data),
            bad=bad,
            sound=sound,
            sizes=sizes,
            unsent=unsent,
            lost_trees=remote.lost_trees,
            unlisted=remote.unlisted,
            places={number: place for number, place in places.items() if place is not None},
            keep=functools.partial(folders.keep, self.data),
        )
        database = self.data / datadir.DATABASE
        repair(database, facts, uid=status.st_uid, gid=status.st_gid, now_ns=time.time_ns())
        replay(self.data)  # what the rows need no more goes with the first commit
        self.reader = CheckReader(database, mounted=False)

    def _sort_files(self, names: Sequence[str]) -> tuple[list[int], list[str]]:
        """Of files that nothing knows: the blocks of those that are sound copies, and the names of the others."""
        sound: list[int] = []
        aside: list[str] = []
        for name in names:
            block = None
            if name.startswith("cache/") and len(name) == _CACHE_NAME:
                block_id = BlockId(bytes.fromhex(name[-2 * ID_BYTES :]))
                block = self.reader.block_of(block_id)
                if not folders.is_sound(self.data / name, block_id):
                    block = None
            if block is not None and not block[1]:
                sound.append(block[0])
            else:
                aside.append(name)
        return sound, aside

    def _sizes(self, found: Sequence[Finding], copies: Mapping[int, tuple[BlockId, bytes | None]]) -> dict[int, int]:
        """Of blocks that have another size than recorded and the right bytes: the size."""
        sizes: dict[int, int] = {}
        for finding in found:
            number = finding.block
            if finding.code in ("cache-size", "row-size") and number is not None and number in copies:
                block_id, row = copies[number]
                if self._is_sound(block_id, row):
                    path = folders.cache_file(self.data, block_id)
                    sizes[number] = path.stat().st_size if row is None else len(row)
        return sizes

    def _is_sound(self, block_id: BlockId, row: bytes | None) -> bool:
        if row is not None:
            return blake3(row).digest() == block_id
        return folders.is_sound(folders.cache_file(self.data, block_id), block_id)


@dataclass(frozen=True, slots=True)
class _Remote:
    check: RemoteCheck
    catalog: Catalog
