"""What changes of several machines cost in sum, one after the other: as much as is known, and what is not, of whom."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from types import MappingProxyType
from typing import Any, Final

from snaptree.model.figures import NOTHING, Figure, total
from snaptree.plans.group import GroupPlan
from snaptree.plans.plan import Action, Forecast, Plan
from snaptree.plans.speed import why_no_time
from snaptree.plans.wording import listed, machines_named, plain

_TIME: Final = "seconds"
_SUMMED: Final[Mapping[str, str]] = MappingProxyType(
    {
        "frees": "what comes back",
        "copies": "what is copied",
        "peak_extra": "the room needed meanwhile",
        _TIME: "the time it takes",
    }
)
"""Fields of a forecast, in words."""


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over machines."""

    known: Forecast
    """Of what is known; what is known of no machine is unknown here as well."""
    partly: frozenset[str]
    """Fields of `known` to which more comes, and nobody knows how much."""
    unknown: tuple[str, ...]
    """What is not known, of which machines, and why: a sentence for each reason."""


def forecast_in_turn(parts: Iterable[Forecast]) -> Forecast:
    """What changes of several machines cost, one after the other: what one gives back, the next may use."""
    parts = list(parts)
    kept, peak = NOTHING, NOTHING
    for part in parts:
        peak = max(
            peak, total([kept, part.peak_extra]), key=lambda figure: inf if figure.bytes is None else figure.bytes
        )
        if part.frees.bytes is not None and part.frees.bytes < 0:
            kept = total([kept, Figure(-part.frees.bytes, part.frees.confidence, part.frees.how)])
    seconds, pauses = [part.seconds for part in parts], [part.pause_seconds for part in parts]
    return Forecast(
        copies=total(part.copies for part in parts),
        frees=total(part.frees for part in parts),
        peak_extra=peak,
        seconds=None if None in seconds else sum(each or 0.0 for each in seconds),
        pause_seconds=None if None in pauses else max((each or 0.0 for each in pauses), default=0.0),
    )


def totals_in_turn(machines: Iterable[tuple[str, Forecast]]) -> Totals:
    """Sum what is known of machines, each with its name, and say what is not."""
    machines = list(machines)
    lacking = {what: [not _is_known(forecast, what) for _, forecast in machines] for what in _SUMMED}
    of_nobody = [what for what, lacks in lacking.items() if lacks and all(lacks)]
    in_sum = forecast_in_turn(_known_part(forecast) for _, forecast in machines)
    unknown = forecast_in_turn(forecast for _, forecast in machines)
    return Totals(
        replace(in_sum, **{what: getattr(unknown, what) for what in of_nobody}),
        frozenset(what for what, lacks in lacking.items() if any(lacks) and not all(lacks)),
        tuple(_said(machines)),
    )


def totals_of(plan: Plan | GroupPlan) -> Totals:
    """What a plan costs; of one that deletes snapshots, why that is not known, too."""
    if plan.action not in (Action.DELETE, Action.PRUNE):
        return Totals(plan.forecast, frozenset(), ())
    if not isinstance(plan, GroupPlan):
        return replace(totals_in_turn([("", plan.forecast)]), known=plan.forecast)
    # Those that are run one after the other: what is refused costs nothing.
    return totals_in_turn((plain(each.domain), each.forecast) for each in plan.members if each.steps)


def _is_known(forecast: Forecast, what: str) -> bool:
    value = getattr(forecast, what)
    return value.is_known if isinstance(value, Figure) else value is not None


def _known_part(forecast: Forecast) -> Forecast:
    nothing: dict[str, Any] = {what: 0.0 if what == _TIME else NOTHING for what in _SUMMED}
    return replace(forecast, **{what: value for what, value in nothing.items() if not _is_known(forecast, what)})


def _said(machines: Sequence[tuple[str, Forecast]]) -> Iterator[str]:
    found: dict[tuple[tuple[str, ...], str], list[str]] = {}
    for name, forecast in machines:
        for reason in _reasons(forecast):
            found.setdefault(reason, []).append(name)
    for (what, why), names in found.items():
        of = f" of {machines_named(names)}" if len(machines) > 1 else ""
        yield f"Not known{of}: {listed(_SUMMED[each] for each in what)}{f' ({why})' if why else ''}."


def _reasons(forecast: Forecast) -> Iterator[tuple[tuple[str, ...], str]]:
    """What is not known of one machine, and why."""
    lacks = [what for what in _SUMMED if not _is_known(forecast, what)]
    if _TIME in lacks and forecast.copies.is_known:
        lacks.remove(_TIME)  # for a reason of its own
        yield (_TIME,), why_no_time(forecast.copies)
    if lacks:
        yield tuple(lacks), getattr(forecast, lacks[0]).how
