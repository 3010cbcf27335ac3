"""Fixtures for all tests. The servers start when the first test asks for one, and are shared by the whole run.

A test that stops a server, freezes it or changes its files starts one of its own: `with SshServer() as server`.
"""

import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling

from tests.support.servers import RsyncServer, S3Server, SshServer


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--posix-on", metavar="DIR", help="run the POSIX tests below DIR instead of on a mount")


def pytest_configure() -> None:
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a shell's background job; what we start would ignore it too
        signal.signal(signal.SIGINT, signal.default_int_handler)
    settings.register_profile("syncer", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("syncer")  # how long something takes on a busy machine is no failure


class _ByFile(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
    """The tests of a file go to one worker, in the order they were collected in.

    Those of tests/posix are first all on a plain folder and then all on a mount, which is then one for many files.
    """

    def _split_scope(self, nodeid: str) -> str:
        where = nodeid.split("::", 1)[0]
        return f"{where}[syncer]" if where.startswith("tests/posix/") and "[syncer" in nodeid else where


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> LoadScopeScheduling:
    config.option.loadscopereorder = False
    return _ByFile(config, log)


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
