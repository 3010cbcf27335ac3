"""Commits, and what is left when one fails: the journal makes whole again what SQLite lost."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from syncer.meta.store import MetaStore
from syncer.values import BlockId, PeerId
from tests.support.core_data import make_data


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make_data(tmp_path / "data")


@pytest.fixture
def meta(data: Path) -> Iterator[MetaStore]:
    meta = MetaStore(data)
    meta.become(PeerId(1))
    meta.ensure_root(0, 0)
    meta.commit()
    yield meta
    meta.close()


def test_no_transaction_is_open_after_a_commit_although_its_actions_record_something(meta: MetaStore) -> None:
    """Files are deleted after a commit, and that is noted; a checkpoint with a transaction open is refused."""
    left = [BlockId(b"x" * 32), BlockId(b"y" * 32)]
    meta.database.on_commit.append(lambda: meta.blocks.deleted([left.pop()]) if left else None)
    meta.database.set_state("something", 1)
    meta.commit()
    assert not meta.database.pending and not left
    assert meta.database.checkpoint_here()
