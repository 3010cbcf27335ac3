"""What a remote's URL may be, and what it means."""

import subprocess
import sys
from pathlib import Path

import pytest

from syncer.backends.folder import FolderBackend
from syncer.backends.open import (
    FORMS,
    FolderRemote,
    Remote,
    RsyncRemote,
    S3Remote,
    SshRemote,
    check_url,
    open_backend,
    parse_url,
)
from syncer.errors import UsageError

ACCEPTED: dict[str, Remote] = {
    "/srv/blobs": FolderRemote(Path("/srv/blobs")),
    "/with a space:and@more": FolderRemote(Path("/with a space:and@more")),
    "file:///srv/blobs": FolderRemote(Path("/srv/blobs")),
    "file:///srv/a%20b%23": FolderRemote(Path("/srv/a b#")),
    "file://localhost/srv": FolderRemote(Path("/srv")),
    "host:blobs": SshRemote("host", "blobs"),
    "host:a//b/./c/": SshRemote("host", "a/b/c"),
    "host:/srv/blobs": SshRemote("host", "/srv/blobs"),
    "Alias:~/blobs": SshRemote("Alias", "blobs"),
    "user@host:~/blobs": SshRemote("host", "blobs", user="user"),
    "user@[2001:db8::1]:blobs": SshRemote("2001:db8::1", "blobs", user="user"),
    "host:what?#%20": SshRemote("host", "what?#%20"),
    "ssh://host/srv/blobs": SshRemote("host", "/srv/blobs"),
    "ssh://user@Host:2222/srv/a%20b": SshRemote("Host", "/srv/a b", user="user", port=2222),
    "ssh://user@host/~/blobs": SshRemote("host", "blobs", user="user"),
    "SSH://[2001:db8::1]:22/srv": SshRemote("2001:db8::1", "/srv", port=22),
    "rsync://host/module": RsyncRemote("host", "module", ""),
    "rsync://user@host:8730/module/a//b/": RsyncRemote("host", "module", "a/b", user="user", port=8730),
    "s3://bucket": S3Remote("bucket", ""),
    "s3://bucket/": S3Remote("bucket", ""),
    "s3://bucket/a/b/": S3Remote("bucket", "a/b"),
    "s3://my.bucket/p?endpoint=http://127.0.0.1:9000&region=eu-west-1&profile=work": S3Remote(
        "my.bucket", "p", endpoint="http://127.0.0.1:9000", region="eu-west-1", profile="work"
    ),
}

REFUSED = {
    "": "no remote",
    "  ": "no remote",
    "/with\na-newline": "no remote",
    "relative/folder": "is no remote",
    "./folder:x": "is no remote",
    "~/folder": "is no remote",
    "ftp://host/path": "unknown kind of remote ftp://",
    "http://host/bucket": "unknown kind of remote http://",
    "file://host/path": "three slashes",
    "file:///path?x=1": "options",
    "host:": "the path is missing",
    "host:/": "the path is missing",
    "host:~": "home folder itself",
    "host:~other/blobs": "home folder of another user",
    "host::module/path": "rsync://host/module/path",
    ":path": "the host is missing",
    "-oProxyCommand=x:path": "cannot be a host",
    "ho st:path": "cannot be a host",
    "ssh://host": "the path is missing",
    "ssh:///path": "the host is missing",
    "ssh://host:port/path": "Port could not be cast",
    "ssh://host:99999/path": "Port out of range",
    "ssh://host/path?x=1": "options",
    "ssh://user:secret@host/path": "there is a password in the remote ssh://…@host",
    "ssh://-host/path": "cannot be a host",
    "rsync://host": "the module is missing",
    "rsync:///module": "the host is missing",
    "rsync://host/module/../other": "may not contain ..",
    "rsync://host/module/a*": "wildcards",
    "rsync://user:secret@host/module": "there is a password",
    "s3://": "cannot be the name of a bucket",
    "s3://x": "cannot be the name of a bucket",
    "s3://key:secret@bucket": "there is a password",
    "s3://bucket:9000/x": "a bucket, a prefix and options only",
    "s3://bucket/x?endpoint=localhost:9000": "no http:// or https:// address",
    "s3://bucket/x?endpoint=http://a/b": "no http:// or https:// address",
    "s3://bucket/x?regoin=eu": "the options are endpoint, region, profile",
    "s3://bucket/x?region=a&region=b": "each once",
    "s3://bucket/x?region": "bad query field",
}


@pytest.mark.parametrize("url", ACCEPTED)
def test_accepted(url: str) -> None:
    assert parse_url(url) == ACCEPTED[url]
    check_url(url)


@pytest.mark.parametrize("url", REFUSED)
def test_refused(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_url(url)
    assert REFUSED[url] in str(caught.value)
    assert "secret" not in str(caught.value)
    assert caught.value.hint
    if "password" not in REFUSED[url]:
        assert FORMS in caught.value.hint


@pytest.mark.parametrize("url", ACCEPTED)
def test_opened_without_asking_anybody(url: str) -> None:
    assert open_backend(url).name == ("/srv/blobs" if url.startswith("file:///srv/b") else open_backend(url).name)


def test_a_folder_opened_is_that_folder(tmp_path: Path) -> None:
    assert isinstance(open_backend(str(tmp_path)), FolderBackend)
    assert open_backend(f"file://{tmp_path}").name == str(tmp_path)


@pytest.mark.parametrize("url", ["/srv/blobs", "host:blobs", "rsync://host/module"])
def test_the_large_libraries_are_not_imported(url: str) -> None:
    """They cost a quarter of a second at every start."""
    code = (
        "import sys\n"
        "from syncer.backends.open import open_backend\n"
        f"open_backend({url!r})\n"
        "assert not {'paramiko', 'boto3', 'botocore'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=Path(__file__).parents[2])
