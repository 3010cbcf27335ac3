"""Which syncer mounts run on this machine, and which DATA a path on the command line means.

A mount tells the kernel where its DATA is: its source is `mount_source(data)` and its type `fuse.syncer`, as
/proc/self/mountinfo (proc(5)) shows them. Everything here reads that table and compares path prefixes: not one call
goes to a path inside a mount, because one that hangs would hang us too.
"""

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote_from_bytes, unquote_to_bytes

from syncer import datadir
from syncer.errors import DataUnusable, MountpointUnusable, NotMounted

FILE_SYSTEM_TYPE = "fuse.syncer"
SOURCE_PREFIX = "syncer:"
DETACH_S = 30.0
LINKS_MAX = 40
"""As many symbolic links as the kernel follows in one path (path_resolution(7))."""


@dataclass(frozen=True, slots=True)
class Mount:
    """A running mount, or one whose process died without unmounting. *uid* mounted it."""

    mountpoint: Path
    data: Path
    uid: int


def mount_source(data: Path) -> str:
    """The `fsname` option of the mount of *data* (absolute).

    Percent-encoded where the mount options or mountinfo could garble it: commas, backslashes, white space, bytes
    that are not ASCII.
    """
    return SOURCE_PREFIX + quote_from_bytes(os.fsencode(data), safe="/:@!$&'()*+;=~[]{}^|<>?-_.")


def find_mounts() -> list[Mount]:
    """Every syncer mount that this process can see, oldest first."""
    return [entry.mount for entry in _table() if entry.mount]


def locate(path: Path) -> tuple[Path, Mount | None]:
    """Follow *path* to where it leads: the absolute path, and the syncer mount it lies in, if any.

    Symbolic links are followed up to the edge of a mount and never inside it; what does not exist is no error.

    Raises: DataUnusable: links that go round in a circle, or *path* begins in a working directory that was removed.
    """
    table = _table()
    try:
        todo = _segments(os.fsencode(path) if path.is_absolute() else os.path.join(os.getcwdb(), os.fsencode(path)))
    except FileNotFoundError as error:
        raise DataUnusable("the working directory was removed", hint="go to one that is there") from error
    here = b"/"
    links = 0
    while todo:
        segment = todo.pop()
        here = os.path.dirname(here) if segment == b".." else os.path.join(here, segment)
        if _mount_at(table, here):
            continue
        try:
            target = os.readlink(here)
        except OSError:  # not a link, or not there
            continue
        links += 1
        if links > LINKS_MAX:
            raise DataUnusable(f"{path} leads through too many symbolic links", hint="name the place itself")
        todo += _segments(target)
        here = b"/" if target.startswith(b"/") else os.path.dirname(here)
    return Path(os.fsdecode(here)), _mount_at(table, here)


def is_mountpoint(path: Path) -> bool:
    """Whether anything at all is mounted at *path* (absolute, no links), which is not touched."""
    return any(entry.mountpoint == os.fsencode(path) for entry in _table())


def resolve(target: Path | None) -> Path:
    """The DATA directory that *target* means: DATA itself, any path in a mount, or None for the only running mount.

    Raises:
        NotMounted: nothing, or more than one thing, is mounted; or nothing is mounted at *target*.
        DataUnusable: *target* does not exist.
    """
    if target is None:
        return _only_mount()
    path, mount = locate(target)
    if mount:
        return mount.data
    if datadir.is_data(path):
        return path
    if not path.exists():
        raise DataUnusable(f"{target} does not exist", hint="name DATA, or a path inside a mount")
    raise NotMounted(f"{target} is neither DATA nor inside a mount", hint="name DATA, or mount it first")


def detach(mountpoint: Path) -> None:
    """Remove a mount whose process is dead. Raises: MountpointUnusable."""
    # Lazy: a dead mount has nothing left to write, and a shell that stands in it must not keep it in the way.
    outcome = subprocess.run(
        ["fusermount3", "-u", "-z", "--", str(mountpoint)],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=DETACH_S,
        check=False,
    )
    if outcome.returncode:
        raise MountpointUnusable(
            f"{mountpoint} cannot be unmounted: {outcome.stderr.strip()}", hint=f"as root: `umount -l {mountpoint}`"
        )


def _only_mount() -> Path:
    mounts = find_mounts()
    own = [mount for mount in mounts if mount.uid == os.geteuid()]
    if os.geteuid() == 0 and not own:
        own = mounts
    found = {mount.data: mount for mount in own}
    if not found:
        raise NotMounted("nothing is mounted", hint="name the DATA directory")
    if len(found) > 1:
        places = ", ".join(str(mount.mountpoint) for mount in found.values())
        raise NotMounted(f"{len(found)} mounts are running: {places}", hint="name one of them")
    return next(iter(found))


@dataclass(frozen=True, slots=True)
class _Entry:
    mountpoint: bytes
    mount: Mount | None


def _table() -> list[_Entry]:
    with open("/proc/self/mountinfo", "rb") as table:
        return [_entry(line) for line in table]


def _entry(line: bytes) -> _Entry:
    """Parse one line of mountinfo: `id parent dev root mountpoint options [tags...] - type source super-options`."""
    front, _, back = line.rstrip(b"\n").partition(b" - ")
    mountpoint = _unescape(front.split(b" ")[4])
    kind, source, options = back.split(b" ")[:3]
    source = _unescape(source)
    if kind != FILE_SYSTEM_TYPE.encode() or not source.startswith(SOURCE_PREFIX.encode()):
        return _Entry(mountpoint, None)
    data = Path(os.fsdecode(unquote_to_bytes(source[len(SOURCE_PREFIX) :])))
    uid = re.search(rb"(?:^|,)user_id=(\d+)", options)
    return _Entry(mountpoint, Mount(Path(os.fsdecode(mountpoint)), data, int(uid[1]) if uid else 0))


def _unescape(field: bytes) -> bytes:
    return re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), field)


def _segments(path: bytes) -> list[bytes]:
    """The parts of *path*, last one first."""
    return [part for part in reversed(path.split(b"/")) if part not in (b"", b".")]


def _mount_at(table: list[_Entry], path: bytes) -> Mount | None:
    """The syncer mount that *path* lies in: the longest mountpoint above it counts, of equal ones the newest."""
    best: _Entry | None = None
    for entry in table:
        above = entry.mountpoint.rstrip(b"/") + b"/"
        if (path + b"/").startswith(above) and (best is None or len(entry.mountpoint) >= len(best.mountpoint)):
            best = entry
    return best.mount if best else None
