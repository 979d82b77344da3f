"""What it means to stop an operation now, and where it can be stopped so that nothing is half done."""

from __future__ import annotations

from dataclasses import replace

from snaptree.plans.operation import Operation, OperationState, Pause, half_deleted
from snaptree.plans.plan import Plan, RemoveLeftover


def is_whole(plan: Plan, number: int) -> bool:
    """Whether what the steps before this one did stands by itself: libvirt knows of it, and no file is left over."""
    return not _is_torn(plan, number, number) and not isinstance(plan.steps[number], RemoveLeftover)


def stops_half_way(operation: Operation) -> bool:
    """Whether an operation that is cancelled in the step that runs is interrupted by that: somebody has to finish it.

    One that finishes another takes over what that one left: it leaves no more than there was.
    """
    is_still = operation.progress is not None and operation.progress.pause is Pause.PAUSED
    if operation.state is not OperationState.RUNNING or is_still or operation.plan.recovers is not None:
        return False
    return _is_torn(operation.plan, operation.steps_done + 1, operation.steps_done)


def mixed_if_stopped(operation: Operation) -> tuple[str, ...]:
    """Snapshots that are mixtures, of no use, once an operation is cancelled in the step that runs."""
    return half_deleted(replace(operation, steps_begun=operation.steps_done + 1))


def next_stop(operation: Operation) -> int | None:
    """After how many of its steps it can stop next with nothing half done; None if only all of them will do."""
    steps = range(operation.steps_done + 1, len(operation.plan.steps))
    return next((number for number in steps if is_whole(operation.plan, number)), None)


def _is_torn(plan: Plan, begun: int, done: int) -> bool:
    # Here, because the window is painted before there is anything to stop.
    from snaptree.plans.recovery import is_torn

    return is_torn(plan, begun, done)
