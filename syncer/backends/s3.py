"""A remote that is a bucket, or a prefix in one, on S3 or any server that speaks its protocol.

Nothing but single puts, gets, heads, deletes and listings: no multipart (a pack is far below the limit of a put), no
conditional writes and no batched deletes, which many servers lack. A put is atomic by the protocol itself.

boto3 is used here and in s3_ranges.py alone; its calls block and run in threads. boto3's own retries are off,
RetryingBackend does that.
"""

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar, cast

import boto3
import botocore.session
import trio
from botocore import exceptions as boto_errors
from botocore.config import Config

from syncer.backends.base import Backend, ObjectInfo, check_key, check_prefix, check_range, resolve_range
from syncer.backends.pages import Pages
from syncer.backends.s3_ranges import SignedRanges
from syncer.backends.threads import in_thread
from syncer.backends.unreachable import unreachable
from syncer.errors import BackendError, ObjectMissing, RemoteFull, RemoteRefused, RemoteUnreachable

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import GetObjectRequestTypeDef, ListObjectsV2RequestTypeDef

T = TypeVar("T")

CONNECT_S = 10
SILENCE_S = 30
"""A server that sends nothing for so long ends the call, and with it the thread of a call that was given up."""
PAGE_KEYS = 1000

_MISSING = {"NoSuchKey", "NotFound", "404"}
_FULL = {"QuotaExceeded", "InsufficientStorage", "StorageFull", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded"}
_PASSING = {
    "SlowDown",
    "SlowDownRead",
    "SlowDownWrite",
    "Throttling",
    "ThrottlingException",
    "TooManyRequests",
    "RequestLimitExceeded",
    "RequestTimeout",
    "IncompleteBody",
    "BadDigest",
    "XAmzContentSHA256Mismatch",
    "OperationAborted",
}
_PASSING_STATUS = {408, 429}
_HINTS = {
    "NoSuchBucket": "create the bucket first",
    "AccessDenied": "check what these credentials may do with the bucket",
    "RequestTimeTooSkewed": "set this machine's clock",
    "ExpiredToken": "renew the credentials",
}
_CREDENTIALS_HINT = "check the credentials: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, ~/.aws, or ?profile="


class S3Backend(Backend):
    """See `Backend`. Credentials and settings come the usual ways of AWS's tools, looked up when first used."""

    parallelism = 8

    def __init__(
        self,
        name: str,
        *,
        bucket: str,
        prefix: str = "",
        endpoint: str | None = None,
        region: str | None = None,
        profile: str | None = None,
    ) -> None:
        """*prefix* has no slash at either end. What is None comes from AWS's environment and files."""
        self.name = name
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._endpoint = endpoint
        self._region = region
        self._profile = profile
        self._making = threading.Lock()
        self._client: S3Client | None = None
        self._ranges: SignedRanges | None = None
        self._bucket_seen = False
        self._slots = trio.Semaphore(self.parallelism)
        # The threads of calls that were given up go on until the server's silence ends them.
        self._threads = trio.CapacityLimiter(2 * self.parallelism)

    async def put(self, key: str, data: bytes | memoryview) -> None:
        name = self._name(key)
        body = _boto_bytes(data)
        await self._in_thread(key, lambda client: client.put_object(Bucket=self._bucket, Key=name, Body=body))

    async def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        self._name(key)
        check_range(offset, length)
        return await self._in_thread(key, lambda client: self._get(client, key, offset, length))

    async def stat(self, key: str) -> ObjectInfo:
        self._name(key)
        return await self._in_thread(key, lambda client: self._stat(client, key))

    def list(self, prefix: str = "") -> Pages:
        request: ListObjectsV2RequestTypeDef = {
            "Bucket": self._bucket,
            "Prefix": self._prefix + check_prefix(prefix),
            "MaxKeys": PAGE_KEYS,
        }
        ended = False

        async def next_page() -> list[ObjectInfo] | None:
            nonlocal ended
            if ended:
                return None
            page = await self._in_thread(prefix, lambda client: client.list_objects_v2(**request))
            token = page.get("NextContinuationToken")
            ended = not page.get("IsTruncated") or not token
            if token:
                request["ContinuationToken"] = token
            found = ((item["Key"].removeprefix(self._prefix), item["Size"]) for item in page.get("Contents", ()))
            return [ObjectInfo(key, size) for key, size in found if _is_key(key)]

        return Pages(next_page)

    async def delete(self, key: str) -> None:
        name = self._name(key)
        await self._in_thread(key, lambda client: client.delete_object(Bucket=self._bucket, Key=name))

    async def close(self) -> None:
        """Idle connections close at once; those of calls that were given up when their threads end."""
        if self._client is not None:
            self._client.close()
        if self._ranges is not None:
            self._ranges.close()
        await trio.lowlevel.checkpoint()

    def _name(self, key: str) -> str:
        return self._prefix + check_key(key)

    async def _in_thread(self, key: str, work: "Callable[[S3Client], T]") -> T:
        def translated() -> T:
            try:
                result = work(self._made_client())
            except (boto_errors.BotoCoreError, boto_errors.ClientError, OSError) as error:
                raise _translate(error, self.name, key) from error
            self._bucket_seen = True
            return result

        async with self._slots:
            return await in_thread(translated, self._threads)

    # --- in a thread from here on; only boto3's errors, OSError and BackendError come out --------------------------

    def _made_client(self) -> "S3Client":
        with self._making:
            if self._client is None:
                self._client = self._make_client()
            return self._client

    def _make_client(self) -> "S3Client":
        """Requests are in path style on every endpoint but AWS's own, unless the user's files say otherwise."""
        inner = botocore.session.Session(profile=self._profile)
        session = boto3.Session(botocore_session=inner, region_name=self._region)
        config = Config(
            connect_timeout=CONNECT_S,
            read_timeout=SILENCE_S,
            retries={"total_max_attempts": 1},
            max_pool_connections=2 * self.parallelism,
            tcp_keepalive=True,
            # The newer checksums need trailers that many servers do not know.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        region = session.region_name or "us-east-1"
        try:
            client = session.client("s3", region_name=region, endpoint_url=self._endpoint, config=config)
        except ValueError as error:  # an endpoint in the environment or a profile that is no URL
            raise RemoteRefused(f"{self.name}: {error}", hint="check AWS_ENDPOINT_URL") from error
        self._ranges = SignedRanges(
            inner,
            client,
            self._bucket,
            timeout_s=(CONNECT_S, SILENCE_S),
            connections=2 * self.parallelism,
        )
        return client

    def _get(self, client: "S3Client", key: str, offset: int, length: int | None) -> bytes:
        if length == 0:
            resolve_range(key, self._stat(client, key).size_bytes, offset, 0)
            return b""
        if length is not None and self._ranges is not None:
            data = self._ranges.get(self._name(key), offset, length)
            if data is not None:
                return data
        request: GetObjectRequestTypeDef = {"Bucket": self._bucket, "Key": self._name(key)}
        if offset or length is not None:
            request["Range"] = f"bytes={offset}-" + ("" if length is None else str(offset + length - 1))
        try:
            response = client.get_object(**request)
        except boto_errors.ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] != 416:
                raise
            resolve_range(key, self._stat(client, key).size_bytes, offset, length)
            return b""  # nothing is left after the last byte
        with response["Body"] as body:
            data = body.read()
        if "Range" in request and response["ResponseMetadata"]["HTTPStatusCode"] == 200:  # a server without ranges
            data = data[offset : offset + resolve_range(key, len(data), offset, length)]
        if length is not None and len(data) != length:
            resolve_range(key, offset + len(data), offset, length)
            raise RemoteUnreachable(f"{self.name} sent {len(data)} bytes of {key} instead of {length}")
        return data

    def _stat(self, client: "S3Client", key: str) -> ObjectInfo:
        try:
            return ObjectInfo(key, client.head_object(Bucket=self._bucket, Key=self._name(key))["ContentLength"])
        except boto_errors.ClientError as error:
            # The answer to a HEAD has no body that could tell a missing object from a missing bucket.
            if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404 and not self._bucket_seen:
                client.list_objects_v2(Bucket=self._bucket, MaxKeys=1)
            raise


def _boto_bytes(data: bytes | memoryview) -> bytes:
    """*data* as boto3 takes it, which is not as a memoryview: without a copy where it shows the whole of a buffer."""
    whole = data.obj if isinstance(data, memoryview) else data
    if isinstance(whole, bytes | bytearray) and len(whole) == memoryview(data).nbytes:
        return cast(bytes, whole)  # boto3 takes bytearrays, which its stubs do not say
    return bytes(data)


def _is_key(key: str) -> bool:
    try:
        check_key(key)
    except ValueError:
        return False
    return True


def _translate(error: Exception, name: str, key: str) -> BackendError:
    if isinstance(error, boto_errors.ClientError):
        return _translate_answer(error, name, key)
    message = f"{name}: {error}"
    match error:
        case (
            boto_errors.NoCredentialsError()
            | boto_errors.PartialCredentialsError()
            | boto_errors.CredentialRetrievalError()
            | boto_errors.ProfileNotFound()
            | boto_errors.TokenRetrievalError()
            | boto_errors.UnauthorizedSSOTokenError()
        ):
            return RemoteRefused(message, hint=_CREDENTIALS_HINT)
        case boto_errors.SSLError():
            return RemoteRefused(message, hint="check the server's certificate, or AWS_CA_BUNDLE")
        case (
            boto_errors.HTTPClientError()
            | boto_errors.ConnectionError()
            | boto_errors.IncompleteReadError()
            | boto_errors.MetadataRetrievalError()
            | OSError()
        ):
            return unreachable(name, error)
        case _:
            return RemoteRefused(message)


def _translate_answer(error: boto_errors.ClientError, name: str, key: str) -> BackendError:
    """The server's own words; see "Error responses" in the S3 API reference."""
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = error.response["ResponseMetadata"]["HTTPStatusCode"]
    message = f"{name}: {error.response.get('Error', {}).get('Message') or code} ({code}, status {status})"
    if code in _MISSING:
        return ObjectMissing(f"{name} has no {key}")
    if code in _FULL or status == 507:
        return RemoteFull(message)
    if code in _PASSING or status in _PASSING_STATUS or status >= 500:
        return RemoteUnreachable(message)
    return RemoteRefused(message, hint=_HINTS.get(code) or (_CREDENTIALS_HINT if status in (401, 403) else None))
