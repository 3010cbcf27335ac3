"""A mount that ends in the middle of a copy, cleanly or not, is mounted again and the copy is finished."""

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.acceptance.conftest import Collection, MakeRemote, Scale
from tests.support.collection import differences, manifest, total_bytes
from tests.support.long_form import seldom
from tests.support.mount import Mount
from tests.support.mounted import wait_until

pytestmark = pytest.mark.slow

COPIER = """
import os, sys
source, target = map(os.fsencode, sys.argv[1:])
for place, folders, names in os.walk(source):
    here = os.path.join(target, os.path.relpath(place, source))
    os.makedirs(here, exist_ok=True)
    for name in names:
        path = os.path.join(place, name)
        if os.path.islink(path) or not os.path.isfile(path):
            continue
        with open(path, "rb") as file, open(os.path.join(here, name), "wb", buffering=0) as copy:
            done = 0
            while part := file.read(100_000):
                while part:
                    count = copy.write(part)
                    done, part = done + count, part[count:]
                os.write(1, b"%d %s\\0" % (done, os.path.relpath(path, source)))
"""
"""Copies a tree and says after each write how much of which file the mount has acknowledged."""


def finish_copy(collection: Collection, mount: Mount, timeout_s: float) -> None:
    """`rsync -a` with all it can keep; afterwards nothing may differ."""
    command = ["rsync", "-aHAX", f"{collection.path}/", f"{mount.path}/c/"]
    outcome = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=timeout_s, check=False)
    assert outcome.returncode == 0, outcome.stderr
    assert differences(collection.manifest, manifest(mount.path / "c")) == []


def test_sigterm_in_the_middle_of_a_copy(
    place: Path, remote_of: MakeRemote, small_collection: Collection, scale: Scale
) -> None:
    with Mount(place, remote_of("folder").url, scale.megabytes, lifetime_s=scale.lifetime_s) as mount:
        mount.start()
        copy = subprocess.Popen(
            ["cp", "-r", "--preserve=mode", small_collection.path, mount.path / "c"], stderr=subprocess.PIPE
        )
        wait_until(
            lambda: mount.status()["logical_bytes"] > total_bytes(small_collection.manifest) / 4, "a quarter is copied"
        )
        mount.stop(signal.SIGTERM)
        _, complaints = copy.communicate(timeout=60)
        assert copy.returncode != 0 and complaints, "the copy was over too early"
        mount.start()
        finish_copy(small_collection, mount, scale.lifetime_s)
        mount.umount(wait=True, timeout_s=scale.lifetime_s)
        mount.finish()


@pytest.mark.parametrize("share", seldom([0.15, 0.6], 0.15))
def test_kill_in_the_middle_of_a_copy(
    share: float, place: Path, remote_of: MakeRemote, small_collection: Collection, scale: Scale
) -> None:
    with Mount(place, remote_of("folder").url, scale.megabytes, lifetime_s=scale.lifetime_s) as mount:
        mount.start()
        (mount.path / "c").mkdir()
        copier = subprocess.Popen(
            [sys.executable, "-c", COPIER, small_collection.path, mount.path / "c"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        said = _listen(copier, share * total_bytes(small_collection.manifest), scale.lifetime_s)
        mount.kill()
        assert copier.stdout
        said += copier.stdout.read()
        assert copier.wait(60) != 0, "the copy was over too early"
        copier.stdout.close()
        mount.start()
        _check_acknowledged(said, small_collection.path, mount.path / "c")
        finish_copy(small_collection, mount, scale.lifetime_s)
        mount.umount(wait=True, timeout_s=scale.lifetime_s)
        mount.forget_data()
        mount.start()
        assert differences(small_collection.manifest, manifest(mount.path / "c")) == []
        mount.stop()
        mount.finish()


def _listen(copier: "subprocess.Popen[bytes]", wanted_bytes: float, deadline_s: float) -> bytes:
    """What the copier says until about *wanted_bytes* are acknowledged."""
    assert copier.stdout
    said = b""
    end = time.monotonic() + deadline_s
    while sum(_acknowledged(said).values()) < wanted_bytes:
        assert time.monotonic() < end, "the copy takes too long"
        if select.select([copier.stdout], [], [], 1.0)[0]:
            part = os.read(copier.stdout.fileno(), 1 << 16)
            assert part, "the copy ended too early"
            said += part
    return said


def _acknowledged(said: bytes) -> dict[bytes, int]:
    """Bytes of each file that the mount had said to have."""
    result = {}
    for line in said.split(b"\0")[:-1]:
        done, path = line.split(b" ", 1)
        result[path] = int(done)
    return result


def _check_acknowledged(said: bytes, source: Path, target: Path) -> None:
    acknowledged = _acknowledged(said)
    assert acknowledged
    for path, done in acknowledged.items():
        with open(os.path.join(os.fsencode(source), path), "rb") as file:
            expected = file.read(done)
        with open(os.path.join(os.fsencode(target), path), "rb") as file:
            assert file.read(done) == expected, f"{path!r}: not what was written, in the first {done} bytes"
