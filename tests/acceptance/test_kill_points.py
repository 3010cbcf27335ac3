"""A mount dies at each named point around its changes of state, under work: what had returned is there."""

from pathlib import Path

import pytest

from tests.acceptance.conftest import MakeRemote
from tests.support.altered import altered
from tests.support.command import SYNCER
from tests.support.core_check import check_stopped
from tests.support.kill_points import POINTS
from tests.support.logged_state import after_a_kill
from tests.support.logged_workers import Workers
from tests.support.long_form import LONG
from tests.support.mount import Mount

pytestmark = pytest.mark.slow

SHORT_POINTS = ("stored/after",)
OFTEN = {"commit": 20}
"""What happens several times before a mount is ready; the others are passed twice."""


@pytest.mark.parametrize("point", POINTS if LONG else SHORT_POINTS)
def test_what_returned_survives_a_death_at(point: str, place: Path, remote_of: MakeRemote, tmp_path: Path) -> None:
    with Mount(place, remote_of("folder").url, 64, upload_delay_s=0.2, snapshot_interval_s=1.0) as mount:
        mount.program = altered(f"kill={point}:{OFTEN.get(point.partition('/')[0], 3)}")
        mount.start()
        workers = Workers(mount.path, tmp_path, 4)
        workers.make_folders()
        with workers.working(point):
            mount.crashed()
        assert f"killed at {point}" in mount.output
        mount.program = SYNCER
        mount.start()
        workers.judge(after_a_kill)
        mount.stop()
        check_stopped(mount.data)
        mount.finish()
