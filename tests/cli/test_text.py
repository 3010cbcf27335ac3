"""Sizes, durations and text as people read them."""

import pytest

from syncer.cli.text import duration, printable, size, waiting


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (999, "999 bytes"),
        (1000, "1.00 kB"),
        (9_994, "9.99 kB"),
        (9_996, "10.0 kB"),
        (99_960, "100 kB"),
        (999_499, "999 kB"),
        (999_500, "1.00 MB"),
        (1_234_567, "1.23 MB"),
        (45_600_000_000, "45.6 GB"),
        (2 * 10**21, "2000 EB"),
    ],
)
def test_size(count: int, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.9, "0 s"), (59.9, "59 s"), (60, "1 min"), (200, "3 min 20 s"), (7500, "2 h 5 min"), (273_600, "3 d 4 h")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_nothing_printed_can_upset_a_terminal() -> None:
    assert printable("ä b\x1b[31m\n\x00\x9b\udcff\u202e") == "ä b\\x1b[31m\\n\\x00\\x9b\\xff\\u202e"


def test_what_waits_is_told_to_the_byte() -> None:
    assert waiting(0) == "0 bytes wait for upload"
    assert waiting(12_345_678).startswith("12345678 bytes (12.3 MB) wait for upload; they are safe in DATA")
