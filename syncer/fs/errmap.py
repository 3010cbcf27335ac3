"""From our exceptions to the errno a system call returns. The only place that knows both."""

import errno
import logging

from syncer.errors import BudgetExhausted, SyncerError

log = logging.getLogger(__name__)


def errno_of(error: BaseException) -> int:
    """The errno for *error*. What has no better one is EIO; what nobody expected is logged with its traceback."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    if isinstance(error, BudgetExhausted):
        return errno.ENOSPC
    if isinstance(error, SyncerError):
        log.warning("a call failed: %s", error)
        return errno.EIO
    log.error("a call failed unexpectedly", exc_info=error)
    return errno.EIO
