"""Whether the tests are to take their time: `scripts/test --long` says so by SYNCER_TEST_LONG=1."""

import os

LONG = os.environ.get("SYNCER_TEST_LONG") == "1"
