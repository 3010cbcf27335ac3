"""Blocks in a repair: where they are, what counts as cached, what must be sent again, what is lost.

Part of the one transaction of repair.py.
"""

from blake3 import blake3

from syncer.meta import rules
from syncer.meta.facts import Facts
from syncer.meta.mendnames import Mender
from syncer.values import ROOT_INODE, TREE


class BlockMender:
    def __init__(self, mender: Mender, facts: Facts) -> None:
        self._mender = mender
        self._facts = facts
        self.execute = mender.execute
        self.rows = mender.rows

    def mend(self) -> None:
        self._places()
        self._stray_rows()
        for number in self._facts.sound:
            self.execute("UPDATE blocks SET cached = 1 WHERE number = ? AND cached = 0", (number,))
        self._drop_copies()
        self._send_again()
        self._lose()
        self._bookkeeping()

    def _places(self) -> None:
        for number, place in self._facts.places.items():
            self.execute(
                "INSERT OR IGNORE INTO packs(id, size, kind) VALUES (?, ?, ?)",
                (place.pack, place.pack_bytes, place.kind),
            )
            self.execute(
                "UPDATE blocks SET pack = (SELECT number FROM packs WHERE id = ?), pack_offset = ?, sealed_bytes = ?"
                " WHERE number = ?",
                (place.pack, place.offset, place.sealed_bytes, number),
            )
            self.execute("DELETE FROM damaged WHERE number = ?", (number,))
        # Without a place, and with nothing here: whether the remote has it must be looked at there.
        self.execute(
            "UPDATE blocks SET pack = NULL, pack_offset = NULL, sealed_bytes = NULL"
            f" WHERE cached > 0 AND {rules.NO_PLACE}"
        )
        self.execute(f"DELETE FROM blocks WHERE refs = 0 AND cached = 0 AND {rules.NO_PLACE}")

    def _stray_rows(self) -> None:
        """Bytes that no block calls its own: its block's copy where they are sound, else kept beside."""
        for number, data, block_id, cached in self.execute(
            "SELECT d.number, d.data, b.id, b.cached FROM block_data d LEFT JOIN blocks b ON b.number = d.number"
            " WHERE b.cached IS NOT 2"
        ).fetchall():
            if block_id is not None and cached != 1 and blake3(data).digest() == block_id:
                self.execute("UPDATE blocks SET cached = 2 WHERE number = ?", (number,))
                continue
            if cached != 1:
                self._facts.keep(f"block-{number}", bytes(data))
            self.execute("DELETE FROM block_data WHERE number = ?", (number,))

    def _drop_copies(self) -> None:
        """A block whose copy here is bad is not cached: it is fetched again where the remote has it."""
        missing = self.rows(
            "SELECT number FROM blocks b WHERE cached NOT IN (0, 1, 2)"
            " OR cached = 2 AND NOT EXISTS (SELECT 1 FROM block_data d WHERE d.number = b.number)"
        )
        for number in {*self._facts.bad, *(row[0] for row in missing)}:
            found = self.execute("SELECT id, size, cached, pack FROM blocks WHERE number = ?", (number,)).fetchone()
            if found is None:
                continue
            block_id, _, cached, pack = found
            data = self.execute("SELECT data FROM block_data WHERE number = ?", (number,)).fetchone()
            if data is not None and pack is None:
                self._facts.keep(f"block-{number}", bytes(data[0]))
            self.execute("DELETE FROM block_data WHERE number = ?", (number,))
            if cached == 1:
                self.execute("INSERT OR IGNORE INTO deleting VALUES (?)", (block_id,))
            self.execute("UPDATE blocks SET cached = 0 WHERE number = ?", (number,))

    def _send_again(self) -> None:
        """What the remote has lost and we have counts as not sent. Nodes are made anew by the next snapshot."""
        for number in self._facts.unsent:
            self.execute(
                "UPDATE blocks SET pack = NULL, pack_offset = NULL, sealed_bytes = NULL"
                " WHERE number = ? AND cached > 0 AND refs > 0 AND kind <> ?",
                (number, TREE),
            )
        for pack in self._facts.unlisted:
            self.execute("UPDATE packs SET indexed = NULL WHERE id = ?", (pack,))
            self._mender.touch(ROOT_INODE)
        for pack in self._facts.lost_trees:
            nodes = f"kind = {TREE} AND refs = 0 AND pack = (SELECT number FROM packs WHERE id = ?)"
            self.execute(f"DELETE FROM block_data WHERE number IN (SELECT number FROM blocks WHERE {nodes})", (pack,))
            self.execute(f"DELETE FROM blocks WHERE {nodes}", (pack,))
        if self._facts.lost_trees:
            self.execute("DELETE FROM trees")
            self.execute("DELETE FROM changed_names")
            self.execute(
                "INSERT OR REPLACE INTO changed SELECT inode, (SELECT ifnull(max(value), 0) FROM state"
                " WHERE key = 'generation') FROM inodes WHERE nlink > 0"
            )

    def _lose(self) -> None:
        """Blocks that are nowhere: files that had bytes in them are what is left of them, in lost+found."""
        for number, start in self.rows(
            "SELECT e.inode, e.start FROM extents e JOIN blocks b ON b.number = e.source"
            " WHERE b.pack IS NULL AND b.cached = 0"
        ):
            self.execute("DELETE FROM extents WHERE inode = ? AND start = ?", (number, start))
            self._mender.set_aside(number)

    def _bookkeeping(self) -> None:
        self.execute("CREATE TEMP TABLE uses(number INTEGER PRIMARY KEY, uses INTEGER)")
        self.execute(f"INSERT INTO uses {rules.USES}")
        self.execute(
            "UPDATE blocks SET refs = ifnull((SELECT uses FROM uses u WHERE u.number = blocks.number), 0)"
            " WHERE refs <> ifnull((SELECT uses FROM uses u WHERE u.number = blocks.number), 0)"
        )
        self.execute("INSERT OR IGNORE INTO released SELECT number FROM blocks WHERE refs = 0 AND pack IS NULL")
        self.execute("DELETE FROM released WHERE number IN (SELECT number FROM blocks WHERE refs > 0)")
        sums = self.execute(rules.SUMS).fetchone()
        self.execute("INSERT INTO sums SELECT 0, 0 WHERE NOT EXISTS (SELECT 1 FROM sums)")
        self.execute(
            "UPDATE sums SET unique_bytes = ?1, pack_bytes = ?2 WHERE unique_bytes <> ?1 OR pack_bytes <> ?2",
            (int(sums[0]), int(sums[1])),
        )
