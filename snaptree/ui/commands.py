"""What the actions do: each is planned, shown where that is due, and run. One short story per verb."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from PySide6.QtCore import QObject

from snaptree import words
from snaptree.model.errors import SnapTreeError
from snaptree.model.estate import DomainState
from snaptree.plans.group import done_together, name_of
from snaptree.plans.intention import (
    Delete,
    Describe,
    DropMemory,
    Intention,
    Look,
    Prune,
    Recover,
    Revert,
    TakeBack,
    Unlook,
)
from snaptree.plans.plan import DeleteSnapshot, MakeLook, MergeLayers, StartLook, StateAfter
from snaptree.ui.activity import title_of
from snaptree.ui.compare_dialog import CompareDialog
from snaptree.ui.error_dialog import show_error
from snaptree.ui.group_take_dialog import GroupTakeDialog
from snaptree.ui.machine import MachineId
from snaptree.ui.machine_order import MachineOrder
from snaptree.ui.plan_dialog import Alternatives, Choice, PlanDialog
from snaptree.ui.planning import GroupPlanner, Planner
from snaptree.ui.rename_dialog import RenameDialog
from snaptree.ui.settings import SafetySnapshot
from snaptree.ui.stopping import Stopping
from snaptree.ui.take_dialog import TakeDialog
from snaptree.ui.text import in_sentence

if TYPE_CHECKING:
    from collections.abc import Callable

    from PySide6.QtWidgets import QWidget

    from snaptree.model.tree import SnapshotTree
    from snaptree.plans.advice import Cure
    from snaptree.plans.operation import Operation
    from snaptree.plans.plan import Plan, Undo
    from snaptree.ui.activity import Activity
    from snaptree.ui.changed_settings import Moments
    from snaptree.ui.estate import Estate
    from snaptree.ui.machine import Machine
    from snaptree.ui.settings import Settings


class Commands(QObject):
    """Takes, reverts, deletes, describes and undoes. Dialogs belong to the window and never block it."""

    def __init__(self, estate: Estate, settings: Settings, activity: Activity, window: QWidget) -> None:
        super().__init__(window)
        self._estate = estate
        self._settings = settings
        self._activity = activity
        self._window = window
        self._stopping = Stopping(estate, activity, window)
        activity.cancel_wanted.connect(self._stopping.stop)
        activity.limit_wanted.connect(self.limit)
        activity.pause_wanted.connect(self.pause)
        activity.undo_wanted.connect(self.undo)
        activity.details_wanted.connect(self._show_error)

    def take(self, machine: Machine) -> None:
        """Ask what to take; the dialog shows the plan meanwhile."""
        TakeDialog(self._estate[machine.id.uri], machine, self._settings, self._window).open()

    def take_group(self, machine: Machine) -> None:
        """Ask which machines to take together, and how; the dialog shows the plans meanwhile."""
        GroupTakeDialog(self._estate[machine.id.uri], machine, self._window).open()

    def revert_group(self, machine: Machine, group: str) -> None:
        """Go back on all machines of a group after a preview, in which they are by name until put in another order."""
        host = self._estate[machine.id.uri]
        planner = GroupPlanner(host, [domain.uuid for domain in machine.together[group]], group=group)
        order = MachineOrder("Reverted in this order", {each.uuid: each.name for each in machine.together[group]})

        def reorder() -> None:
            planner.uuids = order.uuids

        order.changed.connect(reorder)  # before the dialog asks for another plan
        safety = self._settings.safety_snapshot is not SafetySnapshot.NEVER
        which = words.count(len(planner.uuids), "machine")
        self._open(
            PlanDialog(
                planner,
                Revert("", take_safety_snapshot=safety),
                title=f"Revert {which} to “{in_sentence(name_of(group))}”",
                verb="&Revert All",
                choices=[_safety_choice(is_ticked=safety)],
                alternatives=_STATES_AFTER,
                order=order,
                parent=self._window,
            )
        )

    def _undo_group(self, uri: str, operation: Operation) -> bool:
        """Take back what was done together, after a preview. Returns whether that is what there was to do."""
        known = [each for each in self._activity.operations if each.plan.host_uri == uri]
        try:
            together = done_together(operation, known)
        except SnapTreeError as error:
            self._show_error(error)
            return True
        if len(together) < 2:
            return False
        undo = operation.plan.undo
        assert undo is not None
        which = words.count(len(together), "machine")
        title, button = f"Take back the revert of {which}", "&Take All Back"
        if undo.loses_something:
            title, button = f"Delete “{in_sentence(name_of(operation.plan.group))}” of {which} again", "&Delete All"
        self._open(
            PlanDialog(
                GroupPlanner(self._estate[uri], undoes=together),
                TakeBack(undo),
                title=title,
                verb=button,
                parent=self._window,
            )
        )
        return True

    def revert(self, machine: Machine, snapshot: str) -> None:
        """Go back. With a safety snapshot one click reverts, and one takes it back: nothing is asked.

        But for what nobody expects of a revert to other disks: then the preview says so first.
        """
        preference = self._settings.safety_snapshot
        intention = Revert(snapshot, take_safety_snapshot=preference is not SafetySnapshot.NEVER)
        if preference is not SafetySnapshot.ALWAYS:
            self._preview_revert(machine, intention)
            return
        token = object()
        title = f"Revert {in_sentence(machine.domain.name)} to “{in_sentence(snapshot)}”"
        self._activity.planning(token, title, machine.id.uri, machine.id.uuid)

        def planned(result: Plan | SnapTreeError) -> None:
            self._activity.planned(token)
            if isinstance(result, SnapTreeError):
                self._show_error(result)
            elif result.is_refused or result.undo is None or _changes_more(machine, result):
                self._preview_revert(machine, intention, result)
            else:
                self._planner(machine).run(result)

        self._planner(machine).make(intention, planned)

    def revert_with_choices(self, machine: Machine, snapshot: str) -> None:
        """Go back after a preview in which the state afterwards can be chosen, and more."""
        safety = self._settings.safety_snapshot is not SafetySnapshot.NEVER
        self._preview_revert(machine, Revert(snapshot, take_safety_snapshot=safety))

    def delete(self, machine: Machine, snapshots: tuple[str, ...]) -> None:
        """Delete after a preview: that can't be undone."""
        name = in_sentence(machine.domain.name)
        below = _descendants(machine.tree, snapshots)
        marked = _marked(machine.tree, (*snapshots, *below))
        choices = []

        def leave_out(intention: Intention, ticked: bool) -> Intention:
            assert isinstance(intention, Delete)
            return replace(intention, leaves_out=marked if ticked else ())

        def titled(intention: Intention) -> str:
            assert isinstance(intention, Delete)
            every = (*intention.snapshots, *(below if intention.subtree else ()))
            gone = [each for each in every if each not in intention.leaves_out]
            which = f"“{in_sentence(gone[0])}”" if len(gone) == 1 else words.count(len(gone), "snapshot")
            return f"Delete {which} of {name}"

        if below:
            verb = "descends" if len(below) == 1 else "descend"
            choice = Choice(
                f"And {words.count(len(below), 'snapshot')} that {verb} from there",
                is_ticked=False,
                apply=_with_subtree,
                explanation="\n".join(below),
            )
            choices.append(choice)
        if marked and len((*snapshots, *below)) > 1:
            choices.append(
                Choice("Leave out what is pinned or known good", False, leave_out, explanation="\n".join(marked))
            )
        choices.append(OWN_JOBS)
        self._open(
            PlanDialog(
                self._planner(machine),
                Delete(snapshots),
                title=titled(Delete(snapshots)),
                verb="&Delete",
                choices=choices,
                titled=titled,
                parent=self._window,
            )
        )

    def prune(self, machine: Machine) -> None:
        """Ask what to keep; the dialog shows what goes meanwhile."""
        from snaptree.ui.prune_dialog import PruneDialog  # here, because the window opens without policies

        PruneDialog(self._estate[machine.id.uri], machine, self._window).open()

    def drop_memory(self, machine: Machine, snapshot: str) -> None:
        """Give up a snapshot's memory after a preview: that can't be undone."""
        self._open(
            PlanDialog(
                self._planner(machine),
                DropMemory(snapshot),
                title=f"Drop the memory of “{in_sentence(snapshot)}” of {in_sentence(machine.domain.name)}",
                verb="D&rop the Memory",
                parent=self._window,
            )
        )

    def look(self, machine: Machine, snapshot: str) -> None:
        """Make a machine that shows a snapshot, after a preview: its name is told there."""
        self._open(
            PlanDialog(
                self._planner(machine),
                Look(snapshot),
                title=f"Look at “{in_sentence(snapshot)}” of {in_sentence(machine.domain.name)} in a new machine",
                verb="&Make Machine",
                choices=[
                    Choice("Start it at once", is_ticked=False, apply=_started),
                    Choice(
                        "Connect its networks",
                        is_ticked=False,
                        apply=_connected,
                        explanation="Its guest believes that it is the machine that it is a picture of.",
                    ),
                ],
                parent=self._window,
            )
        )

    def describe(self, machine: Machine, intention: Describe) -> None:
        """Write a note, or set or take off a mark. Undo takes it back, so nothing is asked."""

        def planned(result: Plan | SnapTreeError) -> None:
            written = f"What you wrote:\n{intention.note}" if intention.note else ""
            if isinstance(result, SnapTreeError):
                self._show_error(SnapTreeError(result.summary, hint=result.hint, details=written or result.details))
            elif result.is_refused:
                refusal = result.refusals[0]
                self._show_error(SnapTreeError(refusal.reason, hint=refusal.remedy, details=written))
            elif result.steps:
                self._planner(machine).run(result)

        self._planner(machine).make(intention, planned)

    def rename(self, machine: Machine, snapshot: str) -> None:
        """Ask for another name."""
        RenameDialog(self._planner(machine), machine, snapshot, self._window).open()

    def compare(self, moments: Moments) -> None:
        """Show what was set otherwise. Changes nothing."""
        machine = self._estate.machine(moments.machine)
        if machine is not None:
            CompareDialog(self._estate[moments.machine.uri], machine.domain.name, moments, self._window).open()

    def unlook(self, machine: Machine) -> None:
        """Remove a machine that looks at a snapshot, after a preview: what was written in it is lost."""
        self._preview_removal(self._planner(machine), machine.domain.name)

    def _preview_removal(self, planner: Planner, name: str) -> None:
        title = f"Remove {in_sentence(name)}"
        self._open(PlanDialog(planner, Unlook(), title=title, verb="&Remove", parent=self._window))

    def undo(self, uri: str, operation: Operation) -> None:
        """Take a finished operation back: at once, but after a preview where something is gone for good then."""
        undo = operation.plan.undo
        if self._activity.under_way(uri, operation.plan.domain_uuid):
            return
        if operation.plan.group and self._undo_group(uri, operation):
            return
        if undo is not None and undo.removes is not None:
            names = (step.machine for step in operation.plan.steps if isinstance(step, MakeLook | StartLook))
            name = next(names, f"the machine that looks at {operation.plan.domain}")
            self._preview_removal(Planner(self._estate[uri], undo.removes, undoes=operation), name)
            return
        if undo is not None and undo.loses_something:
            which = " and ".join(f"“{in_sentence(name)}”" for name in undo.delete)
            title = f"Delete {which} of {in_sentence(operation.plan.domain)} again"
            self._preview_undo(uri, operation, undo, title, "&Delete")
            return

        def may_run(plan: Plan | SnapTreeError) -> bool:
            self._activity.planned(operation.id)
            if undo is None or isinstance(plan, SnapTreeError) or not (plan.is_refused or plan.loses_present_state):
                return True
            self._preview_undo(uri, operation, undo, f"Take back: {title_of(operation.plan)}", "&Take Back", plan)
            return False

        self._activity.undoing(operation)
        self._estate[uri].backend.undo(operation, may_run)

    def _preview_undo(
        self, uri: str, operation: Operation, undo: Undo, title: str, verb: str, plan: Plan | None = None
    ) -> None:
        planner = Planner(self._estate[uri], operation.plan.domain_uuid, undoes=operation)
        self._open(PlanDialog(planner, TakeBack(undo), title=title, verb=verb, plan=plan, parent=self._window))

    def recover(self, machine: Machine, *, leave: bool) -> None:
        """Finish what was interrupted, or leave it as it is, after a preview that says what that means."""
        name = in_sentence(machine.domain.name)
        self._open(
            PlanDialog(
                self._planner(machine),
                Recover(leave=leave),
                title=f"Leave {name} as it is" if leave else f"Finish what was interrupted on {name}",
                verb="&Leave as It Is" if leave else "&Finish",
                parent=self._window,
            )
        )

    def cure(self, uri: str, cure: Cure) -> None:
        """Show the plan for what cures a finding. A machine that is gone by now has none."""
        machine = self._estate.machine(MachineId(uri, cure.uuid))
        if machine is None:
            return
        match cure.intention:
            case Recover(leave=leave):
                self.recover(machine, leave=leave)
            case Delete(snapshots=snapshots):
                self.delete(machine, snapshots)
            case intention:
                title = f"Prune {in_sentence(machine.domain.name)}"
                planner = self._planner(machine)
                self._open(
                    PlanDialog(planner, intention, title=title, verb="&Prune", choices=[OWN_JOBS], parent=self._window)
                )

    def pause(self, uri: str, operation: Operation, pauses: bool) -> None:
        """Let work stand still between two steps, or go on."""
        backend = self._estate[uri].backend
        (backend.pause if pauses else backend.go_on)(operation.id)

    def limit(self, uri: str, operation: Operation, mebibytes: int) -> None:
        """Let work copy so many MiB per second at most; 0 lets it copy as fast as it can."""
        self._estate[uri].backend.limit(operation.id, mebibytes << 20 if mebibytes else None)

    def _preview_revert(self, machine: Machine, intention: Revert, plan: Plan | None = None) -> None:
        choices = [_safety_choice(is_ticked=intention.take_safety_snapshot)]
        if machine.domain.has_managed_save or (plan is not None and _saved(plan)):
            choices.append(
                Choice(
                    "Throw the managed save away first",
                    is_ticked=False,
                    apply=_without_managed_save,
                    explanation="What programs held in memory then, and had not written to disk, is lost for good.",
                )
            )
        self._open(
            PlanDialog(
                self._planner(machine),
                intention,
                title=f"Revert {in_sentence(machine.domain.name)} to “{in_sentence(intention.snapshot)}”",
                verb="&Revert",
                choices=choices,
                alternatives=_STATES_AFTER,
                plan=plan,
                why="" if plan is None or plan.is_refused else _changes_more(machine, plan),
                parent=self._window,
            )
        )

    def _planner(self, machine: Machine) -> Planner:
        return Planner(self._estate[machine.id.uri], machine.id.uuid)

    def _open(self, dialog: PlanDialog) -> None:
        dialog.open()

    def _show_error(self, error: SnapTreeError | None) -> None:
        if error is not None:
            show_error(error, self._window)


def _changes_more(machine: Machine, plan: Plan) -> str:
    """What a revert changes besides what the disks and the memory hold; empty if nothing."""
    now, (name,) = machine.domain.state, plan.snapshots
    then = DomainState.OFF if machine.tree is None or name not in machine.tree else machine.tree[name].state
    then = then if then.is_active else DomainState.OFF
    more = []
    if now.is_active and then is not now:
        vm = in_sentence(machine.domain.name)
        more.append(
            f"{vm} is {words.state(now)} now, and is {words.state(then)} afterwards unless you choose otherwise."
        )
    if plan.settings:
        more.append("Settings of the machine change back, too.")
    return " ".join(more)


def _started(intention: Intention, ticked: bool) -> Intention:
    assert isinstance(intention, Look)
    return replace(intention, start=ticked)


def _connected(intention: Intention, ticked: bool) -> Intention:
    assert isinstance(intention, Look)
    return replace(intention, connect_networks=ticked)


def _safety_choice(*, is_ticked: bool) -> Choice:
    return Choice("Take a safety snapshot of the present state first", is_ticked, _with_safety)


def _with_safety(intention: Intention, ticked: bool) -> Intention:
    assert isinstance(intention, Revert)
    return replace(intention, take_safety_snapshot=ticked)


def _without_managed_save(intention: Intention, ticked: bool) -> Intention:
    assert isinstance(intention, Revert)
    return replace(intention, drop_managed_save=ticked)


def _saved(plan: Plan) -> bool:
    """Whether a managed save stands in the way, as the host sees it by now."""
    return any("managed-save" in (refusal.rule, *refusal.remedy.split()) for refusal in plan.refusals)


def _ending(state: StateAfter) -> Callable[[Intention], Intention]:
    def end(intention: Intention) -> Intention:
        assert isinstance(intention, Revert)
        return replace(intention, state_after=state)

    return end


_STATES_AFTER = Alternatives(
    "The machine &afterwards:",
    {
        "As captured": _ending(StateAfter.AS_CAPTURED),
        "Running": _ending(StateAfter.RUNNING),
        "Paused": _ending(StateAfter.PAUSED),
        "Off": _ending(StateAfter.OFF),
    },
)


def _by_own_jobs(intention: Intention, ticked: bool) -> Intention:
    assert isinstance(intention, Delete | Prune)
    return replace(intention, by_own_jobs=ticked)


def _merges(plan: Plan) -> bool:
    """Whether layers are merged, or might be by other steps than those that are refused."""
    by_us = any(isinstance(step, MergeLayers) for step in plan.steps)
    by_libvirt = any(isinstance(step, DeleteSnapshot) and step.merges for step in plan.steps)
    return by_us or by_libvirt or (plan.is_refused and not plan.steps)


OWN_JOBS = Choice(
    "Merge so that it can be slowed down and stopped",
    is_ticked=False,
    apply=_by_own_jobs,
    explanation="What libvirt's own delete has begun to merge can't be stopped any more.",
    is_offered=_merges,
)


def _with_subtree(intention: Intention, ticked: bool) -> Intention:
    assert isinstance(intention, Delete)
    return replace(intention, subtree=ticked)


def _descendants(tree: SnapshotTree | None, names: tuple[str, ...]) -> list[str]:
    """What descends from these and is not among them."""
    if tree is None:
        return []
    below = {descendant for name in names if name in tree for descendant in tree.descendants(name)}
    return [name for name in tree.snapshots if name in below and name not in names]


def _marked(tree: SnapshotTree | None, names: tuple[str, ...]) -> tuple[str, ...]:
    """Those that somebody wants to be kept."""
    marks = {} if tree is None else {name: tree[name].annotations for name in names if name in tree}
    return tuple(name for name, each in marks.items() if each.pinned is not None or each.known_good is not None)
