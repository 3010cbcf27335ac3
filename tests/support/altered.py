"""The `syncer` command with something altered in it, for tests of what must hold all the same, or must not.

    python -m tests.support.altered ALTERATIONS ARGUMENT...

Alterations, joined by commas:
    rebooted        it believes that the machine has started anew since the last time
    kill=POINT:N    it ends as by SIGKILL at a named point, when it comes there for the Nth time
    unsynced=CALL   a call that makes something durable does nothing
    counts=N        what is dead on the remote is counted every N snapshots
"""

import os
import sys

from tests.support.kill_points import die_at
from tests.support.unsynced import forget_to_sync


def altered(*alterations: str) -> tuple[str, ...]:
    """The command that mounts, so altered."""
    return sys.executable, "-m", "tests.support.altered", ",".join(alterations)


def alter(alteration: str) -> None:
    kind, _, value = alteration.partition("=")
    match kind:
        case "rebooted":
            import syncer.disk

            syncer.disk.boot_id = lambda: os.urandom(16)
        case "kill":
            point, _, count = value.partition(":")
            die_at(point, int(count))
        case "unsynced":
            forget_to_sync(value)
        case "counts":
            import syncer.snapshots.housekeeping

            syncer.snapshots.housekeeping.COUNT_EVERY = int(value)
        case _:
            raise ValueError(alteration)


if __name__ == "__main__":
    for text in filter(None, sys.argv.pop(1).split(",")):
        alter(text)
    from syncer.cli.main import main

    sys.argv[0] = "syncer"
    main()
