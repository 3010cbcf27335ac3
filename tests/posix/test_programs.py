"""Whole programs at work, each with a check of its own. Needs git, gcc, make, tar, rsync and setfattr."""

import filecmp
import os
import random
import stat
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.support.posix import as_root
from tests.support.programs import git, run

pytestmark = pytest.mark.slow

WITHIN_S = 120.0
FILES, TREE_FILES = 300, 150
PAST_NS = 1_234_567_890_123_456_789
TEXT = "The quick brown fox jumps over the lazy dog.\n"


def make_tree(place: Path) -> None:
    """Files of all sizes and modes in nested directories, with links, attributes, times and odd names."""
    chance = random.Random(7)
    for number in range(TREE_FILES):
        folder = place / f"d{number % 7}" / f"e{number % 5}"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"file {number}.txt"
        path.write_bytes(chance.randbytes(chance.choice((0, 10, 1000, 9000, 65_536, 70_000))))
        path.chmod(chance.choice((0o644, 0o600, 0o755, 0o444)))
    (place / "large").write_bytes(chance.randbytes(2_500_000))
    with open(place / "sparse", "wb") as file:
        file.seek(3_000_000)
        file.write(b"end")
    os.link(place / "large", place / "d1" / "hard")
    (place / "soft").symlink_to("d2/nothing")
    (place / "empty").mkdir(mode=0o711)
    os.mkfifo(place / "fifo")
    (place / "new\nline é").touch()
    (Path(os.fsdecode(os.fsencode(place) + b"/\xff\xfe"))).touch()
    os.setxattr(place / "large", "user.note", b"\0\xff")
    os.setxattr(place / "d3", "user.directory", b"yes")
    for path in sorted(place.rglob("*"), reverse=True):
        os.utime(path, ns=(PAST_NS, PAST_NS + len(path.name)), follow_symlinks=False)
    os.utime(place, ns=(PAST_NS, PAST_NS))


def described(place: Path) -> dict[str, tuple[object, ...]]:
    """All that a copy must keep, by relative name. Bytes are read again."""
    found: dict[str, tuple[object, ...]] = {}
    groups: dict[int, str] = {}
    for path in sorted(place.rglob("*")):
        name = str(path.relative_to(place))
        status = path.lstat()
        content: object = None
        if stat.S_ISREG(status.st_mode):
            content = path.read_bytes()
        elif stat.S_ISLNK(status.st_mode):
            content = os.readlink(path)
        first = name if status.st_nlink == 1 or path.is_dir() else groups.setdefault(status.st_ino, name)
        names = os.listxattr(path, follow_symlinks=False)
        xattrs = {key: os.getxattr(path, key, follow_symlinks=False) for key in names}
        found[name] = (status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, content, first, xattrs)
    return found


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree on an ordinary file system, which nobody changes."""
    place = tmp_path_factory.mktemp("tree") / "tree"
    place.mkdir()
    make_tree(place)
    return place


# --- copies of trees -------------------------------------------------------------------------------------------------


def test_a_tree_made_here_is_the_one_made_elsewhere(folder: Path, tree: Path) -> None:
    make_tree(folder / "tree")
    assert described(folder / "tree") == described(tree)


def test_cp_copies_a_tree_there_within_and_back(folder: Path, tree: Path, tmp_path: Path) -> None:
    for source, target in [(tree, folder / "a"), (folder / "a", folder / "b"), (folder / "b", tmp_path / "back")]:
        run("cp", "-a", source, target)
        assert described(target) == described(tree)
    (folder / "a" / "fifo").unlink()  # diff would read it
    (folder / "b" / "fifo").unlink()
    run("diff", "-r", "--no-dereference", folder / "a", folder / "b")


@as_root
@pytest.mark.parametrize("options", [["-aHAX"], ["-aHX", "--inplace"]], ids=" ".join)
def test_rsync_leaves_nothing_to_do_the_second_time(
    folder: Path, tree: Path, tmp_path: Path, options: Sequence[str]
) -> None:
    command = ["rsync", *options, "--checksum", "--delete", "--itemize-changes"]
    for source, target in [(tree, folder / "a"), (folder / "a", tmp_path / "back")]:
        assert run(*command, f"{source}/", f"{target}/") != ""
        assert run(*command, f"{source}/", f"{target}/") == ""
        assert described(target) == described(tree)
    (folder / "a" / "large").write_bytes(b"changed")
    (folder / "a" / "extra").touch()
    changed = run(*command, f"{tree}/", f"{folder / 'a'}/")
    assert "large" in changed and "*deleting" in changed and "d1/e1" not in changed
    assert described(folder / "a") == described(tree)


@pytest.mark.parametrize("options", [["-z"], ["-S"]], ids=" ".join)
def test_tar_packs_compares_and_unpacks(folder: Path, tree: Path, options: Sequence[str]) -> None:
    keep = ["--xattrs", "--xattrs-include=user.*", "--format=posix"]
    run("tar", *keep, *options, "-C", tree, "-cf", folder / "a.tar", ".")
    (folder / "out").mkdir()
    run("tar", *keep, "-C", folder / "out", "-xpf", folder / "a.tar")
    run("tar", *keep, "-C", folder / "out", "-df", folder / "a.tar")
    assert described(folder / "out") == described(tree)
    run("tar", *keep, "-C", folder / "out", "-cf", folder / "b.tar", ".")
    run("tar", *keep, "-C", tree, "-df", folder / "b.tar")
    run("rm", "-r", folder / "out")
    assert sorted(os.listdir(folder)) == ["a.tar", "b.tar"]


def test_find_sees_the_same_tree(folder: Path, tree: Path) -> None:
    run("cp", "-a", tree, folder / "a")
    listing = ["!", "-type", "d", "-printf", r"%P %y %m %n %s %T@ %l\0"]
    found = [sorted(run("find", place, *listing).split("\0")) for place in (tree, folder / "a")]
    assert len(found[0]) > TREE_FILES and found[0] == found[1]
    named = run("find", folder / "a", "-name", "file 1?.txt", "-newermt", "2009-01-01", "!", "-newermt", "2009-03-01")
    assert len(named.splitlines()) == 10


# --- git and make ----------------------------------------------------------------------------------------------------


def test_git_commits_branches_clones_and_collects_garbage(folder: Path) -> None:
    origin = folder / "origin"
    origin.mkdir()
    git(origin, "init", "--quiet", "--initial-branch=main")
    for number in range(FILES):
        path = origin / f"d{number % 9}" / f"{number}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{number}\n" * (number * 7 % 400))
    for round_ in range(3):
        for number in range(round_, FILES, 10):
            (origin / f"d{number % 9}" / f"{number}.txt").write_text(f"round {round_}\n" * number)
        git(origin, "add", "--all")
        git(origin, "commit", "--quiet", "-m", f"round {round_}")
        assert git(origin, "status", "--porcelain") == ""
    git(origin, "checkout", "--quiet", "-b", "other", "HEAD~1")
    git(origin, "mv", "d1", "moved")
    git(origin, "commit", "--quiet", "-am", "moved")
    git(origin, "merge", "--quiet", "main", "-m", "merged")
    git(origin, "gc", "--quiet", "--prune=now")
    git(folder, "clone", "--quiet", "origin", "copy")
    git(folder, "clone", "--quiet", "--no-local", "origin", "packed")
    for repository in ("origin", "copy", "packed"):
        git(folder / repository, "fsck", "--full", "--strict")
        assert git(folder / repository, "status", "--porcelain") == ""
        assert git(folder / repository, "rev-parse", "HEAD") == git(origin, "rev-parse", "HEAD")
        run("diff", "-r", "--exclude=.git", origin, folder / repository)
    assert len(git(origin, "ls-files").splitlines()) == FILES


MAKEFILE = """
parts = $(patsubst %.c,%.o,$(wildcard part*.c))
program: main.o $(parts)
\t$(CC) -o $@ $^
%.o: %.c all.h
\t$(CC) -O0 -c -o $@ $<
"""


def test_make_builds_in_parallel_and_only_what_is_old(folder: Path) -> None:
    count = 10
    declarations = "".join(f"int part{number}(void);\n" for number in range(count))
    (folder / "all.h").write_text(declarations)
    (folder / "Makefile").write_text(MAKEFILE)
    calls = " + ".join(f"part{number}()" for number in range(count))
    (folder / "main.c").write_text(
        f'#include <stdio.h>\n#include "all.h"\nint main(void) {{ printf("%d\\n", {calls}); return 0; }}\n'
    )
    for number in range(count):
        (folder / f"part{number}.c").write_text(f'#include "all.h"\nint part{number}(void) {{ return {number}; }}\n')
    run("make", "-j4", cwd=folder)
    assert run(folder / "program") == f"{sum(range(count))}\n"
    assert "up to date" in run("make", cwd=folder)
    (folder / "part3.c").write_text('#include "all.h"\nint part3(void) { return 1003; }\n')
    built = run("make", "-j4", cwd=folder).splitlines()
    assert len(built) == 2 and "part3.c" in built[0]
    assert run(folder / "program") == f"{sum(range(count)) + 1000}\n"


# --- archives, editors, environments ---------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_zip_archives_grow_and_unpack(folder: Path, tree: Path, method: int) -> None:
    files = [path for path in sorted(tree.rglob("*.txt")) if path.is_file()]
    with zipfile.ZipFile(folder / "a.zip", "w", method) as archive:
        for path in files[:100]:
            archive.write(path, path.relative_to(tree))
    with zipfile.ZipFile(folder / "a.zip", "a", method) as archive:
        for path in files[100:]:
            archive.write(path, path.relative_to(tree))
        assert archive.testzip() is None
        archive.extractall(folder / "out")
    names = [str(path.relative_to(tree)) for path in files]
    assert filecmp.cmpfiles(tree, folder / "out", names, shallow=False) == (names, [], [])


def save_beside_and_rename(path: Path, data: bytes) -> None:
    with open(f"{path}.new", "wb") as file:
        file.write(data)
        file.flush()
        os.fchmod(file.fileno(), stat.S_IMODE(path.stat().st_mode))
        os.fsync(file.fileno())
    os.rename(f"{path}.new", path)
    directory = os.open(path.parent, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)


def save_after_moving_away(path: Path, data: bytes) -> None:
    mode = stat.S_IMODE(path.stat().st_mode)
    os.rename(path, f"{path}~")
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    os.write(file, data)
    os.fchmod(file, mode)
    os.fsync(file)
    os.close(file)
    os.unlink(f"{path}~")


def save_over_a_linked_backup(path: Path, data: bytes) -> None:
    os.link(path, f"{path}~")
    save_beside_and_rename(path, data)
    os.unlink(f"{path}~")


def save_in_place(path: Path, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.truncate(0)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@pytest.mark.parametrize(
    "save", [save_beside_and_rename, save_after_moving_away, save_over_a_linked_backup, save_in_place]
)
def test_the_ways_editors_save(folder: Path, save: Callable[[Path, bytes], None]) -> None:
    path = folder / "document"
    path.write_text(TEXT)
    path.chmod(0o640)
    for number in range(1, 40):
        data = f"{TEXT}{number}\n".encode() * (number**2)
        with open(path, "rb") as reader:
            before = path.read_bytes()
            save(path, data)
            assert path.read_bytes() == data
            assert reader.read() == (data if save is save_in_place else before)
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert os.listdir(folder) == ["document"]


def test_sed_and_sort_write_over_what_they_read(folder: Path) -> None:
    lines = [f"{number:06} {TEXT}" for number in range(5000)]
    random.Random(1).shuffle(lines)
    (folder / "x").write_text("".join(lines))
    run("sed", "-i.bak", "s/quick/slow/", folder / "x")
    assert (folder / "x.bak").read_text() == "".join(lines)
    assert (folder / "x").read_text() == "".join(lines).replace("quick", "slow")
    run("sort", "-S", "100k", "-T", folder, "-o", folder / "x", folder / "x")  # merges temporary files here
    assert (folder / "x").read_text() == "".join(sorted(lines)).replace("quick", "slow")
    assert sorted(os.listdir(folder)) == ["x", "x.bak"]


def test_a_python_environment_works(folder: Path) -> None:
    compiles = {"PYTHONDONTWRITEBYTECODE": ""}
    run(sys.executable, "-m", "venv", "--copies", "--without-pip", folder / "venv")
    python = folder / "venv" / "bin" / "python"
    package = next((folder / "venv").glob("lib/python*/site-packages")) / "mine"
    package.mkdir()
    (package / "__init__.py").write_text("from mine.inner import answer\n")
    (package / "inner.py").write_text("answer = 42\n")
    code = "import mine, sys; print(mine.answer, sys.prefix)"
    for _ in range(2):  # compiles, then runs what it has compiled
        assert run(python, "-c", code, environment=compiles).split() == ["42", str(folder / "venv")]
    compiled = {path: path.stat().st_mtime_ns for path in package.glob("__pycache__/*.pyc")}
    assert len(compiled) == 2
    (package / "inner.py").write_text("answer = 4242\n")
    assert run(python, "-c", code, environment=compiles).split() == ["4242", str(folder / "venv")]
    changed = [path.name.split(".")[0] for path, time_ns in compiled.items() if path.stat().st_mtime_ns != time_ns]
    assert changed == ["inner"]
