"""Planning to delete snapshots, merging what they hold by libvirt's own delete."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from snaptree.model.costs import selection_cost
from snaptree.model.errors import SnapTreeError
from snaptree.model.estate import Snapshot
from snaptree.model.figures import NOTHING, Confidence, Figure, total, unknown
from snaptree.plans.aftermath import leaks_memory_file
from snaptree.plans.draft import Draft, find_snapshot
from snaptree.plans.facts import DeleteEffect, Facts, Merge, internal_images, is_external, memory_file_of
from snaptree.plans.intention import Delete
from snaptree.plans.plan import Action, DeleteSnapshot, Finding, Forecast, Plan, RemoveLeftover
from snaptree.plans.rules_plan import LEFTOVER_STAYS
from snaptree.plans.situation import Situation, elsewhere
from snaptree.plans.wording import machines_named, plain


def plan_delete(intention: Delete, situation: Situation) -> Plan:
    """Plan to delete snapshots, one libvirt delete each. There is no undo.

    Raises VanishedError if one of them is gone, SnapTreeError if none is named.
    """
    if not intention.snapshots:
        raise SnapTreeError("No snapshot was named.", hint="Say which snapshots to delete.")
    wanted = {find_snapshot(situation, name).name for name in intention.snapshots}
    if intention.subtree:
        wanted |= {below for name in intention.snapshots for below in situation.tree.descendants(name)}
    names = tuple(name for name in situation.tree.snapshots if name in wanted)
    draft = Draft(Action.DELETE, situation)
    costs = add_deletes(draft, names, batch=names)
    return draft.plan(names, forecast_delete(costs, situation, names), None)


@dataclass
class DeleteCosts:
    """What each delete of a plan at most copies and frees, and the room that it needs meanwhile."""

    copies: list[Figure] = field(default_factory=list)
    frees: list[Figure] = field(default_factory=list)
    extra: list[Figure] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    """Files that nothing needs afterwards, and that stay all the same."""


def forecast_delete(costs: DeleteCosts, situation: Situation, names: Collection[str]) -> Forecast:
    """The sums. Merges run one after the other, so the room needed is that of the largest.

    `situation` is that before the deletes. Where what its layers hold was analysed, that is what counts.
    """
    unknown_extra = next((figure for figure in costs.extra if not figure.is_known), None)
    known = [figure for figure in costs.extra if figure.is_known]
    largest = max(known, key=lambda figure: figure.bytes or 0, default=NOTHING)
    users = elsewhere(situation.layers, situation.dependants, situation.unreadable_domains)
    analysed = selection_cost(situation.tree, situation.layers, names, users, costs.kept)
    copies = analysed.copies if analysed.copies.is_known else total(costs.copies)
    return Forecast(
        copies=copies,
        frees=analysed.frees if analysed.frees.is_known else total(costs.frees),
        peak_extra=unknown_extra or largest,
        seconds=situation.speed.seconds(len(names), copies),
    )


def add_deletes(draft: Draft, names: tuple[str, ...], batch: tuple[str, ...] = ()) -> DeleteCosts:
    """Add the deletes in an order that libvirt accepts, or every reason why there is none.

    `batch` are those that the user asked to delete: what goes with an undo is missed by nobody.

    On branches not in use from the leaves up, since libvirt deletes only leaves there. Then on the line in use from
    the root down: so each layer is copied once, into the one below, and not again with what it received.
    """
    tree = draft.situation.tree
    in_use = [name for name in names if name in tree.path_to_current]
    elsewhere = [name for name in names if name not in tree.path_to_current]
    waiting = [*reversed(elsewhere), *in_use]
    costs = DeleteCosts()
    while waiting:
        problems: list[Finding] = []
        for name in waiting:
            found = _try_delete(draft, name, batch, costs)
            if not found:
                waiting.remove(name)
                break
            problems += found
        else:
            draft.refuse(*problems)
            return costs
    return costs


def _try_delete(draft: Draft, name: str, batch: tuple[str, ...], costs: DeleteCosts) -> tuple[Finding, ...]:
    facts = draft.facts
    snapshot = draft.situation.tree[name]
    effect = facts.delete_effect(snapshot)
    step = DeleteSnapshot(name, draft.situation.tree.children(name), merges=bool(effect.merges))
    problems = draft.try_add(draft.case(step, batch=batch))
    if not problems:
        _add_costs(costs, facts, snapshot, effect)
        _remove_leftovers(draft, snapshot, effect, costs)
    return problems


def _add_costs(costs: DeleteCosts, facts: Facts, snapshot: Snapshot, effect: DeleteEffect) -> None:
    for merge in effect.merges:
        overlay = _allocated(facts, merge.overlay)
        at_most = (
            overlay
            if overlay.bytes is None
            else Figure(overlay.bytes, Confidence.UPPER_BOUND, "all of the layer; less where it covers what is below")
        )
        costs.copies.append(at_most)
        costs.frees.append(at_most)
        costs.extra.append(_growth(facts, merge) or at_most)
    costs.frees += [_allocated(facts, path) for path in effect.removes]
    if internal_images(snapshot):
        costs.frees.append(unknown("inside an image: needs an analysis of its clusters"))
    memory_file = memory_file_of(snapshot)
    if memory_file is not None and memory_file not in facts.situation.missing_files:
        missing = unknown("the memory file was not looked at")
        costs.frees.append(facts.situation.layers.memory_files.get(memory_file, missing))


def _growth(facts: Facts, merge: Merge) -> Figure | None:
    """What the layer merged into may grow by, None where the layers were not analysed.

    It may hold more by then, from merges before, and grow by less.
    """
    overlaps = facts.situation.layers.overlaps.get(merge.overlay)
    if overlaps is None or facts.situation.layers.overlaps.get(merge.into) is not overlaps:
        return None
    if merge.into not in facts.stack(merge.overlay):
        return None
    bounds = overlaps.merge(merge.into, merge.overlay, merge.into)
    return Figure(max(0, bounds.growth_most), Confidence.UPPER_BOUND, "clusters that the layer below has not")


def _allocated(facts: Facts, path: str) -> Figure:
    image = facts.image(path)
    return unknown("this layer was not looked at") if image is None else image.allocated


def _remove_leftovers(draft: Draft, snapshot: Snapshot, effect: DeleteEffect, costs: DeleteCosts) -> None:
    """Remove what libvirt forgets, if nothing else refers to it."""
    before = draft.facts
    for layer in effect.leaks:
        if (why_kept := _still_needed(draft, layer)) is None:
            costs.frees.append(_allocated(before, layer))
            _remove(draft, layer, "libvirt leaves the layer of a deleted snapshot without a parent behind", costs)
        else:
            costs.kept.append(layer)
            if why_kept:
                draft.warn(_stays(draft, layer, why_kept))
    memory_file = memory_file_of(snapshot)
    if (
        memory_file is not None
        and is_external(snapshot)
        and leaks_memory_file(draft.situation)
        and memory_file not in draft.situation.missing_files
        and not any(other.memory_file == memory_file for other in draft.situation.tree)
    ):
        _remove(
            draft, memory_file, "this version of libvirt leaves the saved memory of a deleted snapshot behind", costs
        )


def _remove(draft: Draft, path: str, why: str, costs: DeleteCosts) -> None:
    if draft.situation.host.is_local:
        draft.add_unjudged(RemoveLeftover(path, why))
    else:
        costs.kept.append(path)
        draft.warn(_stays(draft, path, "it lies on another computer."))


def _stays(draft: Draft, path: str, problem: str) -> Finding:
    return LEFTOVER_STAYS.say(draft.case(RemoveLeftover(path, "")), {"file": plain(path), "problem": problem})


def _still_needed(draft: Draft, layer: str) -> str | None:
    """None if nothing refers to a layer; else why it has to stay, empty where that goes without saying."""
    facts = draft.facts
    if layer in facts.live or layer in facts.frozen_by or layer in facts.internal_in or facts.above.get(layer):
        return ""
    if machines := facts.dependants.get(layer):
        return f"{machines_named(machines)} reads it."
    if unreadable := draft.situation.unreadable_domains:
        return f"the disks of {machines_named(unreadable)} can't be followed, so nobody knows whether they stand on it."
    return None
