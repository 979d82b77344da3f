"""Lanes: the docstring of a test is the picture that its tree must give.

A tree is written as lines of descent: `a-b-c b-d` is a, its child b, and b's children c and d. Rows come in the
order in which names are first written, unless the test says otherwise. `Now` is the running state.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snaptree.model.lanes import LaneLayout, LaneRow, draw_text, lay_out

Nodes = list[tuple[str, str | None]]


def nodes_of(text: str, order: str = "") -> Nodes:
    parents: dict[str, str | None] = {}
    for line in text.split():
        parent = None
        for name in line.split("-"):
            if name not in parents or parent is not None:
                parents[name] = parent
            parent = name
    return [(name, parents[name]) for name in (order.split() or parents)]


def picture_of(nodes: Nodes) -> str:
    return draw_text(lay_out(nodes, "Now" if any(name == "Now" for name, _ in nodes) else None))


def assert_drawn(test: Callable[[], None], text: str, order: str = "") -> None:
    expected = inspect.cleandoc(test.__doc__ or "")
    assert picture_of(nodes_of(text, order)) == expected


def test_a_straight_chain() -> None:
    """
    ┯  a
    ┿  b
    ┿  c
    ┷  Now
    """
    assert_drawn(test_a_straight_chain, "a-b-c-Now")


def test_only_a_branch_takes_a_lane() -> None:
    """
    ┯    a
    ┿─╮  b
    ┿ │  c
    │ ┷  d
    ┷    Now
    """
    assert_drawn(test_only_a_branch_takes_a_lane, "a-b-c b-d c-Now", "a b c d Now")


def test_now_takes_the_straight_lane_from_a_heavier_branch() -> None:
    """
    ┯    a
    ┿─╮  b
    │ ┿  c
    │ ┿  d
    │ ┷  e
    ┷    Now
    """
    assert_drawn(test_now_takes_the_straight_lane_from_a_heavier_branch, "a-b-c-d-e b-Now")


def test_the_heaviest_child_goes_straight_on_where_now_is_elsewhere() -> None:
    """
    ┯─╮    a
    │ ┿─╮  b
    │ │ ┷  short
    │ ┿    long
    │ ┷    longer
    ┷      Now
    """
    assert_drawn(
        test_the_heaviest_child_goes_straight_on_where_now_is_elsewhere,
        "a-b-short b-long-longer a-Now",
        "a b short long longer Now",
    )


def test_the_oldest_of_equals_goes_straight_on() -> None:
    """
    ┯─╮  a
    ┷ │  b
      ┷  c
    """
    assert_drawn(test_the_oldest_of_equals_goes_straight_on, "a-b a-c")


def test_a_lane_is_used_again_when_free() -> None:
    """
    ┯─╮  a
    │ ┷  b
    ┿─╮  c
    │ ┷  d
    ┷    Now
    """
    assert_drawn(test_a_lane_is_used_again_when_free, "a-b a-c-d c-Now")


def test_a_fork_crosses_lanes() -> None:
    """
    ┯─╮    a
    ┿─┼─╮  b
    │ ┷ │  c
    │   ┷  d
    ┷      Now
    """
    assert_drawn(test_a_fork_crosses_lanes, "a-b a-c b-d b-Now", "a b c d Now")


def test_a_fork_goes_left_where_a_lane_is_free() -> None:
    """
    ┯─┬─╮  a
    │ ┷ │  b
    │ ╭─┿  c
    │ ┷ │  d
    │   ┿  e
    │   ┷  f
    ┷      Now
    """
    assert_drawn(
        test_a_fork_goes_left_where_a_lane_is_free,
        "a-b a-c-e-f c-d a-Now",
        "a b c d e f Now",
    )


def test_without_a_current_snapshot_now_stands_alone() -> None:
    """
    ┯─╮  a
    ┷ │  b
      ┷  c
    ╺    Now
    """
    assert_drawn(test_without_a_current_snapshot_now_stands_alone, "a-b a-c Now")


def test_several_roots_beside_the_path_to_now() -> None:
    """
      ┯  lost
      ┷  gone
    ┯    a
    ┿    b
    │ ╺  stray
    ┷    Now
    """
    assert_drawn(test_several_roots_beside_the_path_to_now, "lost-gone a-b-Now stray", "lost gone a b stray Now")


def test_no_snapshots_at_all() -> None:
    """
    ╺  Now
    """
    assert_drawn(test_no_snapshots_at_all, "Now")
    assert len(lay_out([])) == 0
    assert lay_out([]).width == 0


def test_sixty_snapshots_are_one_lane() -> None:
    names = [f"auto-{number}" for number in range(60)]
    nodes: Nodes = [*zip(names, [None, *names], strict=False), ("Now", names[-1])]
    assert lay_out(nodes, "Now").width == 1


@pytest.mark.parametrize("nodes", [[("b", "a"), ("a", None)], [("a", None), ("a", None)], [("a", "gone")]])
def test_rows_that_are_no_tree_in_reading_order_are_refused(nodes: Nodes) -> None:
    with pytest.raises(ValueError, match="row"):
        lay_out(nodes)


def test_rows_count_from_zero_to_their_number() -> None:
    layout = lay_out(nodes_of("a-b"))
    for row in (-1, 2):
        with pytest.raises(IndexError):
            layout[row]


@st.composite
def trees(draw: st.DrawFn) -> tuple[list[tuple[int, int | None]], int | None]:
    """Random forests in reading order, mostly of chains; the last node is *Now* where the second value says so."""
    count = draw(st.integers(1, 60))
    nodes: list[tuple[int, int | None]] = []
    for node in range(count):
        back = draw(st.one_of(st.just(1), st.integers(0, node)))
        nodes.append((node, node - back if 0 < back <= node else None))
    return nodes, draw(st.sampled_from([None, count - 1]))


Tree = tuple[list[tuple[int, int | None]], int | None]


def edges_drawn(layout: LaneLayout[int]) -> set[tuple[int, int]]:
    """Follow the lines down the picture as an eye does; every line must start at a node and end at one."""
    edges = set()
    lines: dict[int, int] = {}
    for row in layout:
        assert set(row.through) == set(lines) - {row.lane}, "a line breaks off, or starts from nothing"
        assert row.enters == (row.lane in lines)
        if row.enters:
            edges.add((lines.pop(row.lane), row.id))
        begun = [*row.forks, *([row.lane] if row.leaves else [])]
        assert not set(begun) & set(lines), "two lines share a lane"
        assert len(set(begun)) == len(begun)
        lines.update(dict.fromkeys(begun, row.id))
    assert not lines, "a line leads to nothing"
    return edges


@given(trees())
def test_every_relation_is_one_unbroken_line(tree: Tree) -> None:
    nodes, now = tree
    layout = lay_out(nodes, now)
    assert [row.id for row in layout] == [node for node, _ in nodes]
    assert edges_drawn(layout) == {(parent, node) for node, parent in nodes if parent is not None}


@given(trees())
def test_the_path_to_now_is_straight_and_alone_in_lane_0(tree: Tree) -> None:
    nodes, now = tree
    parents = dict(nodes)
    if now is None or parents[now] is None:
        return
    path: set[int] = set()
    step: int | None = now
    while step is not None:
        path.add(step)
        step = parents[step]
    layout = lay_out(nodes, now)
    assert {row.id for row in layout if row.lane == 0} == path
    assert all(0 not in row.forks for row in layout)


@given(trees())
def test_no_more_lanes_than_leaves_and_all_are_used(tree: Tree) -> None:
    nodes, now = tree
    layout = lay_out(nodes, now)
    leaves = {node for node, _ in nodes} - {parent for _, parent in nodes}
    assert layout.width <= len(leaves)
    assert {row.lane for row in layout} == set(range(layout.width))
    if now is None:
        most_at_once = max(len({row.lane, *row.through, *row.forks}) for row in layout)
        assert layout.width == most_at_once, "more lanes than lines side by side"


@given(trees())
def test_a_row_alone_equals_the_row_among_all(tree: Tree) -> None:
    nodes, now = tree
    layout = lay_out(nodes, now)
    rows: list[LaneRow[int]] = list(layout)
    assert [layout[row] for row in reversed(range(len(layout)))] == rows[::-1]
    assert {len(line) for line in draw_text(layout, lambda _: "|").splitlines()} == {2 * layout.width + 2}


@pytest.mark.parametrize(
    "parent_of",
    [
        pytest.param(lambda node: node - 1, id="chain"),
        pytest.param(lambda node: 0, id="star"),
        pytest.param(lambda node: max(node - 2, 0), id="two chains"),
        pytest.param(lambda node: (node - 1) // 2, id="binary"),
        pytest.param(lambda node: node - 1 if node % 2 else max(node - 2, 0), id="comb"),
        pytest.param(lambda node: None, id="strangers"),
    ],
)
def test_100000_rows_are_laid_out_fast_and_a_screenful_made_at_once(parent_of: Callable[[int], int | None]) -> None:
    count = 100_000
    nodes = [(node, parent_of(node) if node else None) for node in range(count)]
    started = time.process_time()
    layout = lay_out(nodes, count - 1)
    laid_out = time.process_time()
    rows = [layout[row] for row in (*range(20), *range(count // 2, count // 2 + 20), *range(count - 20, count))]
    made = time.process_time()
    assert len(rows) == 60
    assert laid_out - started < 5
    assert made - laid_out < 5


def test_row_fields_tell_one_row_apart_from_its_neighbours() -> None:
    row = lay_out(nodes_of("a-b a-c b-d b-Now", "a b c d Now"), "Now")[1]
    assert row == LaneRow("b", lane=0, enters=True, leaves=True, forks=(2,), through=(1,))
