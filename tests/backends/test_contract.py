"""What `syncer/backends/base.py` promises, on every kind of remote and through every wrapper."""

import os
import random
import time
from pathlib import Path

import pytest
import trio

from syncer.backends.base import Backend, ObjectInfo
from syncer.errors import ObjectCorrupt, ObjectMissing
from tests.backends.remotes import SMALL_PAGE, WITH_FILES, WITH_LINKS, Remote

KIB = 1024
SIZES = [0, 1, 32 * KIB, 255 * KIB - 1, 255 * KIB, 255 * KIB + 1, 1024 * KIB + 3]
MALFORMED = ["", "/", "a/", "/a", "a//b", ".", "..", "a/../b", "a b", "a~", "ä", "a\n", "a\0", "a\\b"]


def content(size_bytes: int, seed: int = 0) -> bytes:
    return random.Random(f"{size_bytes} {seed}").randbytes(size_bytes)


async def listed(backend: Backend, prefix: str = "") -> dict[str, int]:
    """What a listing shows, each key once."""
    found: dict[str, int] = {}
    async for item in backend.list(prefix):
        assert item.key not in found
        found[item.key] = item.size_bytes
    return found


@pytest.mark.parametrize("size_bytes", SIZES)
async def test_what_was_put_comes_back(backend: Backend, size_bytes: int) -> None:
    data = content(size_bytes)
    await backend.put("packs/ab/object", data)
    assert await backend.get("packs/ab/object") == data
    assert await backend.stat("packs/ab/object") == ObjectInfo("packs/ab/object", size_bytes)
    assert await listed(backend) == {"packs/ab/object": size_bytes}


async def test_a_whole_pack_and_a_view_of_one(backend: Backend) -> None:
    data = bytearray(content(9 * KIB * KIB))
    await backend.put("packs/whole", bytes(data))
    await backend.put("packs/part", memoryview(data)[5:-7])
    assert await backend.get("packs/whole") == data
    assert await backend.get("packs/part") == data[5:-7]


async def test_ranges(backend: Backend) -> None:
    size = 700_001
    data = content(size)
    await backend.put("object", data)
    chosen = random.Random(1)
    for _ in range(20):
        offset = chosen.randrange(size)
        length = chosen.randrange(size - offset)
        assert await backend.get("object", offset, length) == data[offset : offset + length]
    assert await backend.get("object", size - 1) == data[-1:]
    assert await backend.get("object", 1) == data[1:]
    assert await backend.get("object", 0, size) == data
    assert await backend.get("object", size) == b""
    for offset in (0, 5, size):
        assert await backend.get("object", offset, 0) == b""


@pytest.mark.parametrize("size_bytes", [0, 1, 300_000])
async def test_a_range_past_the_end_is_an_error(backend: Backend, size_bytes: int) -> None:
    await backend.put("object", content(size_bytes))
    for offset, length in ((0, size_bytes + 1), (size_bytes, 1), (size_bytes + 1, 0), (size_bytes + 1, None)):
        with pytest.raises(ObjectCorrupt, match="object"):
            await backend.get("object", offset, length)
    with pytest.raises(ObjectCorrupt):
        await backend.get("object", size_bytes // 2, size_bytes + 400_000)


async def test_what_is_missing(backend: Backend) -> None:
    for _ in range(2):  # on an empty remote, and on one that has something
        for call in (backend.get, backend.stat):
            for key in ("missing", "folder/missing"):
                with pytest.raises(ObjectMissing, match=key):
                    await call(key)
        with pytest.raises(ObjectMissing):
            await backend.get("missing", 3, 4)
        await backend.delete("missing")
        await backend.delete("folder/missing")
        assert await listed(backend, "folder/missing/") == {}
        await backend.put("folder/object", b"there")


async def test_a_folder_is_no_object(backend: Backend) -> None:
    await backend.put("a/b/c", b"content")
    for key in ("a", "a/b"):
        for call in (backend.get, backend.stat):
            with pytest.raises(ObjectMissing):
                await call(key)
        await backend.delete(key)
    assert await listed(backend) == {"a/b/c": 7}
    assert await listed(backend, "a/b/c/") == {}


@pytest.mark.parametrize("key", MALFORMED)
async def test_malformed_keys(backend: Backend, key: str) -> None:
    with pytest.raises(ValueError, match="malformed"):
        await backend.put(key, b"")
    for call in (backend.get, backend.stat, backend.delete):
        with pytest.raises(ValueError, match="malformed"):
            await call(key)
    for prefix in (key + "/", "a"):
        with pytest.raises(ValueError, match="malformed"):
            await listed(backend, prefix)


async def test_negative_ranges(backend: Backend) -> None:
    for offset, length in ((-1, None), (-1, 1), (0, -1)):
        with pytest.raises(ValueError, match="malformed range"):
            await backend.get("object", offset, length)


async def test_every_character_a_key_may_have(backend: Backend) -> None:
    keys = ["0-9._Z", ".hidden", "..a/...", "-dash/--", "a.b/c_d-e", "f" * 200, "nested/" * 20 + "deep"]
    for key in keys:
        await backend.put(key, key.encode())
    for key in keys:
        assert await backend.get(key) == key.encode()
    assert await listed(backend) == {key: len(key) for key in keys}
    for key in keys:
        await backend.delete(key)
    assert await listed(backend) == {}


async def test_listings(backend: Backend, remote: Remote) -> None:
    keys = {f"packs/{number % 5:02x}/{number}": number for number in range(3 * SMALL_PAGE)}
    keys |= {"packs-other/x": 1, "pack": 2, "index/1/0": 3, "index/10/0": 4}
    async with trio.open_nursery() as nursery:
        for key, size in keys.items():
            nursery.start_soon(backend.put, key, bytes(size))
    assert await listed(backend) == keys
    for prefix in ("packs/", "packs/01/", "index/1/", "nothing/"):
        assert await listed(backend, prefix) == {key: size for key, size in keys.items() if key.startswith(prefix)}
    other = remote.open()
    assert await listed(other) == keys
    await other.close()


async def test_a_listing_may_be_dropped(backend: Backend) -> None:
    for number in range(SMALL_PAGE + 1):
        await backend.put(f"object-{number}", b"")
    async for _ in backend.list():
        break
    assert len(await listed(backend)) == SMALL_PAGE + 1


async def test_a_put_may_be_repeated(backend: Backend, remote: Remote) -> None:
    data = content(100_000)
    other = remote.open()
    await backend.put("once/more", data)
    await backend.put("once/more", data)
    await other.put("once/more", data)
    async with trio.open_nursery() as nursery:
        for one in (backend, other) * 3:
            nursery.start_soon(one.put, "at/once", data)
    for one in (backend, other):
        assert await one.get("once/more") == await one.get("at/once") == data
        assert await listed(one) == {"once/more": len(data), "at/once": len(data)}
    await other.close()
    assert left_behind(remote) == []


async def test_deleted_is_gone(backend: Backend, remote: Remote) -> None:
    other = remote.open()
    await backend.put("a/1", b"one")
    await backend.put("a/2", b"two")
    assert await other.get("a/1") == b"one"
    await backend.delete("a/1")
    await backend.delete("a/1")
    with pytest.raises(ObjectMissing):
        await backend.get("a/1")
    with pytest.raises(ObjectMissing):
        await other.stat("a/1")
    assert await listed(other) == {"a/2": 3}
    await backend.put("a/1", b"again")
    assert await backend.get("a/1") == b"again"
    await other.close()


async def test_many_at_once(backend: Backend) -> None:
    async def one(number: int) -> None:
        data = content(50_000 + number)
        await backend.put(f"many/{number}", data)
        assert await backend.get(f"many/{number}", 100, 1000) == data[100:1100]
        assert (await backend.stat(f"many/{number}")).size_bytes == len(data)
        if number % 2:
            await backend.delete(f"many/{number}")

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(one, number)
    assert await listed(backend) == {f"many/{number}": 50_000 + number for number in range(0, 20, 2)}


@pytest.mark.parametrize("seconds", [0, 0.001, 0.005, 0.02, 0.1])
async def test_a_cancelled_put_shows_nothing_or_everything(backend: Backend, remote: Remote, seconds: float) -> None:
    await backend.put("warm", b"up")
    data = content(4 * KIB * KIB)
    with trio.move_on_after(seconds):
        await backend.put("cut/short", data)
    other = remote.open()
    for one in (backend, other, backend):
        sizes = await listed(one)
        assert sizes in ({"warm": 2}, {"warm": 2, "cut/short": len(data)})
        try:
            assert await one.get("cut/short") == data
        except ObjectMissing:
            assert "cut/short" not in sizes
    await backend.put("cut/short", data)
    assert await other.get("cut/short") == data
    await other.close()


@pytest.mark.parametrize("seconds", [0, 0.001, 0.005, 0.02])
async def test_a_cancelled_get_hurts_nobody(backend: Backend, seconds: float) -> None:
    data = content(4 * KIB * KIB)
    await backend.put("object", data)

    async def get() -> None:
        assert await backend.get("object") == data

    async with trio.open_nursery() as nursery:
        nursery.start_soon(get)
        with trio.move_on_after(seconds):
            await get()
        with trio.move_on_after(seconds):
            await listed(backend)
        nursery.start_soon(get)
    assert await listed(backend) == {"object": len(data)}


async def test_everything_is_a_checkpoint(backend: Backend) -> None:
    """A call in a cancelled scope does nothing."""
    await backend.put("a", b"a")
    for call in (lambda: backend.put("b", b""), lambda: backend.delete("a"), lambda: backend.get("a")):
        with trio.CancelScope() as scope:
            scope.cancel()
            await call()
        assert scope.cancelled_caught
    with trio.move_on_after(0) as scope:
        await listed(backend)
    assert scope.cancelled_caught
    assert await listed(backend) == {"a": 1}


async def test_closed_twice(remote: Remote) -> None:
    async with remote.open() as opened:
        await opened.put("a", b"a")
        assert opened.name
        assert opened.parallelism >= 1
    await opened.close()
    unused = remote.open()
    await unused.close()
    async with remote.open() as opened:
        assert await opened.get("a") == b"a"


@pytest.mark.parametrize("remote", WITH_FILES, indirect=True)
async def test_what_is_no_object_of_ours_is_not_seen(backend: Backend, remote: Remote) -> None:
    assert remote.root
    await backend.put("packs/object", b"ours")
    (remote.root / "lost+found").mkdir()
    (remote.root / "lost+found" / "something").write_bytes(b"theirs")
    (remote.root / "packs" / "a file of theirs").write_bytes(b"theirs")
    (remote.root / "packs" / os.fsdecode(b"\xff\xfe")).write_bytes(b"theirs")
    os.mkfifo(remote.root / "packs" / "fifo")
    (remote.root / "packs" / "dangling").symlink_to("nowhere")
    assert await listed(backend) == {"packs/object": 4}
    for key in ("packs/fifo", "packs/dangling"):
        with pytest.raises(ObjectMissing):
            await backend.stat(key)


@pytest.mark.parametrize("remote", WITH_LINKS, indirect=True)
async def test_a_moved_folder_may_be_linked(backend: Backend, remote: Remote, tmp_path: Path) -> None:
    assert remote.root
    await backend.put("packs/object", b"ours")
    (remote.root / "packs").rename(tmp_path / "larger-disk")
    (remote.root / "packs").symlink_to(tmp_path / "larger-disk")
    assert await backend.get("packs/object") == b"ours"
    assert await listed(backend) == {"packs/object": 4}


@pytest.mark.parametrize("remote", WITH_FILES, indirect=True)
async def test_leftovers_are_cleared_away(backend: Backend, remote: Remote) -> None:
    assert remote.root
    temporary = remote.root / "tmp~"
    temporary.mkdir(parents=True)
    for name, age_s in (("left-by-a-dead-put", 3 * 86400), ("of-somebody-else", 3600)):
        (temporary / name).write_bytes(b"part")
        os.utime(temporary / name, (time.time() - age_s,) * 2)
    await backend.put("object", b"whole")
    assert left_behind(remote) == ["of-somebody-else"]
    assert await listed(backend) == {"object": 5}


def left_behind(remote: Remote) -> list[str]:
    """The temporary names on a remote that has files."""
    return sorted(os.listdir(remote.root / "tmp~")) if remote.root else []
