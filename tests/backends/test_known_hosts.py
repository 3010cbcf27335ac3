"""Which host keys are trusted. ssh-keygen is the judge where it can be."""

import base64
import subprocess
from pathlib import Path

import pytest

from syncer.backends.known_hosts import KnownHosts, Trust, command_to_accept, fingerprint, listed_name

KEY = b"\0\0\0\x0bssh-ed25519\0\0\0 " + bytes(range(32))
OTHER = b"\0\0\0\x0bssh-ed25519\0\0\0 " + bytes(range(1, 33))


def line(names: str, key: bytes = KEY, *, marker: str = "", kind: str = "ssh-ed25519") -> str:
    return f"{marker} {names} {kind} {base64.b64encode(key).decode()} a comment\n".lstrip()


def trust(folder: Path, text: str, name: str, key: bytes = KEY) -> Trust:
    path = folder / "known_hosts"
    path.write_text(text)
    return KnownHosts([folder / "missing", path]).trust(name, key)


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        (line("host"), "host", Trust.KNOWN),
        (line("host,10.0.0.1"), "10.0.0.1", Trust.KNOWN),
        (line("host"), "hos", Trust.UNKNOWN),
        (line("host"), "[host]:2222", Trust.UNKNOWN),
        (line("[host]:2222"), "[host]:2222", Trust.KNOWN),
        (line("[host]:2222"), "h", Trust.UNKNOWN),
        (line("Host"), "host", Trust.KNOWN),
        (line("*.example.org"), "a.example.org", Trust.KNOWN),
        (line("*.example.org"), "example.org", Trust.UNKNOWN),
        (line("*.example.org,!b.example.org"), "b.example.org", Trust.UNKNOWN),
        (line("host?"), "host1", Trust.KNOWN),
        (line("host", OTHER), "host", Trust.CHANGED),
        (line("host", OTHER) + line("host"), "host", Trust.KNOWN),
        (line("host") + line("host", marker="@revoked"), "host", Trust.REVOKED),
        (line("*", marker="@revoked"), "host", Trust.REVOKED),
        (line("*", OTHER, marker="@revoked"), "host", Trust.UNKNOWN),
        (line("*", marker="@cert-authority"), "host", Trust.UNKNOWN),
        ("# " + line("host"), "host", Trust.UNKNOWN),
        (
            "\n\nhost\nhost ssh-ed25519\nhost ssh-ed25519 !!!\n@revoked\n|1|x|y ssh-ed25519 AAAA\n",
            "host",
            Trust.UNKNOWN,
        ),
        ("", "host", Trust.UNKNOWN),
    ],
)
def test_trust(tmp_path: Path, text: str, name: str, expected: Trust) -> None:
    assert trust(tmp_path, text, name) is expected


@pytest.mark.parametrize("name", ["host", "[host]:2222"])
def test_hashed_names(tmp_path: Path, name: str) -> None:
    path = tmp_path / "known_hosts"
    path.write_text(line(name) + line("elsewhere", OTHER))
    subprocess.run(["ssh-keygen", "-H", "-f", path], check=True, capture_output=True)
    assert "host" not in path.read_text().replace("ssh-", "")
    known = KnownHosts([path])
    assert known.trust(name, KEY) is Trust.KNOWN
    assert known.trust(name, OTHER) is Trust.CHANGED
    assert known.trust("third", KEY) is Trust.UNKNOWN
    assert known.kinds(name) == ["ssh-ed25519"]


def test_fingerprint(tmp_path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "key"], check=True)
    said = subprocess.run(["ssh-keygen", "-l", "-f", tmp_path / "key"], check=True, capture_output=True, text=True)
    key = base64.b64decode((tmp_path / "key.pub").read_text().split()[1])
    assert fingerprint(key) == said.stdout.split()[1]


def test_listed_names() -> None:
    assert listed_name("Host.Example", 22) == "host.example"
    assert listed_name("2001:db8::1", 2222) == "[2001:db8::1]:2222"


@pytest.mark.parametrize("before", [Trust.UNKNOWN, Trust.CHANGED])
def test_the_command_makes_it_known(tmp_path: Path, before: Trust) -> None:
    path = tmp_path / "known hosts"
    path.write_text(line("[host]:2222", OTHER) if before is Trust.CHANGED else "")
    assert KnownHosts([path]).trust("[host]:2222", KEY) is before
    command = command_to_accept("[host]:2222", "ssh-ed25519", KEY, path, before)
    assert "\n" not in command
    subprocess.run(command, shell=True, check=True, capture_output=True)
    assert KnownHosts([path]).trust("[host]:2222", KEY) is Trust.KNOWN
    assert KnownHosts([path]).trust("[host]:2222", OTHER) is Trust.CHANGED
