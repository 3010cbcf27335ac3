"""A real syncer mount whose process never answers a single request: whoever touches it hangs.

Run as a program: `python -m tests.support.hung_mount MOUNTPOINT DATA` mounts, prints "mounted", and waits for the end
of its standard input without unmounting anything.
"""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def hung_mount(mountpoint: Path, data: Path) -> Iterator["subprocess.Popen[str]"]:
    """Mount *data* on *mountpoint* so that it hangs; gone at the end, whatever became of the process."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.hung_mount", str(mountpoint), str(data)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout
        assert process.stdout.readline() == "mounted\n"
        yield process
    finally:
        process.kill()
        process.communicate()
        subprocess.run(["fusermount3", "-u", "-z", str(mountpoint)], capture_output=True, timeout=20, check=False)


def main() -> None:
    import pyfuse3

    from syncer.mounts import mount_source

    mountpoint, data = sys.argv[1:]
    options = {f"fsname={mount_source(Path(data))}", "subtype=syncer"}
    pyfuse3.init(pyfuse3.Operations(), mountpoint, options)
    print("mounted", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
