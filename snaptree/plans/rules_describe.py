"""Rules about names, notes and marks of snapshots that exist."""

from __future__ import annotations

from snaptree.model.estate import SnapshotKind
from snaptree.plans.plan import Action
from snaptree.plans.rule import QEMU, TEST, Case, Evidence, Rule, Verdict, actions, found
from snaptree.plans.rules_plan import by_the_planner
from snaptree.plans.situation import Known

_ANY_DRIVER = frozenset({QEMU, TEST})


def _lies_inside(case: Case) -> Evidence | None:
    return found() if case.snapshot is not None and case.snapshot.kind is not SnapshotKind.EXTERNAL else None


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
    SAID_OTHERWISE_SINCE,
)
