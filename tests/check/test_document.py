"""docs/check.md lists every finding there is, and none that is not."""

import re
from pathlib import Path

from tests.support.command import CHECKOUT

PLACES = ("meta/rules.py", "meta/tablecheck.py", "meta/check.py", "meta/columns.py", "blocks/check.py",
          "snapshots/check.py", "checking.py")  # fmt: skip
CODE = re.compile(r'(?:Rule\(|_of_inode\(|_of_block\(|Finding\(|_note\(|_record\()\s*f?"([a-z-]+|pack-\{why\})"')


def test_the_document_has_every_code() -> None:
    source = "".join((CHECKOUT / "syncer" / place).read_text() for place in PLACES)
    codes = set(CODE.findall(source)) - {"pack-{why}"} | {"pack-missing", "pack-size", "pack-damaged"}
    table = Path(CHECKOUT / "docs" / "check.md").read_text().partition("## Findings")[2]
    listed = {
        code
        for line in table.splitlines()
        for code in re.findall(r"`([a-z-]+)`", line.split("|")[1] if "|" in line else "")
    }
    assert codes == listed
