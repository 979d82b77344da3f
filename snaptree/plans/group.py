"""Several machines of one host taken, reverted or taken back together: a plan for each of them, shown and run as one.

A group is known by what its snapshots have in common (`Annotations.group`): their name, and what tells this group from
others of that name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from snaptree.model.errors import SnapTreeError
from snaptree.model.figures import total
from snaptree.model.tree import SnapshotTree
from snaptree.plans.operation import Operation, last_undoable
from snaptree.plans.plan import Action, Finding, Forecast, FreezeFileSystems, Plan, TakeSnapshot, Undo
from snaptree.plans.wording import listed, plain, quoted

GROUP_MARK = "@"
"""Between the name of a group and what tells it from others: no name that SnapTree gives has one in it."""


@dataclass(frozen=True, slots=True)
class GroupPlan:
    """One plan for each machine, in the order in which they have their turns."""

    action: Action
    name: str
    """Of the snapshots that are taken or reverted to."""
    members: tuple[Plan, ...]
    when: str = ""
    """When it is done, in sentences; empty for at once."""

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
    def left_out(self) -> tuple[Plan, ...]:
        """Those that are refused, where the others are run without them: of a group, never."""
        return ()

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


# Finding what belongs together


def name_of(group: str) -> str:
    """The name that the snapshots of a group got."""
    return group.rpartition(GROUP_MARK)[0] or group


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
