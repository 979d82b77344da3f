"""Planning to go back to a snapshot, and to take such a step back."""

from __future__ import annotations

from snaptree.model.estate import Snapshot
from snaptree.model.figures import NOTHING, Figure, total, unknown
from snaptree.plans import rules
from snaptree.plans.delete import add_deletions
from snaptree.plans.draft import Draft, find_snapshot
from snaptree.plans.facts import Facts, is_external
from snaptree.plans.intention import Capture, Revert, Take, TakeBack
from snaptree.plans.plan import Action, Forecast, Plan, RevertToSnapshot, StateAfter, TakeSnapshot, Undo
from snaptree.plans.rule import QEMU, Case
from snaptree.plans.rules_plan import NO_SAFETY_SNAPSHOT, UNDO_KEEPS_SNAPSHOT
from snaptree.plans.situation import Situation
from snaptree.plans.take import forecast_take, take_step
from snaptree.plans.wording import plain, quoted, snapshots_named


def plan_revert(intention: Revert, situation: Situation) -> Plan:
    """Plan a revert. Raises VanishedError if the snapshot is gone.

    The rules judge the revert on the situation that the safety snapshot leaves: that one is current then, and owns the
    layers in use, which by itself makes many a revert safe.
    """
    target = find_snapshot(situation, intention.snapshot)
    draft = Draft(Action.REVERT, situation)
    safety = _add_safety_snapshot(draft, target) if intention.take_safety_snapshot else None
    if draft.is_refused:
        return draft.plan((target.name,), Forecast(), None)
    frees = _frees(draft.facts, target, keeps_present=safety is not None)
    revert = RevertToSnapshot(target.name, intention.state_after, draft.situation.tree.current)
    draft.add(draft.case(revert, safety=None if safety is None else safety.name))
    peak = NOTHING if safety is None else forecast_take(safety, situation).peak_extra
    return draft.plan((target.name,), Forecast(NOTHING, frees, peak), _undo(draft, safety))


def _add_safety_snapshot(draft: Draft, target: Snapshot) -> TakeSnapshot | None:
    """Add the snapshot of the present state, or the refusals that say why there can't be one.

    What forbids the revert whatever is taken first is said before anything else: a new snapshot may cover its traces.
    """
    revert = Case(draft.situation, draft.facts, Action.REVERT, target.name, before_safety=True)
    draft.refuse(*rules.refusals(revert))
    if draft.is_refused:
        return None
    step = _safety_step(draft.situation, target)
    problems = draft.try_add(draft.case(step))
    if problems:
        words = {"problem": problems[0].reason, "remedy": problems[0].remedy}
        draft.refuse(NO_SAFETY_SNAPSHOT.say(revert, words))
        return None
    return step


def _safety_step(situation: Situation, target: Snapshot) -> TakeSnapshot:
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
    return take_step(Take(description=description, capture=capture, safety=True), situation)


def _undo(draft: Draft, safety: TakeSnapshot | None) -> Undo | None:
    if safety is None or draft.is_refused:
        return None
    back = draft.case(RevertToSnapshot(safety.name, StateAfter.AS_CAPTURED, draft.situation.tree.current))
    if rules.refusals(back):
        return None
    return Undo(
        f"Revert to {quoted(safety.name)}, the state before, and delete that snapshot again.",
        revert_to=safety.name,
        delete=(safety.name,),
    )


def _frees(facts: Facts, target: Snapshot, *, keeps_present: bool) -> Figure:
    """The layers that libvirt unlinks. Those of a safety snapshot are new and empty."""
    if keeps_present:
        return NOTHING
    if not is_external(target):
        return unknown("inside an image: needs an analysis of its clusters")
    images = [facts.image(path) for path in facts.unlinked_by_external_revert]
    return total(image.allocated for image in images if image is not None and not image.is_missing)


def plan_take_back(intention: TakeBack, situation: Situation) -> Plan:
    """Plan to undo. Raises VanishedError if the snapshot to go back to is gone.

    A safety snapshot that can't be deleted safely just stays, with a warning; a snapshot that was all there was to
    undo is deleted or refused.
    """
    draft = Draft(Action.UNDO, situation)
    frees: list[Figure] = []
    if intention.revert_to is not None:
        find_snapshot(situation, intention.revert_to)
        target = situation.tree[intention.revert_to]
        frees.append(_frees(draft.facts, target, keeps_present=False))
        draft.add(draft.case(RevertToSnapshot(target.name, StateAfter.AS_CAPTURED, situation.tree.current)))
    names = tuple(name for name in intention.delete if name in situation.tree)
    if intention.revert_to is None and not names:
        find_snapshot(situation, intention.delete[0] if intention.delete else "")
    forecast = Forecast(NOTHING, total(frees), NOTHING)
    if names and not draft.is_refused:
        trial = Draft(Action.UNDO, draft.situation)
        add_deletions(trial, names)
        if trial.is_refused and intention.revert_to is not None:
            problem = trial.refusals[0]
            draft.warn(
                UNDO_KEEPS_SNAPSHOT.say(
                    Case(draft.situation, draft.facts, Action.DELETE, names[0]),
                    {"kept": snapshots_named(names), "problem": problem.reason, "remedy": problem.remedy},
                )
            )
        else:
            deletes = add_deletions(draft, names)
            forecast = Forecast(deletes.copies, total([*frees, deletes.frees]), deletes.peak_extra)
    shown = tuple(dict.fromkeys([*([intention.revert_to] if intention.revert_to else []), *names]))
    return draft.plan(shown, forecast, None)
