"""Deletes by merges of our own: which steps, in which order, what is written, and what forbids them."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import pytest

from snaptree.model.estate import DomainState, InternalSnapshot
from snaptree.model.figures import exact
from snaptree.plans.aftermath import after
from snaptree.plans.intention import Delete
from snaptree.plans.plan import DeleteSnapshot, MergeLayers, MergeWay, Plan, RecordLayers, RemoveLeftover
from snaptree.plans.planner import make_plan
from snaptree.plans.situation import Situation
from tests.plans.situations import DEBIAN_12, MIB, SituationBuilder, a_machine, disk

RUNNING = DomainState.RUNNING
BASE = "/images/vda.qcow2"


def merges(plan: Plan) -> list[tuple[str, tuple[str, ...]]]:
    """Way and layers of each merge, by the ends of their names."""
    return [
        (step.way.value, tuple(path.rpartition(".")[2] for path in step.layers))
        for step in plan.steps
        if isinstance(step, MergeLayers)
    ]


def record_of(plan: Plan) -> RecordLayers:
    (record,) = [step for step in plan.steps if isinstance(step, RecordLayers)]
    return record


def carried_out(plan: Plan, situation: Situation) -> Situation:
    assert not plan.is_refused, plan.refusals
    for step in plan.steps:
        situation = after(situation, step)
    return situation


def forked(**machine: Any) -> SituationBuilder:
    """a -> b (not in use), a -> c (current): vda.a and the revert's overlay stand on the base, vda.c on the latter."""
    return a_machine(**machine).external("a").external("b").revert("a").external("c")


def test_a_fork_point_is_pulled_into_all_but_the_last_of_its_branches() -> None:
    situation = forked().build()
    plan = make_plan(Delete(("a",)), situation)
    ways = merges(plan)
    assert [way for way, _ in ways] == ["pull", "commit"]
    afterwards = carried_out(plan, situation)
    assert set(afterwards.tree.snapshots) == {"b", "c"}
    assert afterwards.tree.roots == ("b", "c")
    assert len(afterwards.layers.chains[0].layers) == 2, "the base is merged away"
    assert BASE not in plan.forecast.copies.how


def test_a_branch_that_is_not_in_use_is_merged_by_a_helper_machine() -> None:
    situation = a_machine(state=RUNNING).external("a").external("b").external("c").revert("a").external("d")
    plan = make_plan(Delete(("b",)), situation.state(RUNNING).build())
    (step,) = [step for step in plan.steps if isinstance(step, MergeLayers)]
    assert not step.is_live
    assert step.stack[-1].path == BASE, "QEMU opens all that is below"
    assert "helper-machine" in {warning.rule for warning in plan.warnings}
    assert record_of(plan).parents == {"c": "a"}
    assert record_of(plan).forgotten == ("b",)


def test_layers_in_use_are_merged_by_the_machine_itself() -> None:
    situation = a_machine(state=RUNNING).external("a").external("b").external("c").build()
    plan = make_plan(Delete(("a", "b")), situation)
    (step,) = [step for step in plan.steps if isinstance(step, MergeLayers)]
    assert step.is_live
    assert (step.way, step.layers) == (MergeWay.COMMIT, ("/images/vda.b", "/images/vda.a", BASE))
    assert [layer.path for layer in step.stack] == ["/images/vda.c", "/images/vda.b", "/images/vda.a", BASE]
    assert record_of(plan).moved["/images/vda.b"].path == BASE
    assert [step.path for step in plan.steps if isinstance(step, RemoveLeftover)] == ["/images/vda.b", "/images/vda.a"]
    (warning,) = [warning for warning in plan.warnings if warning.rule == "merge-overwrites"]
    assert "snaptree recover web-01" in warning.reason


def test_what_was_committed_into_a_raw_image_is_recorded_as_raw() -> None:
    situation = a_machine(disk(format="raw", path="/images/vda.raw")).external("a").external("b").external("c").build()
    plan = make_plan(Delete(("a", "b"), by_own_jobs=True), situation)
    assert record_of(plan).moved["/images/vda.b"].format == "raw"
    held = carried_out(plan, situation).tree["c"].disks[0]
    assert (held.frozen, held.frozen_format) == ("/images/vda.raw", "raw")


def test_one_layer_into_the_next_is_left_to_libvirt_unless_it_shall_be_slowed_down() -> None:
    situation = a_machine(state=RUNNING).external("a").external("b").build()
    assert [type(step) for step in make_plan(Delete(("a",)), situation).steps] == [DeleteSnapshot]
    by_us = make_plan(Delete(("a",), by_own_jobs=True), situation)
    assert merges(by_us) == [("commit", ("a", "qcow2"))]
    assert "cannot-be-cancelled" not in {warning.rule for warning in by_us.warnings}


def test_the_parent_of_a_current_one_that_goes_knows_which_layer_is_in_use() -> None:
    """libvirt removes that one when it leaves the parent; another would be one that is needed."""
    situation = a_machine().external("p").external("s").image("/images/vda.s", allocated=exact(90 * MIB)).build()
    plan = make_plan(Delete(("s",), by_own_jobs=True), situation)
    assert merges(plan) == [("pull", ("s", "p"))], "less than committing the larger one"
    assert record_of(plan).overlays == {"p": {"vda": "/images/vda.s"}}
    afterwards = carried_out(plan, situation)
    assert afterwards.tree.current == "p"


def test_a_fork_that_becomes_current_notes_the_layer_beside_those_of_its_branches() -> None:
    machine = forked().image("/images/vda.c", allocated=exact(90 * MIB))
    plan = make_plan(Delete(("c",), by_own_jobs=True), machine.build())
    record = record_of(plan)
    assert record.revert_overlays == {"a": {"vda": "/images/vda.c"}}
    assert "a" not in record.overlays
    old = forked(version=DEBIAN_12).image("/images/vda.c", allocated=exact(90 * MIB))
    assert record_of(make_plan(Delete(("c",), by_own_jobs=True), old.build())).overlays["a"] == {"vda": "/images/vda.c"}


def test_what_is_in_use_since_a_revert_is_noted_for_all_disks_in_one_place() -> None:
    situation = a_machine(disk("vda"), disk("vdb")).external("a", excluded=("vda",)).external("b").revert("a").build()
    record = record_of(make_plan(Delete(("b",), by_own_jobs=True), situation))
    (in_use,) = record.revert_overlays.values()
    assert in_use.keys() == {"vda", "vdb"}
    assert record.overlays == {"a": {"vdb": in_use["vdb"]}}, "the file that it named goes"


def test_disks_of_one_snapshot_are_merged_before_it_is_forgotten() -> None:
    situation = a_machine(disk("vda"), disk("vdb")).external("a").external("b").build()
    plan = make_plan(Delete(("a", "b")), situation)
    kinds = [type(step).__name__ for step in plan.steps]
    assert kinds == ["MergeLayers"] * 2 + ["RecordLayers"] + ["RemoveLeftover"] * 4


def test_room_is_needed_for_one_batch_after_the_other() -> None:
    """What gives back more than it takes comes first; the rest then has that much more room."""
    machine = a_machine()
    for name in ("a", "b", "c", "d", "e"):
        machine.external(name)
    machine.image("/images/vda.a", allocated=exact(50 * MIB)).image("/images/vda.c", allocated=exact(20 * MIB))
    plan = make_plan(Delete(("a", "c")), machine.build())
    assert plan.forecast.peak_extra.bytes == 50 * MIB
    crowded = machine.having(free_bytes=MappingProxyType({"/images": 5 * MIB})).build()
    assert [refusal.rule for refusal in make_plan(Delete(("a", "c")), crowded).refusals][:1] == ["merge-lacks-room"]


def test_memory_goes_with_its_snapshot() -> None:
    machine = a_machine(state=RUNNING).external("a", memory=True).external("b", memory=True).external("c")
    plan = make_plan(Delete(("a", "b")), machine.build())
    removed = [step.path for step in plan.steps if isinstance(step, RemoveLeftover)]
    assert removed[-2:] == ["/images/vda.a.mem", "/images/vda.b.mem"]


def test_a_chain_too_deep_to_be_opened_is_merged_from_below_in_parts() -> None:
    """libvirt 10.8 to 11 starts no helper with more than 25 layers."""
    machine = a_machine()
    for number in range(40):
        machine.external(f"s{number}")
    plan = make_plan(Delete(tuple(f"s{number}" for number in range(36))), machine.build())
    steps = [step for step in plan.steps if isinstance(step, MergeLayers)]
    assert len(steps) > 1
    assert all(len(step.stack) <= 25 for step in steps)
    assert {step.layers[-1] for step in steps} == {BASE}
    moved = [layer for step in steps for layer in step.layers[:-1]]
    assert len(moved) == len(set(moved)) == 36


@pytest.mark.parametrize(
    ("rule", "situation", "says"),
    [
        ("merged-layer-unreadable", forked().image("/images/vda.a", problem="it is not qcow2"), "it is not qcow2"),
        ("merge-loses-bitmaps", forked().image(BASE, has_bitmaps=True), BASE),
        ("merge-needs-files", forked().having(disks=(disk(type="block", path="/images/vda.c"),)), "block"),
        ("merge-unreadable-machines", forked().having(unreadable_domains=("db-01",)), "db-01"),
        (
            "merge-stuck",
            forked().image("/images/vda.a", internal_snapshots=(InternalSnapshot("1", "by-hand", 0, 0),)),
            "by-hand",
        ),
        ("managed-save", forked().domain(has_managed_save=True), "web-01"),
        ("block-job-running", forked().having(block_jobs=("vda",)), "vda"),
        ("read-only-connection", forked().host(read_only=True), "read-only"),
    ],
)
def test_what_forbids_it_is_said(rule: str, situation: SituationBuilder, says: str) -> None:
    plan = make_plan(Delete(("a",)), situation.build())
    assert plan.steps == ()
    spoke = [finding for finding in plan.refusals if finding.rule == rule]
    assert spoke, plan.refusals
    assert says in spoke[0].reason


def test_where_chains_are_too_deep_the_lowest_go_first() -> None:
    """Here what lies higher would need less room, but no helper machine could open what it stands on."""
    builder = a_machine()
    for number in range(40):
        builder.external(f"s{number:02}")
    builder.image("/images/vda.s05", allocated=exact(50 * MIB))
    names = tuple(f"s{number:02}" for number in (*range(20), *range(30, 38)))
    situation = builder.build()
    plan = make_plan(Delete(names), situation)
    first, *_ = (step for step in plan.steps if isinstance(step, MergeLayers))
    assert BASE in first.layers
    assert set(carried_out(plan, situation).tree.snapshots) == {f"s{number:02}" for number in range(40)} - set(names)


@pytest.mark.parametrize("disks", [("vda",), ("vda", "vdb")])
def test_a_layer_goes_before_a_fork_above_it_lets_several_stand_on_it(disks: tuple[str, ...]) -> None:
    """Though the fork needs less room: of those above a layer that goes, QEMU tells only one."""
    machine = a_machine(*map(disk, disks)).external("root").external("middle").external("fork").external("left")
    machine.revert("fork").external("right")
    for target in disks:
        machine.image(f"/images/{target}.root", allocated=exact(50 * MIB))
        machine.image(f"/images/{target}.middle", allocated=exact(0))
    situation = machine.build()
    plan = make_plan(Delete(("root", "fork")), situation)
    steps = [step for step in plan.steps if isinstance(step, MergeLayers)]
    assert [(step.target, step.way.value) for step in steps] == [
        *((target, "commit") for target in disks),
        *((target, way) for target in disks for way in ("pull", "commit")),
    ], plan.refusals
    assert {step.layers[-1] for step in steps[: len(disks)]} == {f"/images/{target}.qcow2" for target in disks}
    assert set(carried_out(plan, situation).tree.snapshots) == {"middle", "left", "right"}


def test_what_others_stand_on_stays() -> None:
    """A clone that is off, and a file that no machine mentions."""
    for machine in (
        forked().having(dependants=MappingProxyType({BASE: frozenset({"clone"})})),
        forked().having(overlays_on=MappingProxyType({BASE: frozenset({"/images/clone.qcow2"})})),
    ):
        plan = make_plan(Delete(("a",)), machine.build())
        assert merges(plan) == []
        assert not any(isinstance(step, RemoveLeftover) for step in plan.steps)
        (stays,) = [warning.reason for warning in plan.warnings if warning.rule == "layer-stays"]
        assert "clone" in stays


def test_what_only_libvirt_can_merge_is_left_to_it_beside_other_merges() -> None:
    """A fork stands on a layer in use: QEMU tells the branch in use, and libvirt 9.9 and later the other one too."""
    machine = a_machine(state=RUNNING).external("a").external("b").external("c").external("fork").external("left")
    machine.revert("fork").state(RUNNING).external("right")
    recorded = MappingProxyType({"left": (disk(records_chain=True),)})
    situation = machine.having(recorded_disks=recorded).build()
    plan = make_plan(Delete(("a", "c")), situation)
    assert not plan.is_refused, plan.refusals
    assert any(isinstance(step, DeleteSnapshot) and step.name == "c" for step in plan.steps)
    afterwards = carried_out(plan, situation)
    assert set(afterwards.tree.snapshots) == {"b", "fork", "left", "right"}
