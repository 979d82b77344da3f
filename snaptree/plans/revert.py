"""Planning to go back to a snapshot, and to take such a step back."""

from __future__ import annotations

from types import MappingProxyType

from snaptree.model.estate import MemorySnapshot, Snapshot
from snaptree.model.figures import NOTHING, Figure, total, unknown
from snaptree.plans import rules
from snaptree.plans.aftermath import revert_overlays
from snaptree.plans.delete import add_deletions, leftover_stays, remove_leftover, still_needed
from snaptree.plans.describe import AT_ONCE, add_taking_back, without_chains
from snaptree.plans.draft import Draft, find_snapshot
from snaptree.plans.facts import Facts, is_external, memory_file_of
from snaptree.plans.intention import Capture, Revert, Take, TakeBack
from snaptree.plans.plan import (
    Action,
    DropManagedSave,
    Forecast,
    ForkAtSnapshot,
    Layer,
    Plan,
    RevertToSnapshot,
    StateAfter,
    StopMachine,
    TakeSnapshot,
    Undo,
)
from snaptree.plans.rule import QEMU, Case
from snaptree.plans.rules_plan import (
    MACHINE_IS_STOPPED,
    MANAGED_SAVE_DROPPED,
    NO_SAFETY_SNAPSHOT,
    UNDO_KEEPS_SNAPSHOT,
)
from snaptree.plans.situation import Situation
from snaptree.plans.take import empty_layer, forecast_take, take_step
from snaptree.plans.wording import plain, quoted, snapshots_named


def plan_revert(intention: Revert, situation: Situation) -> Plan:
    """Plan a revert. Raises VanishedError if the snapshot is gone.

    The rules judge the revert on the situation that the safety snapshot leaves: that one is current then, and owns the
    layers in use, which by itself makes many a revert safe.
    """
    target = find_snapshot(situation, intention.snapshot)
    draft = Draft(Action.REVERT, situation)
    if intention.drop_managed_save and situation.domain.has_managed_save:
        drop = draft.case(DropManagedSave())
        draft.warn(MANAGED_SAVE_DROPPED.say(drop, {}))
        draft.add_unjudged(DropManagedSave())
    safety = _add_safety_snapshot(draft, target, intention) if intention.take_safety_snapshot else None
    if draft.is_refused:
        return draft.plan((target.name,), Forecast(), None)
    add_revert(draft, target, intention.state_after, safety=None if safety is None else safety.name)
    frees = freed_by_revert(situation, draft.situation, target) if safety is None else NOTHING
    extra = new_layers(situation, target)
    if safety is not None:
        extra.append(forecast_take(safety, situation).peak_extra)
    return draft.plan((target.name,), Forecast(NOTHING, frees, total([NOTHING, *extra])), _undo(draft, safety))


def add_revert(draft: Draft, target: Snapshot, state_after: StateAfter, *, safety: str | None = None) -> None:
    """Add the steps that go back to a snapshot, or the refusals: libvirt's revert, or where it has none, our own."""
    case = _revert_case(draft, target, state_after, safety)
    if not isinstance(case.step, ForkAtSnapshot):
        draft.add(case)
        return
    if problems := rules.refusals(case):
        draft.refuse(*problems)
        return
    if case.is_active:
        draft.warn(MACHINE_IS_STOPPED.say(case, {}), *rules.warnings(case))
        draft.add_unjudged(StopMachine())
    before = draft.facts
    draft.add(_revert_case(draft, target, state_after, safety))
    if not draft.is_refused:
        _remove_what_was_left(draft, before)


def _revert_case(draft: Draft, target: Snapshot, state_after: StateAfter, safety: str | None = None) -> Case:
    situation = draft.situation
    memory = (target.nominal_memory or 0) if target.memory is not MemorySnapshot.NO else 0
    step = RevertToSnapshot(target.name, state_after, situation.tree.current, memory, not is_external(target))
    revert = draft.case(step, safety=safety)
    if not revert.forks:
        return revert
    overlays = revert_overlays(situation, target)
    fork = ForkAtSnapshot(
        name=target.name,
        state_after=state_after,
        bases=MappingProxyType(
            {
                disk.target: Layer(disk.frozen, disk.frozen_format or "raw")
                for disk in target.disks
                if disk.frozen and disk.target in overlays
            }
        ),
        overlays=MappingProxyType(overlays),
        owns_overlays=not situation.tree.children(target.name),
        memory_file=memory_file_of(target),
        expected_current=situation.tree.current,
        memory_bytes=memory,
    )
    return draft.case(fork, safety=safety)


def _remove_what_was_left(draft: Draft, before: Facts) -> None:
    """Remove the layers that the machine no longer stands on and nobody else does, as libvirt's own revert would.

    Only those on a layer that a snapshot froze: all that such a one holds was written since. A safety snapshot has
    frozen it, and what is left then is empty.
    """
    for layer in sorted(before.active - draft.facts.live):
        why_kept = still_needed(draft, layer)
        if why_kept is None and before.below.get(layer) not in before.frozen_by:
            why_kept = "it stands on no layer of a snapshot, so it holds more than what was written since one."
        if why_kept is None:
            remove_leftover(draft, layer, "nothing stands on it since the revert")
        elif why_kept:
            draft.warn(leftover_stays(draft, layer, why_kept))


def _add_safety_snapshot(draft: Draft, target: Snapshot, intention: Revert) -> TakeSnapshot | None:
    """Add the snapshot of the present state, or the refusals that say why there can't be one.

    What forbids the revert whatever is taken first is said before anything else: a new snapshot may cover its traces.
    """
    revert = Case(draft.situation, draft.facts, Action.REVERT, target.name, before_safety=True)
    draft.refuse(*rules.refusals(revert))
    if draft.is_refused:
        return None
    step = _safety_step(draft.situation, target, intention.safety_group)
    problems = draft.try_add(draft.case(step))
    if problems:
        words = {"problem": problems[0].reason, "remedy": problems[0].remedy}
        draft.refuse(NO_SAFETY_SNAPSHOT.say(revert, words))
        return None
    return step


def _safety_step(situation: Situation, target: Snapshot, group: str) -> TakeSnapshot:
    """Of the same kind as the target.

    Before an internal target, an external one would freeze the very image that the revert overwrites. Before an
    external target, an external one makes libvirt know which overlay is in use, and remove only that.
    """
    if situation.host.driver != QEMU or not is_external(target):
        capture = Capture.INTERNAL
    elif situation.domain.state.is_active:
        capture = Capture.DISKS_AND_MEMORY
    else:
        capture = Capture.DISKS
    description = f"Taken by SnapTree before the revert to {plain(target.name)}"
    return take_step(Take(description=description, capture=capture, safety=True, group=group), situation)


def _undo(draft: Draft, safety: TakeSnapshot | None) -> Undo | None:
    if safety is None or draft.is_refused:
        return None
    back = draft.situation.tree[safety.name]
    if rules.refusals(_revert_case(draft, back, StateAfter.AS_CAPTURED)):
        return None
    lost = " The managed save does not come back." if draft.start.domain.has_managed_save else ""
    return Undo(
        f"Revert to {quoted(safety.name)}, the state before, and delete that snapshot again.{lost}",
        revert_to=safety.name,
        delete=(safety.name,),
    )


def freed_by_revert(before: Situation, then: Situation, target: Snapshot) -> Figure:
    """The layers that go with the present state."""
    if not is_external(target):
        return unknown("inside an image: needs an analysis of its clusters")
    gone = [image for path, image in before.layers.images.items() if path not in then.layers.images]
    return total(image.allocated for image in gone if not image.is_missing)


def new_layers(situation: Situation, target: Snapshot) -> list[Figure]:
    """What the layers that a revert makes take."""
    return [empty_layer() for _ in revert_overlays(situation, target)] if is_external(target) else []


def plan_take_back(intention: TakeBack, situation: Situation) -> Plan:
    """Plan to undo. Raises VanishedError if the snapshot to go back to, or the one that was described, is gone.

    A safety snapshot that can't be deleted safely just stays, with a warning; a snapshot that was all there was to
    undo is deleted or refused.
    """
    draft, undo = Draft(Action.UNDO, situation), intention.undo
    described = add_taking_back(draft, undo)
    if described:
        return without_chains(draft.plan(described, AT_ONCE, None))
    frees: list[Figure] = []
    if undo.revert_to is not None:
        target = find_snapshot(situation, undo.revert_to)
        add_revert(draft, target, StateAfter.AS_CAPTURED)
        frees.append(freed_by_revert(situation, draft.situation, target))
    names = tuple(name for name in undo.delete if name in situation.tree)
    if undo.revert_to is None and not names:
        find_snapshot(situation, undo.delete[0] if undo.delete else "")
    forecast = Forecast(NOTHING, total(frees), NOTHING)
    if names and not draft.is_refused:
        trial = Draft(Action.UNDO, draft.situation)
        add_deletions(trial, names)
        if trial.is_refused and undo.revert_to is not None:
            problem = trial.refusals[0]
            draft.warn(
                UNDO_KEEPS_SNAPSHOT.say(
                    Case(draft.situation, draft.facts, Action.DELETE, names[0]),
                    {"kept": snapshots_named(names), "problem": problem.reason, "remedy": problem.remedy},
                )
            )
        else:
            deletes = add_deletions(draft, names)
            forecast = Forecast(deletes.copies, total([*frees, deletes.frees]), deletes.peak_extra, deletes.seconds)
    shown = tuple(dict.fromkeys([*([undo.revert_to] if undo.revert_to else []), *names]))
    return draft.plan(shown, forecast, None)
