"""A mount that follows the writer: looks for its snapshots, and has the tree, the remote and the kernel go along.

Runs on the event loop; what has changed is found out in a worker thread. The order of a move is the promise: first the
remote knows that we need the new snapshot, then it is shown, then the kernel is told, then the old one is given up.
"""

import logging
import os
import time
from collections.abc import Awaitable, Callable, Sequence

import trio

from syncer.backends.base import Backend
from syncer.engine import Engine
from syncer.errors import ObjectCorrupt, ObjectMissing, SyncerError
from syncer.fs.following import FollowingTree
from syncer.fs.moving import Changes, find_changes
from syncer.snapshots.history import Snapshot
from syncer.snapshots.needs import Needs
from syncer.snapshots.nodes import Entry
from syncer.snapshots.records import snapshot_key
from syncer.snapshots.watch import LOOK_S, Watch
from syncer.values import ROOT_INODE, PeerId

log = logging.getLogger(__name__)

Notify = Callable[[Sequence[tuple[int, bytes]], Sequence[int]], Awaitable[None]]
"""Has the kernel forget names in directories, and attributes."""

SHOWN_PEER, SHOWN_SEQ = "shown_peer", "shown_seq"
"""Keys of the state: the snapshot that was shown last."""
FIRST_S = 5.0
"""How long a mount waits for the remote to say what is new before it shows what it showed last."""
LONGEST_S = 8.0
"""While the remote is away it is asked again after this at the latest."""
WALKS = 3
"""While something new becomes known to the kernel, what has changed is found out again, but no more than so often."""


class Follower:
    def __init__(self, engine: Engine, backend: Backend) -> None:
        self._engine = engine
        self._history = engine.history
        self._state = engine.meta.database
        self._needs = Needs(engine.meta, backend)
        self._watch = Watch(backend, engine.history)
        self.tree = FollowingTree(engine.history, engine.files, engine.settings.history_name, os.getuid(), os.getgid())
        self.notify: Notify = _nobody
        self._away = False
        self._looked_for_left = False
        engine.history.remember_indexes()
        engine.follower = self

    # --- what others ask -----------------------------------------------------------------------------------------

    @property
    def shown(self) -> Snapshot | None:
        """The snapshot that the mount shows."""
        return self.tree.snapshot

    @property
    def away(self) -> bool:
        """Whether the last attempt to find out what is new has failed."""
        return self._away

    def age_s(self) -> float | None:
        """How long ago what is shown was so."""
        return None if self.shown is None else max(0.0, time.time() - self.shown.time_ns / 1e9)

    # --- running -------------------------------------------------------------------------------------------------

    async def begin(self) -> None:
        """Show something before anybody looks: the newest snapshot, or the one shown last if the remote is away."""
        newest: Snapshot | None = None
        last = await self._last()
        try:
            with trio.move_on_after(FIRST_S) as scope:
                newest = await self._watch.first() or await self._watch.look()
            if newest is not None:
                with trio.move_on_after(FIRST_S if last else float("inf")):
                    await self._move(newest)
        except (SyncerError, OSError) as error:
            self._log_away(str(error))
        else:
            if scope.cancelled_caught:
                self._log_away("it does not answer")
        if self.shown is None and last is not None:
            await self._show_last(last)
        if self.shown is None and self._history.is_empty:
            log.warning("there is no snapshot yet; the mount is empty until there is")
        elif self.shown is None:
            log.warning("no snapshot could be read yet; until one can be, using the mount is an error")

    async def _last(self) -> Snapshot | None:
        """The snapshot that was shown last, if it is known here."""
        place = PeerId(self._state.state_integer(SHOWN_PEER)), self._state.state_integer(SHOWN_SEQ)
        return next((one for one in self._history.known() if one.place == place), None)

    async def _show_last(self, last: Snapshot) -> None:
        try:
            with trio.move_on_after(FIRST_S):
                self.tree.show(last, await self._history.root(last), Changes())
        except (SyncerError, OSError) as error:
            log.warning("snapshot %d/%d, which was shown last, cannot be read here: %s", *last.place, error)

    async def run(self) -> None:
        """Follow for as long as the mount lasts. Trouble is logged once, and the mount goes on with what it shows."""
        delay_s, said = LOOK_S, set[str]()
        while True:
            await trio.sleep(delay_s)
            delay_s = min(2 * delay_s, LONGEST_S)
            try:
                await self.step()
            except (SyncerError, OSError) as error:
                self._log_away(str(error))
            except Exception as error:  # whatever it is: it must not take the mount away from its users
                if repr(error) not in said:
                    log.exception("following failed unexpectedly, and is tried again")
                said.add(repr(error))
            else:
                delay_s, said = LOOK_S, set()
                if self._away:
                    log.info("the remote can be asked again")
                self._away = False

    def _log_away(self, reason: str) -> None:
        if not self._away:
            log.warning("what is new cannot be told, and what is known is shown meanwhile: %s", reason)
        self._away = True

    async def end(self, deadline_s: float) -> None:
        """The mount is no more: delete what says that we need something. What cannot be deleted goes next time."""
        with trio.move_on_after(1.0 if self._away else deadline_s):
            try:
                await self._needs.keep(())
            except (SyncerError, OSError) as error:
                log.warning("the remote still keeps what this machine needed: %s", error)

    async def step(self) -> None:
        """Look once, and go on if there is something new. Raises: SyncerError, OSError."""
        listings = self._watch.listings
        newest = await self._watch.look()
        if self._watch.listings != listings:
            await self._needs.renew()
            if self.tree.place is not None:
                await self._needs.hold(self.tree.place)  # it may be shown, and files of it be open, without a remote
        if newest is not None and newest.place != self.tree.place:
            await self._move(newest)
        if names := self.tree.freed():
            await self.notify(names, ())
        await self._give_up()

    # --- from one snapshot to the next ---------------------------------------------------------------------------

    async def _move(self, new: Snapshot) -> None:
        """Show another snapshot. Raises: SyncerError, OSError: the one before is still shown."""
        await self._needs.hold(new.place)
        if not await self._history.is_there(new):
            raise ObjectMissing(f"{snapshot_key(*new.place)} was deleted before it could be shown")
        if self.shown is not None and not await self._history.is_there(self.shown):
            log.info("snapshot %d/%d, which is shown, was deleted", *self.shown.place)
        await self._history.learn_indexes(0)
        root = await self._history.root(new)
        with self.tree.moving():
            changes = await self._changes(root)
            entries, inodes = self.tree.show(new, root, changes)
            self._state.set_state(SHOWN_PEER, new.peer)
            self._state.set_state(SHOWN_SEQ, new.seq)
            await self.notify(entries, inodes)
        log.info("showing snapshot %d/%d of %s", *new.place, new.host)

    async def _changes(self, root: Entry) -> Changes:
        """What the kernel knows and is other in the tree of *root*."""
        if self.shown is None:
            return Changes(inodes={ROOT_INODE})
        for _ in range(WALKS):
            met, old = self.tree.nodes.met_count, self.tree.root
            try:
                found = await trio.to_thread.run_sync(
                    find_changes, old, root, self._history.load, self.tree.nodes.knows, self.tree.nodes.in_use
                )
            except (ObjectMissing, ObjectCorrupt) as error:
                log.info("what has changed cannot be told, so the kernel is to ask for everything: %s", error)
                return self.tree.nodes.everything()
            if met == self.tree.nodes.met_count:
                break
        return found

    async def _give_up(self) -> None:
        """Delete the records of snapshots that nothing here needs any more. Raises: BackendError."""
        if not self._looked_for_left:
            await self._needs.find_left()
            self._looked_for_left = True
        await self._needs.keep(await self.tree.needed())


async def _nobody(entries: Sequence[tuple[int, bytes]], inodes: Sequence[int]) -> None:
    """There is no kernel yet."""
