"""`scripts/syncer` and `scripts/test` in a checkout of their own: what they notice, install, and say.

The scripts are real. So that nothing is downloaded, PATH holds stand-ins for Python and the compiler, which write down
how they were called.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
TOOLS = (
    *("bash", "cat", "chmod", "cp", "dirname", "env", "flock", "mkdir", "readlink"),
    *("realpath", "rm", "sed", "sha256sum", "sort", "touch", "true"),
)

TESTED = ("sshd", "ssh", "rsync", "setfattr", "git", "gcc", "make", "dbench", "fio", "stress-ng")
"""The programs that `scripts/test` looks for, and PostgreSQL's for the long form."""

SYNCER = """#!/bin/bash
echo "syncer ran in $PWD with $*"
exit 7
"""

SUDO = """#!/bin/bash
[[ $1 == -n ]] && shift
exec "$@"
"""

APT_GET = """#!/bin/bash
echo "apt-get $*" >> "{log}"
[[ "$*" == "{succeeds}" ]] && cp "{path}/gcc" "{path}/fusermount3"
"""

APT_GET_POSTGRESQL = """#!/bin/bash
echo "apt-get $*" >> "{log}"
printf '#!/bin/bash\\necho "15 main 5432 online postgres"\\n' > "{path}/pg_lsclusters"
printf '#!/bin/bash\\necho "pg_ctlcluster $*" >> "{log}"\\nexit 2\\n' > "{path}/pg_ctlcluster"
chmod +x "{path}"/pg_*
"""

PYTHON = """#!/bin/bash
echo "$*${{SYNCER_TEST_LONG:+ (long)}}" >> "{log}"
case "$*" in
    *version_info*) exit {old} ;;
    "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && cp "{syncer}" "$3/bin/syncer" ;;
    *"pip --version"*) [[ $0 == */bin/python ]] ;;
    *"pip install"*) touch "{checkout}/syncer/native/_scan.abi3.so" && exit {pip} ;;
esac
"""


class Machine:
    """A checkout and a PATH with nothing but what the scripts need."""

    def __init__(self, folder: Path) -> None:
        self.checkout = folder / "checkout"
        self.path = folder / "path"
        self.log = folder / "log"
        self.syncer = folder / "syncer"
        shutil.copytree(ROOT / "scripts", self.checkout / "scripts")
        (self.checkout / "syncer" / "native").mkdir(parents=True)
        for name in ("pyproject.toml", "setup.py", "syncer/native/_scan.c"):
            shutil.copy(ROOT / name, self.checkout / name)
        self.path.mkdir()
        for tool in TOOLS:
            found = shutil.which(tool)
            assert found, tool
            (self.path / tool).symlink_to(found)
        for name in ("gcc", "pkg-config", "fusermount3"):
            self.command(self.path / name, "#!/bin/bash\n")
        self.command(self.path / "sudo", SUDO)
        self.command(self.syncer, SYNCER)
        self.apt_get()
        self.python()

    def command(self, path: Path, text: str) -> None:
        path.write_text(text)
        path.chmod(0o755)

    def python(self, *, old: int = 0, pip: int = 0) -> None:
        """Python 3.11 or newer on PATH; *old* and *pip* are exit codes of asking its version and of installing."""
        text = PYTHON.format(log=self.log, old=old, pip=pip, syncer=self.syncer, checkout=self.checkout)
        self.command(self.path / "python3", text)

    def apt_get(self, *, succeeds: str = "") -> None:
        """The one call of apt-get that brings fusermount3; all others fail."""
        self.command(self.path / "apt-get", APT_GET.format(log=self.log, path=self.path, succeeds=succeeds))

    def run(self, *arguments: str, script: str = "syncer") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.checkout / "scripts" / script, *arguments],
            # No folder of the system: what is not in `path` is not there.
            env={"PATH": str(self.path), "HOME": "/nonexistent"},
            cwd=self.path,
            capture_output=True,
            text=True,
            check=False,
        )

    def calls(self) -> list[str]:
        """How Python was called since the last time this was asked."""
        calls = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.write_text("")
        return calls

    def installs(self) -> list[str]:
        return [call for call in self.calls() if "pip install" in call]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_first_run_installs_and_second_starts_no_python(machine: Machine) -> None:
    first = machine.run("data", "mnt")
    assert first.returncode == 7
    assert first.stdout == f"syncer ran in {machine.path} with data mnt\n"
    assert first.stderr.startswith("syncer: installing syncer into ") and first.stderr.count("\n") == 1
    installs = machine.installs()
    assert len(installs) == 1 and installs[0].endswith(f"--editable {machine.checkout}")

    second = machine.run("data", "mnt")
    assert (second.returncode, second.stdout, second.stderr) == (7, first.stdout, "")
    assert machine.calls() == []


@pytest.mark.parametrize("name", ["pyproject.toml", "setup.py", "syncer/native/_scan.c"])
def test_a_change_to_what_is_built_installs_again(machine: Machine, name: str) -> None:
    machine.run()
    machine.calls()
    before = (machine.checkout / name).stat()
    with (machine.checkout / name).open("a") as file:
        file.write("\n")
    os.utime(machine.checkout / name, ns=(before.st_atime_ns, before.st_mtime_ns))  # the content counts, not the time
    assert "installing" in machine.run().stderr
    assert len(machine.installs()) == 1
    assert machine.run().stderr == ""


def test_a_missing_extension_is_built_again(machine: Machine) -> None:
    machine.run()
    (machine.checkout / "syncer/native/_scan.abi3.so").unlink()
    machine.calls()
    assert machine.run().returncode == 7
    assert len(machine.installs()) == 1


def test_the_environment_may_be_elsewhere(machine: Machine, tmp_path: Path) -> None:
    elsewhere = tmp_path / "a folder" / "venv"
    outcome = subprocess.run(
        [machine.checkout / "scripts" / "syncer"],
        env={"PATH": str(machine.path), "SYNCER_VENV": str(elsewhere)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome.returncode == 7
    assert (elsewhere / "bin" / "syncer").exists()
    assert not (machine.checkout / ".venv").exists()


def test_a_failed_installation_is_tried_again(machine: Machine) -> None:
    machine.python(pip=1)
    failed = machine.run()
    assert failed.returncode == 1 and failed.stdout == ""
    assert failed.stderr.splitlines()[-1] == "syncer: installing failed; the lines above say why"
    shutil.rmtree(machine.checkout / ".venv")
    machine.python()
    assert machine.run().returncode == 7


def test_no_new_python_is_one_line(machine: Machine) -> None:
    machine.python(old=1)
    outcome = machine.run()
    assert outcome.returncode == 1
    assert outcome.stderr == "syncer: Python 3.11 or newer is needed, and there is none on PATH\n"


def test_missing_system_packages_are_installed(machine: Machine) -> None:
    (machine.path / "fusermount3").unlink()
    install = "install -qq -y --no-install-recommends fuse3"
    machine.apt_get(succeeds=install)
    outcome = machine.run()
    assert outcome.returncode == 7
    assert outcome.stderr.startswith("syncer: installing system packages: fuse3\nsyncer: installing syncer")
    assert [call for call in machine.calls() if call.startswith("apt-get")] == [f"apt-get {install}"]


def test_system_packages_that_cannot_be_installed_end_it_in_one_line(machine: Machine) -> None:
    """Without success the package lists are fetched and it is tried again, once."""
    (machine.path / "fusermount3").unlink()
    (machine.path / "gcc").unlink()
    outcome = machine.run()
    assert outcome.returncode == 1
    assert outcome.stderr.splitlines()[-1] == "syncer: installing system packages failed; the lines above say why"
    install = "apt-get install -qq -y --no-install-recommends fuse3 gcc"
    calls = machine.calls()
    assert [call for call in calls if call.startswith("apt-get")] == [install, "apt-get update -qq", install]
    assert not any("pip install" in call for call in calls)


def test_a_failed_check_fails_the_run_although_the_tests_pass(machine: Machine) -> None:
    for name in (*TESTED, "pg_ctlcluster"):
        machine.command(machine.path / name, "#!/bin/bash\n")
    machine.run(script="test")
    assert [call.split()[-1] for call in machine.installs()] == [f"{machine.checkout}[test]"]
    assert machine.run("--quick", "--long", "-k", "a b", script="test").returncode == 0
    calls = machine.calls()
    assert [call.split()[1] for call in calls[:3]] == ["ruff", "ruff", "mypy"]
    assert "importlinter" in calls[3]
    workers = "-n logical --maxprocesses 2 --dist loadscope"
    assert calls[4] == f"-m pytest {workers} -m not slow -k a b (long)"

    stand_in = (machine.path / "python3").read_text().replace("esac", "    *mypy*) exit 1 ;;\nesac")
    machine.command(machine.checkout / ".venv/bin/python", stand_in)
    outcome = machine.run(script="test")
    assert outcome.returncode == 1
    assert outcome.stderr == "test: failed: mypy\n"
    assert machine.calls()[-1] == f"-m pytest {workers}"

    machine.command(machine.checkout / ".venv/bin/python", stand_in.replace("*mypy*) exit 1", "*pytest*) exit 5"))
    assert machine.run(script="test").returncode == 5


@pytest.mark.parametrize("arguments", [["--long"], ["-x", "--long", "-k", "a"]], ids=" ".join)
def test_the_long_form_installs_postgresql_and_stops_the_server_that_comes_with_it(
    machine: Machine, arguments: list[str]
) -> None:
    for name in TESTED:
        machine.command(machine.path / name, "#!/bin/bash\n")
    machine.run(script="test")
    assert not any("apt-get" in call for call in machine.calls())
    machine.command(machine.path / "apt-get", APT_GET_POSTGRESQL.format(log=machine.log, path=machine.path))
    assert machine.run(*arguments, script="test").returncode == 0
    calls = machine.calls()
    assert calls.count("apt-get install -qq -y --no-install-recommends postgresql") == 1
    assert calls.count("pg_ctlcluster 15 main stop") == 1
    assert machine.run(*arguments, script="test").returncode == 0
    assert not any(call.startswith(("apt-get", "pg_ctlcluster")) for call in machine.calls())
