"""The remotes that the tests of the contract run on."""

from collections.abc import AsyncIterator

import pytest

from syncer.backends.base import Backend
from tests.backends.remotes import KINDS, Remote, kinds, small_pages


@pytest.fixture(params=kinds(lambda kind: True))
def remote(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Remote:
    small_pages(monkeypatch)
    return KINDS[request.param](request)


@pytest.fixture
async def backend(remote: Remote) -> AsyncIterator[Backend]:
    opened = remote.open()
    yield opened
    await opened.close()
