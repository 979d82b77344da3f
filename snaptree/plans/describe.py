"""Planning what is said about snapshots: notes, marks and names. Nothing that they hold changes."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

from snaptree.model.estate import Mark, Remarks
from snaptree.model.figures import NOTHING
from snaptree.model.tree import SnapshotTree
from snaptree.plans import rules
from snaptree.plans.draft import Draft, find_snapshot
from snaptree.plans.intention import Describe, Rename
from snaptree.plans.plan import Action, DescribeSnapshot, Forecast, Plan, RenameSnapshot, Undo
from snaptree.plans.plan_words import describe_remarks
from snaptree.plans.rules_describe import SAID_OTHERWISE_SINCE
from snaptree.plans.situation import Situation
from snaptree.plans.wording import quoted, snapshots_named

AT_ONCE = Forecast(NOTHING, NOTHING, NOTHING, seconds=0.0, pause_seconds=0.0)
_FIELDS = {"note": "the note", "pinned": "the pin", "known_good": "the mark “known good”"}


def plan_describe(intention: Describe, situation: Situation) -> Plan:
    """Plan to change notes and marks. What is so already takes no step: a mark keeps who set it, and when.

    Raises VanishedError if one of the snapshots is gone.
    """
    draft = Draft(Action.DESCRIBE, situation)
    names = tuple(dict.fromkeys(find_snapshot(situation, name).name for name in intention.snapshots))
    steps: list[DescribeSnapshot] = []
    for name in names:
        before = situation.tree[name].remarks
        step = DescribeSnapshot(name, before, _said(intention, before, situation))
        if step.changed:
            steps.append(step)
            draft.add(draft.case(step))
    undo = Undo(_undo_text(steps), describe=tuple(steps)) if steps else None
    changing = tuple(step.name for step in steps)
    return without_chains(draft.plan(changing or names, AT_ONCE, undo))


def _said(intention: Describe, before: Remarks, situation: Situation) -> Remarks:
    return replace(
        before,
        note=before.note if intention.note is None else clean_note(intention.note),
        pinned=_mark(before.pinned, intention.pinned, situation),
        known_good=_mark(before.known_good, intention.known_good, situation),
    )


def _mark(before: Mark | None, wanted: bool | None, situation: Situation) -> Mark | None:
    if wanted is None or wanted == (before is not None):
        return before
    return Mark(situation.user, situation.now) if wanted else None


def clean_note(text: str) -> str:
    """A note as libvirt gives it back: lines end in one way, and none is empty at the end."""
    return text.replace("\r\n", "\n").replace("\r", "\n").strip()


def _undo_text(steps: list[DescribeSnapshot]) -> str:
    names, back = snapshots_named(step.name for step in steps), steps[0].turned_round
    marks = DescribeSnapshot(back.name, replace(back.before, note=""), replace(back.after, note=""))
    parts = [describe_remarks(marks, names)] if marks.changed else []
    if "note" in back.changed:
        parts.append(f"{'give' if parts else 'Give'} {names} the earlier note back")
    return f"{' and '.join(parts)}."


def plan_rename(intention: Rename, situation: Situation) -> Plan:
    """Plan to rename a snapshot. Raises VanishedError if it is gone."""
    snapshot = find_snapshot(situation, intention.snapshot)
    draft = Draft(Action.RENAME, situation)
    draft.add(draft.case(renaming(situation.tree, snapshot.name, intention.new_name)))
    undo = None
    if not draft.is_refused:
        back = renaming(draft.situation.tree, intention.new_name, snapshot.name)
        if not rules.refusals(draft.case(back)):  # another tool may have given it a name that we don't
            undo = Undo(
                f"Rename {quoted(intention.new_name)} to {quoted(snapshot.name)} again.",
                rename=(intention.new_name, snapshot.name),
            )
    return without_chains(draft.plan((snapshot.name,), AT_ONCE, undo))


def renaming(tree: SnapshotTree, name: str, new_name: str) -> RenameSnapshot:
    """The step that lets a new name take the place of another in the tree."""
    parent = tree.parents[name]
    own = {new_name: tree[name].revert_overlays}
    parents = {parent: tree[parent].revert_overlays} if parent is not None else {}
    return RenameSnapshot(
        name,
        new_name,
        parent,
        tuple(tree.children(name)),
        MappingProxyType({name: MappingProxyType(dict(layers)) for name, layers in (own | parents).items() if layers}),
    )


# Taking it back


def add_taking_back(draft: Draft, undo: Undo) -> tuple[str, ...]:
    """Add the steps that say again what was said before, and return which snapshots they are about.

    Raises VanishedError if all of these are gone.
    """
    if undo.rename is not None:
        new_name, old_name = undo.rename
        find_snapshot(draft.situation, new_name)
        draft.add(draft.case(renaming(draft.situation.tree, new_name, old_name)))
        return (new_name,)
    names = []
    for said in undo.describe:
        if said.name not in draft.situation.tree:
            continue
        names.append(said.name)
        back, now = said.turned_round, draft.situation.tree[said.name].remarks
        step = DescribeSnapshot(said.name, now, back.applied_to(now))
        if disputed := back.disputed(now):
            what = " and ".join(_FIELDS[name] for name in disputed)
            draft.refuse(SAID_OTHERWISE_SINCE.say(draft.case(step), {"what": what}))
        elif step.changed:
            draft.add(draft.case(step))
    if undo.describe and not names:
        find_snapshot(draft.situation, undo.describe[0].name)
    return tuple(names)


def without_chains(plan: Plan) -> Plan:
    """What is said about a snapshot has nothing to do with the layers in use."""
    return replace(plan, expected_chains=MappingProxyType({}))
