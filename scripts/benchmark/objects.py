"""Bare clients of the servers: what is on S3, and S3 and SSH without a file system in between."""

import contextlib
import getpass
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tests.support.servers import S3Server, SshServer

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from paramiko import SFTPClient

_CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com")


@contextlib.contextmanager
def s3_client(server: S3Server, connections: int = 4) -> Iterator["S3Client"]:
    """boto3 with as many kept connections as threads are going to use it."""
    import boto3
    from botocore.config import Config

    client = boto3.client(
        "s3",
        endpoint_url=server.endpoint,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
        region_name="us-east-1",
        config=Config(max_pool_connections=connections, s3={"addressing_style": "path"}),
    )
    try:
        yield client
    finally:
        client.close()


def bucket_keys(server: S3Server) -> list[str]:
    """Every object in the server's bucket."""
    with s3_client(server) as client:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=server.bucket)
        return [entry["Key"] for page in pages for entry in page.get("Contents", [])]


@contextlib.contextmanager
def sftp_client(server: SshServer) -> Iterator["SFTPClient"]:
    """paramiko's SFTP on a connection with windows and a cipher that are not the limit."""
    import paramiko

    transport = paramiko.Transport(("127.0.0.1", server.port), default_window_size=2**27, default_max_packet_size=2**18)
    try:
        transport.get_security_options().ciphers = _CIPHERS
        key = paramiko.Ed25519Key.from_private_key_file(str(server.identity))
        transport.connect(username=getpass.getuser(), pkey=key)
        sftp = paramiko.SFTPClient.from_transport(transport, window_size=2**27, max_packet_size=2**18)
        assert sftp
        yield sftp
    finally:
        transport.close()
