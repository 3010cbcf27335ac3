"""Which snapshots are kept: a policy as people write it, and what it makes of a list of snapshots. Pure.

    last=2h,hourly=2d,daily=60d,weekly=2y,monthly=forever

`last` keeps every snapshot of that long, each other rule the newest of each hour, day, week or month (UTC) for that
long. What any rule keeps is kept. Ages are counted from the newest snapshot; no clock of this machine is asked.

Times come from the clocks of the machines that wrote, and those go wrong. A snapshot whose time does not fit where it
stands in the chain is left out of all comparisons, and kept for as long as those that it does not fit to: a wrong clock
may keep too much, and deletes nothing.
"""

import re
from bisect import bisect_right
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from syncer.errors import UsageError
from syncer.values import PeerId

DEFAULT = "last=2h,hourly=2d,daily=60d,weekly=2y,monthly=forever"
NONE = "none"
"""The policy that keeps the newest and the labelled ones only."""
SECOND_NS = 1_000_000_000
HOUR_S, DAY_S = 3600, 86400
UNITS_S = {"min": 60, "h": HOUR_S, "d": DAY_S, "w": 7 * DAY_S, "mo": 30 * DAY_S, "y": 365 * DAY_S}
LEAP_NS = 365 * DAY_S * SECOND_NS
"""Time that jumps ahead by more than this from one snapshot to the next is taken for a clock that is wrong ..."""
BORNE_OUT_NS = 30 * DAY_S * SECOND_NS
"""... until snapshots have gone on for so long after it."""
_EPOCH = datetime(1970, 1, 1)

Place = tuple[PeerId, int]
"""(peer, seq): what names a snapshot, and its place in the chain: peers write one after the other."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What a policy looks at in a snapshot."""

    place: Place
    time_ns: int
    label: str | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """*name* is a key of PERIODS; *span_ns* how long it holds, None for ever."""

    name: str
    span_ns: int | None


Policy = tuple[Rule, ...]


def _hour(time_ns: int) -> object:
    return time_ns // (HOUR_S * SECOND_NS)


def _day(time_ns: int) -> int:
    return time_ns // (DAY_S * SECOND_NS)


def _week(time_ns: int) -> object:
    return (_day(time_ns) + 3) // 7  # weeks begin on Mondays; 1970 began on a Thursday


def _month(time_ns: int) -> object:
    day = _EPOCH + timedelta(days=_day(time_ns))
    return day.year, day.month


PERIODS: dict[str, Callable[[int], object]] = {
    "last": lambda time_ns: None,
    "hourly": _hour,
    "daily": _day,
    "weekly": _week,
    "monthly": _month,
}
"""Of each rule the period that a time belongs to. `last` compares nothing."""


def parse(text: str) -> Policy:
    """The policy in *text*.

    Raises: UsageError: it is none.
    """
    if text.strip() == NONE:
        return ()
    rules: dict[str, Rule] = {}
    for part in text.split(","):
        name, _, span = (piece.strip() for piece in part.partition("="))
        if name not in PERIODS or name in rules:
            raise _wrong(f"{part.strip()!r} is no rule, or the second of its name")
        rules[name] = Rule(name, _span_ns(span))
    return tuple(rules.values())


def _span_ns(text: str) -> int | None:
    if text == "forever":
        return None
    found = re.fullmatch(rf"([0-9]{{1,6}})({'|'.join(UNITS_S)})", text)
    if found is None:
        raise _wrong(f"{text!r} is no length of time")
    return int(found[1]) * UNITS_S[found[2]] * SECOND_NS


def _wrong(why: str) -> UsageError:
    units = ", ".join(UNITS_S)
    return UsageError(
        f"this is no policy for snapshots: {why}",
        hint=f"write it like {DEFAULT}, with rules among {', '.join(PERIODS)} and units among {units}; or {NONE}",
    )


def kept(policy: Policy, taken: Collection[Taken], needed: Collection[Place] = ()) -> set[Place]:
    """The places of those snapshots in *taken* that stay: by *policy*, labelled, *needed*, and the newest of all.

    What is kept of what was kept is all of it.
    """
    chain = sorted(taken, key=lambda one: one.place)
    while True:
        places = _kept_once(policy, chain, needed)
        if len(places) == len(chain):
            return places
        chain = [one for one in chain if one.place in places]  # without these, others may fit into the chain


def _kept_once(policy: Policy, chain: Sequence[Taken], needed: Collection[Place]) -> set[Place]:
    places = {one.place for one in chain if one.label is not None or one.place in needed}
    if not chain:
        return places
    places.add(chain[-1].place)
    if not policy:
        return places
    fitting = in_order(chain)
    places.update({one.place for one in chain} - {one.place for one in fitting})
    for rule in policy:
        places.update(_by_rule(rule, fitting))
    return places


def _by_rule(rule: Rule, fitting: Sequence[Taken]) -> set[Place]:
    places: set[Place] = set()
    newest_ns = fitting[-1].time_ns
    before: object = object()
    for one in reversed(fitting):
        if rule.span_ns is not None and newest_ns - one.time_ns > rule.span_ns:
            break
        period = PERIODS[rule.name](one.time_ns)
        if rule.name == "last" or period != before:
            places.add(one.place)
        before = period
    return places


def in_order(chain: Sequence[Taken]) -> list[Taken]:
    """As many snapshots of the *chain* as have times that fit: in order, and without leaps nobody has borne out."""
    return _longest_ascent(_without_leaps(chain))


def _without_leaps(chain: Sequence[Taken]) -> list[Taken]:
    """The chain without those that say that years have gone by since the one before."""
    latest_after = [one.time_ns for one in chain]
    for at in range(len(chain) - 2, -1, -1):
        latest_after[at] = max(latest_after[at], latest_after[at + 1])
    result: list[Taken] = []
    latest = chain[0].time_ns if chain else 0
    for at, one in enumerate(chain):
        if one.time_ns - latest <= LEAP_NS or latest_after[at] - one.time_ns >= BORNE_OUT_NS:
            result.append(one)
            latest = max(latest, one.time_ns)
    return result


def _longest_ascent(chain: Sequence[Taken]) -> list[Taken]:
    """The longest part of the chain in which no time is before the one that precedes it (patience sorting)."""
    ends: list[int] = []  # of the ascents of each length, the lowest time that one ends with
    last: list[int] = []  # and where that one is
    before: list[int | None] = []
    for at, one in enumerate(chain):
        length = bisect_right(ends, one.time_ns)
        before.append(last[length - 1] if length else None)
        ends[length : length + 1] = [one.time_ns]
        last[length : length + 1] = [at]
    result: list[Taken] = []
    place = last[-1] if last else None
    while place is not None:
        result.append(chain[place])
        place = before[place]
    return result[::-1]
