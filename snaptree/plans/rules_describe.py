"""Rules about names, notes and marks of snapshots that exist."""

from __future__ import annotations

from snaptree.model.estate import SnapshotKind
from snaptree.plans.plan import Action
from snaptree.plans.rule import QEMU, TEST, Case, Evidence, Rule, Verdict, actions, by_the_planner, first, found
from snaptree.plans.rules_revert import left_half_deleted
from snaptree.plans.situation import Known
from snaptree.plans.wording import not_in_xml, quoted, shell_word

_ANY_DRIVER = frozenset({QEMU, TEST})


def _lies_inside(case: Case) -> Evidence | None:
    return found() if case.snapshot is not None and case.snapshot.kind is not SnapshotKind.EXTERNAL else None


def _note_not_allowed(case: Case) -> Evidence | None:
    return found(character=character) if (character := not_in_xml(case.new_note)) else None


def _has_two_names(case: Case) -> Evidence | None:
    if case.external is None:
        return None
    return first(
        found(other=quoted(other), other_arg=shell_word(other))
        for other in case.facts.other_names(case.external)
        if other not in case.batch and other not in case.deleting
    )


SAID_OTHERWISE_SINCE = Rule(
    id="said-otherwise-since",
    actions=actions(Action.DESCRIBE),
    verdict=Verdict.REFUSE,
    condition=by_the_planner,
    reason="Somebody has changed {what} of {snapshot} since, and that would be lost.",
    remedy="Look at it, and change it yourself if it is wrong.",
    source="an undo takes back what it is asked to, and nobody else's words",
    drivers=_ANY_DRIVER,
)

RULES = (
    Rule(
        id="note-not-allowed",
        actions=actions(Action.TAKE, Action.DESCRIBE),
        verdict=Verdict.REFUSE,
        condition=_note_not_allowed,
        reason="The note has the character {character} in it, which libvirt can't write down: XML has none such.",
        remedy="Write the note without it. Of all control characters, only tabs and line ends can stand there.",
        source="XML 1.0, production 2; lab on 9.0: 'PCDATA invalid Char value', after the plan was agreed to",
        needs=Known.TREE,
        drivers=_ANY_DRIVER,
    ),
    Rule(
        id="rename-internal",
        actions=actions(Action.RENAME),
        verdict=Verdict.REFUSE,
        condition=_lies_inside,
        reason="{snapshot} lies inside the image, where it is found by its name. libvirt can't rename it there: under"
        " another name, it could be neither reverted to nor deleted.",
        remedy="Write in its note what it is (F2, or snaptree note {vm_arg} {snapshot_arg} TEXT).",
        source="lab on 9.0, 11.3 and 12.8: after a rename the revert fails, and a delete leaves the data in the image",
        needs=Known.TREE,
        drivers=_ANY_DRIVER,
    ),
    Rule(
        id="rename-half-deleted",
        actions=actions(Action.RENAME),
        verdict=Verdict.REFUSE,
        condition=left_half_deleted,
        reason="A delete of {snapshot} was cut short when it had begun to overwrite its layer, and was left like that:"
        " what it holds is a mixture, which under another name would pass for something else.",
        remedy="Delete {snapshot}: that completes it.",
        source="what is left half deleted is of no use, whatever it is called",
        needs=Known.TREE,
    ),
    Rule(
        id="two-names",
        actions=actions(Action.DELETE),
        verdict=Verdict.REFUSE,
        condition=_has_two_names,
        reason="{snapshot} is also listed as {other}, since a rename was cut short, or the dropping of its memory. With"
        " one of the two gone, nobody could say any more what was taken after the other.",
        remedy="Finish that first: rename {snapshot} to {other} (snaptree rename {vm_arg} {snapshot_arg} {other_arg}),"
        " or the other way round.",
        source="lab on 9.0 and 11.3: when libvirt deletes one of the two, what the other holds is lost",
        needs=Known.TREE,
    ),
    SAID_OTHERWISE_SINCE,
)
