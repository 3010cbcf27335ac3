"""One world for all tests of the check: each damages a copy."""

import shutil
from collections.abc import Iterator

import pytest

from tests.support.check_world import CheckWorld, build
from tests.support.core_data import fast_folder


@pytest.fixture(scope="session")
def sound_world() -> Iterator[CheckWorld]:
    place = fast_folder()
    yield build(place / "sound")
    shutil.rmtree(place)


@pytest.fixture
def world(sound_world: CheckWorld) -> Iterator[CheckWorld]:
    place = fast_folder()
    yield sound_world.copy(place / "world")
    shutil.rmtree(place)
