"""Brings blocks back from the remote: one request per run of neighbours, one fetch per block however many wait.

Runs in tasks of the nursery it was given, so a reader that gives up does not end the fetch others wait for.
"""

import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import trio

from syncer.backends.base import Backend
from syncer.blocks.budget import Budget
from syncer.blocks.cache import BlockCache, Incoming
from syncer.blocks.codec import open_sealed
from syncer.blocks.pack import pack_key
from syncer.errors import BudgetExhausted, DeadlinePassed, LocalDamage, ObjectCorrupt, ObjectMissing, SyncerError
from syncer.meta.blocktable import Block, file_bytes
from syncer.meta.store import MetaStore
from syncer.values import SMALL_BYTES, BlockId, PackId

log = logging.getLogger(__name__)

RANGE_BYTES = 8 * 1024 * 1024
"""One request asks for about this much at most: a pack."""
GAP_BYTES = 64 * 1024
"""Bytes nobody asked for that are worth fetching to join two ranges."""
LEAST_BYTES = 512 * 1024
"""So much is asked for at once, and ahead of a reader, however slow the line is."""
RANGE_SHARE, AHEAD_SHARE = 1 / 30, 1 / 10
"""One request, and all that is fetched ahead, should take no more than these parts of a reader's deadline."""
RATE_WEIGHT = 0.3
"""How much the latest request counts in what is known of the line."""
GRACE_S = 0.5
"""Who waits for one thing alone hears at the deadline why it did not come; who waits for several, so much later."""
AT_ONCE_BYTES = 256 * 1024
"""So much is opened on the event loop: two hops between threads take longer."""
REMEMBER_S = 1.0
"""How long a failed fetch answers for the next one."""
NEIGHBOUR_BYTES = 512 * 1024
"""A small block brings its small neighbours in the pack along, up to this much: they were written together."""


@dataclass(slots=True)
class _Flight:
    """A block on its way."""

    scope: trio.CancelScope
    """Of the request that brings it; its deadline moves when somebody begins to wait."""
    done: trio.Event = field(default_factory=trio.Event)
    error: SyncerError | None = None
    plain: memoryview | None = None
    """Its verified bytes, from when they are here until they are in the cache."""


@dataclass(frozen=True, slots=True)
class Range:
    """Neighbouring sealed blocks of one pack: one request."""

    pack: PackId
    offset: int
    length: int
    blocks: tuple[Block, ...]


def plan(blocks: Iterable[Block], range_bytes: int = RANGE_BYTES) -> list[Range]:
    """Group blocks that are on the remote into ranges of about *range_bytes* at most, in the order of the packs."""
    ranges: list[list[Block]] = []
    for block in sorted(blocks, key=_place):
        if ranges and _joins(ranges[-1], block, range_bytes):
            ranges[-1].append(block)
        else:
            ranges.append([block])
    return [_range(group) for group in ranges]


def _place(block: Block) -> tuple[bytes, int]:
    assert block.location is not None
    return block.location.pack, block.location.offset


def _joins(group: Sequence[Block], block: Block, range_bytes: int) -> bool:
    first, last, here = group[0].location, group[-1].location, block.location
    assert first is not None and last is not None and here is not None
    gap = here.offset - (last.offset + last.length)
    return here.pack == last.pack and gap <= GAP_BYTES and here.offset + here.length - first.offset <= range_bytes


def _range(group: Sequence[Block]) -> Range:
    first, last = group[0].location, group[-1].location
    assert first is not None and last is not None
    return Range(first.pack, first.offset, last.offset + last.length - first.offset, tuple(group))


_Plain = tuple[Block, bytes | memoryview]
"""A block with its plain bytes, verified."""


async def _nowhere(pack: PackId, blocks: Sequence[BlockId]) -> bool:
    return False


def _open_all(item: Range, data: memoryview) -> list[_Plain]:
    """The plain bytes of each sound block. Safe in a thread."""
    result: list[_Plain] = []
    for block in item.blocks:
        assert block.location is not None
        start = block.location.offset - item.offset
        with contextlib.suppress(ObjectCorrupt):
            result.append((block, open_sealed(data[start : start + block.location.length], block.id)))
    return result


class Fetcher:
    def __init__(
        self, meta: MetaStore, backend: Backend, cache: BlockCache, budget: Budget, nursery: trio.Nursery
    ) -> None:
        self._meta = meta
        self._backend = backend
        self._cache = cache
        self._budget = budget
        self._nursery = nursery
        self._flights: dict[int, _Flight] = {}
        self._slots = trio.CapacityLimiter(max(1, backend.parallelism))
        self._failures: dict[int, tuple[float, SyncerError]] = {}
        """Blocks that could not be had a moment ago, with when and why."""
        self.on_damage: Callable[[], None] = lambda: None
        """Called when something on the remote was found bad, so that blocks may wait for upload again."""
        self.on_missing: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint
        """Awaited when the remote lacks something: it may find out that it was moved. Raises: SyncerError."""
        self.elsewhere: Callable[[PackId, Sequence[BlockId]], Awaitable[bool]] = _nowhere
        """Awaited when a pack does not give these blocks: whether another place is known now for any of them. Raises:
        SyncerError."""
        self.sends_again = True
        """Whether what is here of a bad pack is sent anew; else what is known of packs stays, and the cached may go."""
        self.fetched_bytes = 0
        self.remote_ok: bool | None = None
        self._active = 0
        self._rate: float | None = None
        """Bytes a second that the line has carried lately, all requests together."""

    async def fetch(self, numbers: Sequence[int], deadline_s: float) -> dict[int, memoryview]:
        """Return when each block, which the caller has pinned, is cached, or its bytes are here: these are returned.

        Raises:
            SyncerError: the first that could not be had, and why; DeadlinePassed after *deadline_s*.
        """
        self._raise_lost(numbers)
        self._raise_recent(numbers)
        arrived, errors = await self._arrive(numbers, deadline_s)
        if errors:
            arrived.clear()  # an error is kept for a while, and knows this call
            raise errors.pop(0)
        return arrived

    async def _arrive(
        self, numbers: Sequence[int], deadline_s: float
    ) -> tuple[dict[int, memoryview], list[SyncerError]]:
        """What has come of the blocks and is not cached yet, and why others have not. Raises: DeadlinePassed."""
        flights = self.start(numbers, deadline_s)
        for flight in flights.values():
            flight.scope.deadline = max(flight.scope.deadline, trio.current_time() + deadline_s)
        with trio.move_on_after(deadline_s) as scope:
            for flight in flights.values():
                await flight.done.wait()
        if scope.cancelled_caught:
            raise too_late(deadline_s)
        arrived = {number: flight.plain for number, flight in flights.items() if flight.plain is not None}
        return arrived, [flight.error for flight in flights.values() if flight.error is not None]

    def _raise_lost(self, numbers: Iterable[int]) -> None:
        """Fail for a block that nobody has, which is no reason not to fetch others."""
        for number in numbers:
            block = self._meta.blocks.get(number)
            if not block.cached and block.location is None:
                raise LocalDamage(f"block {block.id.hex()} is neither here nor on the remote")

    def _raise_recent(self, numbers: Sequence[int]) -> None:
        """Fail at once for what has just failed: the kernel asks a second time after its read-ahead got an error."""
        now = trio.current_time()
        self._failures = {n: failure for n, failure in self._failures.items() if now - failure[0] < REMEMBER_S}
        for number in numbers:
            if number in self._failures and number not in self._flights:
                raise self._failures[number][1]

    def start(self, numbers: Sequence[int], deadline_s: float) -> dict[int, _Flight]:
        """Begin to fetch what is not cached and not on its way; returns the flights of all that is not cached.

        Blocks that nobody has are passed over.
        """
        wanted = {number: self._meta.blocks.get(number) for number in numbers}
        missing = [block for block in wanted.values() if not block.cached and block.location is not None]
        new = [block for block in missing if block.number not in self._flights]
        if len(new) == 1 and new[0].size <= SMALL_BYTES:
            new += [b for b in self._meta.blocks.neighbours(new[0], NEIGHBOUR_BYTES) if b.number not in self._flights]
        for item in plan(new, self._within(RANGE_BYTES, deadline_s * RANGE_SHARE)):
            self._launch(item, deadline_s)
        return {block.number: self._flights[block.number] for block in missing}

    def _launch(self, item: Range, deadline_s: float) -> None:
        scope = trio.CancelScope(deadline=trio.current_time() + deadline_s)
        for block in item.blocks:
            self._flights[block.number] = _Flight(scope)
        self._nursery.start_soon(self._bring, item, scope, deadline_s)

    def reach(self, most_bytes: int, deadline_s: float) -> int:
        """How far ahead of a reader to fetch: as much as the line brings in a part of *deadline_s*, or *most_bytes*."""
        return self._within(most_bytes, deadline_s * AHEAD_SHARE)

    def _within(self, most_bytes: int, time_s: float) -> int:
        return most_bytes if self._rate is None else min(most_bytes, max(LEAST_BYTES, int(self._rate * time_s)))

    async def _bring(self, item: Range, scope: trio.CancelScope, deadline_s: float) -> None:
        """One task: fetch a range and put its blocks in the cache. Never raises: errors go to the flights."""
        try:
            with scope:
                async with self._slots:
                    need = sum(file_bytes(block.size) for block in item.blocks)
                    if len(item.blocks) > 1 and not self._budget.make_room(need, reading=True):
                        return self._halve(item, deadline_s)
                    await self._budget.reserve(need, deadline_s, reading=True)
                    with self._budget.hold(need):
                        await self._fetch_range(item)
            if scope.cancelled_caught:
                self.remote_ok = False
                self._rate = 0.0
                self._fail(item.blocks, too_late(deadline_s))
        except (ObjectCorrupt, ObjectMissing) as error:
            is_neighbours = len(item.blocks) > 1 and isinstance(error, ObjectCorrupt)
            if is_neighbours or await self._find_again(item, error):
                self._one_by_one(item, error, deadline_s)
            else:
                first, more = item.blocks[0].id.hex(), len(item.blocks) - 1
                log.error("block %s and %d more cannot be read from the remote: %s", first, more, error)
                self._distrust(item.pack, item.blocks)
                self._fail(item.blocks, error)
        except BudgetExhausted:
            self._fail(item.blocks, LocalDamage("the budget is full of data that is not on the remote yet"))
        except SyncerError as error:
            self.remote_ok = False
            self._fail(item.blocks, error)
        except OSError as error:
            self._fail(item.blocks, LocalDamage(f"the cache cannot take a block: {error.strerror}"))
        except Exception as error:  # whatever it is: it must not take the mount away from its users
            log.exception("a fetch failed unexpectedly")
            self._fail(item.blocks, LocalDamage(f"a block could not be fetched: {error}"))
        except BaseException:
            self._fail(item.blocks, DeadlinePassed("the fetch was cancelled"))
            raise

    async def _find_again(self, item: Range, error: SyncerError) -> bool:
        """Whether any of these blocks is to be read from another place than the one that has just failed."""
        try:
            if isinstance(error, ObjectMissing):
                await self.on_missing()
            if self._any_moved(item):
                return True
            if await self.elsewhere(item.pack, [block.id for block in item.blocks]):
                log.error("blocks are read from another pack: %s", error)
                self._distrust(item.pack, ())
        except (SyncerError, OSError) as trouble:
            log.info("whether blocks are elsewhere cannot be told: %s", trouble)
        return self._any_moved(item)

    def _distrust(self, pack: PackId, lost: Iterable[Block]) -> None:
        """Have what is here of a damaged pack sent anew, and remember what is *lost*."""
        try:
            if self.sends_again:
                self._meta.damage.distrusted(pack, [block.id for block in lost])
            else:
                for block in lost:
                    self._meta.damage.lost(block.number)
        except (SyncerError, OSError) as error:
            log.error("that a block is damaged cannot be noted: %s", error)
        self.on_damage()

    def _any_moved(self, item: Range) -> bool:
        """Whether a block is read from another place by now: a prune has copied it there, and deleted the pack."""
        return any(now.location not in (None, block.location) for block in item.blocks if (now := self._now(block)))

    def _now(self, block: Block) -> Block | None:
        """The block as it is known now; None for one that is not known any more."""
        try:
            return self._meta.blocks.get(block.number)
        except KeyError:
            return None

    def _one_by_one(self, item: Range, error: SyncerError, deadline_s: float) -> None:
        """A damaged neighbour must cost nobody else a byte: each block by itself, for those who wait already too.

        From where it is now; *error* is for those that are nowhere.
        """
        for block in item.blocks:
            flight, now = self._flights.get(block.number), self._now(block)
            if flight is None:
                continue
            if now is not None and now.cached:
                self._flights.pop(block.number).done.set()
            elif now is None or now.location is None:
                self._fail([block], error)
            else:
                flight.scope = trio.CancelScope(deadline=trio.current_time() + deadline_s)
                self._nursery.start_soon(self._bring, _range([now]), flight.scope, deadline_s)

    def _halve(self, item: Range, deadline_s: float) -> None:
        """There is no room for all of it at once: each half by itself."""
        middle = len(item.blocks) // 2
        for half in (item.blocks[:middle], item.blocks[middle:]):
            scope = trio.CancelScope(deadline=trio.current_time() + deadline_s)
            for block in half:
                self._flights[block.number].scope = scope
            self._nursery.start_soon(self._bring, _range(half), scope, deadline_s)

    def _fail(self, blocks: Iterable[Block], error: SyncerError) -> None:
        for block in blocks:
            flight = self._flights.pop(block.number, None)
            if flight is not None and not flight.done.is_set():
                flight.error = error
                flight.done.set()
                self._failures[block.number] = (trio.current_time(), error)

    async def _fetch_range(self, item: Range) -> None:
        begin = trio.current_time()
        self._active += 1
        try:
            data = await self._backend.get(pack_key(item.pack), item.offset, item.length)
            self._measure(len(data), trio.current_time() - begin)
        finally:
            self._active -= 1
        self.remote_ok = True
        self.fetched_bytes += len(data)
        if item.length <= AT_ONCE_BYTES:
            sound = _open_all(item, memoryview(data))
        else:
            sound = await trio.to_thread.run_sync(_open_all, item, memoryview(data))
        large = self._serve(sound)
        incoming = await trio.to_thread.run_sync(self._write_all, large) if large else []
        try:
            while incoming:
                self._land(*incoming[0])
                incoming.pop(0)
        finally:
            self._discard(incoming)
        damaged = [block for block in item.blocks if block.number in self._flights]
        if damaged:
            raise ObjectCorrupt(f"pack {item.pack.hex()} holds wrong bytes for block {damaged[0].id.hex()}")

    def _measure(self, length: int, time_s: float) -> None:
        if length < LEAST_BYTES // 2:
            return  # tells of the round trip alone
        rate = self._active * length / max(time_s, 0.001)
        self._rate = rate if self._rate is None else self._rate + (rate - self._rate) * RATE_WEIGHT

    def _serve(self, sound: Iterable[_Plain]) -> list[_Plain]:
        """Let those who wait go on with the bytes that came; returns the blocks that have yet to become files."""
        large: list[_Plain] = []
        for block, plain in sound:
            if block.size <= SMALL_BYTES:
                self._land(block, bytes(plain))
                continue
            large.append((block, plain))
            flight = self._flights[block.number]
            flight.plain = memoryview(plain)
            flight.done.set()
        return large

    def _write_all(self, blocks: Iterable[_Plain]) -> list[tuple[Block, Incoming]]:
        """In a thread: a temporary file for each. Raises: OSError."""
        result: list[tuple[Block, Incoming]] = []
        try:
            for block, plain in blocks:
                result.append((block, self._cache.write_temporary(block, plain)))
        except BaseException:
            self._discard(result)
            raise
        return result

    def _discard(self, incoming: Iterable[tuple[Block, Incoming]]) -> None:
        for _, file in incoming:
            self._cache.discard(file)

    def _land(self, block: Block, plain: bytes | Incoming) -> None:
        try:
            if self._meta.blocks.is_damaged(block.number):
                self._meta.damage.sound(block.number)
            if isinstance(plain, bytes):
                self._meta.blocks.keep_row(block, plain)
            else:
                self._cache.install(block, plain)
        except KeyError:
            pass  # released while it was on its way
        flight = self._flights.pop(block.number, None)
        if flight is not None:
            flight.done.set()


@contextlib.contextmanager
def in_time(deadline_s: float) -> Iterator[None]:
    """Within the block one deadline holds for everything that is waited for. Raises: DeadlinePassed."""
    with trio.move_on_after(deadline_s + GRACE_S) as scope:
        yield
    if scope.cancelled_caught:
        raise too_late(deadline_s)


def too_late(deadline_s: float) -> DeadlinePassed:
    return DeadlinePassed(f"the remote did not deliver within {deadline_s:.0f} s")
