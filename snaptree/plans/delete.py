"""Planning to delete snapshots: by libvirt's own delete where it does that well, else by merges of our own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from snaptree.model.costs import cost_of_deleting
from snaptree.model.errors import SnapTreeError
from snaptree.model.estate import Snapshot
from snaptree.model.figures import Confidence, Figure, total, unknown
from snaptree.model.merging import LayerTree
from snaptree.plans.aftermath import leaks_memory_file
from snaptree.plans.draft import Draft, find_snapshot
from snaptree.plans.facts import DeleteEffect, Facts, internal_images, is_external, memory_file_of
from snaptree.plans.intention import Delete
from snaptree.plans.merge import Batch, add_merges, batches, layer_tree_of, most_room, rooms_in_turn
from snaptree.plans.plan import Action, DeleteSnapshot, Finding, Forecast, Plan, RemoveLeftover
from snaptree.plans.rule import QEMU
from snaptree.plans.rules_merge import MERGE_LACKS_ROOM, lacks_room
from snaptree.plans.rules_plan import LEFTOVER_STAYS
from snaptree.plans.situation import Situation
from snaptree.plans.speed import A_MOMENT
from snaptree.plans.wording import files_named, machines_named, plain


def plan_delete(intention: Delete, situation: Situation) -> Plan:
    """Plan to delete snapshots. There is no undo.

    Raises VanishedError if one of them is gone, SnapTreeError if none is named or left.
    """
    if not intention.snapshots:
        raise SnapTreeError("No snapshot was named.", hint="Say which snapshots to delete.")
    wanted = {find_snapshot(situation, name).name for name in intention.snapshots}
    if intention.subtree:
        wanted |= {below for name in intention.snapshots for below in situation.tree.descendants(name)}
    names = tuple(name for name in situation.tree.snapshots if name in wanted.difference(intention.leaves_out))
    if not names:
        raise SnapTreeError("All of these snapshots are left out.", hint="Say which to delete all the same.")
    draft = Draft(Action.DELETE, situation)
    forecast = add_deletions(draft, names, batch=names, by_own_jobs=intention.by_own_jobs)
    return draft.plan(names, forecast.at(intention.limit), None)


@dataclass
class DeleteCosts:
    """What deletes at most copy and free, by the sizes of layers alone."""

    copies: list[Figure] = field(default_factory=list)
    frees: list[Figure] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    """Files that nothing needs afterwards, and that stay all the same."""

    def add(self, more: DeleteCosts) -> None:
        """Count these too."""
        self.copies += more.copies
        self.frees += more.frees
        self.kept += more.kept


def add_deletions(
    draft: Draft,
    names: tuple[str, ...],
    batch: tuple[str, ...] = (),
    *,
    by_own_jobs: bool = False,
    layer_tree: LayerTree | None = None,
) -> Forecast:
    """Add the steps that delete these snapshots, or every reason why there are none, and say what they cost.

    `batch` are those that the user asked to delete: what goes with an undo is missed by nobody. What libvirt's own
    delete does well is left to it, unless that is to be done `by_own_jobs`; the rest is merged by us. `layer_tree` is
    `layer_tree_of` the draft's situation, for who has it already.
    """
    start = draft.situation
    layer_tree = layer_tree or layer_tree_of(start)
    deletion = layer_tree.deleting(names)
    costs = DeleteCosts()
    parts = batches(layer_tree, deletion, names)
    for part in parts:
        _add_batch(draft, part, layer_tree, names, batch, costs, by_own_jobs=by_own_jobs, is_all=len(parts) == 1)
    for room, extra in rooms_in_turn(layer_tree, parts):
        if room.growth.bytes is not None and (lacking := lacks_room(start, room.file, extra.bytes or 0)):
            draft.refuse(MERGE_LACKS_ROOM.say(draft.case(RemoveLeftover(room.file, "")), lacking))
    emptied = [] if draft.is_refused else _remove_emptied(draft, names)
    cost = cost_of_deleting(layer_tree, names, costs.kept)
    copies = cost.copies if cost.copies.is_known else total(costs.copies)
    return Forecast(
        copies=copies,
        frees=total([cost.frees if cost.frees.is_known else total(costs.frees), *emptied]),
        peak_extra=most_room(layer_tree, parts),
        seconds=start.speed.seconds(slow, copies) if (slow := _taking_time(start, parts)) else A_MOMENT,
    )


def _taking_time(start: Situation, parts: Iterable[Batch]) -> int:
    """How many snapshots take longer to delete than it takes to remove files."""
    merged = {name for part in parts if part.merges for name in part.names}
    inside = {name for part in parts for name in part.names if not is_external(start.tree[name])}
    return len(merged | inside)


def _remove_emptied(draft: Draft, names: tuple[str, ...]) -> list[Figure]:
    """Remove overlays that the machine left, and that held nothing any more but internal snapshots deleted now.

    Returns what they take, of which a part is counted with these snapshots already.
    """
    start = Facts(draft.start)
    emptied = []
    for layer, inside in sorted(start.internal_in.items()):
        is_overlay = layer in start.made_by_snapshots or start.below.get(layer) in start.frozen_by
        if not is_overlay or not set(inside) <= set(names) or layer not in draft.situation.existing_files:
            continue
        if (why_kept := still_needed(draft, layer)) is None:
            if remove_leftover(draft, layer, "all that it held was deleted"):
                emptied.append(_at_most(_allocated(start, layer)))
        elif why_kept:
            draft.warn(leftover_stays(draft, layer, why_kept))
    return emptied


def _at_most(figure: Figure) -> Figure:
    if figure.bytes is None:
        return figure
    return Figure(figure.bytes, Confidence.UPPER_BOUND, "files of internal snapshots that go, and what is inside")


def _add_batch(
    draft: Draft,
    part: Batch,
    layer_tree: LayerTree,
    names: tuple[str, ...],
    batch: tuple[str, ...],
    costs: DeleteCosts,
    *,
    by_own_jobs: bool,
    is_all: bool,
) -> None:
    """Add one batch in the way that suits it, or in the other if that one is closed."""
    tree = draft.start.tree
    libvirts_costs = DeleteCosts()

    def add_libvirts(trial: Draft) -> None:
        _add_libvirts(trial, part.names, batch, libvirts_costs)

    def add_ours(trial: Draft) -> None:
        add_merges(trial, part, layer_tree, names, batch)

    is_libvirts = part.is_done_well_by_libvirt(layer_tree)
    ways = [add_libvirts]
    can_name_layers = draft.situation.host.driver == QEMU and not draft.situation.unnamed_layers
    if can_name_layers and any(is_external(tree[name]) for name in part.names):
        has_merges = bool(part.merges)
        ways = [add_libvirts, add_ours] if is_libvirts and not (by_own_jobs and has_merges) else [add_ours]
        if add_libvirts not in ways and (is_all or part.keeps_no_layer(layer_tree)):
            ways.append(add_libvirts)  # else it might merge what other batches are about
    problems: dict[Callable[[Draft], None], tuple[Finding, ...]] = {}
    for add in ways:
        trial = draft.copy()
        add(trial)
        if trial.has_nothing_new_against(draft):
            draft.take_over(trial)
            costs.add(libvirts_costs if add is add_libvirts else _costs_of_ours(part, layer_tree))
            return
        problems[add] = trial.refusals
    # What closes our own way is what stands in the way: libvirt's has more obstacles.
    draft.refuse(*problems.get(add_ours, problems.get(add_libvirts, ())))


def _costs_of_ours(part: Batch, layer_tree: LayerTree) -> DeleteCosts:
    """What our merges at most copy and free, for where nobody has looked into the layers."""
    frees = total(layer_tree.allocated(key) for pile in part.piles for key in pile.removed)
    if frees.bytes is not None and part.merges:
        frees = Figure(frees.bytes, Confidence.UPPER_BOUND, "all of the layers that go; less where their data moves")
    return DeleteCosts([layer_tree.moves(merge) for merge in part.merges], [frees])


def _add_libvirts(draft: Draft, names: tuple[str, ...], batch: tuple[str, ...], costs: DeleteCosts) -> None:
    """Add libvirt's own deletes in an order that it accepts, or every reason why there is none.

    On branches not in use from the leaves up, since libvirt deletes only leaves there. Then on the line in use from
    the root down: so each layer is copied once, into the one below, and not again with what it received.
    """
    tree = draft.situation.tree
    in_use = [name for name in names if name in tree.path_to_current]
    elsewhere = [name for name in names if name not in tree.path_to_current]
    waiting = [*reversed(elsewhere), *in_use]
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
            return


def _try_delete(draft: Draft, name: str, batch: tuple[str, ...], costs: DeleteCosts) -> tuple[Finding, ...]:
    facts = draft.facts
    snapshot = draft.situation.tree[name]
    effect = facts.delete_effect(snapshot)
    step = DeleteSnapshot(name, draft.situation.tree.children(name), merges=bool(effect.merges))
    problems = draft.try_add(draft.case(step, batch=batch))
    if not problems:
        add_delete_costs(costs, facts, snapshot, effect)
        _remove_leftovers(draft, snapshot, effect, costs)
    return problems


def add_delete_costs(costs: DeleteCosts, facts: Facts, snapshot: Snapshot, effect: DeleteEffect) -> None:
    """Count what libvirt's own delete of a snapshot at most copies and frees."""
    for merge in effect.merges:
        overlay = _allocated(facts, merge.overlay)
        at_most = (
            overlay
            if overlay.bytes is None
            else Figure(overlay.bytes, Confidence.UPPER_BOUND, "all of the layer; less where it covers what is below")
        )
        costs.copies.append(at_most)
        costs.frees.append(at_most)
    costs.frees += [_allocated(facts, path) for path in effect.removes]
    if internal_images(snapshot):
        costs.frees.append(unknown("inside an image: needs an analysis of its clusters"))
    memory_file = memory_file_of(snapshot)
    if memory_file is not None and memory_file not in facts.situation.missing_files:
        missing = unknown("the memory file was not looked at")
        costs.frees.append(facts.situation.layers.memory_files.get(memory_file, missing))


def _allocated(facts: Facts, path: str) -> Figure:
    image = facts.image(path)
    return unknown("this layer was not looked at") if image is None else image.allocated


def _remove_leftovers(draft: Draft, snapshot: Snapshot, effect: DeleteEffect, costs: DeleteCosts) -> None:
    """Remove what libvirt forgets, if nothing else refers to it."""
    before = draft.facts
    for layer in effect.leaks:
        if (why_kept := still_needed(draft, layer)) is None:
            costs.frees.append(_allocated(before, layer))
            _remove(draft, layer, "libvirt leaves the layer of a deleted snapshot without a parent behind", costs)
        else:
            costs.kept.append(layer)
            if why_kept:
                draft.warn(leftover_stays(draft, layer, why_kept))
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
    if not remove_leftover(draft, path, why):
        costs.kept.append(path)


def remove_leftover(draft: Draft, path: str, why: str) -> bool:
    """Remove a file that nothing needs any more; where that can't be done from here, say so and give False."""
    if draft.situation.host.is_local:
        draft.add_unjudged(RemoveLeftover(path, why))
        return True
    draft.warn(leftover_stays(draft, path, "it lies on another computer."))
    return False


def leftover_stays(draft: Draft, path: str, problem: str) -> Finding:
    """The warning that a file stays, and why."""
    return LEFTOVER_STAYS.say(draft.case(RemoveLeftover(path, "")), {"file": plain(path), "problem": problem})


def still_needed(draft: Draft, layer: str) -> str | None:
    """None if nothing refers to a layer; else why it has to stay, empty where that goes without saying."""
    facts = draft.facts
    holders = (facts.live, facts.frozen_by, facts.internal_in, facts.returned_to)
    if any(layer in held for held in holders) or facts.above.get(layer):
        return ""
    if machines := facts.dependants.get(layer):
        return f"{machines_named(machines)} reads it."
    if facts.silent:
        return f"{files_named(facts.silent)} can't be read, so nobody knows whether it stands on it."
    if unreadable := draft.situation.unreadable_domains:
        return f"the disks of {machines_named(unreadable)} can't be followed, so nobody knows whether they stand on it."
    return None
