"""From what the user writes to a backend: the only place that knows the forms a remote's URL may take.

The modules of the backends are imported when one is opened, so that a folder costs neither paramiko's nor boto3's
start-up time.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from syncer.backends.base import Backend
from syncer.errors import UsageError

if TYPE_CHECKING:
    from syncer.backends.ssh import SshConnection

FORMS = (
    "/path, file:///path, host:path, user@host:~/path, ssh://user@host:port/path, rsync://host/module/path "
    "or s3://bucket/prefix"
)
_HINT = f"a remote is one of {FORMS}"

_HOST = re.compile(r"[0-9A-Za-z._-]+|\[[0-9A-Fa-f:.]+(%[0-9A-Za-z._-]+)?\]")
_BUCKET = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{1,61}[0-9A-Za-z]")
_S3_OPTIONS = ("endpoint", "region", "profile")


@dataclass(frozen=True, slots=True)
class FolderRemote:
    path: Path


@dataclass(frozen=True, slots=True)
class SshRemote:
    """*host* may be a name from ssh's configuration; a *path* without a leading slash starts at the home folder."""

    host: str
    path: str
    user: str | None = None
    port: int | None = None


@dataclass(frozen=True, slots=True)
class RsyncRemote:
    """*path* is relative to the module, and may be empty."""

    host: str
    module: str
    path: str
    user: str | None = None
    port: int | None = None


@dataclass(frozen=True, slots=True)
class S3Remote:
    """*prefix* has no slash at either end, and may be empty."""

    bucket: str
    prefix: str
    endpoint: str | None = None
    region: str | None = None
    profile: str | None = None


Remote = FolderRemote | SshRemote | RsyncRemote | S3Remote


def check_url(url: str) -> None:
    """Refuse what cannot be a remote, without asking any network or reading any file.

    Raises: UsageError: an unknown scheme or a malformed URL; the hint lists what is accepted.
    """
    parse_url(url)


def open_backend(url: str, *, password_file: Path | None = None) -> Backend:
    """The backend that *url* names, not connected yet and without retries (see RetryingBackend).

    *password_file* holds the password of an rsync daemon; other remotes have their own ways and ignore it.

    Raises: UsageError: as `check_url`.
    """
    remote = parse_url(url)
    match remote:
        case FolderRemote():
            from syncer.backends.folder import FolderBackend

            return FolderBackend(remote.path)
        case SshRemote():
            from syncer.backends.sftp import SftpBackend

            return SftpBackend(url, lambda: _log_in(remote), remote.path)
        case RsyncRemote():
            from syncer.backends.rsync import RsyncBackend

            return RsyncBackend(
                url,
                host=remote.host,
                port=remote.port,
                user=remote.user,
                module=remote.module,
                path=remote.path,
                password_file=password_file,
            )
        case S3Remote():
            from syncer.backends.s3 import S3Backend

            return S3Backend(
                url,
                bucket=remote.bucket,
                prefix=remote.prefix,
                endpoint=remote.endpoint,
                region=remote.region,
                profile=remote.profile,
            )


def _log_in(remote: SshRemote) -> "SshConnection":
    """In a thread, when the first call needs it: paramiko takes a quarter of a second to import."""
    from syncer.backends.ssh import connect

    return connect(remote.host, user=remote.user, port=remote.port)


def parse_url(url: str) -> Remote:
    """What *url* says.

    Raises: UsageError.
    """
    if not url.isprintable() or not url.strip():
        raise UsageError(f"{_shown(url)!r} is no remote", hint=_HINT)
    if url.startswith("/"):
        return FolderRemote(Path(url))
    scheme, separator, _ = url.partition("://")
    if not separator:
        return _scp_form(url)
    parse = {"file": _file, "ssh": _ssh, "rsync": _rsync, "s3": _s3}.get(scheme.lower())
    if parse is None:
        raise UsageError(f"unknown kind of remote {scheme}:// in {_shown(url)}", hint=_HINT)
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        why = "" if "@" in url else f": {error}"  # it may repeat a part of the URL, which may be a password
        raise UsageError(f"malformed remote {_shown(url)}{why}", hint=_HINT) from error
    if parts.password is not None:
        raise UsageError(
            f"there is a password in the remote {parts.scheme}://…@{parts.hostname}",
            hint="leave it out; use a key, RSYNC_PASSWORD, the password_file setting or the AWS credentials file",
        )
    return parse(url, parts, port)


def _shown(url: str) -> str:
    """*url* for a message: without what may be a password or a key."""
    url = re.sub(r"((?:\A|//)[^:/@]*):.*@", r"\1:…@", url)
    return re.sub(rf"([?&](?!(?:{'|'.join(_S3_OPTIONS)})=)[^=&]*)=[^&]*", r"\1=…", url)


def _malformed(url: str, why: str) -> UsageError:
    return UsageError(f"malformed remote {_shown(url)}: {why}", hint=_HINT)


def _scp_form(url: str) -> Remote:
    """`host:path`, `user@host:~/path`, `user@[address]:path`."""
    match = re.fullmatch(r"(?:(?P<user>[^@:/]+)@)?(?P<host>\[[^\]]*\]|[^:/@]*):(?P<path>.*)", url)
    if match is None:
        raise UsageError(
            f"{_shown(url)} is no remote", hint=f"{_HINT}; a folder of this machine is written from the root"
        )
    if match["path"].startswith(":"):
        raise _malformed(url, f"host::module is written rsync://{match['host']}/{match['path'][1:]} here")
    return SshRemote(_host(url, match["host"]), _remote_path(url, match["path"]), match["user"])


def _file(url: str, parts: SplitResult, port: int | None) -> Remote:
    if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
        raise _malformed(url, "a folder of this machine has three slashes, file:///path")
    _no_extras(url, parts)
    return FolderRemote(Path(unquote(parts.path)))


def _ssh(url: str, parts: SplitResult, port: int | None) -> Remote:
    """`ssh://host/path` is absolute, `ssh://host/~/path` starts at the home folder."""
    _no_extras(url, parts)
    path = unquote(parts.path)
    if path.startswith("/~"):
        path = path[1:]
    if not path:
        raise _malformed(url, "the path is missing")
    return SshRemote(_host(url, _host_part(parts)), _remote_path(url, path), _user(parts), port)


def _rsync(url: str, parts: SplitResult, port: int | None) -> Remote:
    _no_extras(url, parts)
    module, *rest = [segment for segment in unquote(parts.path).split("/") if segment] or [""]
    if not module:
        raise _malformed(url, "the module is missing, rsync://host/module/path")
    if ".." in rest:
        raise _malformed(url, "the path may not contain ..")
    if re.search(r"[*?\[\\]", "".join(rest)):
        raise _malformed(url, "the path may not contain the wildcards of rsync")
    path = "/".join(segment for segment in rest if segment != ".")
    return RsyncRemote(_host(url, _host_part(parts)), module, path, _user(parts), port)


def _s3(url: str, parts: SplitResult, port: int | None) -> Remote:
    if parts.fragment or parts.username is not None or port is not None:
        raise _malformed(url, "it may hold a bucket, a prefix and options only")
    if not _BUCKET.fullmatch(parts.netloc):
        raise _malformed(url, f"{parts.netloc!r} cannot be the name of a bucket")
    try:
        options = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError as error:
        raise _malformed(url, str(error)) from error
    given = dict(options)
    unknown = sorted(set(given) - set(_S3_OPTIONS))
    if unknown or len(given) != len(options):
        raise _malformed(url, f"the options are {', '.join(_S3_OPTIONS)}, each once")
    endpoint = given.get("endpoint")
    if endpoint is not None and not re.fullmatch(r"https?://[^/?#]+/?", endpoint):
        raise _malformed(url, f"the endpoint {endpoint!r} is no http:// or https:// address")
    prefix = "/".join(segment for segment in unquote(parts.path).split("/") if segment)
    return S3Remote(parts.netloc, prefix, endpoint, given.get("region"), given.get("profile"))


def _no_extras(url: str, parts: SplitResult) -> None:
    if parts.query or parts.fragment:
        raise _malformed(url, "options after ? or # mean nothing here; write these characters as %3F and %23")


def _host_part(parts: SplitResult) -> str:
    """The host as written: `SplitResult.hostname` would lower its case, and ssh's configuration tells cases apart."""
    host = parts.netloc.rpartition("@")[2]
    return host if host.endswith("]") else re.sub(r":\d*\Z", "", host)


def _host(url: str, host: str) -> str:
    if not _HOST.fullmatch(host) or host.startswith("-"):
        raise _malformed(url, f"{host!r} cannot be a host" if host else "the host is missing")
    return host.strip("[]")


def _user(parts: SplitResult) -> str | None:
    return unquote(parts.username) if parts.username else None


def _remote_path(url: str, path: str) -> str:
    """*path* as SFTP takes it: absolute, or relative to the home folder it starts in."""
    if path in ("~", "~/"):
        raise _malformed(url, "the home folder itself cannot be the place; name a folder in it")
    if path.startswith("~/"):
        path = path[2:]
    elif path.startswith("~"):
        raise _malformed(url, "the home folder of another user cannot be named; write the path in full")
    segments = [segment for segment in path.split("/") if segment not in ("", ".")]
    if not segments:
        raise _malformed(url, "the path is missing")
    return ("/" if path.startswith("/") else "") + "/".join(segments)
