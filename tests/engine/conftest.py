"""Fixtures for tests of what is synced, and in which order."""

import pytest

from tests.engine.syncs import Flushes, chance


@pytest.fixture
def flushes(monkeypatch: pytest.MonkeyPatch) -> Flushes:
    return Flushes(monkeypatch)


@pytest.fixture
def the_same_bytes_in_every_run() -> None:
    chance.seed(1)


@pytest.fixture
def no_checkpoint_comes_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    """After one there is nothing left to sync."""
    monkeypatch.setattr("syncer.engine.CHECKPOINT_S", 1e9)
