"""Carrying out plans for several machines together: frozen, taken and thawed at one time, all of them or none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace

import libvirt

from snaptree.hosts.connection import Connection
from snaptree.hosts.errors import explain
from snaptree.hosts.journal import Journal
from snaptree.hosts.merging import Bandwidth, unlimited
from snaptree.hosts.reading import never
from snaptree.hosts.recovery import with_operations
from snaptree.hosts.running import OnProgress, Run, begin_run, run_plan
from snaptree.hosts.situation import read_situation
from snaptree.model.errors import CancelledError, SnapTreeError
from snaptree.plans.group import GroupPlan, turns
from snaptree.plans.intention import Recover, TakeBack
from snaptree.plans.operation import Operation, OperationState
from snaptree.plans.plan import Action, Plan, TakeSnapshot, Undo
from snaptree.plans.planner import make_plan
from snaptree.plans.wording import listed, plain


@dataclass(frozen=True, slots=True)
class GroupOutcome:
    """How a group ended: what became of each machine, and what was taken back again because another one failed."""

    members: tuple[Operation, ...]
    taken_back: tuple[Operation, ...] = ()
    error: SnapTreeError | None = None


def run_group(
    connection: Connection,
    group: GroupPlan,
    *,
    journal: Journal,
    undoes: Mapping[str, int] | None = None,
    on_progress: OnProgress | None = None,
    cancelled: Callable[[], bool] = never,
    bandwidth: Bandwidth = unlimited,
) -> GroupOutcome:
    """Run the plans of a group in the calling thread, each an operation of its own. Arguments as `run_plan`.

    `undoes` maps UUIDs to what is taken back of that machine. Fails one of them, the others do not go on, and what
    was taken or reverted is taken back again. Raises SnapTreeError if one can't begin: then nothing has happened.
    """
    runs: list[Run] = []
    try:
        for plan in group.members:
            run = begin_run(
                connection,
                plan,
                journal=journal,
                undoes=(undoes or {}).get(plan.domain_uuid),
                on_progress=on_progress,
                cancelled=cancelled,
                bandwidth=bandwidth,
            )
            runs.append(run)
    except SnapTreeError as error:
        for run in runs:
            run.end(CancelledError(f"Not begun, because of another machine of the group: {error.summary}"))
        raise
    failed, failure = _in_turns(runs, group)
    if failure is None:
        return GroupOutcome(tuple(run.end(None) for run in runs))
    members = tuple(run.end(failure if run is failed else _why_not(run, failed, failure)) for run in runs)
    return _with_others_taken_back(connection, journal, group, members, _of(failed.operation.plan, failure))


def _in_turns(runs: list[Run], group: GroupPlan) -> tuple[Run, Exception | None]:
    """Let all have their turns. Returns the one that failed and why; nothing is frozen any more then."""
    at_work = runs[0]
    try:
        with ExitStack() as thaws:
            for at_work in runs:
                thaws.callback(at_work.thaw_in_any_case)
                at_work.prepare()
                at_work.check_takes()
            *until_taken, rest = turns(group.members)
            for phase in until_taken:
                for number, until in phase:
                    at_work = runs[number]
                    at_work.go_on(until)
            for run in runs:
                run.thaw_at_once()  # before anything is noted of one of them
            for number, until in rest:
                at_work = runs[number]
                at_work.go_on(until)
    except (libvirt.libvirtError, SnapTreeError) as failure:
        return at_work, failure
    return at_work, None


def _why_not(run: Run, failed: Run, failure: Exception) -> SnapTreeError | None:
    """What is said of a machine because another one failed; None if it was done by then."""
    operation = run.operation
    if operation.steps_done == len(operation.plan.steps) and operation.plan.action is not Action.TAKE:
        return None
    error = _of(failed.operation.plan, failure)
    return CancelledError(f"Stopped, because of another machine of the group: {error.summary}", details=error.details)


def _of(plan: Plan, failure: Exception) -> SnapTreeError:
    """A failure with the machine that it is about."""
    error = failure if isinstance(failure, SnapTreeError) else explain(failure, f"changing {plan.domain}")
    kind = CancelledError if isinstance(error, CancelledError) else SnapTreeError
    return kind(f"{plain(plan.domain)}: {error.summary}", hint=error.hint, details=error.details)


# All or none


def _with_others_taken_back(
    connection: Connection, journal: Journal, group: GroupPlan, members: tuple[Operation, ...], error: SnapTreeError
) -> GroupOutcome:
    """Take back what was done to other machines, the last first, and say what became of that."""
    taken_back, stays = [], []
    for operation in reversed(members) if group.action is not Action.UNDO else ():
        try:
            plan = _taking_back(connection, journal, operation)
            if plan is None:
                continue
            undoes = operation.id if plan.recovers is None and operation.can_undo else None
            done = run_plan(connection, plan, journal=journal, undoes=undoes)
        except (libvirt.libvirtError, SnapTreeError) as problem:
            stays.append(str(_of(operation.plan, problem)))
            continue
        taken_back.append(done)
        if done.error is not None:
            stays.append(str(_of(operation.plan, done.error)))
    said = [error.hint]
    if taken_back and not stays:
        said.append(f"What was done to {listed(plain(each.plan.domain) for each in taken_back)} was taken back.")
    said += [f"Not taken back: {what}" for what in stays]
    error.hint = " ".join(filter(None, said))
    return GroupOutcome(members, tuple(taken_back), error)


def _taking_back(connection: Connection, journal: Journal, operation: Operation) -> Plan | None:
    """The plan that takes back what an operation did before another one failed; None if there is nothing to.

    One that was to take a snapshot is recovered as it would be by the next start, if this program died now.
    """
    plan = operation.plan
    if operation.is_unfinished and plan.action is Action.TAKE:
        situation = read_situation(connection, plan.domain_uuid)
        situation = with_operations(connection, situation, journal, recovers=True)
        return make_plan(Recover(), replace(situation, group_is_torn=True))
    undo = plan.undo if operation.state is OperationState.DONE else None
    if operation.state is OperationState.CANCELLED:
        taken = [step.name for step in plan.steps[: operation.steps_done] if isinstance(step, TakeSnapshot)]
        undo = Undo("", delete=tuple(taken)) if taken else None
    if undo is None:
        return None
    return make_plan(TakeBack(undo), read_situation(connection, plan.domain_uuid))
