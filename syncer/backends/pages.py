"""Listings as iterators over pages: what `Backend.list` returns, whatever the remote's own unit is.

Plain objects instead of async generators, because a generator cannot be asked again after it has raised, and because
dropping one half-way needs no closing.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Self

from syncer.backends.base import ObjectInfo, check_prefix

NextPage = Callable[[], Awaitable[Sequence[ObjectInfo] | None]]
"""Fetch the next page; None after the last one. When it raises, it must be able to fetch the same page again."""


class Pages(AsyncIterator[ObjectInfo]):
    """Every object of every page, holding one page at a time."""

    def __init__(self, next_page: NextPage) -> None:
        self._next_page = next_page
        self._page: Sequence[ObjectInfo] = ()
        self._position = 0
        self._ended = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ObjectInfo:
        while self._position == len(self._page):
            page = None if self._ended else await self._next_page()
            if page is None:
                self._ended = True
                self._page, self._position = (), 0
                raise StopAsyncIteration
            self._page, self._position = page, 0
        self._position += 1
        return self._page[self._position - 1]


@dataclass(frozen=True, slots=True)
class Folder:
    """What lies directly in one folder of a remote."""

    folders: Sequence[str]
    """Prefixes, each ending in "/"."""
    objects: Sequence[ObjectInfo]


def walk(read_folder: Callable[[str], Awaitable[Folder]], prefix: str) -> Pages:
    """Every object below *prefix*, a page a folder, deepest last.

    *read_folder* takes a prefix and must answer an empty Folder for one that is not there. Memory: the objects of one
    folder, and the names of the folders still to be read.
    """
    waiting = [check_prefix(prefix)]

    async def next_page() -> Sequence[ObjectInfo] | None:
        if not waiting:
            return None
        folder = await read_folder(waiting[-1])
        waiting.pop()
        waiting.extend(folder.folders)
        return folder.objects

    return Pages(next_page)
