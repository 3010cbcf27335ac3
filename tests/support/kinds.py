"""The kinds of files, and how to make one of each: the POSIX tests go through all of them."""

import os
import stat
from pathlib import Path

import pytest

from tests.support.posix import as_root

TYPES = {
    "regular": stat.S_IFREG,
    "directory": stat.S_IFDIR,
    "symlink": stat.S_IFLNK,
    "fifo": stat.S_IFIFO,
    "socket": stat.S_IFSOCK,
    "character": stat.S_IFCHR,
    "block": stat.S_IFBLK,
}
DEVICES = ("character", "block")
DEVICE = os.makedev(1, 3)
TARGET = "a target that is not there"
"""Where the symlinks lead."""

KINDS = [pytest.param(kind, marks=as_root if kind in DEVICES else ()) for kind in TYPES]
NO_DIRECTORY = [parameter for parameter in KINDS if parameter.values != ("directory",)]
WITH_MODE = [parameter for parameter in KINDS if parameter.values != ("symlink",)]
"""Kinds that have permission bits of their own."""


def make(kind: str, path: Path, mode: int | None = None) -> Path:
    """A new file of that kind, with exactly this mode (a symlink has none): by default its owner's to use."""
    if kind == "directory":
        path.mkdir()
    elif kind == "symlink":
        path.symlink_to(TARGET)
    else:
        os.mknod(path, TYPES[kind] | 0o600, DEVICE if kind in DEVICES else 0)
    if kind != "symlink":
        path.chmod(mode if mode is not None else 0o755 if kind == "directory" else 0o644)
    return path


def remove(kind: str, path: Path) -> None:
    """unlink(2) or rmdir(2)."""
    if kind == "directory":
        path.rmdir()
    else:
        path.unlink()
