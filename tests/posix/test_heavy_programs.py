"""Programs that put a load on a file system and verify what they get back.

SYNCER_TEST_LONG=1 lets them run for longer and with far more than the budget. Needs git, fio, dbench and stress-ng, and
PostgreSQL in the long form.
"""

import contextlib
import csv
import hashlib
import json
import os
import random
import re
import subprocess
import sys
import zipfile
from base64 import urlsafe_b64encode
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from importlib.metadata import distribution
from pathlib import Path

import pytest

from tests.support import programs
from tests.support.long_form import LONG
from tests.support.mount import forget_pages

pytestmark = pytest.mark.slow

WITHIN_S = 900.0 if LONG else 120.0
MIB = 1 << 20


run = partial(programs.run, merged=True, within_s=WITHIN_S)
git = partial(programs.git, merged=True, within_s=WITHIN_S)


def forget_all_pages(place: Path) -> None:
    """Every file below *place* is read from the file system again, not from the kernel's memory."""
    for path in place.rglob("*"):
        if path.is_file() and not path.is_symlink():
            forget_pages(path)


# --- git -------------------------------------------------------------------------------------------------------------

GIT_FILES, GIT_FOLDERS, GIT_COMMITS = 5200, 180, 5


def history() -> Iterator[bytes]:
    """A stream for `git fast-import`: many files in nested folders, and some commits that change a part of them."""
    chance = random.Random(3)
    for commit in range(GIT_COMMITS):
        message = b"commit %d" % commit
        yield b"commit refs/heads/main\ncommitter A <a@example.com> %d +0000\n" % (1_000_000_000 + commit)
        yield b"data %d\n%s\n" % (len(message), message)
        for number in range(0, GIT_FILES, 1 if commit == 0 else 20):
            folder = number % GIT_FOLDERS
            content = b"%d in %d\n" % (number, commit) + chance.randbytes(chance.choice((20, 300, 2000))).hex().encode()
            mode = b"100755" if number % 50 == 7 else b"100644"
            yield b"M %s inline top/%d/%d/%d.txt\n" % (mode, folder % 12, folder, number)
            yield b"data %d\n%s\n" % (len(content), content)


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bare repository on an ordinary file system, which nobody changes."""
    place = tmp_path_factory.mktemp("git") / "origin.git"
    place.mkdir()
    git(place, "init", "--quiet", "--bare", "--initial-branch=main")
    subprocess.run(
        ["git", "fast-import", "--quiet"],
        input=b"".join(history()),
        cwd=place,
        env={**os.environ, **programs.GIT},
        timeout=WITHIN_S,
        check=True,
    )
    return place


def test_git_clones_thousands_of_files_and_collects_garbage(folder: Path, origin: Path) -> None:
    git(folder, "clone", "--quiet", "--no-local", origin, "one")
    one = folder / "one"
    assert len(git(one, "ls-files").splitlines()) == GIT_FILES
    assert git(one, "status", "--porcelain") == ""
    changed = sorted(one.glob("top/*/*/*7.txt"))
    for path in changed:
        path.write_text(f"{path.name}\n")
    assert len(changed) > GIT_FILES // 12
    assert len(git(one, "status", "--porcelain").splitlines()) == len(changed)
    git(one, "commit", "--quiet", "--all", "-m", "changed")  # as many loose objects
    git(one, "gc", "--quiet", "--prune=now")
    assert "count: 0\n" in git(one, "count-objects", "-v")
    git(folder, "clone", "--quiet", "one", "two")  # hard links to the pack
    assert any(path.stat().st_nlink == 2 for path in (folder / "two" / ".git" / "objects").rglob("*.pack"))
    forget_all_pages(folder)
    for repository in (one, folder / "two"):
        git(repository, "fsck", "--full", "--strict")
        (repository / ".git" / "index").unlink()
        git(repository, "reset", "--quiet")  # reads all files anew
        assert git(repository, "status", "--porcelain") == ""
        assert git(repository, "rev-parse", "HEAD~1") == git(origin, "rev-parse", "main")


# --- fio -------------------------------------------------------------------------------------------------------------

FIO_MODES = {
    "sequential": ["--rw=write", "--bs=64k", "--fallocate=posix"],
    "random": ["--rw=randwrite", "--bsrange=512-16k", "--bs_unaligned=0"],
    "mmap": ["--rw=randwrite", "--bs=4k", "--ioengine=mmap"],
    "mixed": ["--rw=randrw", "--bs=4k", "--fsync=500", "--numjobs=2"],
    "direct": ["--rw=randwrite", "--bs=16k", "--direct=1", "--ioengine=libaio", "--iodepth=8"],
}
FIO_SIZE_BYTES = 64 * MIB if LONG else 16 * MIB
"""Within the budget, or each random read would fetch a block. What is written in order is 1 GiB in the long form."""


def fio(folder: Path, *options: str) -> dict[str, int]:
    """Run one fio job below *folder*; how many bytes it has read and written. A wrong byte ends it with an error."""
    always = [
        "--name=x",
        f"--directory={folder}",
        f"--size={FIO_SIZE_BYTES}",
        "--output-format=json",
        "--verify_state_save=0",
    ]
    verify = ["--verify=crc32c", "--verify_fatal=1", "--end_fsync=1", "--group_reporting"]
    printed = run("fio", *always, *verify, *options)
    job = json.loads(printed[printed.index("{") :])["jobs"][0]
    assert job["error"] == 0, printed
    return {side: job[side]["io_bytes"] for side in ("read", "write")}


@pytest.mark.parametrize("mode", FIO_MODES)
def test_fio_reads_what_it_wrote(folder: Path, mode: str) -> None:
    size = 1024 * MIB if LONG and mode == "sequential" else FIO_SIZE_BYTES
    options = [*FIO_MODES[mode], f"--size={size}"]
    done = fio(folder, *options)
    written = done["write"]
    assert written >= size * 0.4 and done["read"] >= written
    forget_all_pages(folder)
    assert fio(folder, *options, "--verify_only")["read"] >= written
    forget_all_pages(folder)
    with open(max(folder.iterdir()), "r+b") as file:  # that wrong bytes would be found
        file.write(bytes(byte ^ 1 for byte in file.read(MIB)))
    with pytest.raises(AssertionError, match="crc32c"):
        fio(folder, *options, "--verify_only")


# --- dbench ----------------------------------------------------------------------------------------------------------

DBENCH_CLIENTS, DBENCH_S = (8, 60) if LONG else (4, 5)
DBENCH_LOAD = Path("/usr/share/dbench/client.txt")


def test_dbench_plays_a_file_servers_load(folder: Path) -> None:
    """It compares the outcome of every call with the recorded one, and ends with an error when they differ."""
    printed = run("dbench", "-D", folder, "-t", DBENCH_S, "-x", "-c", DBENCH_LOAD, DBENCH_CLIENTS)
    assert "ERROR" not in printed and re.search(r"^Throughput [1-9]", printed, re.MULTILINE), printed
    counts = {name: int(count) for name, count in re.findall(r"^ (\w+) +(\d+) +[\d.]+ +[\d.]+$", printed, re.MULTILINE)}
    for operation in ("NTCreateX", "Close", "Rename", "Unlink", "Qpathinfo", "Sfileinfo", "Find", "WriteX", "ReadX"):
        assert counts.get(operation, 0) > 10, printed
    assert list((folder / "clients").rglob("*.*")) == [], "it has not cleared away"


# --- stress-ng -------------------------------------------------------------------------------------------------------

STRESS_S, STRESS_WORKERS, STRESS_TIMES = (600, 2, 5) if LONG else (100, 1, 1)
STRESSORS: Mapping[str, tuple[int, Sequence[str]]] = {
    "access": (50, ()),
    "chdir": (1, ("--chdir-dirs", "64")),
    "chmod": (20, ()),
    "chown": (50, ()),
    "copy-file": (20, ()),
    "dentry": (128, ("--dentries", "64")),
    "dir": (128, ("--dir-dirs", "64")),
    "dirdeep": (100, ("--dirdeep-bytes", "4096", "--dirdeep-dirs", "2", "--dirdeep-files", "1")),
    "dirmany": (100, ()),
    "dnotify": (20, ()),
    "fallocate": (2, ("--fallocate-bytes", "1m")),
    "fcntl": (100, ()),
    "filename": (20, ()),
    "flock": (100, ()),
    "fstat": (50, ()),
    "getdent": (50, ()),
    "hdd": (100, ("--hdd-bytes", "4m", "--hdd-opts", "rd-rnd,wr-rnd,fsync")),
    "inotify": (2, ()),
    "iomix": (100, ("--iomix-bytes", "1m")),
    "lease": (50, ()),
    "locka": (100, ()),
    "lockf": (100, ()),
    "lockofd": (100, ()),
    "mknod": (100, ()),
    "open": (200, ()),
    "rename": (200, ()),
    "sync-file": (5, ("--sync-file-bytes", "1m")),
    "touch": (100, ()),
    "utime": (100, ()),
    "xattr": (1, ()),
}
"""How many rounds of each the short form plays, and how large they are. STRESS_S is a limit that is not reached."""
LONG_STRESSORS: Mapping[str, tuple[int, Sequence[str]]] = {
    "link": (1, ()),  # 8,192 links in each round
    "symlink": (1, ()),  # so many too
}
OTHER_STRESSORS = {
    "bind-mount": "mounts, and not here",
    "binderfs": "mounts a file system of its own",
    "chattr": "an ioctl, and those are not passed on: test_fallbacks.py",
    "dup": "has nothing to do with files",
    "eventfd": "has nothing to do with files",
    "fanotify": "for root alone, about all mounts of the machine",
    "fiemap": "an ioctl: says itself that it is not supported",
    "file-ioctl": "ioctls",
    "fpunch": "punches holes, which is not passed on, and does not end before its time",
    "fsize": "expects errors of fallocate(2), and gets none from its own replacement when its time is over",
    "handle": "opens files of /proc and /dev by their handles",
    "inode-flags": "ioctls; counts nothing on ext4 either",
    "io": "sync(2) of the whole machine",
    "ioprio": "has nothing to do with files",
    "procfs": "reads /proc",
    "verity": "an ioctl: says itself that it is not supported",
}
"""The rest of its class, and why it is not run."""


def test_every_stressor_of_files_is_run_or_named() -> None:
    """Later versions may know more."""
    said = run("stress-ng", "--class", "filesystem?").split("stressors:")[1].split()
    assert set(said) - STRESSORS.keys() - LONG_STRESSORS.keys() - OTHER_STRESSORS.keys() == set()


def test_stress_ng_finds_nothing_wrong(folder: Path, tmp_path: Path) -> None:
    """All of them at once."""
    stressors = {**STRESSORS, **(LONG_STRESSORS if LONG else {})}
    command: list[object] = ["stress-ng", "--temp-path", folder, "--verify", "--timeout", STRESS_S, "--oomable"]
    for name, (rounds, options) in stressors.items():
        command += [f"--{name}", STRESS_WORKERS, f"--{name}-ops", rounds * STRESS_TIMES, *options]
    printed = run(*command, "--metrics", "--yaml", tmp_path / "found")
    assert "successful run completed" in printed and " fail:" not in printed and "skipp" not in printed, printed
    counts = dict(re.findall(r"- stressor: (\S+)\n\s+bogo-ops: (\d+)", (tmp_path / "found").read_text()))
    assert counts.keys() == stressors.keys()
    assert [name for name, count in counts.items() if count == "0"] == []
    assert os.listdir(folder) == []


# --- pip -------------------------------------------------------------------------------------------------------------

INSTALLED: Sequence[str] = (
    *("msgspec", "zstandard", "trio", "attrs", "idna", "outcome"),
    *("sniffio", "sortedcontainers", "markdown-it-py", "mdurl"),
)
"""Pure and compiled packages that this test's own environment has; no network is asked."""

USES_THEM = """
import attrs, markdown_it, msgspec, os, sys, trio, zstandard

async def main():
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep, 0)
        return await trio.to_thread.run_sync(os.getpid)

assert trio.run(main) == os.getpid()
assert msgspec.msgpack.decode(msgspec.msgpack.encode([1, b"two"])) == [1, b"two"]
assert zstandard.decompress(zstandard.compress(b"abc" * 1000)) == b"abc" * 1000
for module in (attrs, markdown_it, msgspec, trio, zstandard):
    assert module.__file__.startswith(sys.prefix), module
"""


def sha256(data: bytes) -> str:
    """As RECORD has it."""
    return f"sha256={urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b'=').decode()}"


def make_wheel(name: str, place: Path) -> None:
    """The wheel that an installed distribution came from, but for its scripts, which pip makes itself."""
    found = distribution(name)
    files = [file for file in found.files or () if ".." not in file.parts and "__pycache__" not in file.parts]
    tags = re.findall(r"^Tag: (\S+)$", found.read_text("WHEEL") or "", re.MULTILINE)
    names = {"RECORD", "INSTALLER", "REQUESTED", "direct_url.json"}
    stem = f"{re.sub('[-_.]+', '_', found.name).lower()}-{found.version}"
    (record,) = (file for file in files if file.name == "RECORD")
    tag = "-".join(".".join(sorted(set(parts))) for parts in zip(*(tag.split("-") for tag in tags), strict=True))
    with zipfile.ZipFile(place / f"{stem}-{tag}.whl", "w") as wheel:
        rows = []
        for file in files:
            if file.parent != record.parent or file.name not in names:
                data = file.read_binary()
                wheel.writestr(str(file), data)
                rows.append(f'"{file}",{sha256(data)},{len(data)}\n')
        wheel.writestr(str(record), "".join(rows) + f"{record},,\n")


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("wheels")
    for name in INSTALLED:
        make_wheel(name, place)
    return place


def check_records(packages: Path) -> int:
    """Every installed file is what pip noted of it; how many."""
    count = 0
    for record in packages.glob("*.dist-info/RECORD"):
        for name, digest, size in csv.reader(record.read_text().splitlines()):
            if digest:
                data = (packages / name).read_bytes()
                assert (digest, int(size)) == (sha256(data), len(data)), name
                count += 1
    return count


def test_pip_installs_and_removes_what_runs(folder: Path, wheels: Path, tmp_path: Path) -> None:
    offline = {"PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_FIND_LINKS": str(wheels)}
    run(sys.executable, "-m", "venv", "--without-pip", folder / "venv")
    python = folder / "venv" / "bin" / "python"
    (packages,) = (folder / "venv").glob("lib/python*/site-packages")
    pip = [sys.executable, "-m", "pip", "--python", python]
    run(*pip, "install", "--compile", *INSTALLED, environment=offline)
    forget_all_pages(folder)
    assert check_records(packages) > 250
    assert "No broken requirements" in run(*pip, "check", environment=offline)
    run(python, "-c", USES_THEM, cwd=tmp_path)
    (tmp_path / "text").write_text("*loud*")
    assert run(folder / "venv" / "bin" / "markdown-it", tmp_path / "text") == "<p><em>loud</em></p>\n"
    run(*pip, "uninstall", "--yes", *INSTALLED, environment=offline)
    assert list(packages.iterdir()) == []


# --- PostgreSQL ------------------------------------------------------------------------------------------------------

POSTGRES_S = 60
POSTGRES_SETTINGS = {"listen_addresses": "", "shared_buffers": "16MB", "max_wal_size": "64MB", "min_wal_size": "32MB"}
BALANCES = """
SELECT (SELECT sum(delta) FROM pgbench_history), (SELECT sum(abalance) FROM pgbench_accounts),
       (SELECT sum(bbalance) FROM pgbench_branches), (SELECT sum(tbalance) FROM pgbench_tellers)
"""


class Postgres:
    """A server of its own, with its data and its socket in *folder*. It refuses to run as root: then as `postgres`."""

    def __init__(self, folder: Path) -> None:
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name))
        assert found, "no server programs in /usr/lib/postgresql"
        self.data = folder / "data"
        self._folder = folder
        self._programs = found[-1]
        self._user = []
        if os.geteuid() == 0:
            self._user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
        settings = {**POSTGRES_SETTINGS, "unix_socket_directories": folder}
        self._options = " ".join(f"-c {name}={value}" for name, value in settings.items())

    def run(self, program: str, *arguments: object) -> str:
        environment = {"HOME": str(self._folder), "PGHOST": str(self._folder), "PGUSER": "me"}
        return run(*self._user, self._programs / program, *arguments, cwd=self._folder, environment=environment)

    def control(self, *arguments: object) -> None:
        """The server must not hold our pipe: it writes to a file."""
        self.run("pg_ctl", "-D", self.data, "-l", self._folder / "log", "-w", "-o", self._options, *arguments)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Ends like a crash when the body fails."""
        self.control("start")
        try:
            yield
        except BaseException:
            self.control("stop", "-m", "immediate")
            raise

    def check(self) -> None:
        """Every index and table against each other, and the sums that every transaction keeps."""
        self.run("pg_amcheck", "--all", "--install-missing", "--heapallindexed", "--parent-check")
        balances = set(self.run("psql", "-At", "postgres", "-c", BALANCES).strip().split("|"))
        assert len(balances) == 1 and balances != {"0"} and balances != {""}


@pytest.mark.skipif(not LONG, reason="part of the long form: PostgreSQL is 250 MB to install")
def test_postgresql_keeps_its_books(folder: Path) -> None:
    server = Postgres(folder)
    server.run("initdb", "-D", server.data, "--data-checksums", "-U", "me", "-A", "trust", "-E", "UTF8", "--locale=C")
    with server.running():
        server.run("pgbench", "--initialize", "--quiet", "--scale=2", "--foreign-keys", "postgres")
        said = server.run("pgbench", "--client=4", "--jobs=2", f"--time={POSTGRES_S}", "postgres")
        assert "number of failed transactions: 0" in said
        server.check()
        server.control("stop", "-m", "immediate")
    forget_all_pages(folder)
    with server.running():  # recovers from its log
        server.check()
        server.control("stop", "-m", "fast")
    forget_all_pages(folder)
    said = server.run("pg_checksums", "--check", "-D", server.data)
    assert re.search(r"Bad checksums: +0\n", said) and not re.search(r"Blocks scanned: +0\n", said)
    log = (folder / "log").read_text()
    assert "automatic recovery in progress" in log
    assert not re.search(r" (PANIC|ERROR|WARNING): ", log), log
