"""What a reader has to know about a run to believe its figures: the machine, the versions, the settings."""

import datetime
import os
import platform
import subprocess
import tempfile
from pathlib import Path

from scripts.benchmark.settings import Settings

CHECKOUT = Path(__file__).parents[2]


def conditions(settings: Settings) -> dict[str, str]:
    """Name and value of each condition, in the order in which they are shown."""
    place = settings.parent or Path(tempfile.gettempdir())
    found = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _said("git", "-C", str(CHECKOUT), "describe", "--always", "--dirty"),
        "machine": f"{_processor()}, {os.cpu_count()} cores, {_memory_gib():.0f} GiB",
        "system": f"Linux {platform.release()}, Python {platform.python_version()}",
        "disk": _said("findmnt", "--noheadings", "--output", "FSTYPE", "--target", str(place)),
        "load when it began": f"{os.getloadavg()[0]:.2f}",
        "sizes": f"{settings.sizes.name}, {settings.passes} passes, a cell ends after {settings.cap_s:g} s",
    }
    for system in settings.systems:
        if version := system.version():
            found[system.title] = version
    return {name: value for name, value in found.items() if value}


def _said(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
