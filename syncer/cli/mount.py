"""`syncer mount`: check, lock DATA, hand over to `app.mount`, and say how it began and how it ended."""

import contextlib
import dataclasses
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from syncer.cli.paths import refuse_empty, untouched
from syncer.errors import UsageError
from syncer.values import BUDGET_MIN_BYTES, MEGABYTE

if TYPE_CHECKING:
    from syncer.app import MountResult
    from syncer.cli.preflight import Plan, Wish
    from syncer.datadir import DataDirectory


log = logging.getLogger(__name__)


SYNC = "sync="
OWN_OPTIONS = ("ro", "rw", "allow_other", "writeback", f"{SYNC}local", f"{SYNC}remote")
"""Mount options that are not simply passed on."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """How to mount, as opposed to what and where."""

    options: tuple[str, ...]
    take_over: bool = False
    log_level: str | None = None
    history_only: bool = False
    visiting: bool = False
    following: bool = False


@click.command("mount", short_help="Mount DATA on MOUNTPOINT, and create it on first use.")
@click.argument("places", nargs=-1, required=True, metavar="DATA [REMOTE] MOUNTPOINT [MB]")
@click.option("--background", is_flag=True, help="Return when the mount is usable; it goes on and logs to DATA/log.")
@click.option("--read-only", is_flag=True, help="Refuse every change.")
@click.option("--allow-other", is_flag=True, help="Let other users in, as far as the files' modes allow.")
@click.option("--writeback", is_flag=True, help="Let the kernel collect small writes: faster, less safe.")
@click.option(
    "--sync", type=click.Choice(["local", "remote"]), help="What an fsync waits for: this disk (the default), or both."
)
@click.option("-o", "options", multiple=True, metavar="OPTION[,...]", help="Mount options: noatime, nodev, ro, ...")
@click.option("--config", "config_file", type=untouched, metavar="FILE", help="Take the settings from FILE.")
@click.option("--take-over", is_flag=True, help="Become the writer of a repository that another machine wrote.")
@click.option("--follow", is_flag=True, help="Show what another machine writes, read-only, a few seconds later.")
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"], case_sensitive=False),
    help="How much goes to the log, this time.",
)
def command(
    places: tuple[str, ...],
    background: bool,
    read_only: bool,
    allow_other: bool,
    writeback: bool,
    sync: str | None,
    options: tuple[str, ...],
    config_file: Path | None,
    take_over: bool,
    follow: bool,
    log_level: str | None,
) -> int:
    """Mount DATA on MOUNTPOINT and stay until it is unmounted.

    The first time, give all four: DATA is a local folder that is made and never takes more than MB megabytes (10^6
    bytes), REMOTE is where everything is stored. DATA remembers both, so that DATA and MOUNTPOINT are enough later;
    another MB changes the budget. The word `mount` may be left out.

    REMOTE is host:path, user@host:path, ssh://user@host:port/path, s3://bucket/prefix, rsync://host/module/path, or a
    folder, /path.

    With --writeback (or -o writeback) programs that write in small pieces are several times faster, but what they have
    written and not yet made safe with fsync, up to half a minute of it, is lost when syncer is killed.

    With --sync=remote (or -o sync=remote) an fsync returns when what was written is on the remote as well, in a
    snapshot, or fails when the remote will not take it.

    With --follow another machine may write at the same time: this one shows its newest snapshot, read-only, ten seconds
    after it was published at the latest. Open files keep their content.

    Ctrl-C, SIGTERM, `syncer umount` and `fusermount3 -u` end the mount cleanly. What is not uploaded by then stays
    in DATA and goes up next time.

    \b
    Examples:
      syncer data nas:blobs mnt 1000
      syncer data mnt
      syncer mount --background data s3://bucket/photos mnt 20000
      syncer mount --read-only -o noatime data mnt
      syncer mount --follow data2 nas:blobs mnt2 1000
    """
    from syncer.cli import background as daemon

    if follow:
        _check_follow(take_over=take_over, writeback=writeback, sync=sync, options=_words(options))
    flags = {"allow_other": allow_other, "ro": read_only or follow, "writeback": writeback}
    words = [*_words(options), *(word for word, given in flags.items() if given), *([SYNC + sync] if sync else [])]
    if take_over and "ro" in words:
        raise UsageError(
            "--take-over makes this machine the writer, and --read-only forbids it to write", hint="give one of them"
        )
    wish = _wish(places, config_file, "allow_other" in words)
    manner = Manner(
        options=tuple(words),
        take_over=take_over,
        log_level=log_level.upper() if log_level else None,
        following=follow,
    )
    if background:
        return daemon.launch(lambda announce: mount(wish, manner, announce, foreground=False))
    mount(wish, manner, lambda line: click.echo(line), foreground=True)
    return 0


def mount(wish: "Wish", manner: Manner, announce: Callable[[str], None], *, foreground: bool) -> None:
    """Mount until it ends; *announce* gets the line that says it is usable, and the one that says it has ended.

    A first mount that fails before it was usable leaves DATA as it was found.

    Raises: SyncerError.
    """
    from syncer import config, datadir
    from syncer.cli import logfile, preflight

    plan = preflight.check(wish)
    with datadir.DataDirectory.open(plan.data) as directory:
        usable = False

        def ready(note: str) -> None:
            nonlocal usable
            usable = True
            if plan.config != plan.stored:
                config.save(directory.config, plan.config)
            line = _ready_line(plan, note)
            log.info("%s", line)
            announce(line)

        try:
            if directory.fresh:
                config.save(directory.config, plan.config)
            logfile.start(directory.log, manner.log_level or plan.config.log_level, warnings_to_stderr=foreground)
            if plan.dead:
                _clear_away(plan)
            line = _end_line(plan, _run(plan, manner, directory, ready))
            log.info("%s", line)
        except BaseException:
            if not usable:
                with contextlib.suppress(OSError):  # the error that brought us here says more
                    directory.discard()
            raise
    announce(line)  # after DATA is free: who reads it may mount again at once


def _check_follow(*, take_over: bool, writeback: bool, sync: str | None, options: list[str]) -> None:
    """Raises: UsageError: an option that is for who writes."""
    given = {"--take-over": take_over, "--writeback": writeback, "--sync": sync is not None}
    given |= {f"-o {word}": True for word in options if word in ("rw", "writeback") or word.startswith(SYNC)}
    for option in (option for option, is_given in given.items() if is_given):
        raise UsageError(
            f"who follows does not write: {option} makes no sense with --follow", hint="leave one of them out"
        )


def _clear_away(plan: "Plan") -> None:
    """Remove the mount that a dead process left on the mountpoint. We have the lock of its DATA: nobody serves it.

    Raises: MountpointUnusable.
    """
    from syncer import mounts
    from syncer.cli import preflight
    from syncer.cli.text import printable

    mounts.detach(plan.mountpoint)
    line = printable(f"syncer: {plan.mountpoint} was still mounted by a syncer that has died; that is cleared away")
    log.info("%s", line)
    click.echo(line, err=True)  # stdout is for the line that says it is ready
    preflight.check_mountpoint(plan.mountpoint)


def _run(plan: "Plan", manner: Manner, directory: "DataDirectory", ready: Callable[[str], None]) -> "MountResult":
    from syncer import app  # late: it brings everything with it, and all that can be refused was refused before

    words = [*plan.config.mount_options, *manner.options]
    request = app.MountRequest(
        data=plan.data,
        mountpoint=plan.mountpoint,
        config=plan.config,
        read_only=[word for word in ("rw", *words) if word in ("ro", "rw")][-1] == "ro",
        sync_remote=[word for word in (f"{SYNC}local", *words) if word.startswith(SYNC)][-1] == f"{SYNC}remote",
        allow_other="allow_other" in words,
        writeback="writeback" in words,
        mount_options=tuple(dict.fromkeys(word for word in words if word not in OWN_OPTIONS)),
        take_over=manner.take_over,
        history_only=manner.history_only,
        visiting=manner.visiting,
        following=manner.following,
    )
    return app.mount(request, directory, ready)


def _ready_line(plan: "Plan", note: str) -> str:
    from syncer.cli.text import printable

    budget = plan.config.budget_bytes / MEGABYTE
    line = f"syncer: {plan.mountpoint} is ready ({plan.config.remote}, {budget:.10g} MB)"
    return printable(f"{line}; {note}" if note else line)


def _end_line(plan: "Plan", result: "MountResult") -> str:
    from syncer.cli.text import printable, waiting

    line = f"syncer: {plan.mountpoint} is unmounted; {waiting(result.pending_bytes)}"
    return printable(f"{line}; it was read-only: {result.read_only_reason}" if result.read_only_reason else line)


def _wish(places: tuple[str, ...], config_file: Path | None, allow_other: bool) -> "Wish":
    from syncer.cli.preflight import Wish

    remote: str | None = None
    budget_bytes: int | None = None
    match places:
        case (data, mountpoint):
            pass
        case (data, given, mountpoint, megabytes):
            remote, budget_bytes = absolute_remote(given), _budget(megabytes)
        case (word,) if not Path(word).exists():
            raise UsageError(f"there is no command {word}", hint="see `syncer --help`")
        case _:
            raise UsageError(
                f"{len(places)} arguments make no mount", hint="give DATA REMOTE MOUNTPOINT MB, or DATA MOUNTPOINT"
            )
    refuse_empty(data, mountpoint)
    return Wish(
        data=Path(data).absolute(),
        remote=remote,
        mountpoint=Path(mountpoint).absolute(),
        budget_bytes=budget_bytes,
        config_file=config_file and config_file.absolute(),
        allow_other=allow_other,
    )


def absolute_remote(remote: str) -> str:
    """*remote*, or the absolute path of a folder that starts with a dot: the next command may run elsewhere."""
    if remote in (".", "..") or remote.startswith(("./", "../")):
        return os.path.abspath(remote)
    return remote


def _budget(megabytes: str) -> int:
    if not (megabytes.isascii() and megabytes.isdigit() and len(megabytes) <= 12):
        raise UsageError(f"MB must be a whole number of megabytes, not {megabytes}", hint="for example 1000")
    budget_bytes = int(megabytes) * MEGABYTE
    if budget_bytes < BUDGET_MIN_BYTES:
        raise UsageError(
            f"a budget of {megabytes} MB is too small to work with",
            hint=f"give at least {BUDGET_MIN_BYTES // MEGABYTE}",
        )
    return budget_bytes


def _words(options: tuple[str, ...]) -> list[str]:
    """The single options of all `-o`. Raises: UsageError: one that no mount can have."""
    from syncer.config import MOUNT_OPTIONS

    words = [word for option in options for word in option.split(",") if word]
    for word in words:
        if word not in MOUNT_OPTIONS:
            raise UsageError(f"unknown mount option {word}", hint=f"there are {', '.join(MOUNT_OPTIONS)}")
    return words
