"""What others have changed since a restoration was planned, told by the times of change of inodes."""

import time

from syncer.meta.inodes import Inode


class SincePlan:
    """Knows the moment of the plan, and which inodes the restoration itself has changed since."""

    def __init__(self, planned_ns: int) -> None:
        self._planned_ns = planned_ns
        self._ours: set[int] = set()

    def own(self, number: int) -> None:
        """From now on the inode's time of change is ours. To be said of those that another name may lead to."""
        self._ours.add(number)

    def is_newer(self, inode: Inode) -> bool:
        """Whether it is a file that others have changed since. Of a directory the names in it are looked at instead.

        A time of change that is still to come tells nothing: the clock has been wrong.
        """
        if inode.is_directory or inode.number in self._ours:
            return False
        return self._planned_ns <= inode.ctime_ns <= time.time_ns()
