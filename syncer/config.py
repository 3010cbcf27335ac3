"""The settings of a mount: DATA/config.toml and the frozen `Config` that everything else is built from.

The file is meant to be edited by hand while unmounted, so it explains itself, mistakes are reported with their line,
and saving keeps the user's comments where it can. Only `cli/` and `app.py` see a Config; lower layers take plain
arguments.
"""

import contextlib
import json
import math
import re
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from syncer.disk import write_private
from syncer.errors import ConfigInvalid, UsageError
from syncer.snapshots import retention
from syncer.values import BUDGET_MIN_BYTES, NAME_MAX_BYTES

MOUNT_OPTIONS = (
    *("allow_other", "async", "atime", "auto_unmount", "default_permissions", "dev", "dirsync", "exec"),
    *("noatime", "nodev", "noexec", "nosuid", "ro", "rw", "suid", "sync", "writeback"),
    *("sync=local", "sync=remote"),
)
"""What libfuse takes of mount.fuse3(8) and makes sense here, and what is our own: `writeback`, and what an fsync waits
for. Any other word would end the mount after it has begun."""
LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """One DATA's settings; `_KEYS` says what each one means and may be."""

    remote: str
    budget_bytes: int
    password_file: str | None = None
    snapshot_interval_s: float = 60.0
    upload_delay_s: float = 5.0
    network_deadline_s: float = 60.0
    upload_parallelism: int = 4
    read_ahead_bytes: int = 24 * 1024 * 1024
    compression_level: int = 1
    log_level: str = "INFO"
    mount_options: tuple[str, ...] = ()
    history_name: str = ".snapshots"
    keep: str = retention.DEFAULT
    prune_dead_percent: int = 20


@dataclass(frozen=True, slots=True)
class _Key:
    """A key of the file: the comment above it, what `take` makes of a TOML value (None: refuse it), and the rule."""

    name: str
    comment: str
    take: Callable[[object], object | None]
    rule: str


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value and "\n" not in value and "\0" not in value else None


def _name(value: object) -> str | None:
    if not isinstance(value, str) or value in (".", "..") or "/" in value or "\0" in value or "\n" in value:
        return None
    return value if len(value.encode("utf-8", "replace")) <= NAME_MAX_BYTES else None


def _policy(value: object) -> str | None:
    try:
        return value if isinstance(value, str) and retention.parse(value) is not None else None
    except UsageError:
        return None


def _level(value: object) -> str | None:
    return value.upper() if isinstance(value, str) and value.upper() in LOG_LEVELS else None


def _options(value: object) -> tuple[str, ...] | None:
    return tuple(value) if isinstance(value, list) and all(option in MOUNT_OPTIONS for option in value) else None


def _whole(least: int, most: int = 1 << 62) -> Callable[[object], int | None]:
    def take(value: object) -> int | None:
        if isinstance(value, bool) or not isinstance(value, int):
            return None
        return value if least <= value <= most else None

    return take


def _seconds(least: float) -> Callable[[object], float | None]:
    def take(value: object) -> float | None:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return None
        return float(value) if value >= least else None

    return take


_KEYS = (
    _Key(
        "remote",
        "Where the blocks live: host:path, ssh://user@host:port/path, s3://bucket/prefix, rsync://host/module/path\n"
        "or /path. Change it only when the same repository has moved.",
        _text,
        "a remote in quotes",
    ),
    _Key(
        "budget_bytes",
        "The most that this directory may take on the local disk, everything included; at least 64000000.",
        _whole(BUDGET_MIN_BYTES),
        f"a whole number, at least {BUDGET_MIN_BYTES}",
    ),
    _Key(
        "password_file",
        "A file with the password of an rsync daemon, readable by you alone.",
        _text,
        "a path in quotes",
    ),
    _Key(
        "snapshot_interval_s",
        "How often the remote gets a snapshot while something changes, in seconds.",
        _seconds(1.0),
        "a number of seconds, at least 1",
    ),
    _Key(
        "upload_delay_s",
        "How long written data may wait for company before it is uploaded, in seconds. What is deleted within that\n"
        "time is never uploaded.",
        _seconds(0.0),
        "a number of seconds, at least 0",
    ),
    _Key(
        "network_deadline_s",
        "How long a program may have to wait for the network, in seconds, before it gets an input/output error.",
        _seconds(1.0),
        "a number of seconds, at least 1",
    ),
    _Key("upload_parallelism", "How many uploads run at once.", _whole(1, 64), "a whole number from 1 to 64"),
    _Key(
        "read_ahead_bytes",
        "How far ahead of a program that reads on and on the next blocks are fetched, but an eighth of the budget at "
        "most; 0 switches it off.",
        _whole(0),
        "a whole number, at least 0",
    ),
    _Key(
        "compression_level",
        "zstd's level for what goes to the remote: 1 is fastest, 19 smallest.",
        _whole(1, 19),
        "a whole number from 1 to 19",
    ),
    _Key(
        "log_level",
        "How much goes to the log: DEBUG, INFO, WARNING or ERROR.",
        _level,
        "one of " + ", ".join(LOG_LEVELS),
    ),
    _Key(
        "mount_options",
        'Options for every mount, as for `-o`: ["noatime", "nodev"].',
        _options,
        "a list of " + ", ".join(MOUNT_OPTIONS),
    ),
    _Key(
        "history_name",
        'The name under which each directory of the mount has its past, without listing it; "" for none.',
        _name,
        "a file name in quotes",
    ),
    _Key(
        "keep",
        "Which snapshots are kept: all that are younger than `last`, and the newest of each hour, day, week and month\n"
        'for so long. Units are min, h, d, w, mo and y, or forever. Labelled snapshots always stay. "none" keeps them\n'
        "and the newest alone.",
        _policy,
        f'a policy in quotes, like "{retention.DEFAULT}"',
    ),
    _Key(
        "prune_dead_percent",
        "What part of the remote may be of no use to anybody before it is pruned by itself, in percent; 100 for never.",
        _whole(1, 100),
        "a whole number from 1 to 100",
    ),
)
_BY_NAME = {key.name: key for key in _KEYS}
_DEFAULTS = {field.name: None if field.default is MISSING else field.default for field in fields(Config)}


def load(path: Path) -> Config:
    """Read the settings in *path*.

    Raises: ConfigInvalid: with the file, the line and the remedy.
    """
    settings = read_settings(path)
    for field in fields(Config):
        if field.default is MISSING and field.name not in settings:
            raise ConfigInvalid(
                f"{path}: {field.name} is missing", hint=f"add it: {field.name} = {_example(field.name)}"
            )
    return Config(**settings)


def read_settings(path: Path) -> dict[str, Any]:
    """What *path* sets, checked, as keyword arguments of Config; keys that it leaves out are left out.

    Raises: ConfigInvalid.
    """
    import tomllib  # late: commands that need no settings start without it

    try:
        text = path.read_text("utf-8")
        raw = tomllib.loads(text)
    except FileNotFoundError:
        raise ConfigInvalid(
            f"{path} does not exist", hint="give REMOTE and MB once more, they are written to it"
        ) from None
    except OSError as error:
        raise ConfigInvalid(f"{path} cannot be read: {error.strerror}", hint="run syncer as its owner") from error
    except UnicodeDecodeError as error:
        raise ConfigInvalid(f"{path} is not UTF-8 text", hint="save it as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigInvalid(f"{path} is not TOML: {error}", hint="correct that line") from error
    settings = {}
    for name, value in raw.items():
        where = f"{path}:{_line_of(name, text)}"
        key = _BY_NAME.get(name)
        if key is None:
            raise ConfigInvalid(f"{where}: unknown key {name!r}", hint=_instead_of(name))
        taken = key.take(value)
        if taken is None:
            raise ConfigInvalid(
                f"{where}: {name} must be {key.rule}, not {value!r}", hint="correct or delete that line"
            )
        settings[name] = taken
    return settings


def save(path: Path, config: Config) -> None:
    """Write *config* to *path*: atomically, for the owner's eyes only, with the user's own lines kept if possible.

    Raises:
        ConfigInvalid: a value that cannot be written as text (a remote whose bytes are not UTF-8).
        OSError: *path* cannot be written; it is then as it was.
    """
    text = render(config)
    with contextlib.suppress(OSError, UnicodeDecodeError):  # no former text, none to keep
        text = _amended(path.read_text("utf-8"), config) or text
    try:
        encoded = text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ConfigInvalid("a setting is not UTF-8 text", hint="use names in UTF-8 for the remote") from error
    write_private(path, encoded)


def render(config: Config) -> str:
    """*config* as a commented TOML file."""
    parts = ["# Settings of this syncer directory. Edit them while it is not mounted.\n"]
    for key in _KEYS:
        value = getattr(config, key.name)
        comment = "".join(f"# {line}\n" for line in key.comment.splitlines())
        line = f"# {key.name} = {_example(key.name)}\n" if value is None else f"{key.name} = {_toml(value)}\n"
        parts.append(comment + line)
    return "\n".join(parts)


def _amended(text: str, config: Config) -> str | None:
    """*text* with the lines changed that do not say what *config* does, or None when that does not work out."""
    import tomllib

    try:
        before = tomllib.loads(text)
        for key in _KEYS:
            value = getattr(config, key.name)
            taken = key.take(before[key.name]) if key.name in before else _DEFAULTS[key.name]
            if taken == value:
                continue
            line = f"{key.name} = {_toml(value)}"
            text, replaced = re.subn(rf"(?m)^{key.name}\s*=.*$", lambda _, line=line: line, text, count=1)  # type: ignore[misc]
            if not replaced:
                text = text.rstrip("\n") + f"\n\n{line}\n"
        after = {name: _BY_NAME[name].take(value) for name, value in tomllib.loads(text).items()}
        return text if Config(**after) == config else None  # type: ignore[arg-type]
    except (tomllib.TOMLDecodeError, KeyError, TypeError):
        return None


def _toml(value: object) -> str:
    """*value* in TOML. JSON's strings, lists and numbers are TOML's, but for the DEL character."""
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _example(name: str) -> str:
    return {"remote": '"host:path"', "budget_bytes": "1000000000", "password_file": '"/path/to/file"'}[name]


def _line_of(name: str, text: str) -> int:
    """The line of *text* where the top-level key or table *name* starts; 1 when it is written in an unusual way."""
    start = re.compile(rf"""\s*\[*\s*["']?{re.escape(name)}["']?\s*[=.\]]""")
    return next((number for number, line in enumerate(text.splitlines(), 1) if start.match(line)), 1)


def _instead_of(name: str) -> str:
    import difflib

    close = difflib.get_close_matches(name, _BY_NAME, n=1)
    return f"did you mean {close[0]}?" if close else f"delete it; the keys are {', '.join(_BY_NAME)}"
