"""Running the rsync program against a daemon, and what its exit codes and messages mean."""

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

import trio

from syncer.backends.unreachable import unknown_host, unreachable
from syncer.errors import BackendError, ObjectMissing, RemoteFull, RemoteRefused, RemoteUnreachable

CONNECT_S = 10
SILENCE_S = 30
"""rsync itself gives up a daemon that says nothing for so long."""

_VANISHED = 24
_SOCKET_CODE = 10
_REFUSED_CODES = {1, 2, 3, 4, 6}
"""Syntax, protocol or selection of files; and "daemon unable to append to log-file"."""
_ERRNO = re.compile(r"^rsync: .*\((\d+)\)\s*$", re.MULTILINE)
_ROLE = re.compile(r"^(Password: )?(rsync: )?(\[\w+\] )?")
_FULL = {28, 122}  # ENOSPC, EDQUOT
_DENIED = {1, 13, 30}  # EPERM, EACCES, EROFS
_ABSENT = {2, 20}  # ENOENT, ENOTDIR


class RsyncProgram:
    """How to reach one daemon; each call of `run` is one process."""

    def __init__(self, name: str, *, password_file: Path | None) -> None:
        """Without *password_file* the password is RSYNC_PASSWORD of our environment, if the daemon wants one."""
        self._name = name
        self._options = [f"--timeout={SILENCE_S}", f"--contimeout={CONNECT_S}"]
        if password_file is not None:
            self._options.append(f"--password-file={password_file}")
        self._can_fsync = True

    async def send(self, source: str, target: str, names: Sequence[str], *options: str) -> None:
        """Copy the files *names* below the local folder *source* to the URL *target*, durably where the daemon can."""
        arguments = ("--whole-file", "--ignore-times", *options)
        if self._can_fsync:
            try:
                await self._with_names(names, "--fsync", *arguments, source, target)
                return
            except RemoteRefused as error:
                if "--fsync" not in str(error):  # an rsync before 3.2.4, here or there
                    raise
                self._can_fsync = False
        await self._with_names(names, *arguments, source, target)

    async def make_folder(self, empty: str, target: str, name: str) -> None:
        """Make the folder *name* below *target* as it is made below the local folder *empty*, with those above it."""
        await self._with_names([name], "--dirs", empty, target)

    async def remove(self, empty: str, target: str, names: Sequence[str]) -> None:
        """Delete files below *target*: of names that are missing in the local folder *empty* there shall be none."""
        await self._with_names(names, "--delete-missing-args", empty, target, vanished_is_fine=True)

    async def fetch(self, source: str, path: str) -> None:
        """Copy one object to the local file *path*, which is not made when *source* is a folder."""
        await self.run("--whole-file", source, path)

    async def list(self, source: str, output: IO[bytes], *, recursive: bool) -> None:
        """Write a line for every file to *output*; `parse_line` reads them."""
        options = ("--recursive",) if recursive else ("--dirs",)
        await self.run("--list-only", "--no-h", *options, source, stdout=output, vanished_is_fine=True)

    async def _with_names(self, names: Sequence[str], *arguments: str, vanished_is_fine: bool = False) -> None:
        stdin = b"".join(name.encode() + b"\0" for name in names)
        arguments = ("--files-from=-", "--from0", "--copy-links", *arguments)
        await self.run(*arguments, stdin=stdin, vanished_is_fine=vanished_is_fine)

    async def run(
        self,
        *arguments: str,
        stdin: bytes = b"",
        stdout: IO[bytes] | int = subprocess.DEVNULL,
        vanished_is_fine: bool = False,
    ) -> None:
        """One rsync from start to end; killed when cancelled.

        Raises: ObjectMissing, RemoteRefused, RemoteUnreachable, RemoteFull.
        """
        try:
            done = await trio.run_process(
                ["rsync", *self._options, *arguments],
                stdin=stdin,
                stdout=stdout,
                capture_stderr=True,
                check=False,
                deliver_cancel=_kill,
                start_new_session=True,  # no terminal to ask for a password on, and no Ctrl-C
                env=_environment(os.environ),
            )
        except FileNotFoundError as error:
            raise RemoteRefused(f"{self._name}: there is no rsync program here", hint="install rsync") from error
        if done.returncode and not (done.returncode == _VANISHED and vanished_is_fine):
            raise translate(self._name, done.returncode, done.stderr.decode(errors="replace"))


async def _kill(process: trio.Process) -> None:
    process.kill()


def _environment(ours: Mapping[str, str]) -> dict[str, str]:
    """Messages in English, because they are read."""
    return {**{name: value for name, value in ours.items() if name != "LANGUAGE"}, "LC_ALL": "C"}


def translate(name: str, code: int, said: str) -> BackendError:
    """What exit code *code* and the messages *said* mean; see EXIT VALUES in rsync(1)."""
    lines = [line for line in said.splitlines() if line.strip() and not line.startswith("file has vanished: ")]
    cause = next((line for line in lines if "@ERROR" in line), lines[0] if lines else f"rsync ended with code {code}")
    message = f"{name}: {_ROLE.sub('', cause).strip()}"
    if "@ERROR" in cause:
        return _translate_daemon(message, cause)
    numbers = {int(number) for number in _ERRNO.findall(said)}
    if numbers & _FULL:
        return RemoteFull(message, hint="make room there")
    if numbers & _DENIED:
        return RemoteRefused(message, hint="check the owner and permissions of the module's folder on the server")
    if (code == 23 and numbers & _ABSENT) or "temp-dir does not exist" in said:
        return ObjectMissing(message)
    if code in _REFUSED_CODES:
        return RemoteRefused(message)
    if "getaddrinfo" in cause:
        return unknown_host(name)
    if code == _SOCKET_CODE and numbers:
        return unreachable(name, OSError(min(numbers), os.strerror(min(numbers))))
    return RemoteUnreachable(message)


def _translate_daemon(message: str, cause: str) -> BackendError:
    """An @ERROR line: the daemon's own refusal, before any file."""
    if "max connections" in cause:
        return RemoteUnreachable(message)
    hint = None
    if "auth failed" in cause:
        hint = "give the password in RSYNC_PASSWORD or in the file that the setting password_file names"
    return RemoteRefused(message, hint=hint)
