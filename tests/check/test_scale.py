"""What a check of very many files takes. Long form only: making them takes minutes."""

import os
import stat
import subprocess
import time
from pathlib import Path

import pytest
import trio

from syncer import config, datadir
from syncer.config import Config
from syncer.fs.namespace import Caller
from tests.support.check_world import CheckWorld
from tests.support.command import SYNCER, environment
from tests.support.core_data import make_data
from tests.support.long_form import LONG
from tests.support.mount import peak_memory_bytes

FILES = int(os.environ.get("SYNCER_TEST_FILES", "1000000"))
A_DIRECTORY = 1000
BUDGET_BYTES = 4_000_000_000
MEMORY_MAX_BYTES = 500_000_000


@pytest.mark.slow
@pytest.mark.skipif(not LONG, reason="makes a million files: SYNCER_TEST_LONG=1")
def test_a_million_files_are_checked_in_little_memory(tmp_path: Path) -> None:
    world = CheckWorld(tmp_path, {})
    make_data(world.data)
    world.remote.mkdir()
    (world.data / datadir.LOCK).touch()
    config.save(world.data / datadir.CONFIG, Config(remote=str(world.remote), budget_bytes=BUDGET_BYTES))
    trio.run(_fill, world)
    for options in ([], ["--remote"], ["--remote", "--read-data"]):
        begin = time.monotonic()
        command = [*SYNCER, "check", str(world.data), *options]
        peak_bytes = 0
        with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True) as checked:
            while checked.poll() is None:
                peak_bytes = max(peak_bytes, peak_memory_bytes(checked.pid))
                time.sleep(0.05)
            assert checked.stdout is not None
            said = checked.stdout.read()
        print(f"{options}: {time.monotonic() - begin:.1f} s, {peak_bytes / 1e6:.0f} MB")
        assert (checked.returncode, said) == (0, "syncer: nothing is wrong\n")
        assert peak_bytes < MEMORY_MAX_BYTES
    assert world.value("SELECT count(*) FROM inodes") > FILES


async def _fill(world: CheckWorld) -> None:
    caller = Caller(0, 0)
    async with world.opened(budget_bytes=BUDGET_BYTES) as engine:
        directory = 1
        for count in range(FILES):
            if count % A_DIRECTORY == 0:
                name = b"d%d" % (count // A_DIRECTORY)
                directory = engine.file_system.create(1, name, stat.S_IFDIR | 0o755, caller).number
                await trio.lowlevel.checkpoint()
                await engine.pace()
            made = engine.file_system.create(directory, b"f%d" % count, stat.S_IFREG | 0o644, caller)
            handle = engine.file_system.open(made.number, os.O_RDWR)
            await engine.file_system.write(handle, 0, b"%d" % count)
            engine.file_system.release(handle)
        await engine.flush(lambda done, total: None)
