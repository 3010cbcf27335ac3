"""Changes kept in little memory come out as they went in, sorted as lists of names would be."""

import os
import tracemalloc
from typing import get_args

from hypothesis import given, settings
from hypothesis import strategies as st

from syncer.snapshots.changelist import ChangeList
from syncer.snapshots.diff import Kind

names = st.binary(min_size=1, max_size=3).map(lambda name: name.translate(None, b"/\0") or b"x")
paths = st.lists(names, max_size=4).map(b"/".join)
kinds = st.sampled_from(get_args(Kind))
texts = paths.map(os.fsdecode)
sizes = st.none() | st.integers(0, 2**64 - 1)
told = st.fixed_dictionaries({"path": texts, "size": sizes, "aspects": st.lists(st.sampled_from("ab"))})


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.tuples(paths, kinds), told, max_size=8))
def test_a_list_gives_back_what_was_added_in_order(found: dict[tuple[bytes, Kind], dict[str, object]]) -> None:
    changes = ChangeList()
    for (path, kind), item in found.items():
        changes.add(path, kind, item)
    expected = [found[key] for key in sorted(found, key=lambda key: (key[0].split(b"/"), key[1]))]
    assert list(changes) == changes[:] == expected and len(changes) == len(expected)
    assert [changes[index] for index in range(-len(expected), 0)] == expected
    assert changes[1:3] == expected[1:3]


def test_a_million_need_no_gigabyte() -> None:
    changes = ChangeList()
    tracemalloc.start()
    try:
        for number in range(10_000):
            path = b"photos/2019/%05d.jpg" % number
            item: dict[str, object] = {"change": "added", "path": path.decode(), "new_size": number, "aspects": []}
            changes.add(path, "added", item)
        used_bytes = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert used_bytes < 10_000 * (200 + len(path))
