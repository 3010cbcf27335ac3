"""DATA/log: where a mount writes what happened. Rotated, so that it stays a small and known part of the budget."""

import errno
import logging
import logging.handlers
import os
import sys
import time
from io import FileIO, TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING

from syncer.cli.text import printable
from syncer.datadir import LOG_FILE_BYTES, LOG_FILES

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

RECORD_MAX_CHARACTERS = 8_000
"""A longer record keeps its beginning and its end: rotation bounds files only as far as records are bounded."""


class _Lines(logging.Formatter):
    """UTC times; long records cut in the middle."""

    @staticmethod
    def converter(seconds: float | None) -> time.struct_time:
        return time.gmtime(seconds)

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if len(text) <= RECORD_MAX_CHARACTERS:
            return text
        half = RECORD_MAX_CHARACTERS // 2
        return f"{text[:half]}\n[{len(text) - 2 * half} characters left out]\n{text[-half:]}"


class _Warnings(logging.Formatter):
    """One line without the traceback, in the form of every message of ours."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(f"syncer: {record.getMessage()}")


class _WholeLines(FileIO):
    """A file of which the end is always that of a line: what a full disk takes a part of is cut off again."""

    def __init__(self, path: str) -> None:
        super().__init__(path, "a+")
        os.fchmod(self.fileno(), 0o600)
        size = os.fstat(self.fileno()).st_size
        if size and os.pread(self.fileno(), 1, size - 1) != b"\n":  # a power cut has left half of one
            self.write(b"\n")

    def write(self, data: "ReadableBuffer") -> int:
        """Raises: OSError: nothing of *data* is there."""
        begin = os.fstat(self.fileno()).st_size
        written = os.write(self.fileno(), data)
        if written != memoryview(data).nbytes:
            os.ftruncate(self.fileno(), begin)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return written


class _PrivateFile(logging.handlers.RotatingFileHandler):
    """For the owner's eyes only: names of files are in it."""

    def _open(self) -> TextIOWrapper:
        file = _WholeLines(self.baseFilename)
        return TextIOWrapper(file, encoding=self.encoding, errors=self.errors, write_through=True)

    def handleError(self, record: logging.LogRecord) -> None:
        """A line that the disk has no room for is lost: its defect would be told on the terminal, each time anew."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


_open_file: logging.handlers.RotatingFileHandler | None = None


def start(path: Path, level: str, *, warnings_to_stderr: bool) -> None:
    """Send syncer's log records of *level* and above, and other packages' warnings, to *path*.

    Records of level WARNING and above go to stderr too if *warnings_to_stderr*. Called once a process, before any
    thread starts.

    Raises: OSError: *path* cannot be opened.
    """
    global _open_file
    file = _PrivateFile(
        path, maxBytes=LOG_FILE_BYTES, backupCount=LOG_FILES - 1, encoding="utf-8", errors="backslashreplace"
    )
    file.setFormatter(_Lines("%(asctime)sZ %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S"))
    root = logging.getLogger()
    root.addHandler(file)
    root.setLevel(max(logging.WARNING, logging.getLevelNamesMapping()[level]))
    logging.getLogger("syncer").setLevel(level)
    if warnings_to_stderr:
        terminal = logging.StreamHandler(sys.stderr)
        terminal.setLevel(logging.WARNING)
        # An end nobody foresaw (CRITICAL) is told by `failure`, once.
        terminal.addFilter(lambda record: record.levelno < logging.CRITICAL)
        terminal.setFormatter(_Warnings())
        root.addHandler(terminal)
    logging.captureWarnings(True)
    _open_file = file


def place() -> Path | None:
    """The log that is being written and can be looked at afterwards, if there is one."""
    if _open_file is None:
        return None
    path = Path(_open_file.baseFilename)
    return path if path.exists() else None
