"""The folder's own ways: what it makes, what is durable, and who may not."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from syncer.backends.folder import FolderBackend
from syncer.errors import ObjectMissing, RemoteRefused
from tests.backends.test_contract import listed

ROOT = os.geteuid() == 0
STRACE = shutil.which("strace")


async def test_nothing_is_made_by_looking(tmp_path: Path) -> None:
    async with FolderBackend(tmp_path / "a" / "b") as backend:
        assert await listed(backend) == {}
        with pytest.raises(ObjectMissing):
            await backend.get("object")
        await backend.delete("object")
    assert list(tmp_path.iterdir()) == []


async def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    async with FolderBackend(tmp_path / "file" / "blobs") as backend:
        with pytest.raises(RemoteRefused):
            await backend.put("object", b"data")


async def test_a_file_system_in_which_nobody_makes_folders() -> None:
    async with FolderBackend(Path("/proc/1/blobs")) as backend:
        with pytest.raises(RemoteRefused, match="no folder can be made there"):
            await backend.put("object", b"data")


@pytest.mark.skipif(not ROOT, reason="needs root to become somebody who may not write")
def test_somebody_who_may_not(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir(mode=0o755)
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(folder.stat().st_mode | 0o055)
    code = f"""
import os, trio
from pathlib import Path
from syncer.backends.folder import FolderBackend
from syncer.errors import RemoteRefused
os.setuid(65534)

async def main():
    backend = FolderBackend(Path({str(tmp_path / "blobs")!r}))
    try:
        await backend.put("object", b"data")
    except RemoteRefused as error:
        print(error, error.hint)

trio.run(main)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert "Permission denied" in done.stdout
    assert "permissions" in done.stdout


@pytest.mark.skipif(STRACE is None, reason="strace is not installed, which shows the order of the calls")
def test_durable_before_visible(tmp_path: Path) -> None:
    """The file is fsynced before it is renamed, and its folder after."""
    code = f"""
import trio
from pathlib import Path
from syncer.backends.folder import FolderBackend
trio.run(FolderBackend(Path({str(tmp_path)!r})).put, "packs/ab/object", b"data")
"""
    log = tmp_path.with_name(f"{tmp_path.name}.strace")
    calls = "trace=openat,fsync,rename,mkdir"
    subprocess.run(
        [str(STRACE), "-f", "-y", "-e", calls, "-o", log, sys.executable, "-c", code], check=True, timeout=60
    )
    lines = [line for line in log.read_text().splitlines() if str(tmp_path) in line]
    renamed = next(number for number, line in enumerate(lines) if "rename(" in line)
    temporary = lines[renamed].split('"')[1]
    assert "/tmp~/" in temporary
    assert any("fsync(" in line and temporary in line for line in lines[:renamed])
    for made in (tmp_path / "packs", tmp_path):  # each new folder is an entry of the one above it
        assert any("fsync(" in line and f"<{made}>" in line for line in lines)
    assert any("fsync(" in line and f"<{tmp_path}/packs/ab>" in line for line in lines[renamed:])
