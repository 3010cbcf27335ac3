"""How much goes to the remote when a large file changes a little: a byte or a header inserted at its front, an edit."""

import contextlib
import os
import stat
from pathlib import Path

from scripts.benchmark.results import Column, Table
from scripts.benchmark.rows import Row
from scripts.benchmark.settings import Settings
from scripts.benchmark.systems import Mount, System, scratch

KEY = "insert"
STORES = {"syncer": "remote", "juicefs": "store"}
"""The systems that keep immutable objects in a local folder, where what is new can be counted, and that folder."""
HEADER_BYTES = 4096

Stored = dict[str, tuple[int, int, int]]


def measure(settings: Settings) -> Table:
    """Save the changed file anew (a temporary one, then a rename), and count the bytes of new objects in the store."""
    size_bytes = settings.sizes.inserted_bytes
    table = Table(KEY, f"What a small change to a file of {size_bytes / 2**20:g} MiB uploads")
    systems = [system for system in settings.systems if system.key in STORES]
    table.announce(
        (
            Row(key="one-byte", title="one byte inserted at the front", unit="% of the file", less_is_better=True),
            Row(key="header", title="4 KiB inserted at the front", unit="% of the file", less_is_better=True),
            Row(key="edit", title="4 KiB changed in the middle", unit="KiB", less_is_better=True),
        ),
        [Column(system.key, system.title) for system in systems],
    )
    for number in range(settings.passes):
        for system in systems:
            settings.say(f"{KEY}, pass {number + 1} of {settings.passes}: {system.title}")
            with settings.failures_noted(table, system.key, *table.rows):
                _one_pass(settings, table, system, size_bytes)
    return table


def _one_pass(settings: Settings, table: Table, system: System, size_bytes: int) -> None:
    with scratch(settings.parent) as folder, system.mounted(folder) as mount:
        store = folder / STORES[system.key]
        content = os.urandom(size_bytes)
        _save(mount, content)
        mount.settle()
        for row, added in (("one-byte", b"\0"), ("header", os.urandom(HEADER_BYTES))):
            before = _stored(store)
            content = added + content
            _save(mount, content)
            mount.settle()
            uploaded = _new_bytes(store, before)
            table.add(row, system.key, uploaded * 100 / size_bytes)
            settings.say(f"  {table.rows[row].title}: {uploaded:,} bytes")
        before = _stored(store)
        with open(mount.path / "file", "r+b") as file:
            file.seek(size_bytes // 2)
            file.write(os.urandom(4096))
        mount.settle()
        uploaded = _new_bytes(store, before)
        table.add("edit", system.key, uploaded / 1024)
        settings.say(f"  {table.rows['edit'].title}: {uploaded:,} bytes")


def _save(mount: Mount, content: bytes) -> None:
    temporary = mount.path / "file.new"
    temporary.write_bytes(content)
    temporary.rename(mount.path / "file")


def _stored(store: Path) -> Stored:
    """Every object of a store, with what changes when its content does."""
    found: Stored = {}
    for path in store.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # temporary files of the others come and go
            status = path.stat()
            if stat.S_ISREG(status.st_mode):
                found[str(path)] = (status.st_ino, status.st_size, status.st_mtime_ns)
    return found


def _new_bytes(store: Path, before: Stored) -> int:
    return sum(value[1] for path, value in _stored(store).items() if before.get(path) != value)
