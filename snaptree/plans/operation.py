"""A plan on its way: what is running, how far it is, how it ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from snaptree.model.errors import SnapTreeError
from snaptree.plans.plan import Plan


class OperationState(StrEnum):
    """The life of an operation; the values stand in the journal."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"
    """The program ended in the middle; what was done is in the journal."""

    @property
    def is_over(self) -> bool:
        """Whether nothing more will happen."""
        return self not in (OperationState.QUEUED, OperationState.RUNNING)


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
    rate: float | None = None
    seconds_left: float | None = None
    can_cancel: bool = False
    why_not_cancel: str = ""
    remark: str = ""
    """What the user should know of how it goes: that it comes no nearer to its end, and why."""


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

    @property
    def can_undo(self) -> bool:
        """Whether it ended well, can be taken back, and was not yet."""
        return self.state is OperationState.DONE and self.plan.undo is not None and not self.undone
