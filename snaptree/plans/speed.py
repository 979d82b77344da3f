"""How long merges take on a host, from how long they took there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median
from typing import Final

from snaptree.model.figures import Figure
from snaptree.plans.operation import Operation, OperationState
from snaptree.plans.plan import Action

_MUCH: Final = 16 << 20
"""Bytes copied, above which copying is what takes the time."""
_LEAST_SHARE: Final = 0.1
"""Of an operation's time, that copying much is believed to have taken."""


@dataclass(frozen=True, slots=True)
class Speed:
    """What deletes took. None where there was none to learn it from."""

    seconds_each: float | None = None
    """For a snapshot with little to copy."""
    bytes_per_second: float | None = None
    """Of what is copied, where that is much."""

    def seconds(self, snapshots: int, copies: Figure) -> float | None:
        """How long deleting so many snapshots takes if that copies so much."""
        if copies.bytes is None or not snapshots:
            return None
        if copies.bytes <= _MUCH:
            return None if self.seconds_each is None else snapshots * self.seconds_each
        if self.bytes_per_second is None:
            return None
        return snapshots * (self.seconds_each or 0.0) + copies.bytes / self.bytes_per_second


NOT_MEASURED: Final = Speed()


def measured(operations: Iterable[Operation]) -> Speed:
    """Learn from deletes of one host that are over and went well."""
    little: list[float] = []
    much: list[tuple[int, int, float]] = []
    for operation in operations:
        plan, copies = operation.plan, operation.plan.forecast.copies.bytes
        if operation.state is not OperationState.DONE or plan.action is not Action.DELETE or not plan.snapshots:
            continue
        if copies is None or operation.finished is None:
            continue
        seconds = max(operation.finished - operation.started, 0.001)
        if copies > _MUCH:
            much.append((len(plan.snapshots), copies, seconds))
        else:
            little.append(seconds / len(plan.snapshots))
    each = median(little) if little else None
    rates = [copies / max(seconds - count * (each or 0.0), _LEAST_SHARE * seconds) for count, copies, seconds in much]
    return Speed(each, median(rates) if rates else None)
