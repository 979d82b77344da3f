"""Which actions can be offered now, and why the others cannot. The rules speak; here is what only a window knows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from snaptree.plans.plan import Action, Finding
from snaptree.plans.wording import plain

if TYPE_CHECKING:
    from collections.abc import Mapping

    from snaptree.model.estate import Annotations
    from snaptree.ui.machine import Machine

_OF_THE_SNAPSHOT: Final = frozenset(
    {
        "unreadable-snapshot",
        "mixed-snapshot",
        "external-revert-unsupported",
        "memory-file-missing",
        "memory-of-another-time",
        "not-in-image",
        "disk-type-blocks-revert",
        "snapshot-of-sleep",
        "half-deleted",
        "left-half-deleted",
        "name-breaks-job",
        "name-breaks-monitor",
        "named-like-an-id",
        "twice-in-image",
        "layer-missing",
        "content-changed",
        "too-deep-to-go-back",
    }
)
"""Rules that forbid a revert because of what the snapshot is, not of what its machine is doing."""

_ASKED_ABOUT = 3
"""Of many snapshots that are selected: the plan asks about all."""


@dataclass(frozen=True, slots=True)
class Selection:
    """What is selected in the window."""

    machine: Machine | None = None
    snapshots: tuple[str, ...] = ()
    now: bool = False
    """The row of the running state is selected, too."""
    under_way: str = ""
    """What changes the machine at present, as a title; empty if nothing does."""

    @property
    def is_pinned(self) -> bool:
        """Whether all that is selected is pinned."""
        marks = self._marks()
        return bool(marks) and all(each.pinned is not None for each in marks)

    @property
    def is_known_good(self) -> bool:
        """Whether all that is selected is marked as known good."""
        marks = self._marks()
        return bool(marks) and all(each.known_good is not None for each in marks)

    @property
    def group(self) -> str:
        """The group of the one snapshot that is selected; empty if it has none."""
        marks = self._marks()
        return marks[0].group if len(marks) == 1 else ""

    def _marks(self) -> list[Annotations]:
        tree = None if self.machine is None else self.machine.tree
        return [] if tree is None else [tree[name].annotations for name in self.snapshots if name in tree]


_ONE_ONLY: Mapping[Action, str] = {
    Action.REVERT: "A machine can be reverted to one snapshot only.",
    Action.DROP_MEMORY: "Memory is dropped of one snapshot at a time.",
    Action.RENAME: "Every snapshot has a name of its own.",
    Action.LOOK: "A new machine shows one snapshot only.",
}
"""Actions that are for one snapshot, and why."""


def why_off(action: Action, selection: Selection) -> Finding | None:
    """Why an action is greyed for this selection; None if it is offered."""
    return (
        _nothing_to_act_on(action, selection)
        or _not_connected(selection.machine)
        or (None if action is Action.DESCRIBE else _changes_already(selection))
        or _refused(action, selection)
    )


def is_of_the_snapshot(finding: Finding | None) -> bool:
    """Whether a revert is refused for what the snapshot is: that stays so, whatever its machine does."""
    return finding is not None and finding.rule in _OF_THE_SNAPSHOT


def why_no_group(selection: Selection) -> Finding | None:
    """Why nothing can be taken of several machines, of which this is one."""
    if selection.machine is None:
        return Finding("no-machine", "No virtual machine is selected.", "Select one in the list on the left.")
    return _not_connected(selection.machine) or _changes_already(selection)


def why_no_prune(selection: Selection) -> Finding | None:
    """Why there is nothing to prune on a machine; others of its host can be pruned with it."""
    machine = selection.machine
    return (
        _nothing_to_act_on(Action.TAKE, selection)
        or _not_connected(machine)
        or _why_never(machine)
        or _changes_already(selection)
    )


def why_no_cure(machine: Machine | None, under_way: str) -> Finding | None:
    """Why nothing that cures a finding is planned for its machine now. Whether it can be at all was tried before."""
    return _not_connected(machine) or _changes_already(Selection(machine, under_way=under_way))


def _why_never(machine: Machine | None) -> Finding | None:
    """What forbids every change of a host."""
    if machine is not None and machine.host.host is not None and machine.host.host.read_only:
        return _refused(Action.TAKE, Selection(machine))
    return None


def why_no_group_revert(selection: Selection) -> Finding | None:
    """Why there is no group to revert with what is selected, if that could be reverted by itself."""
    machine, group = selection.machine, selection.group
    if machine is None or not group:
        return Finding("no-group", "This snapshot was not taken together with those of other machines.")
    if len(machine.together.get(group, ())) < 2:
        return Finding("no-group", "No other machine has a snapshot of its group any more.", "Revert this one alone.")
    return None


def _nothing_to_act_on(action: Action, selection: Selection) -> Finding | None:
    if selection.machine is None:
        return Finding("no-machine", "No virtual machine is selected.", "Select one in the list on the left.")
    if action is Action.TAKE:
        return None
    if action is Action.UNLOOK:
        return _no_look(selection.machine)
    if not selection.snapshots:
        if selection.now and action is Action.REVERT:
            return Finding("now", "The machine is at “Now” already.", "Select the snapshot to go back to.")
        if selection.now:
            return Finding("now", "“Now” is the machine itself, not a snapshot.", "Select a snapshot.")
        return Finding("no-snapshot", "No snapshot is selected.", "Select one in the tree.")
    if len(selection.snapshots) > 1 and (why := _ONE_ONLY.get(action)):
        return Finding("one-only", why, "Select just that one.")
    return None


def _no_look(machine: Machine) -> Finding | None:
    if machine.looks_at is not None:
        return None
    return Finding("no-look", "This machine was not made to look at a snapshot.", "Select one that was.")


def _not_connected(machine: Machine | None) -> Finding | None:
    if machine is not None and machine.host.phase != "connected":
        return Finding("not-connected", f"There is no connection to {plain(machine.id.uri)} now.", "Wait, or retry.")
    return None


def _changes_already(selection: Selection) -> Finding | None:
    """What is planned now would be out of date when its turn comes."""
    if not selection.under_way:
        return None
    return Finding(
        "under-way", f"This is still to be done: {selection.under_way}.", "Wait for that: it is shown below."
    )


def _refused(action: Action, selection: Selection) -> Finding | None:
    machine = selection.machine
    if machine is None or machine.host.host is None:
        return None
    # Here, because the window is painted before there is anything to judge.
    from snaptree.plans.rules import why_not
    from snaptree.plans.situation import glance

    if machine.tree is None:
        return Finding("not-read", "The snapshots of this machine have not been read yet.")
    layers = None if machine.costs is None else machine.costs.layers
    situation = glance(machine.host.host, machine.domain, machine.tree, layers, machine.unfinished)
    if action is Action.DESCRIBE:
        # Marks are for several, too: what forbids one of them is said at once.
        findings = (why_not(action, situation, name) for name in selection.snapshots[:_ASKED_ABOUT])
        return next(filter(None, findings), None)
    if action is Action.UNLOOK:
        return why_not(action, situation)
    if action is Action.TAKE or len(selection.snapshots) != 1:
        if action is Action.TAKE or machine.unfinished is not None:
            return why_not(Action.TAKE, situation)
        # What is true of one snapshot may not be true of several deleted together: the plan will say.
        return None
    return why_not(action, situation, selection.snapshots[0])
