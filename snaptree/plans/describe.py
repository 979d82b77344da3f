"""Planning what is said about snapshots: notes, marks and names. Nothing that they hold changes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import fields, replace
from types import MappingProxyType

from snaptree.model.estate import Mark, Remarks, Snapshot
from snaptree.model.figures import NOTHING
from snaptree.plans import rules
from snaptree.plans.draft import Draft, find_snapshot
from snaptree.plans.intention import Describe, Rename
from snaptree.plans.plan import Action, DescribeSnapshot, Forecast, Plan, RenameSnapshot, Undo
from snaptree.plans.plan_json import describe_remarks
from snaptree.plans.rules_describe import SAID_OTHERWISE_SINCE
from snaptree.plans.situation import Situation
from snaptree.plans.wording import quoted, snapshots_named

AT_ONCE = Forecast(NOTHING, NOTHING, NOTHING, seconds=0.0, pause_seconds=0.0)
_NOT_IN_XML = re.compile("[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def plan_describe(intention: Describe, situation: Situation) -> Plan:
    """Plan to change notes and marks. What is so already takes no step: a mark keeps who set it, and when.

    Raises VanishedError if one of the snapshots is gone.
    """
    draft = Draft(Action.DESCRIBE, situation)
    names = tuple(dict.fromkeys(find_snapshot(situation, name).name for name in intention.snapshots))
    steps = []
    for name in names:
        before = situation.tree[name].remarks
        step = DescribeSnapshot(name, before, _said(intention, before, situation))
        if step.after != before:
            steps.append(step)
            draft.add(draft.case(step))
    undo = Undo(_undo_text(steps), describe=tuple(steps)) if steps else None
    return without_chains(draft.plan(names, AT_ONCE, undo))


def _said(intention: Describe, before: Remarks, situation: Situation) -> Remarks:
    return Remarks(
        before.note if intention.note is None else clean_note(intention.note),
        _mark(before.pinned, intention.pinned, situation),
        _mark(before.known_good, intention.known_good, situation),
    )


def _mark(before: Mark | None, wanted: bool | None, situation: Situation) -> Mark | None:
    if wanted is None or wanted == (before is not None):
        return before
    return Mark(situation.user, situation.now) if wanted else None


def clean_note(text: str) -> str:
    """A note as libvirt can keep it: lines end in one way, none is empty at the end, and nothing that XML can't say."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    return _NOT_IN_XML.sub("", lines).strip()


def _undo_text(steps: list[DescribeSnapshot]) -> str:
    return f"{describe_remarks(steps[0].turned_round, snapshots_named(step.name for step in steps))}, as before."


def plan_rename(intention: Rename, situation: Situation) -> Plan:
    """Plan to rename a snapshot. Raises VanishedError if it is gone."""
    snapshot = find_snapshot(situation, intention.snapshot)
    draft = Draft(Action.RENAME, situation)
    draft.add(draft.case(_rename_step(situation, snapshot, intention.new_name)))
    undo = None
    if not draft.is_refused:
        back = _rename_step(draft.situation, draft.situation.tree[intention.new_name], snapshot.name)
        if not rules.refusals(draft.case(back)):  # another tool may have given it a name that we don't
            undo = Undo(
                f"Rename {quoted(intention.new_name)} to {quoted(snapshot.name)} again.",
                rename=(intention.new_name, snapshot.name),
            )
    return without_chains(draft.plan((snapshot.name,), AT_ONCE, undo))


def _rename_step(situation: Situation, snapshot: Snapshot, new_name: str) -> RenameSnapshot:
    tree = situation.tree
    parent = tree.parents[snapshot.name]
    own = {new_name: snapshot.revert_overlays}
    parents = {parent: tree[parent].revert_overlays} if parent is not None else {}
    return RenameSnapshot(
        snapshot.name,
        new_name,
        parent,
        tuple(tree.children(snapshot.name)),
        MappingProxyType({name: MappingProxyType(dict(layers)) for name, layers in (own | parents).items() if layers}),
    )


# Taking it back


def add_taking_back(draft: Draft, undo: Undo) -> tuple[str, ...]:
    """Add the steps that say again what was said before, and return which snapshots they are about.

    Raises VanishedError if all of these are gone.
    """
    if undo.rename is not None:
        new_name, old_name = undo.rename
        draft.add(draft.case(_rename_step(draft.situation, find_snapshot(draft.situation, new_name), old_name)))
        return (new_name,)
    names = []
    for said in undo.describe:
        if said.name not in draft.situation.tree:
            continue
        names.append(said.name)
        before = draft.situation.tree[said.name].remarks
        step = DescribeSnapshot(said.name, before, _as_before(said, before))
        since = _changed_since(said, before)
        if since:
            draft.refuse(SAID_OTHERWISE_SINCE.say(draft.case(step), {"what": " and ".join(since)}))
        elif step.after != before:
            draft.add(draft.case(step))
    if undo.describe and not names:
        find_snapshot(draft.situation, undo.describe[0].name)
    return tuple(names)


def _changed(said: DescribeSnapshot) -> Iterable[str]:
    """The fields of what is said that a step changed."""
    names = (field.name for field in fields(Remarks))
    return (name for name in names if getattr(said.before, name) != getattr(said.after, name))


def _as_before(said: DescribeSnapshot, now: Remarks) -> Remarks:
    """What is said now, but for what a step changed: that as it was before it."""
    return replace(now, **{name: getattr(said.before, name) for name in _changed(said)})


def _changed_since(said: DescribeSnapshot, now: Remarks) -> list[str]:
    """What somebody else said since, in words."""
    return [
        f"the {name.replace('_', ' ')}" if name == "note" else f"the mark “{name.replace('_', ' ')}”"
        for name in _changed(said)
        if getattr(now, name) not in (getattr(said.before, name), getattr(said.after, name))
    ]


def without_chains(plan: Plan) -> Plan:
    """What is said about a snapshot has nothing to do with the layers in use."""
    return replace(plan, expected_chains=MappingProxyType({}))
