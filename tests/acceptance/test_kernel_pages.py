"""What the kernel holds back, pages of mmap(2) and of the writeback cache: a flush has it, and sync sees to it."""

import mmap
import os
from pathlib import Path

import pytest

from tests.support.mount import Mount, place_for_a_mount

SIZE_BYTES = 8 * 1024 * 1024


def _written_by_mmap(path: Path, data: bytes) -> None:
    with open(path, "w+b") as file:
        file.truncate(len(data))
        mapped = mmap.mmap(file.fileno(), len(data))
        mapped[:] = data  # no msync: closing it writes nothing yet
        mapped.close()


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--writeback",)])
def test_a_flush_has_what_only_the_kernel_knew(options: tuple[str, ...]) -> None:
    with place_for_a_mount() as place, Mount(place, f"{place}/blobs", 100) as mount:
        mount.start(*options)
        mapped, written = os.urandom(SIZE_BYTES), os.urandom(SIZE_BYTES)
        _written_by_mmap(mount.path / "mapped", mapped)
        with open(mount.path / "written", "wb", buffering=0) as file:
            for offset in range(0, SIZE_BYTES, 4096):
                file.write(written[offset : offset + 4096])
            mount.flush()
            mount.kill()
        mount.forget_data()
        mount.start("--take-over")
        assert (mount.path / "mapped").read_bytes() == mapped
        assert (mount.path / "written").read_bytes() == written
        mount.stop()
        mount.finish()


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--writeback",)])
@pytest.mark.parametrize("end", ["umount", "SIGTERM"])
def test_a_clean_end_takes_what_only_the_kernel_knew(end: str, options: tuple[str, ...]) -> None:
    with place_for_a_mount() as place, Mount(place, f"{place}/blobs", 100) as mount:
        mount.start(*options)
        mapped, written = os.urandom(SIZE_BYTES), os.urandom(300_000)
        _written_by_mmap(mount.path / "mapped", mapped)
        with open(mount.path / "written", "wb", buffering=0) as file:
            file.write(written)
            if end == "umount":
                mount.umount(wait=False)
            else:
                mount.stop()
        mount.start()
        assert (mount.path / "mapped").read_bytes() == mapped
        assert (mount.path / "written").read_bytes() == written
        mount.stop()
        mount.finish()


@pytest.mark.slow
def test_with_the_writeback_cache_a_file_is_what_was_written_in_small_pieces_anywhere() -> None:
    with place_for_a_mount() as place, Mount(place, f"{place}/blobs", 100) as mount:
        mount.start("-o", "writeback")
        expected = bytearray(os.urandom(SIZE_BYTES))
        path = mount.path / "file"
        path.write_bytes(expected)
        descriptor = os.open(path, os.O_WRONLY)  # pages that are written in part must be read by the kernel
        for index in range(2000):
            offset = index * 7919 % (SIZE_BYTES - 100)
            piece = os.urandom(1 + index % 100)
            os.pwrite(descriptor, piece, offset)
            expected[offset : offset + len(piece)] = piece
        os.fsync(descriptor)
        os.close(descriptor)
        with open(path, "ab") as file:
            file.write(b"the end")
            expected += b"the end"
        os.utime(path, ns=(1, 2))
        mount.stop()
        mount.start()
        assert path.read_bytes() == expected
        assert path.stat().st_mtime_ns == 2
        mount.stop()
        mount.finish()
