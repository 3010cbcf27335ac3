"""Logging in to an SSH server as `ssh HOST` would: its configuration, keys, agent, jump hosts and known hosts.

The only module that uses paramiko. `sftp.py` calls `connect` in a thread and speaks SFTP over the sessions it opens;
paramiko itself runs one thread a connection.

Never asked for: passwords and passphrases. A key with a passphrase works through the agent.
"""

import contextlib
import getpass
import glob
import logging
import os
import re
import shlex
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import paramiko
from paramiko.pkey import PublicBlob, UnknownKeyType

from syncer.backends.known_hosts import KnownHosts, Trust, command_to_accept, fingerprint, listed_name
from syncer.backends.sftp_session import SessionRefused, SftpBroken, SftpError, SftpSession
from syncer.backends.unreachable import unreachable
from syncer.errors import BackendError, RemoteRefused, RemoteUnreachable

CONFIG_VARIABLE = "SYNCER_SSH_CONFIG"
"""Environment variable: a configuration file to read instead of the user's and the system's, like `ssh -F`."""

ANSWER_S = 15.0
"""How long a server may take for each step of a login."""
SILENCE_S = 30
"""After so many seconds without an answer a session gives up; without even an acknowledgement, the kernel does."""
WINDOW_BYTES = 2**27
PACKET_BYTES = 2**18
JUMPS_MAX = 8

_FAST_CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com")
"""One pass of the processor's own AES instead of a cipher and a separate MAC: measured 1.5 to 2 times as fast."""
_DEFAULT_KEYS = ("id_ed25519", "id_ecdsa", "id_rsa")
_RSA_SIGNATURES = ("rsa-sha2-512", "rsa-sha2-256")
_FAILURES = (paramiko.SSHException, OSError, EOFError)

# What paramiko logs as an error also comes out as an exception, and is reported from there.
logging.getLogger("paramiko").setLevel(logging.CRITICAL)


@dataclass(frozen=True, slots=True)
class _Target:
    """A server after the configuration has had its say."""

    alias: str
    host: str
    port: int
    user: str
    identities: tuple[Path, ...]
    identities_only: bool
    known_hosts: tuple[Path, ...]
    known_hosts_global: tuple[Path, ...]
    host_key_alias: str | None
    jumps: tuple[str, ...]

    @property
    def listed_name(self) -> str:
        return self.host_key_alias or listed_name(self.host, self.port)

    def __str__(self) -> str:
        return f"{self.user}@{self.host}:{self.port}"


class SshConnection:
    """One logged-in connection, and those to the jump hosts it goes through. Any thread may call any method."""

    def __init__(
        self, target: _Target, wire: "_Wire", transport: paramiko.Transport, via: "SshConnection | None"
    ) -> None:
        self._target = target
        self._wire = wire
        self._transport = transport
        self._via = via
        self._opening = threading.Lock()

    @property
    def alive(self) -> bool:
        """Whether the connection stands, as far as is known without asking the server."""
        return self._transport.is_active()

    @property
    def silent_s(self) -> float:
        """How long the server has not sent a single byte."""
        return time.monotonic() - self._wire.heard_at

    def open_session(self) -> SftpSession:
        """A new SFTP session over a channel of its own.

        Raises: SessionRefused: no more channels; RemoteRefused: no SFTP there; RemoteUnreachable.
        """
        try:
            with self._opening:  # paramiko mixes up the refusals of channels that are opened at once
                channel = self._transport.open_session(timeout=ANSWER_S)
        except paramiko.ChannelException as error:
            raise SessionRefused(f"{self._target} opens no more sessions") from error
        except _FAILURES as error:
            raise unreachable(str(self._target), error) from error
        try:
            channel.settimeout(ANSWER_S)
            channel.invoke_subsystem("sftp")
            session = SftpSession(_ChannelStream(channel))
            channel.settimeout(SILENCE_S)
            return session
        except (*_FAILURES, SftpBroken, SftpError) as error:
            channel.close()
            if not self.alive or isinstance(error, TimeoutError):
                raise unreachable(str(self._target), error) from error
            raise RemoteRefused(
                f"{self._target} offers no SFTP", hint="let its sshd_config have a line Subsystem sftp internal-sftp"
            ) from error

    def open_tunnel(self, host: str, port: int) -> paramiko.Channel:
        """A stream from the server on to *host*.

        Raises: RemoteUnreachable, RemoteRefused.
        """
        try:
            return self._transport.open_channel("direct-tcpip", (host, port), ("127.0.0.1", 0), timeout=ANSWER_S)
        except paramiko.ChannelException as error:
            if error.code == 1:  # administratively prohibited
                raise RemoteRefused(f"{self._target} may not be used as a jump host") from error
            raise RemoteUnreachable(f"{self._target} cannot reach {host}:{port}") from error
        except _FAILURES as error:
            raise unreachable(str(self._target), error) from error

    def close(self) -> None:
        """Break the connection: whoever waits on one of its sessions gets an error at once."""
        if self._via is not None:
            self._via.close()  # first, so that nothing is said any more through a jump host that may be silent
        self._transport.close()
        self._wire.close()


def connect(host: str, *, user: str | None = None, port: int | None = None) -> SshConnection:
    """Log in to *host* (a name of the configuration, or a real one), within a few times ANSWER_S. Blocks.

    *user* and *port* go before the configuration's.

    Raises: RemoteRefused: the host key, the keys, or the configuration are not right; RemoteUnreachable.
    """
    config = _read_config()
    return _connect(config, _target(config, host, user, port), None, JUMPS_MAX)


def _connect(config: paramiko.SSHConfig, target: _Target, via: SshConnection | None, jumps_left: int) -> SshConnection:
    if jumps_left < 0:
        raise RemoteRefused(f"too many jump hosts on the way to {target.alias}", hint="see ProxyJump in ssh's config")
    if via is None:
        for jump in target.jumps:
            via = _connect(config, _jump_target(config, jump), via, jumps_left - 1)
    wire: _Wire | None = None
    try:
        raw = via.open_tunnel(target.host, target.port) if via else _dial(target)
        wire = _Wire(raw)
        transport = paramiko.Transport(
            cast(socket.socket, wire), default_window_size=WINDOW_BYTES, default_max_packet_size=PACKET_BYTES
        )
        connection = SshConnection(target, wire, transport, via)
        try:
            _greet(target, transport)
            _authenticate(target, transport)
        except BaseException:
            connection.close()
            raise
        return connection
    except BackendError:
        _close_all(wire, via)
        raise
    except _FAILURES as error:
        _close_all(wire, via)
        raise unreachable(str(target), error) from error


def _close_all(wire: "_Wire | None", via: SshConnection | None) -> None:
    if via is not None:
        via.close()
    if wire is not None:
        wire.close()


def _dial(target: _Target) -> socket.socket:
    connection = socket.create_connection((target.host, target.port), timeout=ANSWER_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENCE_S * 1000)
    return connection


def _greet(target: _Target, transport: paramiko.Transport) -> None:
    """Agree on ciphers, and on who the server is."""
    options = transport.get_security_options()
    options.ciphers = _preferring(_FAST_CIPHERS, options.ciphers)
    known = KnownHosts((*target.known_hosts, *target.known_hosts_global))
    wanted = [
        algorithm
        for kind in known.kinds(target.listed_name)
        for algorithm in (_RSA_SIGNATURES if kind == "ssh-rsa" else (kind,))
    ]
    options.key_types = _preferring(wanted, options.key_types)
    transport.banner_timeout = transport.handshake_timeout = transport.auth_timeout = ANSWER_S
    transport.start_client(timeout=ANSWER_S)
    key = transport.get_remote_server_key()
    trust = known.trust(target.listed_name, key.asbytes())
    if trust is not Trust.KNOWN:
        raise _distrust(target, key, trust)
    transport.set_keepalive(SILENCE_S)


def _distrust(target: _Target, key: paramiko.PKey, trust: Trust) -> RemoteRefused:
    shown = f"{key.get_name()} {fingerprint(key.asbytes())}"
    if trust is Trust.REVOKED:
        return RemoteRefused(f"the host key of {target.listed_name} is revoked: {shown}", hint="do not connect")
    path = target.known_hosts[0]
    command = command_to_accept(target.listed_name, key.get_name(), key.asbytes(), path, trust)
    if trust is Trust.CHANGED:
        return RemoteRefused(
            f"the host key of {target.listed_name} has CHANGED: it is now {shown}",
            hint=f"somebody may be listening in; only if you know why it changed, accept it with: {command}",
        )
    return RemoteRefused(
        f"the host key of {target.listed_name} is not known: {shown}",
        hint=f"if that is the server's fingerprint, accept it with: {command}",
    )


def _authenticate(target: _Target, transport: paramiko.Transport) -> None:
    """Offer the keys one after the other, as ssh does: named ones first.

    Raises: RemoteRefused; and paramiko's own exceptions when the connection breaks.
    """
    agent = paramiko.Agent()
    try:
        _offer_keys(target, transport, agent)
    finally:
        agent.close()


def _offer_keys(target: _Target, transport: paramiko.Transport, agent: paramiko.Agent) -> None:
    tried: list[str] = []
    locked: list[str] = []
    for name, key in _keys(target, agent, locked):
        tried.append(name)
        try:
            if not transport.auth_publickey(target.user, key):
                return
        except paramiko.BadAuthenticationType:
            break
        except paramiko.AuthenticationException:
            if not transport.is_active():
                break  # too many keys for the server's patience
            continue
        raise RemoteRefused(f"{target} wants more than a key to log in", hint="syncer can answer no questions")
    said = f"{target} accepts none of our keys ({', '.join(tried) or 'there are none'})"
    if locked:
        said += f"; {', '.join(locked)} cannot be used without a passphrase"
    raise RemoteRefused(
        said,
        hint="give your key to the agent with ssh-add, or name it with IdentityFile in ~/.ssh/config, and let "
        "ssh-copy-id put it on the server",
    )


def _keys(target: _Target, agent: paramiko.Agent, locked: list[str]) -> Iterator[tuple[str, paramiko.PKey]]:
    """The keys to offer, each with a name for messages; names of those that need a passphrase go to *locked*."""
    public = {path: _public_blob(path) for path in target.identities}
    held = {key.asbytes(): key for key in agent.get_keys()}
    offered: set[bytes] = set()
    for path, blob in public.items():
        if blob is not None and blob in held:
            offered.add(blob)
            yield f"{path} from the agent", held[blob]
    if not target.identities_only:
        for blob, key in held.items():
            if blob not in offered:
                offered.add(blob)
                yield f"{key.get_name()} from the agent", key
    for path in target.identities:
        if public[path] in offered and public[path] is not None:
            continue
        try:
            loaded = paramiko.PKey.from_path(path)
        except FileNotFoundError:
            continue
        except (OSError, ValueError, TypeError, paramiko.SSHException, UnknownKeyType):
            locked.append(str(path))
            continue
        yield str(path), loaded


def _public_blob(path: Path) -> bytes | None:
    """The public half that lies beside the private key *path*, if it does."""
    try:
        return bytes(PublicBlob.from_file(f"{path}.pub").key_blob)
    except (OSError, ValueError):
        return None


# --- configuration ------------------------------------------------------------------------------------------------


def _read_config() -> paramiko.SSHConfig:
    named = os.environ.get(CONFIG_VARIABLE)
    paths = [Path(named)] if named else [Path("~/.ssh/config").expanduser(), Path("/etc/ssh/ssh_config")]
    config = paramiko.SSHConfig()
    for path in paths:
        try:
            config.parse(_config_lines(path, 0))  # the first value of a word wins, over all files
        except FileNotFoundError as error:
            if named:
                raise RemoteRefused(f"{CONFIG_VARIABLE} names {path}, which is not there") from error
        except (OSError, paramiko.SSHException) as error:
            raise RemoteRefused(f"cannot read ssh's configuration {path}: {error}") from error
    return config


def _config_lines(path: Path, depth: int) -> Iterator[str]:
    """The lines of a file with those of the files it includes (paramiko leaves Include out)."""
    home = "/etc/ssh" if path.is_relative_to("/etc/ssh") else os.path.expanduser("~/.ssh")
    block = "Host *"
    for line in path.read_text().splitlines():
        word, _, rest = line.strip().partition(" ")
        if word.lower() in ("host", "match"):
            block = line
        if word.lower() != "include" or depth > 16:
            yield line
            continue
        for pattern in shlex.split(rest):
            for included in sorted(glob.glob(os.path.join(home, os.path.expanduser(pattern)))):
                with contextlib.suppress(FileNotFoundError):
                    yield from _config_lines(Path(included), depth + 1)
        yield block


def _target(config: paramiko.SSHConfig, alias: str, user: str | None, port: int | None) -> _Target:
    try:
        found = config.lookup(alias)
        configured_port = int(found.get("port", 22))
    except (ValueError, KeyError, ImportError, paramiko.SSHException) as error:
        raise RemoteRefused(f"ssh's configuration makes no sense for {alias}: {error}") from error
    command = found.get("proxycommand")
    jumps = [jump.strip() for jump in found.get("proxyjump", "none").split(",")]
    if command and jumps == ["none"]:
        raise RemoteRefused(f"{alias} is reached through a ProxyCommand", hint="syncer can use ProxyJump instead")
    identities = found.get("identityfile") or [f"~/.ssh/{name}" for name in _DEFAULT_KEYS]
    return _Target(
        alias=alias,
        host=found["hostname"],
        port=port or configured_port,
        user=user or found.get("user") or getpass.getuser(),
        identities=tuple(Path(path).expanduser() for path in identities if path.lower() != "none"),
        identities_only=found.get("identitiesonly", "no").lower() == "yes",
        known_hosts=_paths(found.get("userknownhostsfile", "~/.ssh/known_hosts ~/.ssh/known_hosts2")),
        known_hosts_global=_paths(found.get("globalknownhostsfile", "/etc/ssh/ssh_known_hosts")),
        host_key_alias=found.get("hostkeyalias"),
        jumps=() if jumps == ["none"] else tuple(jumps),
    )


def _jump_target(config: paramiko.SSHConfig, jump: str) -> _Target:
    """What one word of ProxyJump means: [user@]host[:port], or the same as an ssh:// URL."""
    match = re.fullmatch(r"(?:ssh://)?(?:(.+)@)?(\[[^\]]+\]|[^:]+)(?::(\d+))?", jump)
    if match is None:
        raise RemoteRefused(f"ProxyJump {jump} in ssh's configuration makes no sense")
    return _target(config, match[2].strip("[]"), match[1], int(match[3]) if match[3] else None)


def _paths(value: str) -> tuple[Path, ...]:
    return tuple(Path(path).expanduser() for path in shlex.split(value))


def _preferring(wanted: Sequence[str], offered: Sequence[str]) -> tuple[str, ...]:
    """*offered* in another order: what is *wanted* comes first."""
    first = [name for name in dict.fromkeys(wanted) if name in offered]
    return (*first, *(name for name in offered if name not in first))


# --- streams ------------------------------------------------------------------------------------------------------


class _Wire:
    """What paramiko needs of a socket, and the moment it last heard something."""

    def __init__(self, inner: "socket.socket | paramiko.Channel") -> None:
        self._inner = inner
        self.heard_at = time.monotonic()

    def recv(self, size: int) -> bytes:
        data = self._inner.recv(size)
        self.heard_at = time.monotonic()
        return data

    def send(self, data: bytes) -> int:
        return self._inner.send(data)

    def settimeout(self, timeout_s: float | None) -> None:
        self._inner.settimeout(timeout_s)

    def close(self) -> None:
        with contextlib.suppress(*_FAILURES):  # of a channel through a jump host that is gone
            self._inner.close()

    @property
    def _closed(self) -> bool:
        """Looked at by paramiko when it ends."""
        return bool(self._inner._closed)  # type: ignore[union-attr]


class _ChannelStream:
    """A channel as `sftp_session.Stream`, with OSError for everything that breaks it."""

    def __init__(self, channel: paramiko.Channel) -> None:
        self._channel = channel

    def sendall(self, data: bytes, /) -> None:
        # Channel.sendall would copy the whole rest for every packet.
        rest = memoryview(data)
        try:
            while rest:
                sent = self._channel.send(rest)  # type: ignore[arg-type]
                if not sent:
                    raise ConnectionResetError("the channel was closed")
                rest = rest[sent:]
        except (paramiko.SSHException, EOFError) as error:
            raise ConnectionResetError(str(error)) from error

    def recv(self, size: int, /) -> bytes:
        return self._channel.recv(size)

    def close(self) -> None:
        with contextlib.suppress(*_FAILURES):
            self._channel.close()
