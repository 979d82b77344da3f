"""Pruning one machine: what goes within a policy's limits, and one plan for all of it."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snaptree import words
from snaptree.model.estate import Annotations, Mark
from snaptree.model.figures import exact, unknown
from snaptree.model.merging import LayerTree
from snaptree.model.tree import SnapshotTree
from snaptree.plans.intention import Delete, Prune
from snaptree.plans.merge import layer_tree_of
from snaptree.plans.plan import Action, Forecast
from snaptree.plans.planner import make_plan
from snaptree.plans.policy import Duration, Period, Policy, Scope
from snaptree.plans.prune import (
    depth_of,
    forecast_of,
    hint_of_by_hand,
    likely_refusal,
    prune,
    prune_together,
    pruning_of,
    tree_to_prune,
)
from snaptree.plans.prune_many import in_turn, keeping_groups, no_more_than, plan_prunes
from snaptree.plans.situation import Situation
from snaptree.plans.totals import forecast_in_turn, totals_in_turn, totals_of
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


def test_a_limit_of_what_is_copied_goes_into_the_time_it_takes() -> None:
    situation = nightly("a", "b", "c")
    copies = make_plan(Prune(last(1)), situation).forecast.copies.bytes
    assert copies
    for intention in (Prune(last(1), by_own_jobs=True, limit=1024), Delete(("a", "b"), by_own_jobs=True, limit=1024)):
        assert make_plan(intention, situation).forecast.seconds == copies / 1024


def test_what_is_kept_stays_out_of_the_plan() -> None:
    situation = nightly("a", "b", "c", "d", pinned=("b",))
    plan = make_plan(Prune(last(1), kept={"c": "kept by hand"}), situation)
    assert plan.snapshots == ("a",)
    assert not plan.is_refused


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        ({"annotations": replace(BY_SCHEDULE, half_deleted=True)}, "half deleted"),
        ({"annotations": replace(BY_SCHEDULE, doubtful=True)}, "doubtful"),
        ({"problem": "no <disks>"}, "damaged"),
    ],
)
def test_what_nobody_can_rely_on_takes_no_other_s_place(spoil: dict[str, Any], why: str) -> None:
    situation = nightly("a", "b", "c")
    spoilt = [replace(each, **spoil) if each.name == "c" else each for each in situation.tree]
    situation = replace(situation, tree=SnapshotTree.build(spoilt, "c"))
    pruning = prune(last(1), tree_to_prune(situation), NOW + 3600)
    assert pruning.goes == ("a",), "b is the last that is good"
    assert pruning.decisions["c"].reasons == (why,)


def test_what_stands_on_a_missing_image_takes_no_other_s_place() -> None:
    builder = a_machine()
    for name in "abc":
        builder.external(name).snapshot(name, annotations=BY_SCHEDULE)
    layer_tree = tree_to_prune(builder.missing("/images/vda.a").build())
    pruning = prune(last(1), layer_tree, NOW + 3600)
    assert pruning.decisions["a"].keeps, "the last that is good: b froze what is missing, and c stands on it"
    assert [pruning.decisions[name].reasons for name in "bc"] == [("image missing",)] * 2


def test_what_was_merged_into_by_hand_takes_no_other_s_place() -> None:
    """What d froze was committed into the layer that c froze."""
    builder = a_machine()
    for name in "abcd":
        builder.external(name).snapshot(name, annotations=BY_SCHEDULE)
    situation = builder.chain("vda", "/images/vda.d", "/images/vda.b", "/images/vda.a", "/images/vda.qcow2").build()
    pruning = pruning_of(Prune(last(1)), replace(situation, now=NOW + 3600))
    assert [pruning.decisions[name].reasons for name in "cd"] == [("doubtful",)] * 2
    assert pruning.goes == ("a",), "b is the last that is good"


def test_a_delete_of_the_last_that_is_good_says_so() -> None:
    situation = nightly("a", "b", "c")
    spoilt = [
        replace(each, annotations=Annotations(doubtful=True)) if each.name == "c" else each for each in situation.tree
    ]
    situation = replace(situation, tree=SnapshotTree.build(spoilt, "c"))
    for names, says in ((("a",), False), (("a", "b"), True), (("a", "b", "c"), False)):
        rules = {warning.rule for warning in make_plan(Delete(names), situation).warnings}
        assert ("last-good-goes" in rules) == says


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


def test_what_was_taken_together_stays_together_within_limits_too() -> None:
    first, second = (by_schedule(line("abcdefgh", "a", "abcdefg", "ab", "b", "x")) for _ in range(2))
    marked = [
        LayerTree(
            SnapshotTree.build(
                [replace(each, annotations=replace(each.annotations, group=f"{each.name}@1")) for each in tree.tree],
                tree.tree.current,
            ),
            tree.layers,
        )
        for tree in (first, second)
    ]
    kept = MappingProxyType({"s1": "kept by hand"})
    one, other = prune_together(Policy(maximum_depth=4), [(marked[0], kept), (marked[1], {})], 100)
    assert one.goes == other.goes
    assert "s1" not in other.goes
    assert other.decisions["s1"].reason == "its group “s1@1” is kept"


def in_groups(situation: Situation, name: str) -> Situation:
    """A machine of this name, of which each snapshot was taken with those of others that are called the same."""
    tree = [replace(each, annotations=replace(each.annotations, group=f"{each.name}@1")) for each in situation.tree]
    return replace(
        situation,
        tree=SnapshotTree.build(tree, situation.tree.current),
        domain=replace(situation.domain, name=name, uuid=name),
    )


def test_who_is_planned_later_keeps_what_all_kept_of_a_group() -> None:
    web, db = in_groups(nightly("a", "b", "c", pinned=("a",)), "web"), in_groups(nightly("a", "b", "c"), "db")
    alone = replace(db, tree=nightly("a", "b", "c").tree)
    wanted = [(Prune(last(1), schedule="nightly"), situation) for situation in (web, db, alone)]
    one, other, third = keeping_groups(wanted)
    assert other.kept == {"a": "its group “a@1” is kept", "c": "its group “c@1” is kept"}
    assert third == wanted[2][0], "what was taken by itself is decided on by itself"
    assert [
        make_plan(each, situation).snapshots for each, (_, situation) in zip((one, other), wanted, strict=False)
    ] == [planned.plan.snapshots for planned in plan_prunes(wanted[:2])]
    assert keeping_groups([]) == ()


def test_a_group_that_was_too_young_is_not_torn_by_the_time_that_goes_by() -> None:
    policy = replace(last(1), minimum_age=Duration(hours=1))
    pair = [replace(in_groups(nightly("a", "b"), name), now=NOW + 3599) for name in ("web", "db")]
    intention = keeping_groups([(Prune(policy), situation) for situation in pair])[1]
    later = replace(pair[1], now=NOW + 7200)
    assert make_plan(Prune(policy), later).snapshots == ("a",)
    assert make_plan(intention, later).snapshots == ()


def test_a_preview_forecasts_what_the_plan_does() -> None:
    situation = nightly("a", "b", "c", "d", "e", "f")
    pruning = prune(last(2), layer_tree_of(situation), situation.now)
    plan = make_plan(Prune(last(2)), situation)
    forecast = forecast_of(pruning, situation.speed)
    assert (forecast.peak_extra, forecast.seconds) == (plan.forecast.peak_extra, plan.forecast.seconds)
    assert pruning.goes == plan.snapshots


def test_one_machine_may_use_what_the_one_before_gave_back() -> None:
    def part(needs: int, frees: int) -> Forecast:
        return Forecast(copies=exact(needs), frees=exact(frees), peak_extra=exact(needs), seconds=1.0)

    both = forecast_in_turn([part(10, 20), part(15, 5)])
    assert (both.copies.bytes, both.frees.bytes, both.peak_extra.bytes, both.seconds) == (25, 25, 15, 2.0)
    assert forecast_in_turn([part(10, -4), part(15, 5)]).peak_extra.bytes == 19, "what was not given back is missing"


MIB = 1 << 20
LITTLE = Forecast(copies=exact(MIB), frees=exact(3 * MIB), peak_extra=exact(MIB), seconds=2.0)
_UNREADABLE = unknown("the image db.img can't be read")
UNREAD = Forecast(_UNREADABLE, _UNREADABLE, _UNREADABLE)
UNTIMED = replace(LITTLE, seconds=None)


@pytest.mark.parametrize(
    ("machines", "sums", "remarks"),
    [
        ({}, "frees 0 Bytes, copies 0 Bytes, needs 0 Bytes meanwhile, takes less than a second", []),
        ({"web": LITTLE}, "frees 3.0 MiB, copies 1.0 MiB, needs 1.0 MiB meanwhile, takes about 2 seconds", []),
        (
            {"web": LITTLE, "db": UNREAD},
            "frees 3.0 MiB and more, copies 1.0 MiB and more, needs 1.0 MiB and more meanwhile,"
            " takes about 2 seconds and more",
            [
                "Not known of db: what comes back, what is copied, the room needed meanwhile and the time it takes"
                " (the image db.img can't be read)."
            ],
        ),
        (
            {"web": LITTLE, "ci": UNTIMED, "db": UNTIMED},
            "frees 9.0 MiB, copies 3.0 MiB, needs 1.0 MiB meanwhile, takes about 2 seconds and more",
            [
                "Not known of ci and db: the time it takes (nothing of this kind was done on this host yet to learn it"
                " from)."
            ],
        ),
        (
            {"web": replace(UNTIMED, copies=exact(1 << 40))},
            "frees 3.0 MiB, copies 1.0 TiB, needs 1.0 MiB meanwhile, takes ?",
            ["Not known: the time it takes (so much was not copied on this host yet to learn it from)."],
        ),
        (
            {"db": UNREAD},
            "frees ?, copies ?, needs ? meanwhile, takes ?",
            [
                "Not known: what comes back, what is copied, the room needed meanwhile and the time it takes"
                " (the image db.img can't be read)."
            ],
        ),
    ],
)
def test_what_is_known_of_some_machines_is_said_and_what_is_not_of_which(
    machines: dict[str, Forecast], sums: str, remarks: list[str]
) -> None:
    totals = totals_in_turn(machines.items())
    assert ", ".join(words.totals(totals)) == sums
    assert list(totals.unknown) == remarks


figures = st.one_of(st.integers(0, 1 << 40).map(exact), st.just(unknown("nobody knows")))
forecasts = st.builds(
    Forecast, copies=figures, frees=figures, peak_extra=figures, seconds=st.one_of(st.none(), st.floats(0, 1e6))
)


@given(st.lists(forecasts, max_size=5))
def test_sums_are_of_what_is_known_and_say_so(parts: list[Forecast]) -> None:
    totals = totals_in_turn((f"vm-{number}", part) for number, part in enumerate(parts))
    for what in ("frees", "copies"):
        known = [figure.bytes for part in parts if (figure := getattr(part, what)).bytes is not None]
        in_sum = getattr(totals.known, what).bytes
        assert in_sum == (None if parts and not known else sum(known))
        assert (what in totals.partly) == (0 < len(known) < len(parts))
    assert bool(totals.unknown) == any(
        part.seconds is None or not (part.copies.is_known and part.frees.is_known and part.peak_extra.is_known)
        for part in parts
    )


@pytest.mark.parametrize(
    ("scope", "needed", "goes", "says"),
    [
        (Scope(), 0, 0, ""),
        (Scope(), 4, 0, "4 snapshots were not made by a schedule: add --by-hand."),
        (Scope(), 4, 2, ""),
        (Scope(names=("before-*",)), 1, 2, "1 snapshot matches the name but was not made by a schedule"),
        (Scope(names=("x",), tags=("y",)), 1_200, 0, "1,200 snapshots match the name and the tag but were not made by"),
        (Scope(owners=("amina",)), 3, 0, "3 snapshots match the owner but were not made by a schedule"),
    ],
)
def test_what_by_hand_would_include_is_said_where_somebody_may_wonder(
    scope: Scope, needed: int, goes: int, says: str
) -> None:
    pruning = prune(last(4 - goes), layer_tree_of(nightly("a", "b", "c", "d")), NOW + 1000)
    assert len(pruning.goes) == goes
    hint = hint_of_by_hand(scope, [replace(pruning, needs_by_hand=needed)], "add --by-hand")
    assert hint.startswith(says)
    assert bool(hint) == bool(says)


def test_what_a_window_knows_to_be_in_the_way_is_what_the_plan_says() -> None:
    situation = nightly("a", "b", "c")
    layer_tree = layer_tree_of(situation)
    assert likely_refusal(("a", "b"), situation, layer_tree) is None
    saved = replace(situation, domain=replace(situation.domain, has_managed_save=True))
    refusal = likely_refusal(("a", "b"), saved, layer_tree)
    assert refusal == make_plan(Prune(last(1)), saved).refusals[0]
    assert likely_refusal((), saved, layer_tree) is None, "where nothing goes, nothing is in the way"


def test_a_refusal_for_one_machine_stops_no_other() -> None:
    willing, refused = nightly("a", "b"), nightly("a", "b")
    refused = replace(refused, block_jobs=("vda",), domain=replace(refused.domain, name="db-02", uuid="other"))
    found = plan_prunes([(Prune(last(1)), situation) for situation in (willing, refused)])
    shown = in_turn(each.plan for each in found)
    assert [plan.domain for plan in shown.willing] == [willing.domain.name]
    assert not shown.is_refused
    assert any("db-02" in refusal.reason for refusal in shown.refusals)
    assert [plan.domain for plan in shown.left_out] == ["db-02"]
    assert shown.forecast == forecast_in_turn([found[0].plan.forecast])
    assert totals_of(shown).known == shown.forecast, "what is left out is not counted"
    assert in_turn([found[1].plan]).is_refused


def test_no_more_goes_later_than_was_agreed_to() -> None:
    agreed = make_plan(Prune(last(2)), nightly("a", "b", "c"))
    later, intention = nightly("a", "b", "c", "d"), Prune(last(2))
    plan = make_plan(intention, later)
    assert plan.snapshots == ("a", "b")
    less = no_more_than(intention, plan, agreed)
    assert less is not None
    assert make_plan(less, later).snapshots == ("a",)
    assert no_more_than(less, make_plan(less, later), agreed) is None
