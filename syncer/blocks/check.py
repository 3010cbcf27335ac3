"""Checks what lies in DATA/cache and DATA/dirty against meta.db, and puts aside what nobody knows.

Runs in the process of the command, beside a mount or without one. Nothing is written but by `put_aside` and `keep`.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from blake3 import blake3

from syncer.disk import sync_file_system, write_private
from syncer.meta.blocktable import block_file, block_of_file
from syncer.meta.check import CheckReader
from syncer.meta.findings import Finding
from syncer.meta.rules import FILES
from syncer.values import BlockId

LOST_AND_FOUND = "lost+found"
LOOKS = 8
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 3.0
"""What a mount is about to record looks wrong for a moment: it is looked at again before anybody is told."""
SLACK_BYTES = 4 * 1024 * 1024
SLACK_SHARE = 16
"""The disk may take this much more than is counted, and one part in so many: what a file costs differs."""


def dirty_files(data: Path) -> Iterator[tuple[int, int]]:
    """(number, length) of the dirty files."""
    for entry in _entries(data / "dirty"):
        if entry.name.isdecimal() and entry.name.isascii():
            with contextlib.suppress(FileNotFoundError):
                yield int(entry.name), entry.stat(follow_symlinks=False).st_size


def cache_files(data: Path) -> Iterator[tuple[BlockId, int]]:
    """(block, size) of the files in the cache."""
    for folder in _entries(data / "cache"):
        for entry in _entries(Path(folder.path)) if folder.name != "incoming" else ():
            block_id = block_of_file(folder.name, entry.name)
            if block_id is not None:
                with contextlib.suppress(FileNotFoundError):
                    yield block_id, entry.stat(follow_symlinks=False).st_size


def cache_file(data: Path, block_id: bytes) -> Path:
    return block_file(data / "cache", block_id)


def _entries(folder: Path) -> Iterator["os.DirEntry[str]"]:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        yield from entries


def strangers(data: Path) -> list[Finding]:
    """Files in cache/ and dirty/ whose names are none of ours."""
    found = [f"dirty/{e.name}" for e in _entries(data / "dirty") if not (e.name.isdecimal() and e.name.isascii())]
    for folder in _entries(data / "cache"):
        place = f"cache/{folder.name}"
        if not folder.is_dir(follow_symlinks=False):
            found.append(place)
        elif folder.name != "incoming":
            names = [entry.name for entry in _entries(Path(folder.path))]
            found += [f"{place}/{name}" for name in names if block_of_file(folder.name, name) is None]
    return [Finding("file-unknown", "nothing knows this file", name=os.fsencode(name)) for name in sorted(found)]


def check_files(
    reader: CheckReader, data: Path, *, leftovers: bool, refresh: Callable[[], None] = lambda: None
) -> list[Finding]:
    """What does not fit between the folders and meta.db.

    *leftovers*: DATA was not closed in good order, so that files nobody knows are what the next start clears away.
    *refresh* has the mount commit.
    """
    found: list[Finding] = []
    for look in range(LOOKS if reader.mounted else 1):
        if look:
            time.sleep(min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (look - 1)))
        reader.list_files(dirty_files(data), cache_files(data))
        refresh()
        again = reader.run(FILES) + reader.short_overlays()
        before = {finding.subject for finding in found}
        found = [finding for finding in again if not look or finding.subject in before]
        if not found:
            break
    found += strangers(data)
    if leftovers:
        found = [finding for finding in found if finding.code not in ("cache-unknown", "dirty-unknown", "file-unknown")]
    return found


def check_bytes(reader: CheckReader, data: Path, progress: Callable[[int], None]) -> Iterator[Finding]:
    """Hash every byte that is cached; *progress* gets how many more were."""
    after = 0
    while batch := reader.cached_files(after):
        after = batch[-1][0]
        for number, block_id, size in batch:
            path = cache_file(data, block_id)
            if not is_sound(path, block_id) and _is_bad(reader, path, number, block_id):
                yield Finding("cache-damaged", f"{path.relative_to(data)} has other bytes than it should", block=number)
            progress(size)
    after = 0
    while rows := reader.cached_rows(after):
        after = rows[-1][0]
        for number, block_id, held in rows:
            if blake3(held).digest() != block_id:
                yield Finding("row-damaged", "its row in meta.db has other bytes than it should", block=number)
            progress(len(held))


def _is_bad(reader: CheckReader, path: Path, number: int, block_id: BlockId) -> bool:
    """Look again: a mount may have taken it out of the cache. A file that is not there is another finding."""
    return reader.is_cached_file(number) and path.exists() and not is_sound(path, block_id)


def is_sound(path: Path, block_id: bytes) -> bool:
    """Whether the file is there and has the bytes of the block."""
    try:
        return blake3(path.read_bytes()).digest() == block_id
    except OSError:
        return False


def check_usage(data: Path, counted: Callable[[], int]) -> list[Finding]:
    """Compare what the budget counts of DATA with what the disk says. *counted* may tell another figure each time."""
    for look in range(LOOKS):
        if look:
            time.sleep(FIRST_PAUSE_S)
        before, on_disk, after = counted(), disk_bytes(data), counted()
        limit = max(before, after)
        if on_disk <= limit + SLACK_BYTES + limit // SLACK_SHARE:
            return []
    return [Finding("usage", f"DATA takes {on_disk} bytes of the disk, {limit} are counted")]


def disk_bytes(data: Path) -> int:
    """What the files that the budget counts take of the disk."""
    total = 0
    for place in ("cache", "dirty", "journal"):
        for folder, _, names in os.walk(data / place):
            for name in names:
                total += _allocated(os.path.join(folder, name))
    return total + sum(_allocated(f"{data / 'meta.db'}{suffix}") for suffix in ("", "-wal", "-shm"))


def database_bytes(data: Path) -> int:
    """What meta.db with its files and the journal take."""
    names = [f"{data / 'meta.db'}{suffix}" for suffix in ("", "-wal", "-shm")]
    return sum(_allocated(name) for name in [*names, *(entry.path for entry in _entries(data / "journal"))])


def dirty_bytes(data: Path) -> int:
    return sum(_allocated(entry.path) for entry in _entries(data / "dirty"))


def _allocated(path: str) -> int:
    try:
        return os.lstat(path).st_blocks * 512
    except FileNotFoundError:
        return 0


# --- putting aside -----------------------------------------------------------------------------------------------


def put_aside(data: Path, names: Sequence[str]) -> None:
    """Move files of DATA into DATA/lost+found, durably. Raises: OSError."""
    for name in names:
        source = data / name
        if os.path.lexists(source):
            source.rename(_free_name(data, name.replace("/", "-")))
    if names:
        sync_file_system(data)


def keep(data: Path, name: str, held: bytes) -> None:
    """Write bytes into DATA/lost+found, durably. Raises: OSError."""
    write_private(_free_name(data, name), held)


def _free_name(data: Path, name: str) -> Path:
    folder = data / LOST_AND_FOUND
    folder.mkdir(mode=0o700, exist_ok=True)
    target, count = folder / name, 0
    while os.path.lexists(target):
        count += 1
        target = folder / f"{name}.{count}"
    return target
