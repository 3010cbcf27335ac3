"""`--background`: a mount that goes on after the command has returned.

The process forks twice before it has started any thread or event loop. The original waits at a pipe for one message
of the mount, "ready" or "failed", says it in its own words and exits with the mount's exit code; if the pipe closes
without a message, the mount died.
"""

import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from syncer.cli import failure
from syncer.errors import SyncerError

Announce = Callable[[str], None]
"""Says one line to whoever started the mount."""


def launch(work: Callable[[Announce], object]) -> int:
    """Run *work* in a process of its own until it announces that it is ready; returns the exit code.

    *work* gets `announce`: its first call ends the wait here, and prints its line. All paths that *work* uses must be
    absolute, as its working directory is /.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(receive)
        _become_daemon(send)
        _run(work, send)
    os.close(send)
    os.waitpid(child, 0)
    with open(receive, "rb") as pipe:
        return _await_word(pipe.readline)


def _become_daemon(send: int) -> None:
    """Leave the session, the working directory and every descriptor but *send* and stderr behind."""
    os.setsid()
    if os.fork():
        os._exit(0)  # so that the rest is no session leader and can never get a terminal
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    # stderr stays until the mount is ready: what a library says when it fails belongs on the user's screen.
    for descriptor in [int(name) for name in os.listdir("/proc/self/fd")]:
        if descriptor > 2 and descriptor != send:
            with contextlib.suppress(OSError):  # the one that listed them is closed by now
                os.close(descriptor)
    _tell(send, {"pid": os.getpid()})


def _run(work: Callable[[Announce], object], send: int) -> NoReturn:
    ready = False

    def announce(line: str) -> None:
        nonlocal ready
        if not ready:
            ready = True
            _tell(send, {"ready": line})
            os.close(send)
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, 2)
            os.close(null)

    code = 0
    try:
        work(announce)
    except BaseException as error:  # noqa: BLE001 - the end of a process: whatever it was is reported
        line, code = failure.describe(error)
        if not ready:
            _tell(send, {"failed": line, "code": code})
    # The stack above belongs to the command that forked; it must not run on here.
    os._exit(code)


def _tell(send: int, message: dict[str, object]) -> None:
    with contextlib.suppress(BrokenPipeError):  # who started us was killed; the mount lives on
        os.write(send, json.dumps(message).encode() + b"\n")


def _await_word(readline: Callable[[], bytes]) -> int:
    pid = 0
    try:
        while line := readline():
            match json.loads(line):
                case {"pid": int(pid)}:
                    pass
                case {"ready": str(text)}:
                    print(text, flush=True)
                    return 0
                case {"failed": str(text), "code": int(code)}:
                    print(text, file=sys.stderr, flush=True)
                    return code
    except KeyboardInterrupt:
        # The terminal's signal does not reach another session: pass it on, and wait for the clean end.
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGINT)
            readline()
        raise
    raise SyncerError("the mount ended before it was ready", hint="see DATA/log, or mount without --background")
