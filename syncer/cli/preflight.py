"""Everything that can be wrong with a mount before it begins.

`check` only looks: it makes, changes and connects to nothing, so a command that it refuses leaves no trace. Each
refusal names the cause and the remedy. What it cannot see comes later: `DataDirectory.open` finds out whether DATA is
in use, the mount what the remote says, and whoever refuses takes back what was made.
"""

import dataclasses
import os
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from syncer import config, datadir, mounts
from syncer.config import Config
from syncer.datadir import Condition
from syncer.errors import DataUnusable, FuseUnavailable, MountpointUnusable, UsageError, WrongRepository

if TYPE_CHECKING:
    from syncer.backends.open import Remote

FUSE_DEVICE = Path("/dev/fuse")
FUSE_SETTINGS = Path("/etc/fuse.conf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What the user asked `mount` for, with absolute paths, so that it means the same in any working directory.

    `remote` and `budget_bytes` are None when DATA is to know them already.
    """

    data: Path
    mountpoint: Path
    remote: str | None = None
    budget_bytes: int | None = None
    config_file: Path | None = None
    allow_other: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A wish that was found possible: absolute paths without links, and the settings that will hold.

    `stored` is what DATA/config.toml says now; None when there is none. `dead` says that a mount of this DATA whose
    process has died is still on the mountpoint.
    """

    data: Path
    mountpoint: Path
    config: Config
    stored: Config | None
    dead: bool


def check(wish: Wish) -> Plan:
    """Find out whether *wish* can be granted.

    Raises: UsageError, DataUnusable, MountpointUnusable, FuseUnavailable, WrongRepository, ConfigInvalid.
    """
    if wish.remote is not None:
        _parse(wish.remote)
    data = _check_data(wish.data)
    condition = datadir.inspect(data)
    stored = _stored(wish, data, condition)
    settings = _settings(wish, data, stored)
    remote = _parse(settings.remote)
    if stored and condition is Condition.OURS and _parse(stored.remote) != remote:
        raise _wrong_remote(wish, stored.remote, settings.remote)
    dead = _is_dead_mount(wish.mountpoint, data)
    mountpoint = mounts.locate(wish.mountpoint)[0] if dead else check_mountpoint(wish.mountpoint)
    _check_apart(data, mountpoint, remote)
    _check_fuse(wish.allow_other or "allow_other" in settings.mount_options)
    return Plan(data=data, mountpoint=mountpoint, config=settings, stored=stored, dead=dead)


def _parse(remote: str) -> "Remote":
    """What *remote* says, a folder without links. Raises: UsageError."""
    from syncer.backends.open import FolderRemote, parse_url  # late: `mount --help` gets by without it

    parsed = parse_url(remote)
    return FolderRemote(mounts.locate(parsed.path)[0]) if isinstance(parsed, FolderRemote) else parsed


def _check_data(path: Path) -> Path:
    data, mount = mounts.locate(path)
    if mount:
        raise DataUnusable(
            f"{path} lies inside the mount {mount.mountpoint}", hint="name a folder of the local disk for DATA"
        )
    return data


def _stored(wish: Wish, data: Path, condition: Condition) -> Config | None:
    if condition in (Condition.OURS, Condition.UNUSED) and (data / datadir.CONFIG).exists():
        return config.load(data / datadir.CONFIG)
    if wish.remote is None and wish.config_file is None:
        what = "does not exist" if condition is Condition.ABSENT else f"has no {datadir.CONFIG}"
        raise DataUnusable(
            f"{wish.data} {what}", hint=f"give REMOTE and MB too: `syncer {wish.data} REMOTE {wish.mountpoint} MB`"
        )
    return None


def _settings(wish: Wish, data: Path, stored: Config | None) -> Config:
    """The settings that will hold: the command line's before those of `--config` before DATA's own."""
    given: dict[str, object] = {}
    if wish.remote is not None and wish.budget_bytes is not None:
        given = {"remote": wish.remote, "budget_bytes": wish.budget_bytes}
    if wish.config_file is None:
        if stored is None:
            return Config(**given)  # type: ignore[arg-type]
        return dataclasses.replace(stored, **given)  # type: ignore[arg-type]
    if given:
        return Config(**{**config.read_settings(wish.config_file), **given})
    return config.load(wish.config_file)


def _wrong_remote(wish: Wish, stored: str, wanted: str) -> WrongRepository:
    return WrongRepository(
        f"{wish.data} belongs to {stored}, not to {wanted}",
        hint=f"leave the remote out (`syncer {wish.data} {wish.mountpoint}`), name another DATA, or correct the remote "
        f"in {wish.data / datadir.CONFIG} if the repository has moved",
    )


def _is_dead_mount(path: Path, data: Path) -> bool:
    """Whether *path* is where a mount of *data* was left by a process that has died."""
    real, mount = mounts.locate(path)
    return mount is not None and mount.mountpoint == real and mount.data == data and not datadir.is_locked(data)


def check_mountpoint(path: Path) -> Path:
    """The real path of the mountpoint *path*. Nothing that may be mounted there is touched.

    Raises: MountpointUnusable.
    """
    real, mount = mounts.locate(path)
    if mount and mount.mountpoint == real:
        if datadir.is_locked(mount.data):
            raise MountpointUnusable(
                f"{path} is already mounted, from {mount.data}", hint=f"`syncer umount {path}` ends it"
            )
        raise MountpointUnusable(
            f"{path} is still mounted by a syncer that has died", hint=f"`syncer umount {path}` removes that mount"
        )
    if mount:
        raise MountpointUnusable(f"{path} lies inside the mount {mount.mountpoint}", hint="name another mountpoint")
    if mounts.is_mountpoint(real):
        raise MountpointUnusable(
            f"{path} is already mounted", hint=f"unmount it (`umount {path}`), or name another one"
        )
    try:
        entries = os.listdir(real)
    except FileNotFoundError:
        raise MountpointUnusable(f"{path} does not exist", hint=f"make it: `mkdir -p {path}`") from None
    except NotADirectoryError:
        raise MountpointUnusable(f"{path} is not a folder", hint="name an empty folder to mount on") from None
    except OSError as error:
        raise MountpointUnusable(f"{path}: {error.strerror}", hint="name an empty folder of your own") from error
    if entries:
        raise MountpointUnusable(f"{path} is not empty", hint="name an empty folder to mount on")
    if not os.access(real, os.W_OK | os.X_OK, effective_ids=True):
        raise MountpointUnusable(f"{path} is not writable", hint="name an empty folder of your own")
    return real


def _check_apart(data: Path, mountpoint: Path, remote: "Remote") -> None:
    """DATA, the mountpoint and a remote folder: inside each other they would wait for, or fill, themselves.

    Raises: MountpointUnusable, DataUnusable, UsageError.
    """
    if _nested(data, mountpoint):
        raise MountpointUnusable(
            f"DATA {data} and the mountpoint {mountpoint} lie inside each other", hint="name folders that are apart"
        )
    from syncer.backends.open import FolderRemote

    if not isinstance(remote, FolderRemote):
        return
    for place, name in ((data, "DATA"), (mountpoint, "the mountpoint")):
        if _nested(remote.path, place):
            raise UsageError(
                f"the remote folder {remote.path} and {name} {place} lie inside each other",
                hint="name folders that are apart",
            )


def _nested(one: Path, other: Path) -> bool:
    return one.is_relative_to(other) or other.is_relative_to(one)


def _check_fuse(allow_other: bool) -> None:
    """Raises: FuseUnavailable."""
    try:
        if not stat.S_ISCHR(FUSE_DEVICE.stat().st_mode):
            raise FuseUnavailable(
                f"{FUSE_DEVICE} is not a device", hint="remove it and load the module: `modprobe fuse`"
            )
        os.close(os.open(FUSE_DEVICE, os.O_RDWR))
    except FileNotFoundError:
        raise FuseUnavailable(
            f"there is no {FUSE_DEVICE}",
            hint="load the module (`modprobe fuse`); give a container `--device /dev/fuse`",
        ) from None
    except OSError as error:
        raise FuseUnavailable(
            f"{FUSE_DEVICE} cannot be opened: {error.strerror}",
            hint="load the module (`modprobe fuse`), allow your user to open it, give a container the device",
        ) from error
    if shutil.which("fusermount3") is None:
        raise FuseUnavailable("there is no fusermount3", hint="install FUSE 3, in Debian `apt install fuse3`")
    if allow_other and os.geteuid() != 0 and not _others_allowed():
        raise FuseUnavailable(
            "only root may mount for other users here",
            hint=f"leave --allow-other out, or add user_allow_other to {FUSE_SETTINGS}",
        )


def _others_allowed() -> bool:
    try:
        lines = FUSE_SETTINGS.read_text("utf-8", "replace").splitlines()
    except OSError:
        return False
    return any(line.strip() == "user_allow_other" for line in lines)
