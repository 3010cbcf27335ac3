"""Removes from the remote what no kept snapshot, no file of the live tree and no follower needs.

The order is the promise (docs/history.md): everything is listed first; then snapshots go, then what is needed of packs
that are mostly dead is copied, then newer index objects take the place of those that list packs which go, and the packs
go last. What is to be deleted is listed in meta.db before, so a prune may be killed anywhere: the next one goes on.

Runs on the event loop beside everything else; marking is SQL in a thread. Blocks are forgotten while no publication is
under way, after it was marked again what those since the listing need: a directory that went back to what it was names
old nodes and sends nothing.
"""

import contextlib
import logging
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import trio

from syncer.backends.base import Backend
from syncer.blocks.pack import pack_key
from syncer.blocks.store import BlockStore
from syncer.blocks.syncing import Durability
from syncer.errors import ObjectCorrupt, RemoteUnreachable, SyncerError
from syncer.meta.marks import FIRST_DROPPED, HISTORY, LIVE, Choice, Marks, Stopped
from syncer.snapshots.followers import (
    Follower,
    find_follower,
    forget_follower,
    needed_by_followers,
    needed_places,
    read_followers,
)
from syncer.snapshots.history import History, Snapshot
from syncer.snapshots.inventory import HINT, take_inventory
from syncer.snapshots.publisher import Publisher
from syncer.snapshots.records import index_key
from syncer.snapshots.references import NodeReader
from syncer.snapshots.retention import Place, Policy
from syncer.snapshots.rewriting import Rewriter
from syncer.snapshots.thinning import Thinner
from syncer.values import PackId, TreeId

T = TypeVar("T")
log = logging.getLogger(__name__)

FORGOTTEN_AT_ONCE = 100
"""So many blocks are forgotten in one step: a few milliseconds."""
TURN_S = 5.0
"""A publication waits for no longer than this while blocks are forgotten."""
READ_AT_ONCE = 1024
LISTED_AT_ONCE = 512
AIM = 0.5
"""A prune goes on until this part of what may be dead is: the next one is not due at once."""
UNLIMITED = 1 << 62


@dataclass(frozen=True, slots=True)
class Step:
    """What a prune is doing: how much of how much (0: not known), in objects or bytes as *text* says."""

    text: str
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Going:
    """A snapshot that goes. *place*: `peer/seq`. *bytes* on the remote are held by it, by no kept one, and by none that
    goes and is older."""

    place: str
    id: str
    time_ns: int
    label: str | None
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a prune is about to do, or has done. All bytes are bytes on the remote.

    *history_bytes* are held by kept snapshots alone, *dead_bytes* by nothing. *freed_bytes* come back. *followers*
    have a say in what stays.
    """

    followers: tuple[Follower, ...]
    going: tuple[Going, ...]
    kept_snapshots: int
    remote_bytes: int
    history_bytes: int
    dead_bytes: int
    freed_bytes: int
    deleted_packs: int
    rewritten_packs: int
    rewritten_bytes: int


Tell = Callable[[Step | Plan], None]


class Pruner:
    def __init__(
        self,
        store: BlockStore,
        backend: Backend,
        history: History,
        publisher: Publisher,
        thinner: Thinner,
        durability: Durability,
    ) -> None:
        self._store = store
        self._meta = store.meta
        self._backend = backend
        self._history = history
        self._publisher = publisher
        self._thinner = thinner
        self._durability = durability
        self.turn = trio.Lock()
        """Held by a prune, and by whoever must have none come in between."""
        self.dead_percent = 20
        """The part of the remote that may be dead."""
        self.pace: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint
        """Awaited between steps that change meta.db."""

    async def prune(
        self,
        policy: Policy,
        tell: Tell,
        *,
        dry_run: bool = False,
        rewrite_max_bytes: int = UNLIMITED,
        forget: str | None = None,
        spare: Callable[[], Collection[Place]] = lambda: (),
    ) -> Plan:
        """Delete the snapshots that *policy* lets go, and what nothing needs then. A *dry_run* only tells the plan.

        *tell* is told steps now and then, and the plan before anything is deleted. *forget* names a machine that
        follows, as `find_follower` takes it: what it says it needs counts no more. What *spare* gives when it is
        decided which snapshots go stays.

        Raises:
            NoSuchFollower: there is none to forget.
            BackendError: before the plan was told, and nothing was deleted; or later, and the next prune goes on.
            WrongRepository: another machine writes.
            OSError: the local disk does not take what must be remembered.
        """
        async with self.turn, self._marks() as marks:
            with self._history.keeping():  # what is forgotten is not marked
                run = _Run(self, marks, [], tell)
                return await self._prune(
                    run, policy, forget, spare, dry_run=dry_run, rewrite_max_bytes=rewrite_max_bytes
                )

    async def _prune(
        self,
        run: "_Run",
        policy: Policy,
        forget: str | None,
        spare: Callable[[], Collection[Place]],
        *,
        dry_run: bool,
        rewrite_max_bytes: int,
    ) -> Plan:
        if not dry_run:
            await self._thinner.check_writer()
        await take_inventory(
            *(self._meta, self._backend, self._history, run.marks),
            lambda what, n: run.tell(Step(f"listing {what}", n, 0)),
            listing_only=dry_run,
        )
        followers = await read_followers(self._backend)
        forgotten = None if forget is None else find_follower(followers, forget)
        run.followers = tuple(one for one in followers if one is not forgotten)
        run.going = self._thinner.going(policy, {*needed_places(run.followers), *spare()})
        plan = await run.plan(rewrite_max_bytes)
        run.tell(plan)
        if not dry_run:
            if forgotten is not None:
                await self._thinner.check_writer()
                await forget_follower(self._backend, forgotten)
            await run.check_followers()
            await run.carry_out(plan)
        return plan

    async def count(self, tell: Tell) -> int:
        """Count what history holds and what is dead, from what is known here; returns the dead bytes."""
        async with self.turn, self._marks() as marks:
            self._meta.commit()
            await in_thread(marks, marks.rely)
            return (await _Run(self, marks, [], tell).plan(0)).dead_bytes

    @contextlib.asynccontextmanager
    async def _marks(self) -> AsyncIterator[Marks]:
        with tempfile.TemporaryDirectory(prefix="syncer-prune-") as folder:
            marks = Marks(Path(folder) / "marks.db", self._meta.database.path)
        # Its name is gone by now: whoever kills this leaves nothing behind.
        try:
            yield marks
        finally:
            marks.close()


class _Run:
    """One prune, with its working tables."""

    def __init__(self, owner: Pruner, marks: Marks, going: Sequence[Snapshot], tell: Tell) -> None:
        self._owner = owner
        self._meta = owner._meta
        self._backend = owner._backend
        self.marks = marks
        self.going = going
        self.tell = tell
        self.followers: tuple[Follower, ...] = ()
        """The machines that follow, those that are to be forgotten aside."""
        self._marked: set[tuple[int, int]] = set()
        """Snapshots of which it is marked what they need."""
        self._marked_unsure: set[TreeId] = set()
        """Roots of snapshots that may have arrived, and are marked like those that stay."""
        self._unknown = 0
        """How many nodes name blocks that are nowhere."""

    # --- marking -------------------------------------------------------------------------------------------------

    async def plan(self, rewrite_max_bytes: int) -> Plan:
        """Mark everything, and choose what goes."""
        self._meta.commit()
        await self._mark_kept()
        for by, snapshot in enumerate(self.going, FIRST_DROPPED):
            if self.marks.add_root(snapshot.root, by):
                await self._in_thread(self.marks.expand, by)
                await self._in_thread(self.marks.pass_over_unread)
        self.tell(Step("adding up", 0, 0))
        await self._in_thread(self.marks.add_up)
        share = AIM * self._owner.dead_percent / 100
        await self._in_thread(self.marks.choose, share, rewrite_max_bytes)
        plan = self._planned()
        self._remember(plan)
        return plan

    async def _mark_kept(self) -> None:
        """Mark what snapshots need that stay and are not marked yet: the newest first."""
        going = {one.place for one in self.going} - self._owner._history.held
        kept = [one for one in self._owner._history.known() if one.place not in going | self._marked]
        unsure = self._owner._publisher.unsure - self._marked_unsure
        if self._marked and not kept and not unsure:
            return  # and so the trees that a publication goes on from are as they were, too
        head = self._meta.snapshots.head()
        await self._in_thread(self.marks.add_published)
        newest = [one for one in kept if head is not None and one.place == (head.peer, head.seq)]
        for by, snapshots in ((LIVE, newest), (HISTORY, [one for one in kept if one not in newest])):
            for at, snapshot in enumerate(snapshots):
                if not self.marks.add_root(snapshot.root, by):
                    raise ObjectCorrupt(f"no index lists the root of {_name(snapshot)}", hint=HINT)
                if by == HISTORY and at % 64 == 0:
                    self.tell(Step("marking snapshots", at, len(snapshots)))
            for root in unsure if by == HISTORY else ():
                self.marks.add_root(root, by)
            await self._expand(by)
        self._marked_unsure |= unsure
        self._marked |= {one.place for one in kept}
        while outdated := await self._in_thread(self.marks.outdated):  # what these name may be so in turn
            self._meta.nodes.forget(outdated)
            self._meta.commit()
            await self._in_thread(self.marks.again, outdated, LIVE)
            await self._expand(LIVE)

    async def _expand(self, by: int) -> None:
        reader = NodeReader(self._meta, self._backend)
        done = 0
        while True:
            await self._in_thread(self.marks.expand, by)
            nodes = await self._in_thread(self.marks.unread, READ_AT_ONCE)
            if not nodes:
                break
            for node in nodes:
                await reader.read(node)
                done += 1
                self.tell(Step("reading tree nodes", done, 0))
            self._meta.commit()
            await self._in_thread(self.marks.were_read, [node.number for node in nodes])
            await self._owner.pace()
        if await self._in_thread(self.marks.any_unreadable):
            raise ObjectCorrupt("a tree node that a snapshot needs is not on the remote", hint=HINT)
        self._unknown += reader.unknown
        if reader.unknown:
            log.warning("%d tree nodes name blocks that are nowhere; `syncer check --remote` says more", reader.unknown)

    def _planned(self) -> Plan:
        marks = self.marks
        sums = marks.sums()
        packs, size, _, _ = marks.chosen_totals(rewrite=False)
        again, again_size, needed, listed = marks.chosen_totals(rewrite=True)
        return Plan(
            followers=self.followers,
            going=tuple(
                Going(_name(one), one.id, one.time_ns, one.label, marks.held_bytes(by))
                for by, one in enumerate(self.going, FIRST_DROPPED)
            ),
            kept_snapshots=len(self._marked),
            remote_bytes=sums.pack_bytes,
            history_bytes=marks.held_bytes(HISTORY),
            dead_bytes=sums.dead_bytes,
            freed_bytes=size + again_size - needed - listed,
            deleted_packs=packs,
            rewritten_packs=again,
            rewritten_bytes=needed,
        )

    def _remember(self, plan: Plan) -> None:
        """What `syncer status` tells, and what says when to count again."""
        unique_bytes, _ = self._meta.blocks.content_totals()
        used = plan.remote_bytes - plan.dead_bytes - plan.history_bytes
        self._meta.blocks.counted(plan.history_bytes, plan.dead_bytes, used, unique_bytes)

    # --- deleting ------------------------------------------------------------------------------------------------

    async def check_followers(self, hint: str = "nothing was deleted; try again") -> None:
        """Make sure that no follower has begun to need what goes while it was found out what that is.

        Raises: BackendError: one has, or it cannot be told.
        """
        needed = await needed_by_followers(self._backend)
        for one in self.going:
            if one.place in needed:
                raise RemoteUnreachable(f"a machine that follows has begun to need {_name(one)}", hint=hint)

    async def carry_out(self, plan: Plan) -> None:
        """Do what was planned. Raises: as `Pruner.prune`."""
        doomed = self._meta.doomed
        doomed.forget_gone(await self._in_thread(self.marks.undeleted))
        self.tell(Step("deleting snapshots", 0, len(self.going)))
        await self._owner._thinner.drop(self.going)
        # From here on no follower finds these any more. One that found one just before has said so by now.
        await self.check_followers("what it needs is still there; try again when it has gone on")
        await self._rewrite()
        await self._forget()
        await self._doom_strays()
        await self._replace_indexes()
        self.tell(Step("deleting packs", 0, 0))
        await self._owner._thinner.delete_doomed("packs/")
        _, remote_bytes = self._meta.blocks.content_totals()
        left = max(0, plan.dead_bytes - plan.freed_bytes)
        self._remember(replace(plan, remote_bytes=remote_bytes, dead_bytes=left))

    async def _rewrite(self) -> None:
        owner = self._owner
        rewriter = Rewriter(self._meta, self._backend, owner._store.packs, owner._durability)
        _, _, total, _ = self.marks.chosen_totals(rewrite=True)
        after = 0
        if total:
            await owner._thinner.check_writer()
        while choices := self.marks.choices(rewrite=True, after=after):
            for choice in choices:
                after = choice.pack
                needed = await self._in_thread(self.marks.needed_in, choice)
                if not await rewriter.add(choice, self._meta.blocks.kind_of(choice.id), needed):
                    self.marks.leave(choice.pack)
                self.tell(Step("rewriting packs (bytes)", rewriter.copied_bytes, total))
                await owner.pace()
        await rewriter.finish()
        self._meta.commit()

    async def _forget(self) -> None:
        """Forget the blocks that nothing needs, pack by pack, and doom the packs."""
        total, after = sum(self.marks.chosen_totals(rewrite=again)[0] for again in (False, True)), 0
        done = 0
        while choices := self.marks.choices(after=after):
            await self._owner._thinner.check_writer()
            async with self._owner._publisher.turn:
                self._meta.commit()
                await self._mark_kept()
                end = trio.current_time() + TURN_S
                for choice in choices:
                    after, done = choice.pack, done + 1
                    await self._forget_pack(choice)
                    if trio.current_time() > end:
                        break
            self.tell(Step("forgetting packs", done, total))

    async def _forget_pack(self, choice: Choice) -> None:
        doomed = self._meta.doomed
        while True:
            # ATOMIC up to the commit: that nothing needs these blocks holds until they are forgotten.
            numbers = doomed.numbers_in(choice.id, FORGOTTEN_AT_ONCE)
            if not self._is_dead(choice.id, numbers):
                return
            if not numbers:
                break
            doomed.forget_blocks(numbers)
            self._meta.commit()
            await self._owner.pace()
        doomed.doom_packs([(pack_key(choice.id), choice.id)])
        self._meta.commit()

    def _is_dead(self, pack_id: PackId, numbers: Sequence[int]) -> bool:
        """Whether nothing needs the pack as far as these blocks of it go."""
        pinned = self._owner._store.budget.pinned
        return (
            self._meta.doomed.is_free(pack_id)
            and not self._owner._store.packs.is_flying(pack_id)
            and not any(number in pinned for number in numbers)
            and not self.marks.any_kept(numbers)
        )

    async def _doom_strays(self) -> None:
        """Packs that nothing knows go when they were seen before, and a snapshot has been published since then.

        Not while blocks are nowhere that are needed: an index may be lost, and they may be in such a pack.
        """
        if self._unknown:
            return
        seen, seq = self._meta.doomed.strays(), self._meta.snapshots.next_seq("snapshot")
        found = await self._in_thread(lambda: list(self.marks.strays()))
        await self._owner._thinner.check_writer()
        for pack_id in found:
            old = seen.get(pack_id, seq) < seq
            # ATOMIC: an upload that has just ended, or is under way, may have put it.
            if self._meta.blocks.knows_pack(pack_id) or self._owner._store.packs.is_flying(pack_id):
                seen.pop(pack_id, None)
            elif old:
                self._meta.doomed.doom_packs([(pack_key(pack_id), pack_id)])
                seen.pop(pack_id, None)
            else:
                seen[pack_id] = seq
        stays = set(found)
        self._meta.doomed.saw_strays([(pack_id, at) for pack_id, at in seen.items() if pack_id in stays])
        self._meta.commit()

    async def _replace_indexes(self) -> None:
        """Have newer index objects list what stays of those that list packs which go; then those go."""
        stale = await self._in_thread(self.marks.stale_indexes)
        publisher = self._owner._publisher
        async with publisher.turn:
            for at, place in enumerate(stale):
                packs = await self._in_thread(self.marks.staying_packs, place)
                for begin in range(0, len(packs), LISTED_AT_ONCE):
                    self._meta.doomed.list_again(packs[begin : begin + LISTED_AT_ONCE])
                    await self._owner.pace()
                self.tell(Step("listing packs anew", at, len(stale)))
            await self._owner._thinner.check_writer()
            await publisher.publish_index()
            self._meta.doomed.doom_indexes([index_key(*place) for place in stale])
            self._meta.commit()
        self.tell(Step("deleting indexes", 0, len(stale)))
        await self._owner._thinner.delete_doomed("index/")

    async def _in_thread(self, function: Callable[..., T], *arguments: object) -> T:
        return await in_thread(self.marks, function, *arguments)


async def in_thread(marks: Marks, function: Callable[..., T], *arguments: object) -> T:
    """What *function*, which works on *marks*, returns. Cancelled, it ends at its next statement."""
    result: list[T] = []
    failed: list[SyncerError | Stopped] = []

    async def stop_when_cancelled() -> None:
        try:
            await trio.sleep_forever()
        finally:
            marks.stopped = not done

    done = False

    def work() -> None:
        try:
            result.append(function(*arguments))
        except (SyncerError, Stopped) as error:
            failed.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stop_when_cancelled)
        await trio.to_thread.run_sync(work)
        done = True
        nursery.cancel_scope.cancel()
    await trio.lowlevel.checkpoint_if_cancelled()
    if failed:
        raise failed[0]
    return result[0]


def _name(snapshot: Snapshot) -> str:
    return f"{snapshot.peer}/{snapshot.seq}"
