"""A mount under the work of eight processes is killed again and again: what had returned is there, and nothing else."""

import random
from pathlib import Path

import pytest

from tests.acceptance.conftest import MakeRemote
from tests.support.core_check import check_stopped
from tests.support.logged_state import File, Log, State, after_a_kill
from tests.support.logged_work import Operation, perform
from tests.support.logged_workers import Workers
from tests.support.long_form import LONG
from tests.support.mount import Mount

pytestmark = pytest.mark.slow

ROUNDS = 200 if LONG else 2
CHECK_EVERY = 10 if LONG else 2


def test_what_returned_survives_kills(place: Path, remote_of: MakeRemote, tmp_path: Path) -> None:
    chance = random.Random(ROUNDS)
    with Mount(
        place, remote_of("folder").url, 64, lifetime_s=1800.0, upload_delay_s=0.5, snapshot_interval_s=2.0
    ) as mount:
        mount.start()
        workers = Workers(mount.path, tmp_path)
        workers.make_folders()
        for number in range(ROUNDS):
            with workers.working(number):
                workers.wait(chance.randrange(20, 800 if LONG else 300))
                mount.kill()
            mount.start()
            workers.judge(after_a_kill)
            if number % CHECK_EVERY == CHECK_EVERY - 1:
                mount.stop()
                check_stopped(mount.data)
                mount.start()
                workers.judge(after_a_kill)
        assert workers.operations >= 10 * ROUNDS
        mount.stop()
        mount.finish()


def test_what_was_done_and_not_answered_is_what_the_next_round_expects(tmp_path: Path) -> None:
    """The mount was killed after it had changed the file, and before it said so."""
    operations: list[Operation] = [["overwrite", "f", 1, 4096, 1963], ["append", "f", 2, 300], ["truncate", "f", 10]]
    for number, doing in enumerate(operations):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "f").write_bytes(bytes(4096))
        before = State({"f": 1}, {1: File(bytearray(4096))}, 2)
        perform(folder, doing)
        after = after_a_kill(before, Log([], doing), folder)
        assert after.files[1].content == (folder / "f").read_bytes()
        after_a_kill(after, Log([], None), folder)
