"""Whether the tests are to take their time: `scripts/test --long` says so by SYNCER_TEST_LONG=1."""

import os
from collections.abc import Iterable
from typing import Any

import pytest

LONG = os.environ.get("SYNCER_TEST_LONG") == "1"
long = pytest.mark.skipif(not LONG, reason="part of the long form (scripts/test --long)")


def seldom(cases: Iterable[Any], *rare: Any) -> list[Any]:
    """Parameters: all *cases*, of which the *rare* ones are for the long form."""
    return [
        pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=long if case in rare else ())
        for case in cases
    ]
