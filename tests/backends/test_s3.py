"""S3's own ways: credentials, endpoints, profiles, buckets, and what its answers mean."""

import traceback
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from botocore import exceptions as boto_errors
from botocore.auth import S3SigV4QueryAuth

from syncer.backends.open import open_backend
from syncer.backends.s3 import S3Backend, _translate
from syncer.errors import (
    BackendError,
    ObjectCorrupt,
    ObjectMissing,
    RemoteFull,
    RemoteRefused,
    RemoteUnreachable,
)
from tests.backends.test_contract import listed
from tests.support.collection import random_bytes
from tests.support.servers import S3Server

pytestmark = pytest.mark.slow


@pytest.fixture
def server(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    yield s3_server


async def everything_is_refused(url: str, message: str) -> None:
    async with open_backend(url) as backend:
        for call in (
            lambda: backend.put("object", b""),
            lambda: backend.get("object"),
            lambda: backend.get("object", 1, 2),
            lambda: backend.stat("object"),
            lambda: backend.delete("object"),
            lambda: listed(backend),
        ):
            with pytest.raises(RemoteRefused) as caught:
                await call()
            assert message in f"{caught.value} ({caught.value.hint})"


async def test_no_such_bucket(server: S3Server) -> None:
    """A HEAD has no body to say so: it must not look like a missing object."""
    await everything_is_refused("s3://no-such-bucket/blobs", "create the bucket first")


async def test_wrong_credentials(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not the right one")
    await everything_is_refused(server.url(), "check the credentials")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    await everything_is_refused(server.url(), "check the credentials")


async def test_no_credentials(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    await everything_is_refused(server.url(), "check the credentials")


async def test_the_endpoint_in_the_url(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    # A name instead of an address: only path style works here, since nobody knows bucket.localhost.
    url = f"{server.url('in-the-url')}?endpoint=http://localhost:{server.port}&region=us-east-1"
    async with open_backend(url) as backend:
        await backend.put("object", b"data")
        assert await backend.get("object") == b"data"


def test_the_region_in_the_url(server: S3Server) -> None:
    """Looked at inside, because the test server takes requests that are signed for any region."""
    backend = open_backend(f"{server.url()}?region=eu-central-7")
    assert isinstance(backend, S3Backend)
    assert backend._made_client().meta.region_name == "eu-central-7"


async def test_a_profile(server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in server.environment:
        monkeypatch.delenv(name)
    (tmp_path / "config").write_text(f"[profile blobs]\nregion = us-east-1\nendpoint_url = {server.endpoint}\n")
    (tmp_path / "credentials").write_text(
        f"[blobs]\naws_access_key_id = {server.access_key}\naws_secret_access_key = {server.secret_key}\n"
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    async with open_backend(f"{server.url('profile')}?profile=blobs") as backend:
        await backend.put("object", b"data")
    await everything_is_refused(f"{server.url()}?profile=nobody", "profile (nobody) could not be found")


async def test_an_endpoint_that_is_no_address(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "nonsense")
    await everything_is_refused(server.url(), "check AWS_ENDPOINT_URL")


async def ordinary_gets(backend: S3Backend, work: Callable[[], Awaitable[None]]) -> int:
    """How many GetObject calls boto3 makes during *work*."""
    names: list[str] = []
    events = backend._made_client().meta.events
    events.register("before-send.s3.GetObject", lambda **_: names.append("get"), unique_id="count")
    await work()
    events.unregister("before-send.s3.GetObject", unique_id="count")
    return len(names)


@pytest.mark.parametrize("prefix", ["", "ranges", "a b/ü+%3F&=?"])
async def test_ranges_need_no_call_of_boto3(server: S3Server, prefix: str) -> None:
    key, content = "packs/ab/object", random_bytes(300_000, 1)
    async with S3Backend("s3", bucket=server.bucket, prefix=prefix) as backend:
        await backend.put(key, content)

        async def some() -> None:
            for offset, length in ((0, 1), (1, 299_999), (123_456, 65_536)):
                assert await backend.get(key, offset, length) == content[offset : offset + length]

        assert await ordinary_gets(backend, some) == 0

        async def beyond_the_end() -> None:
            with pytest.raises(ObjectCorrupt):
                await backend.get(key, 299_999, 5)

        assert await ordinary_gets(backend, beyond_the_end) == 1


async def test_a_signature_that_is_refused(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that takes no signed URLs is asked the ordinary way."""
    async with open_backend(server.url("refused")) as backend:
        assert isinstance(backend, S3Backend)
        await backend.put("object", b"content")
        monkeypatch.setattr(S3SigV4QueryAuth, "add_auth", lambda *_: None)  # so it is not signed at all

        async def twice() -> None:
            assert await backend.get("object", 0, 3) == b"con"
            assert await backend.get("object", 3, 4) == b"tent"

        assert await ordinary_gets(backend, twice) == 2


async def test_errors_do_not_tell_signatures(server: S3Server, caplog: pytest.LogCaptureFixture) -> None:
    with S3Server() as mortal, pytest.MonkeyPatch.context() as patch:
        for name, value in mortal.environment.items():
            patch.setenv(name, value)
        async with open_backend(mortal.url()) as backend:
            await backend.put("object", b"content")
            assert await backend.get("object", 0, 3) == b"con"
            mortal.stop()
            with pytest.raises(RemoteUnreachable) as caught:
                await backend.get("object", 0, 3)
    told = "".join(traceback.format_exception(caught.value)) + caplog.text
    assert "X-Amz" not in told and mortal.access_key not in told


async def test_prefixes_keep_apart(server: S3Server) -> None:
    async with (
        open_backend(server.url("apart/a")) as one,
        open_backend(server.url("apart/ab")) as other,
        open_backend(server.url("")) as whole,
    ):
        await one.put("x", b"one")
        await other.put("x", b"other")
        assert await listed(one) == {"x": 3}
        assert await one.get("x") == b"one"
        assert {"apart/a/x": 3, "apart/ab/x": 5}.items() <= (await listed(whole)).items()


def answer(code: str, status: int) -> boto_errors.ClientError:
    return boto_errors.ClientError(
        {"Error": {"Code": code, "Message": "said the server"}, "ResponseMetadata": {"HTTPStatusCode": status}},  # type: ignore[typeddict-item]
        "PutObject",
    )


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (answer("NoSuchKey", 404), ObjectMissing),
        (answer("404", 404), ObjectMissing),
        (answer("NoSuchBucket", 404), RemoteRefused),
        (answer("AccessDenied", 403), RemoteRefused),
        (answer("ExpiredToken", 400), RemoteRefused),
        (answer("InvalidArgument", 400), RemoteRefused),
        (answer("SlowDown", 503), RemoteUnreachable),
        (answer("InternalError", 500), RemoteUnreachable),
        (answer("RequestTimeout", 400), RemoteUnreachable),
        (answer("429", 429), RemoteUnreachable),
        (answer("", 502), RemoteUnreachable),
        (answer("QuotaExceeded", 403), RemoteFull),
        (answer("XMinioStorageFull", 507), RemoteFull),
        (answer("", 507), RemoteFull),
        (boto_errors.EndpointConnectionError(endpoint_url="http://x", error="no"), RemoteUnreachable),
        (boto_errors.ConnectTimeoutError(endpoint_url="http://x"), RemoteUnreachable),
        (boto_errors.ReadTimeoutError(endpoint_url="http://x"), RemoteUnreachable),
        (boto_errors.ConnectionClosedError(endpoint_url="http://x"), RemoteUnreachable),
        (boto_errors.ResponseStreamingError(error="broken"), RemoteUnreachable),
        (boto_errors.IncompleteReadError(actual_bytes=1, expected_bytes=2), RemoteUnreachable),
        (boto_errors.SSLError(endpoint_url="https://x", error=ValueError("certificate")), RemoteRefused),
        (boto_errors.NoCredentialsError(), RemoteRefused),
        (ConnectionResetError(104, "reset"), RemoteUnreachable),
    ],
)
def test_what_answers_mean(error: Exception, expected: type[BackendError]) -> None:
    translated = _translate(error, "s3://bucket", "key")
    assert type(translated) is expected
    assert "s3://bucket" in str(translated)
