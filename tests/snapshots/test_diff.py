"""What differs between two states, by nodes alone."""

import random
import stat
import tracemalloc
from collections.abc import Mapping

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from syncer.snapshots.diff import Change, Stat, Tally, each_change
from syncer.snapshots.nodes import Entry, Extent, Load
from syncer.snapshots.tree import build_directory
from tests.snapshots.nodebag import NodeBag
from tests.snapshots.test_tree import make_entry

Tree = Mapping[bytes, "Entry | Tree"]
DIRECTORY = stat.S_IFDIR | 0o755


class Forest:
    """Builds directories into one bag."""

    def __init__(self) -> None:
        self.bag = NodeBag()

    def directory(self, inode: int, content: Tree, name: bytes = b"") -> Entry:
        entries = []
        for child, found in content.items():
            if isinstance(found, Entry):
                entries.append(msgspec.structs.replace(found, name=child))
            else:
                number = found[b"#"]
                assert isinstance(number, Entry)
                rest = {key: value for key, value in found.items() if key != b"#"}
                entries.append(self.directory(number.inode, rest, child))
        tree = build_directory(sorted(entries, key=lambda entry: entry.name), self.bag.emit)
        return make_entry(name, inode, mode=DIRECTORY, tree=tree, size=0)


def file(inode: int, version: int = 0, **fields: object) -> Entry:
    extent = Extent(0, 10, bytes([version]) * 32, 0)
    return make_entry(b"x", inode, size=10, extents=(extent,), mtime_ns=version, ctime_ns=version, **fields)


def folder(inode: int, **content: "Entry | Tree") -> Tree:
    return {b"#": make_entry(b"#", inode), **{name.encode(): found for name, found in content.items()}}


def changes_of(old: Tree, new: Tree) -> list[Change]:
    forest = Forest()
    return compare(forest.directory(1, old), forest.directory(1, new), forest.bag.load)


def compare(old: Entry | None, new: Entry | None, load: Load, path: bytes = b"") -> list[Change]:
    changes: list[Change] = []
    each_change(old, new, load, changes.append, path)
    return sorted(changes, key=lambda change: (change.path.split(b"/"), change.kind))


def stat_of(changes: list[Change]) -> Stat:
    tally = Tally()
    for change in changes:
        tally.add(change)
    return tally.stat()


def told(old: Tree, new: Tree) -> list[tuple[object, ...]]:
    found = changes_of(old, new)
    return [(c.kind, c.path.decode(), *([c.old_path.decode()] if c.old_path else []), *c.aspects) for c in found]


def test_each_kind_of_change() -> None:
    old: Tree = {b"a": file(2), b"b": file(3), b"c": file(4), b"e": folder(5, inside=file(6))}
    new: Tree = {b"b": file(3, 1), b"d": file(4), b"e": folder(5, inside=file(6), more=file(7)), b"f": file(8)}
    assert told(old, new) == [
        ("removed", "a"),
        ("modified", "b", "content"),
        ("renamed", "d", "c"),
        ("added", "e/more"),
        ("added", "f"),
    ]


@pytest.mark.parametrize(
    ("fields", "aspects"),
    [
        ({"mode": stat.S_IFREG | 0o600}, ["mode"]),
        ({"uid": 5}, ["owner"]),
        ({"xattrs": ((b"user.a", b"1"),)}, ["xattrs"]),
        ({"mtime_ns": 77}, ["times"]),
        ({"ctime_ns": 77, "nlink": 2}, None),
        ({"size": 11, "mtime_ns": 3}, ["content"]),
    ],
)
def test_what_of_a_file_was_modified(fields: dict[str, object], aspects: list[str] | None) -> None:
    found = told({b"a": file(2)}, {b"a": msgspec.structs.replace(file(2), **fields)})
    assert found == ([("modified", "a", *aspects)] if aspects else [])


def test_a_renamed_directory_is_one_change_and_what_differs_inside() -> None:
    content = {"one": file(3), "two": file(4)}
    assert told({b"a": folder(2, **content)}, {b"b": folder(2, **content)}) == [("renamed", "b", "a")]
    inside = told({b"a": folder(2, **content)}, {b"b": folder(2, one=file(3, 1), three=file(4))})
    assert inside == [("renamed", "b", "a"), ("modified", "b/one", "content"), ("renamed", "b/three", "a/two")]


def test_across_directories() -> None:
    old = {b"a": folder(2, one=file(3), deep=folder(5, f=file(6))), b"b": folder(4)}
    new = {b"b": folder(4, one=file(3), moved=folder(5, f=file(6)))}
    assert told(old, new) == [("removed", "a"), ("renamed", "b/moved", "a/deep"), ("renamed", "b/one", "a/one")]
    new = {b"b": folder(4, a=folder(2, one=file(3), deep=folder(5, f=file(6))))}
    assert told(old, new) == [("renamed", "b/a", "a")]


def test_a_directory_renamed_into_a_new_one_is_one_change() -> None:
    old = {b"a": folder(2, one=file(3), two=file(4))}
    new = {b"new": folder(9, a=folder(2, one=file(3), two=file(4)))}
    assert told(old, new) == [("added", "new"), ("renamed", "new/a", "a")]
    assert told(new, old) == [("renamed", "a", "new/a"), ("removed", "new")]


def test_a_file_saved_under_its_name_by_an_editor_is_modified() -> None:
    assert told({b"a": file(2)}, {b"a": file(3, 1), b"a~": file(2)}) == [("added", "a"), ("renamed", "a~", "a")]
    assert told({b"a": file(2)}, {b"a": file(3, 1)}) == [("modified", "a", "content")]
    assert told({b"a": file(2)}, {b"a": folder(3)}) == [("added", "a"), ("removed", "a")]


def test_what_was_not_there_is_added_with_everything_in_it() -> None:
    forest = Forest()
    found = compare(None, forest.directory(2, folder(2, a=file(3)), b"x"), forest.bag.load, b"x")
    assert [(change.kind, change.path) for change in found] == [("added", b"x"), ("added", b"x/#"), ("added", b"x/a")]


def test_the_sums() -> None:
    stat_ = stat_of(
        changes_of(
            {b"a": file(2), b"b": file(3)},
            {
                b"a": file(
                    2,
                    1,
                ),
                b"c": file(4),
            },
        )
    )
    assert (stat_.added, stat_.removed, stat_.modified, stat_.renamed) == (1, 1, 1, 0)
    assert (stat_.more_bytes, stat_.fewer_bytes) == (10, 10)


leaves = st.builds(file, st.integers(100, 104), st.integers(0, 2))
trees = st.recursive(
    leaves,
    lambda inner: st.dictionaries(st.sampled_from([b"a", b"b", b"c"]), inner, max_size=3),
    max_leaves=12,
)


def numbered(tree: object, counter: list[int], numbers: list[int]) -> "Entry | Tree":
    """Directories get inode numbers in an order of their own; no directory stands in two places."""
    if isinstance(tree, Entry):
        return tree
    assert isinstance(tree, dict)
    counter[0] += 1
    own = numbers[counter[0] % len(numbers)] + 10 * counter[0]
    return {b"#": make_entry(b"#", own), **{name: numbered(sub, counter, numbers) for name, sub in tree.items()}}


def paths_of(entry: Entry, forest: Forest, path: bytes = b"") -> dict[bytes, Entry]:
    from syncer.snapshots.tree import iter_directory
    from syncer.values import TreeId

    found = {path: entry}
    if entry.tree is not None:
        for child in iter_directory(TreeId(entry.tree), forest.bag.load):
            found.update(paths_of(child, forest, path + b"/" + child.name if path else child.name))
    return found


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(st.sampled_from([b"a", b"b", b"c"]), trees, max_size=3),
    st.dictionaries(st.sampled_from([b"a", b"b", b"c"]), trees, max_size=3),
    st.permutations([200, 300, 400, 500]),
)
def test_the_changes_lead_from_one_state_to_the_other(one: dict, other: dict, numbers: list[int]) -> None:  # type: ignore[type-arg]
    forest = Forest()
    counters = [0], [0]  # each over a whole state: no directory is in two places
    a = forest.directory(1, {n: numbered(t, counters[0], [200, 300, 400, 500]) for n, t in one.items()})
    b = forest.directory(1, {n: numbered(t, counters[1], numbers) for n, t in other.items()})
    before, after = paths_of(a, forest), paths_of(b, forest)
    changes = compare(a, b, forest.bag.load)
    assert [change.path.split(b"/") for change in changes] == sorted(change.path.split(b"/") for change in changes)
    names = set(before)
    moved = sorted((c for c in changes if c.kind == "renamed"), key=lambda c: len(c.path.split(b"/")))
    gone = {change.path for change in changes if change.kind == "removed"}
    come = {change.path for change in changes if change.kind == "added"}
    for change in moved:
        if change.new is not None and change.new.tree is not None:
            assert change.old_path is not None
            below = {p for p in before if p.startswith(change.old_path + b"/")}
            gone |= {p for p in below if p not in after}
            come |= {p for p in after if p.startswith(change.path + b"/") and p not in before}
        gone.add(change.old_path or b"")
        come.add(change.path)
    assert names - (gone - set(after)) | come == set(after)
    assert gone <= names and come <= set(after)


def test_only_what_differs_is_looked_at() -> None:
    bag = NodeBag()
    rng = random.Random(5)
    directories = []
    for number in range(300):
        entries = [file(number * 1000 + n + 10_000) for n in range(50)]
        named = [msgspec.structs.replace(entry, name=b"%05d" % index) for index, entry in enumerate(entries)]
        directories.append((named, number + 2))

    def root(changed: set[int]) -> Entry:
        found = []
        for named, inode in directories:
            if inode in changed:
                named = [msgspec.structs.replace(named[0], size=99, mtime_ns=9), *named[1:]]
            tree = build_directory(named, bag.emit)
            found.append(make_entry(b"d%05d" % inode, inode, mode=DIRECTORY, tree=tree, size=0))
        return make_entry(b"", 1, mode=DIRECTORY, tree=build_directory(found, bag.emit), size=0)

    old, new = root(set()), root(set(rng.sample(range(2, 302), 10)))
    bag.forget()
    assert len(compare(old, new, bag.load)) == 10
    assert len(bag.loaded) <= 2 * 10 + 2 * 12


@pytest.mark.parametrize("gone", [0, 3])
def test_what_came_with_many_directories_is_told_and_not_kept(gone: int) -> None:
    """A list of snapshots adds such changes up: it must not need gigabytes because photos were copied in."""
    forest = Forest()
    several = {b"%d" % n: folder(2 + n, name=file(100 + n)) for n in range(gone)}
    years: Tree = {
        b"%03d" % n: folder(1_000 + 1_000 * n, **{str(f): file(1_001 + 1_000 * n + f) for f in range(100)})
        for n in range(200)
    }
    old, new = forest.directory(1, several), forest.directory(1, {b"photos": {b"#": make_entry(b"#", 500), **years}})
    tally = Tally()
    tracemalloc.start()
    try:
        each_change(old, new, forest.bag.load, tally.add)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    stat_ = tally.stat()
    assert (stat_.added, stat_.removed, stat_.renamed) == (1 + 200 * 101, 2 * gone, 0)
    assert peak_bytes < 2_000_000
    if not gone:  # and so for what went
        back = Tally()
        each_change(new, old, forest.bag.load, back.add)
        assert back.stat().removed == stat_.added


def test_what_is_added_is_told_after_what_was_removed_there() -> None:
    forest, found = Forest(), list[Change]()
    old, new = forest.directory(1, {b"a": folder(2, x=file(3))}), forest.directory(1, {b"a": file(4)})
    each_change(old, new, forest.bag.load, found.append)
    assert [(change.kind, change.path) for change in found if change.path == b"a"] == [
        ("removed", b"a"),
        ("added", b"a"),
    ]
