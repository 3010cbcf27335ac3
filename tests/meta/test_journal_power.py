"""Random work on a journal with kills and power cuts, on a disk that may forget in any order what was not synced.

The disk knows of each file what is durable of its bytes, and which names are. After a cut any subset of the pages
written since is there, any length that the file ever had since, and any subset of the names made and removed since:
more than a file system with a journal of its own would ever do.
"""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from syncer.meta import journal as journal_module
from syncer.meta.journal import Journal, read_records
from tests.support.core_data import fast_folder
from tests.support.long_form import LONG

PAGE_BYTES = 16
SEGMENT_BYTES = 100


class ForgetfulFolder:
    """What is durable of the files in *folder*; the files themselves are what the kernel shows."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self._bytes: dict[int, bytes] = {}
        self._names: dict[str, int] = {}
        self._kept: dict[int, int] = {}
        """A descriptor of each file that ever was, by inode number: it is not given out again, and can be read."""
        fdatasync, fsync, unlink = os.fdatasync, os.fsync, Path.unlink

        def sync_bytes(descriptor: int) -> None:
            fdatasync(descriptor)
            self._sync(descriptor)

        def sync_any(descriptor: int) -> None:
            fsync(descriptor)
            if os.readlink(f"/proc/self/fd/{descriptor}") == str(folder):
                self._names = self._shown()
            else:
                self._sync(descriptor)

        def keep_and_unlink(path: Path, missing_ok: bool = False) -> None:
            self._shown()
            unlink(path, missing_ok=missing_ok)

        patch.setattr(os, "fdatasync", sync_bytes)
        patch.setattr(os, "fsync", sync_any)
        patch.setattr(Path, "unlink", keep_and_unlink)
        self._unlink = unlink

    def _shown(self) -> dict[str, int]:
        names = {path.name: path.stat().st_ino for path in self.folder.iterdir()}
        for name, inode in names.items():
            if inode not in self._kept:
                self._kept[inode] = os.open(self.folder / name, os.O_RDONLY)
        return names

    def _sync(self, descriptor: int) -> None:
        self._shown()
        self._bytes[os.fstat(descriptor).st_ino] = _content(f"/proc/self/fd/{descriptor}")

    def cut(self, draw: st.DataObject) -> None:
        """The power goes and comes back."""
        names = self._shown()
        for name in sorted({*names, *self._names}):
            if names.get(name) != self._names.get(name) and draw.draw(st.booleans(), label=f"{name} is as before"):
                names[name] = self._names.get(name, 0)
                if not names[name]:
                    del names[name]
        contents = {name: self._after(inode, draw) for name, inode in sorted(names.items())}
        self.close()
        for path in self.folder.iterdir():
            self._unlink(path)
        for name, data in contents.items():
            (self.folder / name).write_bytes(data)
        self._names = self._shown()
        self._bytes = {inode: contents[name] for name, inode in self._names.items()}

    def _after(self, inode: int, draw: st.DataObject) -> bytes:
        durable, now = self._bytes.get(inode, b""), _content(f"/proc/self/fd/{self._kept[inode]}")
        if durable == now:
            return now
        size = draw.draw(st.integers(*sorted((len(durable), len(now) + 5))), label="length")
        data = bytearray(durable.ljust(size, b"\0")[:size])
        for offset in range(0, size, PAGE_BYTES):
            page = slice(offset, min(offset + PAGE_BYTES, size))
            if durable[page] != now[page] and draw.draw(st.booleans(), label="page"):
                data[page] = now[page].ljust(page.stop - page.start, b"\0")
        return bytes(data)

    def close(self) -> None:
        while self._kept:
            os.close(self._kept.popitem()[1])
        self._bytes.clear()


def _content(path: str) -> bytes:
    return Path(path).read_bytes()


class Work:
    """A journal, what was appended to it, and the position that meta.db holds: durably, and after a kill."""

    def __init__(self, disk: ForgetfulFolder, data: st.DataObject) -> None:
        self._disk = disk
        self._data = data
        self._count = 0
        self._records: list[tuple[int, bytes]] = []
        """(position after it, payload)."""
        self._committed = self._checkpointed = 0
        self._may_take_back = False
        """Only the record that was just appended is ever taken back."""
        self.journal = Journal(disk.folder, 0)

    def append(self) -> None:
        self._count += 1
        payload = b"%d " % self._count * self._data.draw(st.integers(1, 12))
        self.journal.append(payload)
        self._records.append((self.journal.end, payload))
        self._may_take_back = True

    def take_back(self) -> None:
        may, self._may_take_back = self._may_take_back, False
        if may and self._records[-1][0] == self.journal.end > max(self.journal.durable, self._committed):
            end, payload = self._records.pop()
            self.journal.take_back(end - len(payload) - 8)

    def sync(self) -> None:
        self.journal.sync()

    def commit(self) -> None:
        self._committed = self.journal.end

    def checkpoint(self) -> None:
        """As the engine does: everything is synced, meta.db has it, and the journal before some position goes."""
        self.journal.sync()
        self._checkpointed = self._committed
        self.journal.discard(self._data.draw(st.integers(0, self._committed)))

    def kill(self) -> None:
        self._restart(self._committed, self.journal.end)

    def cut(self) -> None:
        durable = self.journal.durable
        self._disk.cut(self._data)
        places = [end for end, _ in self._records if self._checkpointed < end <= self._committed]
        self._committed = self._data.draw(st.sampled_from([self._checkpointed, *places]), label="meta.db")
        self._checkpointed = self._committed
        self._restart(self._committed, durable)

    def _restart(self, position: int, promised: int) -> None:
        self.journal.close()
        read = list(read_records(self._disk.folder, position))
        expected = [(end, payload) for end, payload in self._records if end > position]
        assert read == expected[: len(read)]
        assert (read[-1][0] if read else position) >= promised
        end = read[-1][0] if read else position
        self._records = [(e, payload) for e, payload in self._records if e <= end]
        self.journal = Journal(self._disk.folder, end)
        assert self.journal.durable == end
        self._committed = end
        self._may_take_back = False

    MOVES = append, append, append, take_back, sync, commit, checkpoint, kill, cut


@given(st.data())
@settings(max_examples=5000 if LONG else 150, deadline=None)
def test_what_was_synced_is_read_again_and_nothing_else_than_was_recorded(data: st.DataObject) -> None:
    folder = fast_folder()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal_module, "SEGMENT_BYTES", SEGMENT_BYTES)
        disk = ForgetfulFolder(folder, patch)
        work = Work(disk, data)
        try:
            for move in data.draw(st.lists(st.sampled_from(Work.MOVES), min_size=10, max_size=40)):
                move(work)
            work.cut()
        finally:
            work.journal.close()
            disk.close()
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
