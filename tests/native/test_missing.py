"""Without its extension syncer says so; it never goes on slowly."""

import subprocess
import sys


def test_a_missing_extension_is_a_clear_error() -> None:
    block = "import sys; sys.modules['syncer.native._scan'] = None; import syncer.blocks.cutter"
    outcome = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True, check=False)
    assert outcome.returncode != 0
    last = outcome.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: syncer's native extension is not built for this Python")
    assert "scripts/syncer" in last and "pip install ." in last
