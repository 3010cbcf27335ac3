"""A tree larger than the budget is read again and again: always the same bytes, however often they had to leave."""

import random
from pathlib import Path

import pytest

from tests.acceptance.conftest import MakeRemote, Scale
from tests.support.collection import differences, manifest, write_media
from tests.support.mount import Mount

pytestmark = pytest.mark.slow


def test_reading_twice_through_a_small_budget(place: Path, remote_of: MakeRemote, scale: Scale) -> None:
    remote = remote_of("folder")
    with Mount(place, remote.url, scale.megabytes, lifetime_s=scale.lifetime_s) as mount:
        mount.start()
        plain = place / "plain"
        chance = random.Random(11)
        for number in range(10):
            folder = Path(str(number), "deeper")
            (plain / folder).mkdir(parents=True)
            write_media(plain / folder / "media", scale.collection_bytes // 12, chance)
            for small in range(100):
                (plain / folder / f"{small}").write_bytes(chance.randbytes(5_000 + small * 100))
        expected = {path: (item.kind, item.content) for path, item in manifest(plain).items()}
        for path in plain.rglob("*"):
            there = mount.path / path.relative_to(plain)
            if path.is_dir():
                there.mkdir()
            else:
                there.write_bytes(path.read_bytes())
        mount.flush(scale.lifetime_s)
        fetched = mount.status()["fetched_bytes"]
        for _ in range(2):
            found = manifest(mount.path)
            assert {path: (item.kind, item.content) for path, item in found.items()} == expected
            now = mount.status()["fetched_bytes"]
            assert now - fetched > scale.collection_bytes / 3, "it did not need to come back"
            fetched = now
        mount.stop()
        mount.start()
        assert differences(found, manifest(mount.path)) == []
        mount.stop()
        mount.finish()


def test_large_files_larger_than_the_budget(place: Path, remote_of: MakeRemote) -> None:
    """One file alone exceeds the budget, being written and being read."""
    size, part = 100_000_000, 1_000_000
    with Mount(place, remote_of("folder").url, 64) as mount:
        mount.start()
        chance = random.Random(12)
        with open(mount.path / "large", "wb") as file:
            for _ in range(size // part):
                file.write(chance.randbytes(part))
        mount.flush()
        chance = random.Random(12)
        with open(mount.path / "large", "rb") as file:
            for number in range(size // part):
                assert file.read(part) == chance.randbytes(part), number
        mount.stop()
        mount.finish()
