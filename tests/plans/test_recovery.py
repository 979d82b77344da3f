"""What becomes of an operation that was interrupted: what is left of it, or what it means to leave it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from snaptree.model.errors import SnapTreeError
from snaptree.model.estate import DomainState
from snaptree.model.figures import NOTHING, Confidence, exact
from snaptree.plans.aftermath import after
from snaptree.plans.intention import Capture, Delete, Recover, Revert, Take
from snaptree.plans.merge import layer_tree_of
from snaptree.plans.operation import (
    Operation,
    OperationState,
    Settled,
    StepFound,
    StepState,
    half_deleted,
    last_undoable,
)
from snaptree.plans.plan import (
    Action,
    CopyOut,
    DeleteSnapshot,
    EndOrphanedMerge,
    Layer,
    MergeLayers,
    MergeWay,
    Plan,
    RecordLayers,
    RemoveLeftover,
    RevertToSnapshot,
    TakeSnapshot,
)
from snaptree.plans.plan_words import steps_in_brief
from snaptree.plans.planner import make_plan
from snaptree.plans.recovery import is_torn
from snaptree.plans.speed import Sample, Speed, Way
from snaptree.plans.step_costs import StepCosts
from tests.plans.situations import MIB, SituationBuilder, a_machine, interrupted

TWO = Delete(("a", "b"))


def three() -> SituationBuilder:
    return a_machine().external("a").external("b").external("c")


def cut_short(*, done: int = 0) -> Operation:
    """Two deletes by libvirt, the first of them begun."""
    operation = interrupted(three(), TWO, done=done)
    steps = (DeleteSnapshot("a", ("b",), merges=True), DeleteSnapshot("b", ("c",), merges=True))
    return replace(operation, plan=replace(operation.plan, steps=steps))


def finish(now: SituationBuilder, operation: Operation, found: StepFound | None = None) -> Plan:
    return make_plan(Recover(), now.having(unfinished=operation, found=found).build())


def leave(now: SituationBuilder, operation: Operation, found: StepFound | None = None) -> Plan:
    return make_plan(Recover(leave=True), now.having(unfinished=operation, found=found).build())


def said(plan: Plan) -> dict[str, str]:
    return {finding.rule: f"{finding.reason} {finding.remedy}" for finding in (*plan.warnings, *plan.refusals)}


def deleted(plan: Plan) -> list[str]:
    return [step.name for step in plan.steps if isinstance(step, DeleteSnapshot)]


def test_what_is_not_done_is_left_to_finish() -> None:
    operation = cut_short(done=1)
    first, second = deleted(operation.plan)
    plan = finish(three().delete(first), operation, StepFound(StepState.NOT_BEGUN))
    assert (plan.action, plan.recovers) == (Action.FINISH, 7)
    assert deleted(plan) == [second]
    assert not plan.expected_chains, "each step looks for itself"
    assert first in said(plan)["finished-already"]

    plan = leave(three().delete(first), operation, StepFound(StepState.NOT_BEGUN))
    assert (plan.action, plan.recovers, plan.steps) == (Action.LEAVE, 7, ())
    assert first in said(plan)["finished-already"]
    assert second in said(plan)["left-undone"]


def test_a_step_that_is_found_done_stays_to_be_checked() -> None:
    operation = cut_short()
    first, second = deleted(operation.plan)
    plan = finish(three().delete(first), operation, StepFound(StepState.DONE))
    assert deleted(plan) == [first, second]
    assert first in said(plan)["finished-already"]
    assert second not in said(plan)["finished-already"]
    assert first in said(leave(three().delete(first), operation, StepFound(StepState.DONE)))["finished-already"]


def test_many_steps_are_told_in_brief() -> None:
    steps = tuple(RemoveLeftover(f"/images/{number}", f"why {number}") for number in range(9))
    assert steps_in_brief(steps[:4]).count("Remove") == 4
    assert steps_in_brief(steps).endswith("; and 6 more steps")
    operation = cut_short()
    operation = replace(operation, plan=replace(operation.plan, steps=steps))
    warning = said(leave(three(), operation))["left-undone"]
    assert warning.count("nothing needs") == 1, "what stays is told of together"


def test_a_half_deleted_snapshot_is_deleted_again() -> None:
    operation = cut_short()
    found = StepFound(StepState.HALF_WAY, "its layer may be merged in part")
    plan = finish(three(), operation, found)
    assert plan.steps == operation.plan.steps
    assert "merged in part" in said(plan)["half-done"]
    assert "do not revert to it" in said(leave(three(), operation, found))["half-done"]


def test_an_orphaned_merge_is_ended_first() -> None:
    found = StepFound(StepState.HALF_WAY, "left behind", orphans=("vda",))
    plan = finish(three(), cut_short(), found)
    assert plan.steps[0] == EndOrphanedMerge(("vda",))
    assert plan.steps[1:] == cut_short().plan.steps


def test_what_somebody_changed_meanwhile_can_only_be_left() -> None:
    found = StepFound(StepState.CHANGED, "“a” has other children")
    operation = cut_short()
    plan = finish(three().external("d"), operation, found)
    assert plan.is_refused
    assert not plan.steps
    assert "other children" in said(plan)["cannot-finish"]
    assert not leave(three().external("d"), operation, found).is_refused


def test_rules_judge_again_what_has_not_begun() -> None:
    operation = cut_short(done=1)
    now = three().delete(deleted(operation.plan)[0]).domain(has_managed_save=True)
    assert "managed-save" in said(finish(now, operation, StepFound(StepState.NOT_BEGUN)))
    assert not leave(now, operation, StepFound(StepState.NOT_BEGUN)).is_refused


def test_a_revert_is_finished_with_its_undo() -> None:
    past = a_machine().internal("good").internal("later")
    operation = interrupted(past, Revert("good"), done=1, begun=1)
    taken, revert = operation.plan.steps
    assert isinstance(taken, TakeSnapshot)
    assert isinstance(revert, RevertToSnapshot)
    plan = finish(past.internal(taken.name), operation, StepFound(StepState.NOT_BEGUN))
    assert plan.steps == (revert,)
    assert plan.undo == operation.plan.undo
    assert plan.undo is not None


def merged_by_us(**machine: Any) -> SituationBuilder:
    """a, b and c in use, of which the first two are being merged into one by us."""
    return a_machine(**machine).external("a").external("b").external("c")


def test_what_is_left_to_finish_has_a_forecast_of_its_own() -> None:
    speed = Speed(seconds_each=2.0, samples=(Sample(Way.MERGE, 0, 1.0, paused=0.2),))
    past = merged_by_us(state=DomainState.RUNNING).having(speed=speed)
    operation = interrupted(past, TWO)
    assert [type(step) for step in operation.plan.steps] == [MergeLayers, RecordLayers, RemoveLeftover, RemoveLeftover]
    half_way = finish(past, operation, StepFound(StepState.HALF_WAY, "a merge was under way")).forecast
    assert half_way.copies.bytes == operation.plan.forecast.copies.bytes == 20 * MIB, "both layers above the base"
    assert half_way.copies.confidence is Confidence.UPPER_BOUND
    assert half_way.peak_extra.bytes == operation.plan.forecast.peak_extra.bytes == 20 * MIB
    assert half_way.frees.bytes == 20 * MIB
    assert half_way.seconds is None, "nobody has copied much here"
    assert half_way.pause_seconds == 0.2

    merged = past.build()
    merged = replace(after(merged, operation.plan.steps[0]), unfinished=replace(operation, steps_done=1))
    rest = make_plan(Recover(), replace(merged, found=StepFound(StepState.NOT_BEGUN))).forecast
    assert (rest.copies, rest.peak_extra) == (NOTHING, NOTHING)
    assert rest.frees == exact(20 * MIB)
    assert (rest.seconds, rest.pause_seconds) == (4.0, 0.0)


def test_what_libvirt_has_left_to_delete_is_counted_as_well() -> None:
    forecast = finish(three(), cut_short(), StepFound(StepState.HALF_WAY, "its layer may be merged in part")).forecast
    assert (forecast.copies.bytes, forecast.peak_extra.bytes) == (20 * MIB, 10 * MIB), "one layer at a time"
    assert leave(three(), cut_short()).forecast.seconds == 0


def test_what_is_left_of_a_revert_takes_what_it_would_have_taken() -> None:
    past = a_machine().external("good").external("later")
    operation = interrupted(past, Revert("good"))
    assert finish(past, operation).forecast.peak_extra.bytes == operation.plan.forecast.peak_extra.bytes
    assert finish(past, operation).forecast.copies == NOTHING


def test_what_is_left_of_a_look_is_counted_as_well() -> None:
    situation = a_machine().internal("a").build()
    costs = StepCosts(layer_tree_of(situation))
    copy = CopyOut("a", "vda", Layer("/images/vda.qcow2", "qcow2"), None, "/images/look.qcow2", copies=5 * MIB)
    costs.add(copy, situation, situation)
    forecast = costs.forecast(situation.speed)
    assert forecast.copies.bytes == forecast.peak_extra.bytes == 5 * MIB
    costs.add(replace(copy, copies=None), situation, situation)
    assert not costs.forecast(situation.speed).copies.is_known


def test_nothing_to_recover_says_so() -> None:
    with pytest.raises(SnapTreeError, match="interrupted"):
        make_plan(Recover(), three().build())


def test_merges_that_libvirt_does_not_know_of_are_torn() -> None:
    """Cut short itself, a commit has begun to overwrite something, and a pull has not."""
    for way in MergeWay:
        merge = MergeLayers("vda", way, ("/c", "/b"), (Layer("/c", "qcow2"), Layer("/b", "qcow2")), True)
        record = RecordLayers({}, ("/b",), {}, {}, {}, ("b",))
        plan = Plan(Action.DELETE, "qemu:///system", "uuid", "web-01", ("b",), steps=(merge, record))
        assert not is_torn(plan, 0, 0)
        assert is_torn(plan, 1, 0) == (way is MergeWay.COMMIT)
        assert is_torn(plan, 2, 1)
        assert not is_torn(plan, 2, 2)
        begun = Operation(1, plan, OperationState.INTERRUPTED, started=1.0, steps_begun=1)
        assert half_deleted(begun) == (("b",) if way is MergeWay.COMMIT else ())
        assert half_deleted(replace(begun, steps_begun=0)) == ()
        for done in (1, 2):  # merged in full, and libvirt takes it to be where it was
            half = replace(begun, steps_done=1, steps_begun=done)
            assert half_deleted(half) == (("b",) if way is MergeWay.COMMIT else ())
        assert half_deleted(replace(begun, steps_done=2, steps_begun=2)) == ()


def test_undo_waits_for_what_was_interrupted() -> None:
    plan = make_plan(Take("x", capture=Capture.INTERNAL), a_machine().build())
    done = Operation(1, plan, OperationState.DONE, started=1.0, finished=2.0, steps_done=1, steps_begun=1)
    cut = cut_short()
    assert last_undoable([done]) is done
    assert last_undoable([done, cut]) is None
    settled = Operation(8, plan, OperationState.INTERRUPTED, 3.0, settled=Settled(9, Action.LEAVE), steps_begun=1)
    assert last_undoable([done, settled]) is None, "it changed something that nobody takes back"
    not_begun = Operation(8, plan, OperationState.INTERRUPTED, 3.0)
    assert last_undoable([done, not_begun]) is done
