"""What `python -m build` makes: a wheel with the extension in it, and an sdist that it can be built from."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
LEFT_BEHIND = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "*.egg-info", "*.so")


@pytest.mark.slow
def test_wheel_and_sdist_are_complete(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(ROOT, source, ignore=LEFT_BEHIND)
    # Without options the wheel is made from the sdist, so that the sdist is shown to hold all that building needs.
    outcome = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp_path / "dist", source],
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    (sdist,) = (tmp_path / "dist").glob("*.tar.gz")

    assert "-cp311-abi3-" in wheel.name  # one wheel for Python 3.11 and all later ones
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"syncer/native/_scan.abi3.so", "syncer/native/_scan.pyi"} <= names
    modules = {str(path.relative_to(source)) for path in (source / "syncer").rglob("*.py")}
    assert modules <= names
    assert "syncer/native/_scan.c" not in names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"syncer"}
    assert any(name.endswith("/licenses/LICENSE") for name in names)

    with tarfile.open(sdist) as archive:
        packed = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    wanted = {
        str(path.relative_to(source)) for path in source.rglob("*") if path.suffix in (".py", ".c", ".md", ".pyi")
    }
    assert wanted <= packed
    assert {"LICENSE", "scripts/syncer", "scripts/test", "scripts/setup.bash"} <= packed
