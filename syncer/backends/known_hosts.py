"""The host keys the user trusts: files in the format of sshd(8), "SSH_KNOWN_HOSTS FILE FORMAT". Read only.

Understood are plain, hashed, wildcard and negated names and `@revoked`. A `@cert-authority` line trusts nothing here:
host certificates are not checked, so such a host is unknown until its own key is listed.
"""

import base64
import binascii
import hashlib
import hmac
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from fnmatch import fnmatchcase
from pathlib import Path


class Trust(Enum):
    KNOWN = "known"
    UNKNOWN = "unknown"
    CHANGED = "changed"
    """Keys of this host are listed, and this is none of them."""
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True)
class _Line:
    marker: str
    names: str
    kind: str
    key: bytes


class KnownHosts:
    """What the files said when this was made."""

    def __init__(self, paths: Iterable[Path]) -> None:
        """Files that are missing or may not be read list nothing; so do lines that make no sense."""
        self._lines = [line for path in paths for line in _read(path)]

    def kinds(self, name: str) -> list[str]:
        """The types of key listed for *name*, to ask the server for one of these first."""
        return [line.kind for line in self._lines if not line.marker and _matches(name, line.names)]

    def trust(self, name: str, key: bytes) -> Trust:
        """What to think of *name* when it shows the public key blob *key*."""
        lines = [line for line in self._lines if _matches(name, line.names)]
        if any(line.marker == "@revoked" and line.key == key for line in lines):
            return Trust.REVOKED
        listed = [line for line in lines if not line.marker]
        if any(line.key == key for line in listed):
            return Trust.KNOWN
        return Trust.CHANGED if listed else Trust.UNKNOWN


def listed_name(host: str, port: int) -> str:
    """How the files write a host: with its port unless it is the usual one."""
    return host.lower() if port == 22 else f"[{host.lower()}]:{port}"


def fingerprint(key: bytes) -> str:
    """As `ssh-keygen -l` and ssh's own question show it."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(key).digest()).decode().rstrip("=")


def command_to_accept(name: str, kind: str, key: bytes, path: Path, trust: Trust) -> str:
    """The shell command that makes the file *path* trust *key* for *name*, and no older key."""
    line = f"{name} {kind} {base64.b64encode(key).decode()}"
    command = f"echo {shlex.quote(line)} >> {shlex.quote(str(path))}"
    if trust is Trust.CHANGED:
        return f"ssh-keygen -R {shlex.quote(name)} -f {shlex.quote(str(path))} && {command}"
    return command


def _read(path: Path) -> Iterator[_Line]:
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return
    for line in text.splitlines():
        fields = line.split()
        if not fields or fields[0].startswith("#"):
            continue
        marker = fields.pop(0) if fields[0].startswith("@") else ""
        if len(fields) < 3:
            continue
        try:
            key = base64.b64decode(fields[2], validate=True)
        except binascii.Error:
            continue
        yield _Line(marker, fields[0], fields[1], key)


def _matches(name: str, patterns: str) -> bool:
    """Whether one of *patterns* (separated by commas) is *name*, and no negated one is."""
    found = False
    for pattern in patterns.split(","):
        if pattern.startswith("|1|"):
            found = found or _matches_hash(name, pattern)
            continue
        negated = pattern.startswith("!")
        # Brackets are literal here: they hold a host that is listed with its port.
        if fnmatchcase(name, pattern.lstrip("!").lower().replace("[", "[[]")):
            if negated:
                return False
            found = True
    return found


def _matches_hash(name: str, pattern: str) -> bool:
    try:
        salt, digest = (base64.b64decode(part, validate=True) for part in pattern[3:].split("|"))
    except ValueError:
        return False
    return hmac.compare_digest(hmac.digest(salt, name.encode(), "sha1"), digest)
