"""A collection of files as people have them, built on a plain folder, and the list of all that must survive a journey.

Real documentation and Python sources, generated media files, and a folder of everything that is easy to lose: links,
holes, odd names, attributes, special files, old and far times.
"""

import hashlib
import os
import random
import shutil
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

MEGABYTE = 1_000_000
MEDIA_MIN_BYTES = 2 * MEGABYTE
MEDIA_MAX_BYTES = 40 * MEGABYTE
SOURCES = (Path("/usr/share/doc"), *sorted(Path("/usr/lib").glob("python3*")))
READ_BYTES = 1 << 20
SAMPLES = 16


@dataclass(frozen=True, slots=True)
class Entry:
    """What `manifest` notes of one file; times in nanoseconds. *content* is the SHA-256, or a link's target."""

    kind: str
    mode: int
    owner: int
    group: int
    mtime_ns: int
    links: int
    size: int
    device: int
    attributes: tuple[tuple[str, bytes], ...]
    content: bytes


Manifest = dict[bytes, Entry]


def manifest(folder: Path | bytes, *, large_bytes: int | None = None, crowd: int | None = None) -> Manifest:
    """Everything below *folder* and itself (as b"."), by relative path.

    Of the bytes of a file of more than *large_bytes* only some are read. Of a directory with more than *crowd* names
    about so many are looked at, always the same.
    """
    top = os.fsencode(folder)
    result = {b".": entry(top)}
    todo = [b""]
    while todo:
        here = todo.pop()
        names = sorted(os.listdir(os.path.join(top, here)))
        for name in names[:: -(-len(names) // crowd)] if crowd and names else names:
            path = os.path.join(here, name)
            noted = result[path] = entry(os.path.join(top, path), large_bytes=large_bytes)
            if noted.kind == "directory":
                todo.append(path)
    return result


def entry(path: bytes, *, large_bytes: int | None = None) -> Entry:
    """Note one file without following it."""
    found = os.lstat(path)
    content = b""
    if stat.S_ISREG(found.st_mode):
        large = large_bytes is not None and found.st_size > large_bytes
        content = sample(path, found.st_size) if large else digest(path)
    elif stat.S_ISLNK(found.st_mode):
        content = os.readlink(path)
    directory = stat.S_ISDIR(found.st_mode)
    return Entry(
        kind="directory" if directory else stat.filemode(found.st_mode)[0],
        mode=stat.S_IMODE(found.st_mode),
        owner=found.st_uid,
        group=found.st_gid,
        mtime_ns=found.st_mtime_ns,
        links=found.st_nlink,
        size=0 if directory else found.st_size,
        device=found.st_rdev,
        attributes=tuple(
            (name, os.getxattr(path, name, follow_symlinks=False))
            for name in sorted(os.listxattr(path, follow_symlinks=False))
        ),
        content=content,
    )


def digest(path: Path | bytes) -> bytes:
    """SHA-256 of a file, read from its beginning to its end, and not from what the kernel has cached of it."""
    hasher = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while part := file.read(READ_BYTES):
            hasher.update(part)
    return hasher.digest()


def sample(path: Path | bytes, size: int) -> bytes:
    """SHA-256 of pieces of a file that take long to read as a whole, spread from its beginning to its end."""
    hasher = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        for number in range(SAMPLES + 1):
            hasher.update(os.pread(file.fileno(), READ_BYTES, (size - READ_BYTES) * number // SAMPLES))
    return hasher.digest()


def differences(before: Manifest, after: Manifest, limit: int = 20) -> list[str]:
    """What is not the same, in words; empty when the two agree."""
    result = [f"{path!r} is gone" for path in sorted(before.keys() - after.keys())]
    result += [f"{path!r} is new" for path in sorted(after.keys() - before.keys())]
    for path in sorted(before.keys() & after.keys()):
        for field in fields(Entry):
            was, became = getattr(before[path], field.name), getattr(after[path], field.name)
            if was != became:
                result.append(f"{path!r}: {field.name} was {was!r}, became {became!r}")
    return result[:limit]


def total_bytes(noted: Manifest) -> int:
    """The sum of all regular files' sizes, a file with several names counted once."""
    return sum(item.size // item.links for item in noted.values() if item.kind == "-")


def build(folder: Path, wanted_bytes: int, *, real_files: int, real_bytes: int, seed: int = 1) -> Path:
    """Make *folder* hold about *wanted_bytes*: at most *real_files* and *real_bytes* of this machine's own files, the
    oddities, and media files for the rest. Deterministic but for what the machine has. Returns *folder*.
    """
    folder.mkdir()
    chance = random.Random(seed)
    taken = copy_real_files(folder / "real", real_files, real_bytes)
    make_oddities(folder / "odd", chance)
    media = folder / "media"
    media.mkdir()
    number = 0
    while taken < wanted_bytes:
        size = chance.randrange(MEDIA_MIN_BYTES, MEDIA_MAX_BYTES)
        if number == 0:
            size = MEDIA_MAX_BYTES
        size = min(size, max(MEDIA_MIN_BYTES, wanted_bytes - taken))
        write_media(media / f"clip {number:03}.mkv", size, chance)
        taken += size
        number += 1
    return folder


def write_media(path: Path, size: int, chance: random.Random) -> None:
    """A file of *size* bytes that no compressor makes smaller."""
    with open(path, "wb") as file:
        file.writelines(_random_parts(size, chance))


def random_bytes(size: int, seed: int) -> bytes:
    """The same *size* bytes for the same seed; `Random.randbytes` alone makes fewer than 256 MiB."""
    return b"".join(_random_parts(size, random.Random(seed)))


def _random_parts(size: int, chance: random.Random) -> Iterator[bytes]:
    for start in range(0, size, READ_BYTES):
        yield chance.randbytes(min(READ_BYTES, size - start))


def copy_real_files(folder: Path, files_max: int, bytes_max: int) -> int:
    """Copy as much of SOURCES as fits, a fair part of each, with all attributes; returns the bytes."""
    folder.mkdir()
    sources = [source for source in SOURCES if source.is_dir()]
    total = 0
    for source in sources:
        files, taken = 0, 0
        for place, folders, names in os.walk(source):
            folders.sort()
            for name in sorted(names):
                path = Path(place, name)
                size = path.lstat().st_size
                if files >= files_max // len(sources) or taken + size > bytes_max // len(sources):
                    continue
                copy = folder / path.relative_to("/")
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, copy, follow_symlinks=False)
                files, taken = files + 1, taken + size
        total += taken
    return total


ODD_NAMES = (
    b"\xff\xfe not UTF-8 \x80",
    b"caf\xe9 latin-1",
    "Füße ñ 漢字 🎵".encode(),
    b"new\nline",
    b" spaces  ",
    b"-rf",
    b"*?[a]'\"\\$HOME`;&|",
    b"\x01\x1b[31m",
    b"x" * 255,
    "ä".encode() * 127,
    b"e\xcc\x81",  # the same letter as the next one, in another normal form
    b"\xc3\xa9",
)


def make_oddities(folder: Path, chance: random.Random) -> None:
    """Everything that copies and backups like to lose."""
    folder.mkdir()
    _make_names(folder / "names")
    _make_links(folder / "links", chance)
    _make_sparse(folder / "sparse", chance)
    _make_sizes(folder / "sizes", chance)
    _make_special(folder / "special")
    _make_attributes(folder / "attributes")
    _make_times(folder / "times")


def _make_names(folder: Path) -> None:
    folder.mkdir()
    for number, name in enumerate(ODD_NAMES):
        with open(os.path.join(os.fsencode(folder), name), "wb") as file:
            file.write(b"%d" % number)
    directory = os.path.join(os.fsencode(folder), b"\xe9 directory")
    os.mkdir(directory)
    with open(os.path.join(directory, b"\xe9"), "wb") as file:
        file.write(b"inside")
    deep = folder
    for depth in range(40):
        deep = deep / f"{depth:02}"
    deep.mkdir(parents=True)
    (deep / "bottom").write_bytes(b"bottom")
    (folder / "empty directory").mkdir()


def _make_links(folder: Path, chance: random.Random) -> None:
    folder.mkdir()
    (folder / "one").write_bytes(chance.randbytes(300_000))
    (folder / "other place").mkdir()
    os.link(folder / "one", folder / "two")
    os.link(folder / "one", folder / "other place" / "three")
    os.symlink("one", folder / "relative")
    os.symlink("/nowhere/at all", folder / "dangling")
    os.symlink("loop", folder / "loop")
    os.symlink(b"\xff\xfe", os.path.join(os.fsencode(folder), b"target \xe9"))
    os.symlink("x/" * 2000, folder / "long")
    os.link(folder / "relative", folder / "link to a link", follow_symlinks=False)


def _make_sparse(folder: Path, chance: random.Random) -> None:
    folder.mkdir()
    os.truncate(_touched(folder / "all hole"), 50 * MEGABYTE)
    with open(folder / "islands", "wb") as file:
        for place in (1_000_003, 7_000_000, 30_000_000):
            file.seek(place)
            file.write(chance.randbytes(100_001))
        file.truncate(33_333_333)
    (folder / "zeros in between").write_bytes(chance.randbytes(400_000) + bytes(900_000) + chance.randbytes(5))


def _make_sizes(folder: Path, chance: random.Random) -> None:
    """Around every size at which a file changes its form inside."""
    folder.mkdir()
    for size in (0, 1, 4095, 4096, 4097, 65535, 65536, 65537, 262143, 262145, 1 << 20, (4 << 20) + 1):
        (folder / str(size)).write_bytes(chance.randbytes(size))
        (folder / f"{size} again").write_bytes((folder / str(size)).read_bytes())


def _make_special(folder: Path) -> None:
    folder.mkdir()
    os.mkfifo(folder / "fifo", 0o640)
    os.mknod(folder / "socket", stat.S_IFSOCK | 0o600)
    if os.geteuid() == 0:
        os.mknod(folder / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.mknod(folder / "block", stat.S_IFBLK | 0o660, os.makedev(254, 300))


def _make_attributes(folder: Path) -> None:
    folder.mkdir()
    for mode in (0o000, 0o400, 0o644, 0o755, 0o1777, 0o2755, 0o4711, 0o6777):
        path = _touched(folder / f"{mode:04o}")
        if os.geteuid() == 0:
            os.chown(path, 1000 + mode, 2**31 + mode)
        path.chmod(mode)
    (folder / "set group").mkdir()
    (folder / "set group").chmod(0o3775)
    path = _touched(folder / "tagged")
    os.setxattr(path, "user.comment", "größer".encode())
    os.setxattr(path, "user.empty", b"")
    os.setxattr(path, "user.large", bytes(range(256)) * 8)
    os.setxattr(folder, "user.on.a.directory", b"\x00\xff")
    if os.geteuid() == 0:
        os.setxattr(path, "trusted.mark", b"1")


def _make_times(folder: Path) -> None:
    folder.mkdir()
    for name, time_ns in (
        ("a nanosecond", 1_234_567_890_123_456_789),
        ("epoch", 1),
        ("before the epoch", -1_000_000_001),
        ("far", 4_102_444_800_987_654_321),
    ):
        os.utime(_touched(folder / name), ns=(time_ns, time_ns))
    os.symlink("epoch", folder / "link")
    os.utime(folder / "link", ns=(5_000_000_007, 5_000_000_007), follow_symlinks=False)
    (folder / "directory").mkdir()
    os.utime(folder / "directory", ns=(77, 77_000_000_001))


def _touched(path: Path) -> Path:
    path.touch()
    return path


def copy(source: Path, target: Path, *, timeout_s: float = 300.0) -> None:
    """`cp -a`, as a user copies everything. Raises: AssertionError: it complained."""
    command = ["cp", "-a", "--", str(source), str(target)]
    outcome = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=timeout_s, check=False)
    assert (outcome.returncode, outcome.stderr) == (0, ""), outcome.stderr[-2000:]
