"""What the nodes of trees name, by the numbers of blocks: what a snapshot needs is known without its nodes.

Recorded when a node is stored, and read from the nodes that were stored before or by others. Not journaled: what a
crash loses is read again.
"""

from collections.abc import Iterable, Sequence

from syncer.meta.database import Table
from syncer.values import BlockId, TreeId

Named = tuple[bytes, bool]
"""(id, whether it is a node's) of something that a node names."""


class NodeTable(Table):
    def note(self, node: TreeId, named: Iterable[Named]) -> None:
        """The node names these. For many, call it again with more of them, and `complete` at the end."""
        self.database.begin()
        self.executemany(
            "INSERT INTO node_refs SELECT n.number, b.number, ? FROM blocks n, blocks b WHERE n.id = ? AND b.id = ?"
            " ON CONFLICT DO UPDATE SET tree = max(tree, excluded.tree)",
            [(int(is_node), node, block_id) for block_id, is_node in named],
        )

    def complete(self, node: TreeId, count: int) -> bool:
        """All that the node names was noted, *count* different ids. False when some of it is not known here: then the
        node counts as not read."""
        self.database.begin()
        row = self.execute(
            "SELECT b.number, (SELECT count(*) FROM node_refs r WHERE r.node = b.number) FROM blocks b WHERE b.id = ?",
            (node,),
        ).fetchone()
        if row is None or row[1] != count:
            return False
        self.execute("INSERT OR IGNORE INTO read_nodes VALUES (?)", (row[0],))
        return True

    def forget(self, nodes: Sequence[int]) -> None:
        """These nodes, by number, must be read again: something that they name has a new number."""
        self.database.begin()
        for table in ("node_refs", "read_nodes"):
            self.executemany(f"DELETE FROM {table} WHERE node = ?", [(node,) for node in nodes])

    def is_read(self, node: BlockId | TreeId) -> bool:
        row = self.execute(
            "SELECT 1 FROM blocks b JOIN read_nodes r ON r.node = b.number WHERE b.id = ?", (node,)
        ).fetchone()
        return row is not None
