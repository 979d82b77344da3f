"""Plans for several machines together: one name, one refusal for all, one sum, and who goes on when."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import MappingProxyType

import pytest

from snaptree.model.errors import SnapTreeError
from snaptree.model.estate import DomainState
from snaptree.plans.group import GroupPlan, done_together, find_group, member_of, name_of, turns
from snaptree.plans.group_planning import plan_group_revert, plan_group_take
from snaptree.plans.intention import Capture, Recover, Revert, Take
from snaptree.plans.operation import Operation, OperationState, StepFound, StepState
from snaptree.plans.plan import (
    Action,
    DeleteSnapshot,
    Freeze,
    FreezeFileSystems,
    RemoveLeftover,
    TakeSnapshot,
    ThawFileSystems,
)
from snaptree.plans.planner import make_plan
from snaptree.plans.situation import Situation
from tests.plans.situations import SituationBuilder, a_machine

TAKE = Take("night", capture=Capture.DISKS)


def named(builder: SituationBuilder, name: str) -> Situation:
    situation = builder.build()
    return replace(situation, domain=replace(situation.domain, name=name, uuid=f"uuid-of-{name}"))


def pair(make: Callable[[], SituationBuilder] = a_machine) -> tuple[Situation, Situation]:
    return named(make(), "db"), named(make(), "web")


def in_group(situation: Situation, name: str, group: str) -> Situation:
    """A situation in which this snapshot belongs to a group."""
    tree, snapshot = situation.tree, situation.tree[name]
    known = dict(tree.snapshots) | {name: replace(snapshot, annotations=replace(snapshot.annotations, group=group))}
    return replace(situation, tree=replace(tree, snapshots=MappingProxyType(known)))


def test_all_get_one_name_note_and_group() -> None:
    plan = plan_group_take(replace(TAKE, description="why"), pair())
    takes = [step for part in plan.members for step in part.steps if isinstance(step, TakeSnapshot)]
    assert [(step.name, step.description) for step in takes] == [("night", "why")] * 2
    (group,) = {step.group for step in takes}
    assert {part.group for part in plan.members} == {group}
    assert name_of(group) == "night"
    assert plan.undo is not None
    assert "db and web" in plan.undo.text


def test_a_suggested_name_is_free_on_all_machines() -> None:
    first, second = pair()
    suggested = plan_group_take(replace(TAKE, name=""), (first, second)).name
    taken = named(a_machine().external(suggested), "web")
    assert plan_group_take(replace(TAKE, name=""), (first, replace(taken, now=first.now))).name == f"{suggested}-2"


def test_another_group_of_that_name_is_another_one() -> None:
    first, second = pair()
    third = named(a_machine(), "mail")

    def group_of(*situations: Situation) -> str:
        return plan_group_take(TAKE, situations).members[0].group

    later = replace(first, now=first.now + 1)
    assert len({group_of(first, second), group_of(first, third), group_of(later, second)}) == 3
    assert group_of(first, second) == group_of(second, first)


def test_what_refuses_one_refuses_all() -> None:
    plan = plan_group_take(TAKE, (named(a_machine(), "db"), named(a_machine().external("night"), "web")))
    assert plan.is_refused
    assert plan.refusals[0].rule == "name-taken"
    assert all("web" in refusal.reason for refusal in plan.refusals)
    assert plan.undo is None
    assert not any(part.steps or part.warnings for part in plan.members), "nothing of it will happen"


def test_they_are_summed() -> None:
    plan = plan_group_take(TAKE, pair())
    (one, _) = (part.forecast.peak_extra.bytes for part in plan.members)
    assert one
    assert plan.forecast.peak_extra.bytes == 2 * one
    assert plan.forecast.seconds is None


def running_with_agent() -> SituationBuilder:
    return a_machine(state=DomainState.RUNNING, has_agent=True)


def order(plan: GroupPlan) -> list[tuple[str, type]]:
    """Steps with their machines, as they are run."""
    done = [0] * len(plan.members)
    found: list[tuple[str, type]] = []
    for phase in turns(plan.members):
        for number, until in phase:
            part = plan.members[number]
            found += [(part.domain, type(step)) for step in part.steps[done[number] : until]]
            done[number] = max(done[number], until)
    assert done == [len(part.steps) for part in plan.members], "all is done"
    return found


def test_all_freeze_then_all_are_taken_then_all_thaw() -> None:
    plan = plan_group_take(replace(TAKE, quiesce=Freeze.REQUIRED), pair(running_with_agent))
    assert order(plan) == [
        (name, step) for step in (FreezeFileSystems, TakeSnapshot, ThawFileSystems) for name in ("db", "web")
    ]


def test_one_without_an_agent_is_taken_while_the_other_is_frozen() -> None:
    machines = named(running_with_agent(), "db"), named(a_machine(), "web")
    plan = plan_group_take(replace(TAKE, quiesce=Freeze.IF_POSSIBLE), machines)
    assert order(plan) == [
        ("db", FreezeFileSystems),
        ("db", TakeSnapshot),
        ("web", TakeSnapshot),
        ("db", ThawFileSystems),
    ]
    assert plan_group_take(replace(TAKE, quiesce=Freeze.REQUIRED), machines).is_refused


def taken_together() -> tuple[Situation, Situation]:
    return tuple(in_group(each, "a", "a@1") for each in pair(lambda: a_machine().external("a").external("b")))  # type: ignore[return-value]  # two come of two


def test_all_are_safe_before_one_is_reverted_in_the_order_asked_for() -> None:
    db, web = taken_together()
    plan = plan_group_revert("a@1", Revert(""), (web, db))
    assert [part.domain for part in plan.members] == ["web", "db"]
    assert [(name, step is TakeSnapshot) for name, step in order(plan)][:3] == [
        ("web", True),
        ("db", True),
        ("web", False),
    ]
    safeties = {step.group for part in plan.members for step in part.steps if isinstance(step, TakeSnapshot)}
    assert safeties == {plan.members[0].group}


def test_a_machine_without_a_snapshot_of_the_group_is_named() -> None:
    db, _ = taken_together()
    with pytest.raises(SnapTreeError, match="web"):
        plan_group_revert("a@1", Revert(""), (db, named(a_machine(), "web")))


def test_groups_are_found_by_name_and_in_full() -> None:
    db, web = taken_together()
    trees = {"db": db.tree, "web": web.tree, "mail": a_machine().external("a").build().tree}
    assert find_group("a", trees) == find_group("a@1", trees) == ("a@1", ("db", "web"))
    assert member_of("a@1", db.tree) == "a"
    trees["mail"] = in_group(web, "a", "a@2").tree
    with pytest.raises(SnapTreeError, match="Several groups"):
        find_group("a", trees)
    assert find_group("a@2", trees)[1] == ("mail",)
    with pytest.raises(SnapTreeError, match="No snapshots"):
        find_group("b", trees)


@pytest.mark.parametrize("count", [0, 1])
def test_a_group_has_two_machines(count: int) -> None:
    with pytest.raises(SnapTreeError, match="two machines"):
        plan_group_take(TAKE, pair()[:count])


def test_machines_of_several_hosts_are_no_group() -> None:
    first, second = pair()
    far = replace(second, host=replace(second.host, uri="qemu+ssh://far/system"))
    with pytest.raises(SnapTreeError, match="several hosts"):
        plan_group_take(TAKE, (first, far))


# Taking it back


def test_what_was_done_together_is_taken_back_together_or_it_is_said_why_not() -> None:
    plan = plan_group_take(TAKE, pair())
    first, second = (
        Operation(number, part, OperationState.DONE, started=number, finished=number)
        for number, part in enumerate(plan.members, start=1)
    )
    assert done_together(second, (second, first)) == (first, second)
    assert done_together(second, (second, replace(first, undone=True))) == (second,)
    later = Operation(3, replace(first.plan, group=""), OperationState.DONE, started=3, finished=3)
    with pytest.raises(SnapTreeError, match="db was changed since"):
        done_together(second, (first, second, later))
    open_one = replace(first, state=OperationState.INTERRUPTED, steps_begun=1)
    with pytest.raises(SnapTreeError, match="interrupted on db"):
        done_together(second, (open_one, second))


# A group that was cut short


def recovered(situation: Situation, steps_done: int, found: StepState | None = None) -> tuple[type, ...]:
    """The steps that finish what was to be taken of this machine and others, and was not of all."""
    plan = plan_group_take(TAKE, pair()).members[0]
    operation = Operation(1, plan, OperationState.INTERRUPTED, started=1, steps_begun=1, steps_done=steps_done)
    unfinished = replace(
        situation, unfinished=operation, group_is_torn=True, found=None if found is None else StepFound(found)
    )
    finish = make_plan(Recover(), unfinished)
    assert finish.action is Action.FINISH
    assert "group-is-torn" in {warning.rule for warning in finish.warnings}
    assert not make_plan(Recover(leave=True), unfinished).steps, "it can be kept as well"
    return tuple(type(step) for step in finish.steps)


def test_what_was_taken_is_deleted_and_what_was_left_removed() -> None:
    taken = named(a_machine().external("night"), "db")
    assert DeleteSnapshot in recovered(taken, 1)
    assert DeleteSnapshot in recovered(taken, 0, StepState.DONE)
    before = named(a_machine(), "db")
    assert recovered(before, 0, StepState.NOT_BEGUN) == ()
    left = replace(before, existing_files=before.existing_files | {"/images/vda.night"})
    assert recovered(left, 0, StepState.HALF_WAY) == (RemoveLeftover,)
