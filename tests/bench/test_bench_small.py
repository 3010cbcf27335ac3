"""The benchmark measures what it says: counts, medians, caps, cold caches, failures, verdicts, and the reports."""

import contextlib
import json
import os
import signal
import sqlite3
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts.benchmark import collection, main_table, picture, report, syncer_mount, tasks
from scripts.benchmark.passthrough import Passthrough
from scripts.benchmark.requirements import REQUIREMENTS, Requirement, judge
from scripts.benchmark.results import Column, Report, Table, load, save
from scripts.benchmark.rows import FULL, QUICK, Row, chosen, table_rows
from scripts.benchmark.settings import Settings
from scripts.benchmark.systems import PlainDirectory, System, mountpoints
from scripts.benchmark.worker import NEST
from tests.support.command import CHECKOUT, environment
from tests.support.long_form import long

CAP_S = 60.0
ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="only root may empty the kernel's caches")


def settings(
    *systems: System, only: tuple[str, ...] = (), passes: int = 1, say: Callable[[str], None] = print
) -> Settings:
    return Settings(
        systems=systems, sizes=QUICK, passes=passes, cap_s=CAP_S, only=only, parent=None, drop_caches=False, say=say
    )


def run(workload: str, folder: Path, **parameters: object) -> tasks.Outcome:
    return tasks.run(workload, [folder], CAP_S, parameters)


def bench(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "scripts.benchmark", "--scratch", folder, *arguments],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


# --- the workloads -----------------------------------------------------------------------------------------------


def test_streams_move_every_byte(tmp_path: Path) -> None:
    written = run("write_file", tmp_path, name="file", size_bytes=5_000_000, piece_bytes=4096)
    assert (written.amount, written.capped) == (5_000_000, False)
    content = (tmp_path / "file").read_bytes()
    pages = [content[at : at + 4096] for at in range(0, len(content), 4096)]
    assert len(content) == 5_000_000 and len(set(pages)) == len(pages)  # nothing for deduplication to save

    assert run("read_file", tmp_path, name="file").amount == 5_000_000
    assert run("read_random", tmp_path, name="file", count=700).amount == 700
    assert run("write_random", tmp_path, name="file", count=50).amount == 50
    after = (tmp_path / "file").read_bytes()
    changed = sum(after[at : at + 4096] != content[at : at + 4096] for at in range(0, len(content), 4096))
    assert len(after) == len(content) and 25 < changed <= 50  # 50 random pages of 1220: few are the same one twice


def test_appends_are_timed_one_by_one(tmp_path: Path) -> None:
    outcome = run("write_fsync", tmp_path, name="file", count=20)
    assert outcome.amount == len(outcome.samples_s) == 20
    assert 0 < sum(outcome.samples_s) <= outcome.seconds
    assert (tmp_path / "file").stat().st_size == 20 * 4096


def test_small_files_from_creating_to_unlinking(tmp_path: Path) -> None:
    folder = tmp_path / "files"
    assert run("create", tmp_path, name="files", count=40, size_bytes=4096).amount == 40
    contents = {path.read_bytes() for path in folder.iterdir()}
    assert len(contents) == 40 and {len(content) for content in contents} == {4096}
    assert run("stat_files", tmp_path, name="files", count=40).amount == 40
    assert run("scan", tmp_path, name="files").amount == 40
    assert run("open_read_close", tmp_path, name="files", count=40, size_bytes=4096).amount == 40
    assert run("unlink", tmp_path, name="files", count=30).amount == 30
    assert len(list(folder.iterdir())) == 10

    assert run("create", tmp_path, name="empty", count=7, size_bytes=0).amount == 7
    assert run("rename", tmp_path, name="empty", count=7).amount == 7
    assert all(path.name.endswith(".renamed") and not path.stat().st_size for path in (tmp_path / "empty").iterdir())


def test_a_directory_that_is_there_grows_and_shrinks_again(tmp_path: Path) -> None:
    folder = tmp_path / "crowd"
    folder.mkdir()
    (folder / "000000").touch()
    new = {"name": "crowd", "count": 5, "pattern": "new-{:06d}"}
    assert run("create", tmp_path, **new, size_bytes=0, into=True).amount == 5
    assert run("rename", tmp_path, **new).amount == 5
    assert sorted(path.name for path in folder.iterdir())[-1] == "new-000004.renamed"
    assert run("unlink", tmp_path, **{**new, "pattern": "new-{:06d}.renamed"}).amount == 5
    assert [path.name for path in folder.iterdir()] == ["000000"]


def test_parts_of_a_file_are_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(10_000))
    part = run("read_file", tmp_path, name="file", piece_bytes=1000, start_bytes=2000, size_bytes=3000)
    assert (part.amount, part.capped) == (3000, False)
    rest = run("read_file", tmp_path, name="file", piece_bytes=1000, start_bytes=9500, size_bytes=3000)
    assert (rest.amount, rest.capped) == (500, False)
    assert run("open_close", tmp_path, name="file", count=7).amount == 7


def test_scattered_files_are_each_a_sample(tmp_path: Path) -> None:
    for at in range(25):
        path = tmp_path / "files" / f"{at // 10:06d}" / f"{at % 10:02d}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    scattered = {"name": "files", "files": 25, "per_directory": 10}
    outcome = run("stat_scattered", tmp_path, **scattered, count=25)
    assert outcome.amount == len(outcome.samples_s) == 25
    (tmp_path / "files" / "000002" / "04").unlink()
    with pytest.raises(tasks.TaskFailed, match="000002/04"):  # so it was one of them
        run("stat_scattered", tmp_path, **scattered, count=25)
    assert run("find", tmp_path, name="files").amount == 24 + 3 + 1


def test_trees(tmp_path: Path) -> None:
    assert run("mkdir_nested", tmp_path, name="nested", count=2 * NEST).amount == 2 * NEST
    depths = [len(Path(place).relative_to(tmp_path / "nested").parts) for place, _, _ in os.walk(tmp_path / "nested")]
    assert max(depths) == NEST and len(depths) == 2 * NEST + 1

    assert run("extract", tmp_path, name="tree", count=65).amount == 65
    files = [path for path in (tmp_path / "tree").rglob("*") if path.is_file()]
    assert len(files) == 65 and len({path.read_bytes() for path in files}) == 65
    assert run("remove_tree", tmp_path, name="tree").amount == 65 + 3 + 1  # files, directories, the tree itself
    assert not (tmp_path / "tree").exists()


def test_the_cap_ends_a_cell_and_what_was_done_is_counted(tmp_path: Path) -> None:
    parameters = {"name": "files", "count": 500_000, "size_bytes": 0}
    outcome = tasks.run("create", [tmp_path], 0.2, parameters)
    assert outcome.capped and outcome.seconds >= 0.2
    assert 0 < outcome.amount < 500_000
    assert len(list((tmp_path / "files").iterdir())) == outcome.amount


def test_workers_together_are_one_figure(tmp_path: Path) -> None:
    places = [tmp_path / str(at) for at in range(3)]
    for place in places:
        place.mkdir()
    found = []
    with tasks.ready("create", places, CAP_S, {"name": "files", "count": 200, "size_bytes": 64}) as workers:
        assert not any((place / "files" / "000000").exists() for place in places)  # none begins before it is told to
        for worker in workers:
            worker.go()
        found = [worker.result() for worker in workers]
    outcome = tasks.joined(found)
    assert outcome.amount == 600
    assert outcome.seconds >= max(float(str(one["seconds"])) for one in found)


def test_loops_run_until_they_are_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(3_000_000))
    with tasks.ready("read_until_told", [tmp_path], CAP_S, {"name": "file"}) as (reader,):
        reader.go()
        with pytest.raises(tasks.TaskFailed, match="in vain"):
            tasks.wait_until(lambda: not reader.running, "it ends by itself", 0.5)
        reader.go()
        outcome = tasks.joined([reader.result()])
    assert outcome.amount > 3_000_000  # more than one round
    assert outcome.seconds >= 0.4

    alone = tasks.run("read_until_told", [tmp_path], 0.3, {"name": "file"})
    assert 0.3 <= alone.seconds < 30 and alone.amount > 0  # nobody tells it: it goes on until its time is over


def test_a_worker_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(tasks.TaskFailed, match="No such file or directory"):
        run("read_file", tmp_path, name="missing")
    with pytest.raises(tasks.TaskFailed, match=r"get ready.*FileNotFoundError"):
        run("read_random", tmp_path, name="missing", count=1)  # while it prepares


# --- the main table ----------------------------------------------------------------------------------------------


def test_passes_are_interleaved() -> None:
    class Other(PlainDirectory):
        key, title = "other", "another directory"

    said: list[str] = []
    asked = settings(PlainDirectory(), Other(), only=("mkdir",), passes=2, say=said.append)
    table = main_table.measure(asked)
    order = [line.partition(": ")[2] for line in said if line.startswith("pass")]
    assert order == ["plain directory", "another directory"] * 2
    assert {key: len(cell.values) for key, cell in table.cells.items()} == {
        ("mkdir", "plain"): 2,
        ("mkdir", "other"): 2,
    }


def test_rows_bring_what_they_need_but_only_those_asked_for_are_reported() -> None:
    rows = table_rows(QUICK)
    assert [row.key for row in chosen(rows, ("rm", "rename"))] == ["create-empty", "rename", "tar", "rm"]
    assert chosen(rows, ()) == rows
    table = main_table.measure(settings(PlainDirectory(), only=("rename",)))
    assert list(table.rows) == ["rename"] and table.median("rename", "plain")


def test_a_row_that_fails_takes_only_those_with_it_that_need_it(tmp_path: Path) -> None:
    class Occupied(PlainDirectory):
        """Where the directory that `create` makes is there already."""

        def mounted(self, folder: Path):  # type: ignore[no-untyped-def]
            (folder / "files").mkdir()
            return super().mounted(folder)

    table = main_table.measure(settings(Occupied(), only=("create", "unlink", "mkdir")))
    assert "File exists" in table.cells["create", "plain"].errors[0]
    assert "needs create" in table.cells["unlink", "plain"].errors[0]
    assert table.median("create", "plain") is table.median("unlink", "plain") is None
    assert table.median("mkdir", "plain")


@pytest.mark.slow
def test_a_mount_that_dies_is_cleared_away(tmp_path: Path) -> None:
    passthrough = Passthrough(writeback=True)
    assert passthrough.missing() is None
    with passthrough.mounted(tmp_path) as mount:
        assert run("create", mount.path, name="files", count=3, size_bytes=10).amount == 3
        assert len(list((tmp_path / "source" / "files").iterdir())) == 3  # it is the mount that was measured
        _kill_mount_of(mount.path)
        with pytest.raises(tasks.TaskFailed):
            run("stat_files", mount.path, name="files", count=3)
        assert mount.path in mountpoints()
    assert mount.path not in mountpoints()


def _kill_mount_of(mountpoint: Path) -> None:
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and str(mountpoint).encode() in _command_line(folder):
            os.kill(int(folder.name), signal.SIGKILL)


def _command_line(folder: Path) -> list[bytes]:
    try:
        return (folder / "cmdline").read_bytes().split(b"\0")
    except OSError:  # it has just ended
        return []


@ROOT_ONLY
def test_emptied_caches_are_cold(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(8_000_000))
    tasks.empty_caches()
    assert _cached_bytes(path) < 1_000_000
    path.read_bytes()
    assert _cached_bytes(path) >= 8_000_000


def _cached_bytes(path: Path) -> int:
    command = ["fincore", "--bytes", "--noheadings", "--output", "RES", str(path)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


# --- requirements and reports ------------------------------------------------------------------------------------


def made_up(**medians: float) -> Report:
    """A report with one row of the main table; its columns have these figures."""
    table = Table("table", "Made up")
    table.announce([Row(key="stat", title="stat", unit="op/s")], [Column(key, f"the {key}") for key in medians])
    for column, value in medians.items():
        for factor in (0.5, 1.0, 4.0):  # the mean is not the median
            table.add("stat", column, value * factor)
    return Report({"machine": "made up"}, {"table": table})


def test_verdicts_compare_medians_with_the_best_peer() -> None:
    verdicts = {
        verdict.requirement.against[0]: verdict for verdict in judge(made_up(syncer=100, juicefs=20, sshfs=51, c=120))
    }
    peers, ceiling = verdicts["juicefs"], verdicts["c"]
    assert (peers.best, peers.ratio, peers.passed) == ("sshfs", 100 / 51, False)  # twice the best was required
    assert (ceiling.best, ceiling.ratio, ceiling.passed) == ("c", 100 / 120, True)
    assert [verdict.passed for verdict in judge(made_up(syncer=100))] == [None, None]


def test_a_failure_of_ours_is_no_excuse() -> None:
    made = made_up(juicefs=1, c=1)
    made.tables["table"].announce([], [Column("syncer", "syncer")])
    made.tables["table"].fail("stat", "syncer", "it did not mount")
    assert [verdict.passed for verdict in judge(made)] == [False, False]
    assert "FAILED" in report.markdown(made)


def test_less_is_better_turns_the_limit_round() -> None:
    table = Table("insert", "Made up")
    table.announce([Row(key="edit", title="edit", unit="KiB", less_is_better=True)], [Column("syncer", "syncer")])
    for value, passed in ((64.0, True), (64.1, False)):
        table.cells.clear()
        table.add("edit", "syncer", value)
        assert [verdict.passed for verdict in judge(Report({}, {"insert": table}))] == [passed]


def test_each_requirement_of_the_main_table_is_about_a_row_and_a_column_there_is() -> None:
    from scripts.benchmark.command import SECTIONS, all_systems

    rows = {row.key for row in table_rows(FULL)} | {"memory"}
    systems = set(all_systems(1000))
    for requirement in REQUIREMENTS:
        assert requirement.table in SECTIONS
        if requirement.table == "table":
            assert requirement.row in rows and {requirement.column, *requirement.against} <= systems
    assert len(set(REQUIREMENTS)) == len(REQUIREMENTS)
    assert rows == {requirement.row for requirement in REQUIREMENTS if requirement.table == "table"}


def test_figures_survive_being_saved(tmp_path: Path) -> None:
    made = made_up(syncer=100, c=120)
    made.tables["table"].fail("stat", "c", "the second pass")
    made.tables["table"].add("stat", "syncer", 3.0, capped=True)
    save(made, tmp_path / "first")
    again = load(tmp_path / "first")
    save(again, tmp_path / "second")
    assert (tmp_path / "first").read_text() == (tmp_path / "second").read_text()
    assert report.markdown(again) == report.markdown(made)
    assert judge(again) == judge(made)


def test_a_page_keeps_what_is_around_the_figures(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{report.BEGIN}\nold figures\n{report.END}\nafter\n")
    for value in (10.0, 20.0):
        report.write(made_up(syncer=value), page)
        text = page.read_text()
        assert text.startswith(f"before\n{report.BEGIN}") and text.endswith(f"{report.END}\nafter\n")
        assert "old figures" not in text and f"| {report.figure(value)} |" in text
    report.write(made_up(syncer=1), tmp_path / "new.md")
    assert (tmp_path / "new.md").read_text() == report.markdown(made_up(syncer=1))
    assert report.BEGIN in (CHECKOUT / "docs" / "performance.md").read_text()


def test_the_best_rival_is_bold_and_the_ceiling_is_not() -> None:
    text = report.markdown(made_up(c=300, syncer=100, juicefs=200))
    assert "| stat | op/s | 300 | 100 | **200** |" in text


def test_rows_that_a_peer_wins_are_said() -> None:
    lost = report.markdown(made_up(c=300, syncer=100, **{"syncer-writeback": 400, "juicefs": 200, "sshfs": 150}))
    assert lost.endswith("| stat | op/s | the juicefs | 200 | 100 |\n")
    for won in (made_up(c=300, syncer=100, juicefs=99), made_up(syncer=100)):
        assert "Nowhere in this run." in report.markdown(won) or len(won.tables["table"].columns) == 1
    table = made_up(syncer=100, juicefs=99).tables["table"]
    table.rows["stat"] = Row(key="stat", title="stat", unit="ms", less_is_better=True)
    assert "| stat | ms | the juicefs | 99.0 | 100 |" in report.markdown(Report({}, {"table": table}))


def test_charts(tmp_path: Path) -> None:
    matplotlib = pytest.importorskip("matplotlib", reason="only scripts/bench installs matplotlib")
    assert matplotlib
    picture.draw(made_up(syncer=100, juicefs=20, c=120), tmp_path / "charts.png")
    assert (tmp_path / "charts.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    picture.draw(Report({}), tmp_path / "none.png")  # nothing was measured
    assert not (tmp_path / "none.png").exists()


def test_tables_of_sizes_are_drawn_as_costs(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="only scripts/bench installs matplotlib")
    table = Table("scale", "Made up")
    table.announce(
        [Row(key="rate", title="rate", unit="op/s"), Row(key="time", title="time", unit="s", less_is_better=True)],
        [Column("none", "nothing"), Column("1/10", "10", 10), Column("whole", "100", 100)],
    )
    for column, rate, seconds in (("none", 99, 1.0), ("1/10", 50, 2.0), ("whole", 25, 6.0)):
        table.add("rate", column, rate)
        table.add("time", column, seconds)
    assert picture.lines(table) == {"rate": [(10, 1.0), (100, 2.0)], "time": [(10, 1.0), (100, 3.0)]}
    made = made_up(syncer=100)
    made.tables["scale"] = table
    save(made, tmp_path / "figures")
    assert load(tmp_path / "figures").tables["scale"].columns == table.columns
    for name, drawn in (("both.png", made), ("alone.png", Report({}, {"scale": table}))):
        picture.draw(drawn, tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


# --- collections --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_collection_made_without_a_mount_is_there_in_one(tmp_path: Path) -> None:
    remote, data = str(tmp_path / "remote"), tmp_path / "data"
    with syncer_mount.mounted(tmp_path, remote, 100):
        pass
    collection.make_files(data, 150)
    collection.make_crowd(data, 30)
    collection.make_large(data, 200)
    with contextlib.closing(sqlite3.connect(data / "meta.db")) as database:
        assert database.execute("SELECT count(*) FROM changed").fetchone() == (0,)  # all is published
    with syncer_mount.mounted(tmp_path, remote, 100) as mount:
        files = sorted((mount.path / "files").rglob("*/*"))
        assert [str(path.relative_to(mount.path)) for path in (files[0], files[-1])] == [
            "files/000000/00",
            "files/000001/49",
        ]
        contents = {path.read_bytes() for path in files}
        assert len(contents) == 150 and {len(content) for content in contents} == {collection.CONTENT_BYTES}
        assert sorted(os.listdir(mount.path / "crowd")) == [f"{at:06d}" for at in range(30)]
        large = mount.path / "large" / "file"
        assert large.stat().st_size == 200 * collection.BLOCK_BYTES
        with open(large, "rb", buffering=0) as file:
            starts = {os.pread(file.fileno(), 32, at * collection.BLOCK_BYTES) for at in range(200)}
        assert bytes(32) not in starts and 10 < len(starts) < 64  # real blocks everywhere, each in many places
        assert os.getxattr(large, "user.syncer.state") == os.getxattr(files[0], "user.syncer.state") == b"uploaded"
        figures = syncer_mount.status(data)
        assert (figures["files"], figures["pending_upload_bytes"]) == (150 + 30 + 2, 0)  # the seed and the large one


# --- the whole ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_small_run_with_all_its_reports(tmp_path: Path) -> None:
    outcome = bench(
        tmp_path,
        *("--quick", "--passes", "3", "--peers", "plain,c", "--only", "create,rm"),
        *("--json", "figures.json", "--markdown", "report.md"),
    )
    assert outcome.returncode == 0, outcome.stderr
    document = json.loads((tmp_path / "figures.json").read_text())
    (table,) = document["tables"]
    assert [row["key"] for row in table["rows"]] == ["create", "rm"]
    assert [column["key"] for column in table["columns"]] == ["plain", "c"]
    assert len(table["cells"]) == 4
    for cell in table["cells"]:
        assert len(cell["values"]) == 3 and min(cell["values"]) > 0
        assert cell["median"] == statistics.median(cell["values"])
        assert (cell["min"], cell["max"]) == (min(cell["values"]), max(cell["values"]))
    text = (tmp_path / "report.md").read_text()
    assert outcome.stdout == text
    assert "| create 4 KiB files | op/s |" in text and "passthrough_ll -o writeback" in text
    assert not list(tmp_path.glob("syncer-bench-*")), "a store was left behind"
    assert not [path for path in mountpoints() if tmp_path in path.parents]

    again = bench(tmp_path, "--from", "figures.json")
    assert (again.returncode, again.stdout) == (0, text)  # nothing is measured, the same is reported


def test_what_is_not_there_is_left_out_with_a_line(tmp_path: Path) -> None:
    for option in ("--peers", "--only"):
        outcome = bench(tmp_path, option, "nonsense")
        assert outcome.returncode == 2 and "nonsense: there are" in outcome.stderr
    path = {**environment(), "PATH": "/nowhere"}
    command = [
        sys.executable,
        "-m",
        "scripts.benchmark",
        "cutter",
        "--quick",
        "--passes",
        "1",
        "--peers",
        "plain,sshfs",
    ]
    done = subprocess.run(command, env=path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert (
        "sshfs is left out: sshfs and ssh-keygen: not installed (--install brings it: sshfs openssh-server)"
        in done.stderr
    )
    assert "| random bytes | GB/s |" in done.stdout


SECTIONS = ("insert", "first-byte", "concurrent", "cutter")
OTHER_SECTIONS = ("cold-remote", "uploading", "copy-in", "scale", "publish", "table")


@pytest.mark.slow
@pytest.mark.parametrize("sections", [SECTIONS, pytest.param(OTHER_SECTIONS, marks=long)])
def test_syncer_itself_on_every_section(sections: tuple[str, ...], tmp_path: Path) -> None:
    arguments = ("--quick", "--passes", "1", "--peers", "syncer", "--json", "figures.json")
    outcome = bench(tmp_path, *sections, *arguments)
    assert outcome.returncode == 0, outcome.stderr
    found = load(tmp_path / "figures.json")
    assert list(found.tables) == list(sections)
    assert not [error for table in found.tables.values() for cell in table.cells.values() for error in cell.errors]
    ours: list[Requirement] = [verdict.requirement for verdict in judge(found)]
    missing = [one for one in ours if found.tables[one.table].median(one.row, one.column) is None]
    assert {one.column for one in missing} <= {"syncer-writeback"}
    ratios = {one for one in REQUIREMENTS if one.table in sections and one not in ours}
    assert not ratios, "requirements whose rows were not measured"
