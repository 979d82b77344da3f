"""Pruning: a policy on the left, what becomes of each snapshot on the right, and what that comes to below."""

from __future__ import annotations

import datetime as dt
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from PySide6.QtCore import QPoint, Qt, QTime
from PySide6.QtGui import QAction
from PySide6.QtWidgets import (
    QCheckBox,
    QDialog,
    QDialogButtonBox,
    QHBoxLayout,
    QMenu,
    QPushButton,
    QSpinBox,
    QSplitter,
    QTimeEdit,
    QVBoxLayout,
    QWidget,
)

from snaptree import words
from snaptree.jobs.prune_preview import Known, PrunePreview, WorkedOut
from snaptree.model.merging import LayerTree
from snaptree.plans.hours import Hours
from snaptree.plans.intention import Prune
from snaptree.plans.prune import forecast_of, hint_of_by_hand
from snaptree.plans.situation import glance
from snaptree.plans.totals import totals_in_turn
from snaptree.plans.wording import plain
from snaptree.ui.estate_model import natural
from snaptree.ui.labels import ElidedLabel, PlainLabel
from snaptree.ui.plan_dialog import PlanDialog
from snaptree.ui.planning import STAYS_OPEN, PrunePlanner
from snaptree.ui.policy_form import BY_ANYBODY, PolicyForm
from snaptree.ui.prune_machines import Outcome, PruneMachines
from snaptree.ui.prune_view import BY_HAND, PruneView
from snaptree.ui.text import in_sentence, tooltip, window_title

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from snaptree.plans.plan import Finding, Plan
    from snaptree.plans.policy_file import NamedPolicy
    from snaptree.plans.prune import Pruning
    from snaptree.plans.totals import Totals
    from snaptree.ui.estate import HostEntry
    from snaptree.ui.machine import Machine, MachineId

_MIB: Final = 1 << 20
_FRAME: Final = 40
"""What the frame of a window takes, about."""
_LINES_SHOWN: Final = 3
"""Of each kind, below the sums."""
_ROWS_OF_MACHINES: Final = 4
"""Machines that are seen at once, beside the tree."""


class PruneDialog(QDialog):
    """Asks what to keep, and shows at once what goes. Nothing is done before the plans were seen. Deletes itself."""

    def __init__(self, host: HostEntry, machine: Machine, parent: QWidget | None = None) -> None:
        """`machine` is ticked already; the others of its host can be."""
        super().__init__(parent)
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self.setWindowTitle(window_title("Prune snapshots"))
        self._host = host
        self._kept: dict[str, set[str]] = {}
        """By UUID, what is kept by hand."""
        self._prunings: dict[str, Pruning] = {}
        self._answered = 0
        """The number of the question to which the answer is shown."""
        self._refusals: dict[str, Finding] = {}
        """By UUID, why nothing goes of a machine, as far as that is known."""
        self._refused: dict[str, tuple[Machine, tuple[str, ...], Finding]] = {}
        """By UUID, what a plan said so of, and why: it holds as long as that is still so."""
        self._known: dict[str, tuple[Machine, Known]] = {}
        """What is known of each, put in order once."""
        self._preview = PrunePreview(self)
        self._preview.worked_out.connect(self._show)
        self._build(machine)
        self._preview.policies_read.connect(self.form.show_file)
        self.form.changed.connect(self._ask)
        self.form.file_chosen.connect(self._tick_those_of)
        self.machines.ticks_changed.connect(self._ask)
        self.machines.chosen.connect(self._show_tree)
        self.tree.keep_wanted.connect(self._keep)
        self.tree.menu_wanted.connect(self._menu)
        self.tree.selection_changed.connect(self._offer_to_keep)
        host.machine_changed.connect(self._machine_changed)
        self._preview.read_policies()
        self._show_tree()
        self._ask()

    def _build(self, machine: Machine) -> None:
        heading = PlainLabel("Prune: what the policy does not keep goes", self)
        heading.setObjectName("heading")
        self.form = PolicyForm(self)
        every = sorted(self._host.machines(), key=lambda each: (each.id != machine.id, natural(each.domain.name)))
        self.machines = PruneMachines(every, machine.id.uuid, self)
        self.all = QPushButton("Tick &All Machines", self)
        self.all.setAutoDefault(False)
        self.all.setVisible(len(every) > 1)
        self.all.clicked.connect(lambda: self.machines.tick(self.machines.everyone()))
        self.shown = ElidedLabel("", self)
        self.shown.setObjectName("heading")
        self.tree = PruneView(self)
        self.keep = QPushButton("&Keep by Hand", self)
        self.keep.setAutoDefault(False)
        self.keep.setCheckable(True)
        self.keep.setToolTip(tooltip("Keep the selected snapshots whatever the policy says (Space)."))
        self.keep.clicked.connect(lambda: self._keep(self.tree.selected_names()))
        above = QHBoxLayout()
        above.addWidget(self.shown, 1)
        above.addWidget(self.keep)
        above.addWidget(self.all)
        below = QWidget(self)
        lower = QVBoxLayout(below)
        lower.setContentsMargins(0, 6, 0, 0)
        lower.setSpacing(6)
        lower.addLayout(above)
        lower.addWidget(self.tree, 1)
        right, columns = _splitter(Qt.Orientation.Vertical, self), _splitter(Qt.Orientation.Horizontal, self)
        right.addWidget(self.machines)
        right.addWidget(below)
        right.setStretchFactor(1, 1)
        row = self.machines.verticalHeader().defaultSectionSize()
        self.machines.setMinimumHeight(3 * row)
        self.tree.setMinimumHeight(3 * row)
        right.setSizes([row * (min(len(every), _ROWS_OF_MACHINES) + 1) + 8, 4000])
        columns.addWidget(self.form)
        columns.addWidget(right)
        columns.setStretchFactor(1, 1)
        columns.setSizes([self.form.wanted_width, 4000])
        self.sums = PlainLabel("", self)
        self.short = PlainLabel("", self)
        self.short.setObjectName("problem")
        self.remarks = PlainLabel("", self, dim=True)
        buttons = QDialogButtonBox(QDialogButtonBox.StandardButton.Cancel, self)
        self.prune_button = buttons.addButton("&Prune…", QDialogButtonBox.ButtonRole.AcceptRole)
        self.prune_button.setEnabled(False)
        buttons.accepted.connect(self._preview_plans)
        buttons.rejected.connect(self.reject)
        last = QHBoxLayout()
        last.setSpacing(6)
        for widget in self._how():
            last.addWidget(widget)
        last.addStretch(1)
        last.addWidget(buttons)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(16, 16, 16, 12)
        layout.setSpacing(10)
        layout.addWidget(heading)
        layout.addWidget(columns, 1)
        layout.addWidget(self.sums)
        layout.addWidget(self.short)
        layout.addWidget(self.remarks)
        layout.addLayout(last)
        layout.addWidget(self.stays_open)
        room = self.screen().availableSize()
        self.resize(min(1120, room.width() - _FRAME), min(700, room.height() - _FRAME))

    def _how(self) -> list[QWidget]:
        """The fields that say how fast, and when."""
        self.limit = QSpinBox(self)
        self.limit.setRange(0, 99_999)
        self.limit.setSuffix(" MiB/s")
        self.limit.setSpecialValueText("No limit")
        self.limit.setAccessibleName("Most to copy per second")
        self.limit.valueChanged.connect(self._show_costs)
        self.limit.setToolTip(tooltip("How much is copied per second at most. It can be changed while it runs."))
        self.between = QCheckBox("&Only between", self)
        self.between.setToolTip(tooltip("Wait for these hours of the day, and stop when they are over."))
        self.begin, self.end = QTimeEdit(QTime(22, 0), self), QTimeEdit(QTime(6, 0), self)
        for edit, name in ((self.begin, "From"), (self.end, "To")):
            edit.setDisplayFormat("HH:mm")
            edit.setAccessibleName(name)
            edit.setEnabled(False)
            edit.timeChanged.connect(self._offer)
            self.between.toggled.connect(edit.setEnabled)
        self.between.toggled.connect(self._offer)
        self.stays_open = PlainLabel(STAYS_OPEN, self, dim=True)
        self.stays_open.hide()
        self.between.toggled.connect(self.stays_open.setVisible)
        return [self.limit, self.between, self.begin, PlainLabel("and", self), self.end]

    def done(self, result: int) -> None:
        """However it closes: nothing is worked out any more."""
        self._preview.close()
        super().done(result)

    # What is asked, and what comes of it

    @property
    def is_up_to_date(self) -> bool:
        """Whether what is shown is what the fields said last."""
        return self._answered == self._preview.asked

    def hours(self) -> Hours | None:
        """The hours in which it may be done; None for any."""
        begin, end = (dt.time(edit.time().hour(), edit.time().minute()) for edit in (self.begin, self.end))
        return Hours(begin, end) if self.between.isChecked() and begin != end else None

    def _ask(self) -> None:
        """Have it worked out anew; what is shown stays until then."""
        policy = self.form.policy()
        self._offer()
        if policy is None:
            return
        machines: dict[str, tuple[Known, dict[str, str]]] = {}
        for uuid in self.machines.ticked():
            known = self._known_of(uuid)
            if known is not None:
                machines[uuid] = known, dict.fromkeys(self._kept.get(uuid, ()), BY_HAND)
        self._preview.ask(policy, machines)

    def _known_of(self, uuid: str) -> Known | None:
        """A machine as it is known now; None if its tree was not read to the end."""
        machine = self._host.machine(uuid)
        if machine is None or machine.reading is None or not machine.reading.complete or machine.costs is None:
            return None
        if (host := machine.host.host) is None:
            return None
        known = self._known.get(uuid)
        if known is None or known[0] is not machine:
            tree, layers, elsewhere = machine.reading.tree, machine.costs.layers, machine.costs.elsewhere
            seen = glance(host, machine.domain, tree, layers, machine.unfinished, elsewhere)
            layer_tree = LayerTree(tree, layers, elsewhere, of_no_use=machine.of_no_use)
            known = self._known[uuid] = machine, Known(seen, layer_tree)
        return known[1]

    def _show(self, found: WorkedOut) -> None:
        self._answered = found.number
        self._prunings, self._refusals = dict(found.prunings), dict(found.refusals)
        self._show_tree()
        self._show_costs()
        self._offer()

    def _show_costs(self) -> None:
        """Of each machine, and of all."""
        self.machines.show_outcomes(self._outcomes())
        self._show_sums()

    def _outcomes(self) -> dict[str, Outcome]:
        outcomes, limit = {}, self._most_per_second()
        for uuid, pruning in self._prunings.items():
            machine = self._host.machine(uuid)
            if machine is not None and machine.costs is not None:
                forecast = forecast_of(pruning, machine.costs.speed).at(limit)
                outcomes[uuid] = Outcome(pruning, forecast, self._why_left_out(uuid, pruning))
        return outcomes

    def _why_left_out(self, uuid: str, pruning: Pruning) -> Finding | None:
        """Why nothing of a machine goes that should; None if nothing is known to be in the way."""
        if (told := self._refused.get(uuid)) and told[:2] == (self._host.machine(uuid), pruning.goes):
            return told[2]
        return self._refusals.get(uuid)

    def _show_tree(self, _uuid: str = "") -> None:
        uuid = self.machines.shown
        machine, pruning = self._host.machine(uuid), self._prunings.get(uuid)
        self.shown.set_text("" if machine is None else machine.domain.name)
        self.tree.show_preview(machine, MappingProxyType({}) if pruning is None else pruning.decisions)
        self._offer_to_keep()

    def _show_sums(self) -> None:
        """Say what all of it comes to, and what it does not come to."""
        found = {uuid: outcome for uuid, outcome in self._outcomes().items() if not outcome.left_out}
        going = self._going()
        totals = totals_in_turn((name, outcome.forecast) for name, outcome in going)
        every = sum(len(outcome.pruning.decisions) for outcome in found.values())
        self.sums.set_text(self._in_all(going, totals, every) if going else self._nothing_goes(every))
        problems = [*_few([*self._left_out()]), *_few([*self._short(found)])]
        for label, lines in ((self.short, problems), (self.remarks, [*_few(totals.unknown), *self._hint(found)])):
            label.set_text("\n".join(lines))
            label.setVisible(bool(lines))

    def _going(self) -> list[tuple[str, Outcome]]:
        """The machines of which something goes, by name, so far as is known here."""
        return [
            (self._name(uuid), outcome)
            for uuid, outcome in self._outcomes().items()
            if outcome.pruning.goes and not outcome.left_out
        ]

    def _left_out(self) -> Iterator[str]:
        """Which of the machines that are ticked are not pruned, and why."""
        outcomes = self._outcomes()
        for uuid in self.machines.ticked():
            if uuid in outcomes and (why := outcomes[uuid].left_out):
                yield f"{self._name(uuid)} is left out: {why.reason}"
            elif uuid not in outcomes and self.is_up_to_date:
                yield f"{self._name(uuid)} is not counted: its snapshots, or what is in its images, were not read yet."

    def _short(self, found: Mapping[str, Outcome]) -> Iterator[str]:
        """Which limits are not met."""
        for uuid, outcome in found.items():
            if outcome.pruning.falls_short:
                yield f"{self._name(uuid)}: {outcome.pruning.falls_short}"

    def _hint(self, found: Mapping[str, Outcome]) -> list[str]:
        """What the policy does not look at, though it may be meant."""
        policy = self.form.policy()
        prunings = (outcome.pruning for outcome in found.values())
        hint = "" if policy is None else hint_of_by_hand(policy.scope, prunings, f"choose “{BY_ANYBODY}”")
        return [hint] if hint else []

    def _most_per_second(self) -> int | None:
        """Bytes to be copied; None for no limit."""
        return self.limit.value() * _MIB or None

    def _in_all(self, going: Sequence[tuple[str, Outcome]], totals: Totals, every: int) -> str:
        count = sum(len(outcome.pruning.goes) for _, outcome in going)
        where = f" on {words.count(len(going), 'machine')}" if len(self.machines.ticked()) > 1 else ""
        verb = "goes" if count == 1 else "go"
        says = ", ".join(words.totals(totals))
        return f"In all, {count:,} of {words.count(every, 'snapshot')}{where} {verb}: {says}."

    def _nothing_goes(self, every: int) -> str:
        policy = self.form.policy()
        if not self.machines.ticked():
            return "Nothing goes: no machine is ticked."
        if any(outcome.left_out for outcome in self._outcomes().values()):
            return "Nothing goes: what could go is of machines that are left out."
        if not every:
            return "Nothing goes: there are no snapshots."
        if policy is not None and not policy.lets_go:
            return "Nothing goes: the policy does not say what to keep. With no rule, all is kept."
        return f"Nothing goes: all {words.count(every, 'snapshot')} are kept."

    def _name(self, uuid: str) -> str:
        machine = self._host.machine(uuid)
        return uuid if machine is None else plain(machine.domain.name)

    def _machine_changed(self, machine_id: MachineId) -> None:
        """More is known of a machine: its tree, or what is in its images."""
        if machine_id.uuid == self.machines.shown:
            self._show_tree()
        if machine_id.uuid in self.machines.ticked():
            self._ask()

    def _tick_those_of(self, named: NamedPolicy) -> None:
        """A policy that is for some machines only is for those."""
        if named.machines:
            known = self._host.machines()
            self.machines.tick(machine.id.uuid for machine in known if named.is_for(machine.domain.name))

    # Keeping by hand

    def _keep(self, names: tuple[str, ...]) -> None:
        """Keep these whatever the policy says; if all of them are kept so already, leave them to it again."""
        kept = self._kept.setdefault(self.machines.shown, set())
        if kept.issuperset(names):
            kept.difference_update(names)
        else:
            kept.update(names)
        self._offer_to_keep()
        self._ask()

    def _offer_to_keep(self) -> None:
        names = self.tree.selected_names()
        self.keep.setEnabled(bool(names))
        self.keep.setChecked(bool(names) and self._kept.get(self.machines.shown, set()).issuperset(names))

    def _menu(self, place: QPoint) -> None:
        menu = QMenu(self)
        menu.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        action = QAction(self.keep.text(), menu)
        action.setCheckable(True)
        action.setChecked(self.keep.isChecked())
        action.setEnabled(self.keep.isEnabled())
        action.triggered.connect(self.keep.click)
        menu.addAction(action)
        menu.popup(place)

    # Doing it

    def _offer(self) -> None:
        """Let it be planned if the fields can be used, and anything went by what they said last."""
        goes = any(pruning.goes for pruning in self._prunings.values())
        has_hours = not self.between.isChecked() or self.begin.time() != self.end.time()
        self.prune_button.setEnabled(goes and has_hours and not self.form.problem.text())

    def _preview_plans(self) -> None:
        """Show the plans; the sheet stays until they are run."""
        policy = self.form.policy()
        if policy is None:
            return
        limit, between = self._most_per_second(), self.hours()
        wanted = {
            uuid: Prune(
                policy,
                MappingProxyType(dict.fromkeys(self._kept.get(uuid, ()), BY_HAND)),
                # What libvirt merges itself can be neither slowed down nor stopped.
                by_own_jobs=limit is not None or between is not None,
                limit=limit,
            )
            for uuid in self.machines.ticked()
        }
        which = [name for name, _ in self._going()] or [self._name(uuid) for uuid in wanted]
        planner = PrunePlanner(self._host, wanted, limit=limit, between=between)
        title = f"Prune {in_sentence(which[0])}" if len(which) == 1 else f"Prune {words.count(len(which), 'machine')}"
        dialog = PlanDialog(
            planner,
            next(iter(wanted.values())),
            title=title,
            verb="&Prune",
            parent=self,
        )
        dialog.accepted.connect(self.accept)
        dialog.rejected.connect(lambda: self._learn(planner.refused()))
        dialog.open()

    def _learn(self, refused: Sequence[Plan]) -> None:
        """A plan knows more than the window: what it refuses is left out of the sums from now on."""
        for plan in refused:
            if (machine := self._host.machine(plan.domain_uuid)) is not None:
                self._refused[plan.domain_uuid] = machine, plan.snapshots, plan.refusals[0]
        self._show_costs()


def _few(lines: Sequence[str]) -> list[str]:
    """No more lines than there is room for."""
    more = len(lines) - _LINES_SHOWN
    return [*lines[:_LINES_SHOWN], *([f"and {more:,} more like these"] if more > 0 else [])]


def _splitter(direction: Qt.Orientation, parent: QWidget) -> QSplitter:
    """Room between parts that can be moved."""
    splitter = QSplitter(direction, parent)
    splitter.setObjectName("bare")
    splitter.setHandleWidth(9)
    splitter.setChildrenCollapsible(False)
    return splitter
