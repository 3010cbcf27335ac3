"""Random sequences of steps for the driver, and what makes a failing one short.

Every sequence follows from its seed. Each leaves some kinds of steps out and prefers others, so that rare
combinations come up; most are about few files, so that steps meet each other.
"""

import random
import time
from collections.abc import Callable, Sequence

from tests.support.core_driver import Step

Chooser = random.Random


def _few(choose: Chooser) -> int:
    return choose.choice((0, 0, 0, 1, 1, 2, 3, 5))


def _size(choose: Chooser) -> tuple[int, int]:
    """A border's index and how far from it."""
    return choose.randrange(8), choose.choice((0, 0, -1, 1, choose.randint(-300, 300)))


def _write(choose: Chooser) -> Step:
    """file, place, offset border, size border, deviation, fill: most often random bytes at the end or inside."""
    place = choose.choice((0, 0, 1, 2, 2))
    return ("write", _few(choose), place, choose.randrange(8), *_size(choose), choose.randrange(60))


_KINDS: dict[str, tuple[float, Callable[[Chooser], Step]]] = {
    "create": (4, lambda c: ("create", _few(c), c.randrange(5), c.choice((0, 0, 0, 1, 1, 2, 3, 4)))),
    "link": (1, lambda c: ("link", _few(c), _few(c), c.randrange(5))),
    "unlink": (1.5, lambda c: ("unlink", c.randrange(8))),
    "rmdir": (1, lambda c: ("rmdir", c.randrange(8))),
    "rename": (2, lambda c: ("rename", c.randrange(8), _few(c), c.randrange(5), c.random() < 0.8)),
    "exchange": (1, lambda c: ("exchange", c.randrange(8), c.randrange(8))),
    "scan": (2, lambda c: ("scan", c.choice((0, 0, 1)), c.randint(1, 2))),
    "write": (12, _write),
    "truncate": (3, lambda c: ("truncate", _few(c), *_size(c))),
    "read": (2, lambda c: ("read", _few(c), *_size(c))),
    "open": (1.5, lambda c: ("open", _few(c), c.random() < 0.3)),
    "close": (1, lambda c: ("close", c.randrange(4))),
    "look": (0.5, lambda c: ("look", _few(c))),
    "forget": (0.5, lambda c: ("forget", c.randrange(4))),
    "fsync": (0.5, lambda c: ("fsync", _few(c))),
    "chmod": (0.5, lambda c: ("chmod", _few(c), c.choice((0o600, 0o2775, 0o4755, 0)))),
    "chown": (0.5, lambda c: ("chown", _few(c), c.randrange(9), c.randrange(9))),
    "utimens": (0.5, lambda c: ("utimens", _few(c), c.randint(-(10**18), 4 * 10**18))),
    "setxattr": (0.7, lambda c: ("setxattr", _few(c), c.randrange(3), c.randrange(300))),
    "removexattr": (0.4, lambda c: ("removexattr", _few(c), c.randrange(3))),
    "commit": (2, lambda c: ("commit",)),
    "checkpoint": (0.7, lambda c: ("checkpoint",)),
    "seal": (2, lambda c: ("seal",)),
    "seal_beside": (2, lambda c: ("seal_beside",)),
    "yield": (3, lambda c: ("yield", c.randint(1, 4))),
    "wait": (1.5, lambda c: ("wait", c.choice((0.0, 0.15, 3.0)))),
    "evict": (2, lambda c: ("evict", c.randint(1, 3))),
    "restart": (0.5, lambda c: ("restart",)),
    "crash": (1.5, lambda c: ("crash", c.choice((0, c.randint(1, 12), c.randint(1, 60))))),
}
_ALWAYS = ("create", "write")


def generate(seed: int, length: int) -> list[Step]:
    """The sequence of *seed*: two files and a directory, then *length* random steps."""
    choose = Chooser(seed)
    weights = [weight * (1 if name in _ALWAYS else choose.choice((0, 1, 1, 3))) for name, (weight, _) in _KINDS.items()]
    makers = [maker for _, maker in _KINDS.values()]
    first: list[Step] = [("create", 0, 0, 0), ("create", 0, 1, 0), ("create", 0, 2, 1)]
    return first + [choose.choices(makers, weights)[0](choose) for _ in range(length)]


def shrink(steps: Sequence[Step], fails: Callable[[list[Step]], bool], seconds: float = 60.0) -> list[Step]:
    """Leave out what *steps* can do without and still fail, for as long as there is time."""
    short = list(steps)
    until = time.monotonic() + seconds
    size = max(1, len(short) // 2)
    while size:
        begin = 0
        while begin < len(short) and time.monotonic() < until:
            rest = short[:begin] + short[begin + size :]
            if fails(rest):
                short = rest
            else:
                begin += size
        size //= 2
    return short
