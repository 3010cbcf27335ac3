"""What a remote says, read by its objects alone and as plainly as can be: to compare with what syncer makes of it."""

import stat
from collections.abc import Mapping
from pathlib import Path

from syncer.backends.base import Backend
from syncer.blocks.codec import open_sealed
from syncer.blocks.pack import pack_key, read_list
from syncer.meta.catalog import Catalog
from syncer.meta.check import CheckReader
from syncer.snapshots.check import RemoteCheck
from syncer.snapshots.extenttree import iter_extents
from syncer.snapshots.nodes import Entry
from syncer.snapshots.records import IndexRecord, SnapshotRecord, decode
from syncer.snapshots.tree import iter_directory, load_root
from syncer.snapshots.verified import Verified
from syncer.values import PackId, TreeId
from tests.snapshots.rig import Picture, Seen


class RemoteView:
    """Objects of a remote, as a machine sees them that has nothing else."""

    def __init__(self, objects: Mapping[str, bytes]) -> None:
        self._objects = objects
        self._places: dict[bytes, tuple[str, int, int]] = {}
        for key in sorted(key for key in objects if key.startswith("index/")):
            for pack in decode(objects[key], IndexRecord).packs:
                name = pack_key(PackId(pack.id))
                assert len(objects[name]) == pack.size, f"{key} lists {name}"
                self._places.update((i, (name, offset, sealed)) for i, offset, sealed, _ in pack.blocks)

    def listed_packs(self) -> set[str]:
        """The keys of packs that indexes list, and of which some block is read."""
        return {name for name, _, _ in self._places.values()}

    def load(self, block_id: bytes) -> bytes:
        name, offset, length = self._places[block_id]
        return bytes(open_sealed(memoryview(self._objects[name])[offset : offset + length], block_id))

    def picture(self, root: bytes) -> Picture:
        """All that a snapshot shows."""
        top = load_root(TreeId(root), self.load)
        picture = {b"": self._seen(top)}
        waiting = [(b"", top)]
        while waiting:
            path, directory = waiting.pop()
            assert directory.tree is not None
            for entry in iter_directory(TreeId(directory.tree), self.load):
                picture[path + b"/" + entry.name] = self._seen(entry)
                if stat.S_ISDIR(entry.mode):
                    waiting.append((path + b"/" + entry.name, entry))
        return picture

    def _seen(self, entry: Entry) -> Seen:
        attributes = (
            *(entry.inode, entry.mode, entry.uid, entry.gid, entry.nlink, entry.size, entry.mtime_ns, entry.ctime_ns),
            entry.rdev,
        )
        content = self._content(entry) if stat.S_ISREG(entry.mode) else None
        return Seen(attributes, entry.target, entry.xattrs, content)

    def _content(self, entry: Entry) -> bytes:
        data = bytearray(entry.size)
        extents = entry.extents if entry.tree is None else iter_extents(TreeId(entry.tree), self.load)
        for extent in extents:
            block = self.load(extent.block)
            data[extent.start : extent.start + extent.length] = block[extent.offset : extent.offset + extent.length]
        return bytes(data)

    def snapshots(self) -> dict[tuple[int, int], SnapshotRecord]:
        keys = sorted(key for key in self._objects if key.startswith("snapshots/"))
        records = [decode(self._objects[key], SnapshotRecord) for key in keys]
        return {(record.peer, record.seq): record for record in records}

    def dead_share(self) -> float:
        """The part of the bytes in packs that no snapshot needs; lists of packs count as needed."""
        needed: set[bytes] = set()

        def load(block_id: bytes) -> bytes:
            needed.add(block_id)
            return RemoteView.load(self, block_id)

        class Needing(RemoteView):
            def __init__(self, of: RemoteView) -> None:
                self._objects, self._places = of._objects, of._places

            def load(self, block_id: bytes) -> bytes:
                return load(block_id)

        for record in self.snapshots().values():
            Needing(self).picture(record.root)
        total = used = 0
        for key, data in self._objects.items():
            if key.startswith("packs/"):
                _, entries = read_list(data)
                total += sum(entry.length for entry in entries)
                used += sum(
                    entry.length
                    for entry in entries
                    if self._places.get(entry.id, ("",))[0] == key and entry.id in needed
                )
        return 1 - used / total if total else 0.0


async def remote_findings(backend: Backend, database: Path, folder: Path, *, mounted: bool = True) -> list[str]:
    """What `syncer check --remote --read-data` finds, of an engine that is at rest: codes and names."""
    catalog = Catalog(folder / "catalog.db")
    reader = CheckReader(database, mounted=mounted)
    notes = Verified(folder / "verified", backend.name, b"r" * 16, 100)
    try:
        result = await RemoteCheck(backend, catalog, reader, lambda what, done, total: None).run(notes, 100)
    finally:
        notes.close(complete=True)
        reader.close()
        catalog.close()
        (folder / "catalog.db").unlink()
    return [f"{finding.code} {finding.name!r} {finding.text}" for finding in result.findings]
