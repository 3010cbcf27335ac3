"""Bad input: one line that names the cause and the remedy, an exit code of its own, nothing created or changed."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from syncer import config
from syncer.config import Config
from syncer.datadir import DataDirectory
from tests.support.command import environment, syncer
from tests.support.hung_mount import hung_mount
from tests.support.mounted import cleared
from tests.support.picture import picture

USAGE, DATA, IN_USE, MOUNTPOINT, FUSE, REPOSITORY, NOT_MOUNTED, CONFIG = 2, 3, 4, 5, 6, 7, 8, 9
ROOT = os.geteuid() == 0


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A folder with an empty `mnt`, a used `data` of the remote `place/blobs`, and things that stand in the way."""
    (tmp_path / "mnt").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "photo.jpg").write_text("mine")
    (tmp_path / "file").write_text("mine")
    with DataDirectory.open(tmp_path / "data") as directory:
        directory.database.write_bytes(b"")
        config.save(directory.config, Config(remote=str(tmp_path / "blobs"), budget_bytes=100_000_000))
    with cleared(tmp_path / "mnt"):  # should one of them not be refused
        yield tmp_path


def refused(place: Path, *arguments: object, extra: dict[str, str] | None = None) -> tuple[int, str]:
    """Run a command that must be refused; checks the form and that nothing changed, returns exit code and line."""
    before = picture(place)
    outcome = syncer(*arguments, cwd=place, extra=extra)
    assert picture(place) == before
    assert outcome.stdout == ""
    assert outcome.stderr.count("\n") == 1, outcome.stderr
    assert outcome.stderr.startswith("syncer: ")
    assert "; " in outcome.stderr, "no remedy"
    return outcome.returncode, outcome.stderr


CASES = [
    # arguments after the working directory became `place`; exit code; the cause; the remedy
    (["new", "gopher://nas/blobs", "mnt", "100"], USAGE, "gopher", ""),
    (["new", "/blobs", "mnt", "63"], USAGE, "63 MB is too small", "at least 64"),
    (["new", "/blobs", "mnt", "-5"], USAGE, "", ""),
    (["new", "/blobs", "mnt", "1e3"], USAGE, "whole number of megabytes, not 1e3", "1000"),
    (["new", "/blobs", "mnt", "٣٠٠"], USAGE, "whole number", "1000"),
    (["new", "/blobs", "mnt"], USAGE, "3 arguments", "DATA REMOTE MOUNTPOINT MB"),
    (["statsu"], USAGE, "no command statsu", "--help"),
    (["new", "/blobs", "mnt", "100", "--bogus"], USAGE, "--bogus", "syncer mount --help"),
    (["data", "mnt", "-o", "noatime,loud"], USAGE, "unknown mount option loud", "noatime"),
    (["data", "mnt", "--log-level", "loud"], USAGE, "loud", "--help"),
    (["new", "mnt"], DATA, "does not exist", "REMOTE and MB"),
    (["mnt", "full"], DATA, "no config.toml", "REMOTE and MB"),
    (["no/new", "/blobs", "mnt", "100"], DATA, "no is not a folder", "mkdir -p"),
    (["full", "/blobs", "mnt", "100"], DATA, "not empty and not a syncer directory", "new or an empty folder"),
    (["file", "/blobs", "mnt", "100"], DATA, "not a folder", "name a folder"),
    (["new", "/blobs", "no", "100"], MOUNTPOINT, "does not exist", "mkdir -p"),
    (["new", "/blobs", "full", "100"], MOUNTPOINT, "not empty", "empty folder"),
    (["new", "/blobs", "file", "100"], MOUNTPOINT, "not a folder", "empty folder"),
    (["new", "/blobs", "/proc", "100"], MOUNTPOINT, "already mounted", "umount /proc"),
    (["mnt/new", "/blobs", "mnt", "100"], MOUNTPOINT, "inside each other", "apart"),
    (["mnt", "/blobs", "mnt", "100"], MOUNTPOINT, "inside each other", "apart"),
    (["new", "./mnt/blobs", "mnt", "100"], USAGE, "the mountpoint", "apart"),
    (["new", "../../", "mnt", "100"], USAGE, "the remote folder", "apart"),
    (["new", "./new/blobs", "mnt", "100"], USAGE, "DATA", "apart"),
    (["data", "/elsewhere", "mnt", "100"], REPOSITORY, "belongs to", "config.toml if the repository has moved"),
    (["data", "mnt", "--config", "no.toml"], CONFIG, "no.toml does not exist", ""),
    (["data", "mnt", "--config", "file"], CONFIG, "is not TOML", "correct"),
    (["umount", "data"], NOT_MOUNTED, "is not mounted", "mount it"),
    (["umount", "full"], NOT_MOUNTED, "neither DATA nor inside a mount", "name DATA"),
    (["status", "no"], DATA, "does not exist", "name DATA"),
    (["status", "mnt"], NOT_MOUNTED, "neither DATA nor inside a mount", "name DATA"),
    (["flush", "data", "--timeout", "0"], USAGE, "above 0", "--help"),
    (["flush", "data", "--timeout", "nan"], USAGE, "above 0", "--help"),
    (["snapshot", "data", "--timeout", "0"], USAGE, "above 0", "--help"),
    (["snapshot", "data", "--timeout", "9", "--delete", "latest"], USAGE, "do not go together", "leave --timeout out"),
    (["data", "mnt", "--read-only", "--take-over"], USAGE, "--read-only forbids it", "give one of them"),
    (["data", "mnt", "-o", "noatime,ro", "--take-over"], USAGE, "--read-only forbids it", "give one of them"),
    (["prune", "data", "--max-repack", "1MB"], USAGE, "give a whole number of bytes", "--help"),
    (["prune", "data", "--max-repack", "-1"], USAGE, "give a whole number of bytes", "--help"),
    (["prune", "data", "--forget-follower", ""], USAGE, "an empty name is no machine", "unset variable"),
    (["check", "--read-data", "101", "data"], USAGE, "above 0, up to 100", "--help"),
]


@pytest.mark.parametrize(("arguments", "code", "cause", "remedy"), CASES, ids=lambda value: str(value)[:40])
def test_bad_input_is_refused(place: Path, arguments: list[str], code: int, cause: str, remedy: str) -> None:
    got, line = refused(place, *arguments)
    assert got == code, line
    assert cause in line
    assert remedy in line.partition("; ")[2]


@pytest.mark.parametrize("remote", ["rsync://127.0.0.1:1/module", "ssh://127.0.0.1:1/blobs"])
def test_a_remote_that_refuses_connections_is_refused_soon(place: Path, remote: str) -> None:
    began = time.monotonic()
    code, line = refused(place, "new", remote, "mnt", "100")
    assert time.monotonic() - began < 20, "a minute is what a remote gets that does not answer"
    assert (code, "no server takes connections there; see whether it runs, and on which port" in line) == (23, True), (
        line
    )
    assert "127.0.0.1" in line and "Errno" not in line


def test_it_is_refused_in_the_background_too(place: Path) -> None:
    assert refused(place, "--background", "new", "/blobs", "full", "100")[0] == MOUNTPOINT
    assert refused(place, "mount", "data", "/elsewhere", "mnt", "100", "--background")[0] == REPOSITORY


def test_a_mistake_in_the_settings_is_refused(place: Path) -> None:
    with open(place / "data" / "config.toml", "a") as file:
        file.write("bugdet_bytes = 3\n")
    for command in (["data", "mnt"], ["status", "data"], ["flush", "data"]):
        code, line = refused(place, *command)
        assert code == CONFIG
        assert "unknown key 'bugdet_bytes'; did you mean budget_bytes?" in line


def test_data_in_use_names_the_process(place: Path) -> None:
    with DataDirectory.open(place / "data"):
        for command in (["data", "mnt"], ["umount", "data"], ["flush", "data"]):
            code, line = refused(place, *command)
            assert (code, f"in use by process {os.getpid()}" in line) == (IN_USE, True), line


def test_a_taken_mountpoint_is_refused_without_touching_it(place: Path) -> None:
    with hung_mount(place / "mnt", place / "data"):
        (place / "link").symlink_to("mnt")
        for mountpoint in ("mnt", "link"):
            outcome = syncer("new", "/blobs", mountpoint, 100, cwd=place)
            assert outcome.returncode == MOUNTPOINT
            assert "still mounted by a syncer that has died; `syncer umount" in outcome.stderr
        with DataDirectory.open(place / "data"):
            outcome = syncer("new", "/blobs", "mnt", 100, cwd=place)
            assert outcome.returncode == MOUNTPOINT
            assert f"already mounted, from {place}/data; `syncer umount" in outcome.stderr
        assert syncer("new", "/blobs", "mnt/sub", 100, cwd=place).returncode == MOUNTPOINT
        assert syncer("mnt/new", "/blobs", "full", 100, cwd=place).returncode == DATA
        assert not (place / "new").exists()


@pytest.mark.parametrize(
    "words",
    [
        *(["status"], ["flush"], ["check"], ["snapshot"], ["snapshots"], ["prune", "--dry-run"], ["umount"]),
        *(["recover"], ["diff", "latest", "--data"], ["restore", "latest", "/", "--data"], ["snapshots", "--data"]),
    ],
)
def test_no_command_looks_into_a_mount_that_hangs(place: Path, words: list[str]) -> None:
    with hung_mount(place / "mnt", place / "data"):
        outcome = syncer(*words, "mnt/photos", cwd=place, timeout_s=20)
        assert outcome.stderr.startswith("syncer: ") or outcome.stdout, outcome


@pytest.mark.parametrize(
    "words",
    [
        ["status", ""],
        ["", "/blobs", "mnt", "100"],
        ["data", ""],
        ["restore", "latest", "", "--data", "data"],
        ["restore", "latest", "photos", "--to", "", "--data", "data"],
        ["diff", "latest", "", "--data", "data"],
        ["diff", "latest", "now", "", "--data", "data"],
        ["snapshots", "", "--remote", "/blobs"],
    ],
)
def test_an_empty_path_is_refused(place: Path, words: list[str]) -> None:
    """Not taken for the working directory: it is what an unset variable of a script leaves."""
    code, line = refused(place, *words)
    assert (code, "empty name" in line) == (USAGE, True), line


def test_a_dead_mount_is_cleared_away(place: Path) -> None:
    with hung_mount(place / "mnt", place / "data") as process:
        process.kill()
        process.wait()
        outcome = syncer("umount", "mnt", cwd=place)
        assert (outcome.returncode, outcome.stderr) == (0, "")
        assert "had died" in outcome.stdout
        assert list((place / "mnt").iterdir()) == []  # a dead mount would answer ENOTCONN


def test_no_fusermount(place: Path) -> None:
    code, line = refused(place, "data", "mnt", extra={"PATH": str(place)})
    assert (code, "no fusermount3; install" in line) == (FUSE, True), line


@pytest.mark.skipif(not ROOT, reason="only root may have a /dev of its own")
@pytest.mark.parametrize(
    ("preparation", "message"),
    [
        ("mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3", "there is no /dev/fuse; load the module"),
        (
            "mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3 && mknod /dev/fuse c 240 99",
            "/dev/fuse cannot be opened: ",
        ),
    ],
)
def test_no_fuse_device(place: Path, preparation: str, message: str) -> None:
    before = picture(place)
    shell = f'{preparation} && exec "$@"'
    command = ["unshare", "-m", "sh", "-c", shell, "sh", sys.executable, "-m", "syncer.cli"]
    outcome = subprocess.run(
        [*command, place / "data", place / "mnt"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment(),
    )
    assert outcome.returncode == FUSE, outcome.stderr
    assert message in outcome.stderr
    assert picture(place) == before


@pytest.mark.skipif(not ROOT, reason="needs root to become somebody who may not write")
def test_a_user_who_may_not_write(place: Path) -> None:
    os.chmod(place, 0o755)
    above = Path(tempfile.gettempdir())
    for folder in (place, *place.parents):
        if folder.is_relative_to(above) and folder != above:
            os.chmod(folder, os.stat(folder).st_mode | 0o055)
    # Modules first: where they are installed may be closed to that user.
    code = (
        "import os, sys, tomllib\n"
        "from syncer.cli import background, failure, logfile, main, mount, preflight\n"
        "import syncer.backends.open\n"
        "os.setuid(65534)\n"
        "main.main(sys.argv[1:])\n"
    )

    def as_nobody(*arguments: object) -> "subprocess.CompletedProcess[str]":
        before = picture(place)
        command = [sys.executable, "-c", code, *map(str, arguments)]
        outcome = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment())
        assert picture(place) == before
        assert outcome.stderr.count("\n") == 1, outcome.stderr
        return outcome

    outcome = as_nobody(place / "new", "/blobs", place / "mnt", 100)
    assert (outcome.returncode, "is not writable" in outcome.stderr) == (DATA, True), outcome.stderr
    outcome = as_nobody(place / "data", place / "mnt")
    assert (outcome.returncode, "Permission denied" in outcome.stderr) == (DATA, True), outcome.stderr


def test_nothing_in_a_message_can_upset_a_terminal(place: Path) -> None:
    _, line = refused(place, "status", b"no\xff\x1b[31m".decode("utf-8", "surrogateescape"))
    assert "no\\xff\\x1b[31m does not exist" in line
