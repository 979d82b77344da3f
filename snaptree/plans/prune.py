"""Pruning: what a policy lets go of one machine or of many, what that gives back, and the plan for each."""

from __future__ import annotations

import datetime as dt
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from snaptree.model.costs import SelectionCost, cost_of_deleting
from snaptree.model.figures import Figure
from snaptree.model.merging import LayerTree
from snaptree.plans.delete import add_deletions
from snaptree.plans.draft import Draft
from snaptree.plans.facts import Facts
from snaptree.plans.intention import Prune
from snaptree.plans.merge import batches, layer_tree_of, most_room
from snaptree.plans.plan import Action, Finding, Forecast, Plan
from snaptree.plans.policy import Decision, Policy, Scope, decide, kept_with_groups
from snaptree.plans.situation import Situation
from snaptree.plans.speed import Speed
from snaptree.plans.wording import listed

ASKED_ABOUT: Final = 8
"""Snapshots of a machine that are planned before there is a plan: a thousand take their time."""


@dataclass(frozen=True, slots=True)
class Pruning:
    """What a policy comes to on one machine."""

    decisions: Mapping[str, Decision]
    """By snapshot, in the tree's order."""
    cost: SelectionCost
    peak_extra: Figure
    """Bytes that merging takes on disk before it has given any back."""
    depth: int
    """Layers that the deepest disk stands on, its active one included."""
    depth_after: int
    falls_short: str = ""
    """Which limit is not met though all goes that may go, as a sentence; empty if all are met."""
    needs_by_hand: int = 0
    """Snapshots that are out of scope for nothing but that no schedule took them."""

    @property
    def goes(self) -> tuple[str, ...]:
        """The snapshots that go, in the tree's order."""
        return tuple(name for name, decision in self.decisions.items() if not decision.keeps)


def prune(
    policy: Policy,
    layer_tree: LayerTree,
    now: int,
    *,
    kept: Mapping[str, str] | None = None,
    zone: dt.tzinfo | None = None,
) -> Pruning:
    """Work out what a policy lets go and what that comes to. As `decide`; `kept` are others to be kept, with why."""
    decisions = decide(policy, layer_tree.tree, now, kept=kept, of_no_use=layer_tree.of_no_use, zone=zone)
    candidates = [name for name, decision in decisions.items() if not decision.keeps]
    chosen, falls_short = _within_limits(policy, layer_tree, candidates)
    for name in set(candidates).difference(chosen):
        decisions[name] = Decision(name, keeps=True, reasons=("enough goes without it",))
    goes = [name for name in candidates if name in chosen]
    return Pruning(
        decisions,
        cost_of_deleting(layer_tree, goes),
        most_room(layer_tree, batches(layer_tree, layer_tree.deleting(goes), goes)),
        depth_of(layer_tree),
        depth_of(layer_tree, goes),
        falls_short,
        len(policy.scope.needing_by_hand(layer_tree.tree)),
    )


def hint_of_by_hand(scope: Scope, prunings: Iterable[Pruning], remedy: str) -> str:
    """That more would be looked at if what was made by hand were, as a sentence that ends with the remedy.

    Empty where nobody wonders: something goes, and nothing was asked for by which those were meant.
    """
    prunings = list(prunings)
    number = sum(pruning.needs_by_hand for pruning in prunings)
    asked = {"name": scope.names, "tag": scope.tags, "owner": scope.owners}
    said = listed(f"the {what}" for what, values in asked.items() if values)
    if not number or (not said and any(pruning.goes for pruning in prunings)):
        return ""
    is_one = number == 1
    matches = f"{'matches' if is_one else 'match'} {said} but " if said else ""
    which = f"{number:,} snapshot{'' if is_one else 's'}"
    return f"{which} {matches}{'was' if is_one else 'were'} not made by a schedule: {remedy}."


def tree_to_prune(situation: Situation) -> LayerTree:
    """The layers of a machine, with what a policy must not count."""
    return replace(layer_tree_of(situation), of_no_use=Facts(situation).of_no_use)


def prune_together(
    policy: Policy,
    machines: Sequence[tuple[LayerTree, Mapping[str, str]]],
    now: int,
    *,
    zone: dt.tzinfo | None = None,
) -> list[Pruning]:
    """As `prune`, for several machines, each with what else is to be kept: what was taken together stays together."""
    kept = [dict(names) for _, names in machines]
    found = [prune(policy, layer_tree, now, kept=names, zone=zone) for layer_tree, names in machines]
    while True:
        # Within limits, others may stay because of those that are kept with their groups: so again, until none is.
        trees = [layer_tree.tree for layer_tree, _ in machines]
        more = kept_with_groups(zip(trees, (pruning.decisions for pruning in found), strict=True))
        if not any(more):
            return found
        for number, names in enumerate(more):
            if names:
                kept[number] |= names
                found[number] = prune(policy, machines[number][0], now, kept=kept[number], zone=zone)


def pruning_of(intention: Prune, situation: Situation) -> Pruning:
    """What an intention comes to, before there is a plan for it."""
    return _pruning(intention, situation, tree_to_prune(situation))


def _pruning(intention: Prune, situation: Situation, layer_tree: LayerTree) -> Pruning:
    return prune(intention.policy, layer_tree, situation.now, kept=intention.kept)


def forecast_of(pruning: Pruning, speed: Speed) -> Forecast:
    """What pruning a machine costs, before there is a plan for it."""
    cost, number = pruning.cost, len(pruning.goes)
    seconds = speed.seconds(number, cost.copies) if number else 0.0
    return Forecast(copies=cost.copies, frees=cost.frees, peak_extra=pruning.peak_extra, seconds=seconds)


def plan_prune(intention: Prune, situation: Situation) -> Plan:
    """Plan to delete what a policy lets go, in one. There is no undo. If nothing goes, there are no steps."""
    layer_tree = tree_to_prune(situation)
    return plan_pruning(intention, situation, _pruning(intention, situation, layer_tree), layer_tree)


def plan_pruning(intention: Prune, situation: Situation, pruning: Pruning, layer_tree: LayerTree | None = None) -> Plan:
    """As `plan_prune`, for who has worked that out already, and maybe has the `tree_to_prune` too."""
    draft = Draft(Action.PRUNE, situation)
    forecast = add_deletions(
        draft, pruning.goes, batch=pruning.goes, by_own_jobs=intention.by_own_jobs, layer_tree=layer_tree
    )
    return replace(draft.plan(pruning.goes, forecast.at(intention.limit), None), schedule=intention.schedule)


def likely_refusal(names: tuple[str, ...], situation: Situation, layer_tree: LayerTree) -> Finding | None:
    """What forbids to let these go, by as much of a machine as a window knows; None if nothing is known to.

    `ASKED_ABOUT` of those that go are enough: what is in the way of all is in theirs.
    """
    draft = Draft(Action.PRUNE, situation)
    if names:
        add_deletions(draft, names, batch=names, layer_tree=layer_tree)
    return draft.refusals[0] if draft.is_refused else None


def depth_of(layer_tree: LayerTree, deleted: Sequence[str] = ()) -> int:
    """How many layers the deepest disk stands on, its active one included, once some snapshots are deleted."""
    layers = layer_tree.layers
    removed = {key for pile in layer_tree.deleting(deleted).piles for key in pile.removed} if deleted else set()
    return max((sum(layers.key(path) not in removed for path in chain.layers) for chain in layers.chains), default=0)


def _within_limits(policy: Policy, layer_tree: LayerTree, candidates: list[str]) -> tuple[frozenset[str], str]:
    """Which of those that may go it takes to meet the policy's limits, the cheapest first; and what is not met then."""
    limits = [*_limits(policy, layer_tree)]
    if not limits:
        return frozenset(candidates), ""
    cheapest_first = sorted(candidates, key=lambda name: _price(layer_tree, name))
    number = 0
    for _, is_met in limits:
        number = max(number, bisect_left(range(len(candidates)), True, key=lambda n: is_met(cheapest_first[:n])))
    chosen = cheapest_first[:number]
    short = [sentence for sentence, is_met in limits if not is_met(chosen)]
    return frozenset(chosen), " ".join(short)


def _limits(policy: Policy, layer_tree: LayerTree) -> list[tuple[str, Callable[[Sequence[str]], bool]]]:
    """The limits of a policy: what to say if one is not met, and whether deleting some snapshots meets it."""
    limits: list[tuple[str, Callable[[Sequence[str]], bool]]] = []
    if (most := policy.maximum_depth) is not None:
        sentence = f"More than {most} layers are left: what stands between them is kept by other rules."
        limits.append((sentence, lambda names: depth_of(layer_tree, names) <= most))
    if (least := policy.free_at_least) is not None:
        sentence = "Less comes back than the policy asks for: all else is kept by other rules."
        limits.append((sentence, lambda names: (cost_of_deleting(layer_tree, names).frees.bytes or 0) >= least))
    return limits


def _price(layer_tree: LayerTree, name: str) -> tuple[float, int]:
    """Bytes copied for each that comes back, of one snapshot alone; what is not known comes last."""
    cost = cost_of_deleting(layer_tree, (name,))
    created = layer_tree.tree[name].created
    if cost.frees.bytes is None or cost.copies.bytes is None or cost.frees.bytes <= 0:
        return float("inf"), created
    return cost.copies.bytes / cost.frees.bytes, created
