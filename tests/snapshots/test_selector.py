"""Snapshots and moments as people name them."""

import contextlib
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from syncer.errors import UsageError
from syncer.snapshots.history import Snapshot, snapshot_of
from syncer.snapshots.moments import moment_of, parse_moment
from syncer.snapshots.records import SnapshotRecord, encode
from syncer.snapshots.selector import NoSuchSnapshot, select

BERLIN = ZoneInfo("Europe/Berlin")
NOW = datetime(2026, 11, 21, 14, 5, 30, tzinfo=BERLIN)
"""A Saturday."""


def ns(moment: datetime) -> int:
    return round(moment.timestamp()) * 10**9


def said(text: str, now: datetime = NOW, zone: ZoneInfo = BERLIN) -> str:
    """The last second that *text* means, as the clock in *zone* shows it."""
    found = parse_moment(text, ns(now), zone)
    assert found % 10**9 in (0, 10**9 - 1)
    return datetime.fromtimestamp(found // 10**9, zone).strftime("%Y-%m-%d %H:%M:%S")


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("now", "2026-11-21 14:05:30"),
        ("2h ago", "2026-11-21 12:05:30"),
        ("2 hours ago", "2026-11-21 12:05:30"),
        ("an hour ago", "2026-11-21 13:05:30"),
        ("90 min ago", "2026-11-21 12:35:30"),
        ("45s", "2026-11-21 14:04:45"),
        ("3 days ago", "2026-11-18 14:05:30"),
        ("a week ago", "2026-11-14 14:05:30"),
        ("1 month ago", "2026-10-21 14:05:30"),
        ("2 years ago", "2024-11-21 14:05:30"),
        ("today", "2026-11-21 23:59:59"),
        ("yesterday", "2026-11-20 23:59:59"),
        ("yesterday 14:00", "2026-11-20 14:00:59"),
        ("Yesterday at 14:00:07", "2026-11-20 14:00:07"),
        ("monday", "2026-11-16 23:59:59"),
        ("last monday 9:30", "2026-11-16 09:30:59"),
        ("sat", "2026-11-14 23:59:59"),
        ("9:15", "2026-11-21 09:15:59"),
        ("23:15", "2026-11-20 23:15:59"),
        ("2026-11-20", "2026-11-20 23:59:59"),
        ("2026-11-20 14:05", "2026-11-20 14:05:59"),
        ("2026-11-20T14:05:06", "2026-11-20 14:05:06"),
        ("2026-11-20_14-05-06", "2026-11-20 14:05:06"),
        ("2026-11-20T14:05:06Z", "2026-11-20 15:05:06"),
        ("2026-11-20 14:05 +05:30", "2026-11-20 09:35:59"),
        ("20 november 2026", "2026-11-20 23:59:59"),
        ("Nov 20, 2026 14:05", "2026-11-20 14:05:59"),
        ("2024-02-29", "2024-02-29 23:59:59"),
    ],
)
def test_moments(text: str, moment: str) -> None:
    assert said(text) == moment


@pytest.mark.parametrize(
    "text",
    [
        "",
        "soon",
        "t",
        "03/04/2026",
        "2026",
        "20 november",
        "2026-13-01",
        "2026-02-30",
        "25:00",
        "last today",
        "as",  # no seconds, and `any` no year: these are names that somebody may have mistyped
        "any",
        "yesterday evening",
        "3 moons ago",
        "2026-11-20 9",
        "nov 20 2026 noonish",
        "99999999 years ago",
    ],
)
def test_what_could_mean_anything_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        said(text)


def test_an_hour_that_the_clock_shows_twice_is_the_later_one() -> None:
    found = parse_moment("2026-10-25 02:30", ns(NOW), BERLIN)
    assert datetime.fromtimestamp(found // 10**9, UTC) == datetime(2026, 10, 25, 1, 30, 59, tzinfo=UTC)


def test_an_hour_that_the_clock_never_shows_is_read_as_if_it_had_not_been_put_forward() -> None:
    found = parse_moment("2026-03-29 02:30", ns(NOW), BERLIN)
    assert datetime.fromtimestamp(found // 10**9, UTC) == datetime(2026, 3, 29, 1, 30, 59, tzinfo=UTC)


def test_hours_are_counted_and_days_go_by_the_calendar_when_summer_time_ends() -> None:
    now = datetime(2026, 10, 25, 12, 0, 0, tzinfo=BERLIN)
    assert said("24 hours ago", now) == "2026-10-24 13:00:00"
    assert said("1 day ago", now) == "2026-10-24 12:00:00"
    assert said("2026-10-25", now) == "2026-10-25 23:59:59"


def test_a_time_without_a_zone_is_that_of_who_says_it() -> None:
    tokyo = ZoneInfo("Asia/Tokyo")
    assert parse_moment("2026-11-20 12:00", ns(NOW), tokyo) == parse_moment("2026-11-20 04:00", ns(NOW), BERLIN)


def test_without_a_zone_it_is_the_machine_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        here = parse_moment("2026-07-04 12:00", ns(NOW))
    finally:
        monkeypatch.undo()
        time.tzset()
    assert here == parse_moment("2026-07-04 12:00", ns(NOW), ZoneInfo("America/New_York"))


@given(st.text(max_size=30))
def test_any_text_is_a_moment_or_refused(text: str) -> None:
    with contextlib.suppress(UsageError):
        parse_moment(text, ns(NOW), BERLIN)


@pytest.fixture(autouse=True)
def in_berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def shot(seq: int, text: str, label: str | None = None, id_: str = "") -> Snapshot:
    moment = datetime.strptime(text, "%Y-%m-%d %H:%M:%S").replace(tzinfo=BERLIN)
    record = SnapshotRecord(1, 1, seq, bytes(32), (), ns(moment), "host", 0, 1, 0, 0, 9, label, False, "auto")
    return msgspec.structs.replace(snapshot_of(encode(record)), id=id_ or f"{seq:x}" * 64)


def chosen(text: str, shots: list[Snapshot]) -> int:
    return select(text, shots, moment_of(text, ns(NOW))).seq


SHOTS = [
    shot(1, "2026-11-19 10:00:00", id_="aabbccdd" + "0" * 56),
    shot(2, "2026-11-20 14:00:30", id_="aabbccee" + "0" * 56),
    shot(3, "2026-11-20 14:01:00", "before cleanup"),
    shot(4, "2026-11-21 09:00:00", "2026-11-19"),
    shot(5, "2026-11-21 14:05:00"),
]


@pytest.mark.parametrize(
    ("text", "seq"),
    [
        ("latest", 5),
        ("before cleanup", 3),
        ("2026-11-20_14-01-00_before cleanup", 3),
        ("2026-11-20_14-01-00", 3),  # as a moment
        ("1/2", 2),
        ("aabbccee", 2),
        ("AABBCCDD0", 1),
        ("5555", 5),
        ("2026-11-19", 4),  # a label goes before a date
        ("2026-11-20", 3),
        ("2026-11-20 14:00", 2),
        ("yesterday 13:00", 1),
        ("5h ago", 4),
        ("10 seconds ago", 5),
    ],
)
def test_names_of_snapshots(text: str, seq: int) -> None:
    assert chosen(text, SHOTS) == seq


def test_the_beginning_of_several_ids_names_them() -> None:
    with pytest.raises(NoSuchSnapshot, match=r"aabbccdd0000 \(2026-11-19_10-00-00\), aabbccee0000"):
        chosen("aabb", SHOTS)


def test_before_the_oldest_there_is_none_and_the_message_says_which_that_is() -> None:
    with pytest.raises(NoSuchSnapshot) as caught:
        chosen("2026-11-18", SHOTS)
    assert "2026-11-19_10-00-00" in caught.value.hint


def test_without_snapshots_nothing_is_found() -> None:
    with pytest.raises(NoSuchSnapshot):
        chosen("latest", [])


def test_snapshots_of_a_clock_that_was_wrong_are_found_by_the_time_they_say() -> None:
    wrong = [shot(1, "2030-01-01 00:00:00"), shot(2, "2026-11-20 10:00:00"), shot(3, "2026-11-20 10:00:00")]
    assert chosen("yesterday", wrong) == 3
    assert chosen("latest", wrong) == 3
