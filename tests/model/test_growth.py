"""How fast disks grow: what was written between snapshots, told by hand."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from snaptree.model.costs import DomainCosts, SnapshotCost
from snaptree.model.estate import DomainState, Snapshot
from snaptree.model.figures import NOTHING, Figure, exact, unknown
from snaptree.model.growth import DAY, Growth, growth_of
from snaptree.model.tree import SnapshotTree

HOUR = 3_600
NOW = 100 * DAY


def growth(*written: tuple[float, int | None], now: int | None = 0) -> Growth | None:
    """What is found of a line of snapshots, the oldest first: days ago, and bytes that each wrote; `now` since then."""

    def figure(number: int | None) -> Figure:
        return unknown("not looked at") if number is None else exact(number)

    names = [f"s{number}" for number in range(len(written))]
    snapshots = [
        Snapshot(name, before, NOW - int(days * DAY), DomainState.DISK_ONLY)
        for name, before, (days, _) in zip(names, [None, *names], written, strict=False)
    ]
    costs = {
        name: SnapshotCost(figure(number), NOTHING, NOTHING, NOTHING)
        for name, (_, number) in zip(names, written, strict=True)
    }
    tree = SnapshotTree.build(snapshots, names[-1] if names else None)
    return growth_of(tree, DomainCosts(NOTHING, NOTHING, figure(now), costs, {}), NOW)


def test_what_was_there_before_the_first_snapshot_was_not_written_since() -> None:
    found = growth((2, 5_000_000), now=200)
    assert found == Growth(200, 2 * DAY)
    assert found.bytes_per_day == 100


def test_all_between_snapshots_counts() -> None:
    assert growth((4, 9_999), (3, 100), (1, 300), now=0) == Growth(400, 4 * DAY)


def test_a_time_of_which_nobody_knows_is_left_out() -> None:
    assert growth((4, 9_999), (3, 100), (1, None), now=50) == Growth(150, 2 * DAY)


def test_what_is_long_ago_says_nothing() -> None:
    assert growth((90, 9_999), (80, 7_777), (20, 600), now=20) == Growth(620, 80 * DAY)
    assert growth((90, 9_999), (80, 7_777), (40, 600), now=20) == Growth(20, 40 * DAY), "written since, all the same"


def test_other_branches_were_not_written_by_what_is_there_now() -> None:
    snapshots = [
        Snapshot("root", None, NOW - 3 * DAY, DomainState.OFF),
        Snapshot("other", "root", NOW - 2 * DAY, DomainState.OFF),
        Snapshot("current", "root", NOW - DAY, DomainState.OFF),
    ]
    costs = {
        name: SnapshotCost(exact(size), NOTHING, NOTHING, NOTHING)
        for name, size in (("root", 1), ("other", 1_000), ("current", 20))
    }
    tree = SnapshotTree.build(snapshots, "current")
    assert growth_of(tree, DomainCosts(NOTHING, NOTHING, exact(10), costs, {}), NOW) == Growth(30, 3 * DAY)


def test_a_machine_without_a_history_says_nothing() -> None:
    assert growth(now=1_000) is None
    assert growth((0.01, 5), now=1_000) is None, "a quarter of an hour is none"


@given(
    st.lists(st.tuples(st.floats(-1, 99), st.none() | st.integers(0, 1 << 40)), max_size=8),
    st.none() | st.integers(0, 1 << 40),
)
def test_it_is_never_more_than_all_that_was_written(written: list[tuple[float, int | None]], now: int | None) -> None:
    found = growth(*written, now=now)
    assert found is None or (found.seconds >= HOUR and 0 <= found.bytes <= (now or 0) + sum(n or 0 for _, n in written))
