"""Checks a remote: every snapshot, every node of its trees, every block they and the live tree name, every byte.

Reads in an order in which nothing that is published meanwhile can look missing: snapshots, indexes, what DATA knows,
and the list of packs last. What is pruned meanwhile may look missing, so it begins anew then. Runs in the process of
the command; what it needs to remember is in a Catalog on the disk.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from stat import S_ISDIR
from typing import TypeVar

import trio
from blake3 import blake3

from syncer.backends.base import Backend
from syncer.blocks.codec import open_sealed
from syncer.blocks.pack import pack_key, parse_pack_key
from syncer.errors import ObjectCorrupt, ObjectMissing, WrongRepository
from syncer.meta.catalog import DIRECTORY, EXTENTS, ROOT, XATTRS, Catalog, Lost, OpenNode, Want
from syncer.meta.check import CheckReader
from syncer.meta.findings import Finding
from syncer.snapshots.nodes import (
    DirectoryBranch,
    DirectoryLeaf,
    Entry,
    Extent,
    ExtentBranch,
    ExtentLeaf,
    Node,
    Root,
    XattrNode,
    decode_node,
)
from syncer.snapshots.reading import Place, each_index, read_format, read_record
from syncer.snapshots.records import (
    FORMAT_KEY,
    VERSION,
    IndexRecord,
    PackListing,
    PeerRecord,
    SnapshotRecord,
    current_writer,
    decode,
    encode,
    index_key,
    parse_peer_key,
    parse_seq_key,
    snapshot_key,
)
from syncer.snapshots.repository import read_peers
from syncer.snapshots.verified import Verified
from syncer.values import TREE, BlockId, PackId

PARALLEL = 4
"""Packs on their way at once, at most: each takes twice its size of memory."""
AT_ONCE = 256
TRIES = 5
"""So often it begins anew because the remote is being pruned; then it says what it sees."""
_PRUNED = ("snapshots/", "index/")
_R = TypeVar("_R", PeerRecord, IndexRecord, SnapshotRecord)
Progress = Callable[[str, int, int], None]
"""Is told what is being done, and how many bytes of how many are."""


@dataclass(slots=True)
class RemoteResult:
    """What was found, and what a repair can do about it.

    Attributes:
        waiting: how many lost blocks are here and wait to be sent already.
        lost_blocks: local numbers of blocks of the live tree that the remote has lost.
        lost_trees: packs of nodes that it has not, or not whole, where something is lost with them.
        unlisted: packs that must be listed again.
    """

    findings: list[Finding] = field(default_factory=list)
    waiting: int = 0
    lost_blocks: list[int] = field(default_factory=list)
    lost_trees: list[PackId] = field(default_factory=list)
    unlisted: list[PackId] = field(default_factory=list)


class RemoteCheck:
    def __init__(self, backend: Backend, catalog: Catalog, reader: CheckReader, progress: Progress) -> None:
        self._backend = backend
        self._catalog = catalog
        self._reader = reader
        self._progress = progress
        self._records: list[Finding] = []
        self._seen: set[str] = set()
        """Snapshots and indexes that were listed; the writer deletes some when it prunes."""
        self._width = max(1, min(PARALLEL, backend.parallelism))

    async def run(self, notes: Verified | None, percent: float) -> RemoteResult:
        """Check everything; with *notes* also every byte, of *percent* of the packs.

        Raises:
            WrongRepository: it is another one than DATA's.
            BackendError: the remote cannot be asked.
        """
        for _ in range(TRIES):
            self._records.clear()
            self._catalog.clear()
            await self._look(notes, percent)
            if self._seen <= {key for prefix in _PRUNED for key in await self._listed(prefix)}:
                break
        return self.conclude(self._reader)

    async def _listed(self, prefix: str) -> list[str]:
        return sorted([info.key async for info in self._backend.list(prefix) if parse_seq_key(info.key)])

    async def _look(self, notes: Verified | None, percent: float) -> None:
        await self._identity()
        self._seen.clear()
        await self._snapshots()
        await self._indexes()
        self._catalog.add_local(self._reader.uri)
        async for info in self._backend.list("packs/"):
            pack = parse_pack_key(info.key)
            if pack is not None:
                self._catalog.saw_pack(pack, info.size_bytes)
        await self._trees()
        if notes is not None:
            await self._bytes(notes, percent)

    def _note(self, code: str, key: str, text: str) -> None:
        self._records.append(Finding(code, text, name=key.encode()))

    # --- records -------------------------------------------------------------------------------------------------

    async def _identity(self) -> None:
        known = self._reader.state("repository")
        try:
            found = bytes.fromhex((await read_format(self._backend)).repository)
        except (ObjectMissing, ObjectCorrupt) as error:
            return self._note("format", FORMAT_KEY, str(error))
        if known is not None and found != known:
            raise WrongRepository(
                f"DATA belongs to another repository than the one at {self._backend.name}",
                hint="correct the remote in DATA/config.toml",
            )
        async for info in self._backend.list("peers/"):
            peer = parse_peer_key(info.key)
            if peer is not None:
                record = await self._record("peer-damaged", info.key, PeerRecord)
                if record is not None and record.peer != peer:
                    self._note("peer-damaged", info.key, "it is the record of another peer")

    async def _record(self, code: str, key: str, kind: type[_R]) -> _R | None:
        try:
            return await read_record(self._backend, key, kind)
        except (ObjectMissing, ObjectCorrupt) as error:
            self._note(code, key, str(error))
            return None

    async def _snapshots(self) -> None:
        known = {snapshot_key(peer, seq): root for peer, seq, root, _ in self._reader.snapshots()}
        keys = await self._listed("snapshots/")
        self._seen.update(keys)
        still = {snapshot_key(peer, seq) for peer, seq, _, _ in self._reader.snapshots()}
        for key in keys:
            record = await self._record("snapshot-damaged", key, SnapshotRecord)
            if record is None:
                continue
            if (record.peer, record.seq) != parse_seq_key(key) or known.get(key, record.root) != record.root:
                self._note("snapshot-damaged", key, "it is another snapshot")
                continue
            name = f"{record.peer}/{record.seq}".encode()
            self._catalog.want([Want(record.root, ROOT, name=name)], None)
        newest = max([place for key in keys if (place := parse_seq_key(key))], default=None)
        gone = sorted((set(known) & still) - set(keys))
        is_ours = True
        with contextlib.suppress(ObjectCorrupt, ObjectMissing):
            is_ours = not gone or await self._other_writer() is None
        for key in gone:  # another writer may have thinned them out, but nobody does that with the newest
            place = parse_seq_key(key)
            if is_ours or place is None or newest is None or place > newest:
                self._note("snapshot-missing", key, "the snapshot is not on the remote any more")

    async def _other_writer(self) -> PeerRecord | None:
        """Who writes to the repository, if that is another machine. Raises: BackendError: that cannot be told."""
        writer = current_writer(await read_peers(self._backend))
        return None if writer is None or writer.machine == self._reader.state("machine") else writer

    async def _indexes(self) -> None:
        keys = await self._listed("index/")
        self._seen.update(keys)

        async def add(_place: Place, record: IndexRecord) -> None:
            for pack in record.packs:
                places = [(BlockId(i), offset, sealed, plain) for i, offset, sealed, plain in pack.blocks]
                self._catalog.add_pack(PackId(pack.id), pack.size, pack.kind, places)

        def lacking(place: Place, error: ObjectMissing | ObjectCorrupt) -> None:
            self._note("index-damaged", index_key(*place), str(error))

        places = [place for key in keys if (place := parse_seq_key(key)) is not None]
        await each_index(self._backend, places, add, lacking)

    # --- trees ---------------------------------------------------------------------------------------------------

    async def _trees(self) -> None:
        """Read the nodes that are needed pack by pack, several packs at once, until no more are named."""
        done = 0
        while packs := self._catalog.open_packs(self._width):
            async with trio.open_nursery() as nursery:
                for number, pack_id, size in packs:
                    nursery.start_soon(self._tree_pack, number, pack_id, size)
            done += sum(size for _, _, size in packs)
            self._progress("trees", done, 0)

    async def _tree_pack(self, number: int, pack_id: PackId, size: int) -> None:
        data = await self._get(number, pack_id, size)
        while data is not None and (nodes := self._catalog.open_nodes(number)):
            for node in nodes:
                try:
                    self._catalog.want(_named_by(_opened(data, node), node.form), node.number)
                except ObjectCorrupt:
                    self._catalog.is_bad(node.id, number)
                else:
                    self._catalog.read(node.number)
            await trio.lowlevel.checkpoint()

    async def _get(self, number: int, pack_id: PackId, size: int) -> memoryview | None:
        try:
            return memoryview(await self._backend.get(pack_key(pack_id), 0, size))
        except (ObjectMissing, ObjectCorrupt):
            self._catalog.gone(number)
            return None

    # --- bytes ---------------------------------------------------------------------------------------------------

    async def _bytes(self, notes: Verified, percent: float) -> None:
        """Read packs whole and hash them, several at once."""
        self._catalog.was_verified(notes.ids)
        total = sum(size for _, _, size in self._chosen(notes, percent))
        done = 0
        send, receive = trio.open_memory_channel[tuple[int, PackId, int]](0)

        async def work(mine: trio.MemoryReceiveChannel[tuple[int, PackId, int]]) -> None:
            nonlocal done
            async for number, pack_id, size in mine:
                await self._verify(number, pack_id, size, notes)
                done += size
                self._progress("packs", done, total)

        async with trio.open_nursery() as nursery, receive as channel:
            for _ in range(self._width):
                nursery.start_soon(work, channel.clone())
            async with send:
                for pack in self._chosen(notes, percent):
                    await send.send(pack)

    def _chosen(self, notes: Verified, percent: float) -> Iterator[tuple[int, PackId, int]]:
        after = 0
        while batch := self._catalog.unread(after, AT_ONCE):
            after = batch[-1][0]
            yield from (pack for pack in batch if notes.chooses(pack[1], percent))

    async def _verify(self, number: int, pack_id: PackId, size: int, notes: Verified) -> None:
        data = await self._get(number, pack_id, size)
        if data is None:
            return
        if await trio.to_thread.run_sync(lambda: blake3(data).digest()) == pack_id:
            self._catalog.verified(number, True)
            notes.add(pack_id)
            return
        self._catalog.verified(number, False)
        places = self._catalog.places_in(number)
        for block_id in await trio.to_thread.run_sync(_wrong, data, places):
            self._catalog.is_bad(block_id, number)

    # --- the result ----------------------------------------------------------------------------------------------

    def conclude(self, reader: CheckReader) -> RemoteResult:
        """What was found, as *reader* sees DATA now: after a repair some of it waits to be sent."""
        self._reader = reader
        result = RemoteResult(findings=list(self._records))
        groups: dict[tuple[str, PackId | None], list[Lost]] = {}
        rebuilds = reader.rebuilds()
        for item in self._catalog.lost():
            here = reader.block_of(BlockId(item.id))
            if rebuilds and here is None if item.kind == TREE else here is not None and reader.is_on_its_way(here[0]):
                result.waiting += 1
                continue
            if item.kind == TREE:
                result.lost_trees = self._catalog.unsound_trees()
            elif item.local is not None:
                result.lost_blocks.append(item.local)
            groups.setdefault((item.why, item.pack), []).append(item)
        result.unlisted = [pack for pack in self._catalog.unlisted_packs() if reader.is_indexed(pack)]
        for pack in result.unlisted:
            result.findings.append(Finding("pack-unlisted", "no index lists it", name=pack_key(pack).encode()))
        result.findings += [self._finding(why, pack, items) for (why, pack), items in groups.items()]
        return result

    async def restore(self) -> str | None:
        """Put our own snapshots and indexes that are damaged or gone anew, from what DATA knows of them.

        Nothing where another machine writes by now: it may have deleted what DATA knows, and the packs with it. Returns
        why not.

        Raises: BackendError.
        """
        if not self._records:
            return None
        try:
            writer = await self._other_writer()
        except (ObjectCorrupt, ObjectMissing) as error:
            return f"nothing is put on the remote, because it does not say who writes there: {error}"
        if writer is not None:
            return f"nothing is put on the remote: {writer.host} writes there now"
        known = {snapshot_key(peer, seq): record for peer, seq, _, record in self._reader.snapshots()}
        for finding in list(self._records):
            key = (finding.name or b"").decode()
            if finding.code == "index-damaged":
                data = self._index_again(key)
            else:
                data = known.get(key) if finding.code.startswith("snapshot-") else None
            if data is not None:
                await self._backend.put(key, data)
                self._records.remove(finding)
        return None

    def _index_again(self, key: str) -> bytes | None:
        """An index of ours as DATA remembers it; None when it does not, or not well enough."""
        place = parse_seq_key(key)
        if place is None or place[0] != self._reader.state("peer"):
            return None
        packs = self._reader.listing(place[1])
        listings = tuple(PackListing(i, size, kind, tuple(blocks)) for i, size, kind, blocks in packs)
        data = encode(IndexRecord(VERSION, place[0], place[1], listings))
        try:
            decode(data, IndexRecord)
        except ObjectCorrupt:
            return None
        for pack_id, size, kind, blocks in packs:
            self._catalog.add_pack(PackId(pack_id), size, kind, blocks)
        return data if packs else None

    def _finding(self, why: str, pack: PackId | None, items: list[Lost]) -> Finding:
        local = [item.local for item in items if item.local is not None]
        paths = {path for found in self._reader.paths_of_blocks(local).values() for path in found}
        paths |= {self._catalog.path(item.number) for item in items if item.local is None}
        nodes = sum(item.kind == TREE for item in items)
        what = f"{len(items) - nodes} blocks and {nodes} tree nodes"
        ordered = tuple(sorted(path for path in paths if path))
        if pack is None:
            return Finding("block-unlisted", f"{what} are in no index", paths=ordered)
        texts = {
            "missing": f"it is gone, and with it {what}",
            "size": f"it is not as long as it should be, and {what} are in no other",
            "damaged": f"it has wrong bytes for {what}",
            "unlisted": "",
        }
        return Finding(f"pack-{why}", texts[why], name=pack_key(pack).encode(), paths=ordered)


def _opened(data: memoryview, node: OpenNode) -> Node:
    """Raises: ObjectCorrupt."""
    return decode_node(open_sealed(data[node.offset : node.offset + node.length], node.id))


def _named_by(node: Node, form: int) -> list[Want]:
    """What a node names, which must be of *form*. Raises: ObjectCorrupt."""
    match node:
        case Root() if form == ROOT:
            return list(_of_entry(node.entry, None))
        case DirectoryLeaf() if form == DIRECTORY:
            return [want for entry in node.entries for want in _of_entry(entry, entry.name)]
        case DirectoryBranch() if form == DIRECTORY:
            return [Want(child.tree, DIRECTORY) for child in node.children]
        case ExtentBranch() if form == EXTENTS:
            return [Want(child.tree, EXTENTS) for child in node.children]
        case ExtentLeaf() if form == EXTENTS:
            return list(_of_extents(node.extents, None))
        case XattrNode() if form == XATTRS:
            return [Want(node.rest, XATTRS)] if node.rest else []
    raise ObjectCorrupt("a tree has a node of another kind in it than it should")


def _of_entry(entry: Entry, name: bytes | None) -> Iterator[Want]:
    if entry.tree:
        yield Want(entry.tree, DIRECTORY if S_ISDIR(entry.mode) else EXTENTS, name=name)
    if entry.xattr_tree:
        yield Want(entry.xattr_tree, XATTRS, name=name)
    yield from _of_extents(entry.extents, name)


def _of_extents(extents: Iterable[Extent], name: bytes | None) -> Iterator[Want]:
    for extent in extents:
        yield Want(extent.block, None, extent.offset + extent.length, name)


def _wrong(data: memoryview, places: Iterable[tuple[bytes, int, int]]) -> list[bytes]:
    """The ids of what is not where it should be in a pack."""
    found: list[bytes] = []
    for block_id, offset, length in places:
        try:
            open_sealed(data[offset : offset + length], block_id)
        except ObjectCorrupt:
            found.append(block_id)
    return found
