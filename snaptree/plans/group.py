"""Several machines of one host taken, reverted or taken back together: a plan for each of them, shown and run as one.

A group is known by what its snapshots have in common (`Annotations.group`): their name, and what tells this group from
others of that name.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from snaptree.model.errors import SnapTreeError
from snaptree.model.figures import total
from snaptree.model.tree import SnapshotTree
from snaptree.plans.intention import Revert, Take, TakeBack
from snaptree.plans.naming import DEFAULT_TEMPLATE, NameFields, is_template, suggest_name
from snaptree.plans.operation import Operation, last_undoable
from snaptree.plans.plan import Action, Finding, Forecast, FreezeFileSystems, Plan, TakeSnapshot, Undo
from snaptree.plans.revert import plan_revert, plan_take_back
from snaptree.plans.situation import Situation
from snaptree.plans.take import plan_take
from snaptree.plans.wording import listed, plain, quoted

_MARK = "@"
"""Between the name of a group and what tells it from others: no name that SnapTree gives has one in it."""


@dataclass(frozen=True, slots=True)
class GroupPlan:
    """One plan for each machine, in the order in which they have their turns."""

    action: Action
    name: str
    """Of the snapshots that are taken or reverted to."""
    members: tuple[Plan, ...]

    @property
    def machines(self) -> str:
        """Their names, in words."""
        return listed(plain(plan.domain) for plan in self.members)

    @property
    def refusals(self) -> tuple[Finding, ...]:
        """Why it can't run: what refuses one of them refuses all."""
        return self._said(lambda plan: plan.refusals)

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """What somebody should know, each with its machine."""
        return self._said(lambda plan: plan.warnings)

    def _said(self, of: Callable[[Plan], tuple[Finding, ...]]) -> tuple[Finding, ...]:
        return tuple(_with_machine(finding, plain(plan.domain)) for plan in self.members for finding in of(plan))

    @property
    def is_refused(self) -> bool:
        """Whether a rule forbids this for one of them."""
        return any(plan.is_refused for plan in self.members)

    @property
    def warns_of_finality(self) -> bool:
        """Whether a warning says already that this can't be undone."""
        return any(plan.warns_of_finality for plan in self.members)

    @property
    def forecast(self) -> Forecast:
        """What all of it costs. They have their turns one after the other; each guest stands still for itself."""
        parts = [plan.forecast for plan in self.members]
        likely = [part.likely_extra for part in parts]
        return Forecast(
            copies=total(part.copies for part in parts),
            frees=total(part.frees for part in parts),
            peak_extra=total(part.peak_extra for part in parts),
            seconds=_sum(part.seconds for part in parts),
            pause_seconds=_most(part.pause_seconds for part in parts),
            likely_extra=None if None in likely else sum(bytes_ or 0 for bytes_ in likely),
        )

    @property
    def undo(self) -> Undo | None:
        """How all of it is taken back; None if that can't be done for one of them."""
        if self.is_refused or not all(plan.undo for plan in self.members):
            return None
        if self.action is Action.TAKE:
            return Undo(f"Delete {quoted(self.name)} of {self.machines} again; they keep what they did since.")
        return Undo(f"Revert {self.machines} to their states before, and delete those snapshots again.")


def _with_machine(finding: Finding, machine: str) -> Finding:
    """Many rules name the machine themselves."""
    is_named = re.search(rf"(?<![\w-]){re.escape(machine)}(?![\w-])", finding.reason)
    return finding if is_named else replace(finding, reason=f"{machine}: {finding.reason}")


def _sum(numbers: Iterable[float | None]) -> float | None:
    known = list(numbers)
    return None if None in known else sum(number or 0.0 for number in known)


def _most(numbers: Iterable[float | None]) -> float | None:
    known = list(numbers)
    return None if None in known else max((number or 0.0 for number in known), default=0.0)


def turns(members: Sequence[Plan]) -> list[list[tuple[int, int]]]:
    """Who goes on when: phases of turns, each a member's number and the number of steps that it has done then.

    All freeze before one is taken, and all are taken before anything else is done: frozen for as short as possible,
    and nothing is reverted before all are safe.
    """
    phases = []
    for kind in (FreezeFileSystems, TakeSnapshot):
        ends = [_steps_through(plan, kind) for plan in members]
        phases.append([(number, end) for number, end in enumerate(ends) if end])
    return [*phases, [(number, len(plan.steps)) for number, plan in enumerate(members)]]


def _steps_through(plan: Plan, kind: type) -> int:
    return max((number for number, step in enumerate(plan.steps, start=1) if isinstance(step, kind)), default=0)


# Planning


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
    return f"{name}{_MARK}{digest[:8]}"


# Finding what belongs together


def name_of(group: str) -> str:
    """The name that the snapshots of a group got."""
    return group.rpartition(_MARK)[0] or group


def member_of(group: str, tree: SnapshotTree) -> str | None:
    """A machine's snapshot of a group; None if it has none."""
    return next((snapshot.name for snapshot in tree if snapshot.annotations.group == group), None)


def find_group(asked: str, trees: Mapping[str, SnapshotTree]) -> tuple[str, tuple[str, ...]]:
    """A group by its name, or by all of it, among machines by UUID: and those that have a snapshot of it.

    Raises SnapTreeError if there is none, or several are called so.
    """
    groups: dict[str, list[str]] = {}
    for uuid, tree in trees.items():
        for group in dict.fromkeys(snapshot.annotations.group for snapshot in tree):
            if group and asked in (group, name_of(group)):
                groups.setdefault(group, []).append(uuid)
    if not groups:
        raise SnapTreeError(
            f"No snapshots were taken together as {quoted(asked)}.",
            hint="'snaptree tree VM --json' says what each belongs to.",
        )
    if len(groups) > 1:
        raise SnapTreeError(
            f"Several groups are named {quoted(asked)}: {listed(map(plain, sorted(groups)))}.",
            hint="Name one of them in full.",
        )
    ((found, members),) = groups.items()
    return found, tuple(members)


def done_together(operation: Operation, known: Iterable[Operation]) -> tuple[Operation, ...]:
    """What was done together with an operation, that one included, and is taken back with it: oldest first.

    Raises SnapTreeError if one of them can't be taken back now.
    """
    known = tuple(known)
    plan = operation.plan
    if not plan.group:
        return (operation,)
    found = [each for each in known if (each.plan.group, each.plan.host_uri) == (plan.group, plan.host_uri)]
    open_ones = sorted((each for each in found if each.can_undo), key=lambda each: each.started)
    for each in found:
        if each.is_unfinished:
            raise SnapTreeError(
                f"What was done together with this was interrupted on {plain(each.plan.domain)}.",
                hint="Finish that, or leave it as it is; then take this back.",
            )
    for each in open_ones:
        last = last_undoable(known, each.plan.domain_uuid)
        if last is None or last.id != each.id:
            raise SnapTreeError(
                f"{plain(each.plan.domain)} was changed since, so this can't be taken back for all machines together.",
                hint="Take back what came later first, or revert or delete on each machine.",
            )
    return tuple(open_ones)
