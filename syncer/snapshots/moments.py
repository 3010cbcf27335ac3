"""Moments as people say them: `yesterday 14:00`, `2h ago`, `2026-11-20`, `monday`, ISO 8601 with a zone.

A moment that is said coarsely is its last instant: a date the end of that day, `14:05` the end of that minute. Without
a zone it is local time. Pure, and strict on purpose: what could mean two things is refused, never guessed, because a
wrong guess would bring back the wrong files. Calendar arithmetic and names of months are dateutil's.
"""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, tzinfo

from syncer.errors import UsageError

SECOND_NS = 10**9
EXAMPLES = "`yesterday 14:00`, `2h ago`, `3 days ago`, `monday`, `2026-11-20`, `2026-11-20 14:05`"
WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")

_UNITS = {
    "seconds": "s|sec|secs|second|seconds",
    "minutes": "m|min|mins|minute|minutes",
    "hours": "h|hr|hrs|hour|hours",
    "days": "d|day|days",
    "weeks": "w|week|weeks",
    "months": "month|months",
    "years": "y|year|years",
}
_CLOCKED = ("seconds", "minutes", "hours")
"""Units that a clock counts; the others go by the calendar: three days ago is the same time of day, three days back."""
_AGO = re.compile(r"(?:(?P<count>\d{1,9}) ?|an? )(?P<unit>[a-z]+)(?: ago)?")
_CLOCK = re.compile(r"(?:at )?(\d{1,2}):(\d\d)(?::(\d\d))?")
_ISO = re.compile(r"(\d{4})-(\d\d)-(\d\d)(?:[t _](\d\d)[:-](\d\d)(?:[:-](\d\d)(\.\d+)?)?)? ?(z|[+-]\d\d:?\d\d)?")


def parse_moment(text: str, now_ns: int, zone: tzinfo | None = None, *, first: bool = False) -> int:
    """The last nanosecond since 1970 that *text* means at *now_ns*, in *zone* (None: this machine's); or the *first*.

    A local time that the clock showed twice, when summer time ended, is the later one; one that it never showed is
    read as if the clock had not been put forward.

    Raises: UsageError: it is no moment, or could be more than one.
    """
    said = " ".join(text.lower().replace(",", " ").split())
    try:
        for reading in (_iso, _ago, _named_day, _time_of_day, _with_month):
            found = reading(said, _Now(now_ns, zone, first))
            if found is not None:
                return found
    except (ValueError, OverflowError) as error:
        raise UsageError(f"{text!r} is no moment: {error}", hint=f"say {EXAMPLES}") from error
    raise UsageError(f"{text!r} is no moment that is understood", hint=f"say {EXAMPLES}")


def moment_of(text: str, now_ns: int, zone: tzinfo | None = None) -> int | None:
    """The moment that *text* means to who says it, at *now_ns* and in *zone*; None for what is no moment."""
    try:
        return parse_moment(text, now_ns, zone)
    except UsageError:
        return None


class _Now:
    """The moment at which something is said, and the zone of who says it."""

    def __init__(self, now_ns: int, zone: tzinfo | None, first: bool) -> None:
        """*first*: what is said coarsely is its begin instead of its end."""
        self.ns = now_ns
        self.first = first
        self.zone = zone
        aware = datetime.fromtimestamp(now_ns // SECOND_NS, UTC).astimezone(zone)
        self.local = aware.replace(tzinfo=None)
        """What the clock on the wall shows, to the second."""

    def end_of(self, local: datetime, length: timedelta) -> int:
        """The last nanosecond of the *length* that begins when the clock on the wall shows *local*, or the first."""
        if self.first:
            return round(min(local.replace(tzinfo=self.zone, fold=fold).timestamp() for fold in (0, 1)) * 10**6) * 1000
        last = local + length - timedelta(microseconds=1)
        stamps = [last.replace(tzinfo=self.zone, fold=fold).timestamp() for fold in (0, 1)]
        return round(max(stamps) * 10**6) * 1000 + 999


_DAY, _MINUTE, _SECOND = timedelta(days=1), timedelta(minutes=1), timedelta(seconds=1)


def _iso(said: str, now: _Now) -> int | None:
    """ISO 8601, and the names of the directories in `.snapshots`."""
    match = _ISO.fullmatch(said)
    if match is None:
        return None
    year, month, day, hour, minute, second, fraction, zone = match.groups()
    local = datetime(int(year), int(month), int(day), int(hour or 0), int(minute or 0), int(second or 0))
    length = _DAY if hour is None else _MINUTE if second is None else _SECOND
    if fraction is not None:
        local, length = local + timedelta(seconds=float(fraction)), timedelta(microseconds=1)
    if zone is None:
        return now.end_of(local, length)
    offset = datetime.strptime(zone.upper(), "%z").tzinfo
    return _Now(now.ns, offset, now.first).end_of(local, length)


def _ago(said: str, now: _Now) -> int | None:
    """`2h ago`, `3 days ago`, `an hour ago`; `ago` may be left out after a number with a unit."""
    match = _AGO.fullmatch(said)
    unit = match and next((name for name, words in _UNITS.items() if match["unit"] in words.split("|")), None)
    if match is None or unit is None:
        return None
    count = int(match["count"] or 1)
    if unit in _CLOCKED:
        return now.ns - round(timedelta(**{unit: count}).total_seconds()) * SECOND_NS
    from dateutil.relativedelta import relativedelta

    back: Callable[..., relativedelta] = relativedelta
    return now.end_of(now.local - back(**{unit: count}), _SECOND)


def _named_day(said: str, now: _Now) -> int | None:
    """`today`, `yesterday`, `monday`, `last monday`, each with a time of day or without; and `now`."""
    if said == "now":
        return now.ns
    word, _, rest = said.removeprefix("last ").partition(" ")
    today = now.local.replace(hour=0, minute=0, second=0)
    if word in ("today", "yesterday") and not said.startswith("last "):
        day = today - _DAY * (word == "yesterday")
    elif len(word) >= 3 and sum(name.startswith(word) for name in WEEKDAYS) == 1:
        index = next(index for index, name in enumerate(WEEKDAYS) if name.startswith(word))
        day = today - _DAY * ((today.weekday() - index - 1) % 7 + 1)
    else:
        return None
    return now.end_of(day, _DAY) if not rest else _on(day, rest, now)


def _on(day: datetime, clock: str, now: _Now) -> int | None:
    """The time of day *clock* on *day*."""
    match = _CLOCK.fullmatch(clock)
    if match is None:
        return None
    hour, minute, second = match.groups()
    return now.end_of(
        day.replace(hour=int(hour), minute=int(minute), second=int(second or 0)), _MINUTE if second is None else _SECOND
    )


def _time_of_day(said: str, now: _Now) -> int | None:
    """`14:05`: the last time that the clock showed it."""
    today = now.local.replace(hour=0, minute=0, second=0)
    match = _CLOCK.fullmatch(said)
    if match is None:
        return None
    hour, minute, second = (int(part or 0) for part in match.groups())
    day = today if today.replace(hour=hour, minute=minute, second=second) <= now.local else today - _DAY
    return _on(day, said, now)


def _with_month(said: str, now: _Now) -> int | None:
    """`20 november 2026`, `nov 20 2026 14:05`: a day, the name of a month and a year, in any order.

    A date in digits alone is not for here: whether the day or the month comes first differs from place to place.
    """
    if not re.search("[a-z]{3}", said) or not re.search(r"\b\d{4}\b", said):
        return None
    from dateutil import parser

    clock = re.search(_CLOCK.pattern + "$", said)
    date = said[: clock.start()].strip() if clock else said
    if not re.fullmatch(r"[a-z0-9 .]+", date):
        return None
    # Read with two different defaults: what differs then was not said.
    days = {parser.parse(date, default=default) for default in (datetime(2001, 1, 1), datetime(2002, 2, 2))}
    if len(days) != 1 or (day := days.pop()).time() != datetime.min.time():
        raise ValueError("a day, a month and a year are needed")
    return now.end_of(day, _DAY) if clock is None else _on(day, clock[0], now)
