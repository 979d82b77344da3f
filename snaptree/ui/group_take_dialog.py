"""Taking a snapshot of several machines together: which, its one name and note, and what it shall hold."""

from __future__ import annotations

from time import time
from typing import TYPE_CHECKING

from PySide6.QtCore import Qt, QTimer
from PySide6.QtWidgets import (
    QCheckBox,
    QComboBox,
    QDialog,
    QDialogButtonBox,
    QFormLayout,
    QLineEdit,
    QPlainTextEdit,
    QScrollArea,
    QSizePolicy,
    QVBoxLayout,
    QWidget,
)

from snaptree.model.errors import SnapTreeError
from snaptree.plans.intention import Capture, Take
from snaptree.plans.naming import DEFAULT_TEMPLATE, NameFields, name_problem, suggest_name
from snaptree.plans.plan import Freeze
from snaptree.ui.estate_model import natural
from snaptree.ui.labels import PlainLabel
from snaptree.ui.plan_view import PlanView
from snaptree.ui.planning import GroupPlanner
from snaptree.ui.text import menu_text, note_of

if TYPE_CHECKING:
    from snaptree.plans.group import GroupPlan
    from snaptree.ui.estate import HostEntry
    from snaptree.ui.machine import Machine

_REST_MS = 300
"""Plans are made when the fields have rested this long."""
_LISTED = 10
"""Machines that are seen at once."""
_HOLDS = {
    "Disks, file systems frozen where the guest agent can": (Capture.DISKS, Freeze.IF_POSSIBLE),
    "Disks, file systems frozen on every machine": (Capture.DISKS, Freeze.REQUIRED),
    "Disks only, as after a power cut": (Capture.DISKS, Freeze.NO),
    "Disks and memory, one machine after the other": (Capture.DISKS_AND_MEMORY, Freeze.NO),
}


class GroupTakeDialog(QDialog):
    """Asks what to take of which machines of a host, and shows the plans for it. Deletes itself when closed."""

    def __init__(self, host: HostEntry, machine: Machine, parent: QWidget | None = None) -> None:
        """`machine` is ticked already."""
        super().__init__(parent)
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self.setWindowTitle("Take a snapshot of several machines")
        self._host = host
        self._planner = GroupPlanner(host)
        self._plan: GroupPlan | None = None
        self._rest = QTimer(self, singleShot=True, interval=_REST_MS)
        self._rest.timeout.connect(self._make_plan)
        self._build(machine)
        self._changed()

    def _build(self, machine: Machine) -> None:
        heading = PlainLabel("Take a snapshot of several machines together", self)
        heading.setObjectName("heading")
        every = sorted(self._host.machines(), key=lambda each: natural(each.domain.name))
        self.machines: dict[str, QCheckBox] = {}
        """By UUID."""
        ticks = QWidget(self)
        column = QVBoxLayout(ticks)
        column.setContentsMargins(8, 4, 8, 4)
        column.setSpacing(2)
        for each in every:
            tick = QCheckBox(menu_text(each.domain.name), ticks)
            tick.setChecked(each.id == machine.id)
            tick.toggled.connect(self._changed)
            column.addWidget(tick)
            self.machines[each.id.uuid] = tick
        scroll = QScrollArea(self)
        scroll.setWidget(ticks)
        scroll.setWidgetResizable(True)
        scroll.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        row = ticks.sizeHint().height() // max(1, len(every)) + 2
        scroll.setFixedHeight(row * min(len(every), _LISTED) + 12)
        taken = {name for each in every if each.tree is not None for name in each.tree.snapshots}
        self.name = QLineEdit(suggest_name(DEFAULT_TEMPLATE, NameFields("group", int(time())), taken), self)
        self.name.textChanged.connect(self._changed)
        self.problem = PlainLabel("", self)
        self.problem.setObjectName("problem")
        self.note = QPlainTextEdit(self)
        self.note.setPlaceholderText("Why this snapshot? (optional)")
        self.note.setTabChangesFocus(True)
        self.note.setFixedHeight(self.fontMetrics().lineSpacing() * 2 + 14)
        self.note.textChanged.connect(self._changed)
        self.holds = QComboBox(self)
        self.holds.addItems(list(_HOLDS))
        self.holds.currentTextChanged.connect(self._changed)
        form = QFormLayout()
        form.setSpacing(8)
        form.addRow("Machines", scroll)
        form.addRow("&Name", self.name)
        form.addRow("", self.problem)
        form.addRow("N&ote", self.note)
        form.addRow("&Holds", self.holds)
        self._form = form
        self.view = PlanView(self)
        self.view.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Expanding)
        buttons = QDialogButtonBox(QDialogButtonBox.StandardButton.Cancel, self)
        self.take_button = buttons.addButton("&Take Snapshots", QDialogButtonBox.ButtonRole.AcceptRole)
        self.take_button.setDefault(True)
        buttons.accepted.connect(self.accept)
        buttons.rejected.connect(self.reject)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(16, 16, 16, 12)
        layout.setSpacing(12)
        layout.addWidget(heading)
        layout.addLayout(form)
        layout.addWidget(self.view, 1)
        layout.addWidget(buttons)
        self.resize(600, 640)

    def accept(self) -> None:
        """Run the plans that are shown."""
        if self._plan is not None and not self._plan.is_refused:
            self._planner.run(self._plan)
            super().accept()

    def done(self, result: int) -> None:
        """However it closes: plans that come later have nobody to show them to."""
        self._planner.forget()
        self._rest.stop()
        super().done(result)

    def ticked(self) -> tuple[str, ...]:
        """The machines to take, by UUID, in the order of the list."""
        return tuple(uuid for uuid, tick in self.machines.items() if tick.isChecked())

    def _changed(self) -> None:
        """Forget the plans, and make others when the fields have rested."""
        self._plan = None
        self._planner.forget()
        self.take_button.setEnabled(False)
        problem = name_problem(self.name.text().strip())
        if not problem and len(self.ticked()) < 2:
            problem = "Tick two machines at least."
        self.problem.set_text(problem)
        self._form.setRowVisible(self.problem, bool(problem))
        if problem:
            self._rest.stop()
            self.view.show_nothing()
        else:
            self._rest.start()

    def _make_plan(self) -> None:
        self.view.show_planning()
        capture, freeze = _HOLDS[self.holds.currentText()]
        intention = Take(self.name.text().strip(), note_of(self.note.toPlainText()), capture, quiesce=freeze)
        self._planner = GroupPlanner(self._host, self.ticked())
        self._planner.make(intention, self._plan_is_ready)

    def _plan_is_ready(self, result: GroupPlan | SnapTreeError) -> None:
        if isinstance(result, SnapTreeError):
            self.view.show_error(result)
            return
        self._plan = result
        self.view.show_plan(result)
        self.take_button.setEnabled(not result.is_refused)
