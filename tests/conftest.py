"""Fixtures for all tests. The servers start when the first test asks for one, and are shared by the whole run.

A test that stops a server, freezes it or changes its files starts one of its own: `with SshServer() as server`.
"""

import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.support.servers import RsyncServer, S3Server, SshServer


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--posix-on", metavar="DIR", help="run the POSIX tests below DIR instead of on a mount")


def pytest_configure() -> None:
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a shell's background job; what we start would ignore it too
        signal.signal(signal.SIGINT, signal.default_int_handler)
    settings.register_profile("syncer", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("syncer")  # how long something takes on a busy machine is no failure


@pytest.fixture(scope="session")
def ssh_server() -> Iterator[SshServer]:
    with SshServer() as server:
        yield server


@pytest.fixture(scope="session")
def rsync_server() -> Iterator[RsyncServer]:
    with RsyncServer() as server:
        yield server


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    with S3Server() as server:
        yield server
