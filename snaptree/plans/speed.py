"""How long changes take on a host, from how long they took there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import zip_longest
from statistics import median
from typing import Final

from snaptree.model.figures import Figure
from snaptree.plans.operation import Operation, OperationState
from snaptree.plans.plan import (
    Action,
    CopyOut,
    DeleteSnapshot,
    DescribeSnapshot,
    DropManagedSave,
    EndOrphanedMerge,
    ForgetMemory,
    ForkAtSnapshot,
    FreezeFileSystems,
    MakeLook,
    MergeLayers,
    RecordLayers,
    RemoveLeftover,
    RemoveLook,
    RenameSnapshot,
    RevertToSnapshot,
    StartLook,
    Step,
    StopMachine,
    TakeSnapshot,
    ThawFileSystems,
)

_MUCH: Final = 16 << 20
"""Bytes copied, above which copying is what takes the time."""
_LEAST_SHARE: Final = 0.1
"""Of an operation's time, that copying much is believed to have taken."""


A_MOMENT: Final = 0.2
"""Seconds for what is only a call: ending QEMU, asking the guest agent, removing a file."""
_MOMENTARY: Final = (
    StopMachine,
    DropManagedSave,
    RemoveLeftover,
    EndOrphanedMerge,
    FreezeFileSystems,
    ThawFileSystems,
    MakeLook,
    StartLook,
    RemoveLook,
)


class Way(StrEnum):
    """Steps that take about as long as each other, if they move as much memory."""

    TAKE_INTERNAL = "take inside the images"
    TAKE_EXTERNAL = "take on new layers"
    TAKE_LIVE = "take on new layers while the guest runs on"
    REVERT_INTERNAL = "revert inside the images"
    REVERT_EXTERNAL = "revert on new layers"
    FORK = "revert by our own steps"
    DELETE = "let libvirt delete what needs no merge"
    GO_OVER = "merge down what the guest writes to"
    MERGE = "merge other layers of a guest"


_SAVING: Final = (Way.TAKE_EXTERNAL, Way.TAKE_LIVE)
"""Ways by which RAM goes into a file of its own."""


def way_of(step: Step) -> Way | None:
    """How a step does it; None for those whose time is known otherwise."""
    match step:
        case TakeSnapshot(live=True):
            return Way.TAKE_LIVE
        case TakeSnapshot():
            return Way.TAKE_EXTERNAL if step.overlays else Way.TAKE_INTERNAL
        case RevertToSnapshot():
            return Way.REVERT_INTERNAL if step.is_internal else Way.REVERT_EXTERNAL
        case ForkAtSnapshot():
            return Way.FORK
        case DeleteSnapshot(merges=False):
            return Way.DELETE
        case MergeLayers(is_live=True):
            return Way.GO_OVER if step.goes_over else Way.MERGE
        case _:
            return None


def _memory_of(step: Step) -> int:
    """Bytes of RAM that a step saves or loads."""
    return step.memory_bytes if isinstance(step, TakeSnapshot | RevertToSnapshot | ForkAtSnapshot) else 0


@dataclass(frozen=True, slots=True)
class Sample:
    """What one step took. `memory` in bytes, nominally."""

    way: Way
    memory: int
    seconds: float
    domain_uuid: str = ""
    paused: float | None = None
    """Seconds for which the guest stood still; None if that was not measured."""
    wrote: int | None = None
    """Bytes on the host's disk; None if that was not measured."""


@dataclass(frozen=True, slots=True)
class Speed:
    """What changes took. None or empty where there was none to learn it from."""

    seconds_each: float | None = None
    """For a snapshot with little to copy."""
    bytes_per_second: float | None = None
    """Of what is copied, where that is much."""
    samples: tuple[Sample, ...] = ()
    """Of steps that have a way."""

    def seconds_of(self, steps: Iterable[Step]) -> float | None:
        """How long takes and reverts take with what belongs to them; None if that was not learned yet."""
        return _sum(A_MOMENT if isinstance(step, _MOMENTARY) else self._of(step) for step in steps)

    def pause_of(self, steps: Iterable[Step]) -> float | None:
        """How long the guest of a running machine stands still meanwhile, or is not there."""
        steps = tuple(steps)
        if any(isinstance(step, CopyOut | MakeLook | RemoveLook) for step in steps):
            return 0.0  # nothing is done to a guest that goes on
        return _sum(self._pause_of(step) for step in steps)

    def _pause_of(self, step: Step) -> float | None:
        match step:
            case FreezeFileSystems() | ThawFileSystems() | TakeSnapshot(memory_bytes=0):
                return 0.0
            case MergeLayers(is_live=True):
                paused = [sample.paused for sample in self._like(step) if sample.paused is not None]
                return median(paused) if paused else None
            case MergeLayers() | RecordLayers() | RemoveLeftover() | EndOrphanedMerge():
                return 0.0
            case ForgetMemory() | DescribeSnapshot() | RenameSnapshot():
                return 0.0
            case TakeSnapshot(memory_bytes=memory):
                paused = [
                    # All but the last of it was saved while the guest ran on: more memory is no longer pause.
                    sample.paused * (1.0 if step.live else max(1.0, memory / sample.memory))
                    for sample in self._like(step)
                    if sample.paused is not None
                ]
                # A guest that does not run on stands still for most of the step.
                return median(paused) if paused else None if step.live else self._of(step)
            case _:
                return self.seconds_of([step])

    @property
    def saving_rate(self) -> float | None:
        """Bytes per second at which RAM was saved to files; None if that was not learned yet."""
        rates = [
            sample.wrote / sample.seconds
            for sample in self.samples
            if sample.way in _SAVING and sample.memory and sample.wrote and sample.seconds > 0
        ]
        return median(rates) if rates else None

    def seconds_while_written(self, step: TakeSnapshot, likely: int | None, dirty_rate: int) -> float | None:
        """How long saving takes while the guest changes so many bytes each second, which are saved again.

        None if nobody knows, or if it may not end.
        """
        rate = self.saving_rate
        if rate is None or rate <= dirty_rate:
            return None
        return (step.memory_bytes if likely is None else likely) / (rate - dirty_rate)

    def writes(self, step: TakeSnapshot, domain_uuid: str) -> int | None:
        """Bytes that it takes on the host's disk, from what like ones of the same machine took for each of its RAM."""
        shares = [
            sample.wrote / sample.memory
            for sample in self._like(step)
            if sample.domain_uuid == domain_uuid and sample.memory and sample.wrote is not None
        ]
        return int(median(shares) * step.memory_bytes) if shares else None

    def _of(self, step: Step) -> float | None:
        """As long as others took, and longer by the share by which there is more memory: less is rarely quicker."""
        if isinstance(step, CopyOut):
            return self._of_copying(step.copies)
        memory = _memory_of(step)
        like = [sample.seconds * (max(1.0, memory / sample.memory) if memory else 1.0) for sample in self._like(step)]
        return median(like) if like else None

    def _of_copying(self, copies: int | None) -> float | None:
        if copies is None:
            return None
        if copies <= _MUCH:
            return A_MOMENT
        return None if self.bytes_per_second is None else copies / self.bytes_per_second

    def _like(self, step: Step) -> Iterator[Sample]:
        """Steps of the same kind, with memory or without."""
        way, memory = way_of(step), _memory_of(step)
        return (each for each in self.samples if each.way is way and bool(each.memory) == bool(memory))

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


def why_no_time(copies: Figure) -> str:
    """Why nobody knows how long a change takes that copies so much, as a clause."""
    if copies.bytes is None:
        return "it is not known how much is copied"
    if copies.bytes > _MUCH:
        return "so much was not copied on this host yet to learn it from"
    return "nothing of this kind was done on this host yet to learn it from"


def _sum(spans: Iterable[float | None]) -> float | None:
    """Seconds in all; None if any is not known."""
    spent = 0.0
    for seconds in spans:
        if seconds is None:
            return None
        spent += seconds
    return spent


def measured(operations: Iterable[Operation]) -> Speed:
    """Learn from what is over and went well on one host."""
    operations = [operation for operation in operations if operation.state is OperationState.DONE]
    little: list[float] = []
    much: list[tuple[int, int, float]] = []
    for operation in operations:
        plan, copies = operation.plan, operation.plan.forecast.copies.bytes
        if plan.action not in (Action.DELETE, Action.PRUNE) or not plan.snapshots:
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
    samples = [
        _sample(operation, step, way, seconds, pause)
        for operation in operations
        for step, (seconds, pause) in zip(
            operation.plan.steps, zip_longest(operation.step_seconds, operation.step_pauses), strict=False
        )
        if (way := way_of(step)) is not None
    ]
    return Speed(each, median(rates) if rates else None, tuple(samples))


def _sample(operation: Operation, step: Step, way: Way, seconds: float, paused: float | None) -> Sample:
    uuid, impact = operation.plan.domain_uuid, operation.impact
    if impact is None or not isinstance(step, TakeSnapshot):
        return Sample(way, _memory_of(step), seconds, uuid, paused)
    return Sample(way, _memory_of(step), seconds, uuid, impact.paused, impact.wrote)
