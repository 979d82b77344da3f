"""Giving up the memory of a snapshot: what is planned, what it costs, and what becomes of it when cut short."""

from __future__ import annotations

import pytest

from snaptree.model.errors import VanishedError
from snaptree.model.estate import Consistency, DomainState, MemorySnapshot
from snaptree.model.figures import NOTHING, exact
from snaptree.plans.aftermath import after
from snaptree.plans.intention import DropMemory, Recover, Revert
from snaptree.plans.operation import StepFound, StepState, interruption
from snaptree.plans.plan import Action, Forecast, ForgetMemory, RemoveLeftover
from snaptree.plans.planner import make_plan
from tests.plans.situations import MIB, SituationBuilder, a_machine, interrupted

FILE = "/images/vda.a.mem"


def saved() -> SituationBuilder:
    return a_machine(state=DomainState.RUNNING).external("a", memory=True).external("b")


def test_the_record_first_and_the_file_last() -> None:
    plan = make_plan(DropMemory("a"), saved().build())
    forget, remove = plan.steps
    assert forget == ForgetMemory("a", "without-memory", FILE)
    assert isinstance(remove, RemoveLeftover)
    assert remove.path == FILE
    assert plan.forecast == Forecast(NOTHING, exact(200 * MIB), NOTHING, 0.4, 0.0)
    assert (plan.action, plan.snapshots, plan.undo) == (Action.DROP_MEMORY, ("a",), None)
    (warning,) = plan.warnings
    assert warning.rule == "memory-drop-is-final"
    assert plan.warns_of_finality


def test_the_stand_in_has_a_name_of_its_own() -> None:
    machine = saved().external("c").renamed("c", "without-memory")
    assert make_plan(DropMemory("a"), machine.build()).steps[0] == ForgetMemory("a", "without-memory-2", FILE)


def test_a_missing_file_is_not_removed() -> None:
    plan = make_plan(DropMemory("a"), saved().having(missing_files=frozenset({FILE})).build())
    assert [type(step) for step in plan.steps] == [ForgetMemory]
    assert plan.forecast.frees == NOTHING


def test_afterwards_it_is_a_snapshot_of_the_disks() -> None:
    situation = saved().build()
    for step in make_plan(DropMemory("a"), situation).steps:
        situation = after(situation, step)
    snapshot = situation.tree["a"]
    assert (snapshot.memory, snapshot.memory_file) == (MemorySnapshot.NO, None)
    assert (snapshot.state, snapshot.consistency) == (DomainState.DISK_ONLY, Consistency.CRASH)
    assert FILE not in situation.layers.memory_files
    revert = make_plan(Revert("a"), situation)
    assert "ends-shut-off" in {warning.rule for warning in revert.warnings}
    assert make_plan(DropMemory("a"), situation).refusals[0].rule == "no-memory"


def test_one_that_is_gone_is_said() -> None:
    with pytest.raises(VanishedError):
        make_plan(DropMemory("z"), saved().build())


def test_what_was_cut_short_is_finished_or_left() -> None:
    operation = interrupted(saved(), DropMemory("a"))
    assert interruption(operation).startswith("Dropping the memory of a snapshot was interrupted")
    for found in (StepFound(StepState.NOT_BEGUN), StepFound(StepState.HALF_WAY, "it is half done")):
        plan = make_plan(Recover(), saved().having(unfinished=operation, found=found).build())
        assert plan.steps == operation.plan.steps
    leave = make_plan(Recover(leave=True), saved().having(unfinished=operation, found=found).build())
    said = " ".join(f"{warning.reason} {warning.remedy}" for warning in leave.warnings)
    assert "“without-memory”" in said
    assert f"{FILE} stays" in said

    recorded = interrupted(saved(), DropMemory("a"), done=1)
    now = saved().snapshot("a", memory=MemorySnapshot.NO, memory_file=None)
    plan = make_plan(Recover(), now.having(unfinished=recorded, found=StepFound(StepState.NOT_BEGUN)).build())
    assert plan.steps == recorded.plan.steps[1:]
