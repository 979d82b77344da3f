"""Rules that a planner finds out while it puts steps together."""

from __future__ import annotations

from snaptree.plans.plan import Action
from snaptree.plans.rule import QEMU, TEST, Rule, Verdict, actions, by_the_planner

_ANY_DRIVER = frozenset({QEMU, TEST})


NO_SAFETY_SNAPSHOT = Rule(
    id="no-safety-snapshot",
    actions=actions(Action.REVERT),
    verdict=Verdict.REFUSE,
    condition=by_the_planner,
    reason="The present state of {vm} can't be kept in a safety snapshot first: {problem}",
    remedy="{remedy} Or revert without a safety snapshot, if the present state may be lost.",
    source="a revert discards the layers in use",
    drivers=_ANY_DRIVER,
)
ANOTHER_KIND = Rule(
    id="another-kind",
    actions=actions(Action.TAKE),
    verdict=Verdict.WARN,
    condition=by_the_planner,
    reason="{snapshot} is taken {kind}, for one {refused}, as the last one is, can't be taken: {problem}",
    remedy="",
    source="whoever names no kind of snapshot expects that of the last one",
    drivers=_ANY_DRIVER,
)
NO_UNDO_OF_TAKE = Rule(
    id="no-undo-of-take",
    actions=actions(Action.TAKE),
    verdict=Verdict.WARN,
    condition=by_the_planner,
    reason="Taking {snapshot} can't be undone, as deleting it again would be refused: {problem}",
    remedy="",
    source="the undo of a take deletes the snapshot, where libvirt could do that",
    drivers=_ANY_DRIVER,
)
MANAGED_SAVE_DROPPED = Rule(
    id="managed-save-dropped",
    actions=actions(Action.REVERT),
    verdict=Verdict.WARN,
    condition=by_the_planner,
    reason="The memory that the managed save of {vm} put aside is thrown away: what its programs held there and had"
    " not written to disk is lost for good, and no undo brings it back.",
    remedy="Start {vm} instead, and take a snapshot with its memory.",
    source="cockpit-machines#917: a managed save that meets other disks damages file systems",
)
MACHINE_IS_STOPPED = Rule(
    id="machine-is-stopped",
    actions=actions(Action.REVERT),
    verdict=Verdict.WARN,
    condition=by_the_planner,
    reason="libvirt {libvirt} can't revert to external snapshots, so SnapTree does it by steps of its own, for which"
    " {vm} is turned off at once, like pulling the plug.",
    remedy="",
    source="LIBVIRT.md, section 9: a manual fork needs the machine off",
)
UNDO_KEEPS_SNAPSHOT = Rule(
    id="undo-keeps-snapshot",
    actions=actions(Action.DELETE),
    verdict=Verdict.WARN,
    condition=by_the_planner,
    reason="The safety snapshot {kept} stays: {problem}",
    remedy="{remedy}",
    source="taking back a revert deletes the safety snapshot only where that loses nothing",
    drivers=_ANY_DRIVER,
)
LEFTOVER_STAYS = Rule(
    id="leftover-stays",
    actions=actions(Action.DELETE),
    verdict=Verdict.WARN,
    condition=by_the_planner,
    reason="{file} is left behind, and it can't be removed from here: {problem}",
    remedy="Remove it on the host if nobody needs it.",
    source="lab: the memory file on 9.0, the layer of a leaf without a parent on 11.3 and 12.8",
)
LAST_TRACE = Rule(
    id="last-trace",
    actions=actions(Action.DELETE, Action.REVERT),
    verdict=Verdict.WARN,
    condition=by_the_planner,
    reason="Something seems to have been merged by hand into a layer of {names}, and nothing would tell that any more"
    " afterwards. So it is marked as doubtful first.",
    remedy="",
    source="that something was merged by hand is told by the records of later snapshots, as long as there are any",
)
LAST_GOOD = Rule(
    id="last-good-goes",
    actions=actions(Action.DELETE),
    verdict=Verdict.WARN,
    condition=by_the_planner,
    reason="Of what is left of {vm} afterwards, nobody can rely on any snapshot to go back to: {left}.",
    remedy="",
    source="what is damaged, doubtful or without its image passes for a snapshot in every list",
)
_CHANGES = actions(Action.TAKE, Action.REVERT, Action.DELETE, Action.DROP_MEMORY, Action.LOOK, Action.UNLOOK)
CANNOT_FINISH = Rule(
    id="cannot-finish",
    actions=_CHANGES,
    verdict=Verdict.REFUSE,
    condition=by_the_planner,
    reason="What was interrupted can't be finished: {problem}.",
    remedy="Look at the tree, then leave it as it is, and plan what you want anew.",
    source="a step that was interrupted goes on only from what it left itself",
    drivers=_ANY_DRIVER,
)
FINISHED_ALREADY = Rule(
    id="finished-already",
    actions=_CHANGES,
    verdict=Verdict.WARN,
    condition=by_the_planner,
    reason="Done already: {steps}.",
    remedy="",
    source="the journal, and what is there now",
    drivers=_ANY_DRIVER,
)
HALF_DONE = Rule(
    id="half-done",
    actions=_CHANGES,
    verdict=Verdict.WARN,
    condition=by_the_planner,
    reason="Half done: {step}: {problem}.",
    remedy="{remedy}",
    source="lab on 9.0, 11.3 and 12.8: interrupted deletes damage only the snapshot being deleted",
    drivers=_ANY_DRIVER,
)
LEFT_UNDONE = Rule(
    id="left-undone",
    actions=_CHANGES,
    verdict=Verdict.WARN,
    condition=by_the_planner,
    reason="Not done, if it is left as it is: {steps}.",
    remedy="{remedy}",
    source="the journal, and what is there now",
    drivers=_ANY_DRIVER,
)
GROUP_IS_TORN = Rule(
    id="group-is-torn",
    actions=actions(Action.TAKE),
    verdict=Verdict.WARN,
    condition=by_the_planner,
    reason="{name} was to be taken of several machines together, and not all of them were taken.",
    remedy="{remedy}",
    source="the journal: all or none",
    drivers=_ANY_DRIVER,
)

RULES = (
    NO_SAFETY_SNAPSHOT,
    ANOTHER_KIND,
    NO_UNDO_OF_TAKE,
    MANAGED_SAVE_DROPPED,
    MACHINE_IS_STOPPED,
    UNDO_KEEPS_SNAPSHOT,
    LEFTOVER_STAYS,
    LAST_TRACE,
    LAST_GOOD,
    CANNOT_FINISH,
    FINISHED_ALREADY,
    HALF_DONE,
    LEFT_UNDONE,
    GROUP_IS_TORN,
)
