"""Very many changes, in the order of their paths and in little memory: a comparison may find a million of them.

Each is kept as the bytes of what is told of it, behind those it is sorted by. Pure.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import overload

import msgspec

from syncer.snapshots.diff import Kind

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(dict[str, object]).decode


class ChangeList(Sequence[dict[str, object]]):
    """What was added, sorted by path and kind. Takes some 200 bytes for each, besides its path."""

    def __init__(self) -> None:
        self._rows: list[bytes] = []
        self._is_sorted = True

    def add(self, path: bytes, kind: Kind, told: Mapping[str, object]) -> None:
        """*told*: JSON's types alone; text may have lone surrogates. Path and kind together are there once."""
        # No name has a NUL in it, so bytes are sorted as the lists of names would be.
        key = path.replace(b"/", b"\0") + b"\0\0" + kind.encode() + b"\0"
        self._rows.append(key + _encode({name: _packed(value) for name, value in told.items()}))
        self._is_sorted = False

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> dict[str, object]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, object]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, object] | list[dict[str, object]]:
        if not self._is_sorted:
            self._rows.sort()
            self._is_sorted = True
        if isinstance(index, slice):
            return [_told(row) for row in self._rows[index]]
        return _told(self._rows[index])

    def __iter__(self) -> Iterator[dict[str, object]]:
        return (self[index] for index in range(len(self)))


def _packed(value: object) -> object:
    """Text as bytes: it may have lone surrogates, which msgpack's text has not."""
    return value.encode(errors="surrogateescape") if isinstance(value, str) else value


def _told(row: bytes) -> dict[str, object]:
    _, _, rest = row.partition(b"\0\0")
    told = _decode(rest.partition(b"\0")[2])
    return {
        name: value.decode(errors="surrogateescape") if isinstance(value, bytes) else value
        for name, value in told.items()
    }
