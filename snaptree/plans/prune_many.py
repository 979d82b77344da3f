"""Pruning several machines in one go: a plan for each, shown together. What refuses one of them stops no other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from snaptree.model.errors import SnapTreeError
from snaptree.model.merging import LayerTree
from snaptree.plans.group import GroupPlan
from snaptree.plans.intention import Prune
from snaptree.plans.plan import Action, Finding, Forecast, Plan
from snaptree.plans.policy import because_of_group
from snaptree.plans.prune import Pruning, plan_pruning, prune_together, tree_to_prune
from snaptree.plans.situation import Situation
from snaptree.plans.totals import forecast_in_turn


@dataclass(frozen=True, slots=True)
class PlannedPrune:
    """What pruning one of several machines comes to, and the plan for it."""

    intention: Prune
    situation: Situation
    pruning: Pruning
    plan: Plan


@dataclass(frozen=True, slots=True)
class PlansInTurn(GroupPlan):
    """Plans that are shown as one, and of which each is run for itself."""

    @property
    def willing(self) -> tuple[Plan, ...]:
        """Those that do anything."""
        return tuple(plan for plan in self.members if plan.steps)

    @property
    def left_out(self) -> tuple[Plan, ...]:
        """Those that are refused; the others are run without them."""
        return tuple(plan for plan in self.members if plan.is_refused)

    @property
    def is_refused(self) -> bool:
        """Whether there is nothing to run."""
        return not self.willing

    @property
    def forecast(self) -> Forecast:
        """What those cost that do anything."""
        return forecast_in_turn(plan.forecast for plan in self.willing)


def plan_prunes(wanted: Sequence[tuple[Prune, Situation]]) -> tuple[PlannedPrune, ...]:
    """Plan for each machine, all by the policy of the first: what was taken together is kept together."""
    return tuple(
        PlannedPrune(intention, situation, pruning, plan_pruning(intention, situation, pruning, layer_tree))
        for (intention, situation), (pruning, layer_tree) in zip(wanted, _decided_together(wanted), strict=True)
    )


def keeping_groups(wanted: Sequence[tuple[Prune, Situation]]) -> tuple[Prune, ...]:
    """The intentions for who plans each machine anew when its turn comes: what all of them decide now on groups stands.

    The later plan knows that machine alone, and the time that has gone by: what is of a group that is kept now stays,
    though its own rules may let it go by then.
    """
    return tuple(
        replace(intention, kept=MappingProxyType({**_of_kept_groups(situation, pruning), **intention.kept}))
        for (intention, situation), (pruning, _) in zip(wanted, _decided_together(wanted), strict=True)
    )


def _decided_together(wanted: Sequence[tuple[Prune, Situation]]) -> list[tuple[Pruning, LayerTree]]:
    if not wanted:
        return []
    layer_trees = [tree_to_prune(situation) for _, situation in wanted]
    prunings = prune_together(
        wanted[0][0].policy,
        [(layer_tree, intention.kept) for layer_tree, (intention, _) in zip(layer_trees, wanted, strict=True)],
        max(situation.now for _, situation in wanted),
    )
    return [*zip(prunings, layer_trees, strict=True)]


def _of_kept_groups(situation: Situation, pruning: Pruning) -> dict[str, str]:
    """The snapshots of a machine that were taken with others and stay, each with the reason."""
    stay = (name for name, decision in pruning.decisions.items() if decision.keeps)
    groups = {name: situation.tree[name].annotations.group for name in stay}
    return {name: because_of_group(group) for name, group in groups.items() if group}


def in_turn(plans: Iterable[Plan], *, when: str = "") -> PlansInTurn:
    """Show these plans as one, with what is to be said of when they are run."""
    return PlansInTurn(Action.PRUNE, "", tuple(plans), when)


def unreadable(host_uri: str, uuid: str, domain: str, error: SnapTreeError) -> Plan:
    """The plan for a machine that can't be looked at now: none, and why."""
    why = Finding("not-read", error.summary, error.hint)
    return Plan(Action.PRUNE, host_uri, uuid, domain, snapshots=(), refusals=(why,))


def no_more_than(intention: Prune, plan: Plan, agreed: Plan) -> Prune | None:
    """The intention that lets go only what somebody agreed to; None if a later plan lets go no more than that."""
    more = set(plan.snapshots).difference(agreed.snapshots)
    if not more:
        return None
    return replace(intention, kept=MappingProxyType({**intention.kept, **dict.fromkeys(more, "nobody was asked yet")}))
