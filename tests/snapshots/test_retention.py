"""Which snapshots stay: what a policy promises, whatever times they have."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncer.errors import UsageError
from syncer.snapshots.retention import DAY_S, DEFAULT, HOUR_S, SECOND_NS, Taken, kept, parse
from syncer.values import PeerId

YEAR_S = 365 * DAY_S
NOW_S = 1_800_000_000
POLICIES = st.sampled_from(
    [DEFAULT, "none", "last=2h", "hourly=1d,daily=3d", "weekly=forever", "last=10min,monthly=1y", "daily=1w,weekly=2mo"]
)
STEPS = st.lists(st.sampled_from([1, 60, 1800, HOUR_S, 5 * HOUR_S, DAY_S, 6 * DAY_S, 40 * DAY_S]), min_size=1)


def chain(steps: Sequence[int], labels: Sequence[int] = ()) -> list[Taken]:
    """Snapshots with so many seconds between them; those numbered in *labels* have one."""
    time_s, result = NOW_S, []
    for at, step in enumerate(steps):
        time_s += step
        result.append(Taken((PeerId(1), at + 1), time_s * SECOND_NS, f"l{at}" if at in labels else None))
    return result


def seqs(policy: str, taken: Sequence[Taken]) -> list[int]:
    return sorted(seq for _, seq in kept(parse(policy), taken))


def every(step_s: int, count: int) -> list[Taken]:
    return chain([step_s] * count)


def test_a_day_of_every_minute_by_the_default() -> None:
    taken = every(60, 24 * 60)
    found = seqs(DEFAULT, taken)
    assert found[-121:] == list(range(1320, 1441)), "all of the last two hours"
    assert 121 + 21 <= len(found) <= 121 + 24, "and one for each hour before"


def test_ten_years_of_every_hour_by_the_default() -> None:
    found = seqs(DEFAULT, every(HOUR_S, 10 * 365 * 24))
    assert 48 + 58 + 95 + 95 < len(found) < 48 + 60 + 105 + 121


def test_of_each_period_the_newest_stays() -> None:
    taken = [Taken((PeerId(1), seq), (DAY_S * 20_000 + seq * HOUR_S) * SECOND_NS) for seq in range(60)]
    assert seqs("daily=7d", taken) == [23, 47, 59]


def test_none_keeps_the_newest_and_the_labelled() -> None:
    assert seqs("none", chain([1] * 10, labels=[3, 5])) == [4, 6, 10]


def test_what_somebody_needs_stays() -> None:
    assert kept((), every(1, 5), [(PeerId(1), 2)]) == {(PeerId(1), 2), (PeerId(1), 5)}


def test_peers_follow_each_other() -> None:
    one, two = Taken((PeerId(1), 900), 10**18), Taken((PeerId(2), 1), 10**18 + 1)
    assert kept((), [two, one]) == {two.place}


@pytest.mark.parametrize(
    "text", ["", "last", "last=", "last=2", "last=2s", "often=2h", "last=2h,last=3h", "last=-1h", "daily=forever,"]
)
def test_what_is_no_policy_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse(text)


@given(POLICIES, STEPS, st.sets(st.integers(0, 30)))
def test_the_newest_the_labelled_and_all_of_last_stay(policy: str, steps: list[int], labels: set[int]) -> None:
    taken = chain(steps, sorted(labels))
    found = kept(parse(policy), taken)
    assert taken[-1].place in found
    assert {one.place for one in taken if one.label} <= found
    for rule in parse(policy):
        if rule.name == "last":
            assert rule.span_ns is not None
            young = {one.place for one in taken if taken[-1].time_ns - one.time_ns <= rule.span_ns}
            assert young <= found


_TIMES = st.integers(-(2**63), 2**63 - 1) | st.integers(NOW_S * SECOND_NS, (NOW_S + 3 * YEAR_S) * SECOND_NS)


@given(POLICIES, st.lists(_TIMES))
def test_thinning_twice_is_thinning_once(policy: str, times: list[int]) -> None:
    taken = [Taken((PeerId(1), seq), time_ns) for seq, time_ns in enumerate(times)]
    once = kept(parse(policy), taken)
    assert kept(parse(policy), [one for one in taken if one.place in once]) == once


@given(POLICIES, STEPS)
def test_what_was_not_kept_is_not_missed_later(policy: str, steps: list[int]) -> None:
    """Thinned after each snapshot, just what one thinning at the end would have kept is there, and nothing is gone."""
    taken = chain(steps)
    there: list[Taken] = []
    for one in taken:
        places = kept(parse(policy), [*there, one])
        there = [other for other in [*there, one] if other.place in places]
    assert {one.place for one in there} == kept(parse(policy), taken)


@given(POLICIES, STEPS, st.data())
def test_a_clock_that_is_years_off_deletes_nothing(policy: str, steps: list[int], data: st.DataObject) -> None:
    taken = [Taken((one.place[0], one.place[1] * 100), one.time_ns) for one in chain(steps)]
    span_ns = taken[-1].time_ns - taken[0].time_ns
    off = data.draw(st.sampled_from([-1, 1])) * (span_ns + 2 * YEAR_S * SECOND_NS)
    at, count = data.draw(st.integers(1, len(taken))), data.draw(st.integers(1, 3))
    if count >= min(at, len(taken) - at + 1):
        return  # which of them are off nobody could tell
    base = taken[at - 1]
    wrong = [
        Taken((PeerId(1), base.place[1] + n), base.time_ns + off + n * 60 * SECOND_NS) for n in range(1, count + 1)
    ]
    before = kept(parse(policy), taken)
    after = kept(parse(policy), [*taken, *wrong])
    assert before - ({taken[-1].place} if not parse(policy) else set()) <= after


def test_a_leap_that_has_been_borne_out_is_believed() -> None:
    taken = chain([60] * 10 + [3 * YEAR_S] + [DAY_S] * 40)
    assert seqs("last=2h", taken) == [51]
