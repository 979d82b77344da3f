"""Taking a snapshot: its name, a note, and what it shall hold, each choice with its consequence and its costs."""

from __future__ import annotations

import getpass
from contextlib import suppress
from dataclasses import replace
from time import time
from typing import TYPE_CHECKING

from PySide6.QtCore import Qt, QTimer
from PySide6.QtWidgets import (
    QDialog,
    QDialogButtonBox,
    QFormLayout,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QPlainTextEdit,
    QPushButton,
    QSizePolicy,
    QVBoxLayout,
    QWidget,
)

from snaptree import words
from snaptree.model.errors import SnapTreeError
from snaptree.model.estate import DomainState
from snaptree.plans.intention import Take
from snaptree.plans.naming import NameFields, name_problem, suggest_name
from snaptree.plans.plan import Freeze, Plan
from snaptree.plans.wording import quoted
from snaptree.ui.labels import PlainLabel, SectionTitle
from snaptree.ui.plan_view import PlanView
from snaptree.ui.planning import Planner
from snaptree.ui.take_choices import Kind, TakeChoices, kind_of
from snaptree.ui.take_places import DiskRow, DiskTicks, Places
from snaptree.ui.template_dialog import TemplateDialog
from snaptree.ui.text import in_sentence, note_of, window_title

if TYPE_CHECKING:
    from collections.abc import Mapping

    from snaptree.ui.estate import HostEntry
    from snaptree.ui.machine import Machine
    from snaptree.ui.settings import Settings

_REST_MS = 300
"""A plan is made when the fields have rested this long."""

_NOTE_LINES = 2
_AROUND = 60
"""Pixels that a screen's panel and the dialog's frame take of its height."""


class TakeDialog(QDialog):
    """Asks what to take and shows the plan for it at any time. Deletes itself when closed.

    Every choice is planned, from one look at the machine: so each says what it costs, or why it can't be.
    """

    def __init__(self, host: HostEntry, machine: Machine, settings: Settings, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self.setWindowTitle(window_title(f"Take a snapshot of {machine.domain.name}"))
        self._machine = machine
        self._settings = settings
        self._taken = frozenset(machine.tree.snapshots) if machine.tree is not None else frozenset[str]()
        self._opened = int(time())
        self._planner = Planner(host, machine.id.uuid)
        self._plans: Mapping[Kind, Plan] | None = None
        """For what the fields say; None until they are made."""
        self._dirty_rate: int | None = None
        self._is_over = False
        self._rest = QTimer(self, singleShot=True, interval=_REST_MS)
        self._rest.timeout.connect(self._make_plans)
        self._build(f"Take a snapshot of {in_sentence(machine.domain.name)}")
        self._show_options()
        self._make_plans()
        if machine.domain.state is DomainState.RUNNING:
            host.backend.planner.measure_dirty_rate(machine.id.uuid, self._dirty_rate_is_known)

    def _build(self, title: str) -> None:
        heading = PlainLabel(title, self)
        heading.setObjectName("heading")
        self.name = QLineEdit(self)
        self.template_button = QPushButton("Tem&plate…", self)
        self.template_button.setAutoDefault(False)
        self.template_button.clicked.connect(self._ask_for_template)
        self.name_problem = PlainLabel("", self)
        self.name_problem.setObjectName("problem")
        self.name_problem.setMinimumHeight(self.fontMetrics().lineSpacing())  # so that nothing moves when there is one
        self.note = QPlainTextEdit(self)
        self.note.setPlaceholderText("Why this snapshot? (optional)")
        self.note.setTabChangesFocus(True)
        self.note.setFixedHeight(self.fontMetrics().lineSpacing() * _NOTE_LINES + 14)
        self.choices = TakeChoices(self, is_active=self._machine.domain.state.is_active)
        self.disks = DiskTicks(self)
        self._show_disks()
        host = self._machine.host.host
        self.places = Places(self, is_local=host is not None and host.is_local)
        self._suggested = self._suggestion(self._settings.name_template)
        self.name.setText(self._suggested)
        self.name.selectAll()
        for changed in (self.name.textChanged, self.note.textChanged, self.disks.changed, self.places.changed):
            changed.connect(self._changed)
        self.choices.chosen.connect(self._chosen)
        self.view = PlanView(self)
        self.view.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Expanding)
        buttons = QDialogButtonBox(QDialogButtonBox.StandardButton.Cancel, self)
        self.take_button = buttons.addButton("&Take Snapshot", QDialogButtonBox.ButtonRole.AcceptRole)
        self.take_button.setDefault(True)
        self.take_button.setEnabled(False)
        buttons.accepted.connect(self.accept)
        buttons.rejected.connect(self.reject)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(16, 16, 16, 12)
        layout.setSpacing(10)
        layout.addWidget(heading)
        layout.addLayout(self._form())
        layout.addLayout(self._columns())
        layout.addWidget(self.view, 1)
        layout.addWidget(buttons)
        self.setMinimumWidth(760)
        self.resize(940, min(840, self.screen().availableGeometry().height() - _AROUND))

    def _form(self) -> QFormLayout:
        name = QHBoxLayout()
        name.setSpacing(8)
        name.addWidget(self.name, 1)
        name.addWidget(self.template_button)
        form = QFormLayout()
        form.setSpacing(8)
        label = QLabel("&Name", self)
        label.setBuddy(self.name)
        form.addRow(label, name)
        form.addRow("", self.name_problem)
        form.addRow("N&ote", self.note)
        return form

    def _columns(self) -> QHBoxLayout:
        """What it holds, and beside it of which disks, and where."""
        left, right = QVBoxLayout(), QVBoxLayout()
        left.setSpacing(4)
        left.addWidget(SectionTitle("What it holds", self))
        left.addWidget(self.choices)
        right.setSpacing(8)
        right.addWidget(self.disks)
        right.addWidget(self.places)
        right.addStretch(1)
        columns = QHBoxLayout()
        columns.setSpacing(24)
        columns.addLayout(left, 3)
        columns.addLayout(right, 2)
        return columns

    def accept(self) -> None:
        """Run the plan that is shown. While there is none for what the fields say, nothing is taken."""
        plan = self._plan
        if plan is not None and not plan.is_refused:
            self._planner.run(plan)
            super().accept()

    def done(self, result: int) -> None:
        """However it closes: what comes later has nobody to show it to."""
        self._is_over = True
        self._planner.forget()
        self._rest.stop()
        super().done(result)

    @property
    def _plan(self) -> Plan | None:
        """That of what is ticked."""
        kind = self.choices.kind
        return None if self._plans is None or kind is None else self._plans[kind]

    # The name

    def _fields_of_name(self) -> NameFields:
        user = ""
        with suppress(OSError, KeyError):  # a user id without a name
            user = getpass.getuser()
        return NameFields(self._machine.domain.name, self._opened, user, self.choices.kind or "")

    def _suggestion(self, template: str) -> str:
        return suggest_name(template, self._fields_of_name(), self._taken)

    def _names_kind(self) -> bool:
        """Whether the name became another one because something is ticked now. Nobody wrote it, so nobody is told."""
        before = self.name.text()
        self.name.blockSignals(True)
        self._suggest_anew()
        self.name.blockSignals(False)
        return self.name.text() != before

    def _suggest_anew(self) -> None:
        """Fill the template once more, unless somebody wrote a name."""
        suggestion = self._suggestion(self._settings.name_template)
        if self.name.text() == self._suggested != suggestion:
            self._suggested = suggestion
            self.name.setText(suggestion)
            self.name.selectAll()  # whoever types has another in mind

    def _ask_for_template(self) -> None:
        dialog = TemplateDialog(self._settings.name_template, self._fields_of_name(), self)
        dialog.accepted.connect(lambda: self._use_template(dialog.template.text()))
        dialog.open()

    def _use_template(self, template: str) -> None:
        self._settings.name_template = template
        self._suggested = self._suggestion(template)
        self.name.setText(self._suggested)
        self.name.selectAll()

    def _problem_with_name(self) -> str:
        name = self.name.text().strip()
        if name in self._taken:
            return f"There is a snapshot {quoted(name)} already."
        return name_problem(name, internal=self.choices.kind is Kind.INTERNAL)

    # What changes

    def _changed(self) -> None:
        """Forget the plans and make new ones when the fields have rested."""
        self._plans = None
        self._planner.forget()  # what is still to come is for what they said before
        self.take_button.setEnabled(False)
        problem = self._problem_with_name()
        self.name_problem.set_text(problem)
        if problem:
            self._rest.stop()
            self.view.show_nothing()
        else:
            self._rest.start()

    def _chosen(self) -> None:
        self._show_options()
        self._suggest_anew()
        self._changed()

    def _show_options(self) -> None:
        """Only what belongs to the ticked choice can be changed."""
        kind = self.choices.kind
        self.disks.set_holds_all(kind is Kind.INTERNAL)
        self.places.set_fields(layers=kind is not Kind.INTERNAL, memory=kind in (Kind.MEMORY, Kind.LIVE))

    def _show_disks(self) -> None:
        costs = self._machine.costs
        if costs is not None:
            images = costs.layers.images
            active = [(chain.target, chain.layers[0]) for chain in costs.layers.chains if chain.layers]
            self.disks.show_disks(
                [
                    DiskRow(target, path, words.figure(images[path].allocated) if path in images else words.UNKNOWN)
                    for target, path in active
                ]
            )

    def _show_planned_disks(self, plan: Plan) -> None:
        """Before anything was measured, a plan knows them."""
        chains = plan.expected_chains.items()
        self.disks.show_disks([DiskRow(target, layers[0], words.UNKNOWN) for target, layers in chains if layers])

    # Planning

    def _intention(self, kind: Kind) -> Take:
        take = Take(self.name.text().strip(), note_of(self.note.toPlainText()), kind.capture, live=kind is Kind.LIVE)
        if kind is Kind.INTERNAL:
            return take
        if kind is Kind.FROZEN:
            gives_way = self.choices.gives_way.isChecked()
            take = replace(take, quiesce=Freeze.IF_POSSIBLE if gives_way else Freeze.REQUIRED)
        memory_in = self.places.memory.text().strip() if kind in (Kind.MEMORY, Kind.LIVE) else ""
        return replace(
            take,
            excluded_disks=self.disks.left_out,
            layers_in=self.places.layers.text().strip(),
            memory_in=memory_in if self._machine.domain.state.is_active else "",
        )

    def _make_plans(self) -> None:
        self._rest.stop()
        self.view.show_planning()
        self._ask()

    def _ask(self) -> None:
        best = Take(self.name.text().strip(), note_of(self.note.toPlainText()))
        self._planner.make_takes((*map(self._intention, Kind), best), self._plans_are_ready)

    def _plans_are_ready(self, result: tuple[Plan, ...] | SnapTreeError) -> None:
        if isinstance(result, SnapTreeError):
            self._plans = None
            self.view.show_error(result)
            self.take_button.setEnabled(False)
            return
        *plans, best = result
        self._plans = dict(zip(Kind, plans, strict=True))
        if self.choices.kind is None:
            self.choices.tick(kind_of(best) or Kind.DISKS)
            self._show_options()
            if self._names_kind():
                self._plans = None
                self._make_plans()
                return
        if not self.disks.ticks:
            self._show_planned_disks(best)
        self.choices.show_plans(self._plans, self._dirty_rate)
        plan = self._plan
        if plan is not None:
            self.view.show_plan(plan)
            self.take_button.setEnabled(not plan.is_refused)

    def _dirty_rate_is_known(self, rate: int) -> None:
        """Plans that are shown need it too; others will have it."""
        self._dirty_rate = rate
        if not self._is_over and self._plans is not None:
            self._ask()
