"""Planning for several machines of a host together: a plan for each, under one name."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from snaptree.model.errors import SnapTreeError
from snaptree.plans.group import GROUP_MARK, GroupPlan, member_of, name_of
from snaptree.plans.intention import Revert, Take, TakeBack
from snaptree.plans.naming import DEFAULT_TEMPLATE, NameFields, is_template, suggest_name
from snaptree.plans.operation import Operation
from snaptree.plans.plan import Action, Forecast, Plan
from snaptree.plans.revert import plan_revert, plan_take_back
from snaptree.plans.situation import Situation
from snaptree.plans.take import plan_take
from snaptree.plans.wording import plain, quoted


def plan_group_take(intention: Take, situations: Sequence[Situation]) -> GroupPlan:
    """Plan one snapshot of each machine, under one name. Raises SnapTreeError if these are no group."""
    _check_group(situations)
    taken = {name for situation in situations for name in situation.tree.snapshots}
    name = intention.name or DEFAULT_TEMPLATE
    if is_template(name):
        fields = NameFields("group", situations[0].now, situations[0].user, "group")
        name = suggest_name(name, fields, taken)
    group = _new_group(name, situations)
    one = replace(intention, name=name, group=group)
    return _together(Action.TAKE, name, group, [plan_take(one, situation) for situation in situations])


def plan_group_revert(group: str, intention: Revert, situations: Sequence[Situation]) -> GroupPlan:
    """Plan to revert each of these machines to its snapshot of a group, in this order.

    All that `intention` says but the snapshot holds for each. Raises SnapTreeError if a machine has no such snapshot.
    """
    _check_group(situations)
    name = name_of(group)
    ours = _new_group(f"before-revert-{name}", situations)
    plans = []
    for situation in situations:
        snapshot = member_of(group, situation.tree)
        if snapshot is None:
            raise SnapTreeError(
                f"{plain(situation.domain.name)} has no snapshot of the group {quoted(group)}.",
                hint="Leave it out, or revert it by itself.",
            )
        plans.append(plan_revert(replace(intention, snapshot=snapshot, safety_group=ours), situation))
    return _together(Action.REVERT, name, ours, plans)


def plan_group_undo(operations: Sequence[Operation], situations: Sequence[Situation]) -> GroupPlan:
    """Plan to take back what was done together, of each machine the operation that `done_together` found."""
    plans = []
    for operation, situation in zip(operations, situations, strict=True):
        undo = operation.plan.undo
        assert undo is not None
        plans.append(plan_take_back(TakeBack(undo), situation))
    names = dict.fromkeys(name for plan in plans for name in plan.snapshots)
    return _together(Action.UNDO, next(iter(names), ""), "", plans)


def _check_group(situations: Sequence[Situation]) -> None:
    if len({situation.domain.uuid for situation in situations}) < 2:
        raise SnapTreeError("A group needs two machines at least.", hint="Name more of them.")
    if len({situation.host.uri for situation in situations}) > 1:
        raise of_several_hosts()


def of_several_hosts() -> SnapTreeError:
    """Why machines of several hosts are no group."""
    return SnapTreeError(
        "These machines are on several hosts, and SnapTree takes and reverts together only those of one.",
        hint="Do it for each host.",
    )


def _together(action: Action, name: str, group: str, plans: Sequence[Plan]) -> GroupPlan:
    """Where one is refused, the others have no steps either."""
    if any(plan.is_refused for plan in plans):
        plans = [replace(plan, steps=(), forecast=Forecast(), warnings=(), undo=None, settings=()) for plan in plans]
    return GroupPlan(action, name, tuple(replace(plan, group=group) for plan in plans))


def _new_group(name: str, situations: Sequence[Situation]) -> str:
    """What tells this group from any other of that name: these machines at this second."""
    uuids = sorted(situation.domain.uuid for situation in situations)
    digest = hashlib.sha256(" ".join([str(max(each.now for each in situations)), *uuids]).encode()).hexdigest()
    return f"{name}{GROUP_MARK}{digest[:8]}"
