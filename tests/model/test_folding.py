"""Folding: what a person sees of a long tree, and what stays in sight while it changes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snaptree.model.estate import Annotations, DomainState, Mark, Snapshot
from snaptree.model.folding import NOW, Fold, Row, VisibleRows, fold
from snaptree.model.lanes import lay_out
from snaptree.model.tree import SnapshotTree

KEPT_FOR_THEMSELVES: list[dict[str, Any]] = [
    {"annotations": Annotations(pinned=Mark())},
    {"annotations": Annotations(known_good=Mark())},
    {"delete_in_progress": True},
    {"problem": "its XML has no disks"},
]


def snapshot(name: str, parent: str | None, created: int) -> Snapshot:
    return Snapshot(name, parent, created, DomainState.OFF)


def chain(count: int, marked: dict[int, Snapshot] | None = None) -> SnapshotTree:
    """s0-s1-...; the last one is current."""
    snapshots = [snapshot(f"s{i}", f"s{i - 1}" if i else None, i) for i in range(count)]
    for place, changed in (marked or {}).items():
        snapshots[place] = changed
    return SnapshotTree.build(snapshots, f"s{count - 1}")


def sight(rows: VisibleRows) -> str:
    """Names in sight; a fold as first..last."""
    return " ".join(
        f"{row.first}..{row.last}" if isinstance(row, Fold) else row if isinstance(row, str) else row.value
        for row, _ in rows.rows
    )


def test_a_long_chain_shows_its_ends() -> None:
    rows = fold(chain(40))
    assert sight(rows) == "s0 s1 s2 s3..s36 s37 s38 s39 Now"
    (hidden,) = rows.folds
    assert len(hidden) == 34
    assert rows.rows[3:5] == (Row(hidden, "s2"), Row("s37", hidden))
    assert rows.rows[-1] == Row(NOW, "s39")


def test_a_short_chain_shows_all() -> None:
    assert fold(chain(13)).folds == ()
    assert len(fold(chain(14)).folds) == 1
    assert len(fold(chain(14), fewest=9).folds) == 0


def test_a_tree_without_snapshots_is_now_alone() -> None:
    assert fold(SnapshotTree.build([], None)).rows == (Row(NOW, None),)


@pytest.mark.parametrize("marks", KEPT_FOR_THEMSELVES)
def test_a_marked_snapshot_stays_in_sight_with_its_neighbours(marks: dict[str, Any]) -> None:
    marked = replace(snapshot("s20", "s19", 20), **marks)
    assert sight(fold(chain(40, {20: marked}))) == "s0 s1 s2 s3..s17 s18 s19 s20 s21 s22 s23..s36 s37 s38 s39 Now"


def test_what_the_caller_keeps_stays_in_sight() -> None:
    assert "s20" in sight(fold(chain(40), keep=["s20"])).split()


def test_a_branch_point_stays_in_sight() -> None:
    snapshots = [*chain(40), snapshot("side", "s20", 100)]
    rows = fold(SnapshotTree.build(snapshots, "s39"))
    assert sight(rows) == "s0 s1 s2 s3..s17 s18 s19 s20 s21 s22 s23..s36 s37 s38 s39 side Now"


def test_a_fold_is_the_same_when_the_tree_grows_elsewhere() -> None:
    before = fold(chain(40))
    after = fold(SnapshotTree.build([*chain(40), snapshot("side", "s39", 100)], "side"))
    assert before.folds[0].first == after.folds[0].first


def test_an_opened_fold_shows_all_and_can_be_closed_again() -> None:
    (hidden,) = fold(chain(40)).folds
    opened = fold(chain(40), unfolded=hidden.hidden)
    assert opened.folds == ()
    assert opened.unfolded == {hidden.first: hidden}


def test_an_opened_fold_stays_open_when_its_first_snapshot_is_deleted_and_others_are_taken() -> None:
    (hidden,) = fold(chain(40)).folds
    left = [one for one in chain(40) if one.name != "s3"]
    left = [replace(one, parent="s2") if one.name == "s4" else one for one in left]
    rows = fold(SnapshotTree.build([*left, snapshot("new", "s39", 50)], "new"), unfolded=hidden.hidden)
    assert rows.folds == ()


def test_opening_one_fold_leaves_others_folded() -> None:
    first, second = fold(chain(60), keep=["s30"]).folds
    assert fold(chain(60), keep=["s30"], unfolded=first.hidden).folds == (second,)


def test_a_fold_can_be_laid_out_as_one_node() -> None:
    rows = fold(chain(60)).rows
    layout = lay_out(rows, NOW)
    assert layout.width == 1
    assert [row.id for row in layout] == [row.id for row in rows]


@st.composite
def trees(draw: st.DrawFn) -> SnapshotTree:
    count = draw(st.integers(0, 80))
    snapshots = []
    for place in range(count):
        back = draw(st.sampled_from([1] * 12 + [0, 2, 3]))
        parent = f"s{place - back}" if 0 < back <= place else None
        marks = draw(st.sampled_from([{}] * 20 + KEPT_FOR_THEMSELVES))
        snapshots.append(replace(snapshot(f"s{place}", parent, draw(st.integers(0, 50))), **marks))
    return SnapshotTree.build(snapshots, draw(st.sampled_from([None, *(one.name for one in snapshots)])))


some_names = st.sets(st.integers(0, 80).map(lambda place: f"s{place}"), max_size=6)


@given(trees(), some_names, some_names, st.integers(1, 8))
def test_folding_only_hides(tree: SnapshotTree, keep: set[str], unfolded: set[str], fewest: int) -> None:
    rows = fold(tree, keep=keep, unfolded=unfolded, fewest=fewest)
    in_sight = [row.id for row in rows.rows if isinstance(row.id, str)]
    hidden = [name for one in rows.folds for name in one.hidden]

    assert sorted(in_sight + hidden) == sorted(tree.snapshots), "everything is in one row"
    assert in_sight == [name for name in tree.snapshots if name in set(in_sight)], "the order stays"
    assert not set(hidden) & (keep | unfolded | {tree.current})
    for name in hidden:
        assert tree[name].annotations == Annotations()
        assert not tree[name].problem
        assert not tree[name].delete_in_progress
        assert tree.parents[name] is not None
        assert len(tree.children(name)) == 1
    assert all(len(one) >= fewest for one in rows.folds)
    assert rows.rows[-1] == Row(NOW, tree.current)


@given(trees(), some_names, some_names, st.integers(1, 8))
def test_descent_survives_folding(tree: SnapshotTree, keep: set[str], unfolded: set[str], fewest: int) -> None:
    """Putting the hidden names back between a fold's neighbours gives the parents of the tree."""
    rows = fold(tree, keep=keep, unfolded=unfolded, fewest=fewest).rows
    parents: dict[str, str | None] = {}
    seen: set[object] = {None}
    for row, parent in rows[:-1]:
        assert parent in seen, "a parent stands above its child"
        seen.add(row)
        above = parent.last if isinstance(parent, Fold) else parent
        assert above is None or isinstance(above, str)
        for name in row.hidden if isinstance(row, Fold) else (row,):
            assert isinstance(name, str)
            parents[name] = above
            above = name
    assert parents == tree.parents


@given(trees(), some_names, st.integers(1, 8))
def test_opening_every_fold_gives_the_whole_tree(tree: SnapshotTree, keep: set[str], fewest: int) -> None:
    folds = fold(tree, keep=keep, fewest=fewest).folds
    opened = fold(tree, keep=keep, fewest=fewest, unfolded={name for one in folds for name in one.hidden})
    assert [row.id for row in opened.rows] == [*tree.snapshots, NOW]
    assert opened.unfolded == {one.first: one for one in folds}
    assert opened.rows == fold(tree, unfolded=tree.snapshots, fewest=fewest).rows
