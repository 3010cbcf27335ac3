"""Each kind of damage, made by hand: `check` finds just that, repair mends it, and the rest is as it was."""

import pytest
import trio

from syncer.meta import rules
from tests.check.damages import LOCAL, Case
from tests.support.check_world import CheckWorld
from tests.support.long_form import LONG
from tests.support.picture import picture

SHORT_STEP = 6
"""In the short form every so many cases are followed until all is on the remote."""


@pytest.mark.parametrize("case", LOCAL, ids=lambda case: case.name)
def test_damage_is_found_and_mended(world: CheckWorld, case: Case) -> None:
    case.damage(world)
    before = picture(world.data)
    report = world.check(percent=case.percent)
    assert picture(world.data) == before, "looking changed something"
    assert {finding.code for finding in report.found} == set(case.codes), report.found
    assert report.left == report.found

    mended = world.check(percent=case.percent, repair=True, remote=case.name == "no pack")
    assert not mended.left, mended.left
    assert mended.found
    if not LONG and LOCAL.index(case) % SHORT_STEP:
        return
    again = world.check(percent=100.0)
    assert not again.found, again.found

    shown = world.read()
    wrong = {path for path, held in world.files.items() if shown.get(path) != held}
    assert wrong <= set(case.suffer)
    after = world.check(percent=100.0, remote=True)
    assert not after.found, after.found


def test_below_a_directory_that_was_moved_nothing_is_where_a_snapshot_shows_it(world: CheckWorld) -> None:
    assert world.read() == world.files
    deep = world.value("SELECT inode FROM dentries WHERE name = CAST('deep' AS BLOB)")
    file = world.value(f"SELECT min(d.inode) FROM dentries d JOIN inodes i USING(inode) WHERE parent = {deep} AND size")

    async def is_shown() -> bool:
        async with world.opened() as engine:
            return engine.meta.snapshots.shows(engine.meta.inodes.need(file))

    assert trio.run(is_shown)
    world.change("DELETE FROM dentries WHERE name = CAST('deep' AS BLOB)")
    assert not world.check(repair=True).left
    assert not trio.run(is_shown)
    world.read()
    assert trio.run(is_shown)


def test_a_journal_that_does_not_reach_back_to_the_last_commit_is_found(world: CheckWorld) -> None:
    """No mount takes such a DATA: what lies between the two is lost."""
    segments = sorted((world.data / "journal").iterdir())
    for path in segments[:-1]:
        path.unlink()
    segments[-1].rename(segments[-1].with_name(f"{int(segments[-1].name, 16) + (1 << 40):016x}"))
    for repair in (False, True):
        report = world.check(repair=repair)
        assert [finding.code for finding in report.found] == ["database"]
        assert "journal: nothing covers position" in report.found[0].text
        assert report.left == report.found


def test_each_rule_has_its_damage() -> None:
    known = {rule.code for rule in (*rules.NAMESPACE, *rules.CONTENT, *rules.BLOCKS, *rules.FILES)}
    assert known <= {code for case in LOCAL for code in case.codes}
