"""How far all steps of a plan are, going by how far the one is that runs."""

from __future__ import annotations

from snaptree.plans.operation import Progress
from snaptree.plans.plan import Plan


class Overall:
    """A share that never goes back: of the bytes that the plan forecast, or else of its steps."""

    def __init__(self, plan: Plan) -> None:
        self._forecast = plan.forecast.copies.bytes or 0
        """Bytes; 0 where nobody knows, or where a step does not tell how many it has copied."""
        self._step = 0
        self._copied_before = 0
        self._of_step = 0
        self._share = 0.0

    def share(self, progress: Progress) -> float | None:
        """How much of all is done, from 0 to 1; None if that can't be said yet, or is that of the only step."""
        if progress.steps < 2:
            return None
        if progress.step != self._step:
            self._step = progress.step
            self._copied_before += self._of_step  # all of it, though the last that was told of it may be less
            self._of_step = 0
        if progress.share is not None:
            self._forecast = 0
        self._of_step = progress.total or self._of_step
        if self._forecast:
            share = (self._copied_before + (progress.done or 0)) / self._forecast
        else:
            share = (progress.step + (progress.step_fraction or 0.0)) / progress.steps
        self._share = min(max(self._share, share), 1.0)
        return self._share or None
