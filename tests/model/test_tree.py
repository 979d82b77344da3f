"""The tree of snapshots: nothing is hidden, whatever the host says, and people find it in the order of time."""

from __future__ import annotations

import time
from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from snaptree.model.estate import DomainState, Snapshot
from snaptree.model.tree import SnapshotTree


def snapshot(name: str, parent: str | None = None, created: int = 0) -> Snapshot:
    return Snapshot(name, parent, created, DomainState.OFF)


def order(*snapshots: Snapshot) -> str:
    return " ".join(SnapshotTree.build(snapshots, None).snapshots)


def test_older_comes_first() -> None:
    assert order(snapshot("c", None, 3), snapshot("a", None, 1), snapshot("b", "a", 2)) == "a b c"


def test_a_child_never_stands_above_its_parent_whatever_the_clock_said() -> None:
    assert order(snapshot("child", "parent", 1), snapshot("parent", None, 100), snapshot("x", None, 50)) == (
        "x parent child"
    )


def test_names_of_one_moment_are_in_the_order_people_count_in() -> None:
    assert order(*(snapshot(f"s{number}") for number in (10, 2, 1))) == "s1 s2 s10"


def test_a_parent_that_is_not_listed_makes_its_child_a_root() -> None:
    tree = SnapshotTree.build([snapshot("b", "gone"), snapshot("c", "b")], "c")
    assert tree.roots == ("b",)
    assert tree.parents == {"b": None, "c": "b"}
    assert tree["b"].parent == "gone", "what the host said is kept"


def test_a_circle_is_cut_at_its_oldest() -> None:
    tree = SnapshotTree.build(
        [snapshot("a", "c", 2), snapshot("b", "a", 1), snapshot("c", "b", 3), snapshot("d", "c", 4)], "d"
    )
    assert tree.roots == ("b",)
    assert list(tree.snapshots) == ["b", "c", "a", "d"]
    assert list(tree.ancestors("d")) == ["c", "b"]


def test_a_snapshot_that_is_its_own_parent_is_a_root() -> None:
    assert SnapshotTree.build([snapshot("a", "a")], "a").roots == ("a",)


def test_relations() -> None:
    tree = SnapshotTree.build(
        [snapshot("a"), snapshot("b", "a", 1), snapshot("c", "a", 2), snapshot("d", "b", 3), snapshot("e", None, 4)],
        "d",
    )
    assert tree.roots == ("a", "e")
    assert tree.children("a") == ("b", "c")
    assert tree.children("d") == ()
    assert list(tree.descendants("a")) == ["b", "d", "c"]
    assert list(tree.ancestors("d")) == ["b", "a"]
    assert tree.path_to_current == {"a", "b", "d"}
    assert len(tree) == 5
    assert "a" in tree
    assert "x" not in tree
    assert [one.name for one in tree] == ["a", "b", "c", "d", "e"]


def test_a_current_snapshot_that_is_not_listed_is_none() -> None:
    tree = SnapshotTree.build([snapshot("a")], "gone")
    assert tree.current is None
    assert tree.path_to_current == frozenset()


def test_nothing() -> None:
    tree = SnapshotTree.build([], None)
    assert (len(tree), tree.roots, tree.path_to_current) == (0, (), frozenset())


names = st.one_of(
    st.sampled_from(["s1", "s2", "s10", "S1", "1", "²", "١", "", "-1", "1.5", "nan", "\ud800"]), st.text(max_size=3)
)


@st.composite
def whatever_a_host_may_say(draw: st.DrawFn) -> list[Snapshot]:
    listed = draw(st.lists(names, unique=True, max_size=12))
    parents = st.one_of(st.none(), names, st.sampled_from(listed or [""]))
    return [snapshot(name, draw(parents), draw(st.integers(0, 3))) for name in listed]


@given(whatever_a_host_may_say(), names)
def test_no_snapshot_is_lost_and_parents_come_first(snapshots: list[Snapshot], current: str) -> None:
    tree = SnapshotTree.build(snapshots, current)
    assert dict(tree.snapshots) == {one.name: one for one in snapshots}
    assert list(tree.parents) == list(tree.snapshots)
    above: set[str | None] = {None}
    for name, parent in tree.parents.items():
        assert parent in above
        above.add(name)
        assert parent in (None, tree[name].parent), "no relation is made up"
        assert name in tree.children(parent) if parent is not None else name in tree.roots
    below_roots = {name for root in tree.roots for name in (root, *tree.descendants(root))}
    assert below_roots == set(tree.snapshots)


@given(whatever_a_host_may_say())
def test_only_circles_and_gaps_lose_a_parent(snapshots: list[Snapshot]) -> None:
    listed = {one.name: one for one in snapshots}
    tree = SnapshotTree.build(snapshots, None)
    for name in tree.roots:
        path = [name]
        while (parent := listed[path[-1]].parent) is not None and parent in listed and parent not in path:
            path.append(parent)
        parent = listed[path[-1]].parent
        assert parent is None or parent not in listed or parent == name


@given(whatever_a_host_may_say(), st.randoms(use_true_random=False))
def test_the_order_of_listing_does_not_matter(snapshots: list[Snapshot], random: object) -> None:
    shuffled = list(snapshots)
    random.shuffle(shuffled)  # type: ignore[attr-defined]  # hypothesis gives a random.Random of its own
    assert list(SnapshotTree.build(shuffled, None).parents.items()) == list(
        SnapshotTree.build(snapshots, None).parents.items()
    )


@given(whatever_a_host_may_say())
def test_strangers_of_different_age_are_in_the_order_of_time(snapshots: list[Snapshot]) -> None:
    strangers = [one for one in snapshots if one.parent not in {other.name for other in snapshots}]
    created = [one.created for one in SnapshotTree.build(strangers, None)]
    assert created == sorted(created)


def chain_of(count: int) -> Iterable[Snapshot]:
    return (snapshot(f"auto-{number}", f"auto-{number - 1}" if number else None, number) for number in range(count))


def test_100000_snapshots_in_a_row_are_no_recursion_and_no_wait() -> None:
    started = time.process_time()
    tree = SnapshotTree.build(chain_of(100_000), "auto-99999")
    assert len(tree.path_to_current) == 100_000
    assert sum(1 for _ in tree.descendants("auto-0")) == 99_999
    assert time.process_time() - started < 10


def test_a_circle_of_20000_is_no_wait() -> None:
    started = time.process_time()
    snapshots = [snapshot(f"s{number}", f"s{(number + 1) % 20_000}") for number in range(20_000)]
    assert len(SnapshotTree.build(snapshots, None).roots) == 1
    assert time.process_time() - started < 5
