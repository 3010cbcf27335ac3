"""`syncer check` as a user runs it: beside a busy mount, after a crash, and what its options and exit codes say."""

import contextlib
import json
import os
import random
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from syncer.errors import DeadlinePassed
from syncer.meta import check
from syncer.meta.check import CheckReader
from syncer.meta.store import MetaStore
from tests.support.check_world import CheckWorld
from tests.support.command import syncer
from tests.support.core_data import make_data
from tests.support.long_form import LONG
from tests.support.mount import Mount, place_for_a_mount
from tests.support.picture import picture

ROUNDS = 20 if LONG else 2
WRITERS = 4


@contextlib.contextmanager
def _busy(folder: Path, *, dies: bool = False) -> Iterator[None]:
    """Four threads write, overwrite, rename and delete below *folder* while the body runs, in which it may die."""
    ended = threading.Event()
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        choose = random.Random(seed)
        place = folder / str(seed)
        names: list[Path] = []
        try:
            place.mkdir()
            for count in range(1_000_000):
                if ended.is_set():
                    return
                path = place / f"f{count}"
                path.write_bytes(choose.randbytes(choose.choice([100, 9000, 80_000, 700_000])))
                names.append(path)
                with open(choose.choice(names), "r+b") as file:
                    file.seek(choose.randrange(5000))
                    file.write(choose.randbytes(3000))
                    if choose.random() < 0.3:
                        os.fsync(file.fileno())
                path.rename(place / f"g{count}")
                names[-1] = place / f"g{count}"
                if len(names) > 12:
                    names.pop(choose.randrange(len(names))).unlink()
        except BaseException as error:  # noqa: BLE001 - told by the thread that waits
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(WRITERS)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert all(isinstance(error, OSError) and dies for error in failures), failures


@pytest.mark.slow
def test_a_busy_mount_is_checked_and_nothing_is_found() -> None:
    with place_for_a_mount() as place, Mount(place, str(place / "remote"), 64, snapshot_interval_s=1.0) as mount:
        mount.start()
        with _busy(mount.path):
            for _ in range(ROUNDS):
                mount.flush()
                outcome = syncer("check", mount.path, "--read-data", "--remote", "--json", timeout_s=300)
                assert outcome.returncode == 0, outcome.stdout + outcome.stderr
                assert json.loads(outcome.stdout)["clean"]
            refused = syncer("check", mount.data, "--repair")
            assert refused.returncode == 4
            assert "umount" in refused.stderr and refused.stderr.count("\n") == 1
        with _busy(mount.path / "0", dies=True):
            mount.kill_process()
        before = picture(mount.data)
        outcome = syncer("check", mount.data, "--read-data", "--remote")
        assert outcome.returncode == 0, outcome.stdout + outcome.stderr
        assert "not closed in good order" in outcome.stdout
        assert picture(mount.data) == before
        mount.clear()
        mount.start()
        mount.umount()
        outcome = syncer("check", mount.data, "--read-data", "--remote", "--repair")
        assert (outcome.returncode, outcome.stdout) == (0, "syncer: nothing is wrong\n"), outcome.stdout


def test_a_question_gives_way_to_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A question that holds the WAL back while it grows is asked again, and in the end given up."""
    monkeypatch.setattr(check, "TRIES", 3)
    monkeypatch.setattr(check, "GIVE_WAY_S", 0.0)
    meta = MetaStore(make_data(tmp_path / "data"))
    reader = CheckReader(tmp_path / "data" / "meta.db", mounted=True, wal_limit_bytes=1_000_000)
    begun = 0

    def for_ever(connection: sqlite3.Connection) -> object:
        nonlocal begun
        begun += 1
        connection.execute("SELECT count(*) FROM state").fetchone()
        meta.database.begin()
        meta.database.connection.execute("INSERT OR REPLACE INTO state VALUES ('bulk', zeroblob(3000000))")
        meta.commit()
        assert not meta.database.checkpoint_here(), "this question does not hold the log back"
        endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
        return connection.execute(endless).fetchone()

    # SQLite objects belong to their thread: the question is asked in this one, which is where the writer is too.
    with pytest.raises(DeadlinePassed):
        reader.ask(for_ever)
    assert begun == 3
    assert meta.database.checkpoint_here(), "it still holds the log back"
    assert meta.database.wal_bytes() == 0
    reader.close()
    meta.close()


def test_a_question_whose_end_was_interrupted_too_is_asked_again(tmp_path: Path) -> None:
    """An interruption may come so late that it hits the ROLLBACK, and leaves the transaction open."""
    meta = MetaStore(make_data(tmp_path / "data"))
    reader = CheckReader(tmp_path / "data" / "meta.db", mounted=True)
    reader._connection.execute("BEGIN")
    assert reader.ask(lambda connection: connection.execute("SELECT 1").fetchone()) == (1,)
    reader.close()
    meta.close()


def test_exit_codes_and_lines(world: CheckWorld) -> None:
    with world.database() as connection:
        connection.execute(
            "UPDATE inodes SET nlink = 9 WHERE inode = (SELECT inode FROM dentries WHERE name = x'7330')"
        )
    found = syncer("check", world.data)
    assert found.returncode == 2
    assert "found: link-count: 9 links instead of 1: /dir/deep/s0\n" in found.stdout
    assert found.stderr == ""
    mended = syncer("check", world.data, "--repair", "--json")
    assert mended.returncode == 1
    answer = json.loads(mended.stdout)
    assert [(f["code"], f["paths"]) for f in answer["found"]] == [("link-count", ["/dir/deep/s0"])]
    assert answer["left"] == []
    clean = syncer("check", world.data)
    assert (clean.returncode, clean.stdout) == (0, "syncer: nothing is wrong\n")
    for words in (["--read-data", world.data], ["--read-data", "50", world.data]):
        clean = syncer("check", *words)
        assert (clean.returncode, clean.stdout) == (0, "syncer: nothing is wrong\n"), clean.stderr
    refused = syncer("check", world.data, "--read-data=101")
    assert refused.returncode == 2 and refused.stdout == "" and refused.stderr.count("\n") == 1


def test_a_broken_database_is_told_and_left(world: CheckWorld) -> None:
    with open(world.data / "meta.db", "r+b") as file:
        file.seek(4096 * 3)
        file.write(os.urandom(4096 * 4))
    before = picture(world.data)
    report = world.check(percent=100.0)
    assert {finding.code for finding in report.found} == {"database"}
    assert picture(world.data) == before
    assert world.check(repair=True).left
    assert (world.data / "meta.db").read_bytes() == before["meta.db"][1]
    (world.data / "meta.db").write_bytes(b"no database at all" * 500)
    assert {finding.code for finding in world.check().left} == {"database"}
