"""Why a server cannot be reached, in words: made of whatever the libraries below a backend raise."""

import errno
import os
import socket
from collections.abc import Iterator

from syncer.errors import NobodyListens, RemoteUnreachable

_NO_WAY = {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTDOWN, errno.EADDRNOTAVAIL}
_BROKEN = {errno.ECONNRESET, errno.EPIPE, errno.ECONNABORTED, errno.ESHUTDOWN}
_NETWORK_HINT = "see whether the network is there, and the server runs"


def unreachable(place: str, error: BaseException) -> RemoteUnreachable:
    """The error for *place*, a server as the user knows it, from what came out of its connection, or its causes."""
    for cause in _causes(error):
        match cause:
            case ConnectionRefusedError():
                return _nobody_listens(place)
            case socket.gaierror():
                return unknown_host(place)
            case TimeoutError():
                return RemoteUnreachable(f"{place}: it does not answer", hint=_NETWORK_HINT)
            case EOFError():
                return _broken_off(place)
            case OSError(errno=int(number)) if number in _NO_WAY:
                return RemoteUnreachable(f"{place}: there is no way to it ({os.strerror(number)})", hint=_NETWORK_HINT)
            case OSError(errno=int(number)) if number in _BROKEN:
                return _broken_off(place)
    said = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return RemoteUnreachable(f"{place}: {said}")


def _nobody_listens(place: str) -> NobodyListens:
    return NobodyListens(f"{place}: no server takes connections there", hint="see whether it runs, and on which port")


def unknown_host(place: str) -> RemoteUnreachable:
    return RemoteUnreachable(
        f"{place}: no host of that name is found", hint="see how it is spelled, and whether the network is there"
    )


def _broken_off(place: str) -> RemoteUnreachable:
    return RemoteUnreachable(f"{place}: it has broken off the connection", hint=_NETWORK_HINT)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, what it was made of, and so on: the libraries wrap what the socket has raised several times."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        yield error
        reason = getattr(error, "reason", None)  # urllib3's name for it
        inner = getattr(error, "kwargs", {}).get("error") if hasattr(error, "fmt") else None  # botocore's
        error = next((one for one in (inner, reason) if isinstance(one, BaseException)), None) or (
            error.__cause__ or error.__context__
        )
