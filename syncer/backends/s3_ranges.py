"""Ranges of S3 objects over URLs that are signed once and asked often.

boto3 takes about 3 ms of Python to build, sign and read one request; a range of a pack is asked for with a signed URL
that is kept, and costs a third of that. Whatever is unusual is left to the ordinary call, which knows what it means.
Used by s3.py alone, in its threads.
"""

import time
from typing import TYPE_CHECKING

from botocore import exceptions as boto_errors
from botocore.auth import S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.httpsession import URLLib3Session
from botocore.session import Session
from botocore.utils import get_environ_proxies
from urllib3.exceptions import HTTPError

if TYPE_CHECKING:
    from botocore.awsrequest import AWSResponse
    from mypy_boto3_s3 import S3Client

SIGNED_S = 900
"""How long a URL is valid; after two thirds of that another one is made."""
KEPT_URLS = 4096
REFUSED_S = 600.0
"""A server that refuses a signed URL is asked the ordinary way for so long."""
_REFUSALS = {400, 401, 403, 405, 501}


class SignedRanges:
    def __init__(
        self, session: Session, client: "S3Client", bucket: str, *, timeout_s: tuple[float, float], connections: int
    ) -> None:
        """*timeout_s* is for connecting, and for a server that sends nothing; *connections* are kept at most."""
        self._session = session
        self._client = client
        self._bucket = bucket
        self._urls: dict[str, tuple[float, str]] = {}
        self._ordinary_until = 0.0
        self._http = URLLib3Session(
            verify=session.get_config_variable("ca_bundle") or True,
            proxies=get_environ_proxies(client.meta.endpoint_url),
            timeout=timeout_s,  # type: ignore[arg-type]  # a pair is right; the stubs know of one number only
            max_pool_connections=connections,
        )

    def close(self) -> None:
        """Close the connections that are idle."""
        self._http.close()

    def get(self, name: str, start: int, length: int) -> bytes | None:
        """*length* bytes of the object from *start* on; None: ask the ordinary way.

        Raises:
            OSError: the server cannot be reached, or is overloaded. The message does not have the signature in it.
        """
        if time.monotonic() < self._ordinary_until or (url := self._signed(name)) is None:
            return None
        wanted = f"bytes {start}-{start + length - 1}/"
        headers = {"Range": f"bytes={start}-{start + length - 1}"}
        try:
            response = self._http.send(AWSRequest("GET", url, headers=headers, stream_output=True).prepare())
            if response.status_code == 206 and response.headers.get("Content-Range", "").startswith(wanted):
                data: bytes = response.raw.read()
                return data if len(data) == length else None
            self._refused(name, response)
        except (boto_errors.BotoCoreError, HTTPError) as error:
            raise ConnectionError(str(error).replace(url, url.partition("?")[0])) from None
        return None

    def _refused(self, name: str, response: "AWSResponse") -> None:
        """Raises: OSError: the server is in trouble, and must not be asked again at once."""
        response.raw.close()
        self._urls.pop(name, None)
        if response.status_code in _REFUSALS:
            self._ordinary_until = time.monotonic() + REFUSED_S
        elif response.status_code == 429 or response.status_code >= 500:
            raise ConnectionError(f"the server answers with status {response.status_code}")

    def _signed(self, name: str) -> str | None:
        """A URL for the object that anybody may read; None without credentials."""
        made, url = self._urls.get(name, (0.0, ""))
        if url and time.monotonic() - made < SIGNED_S * 2 / 3:
            return url
        credentials = self._session.get_credentials()
        if credentials is None:
            return None
        parameters = {"Bucket": self._bucket, "Key": name}
        plain = self._client.generate_presigned_url("get_object", Params=parameters).partition("?")[0]
        request = AWSRequest("GET", plain)
        frozen = credentials.get_frozen_credentials()
        S3SigV4QueryAuth(frozen, "s3", self._client.meta.region_name, expires=SIGNED_S).add_auth(request)
        if len(self._urls) >= KEPT_URLS:
            self._urls.pop(next(iter(self._urls)), None)
        url = str(request.url)
        self._urls[name] = (time.monotonic(), url)
        return url
