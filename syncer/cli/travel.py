"""What the commands that look at or bring back the past have in common: which file system, which path, who answers."""

import os
import time
from pathlib import Path
from typing import Any


def said(text: str) -> dict[str, object]:
    """A snapshot as the user names it, with what that is as a moment by the clock and in the time zone here."""
    from syncer.snapshots.moments import moment_of

    return {"text": text, "moment_ns": moment_of(text, time.time_ns())}


def place(path: str | None, data: Path | None) -> tuple[Path, str]:
    """(DATA, path from the root on) of what a *path* on the command line means.

    With *data* it is from the root on already; without, it is where the shell would find it, and inside of a mount.

    Raises: NotMounted, DataUnusable, UsageError.
    """
    from syncer import mounts
    from syncer.cli.paths import refuse_empty
    from syncer.errors import NotMounted

    refuse_empty(path)
    if data is not None:
        inside = os.path.normpath("/" + (path or "")).strip("/")
        return mounts.resolve(data), inside
    found, mount = mounts.locate(Path(path or "."))
    if mount is None:
        if path is None:
            return mounts.resolve(None), ""
        raise NotMounted(f"{path} is not inside a mount", hint="go there, or name DATA with --data")
    return mount.data, "" if found == mount.mountpoint else str(found.relative_to(mount.mountpoint))


def ask(data: Path, what: str, question: dict[str, object], timeout_s: float | None = None) -> dict[str, Any]:
    """The answer of the mount of DATA, or of DATA itself where nothing is mounted.

    Raises: DeadlinePassed: not within *timeout_s*; SyncerError.
    """
    from syncer import config, datadir
    from syncer.cli.uploadbar import upload_bar
    from syncer.control import Client
    from syncer.errors import NotMounted

    with upload_bar() as progress:
        try:
            client = Client.connect(data)
        except NotMounted:
            settings = config.load(data / datadir.CONFIG)
            with datadir.DataDirectory.open(data):
                from syncer import app

                return app.offline_travel(data, settings, what, question, progress, timeout_s=timeout_s)
        with client:
            return client.travel(what, question, progress, timeout_s)
