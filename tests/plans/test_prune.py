"""Pruning one machine: what goes within a policy's limits, and one plan for all of it."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snaptree.model.estate import Annotations, Mark
from snaptree.model.merging import LayerTree
from snaptree.model.tree import SnapshotTree
from snaptree.plans.intention import Delete, Prune
from snaptree.plans.plan import Action
from snaptree.plans.planner import make_plan
from snaptree.plans.policy import Period, Policy, Scope
from snaptree.plans.prune import depth_of, prune
from snaptree.plans.situation import Situation
from tests.model.overlaps import UNIT
from tests.model.test_merging import Disk, line
from tests.plans.situations import NOW, a_machine

BY_SCHEDULE = Annotations(schedule="nightly")


def last(number: int) -> Policy:
    return Policy(MappingProxyType({Period.LAST: number}))


def nightly(*names: str, pinned: tuple[str, ...] = ()) -> Situation:
    """A machine with external snapshots that a schedule took, one a minute."""
    builder = a_machine()
    for name in names:
        builder.external(name)
        marks = replace(BY_SCHEDULE, pinned=Mark()) if name in pinned else BY_SCHEDULE
        builder.snapshot(name, annotations=marks)
    situation = builder.build()
    created = {name: NOW + 60 * number for number, name in enumerate(names)}
    tree = [replace(each, created=created[each.name]) for each in situation.tree]
    return replace(situation, tree=SnapshotTree.build(tree, situation.tree.current))


def test_all_that_goes_is_one_plan() -> None:
    situation = nightly("a", "b", "c", "d", "e", "f")
    plan = make_plan(Prune(last(2)), situation)
    assert plan.action is Action.PRUNE
    assert plan.snapshots == ("a", "b", "c", "d")
    assert plan.undo is None
    together = make_plan(Delete(("a", "b", "c", "d")), situation)
    assert plan.steps == together.steps, "neighbours are merged in one pass, as if they were deleted together"
    assert plan.forecast == together.forecast


def test_what_is_kept_stays_out_of_the_plan() -> None:
    situation = nightly("a", "b", "c", "d", pinned=("b",))
    plan = make_plan(Prune(last(1), kept={"c": "kept by hand"}), situation)
    assert plan.snapshots == ("a",)
    assert not plan.is_refused


def test_where_nothing_goes_there_is_nothing_to_do() -> None:
    plan = make_plan(Prune(last(9)), nightly("a", "b"))
    assert (plan.snapshots, plan.steps, plan.is_refused) == ((), (), False)
    assert plan.forecast.frees.bytes == 0


def by_schedule(disk: Disk) -> LayerTree:
    """The snapshots of a disk as a schedule would have taken them, one a second."""
    layer_tree = disk.layer_tree()
    snapshots = [
        replace(each, created=number, annotations=BY_SCHEDULE) for number, each in enumerate(layer_tree.tree, start=1)
    ]
    current = snapshots[-1].name if snapshots else None
    return LayerTree(SnapshotTree.build(snapshots, current), layer_tree.layers)


def test_no_more_goes_than_a_maximum_depth_asks_for_the_cheapest_first() -> None:
    layer_tree = by_schedule(line("abcdefgh", "a", "abcdefg", "ab", "b", "x"))
    pruning = prune(Policy(maximum_depth=5), layer_tree, 100)
    assert (pruning.depth, pruning.depth_after, pruning.falls_short) == (6, 5, "")
    (goes,) = pruning.goes
    assert goes == "s1", "one unit is moved, and one comes back"
    assert pruning.decisions["s0"].reason == "enough goes without it"


def test_no_more_goes_than_gives_back_enough() -> None:
    layer_tree = by_schedule(line("abcdefgh", "abcdefg", "abcdef", "a", "b"))
    pruning = prune(Policy(free_at_least=7 * UNIT), layer_tree, 100)
    assert pruning.cost.frees.bytes is not None
    assert pruning.cost.frees.bytes >= 7 * UNIT
    assert len(pruning.goes) < 4


@pytest.mark.parametrize(
    ("policy", "says"),
    [
        (Policy(maximum_depth=1), "More than 1 layers are left"),
        (Policy(free_at_least=1 << 50), "Less comes back"),
    ],
)
def test_a_limit_that_other_rules_forbid_is_said(policy: Policy, says: str) -> None:
    layer_tree = by_schedule(line("ab", "b", "c"))
    pruning = prune(policy, layer_tree, 100, kept={"s0": "kept by hand"})
    assert says in pruning.falls_short
    assert pruning.goes == ("s1",)
    assert pruning.decisions["s0"].reason == "kept by hand"


letters = st.text("abcdefgh", max_size=8)


@given(st.lists(letters, min_size=2, max_size=7), st.integers(1, 6), st.integers(0, 12), st.sets(st.integers(0, 6)))
def test_limits_are_met_if_they_can_be_and_nothing_kept_goes(
    disks: list[str], depth: int, units: int, kept: set[int]
) -> None:
    layer_tree = by_schedule(line(*disks))
    names = {f"s{number}": "kept by hand" for number in kept}
    policy = Policy(maximum_depth=depth, free_at_least=units * UNIT, scope=Scope())
    pruning = prune(policy, layer_tree, 100, kept=names)
    assert not set(pruning.goes) & set(names)
    assert pruning.depth_after == depth_of(layer_tree, pruning.goes)
    freed = pruning.cost.frees.bytes
    assert freed is not None
    met = pruning.depth_after <= depth and freed >= units * UNIT
    assert met == (not pruning.falls_short)
    if pruning.falls_short:
        assert set(pruning.goes) == {each.name for each in layer_tree.tree} - set(names)


def test_the_depth_after_is_that_of_the_tree_that_is_left() -> None:
    layer_tree = by_schedule(line("ab", "b", "c", "d"))
    assert [depth_of(layer_tree, names) for names in ((), ("s0",), ("s0", "s2"), ("s0", "s1", "s2"))] == [4, 3, 2, 1]
