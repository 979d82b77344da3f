"""A plan on its way: what is running, how far it is, how it ended."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from math import inf

from snaptree.model.errors import SnapTreeError
from snaptree.model.estate import Impact
from snaptree.model.troubles import Kind, Severity, Trouble
from snaptree.plans.plan import Action, DeleteSnapshot, MergeLayers, MergeWay, Plan, RecordLayers, Step


class OperationState(StrEnum):
    """The life of an operation; the values stand in the journal."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"
    """The program, the daemon, QEMU or the link ended in the middle; what was done is in the journal. So does what was
    cancelled, or failed, between merging layers and letting libvirt know of it."""

    @property
    def is_over(self) -> bool:
        """Whether nothing more will happen."""
        return self not in (OperationState.QUEUED, OperationState.RUNNING)


class Pause(StrEnum):
    """Whether somebody has asked an operation to stand still between two steps."""

    NO = "no"
    ASKED = "asked"
    """It does so as soon as the step that runs is done."""
    PAUSED = "paused"
    ENDS = "ends"
    """It is cancelled as soon as the step that runs is done, and what belongs to that: nothing is half done then."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the running step is. Bytes and bytes per second; None where nobody can say."""

    doing: str
    """The step in words: "Merging web-01.auto-12 into its base"."""
    step: int
    """From 0."""
    steps: int
    done: int | None = None
    total: int | None = None
    share: float | None = None
    """How much of the step is done, from 0 to 1, where nobody knows how many bytes that are."""
    overall: float | None = None
    """How much of all steps is done, from 0 to 1. It never goes back."""
    rate: float | None = None
    seconds_left: float | None = None
    can_cancel: bool = False
    why_not_cancel: str = ""
    remark: str = ""
    """What the user should know of how it goes: that it comes no nearer to its end, and why."""
    limit: int | None = None
    """How many bytes per second it may copy; None if as many as it can."""
    pause: Pause = Pause.NO

    @property
    def fraction(self) -> float | None:
        """How much of all is done, from 0 to 1, however that is known; None if it is not."""
        return self.step_fraction if self.overall is None else self.overall

    @property
    def step_fraction(self) -> float | None:
        """The same of the step that runs."""
        return (self.done or 0) / self.total if self.total else self.share


@dataclass(frozen=True, slots=True)
class Settled:
    """What became of an interrupted operation: operation `by` finished it, or says that it was left as it is."""

    by: int
    """The journal's number."""
    how: Action
    """`FINISH` or `LEAVE`; any other is a change that an earlier SnapTree made without asking."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One run of one plan. `id` is the journal's; times are seconds since 1970, UTC."""

    id: int
    plan: Plan
    state: OperationState
    started: float
    finished: float | None = None
    progress: Progress | None = None
    error: SnapTreeError | None = None
    undone: bool = False
    steps_done: int = 0
    step_seconds: tuple[float, ...] = field(default=(), compare=False)
    """What each of these took, as far as the journal tells."""
    step_pauses: tuple[float | None, ...] = field(default=(), compare=False)
    """Of that, for how many seconds the guest stood still; None where that was not measured."""
    steps_begun: int = 0
    """Those done, and the one that was about to act when the journal was last written to."""
    was_active: bool | None = None
    """Whether QEMU ran for the machine when the last of its steps began; None if nobody knows."""
    settled: Settled | None = None
    who: str = ""
    """The user who ran it; empty if nobody knows."""
    impact: Impact | None = None
    """What taking a snapshot did to the machine, if one was taken."""
    remark: str = ""
    """What came otherwise than planned, though it was allowed to: a sentence."""
    is_for_later: bool = False
    """It waits for its hours, and is planned anew then: until that nothing has to wait for it."""

    @property
    def can_pause(self) -> bool:
        """Whether it may stand still between two steps, and nobody is worse off for that."""
        return self.plan.action in (Action.DELETE, Action.PRUNE)

    @property
    def can_undo(self) -> bool:
        """Whether it ended well, can be taken back, and was not yet."""
        return self.state is OperationState.DONE and self.plan.undo is not None and not self.undone

    @property
    def is_unfinished(self) -> bool:
        """Whether it was cut short after it had begun to act, and nobody has finished it or left it as it is.

        One that was to finish another had taken over what that one began. Of machines that were to be reverted together
        others may be reverted by now.
        """
        is_of_group = bool(self.plan.group) and self.plan.action is Action.REVERT
        has_begun = self.steps_begun > 0 or self.plan.action is Action.FINISH or is_of_group
        return self.state is OperationState.INTERRUPTED and self.settled is None and has_begun


class StepState(StrEnum):
    """How far a step of an interrupted operation is, by what is there now."""

    DONE = "done"
    NOT_BEGUN = "not-begun"
    HALF_WAY = "half-way"
    CHANGED = "changed"
    """Somebody did something else meanwhile: the step makes no sense any more."""


@dataclass(frozen=True, slots=True)
class StepFound:
    """What became of the step in which an operation was interrupted, or before which it was."""

    state: StepState
    says: str = ""
    """What was found, as a clause; empty where the state says it all."""
    orphans: tuple[str, ...] = ()
    """Disks whose merge a dead daemon left behind in a QEMU that it had started for it."""
    instead: tuple[Step, ...] = ()
    """What completes it, where doing it again would not."""


_NAMES = {
    Action.TAKE: "Taking a snapshot",
    Action.REVERT: "A revert",
    Action.DELETE: "A delete",
    Action.PRUNE: "Pruning",
    Action.DROP_MEMORY: "Dropping the memory of a snapshot",
    Action.DESCRIBE: "A change of notes or marks",
    Action.RENAME: "A rename",
    Action.LOOK: "Making a machine to look at a snapshot",
    Action.UNLOOK: "Removing the machine",
    Action.UNDO: "Taking a change back",
    Action.FINISH: "Finishing what had been interrupted",
    Action.LEAVE: "Leaving things as they are",
}


def interruption(operation: Operation) -> str:
    """What was interrupted, when (here), how far it was, and what became of it since."""
    local = dt.datetime.fromtimestamp(operation.started, dt.UTC).astimezone()
    return (
        f"{_NAMES[operation.plan.action]} was interrupted on {local.day} {local:%b %Y, %H:%M},"
        f" {how_far(operation)}. {operation.remark}".rstrip()
    )


def how_far(operation: Operation) -> str:
    """How far it came that did not end well: `after 2 of 3 steps`."""
    if not (operation.steps_begun or operation.steps_done):
        return "before anything was done"
    steps = len(operation.plan.steps)
    return f"after {operation.steps_done} of {steps} steps" if steps > 1 else "in its only step"


def troubles_of_operation(unfinished: Operation | None) -> Iterator[Trouble]:
    """What is wrong with a machine on which an operation was interrupted."""
    if unfinished is not None:
        yield Trouble(Severity.ERROR, interruption(unfinished), Kind.INTERRUPTED)


def undoes_look(later: Operation, operation: Operation) -> bool:
    """Whether a later operation removed the very machine that this one made."""
    undo, plan = operation.plan.undo, later.plan
    is_removed = plan.action is Action.UNLOOK and later.state is OperationState.DONE
    return is_removed and undo is not None and undo.removes == plan.domain_uuid


def last_undoable(operations: Iterable[Operation], uuid: str | None = None) -> Operation | None:
    """The operation that "undo" means: the last that changed anything, if it can be taken back.

    Never one before it: what came later would be in the way. `uuid` asks about one machine only.
    """
    for operation in sorted(operations, key=_when, reverse=True):
        if uuid is not None and operation.plan.domain_uuid != uuid:
            continue
        if not operation.state.is_over or operation.is_unfinished:
            return None
        if operation.undone or operation.plan.action is Action.UNDO or not _changed_something(operation):
            continue
        return operation if operation.can_undo else None
    return None


def _when(operation: Operation) -> float:
    """When it ended. One that was cut short has no end, one that goes on has it still to come."""
    if operation.finished is not None:
        return operation.finished
    return operation.started if operation.state.is_over else inf


def _changed_something(operation: Operation) -> bool:
    match operation.state:
        case OperationState.DONE:
            return operation.plan.action is not Action.LEAVE
        case OperationState.INTERRUPTED:
            return operation.steps_begun > 0
        case _:
            return operation.steps_done > 0


def half_deleted(operation: Operation) -> tuple[str, ...]:
    """Snapshots that an operation had begun to overwrite when it was cut short, and that are listed still."""
    begun, rest = operation.plan.steps[: operation.steps_begun], operation.plan.steps[operation.steps_done :]
    match rest[: len(begun) - operation.steps_done]:
        case (DeleteSnapshot(name=name, merges=True),):
            return (name,)
    records = [number for number, step in enumerate(begun[: operation.steps_done]) if isinstance(step, RecordLayers)]
    since = begun[records[-1] + 1 :] if records else begun
    if not any(isinstance(step, MergeLayers) and step.way is MergeWay.COMMIT for step in since):
        return ()
    return next((step.forgotten for step in rest if isinstance(step, RecordLayers)), ())
