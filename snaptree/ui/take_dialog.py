"""Taking a snapshot: its name, a note, and what it shall hold, each choice with its consequence."""

from __future__ import annotations

from time import time
from typing import TYPE_CHECKING

from PySide6.QtCore import Qt, QTimer
from PySide6.QtWidgets import (
    QButtonGroup,
    QCheckBox,
    QDialog,
    QDialogButtonBox,
    QFormLayout,
    QHBoxLayout,
    QLineEdit,
    QPlainTextEdit,
    QRadioButton,
    QSizePolicy,
    QVBoxLayout,
    QWidget,
)

from snaptree.model.errors import SnapTreeError
from snaptree.model.estate import MemorySnapshot
from snaptree.plans.intention import Capture, Take
from snaptree.plans.naming import name_problem, suggest_name
from snaptree.plans.plan import Freeze, Plan, TakeSnapshot
from snaptree.plans.wording import quoted
from snaptree.ui.labels import PlainLabel
from snaptree.ui.plan_view import PlanView
from snaptree.ui.planning import Planner
from snaptree.ui.text import in_sentence, tooltip, window_title

if TYPE_CHECKING:
    from snaptree.ui.estate import HostEntry
    from snaptree.ui.machine import Machine

_REST_MS = 300
"""A plan is made when the fields have rested this long."""

_NOTE_LINES = 3

_CAPTURES = {
    Capture.DISKS_AND_MEMORY: (
        "Disks and &memory",
        "A revert goes on exactly where the machine is now. The memory is saved to a file, which takes a while.",
    ),
    Capture.DISKS: (
        "&Disks only",
        "Quick and small. If the machine runs, a revert is like switching it on after a power cut.",
    ),
    Capture.INTERNAL: (
        "&Inside the disk images",
        "No new files, and the memory too if it runs; the machine stands still while it is saved.",
    ),
}


class TakeDialog(QDialog):
    """Asks what to take and shows the plan for it at any time. Deletes itself when closed."""

    def __init__(self, host: HostEntry, machine: Machine, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self.setWindowTitle(window_title(f"Take a snapshot of {machine.domain.name}"))
        self._taken = frozenset(machine.tree.snapshots) if machine.tree is not None else frozenset[str]()
        self._planner = Planner(host, machine.id.uuid)
        self._probes: list[Planner] = []
        self._capture = Capture.BEST
        self._plan: Plan | None = None
        self._runs_when_ready = False
        self._rest = QTimer(self, singleShot=True, interval=_REST_MS)
        self._rest.timeout.connect(self._make_plan)
        self._build(f"Take a snapshot of {in_sentence(machine.domain.name)}")
        self._make_plan()
        for capture in _CAPTURES:
            self._probe(capture, host, machine.id.uuid)

    def _build(self, title: str) -> None:
        heading = PlainLabel(title, self)
        heading.setObjectName("heading")
        self.name = QLineEdit(suggest_name(self._taken, int(time())), self)
        self.name.selectAll()
        self.name.textChanged.connect(self._changed)
        self.name_problem = PlainLabel("", self)
        self.name_problem.setObjectName("problem")
        self.name_problem.hide()
        self.note = QPlainTextEdit(self)
        self.note.setPlaceholderText("Why this snapshot? (optional)")
        self.note.setTabChangesFocus(True)
        self.note.setFixedHeight(self.fontMetrics().lineSpacing() * _NOTE_LINES + 14)
        self.note.textChanged.connect(self._changed)
        form = QFormLayout()
        form.setSpacing(8)
        form.addRow("&Name", self.name)
        form.addRow("", self.name_problem)
        form.setRowVisible(self.name_problem, False)
        form.addRow("N&ote", self.note)
        self._form = form
        self.captures: dict[Capture, QRadioButton] = {}
        self._consequences: dict[Capture, PlainLabel] = {}
        group = QButtonGroup(self)
        choices = QVBoxLayout()
        choices.setSpacing(2)
        for capture, (text, consequence) in _CAPTURES.items():
            button = QRadioButton(text, self)
            button.toggled.connect(self._capture_toggled)
            button.setAccessibleDescription(consequence)
            group.addButton(button)
            label = PlainLabel(consequence, self, dim=True)
            label.setContentsMargins(24, 0, 0, 4)
            choices.addWidget(button)
            choices.addWidget(label)
            self.captures[capture] = button
            self._consequences[capture] = label
            if capture is Capture.DISKS:
                self.quiesce = QCheckBox("Let the guest agent &freeze the file systems meanwhile", self)
                self.quiesce.setToolTip(tooltip("Then a revert finds clean file systems. Needs a running guest agent."))
                self.gives_way = QCheckBox("Take it e&ven if they can't be frozen (crash-consistent)", self)
                self.gives_way.toggled.connect(self._changed)
                self.quiesce.toggled.connect(self._quiesce_toggled)
                choices.addLayout(_indented(self.quiesce))
                choices.addLayout(_indented(self.gives_way, 48))
            elif capture is Capture.DISKS_AND_MEMORY:
                self.live = QCheckBox("Let the &guest run on while it is saved", self)
                self.live.setToolTip(tooltip("It stands still only at the end, but the file may become larger."))
                self.live.toggled.connect(self._changed)
                choices.addLayout(_indented(self.live))
        self._show_options()
        form.addRow("Holds", choices)
        self.view = PlanView(self)
        self.view.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Expanding)
        buttons = QDialogButtonBox(QDialogButtonBox.StandardButton.Cancel, self)
        self.take_button = buttons.addButton("&Take Snapshot", QDialogButtonBox.ButtonRole.AcceptRole)
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
        self.resize(600, 620)

    def accept(self) -> None:
        """Run the plan; if the fields have just changed, as soon as there is one for them."""
        if self._plan is None:
            self._runs_when_ready = True
            if self._rest.isActive():
                self._make_plan()
        elif not self._plan.is_refused:
            self._planner.run(self._plan)
            super().accept()

    def done(self, result: int) -> None:
        """However it closes: plans that come later have nobody to show them to."""
        for planner in (self._planner, *self._probes):
            planner.forget()
        self._rest.stop()
        super().done(result)

    def _changed(self) -> None:
        """Forget the plan and make one when the fields have rested."""
        self._plan = None
        self._runs_when_ready = False
        problem = self._problem_with_name()
        self.name_problem.set_text(problem)
        self._form.setRowVisible(self.name_problem, bool(problem))
        self.take_button.setEnabled(not problem)
        if problem:
            self._rest.stop()
            self._planner.forget()
            self.view.show_nothing()
        else:
            self._rest.start()

    def _problem_with_name(self) -> str:
        name = self.name.text().strip()
        if name in self._taken:
            return f"There is a snapshot {quoted(name)} already."
        return name_problem(name, internal=self._capture is Capture.INTERNAL)

    def _capture_toggled(self, checked: bool) -> None:
        if not checked:
            return
        self._capture = next(capture for capture, button in self.captures.items() if button.isChecked())
        self._show_options()
        self._changed()

    def _quiesce_toggled(self) -> None:
        self._show_options()
        self._changed()

    def _show_options(self) -> None:
        """Only what belongs to the ticked choice can be ticked."""
        self.live.setEnabled(self._capture is Capture.DISKS_AND_MEMORY)
        self.quiesce.setEnabled(self._capture is Capture.DISKS)
        self.gives_way.setEnabled(self.quiesce.isEnabled() and self.quiesce.isChecked())

    def _freeze(self) -> Freeze:
        if not self.quiesce.isChecked():
            return Freeze.NO
        return Freeze.IF_POSSIBLE if self.gives_way.isChecked() else Freeze.REQUIRED

    def _intention(self, capture: Capture) -> Take:
        return Take(
            name=self.name.text().strip(),
            description=self.note.toPlainText().strip(),
            capture=capture,
            quiesce=self._freeze() if capture is Capture.DISKS else Freeze.NO,
            live=capture is Capture.DISKS_AND_MEMORY and self.live.isChecked(),
        )

    def _make_plan(self) -> None:
        self._rest.stop()
        self.view.show_planning()
        self._planner.make(self._intention(self._capture), self._plan_is_ready)

    def _plan_is_ready(self, result: Plan | SnapTreeError) -> None:
        if isinstance(result, SnapTreeError):
            self.view.show_error(result)
            self.take_button.setEnabled(False)
            return
        self._plan = result
        self.view.show_plan(result)
        self.take_button.setEnabled(not result.is_refused)
        if self._capture is Capture.BEST:
            self._tick_what_is_best(result)
        if self._runs_when_ready:
            self.accept()

    def _tick_what_is_best(self, plan: Plan) -> None:
        """The plan for "the best" says what that is here: tick it, for the plan is the same."""
        step = next((step for step in plan.steps if isinstance(step, TakeSnapshot)), None)
        if step is None:
            return
        if not step.overlays:
            self._capture = Capture.INTERNAL
        elif step.memory is MemorySnapshot.EXTERNAL:
            self._capture = Capture.DISKS_AND_MEMORY
        else:
            self._capture = Capture.DISKS
        button = self.captures[self._capture]
        button.blockSignals(True)
        button.setChecked(True)
        button.blockSignals(False)
        self._show_options()

    def _probe(self, capture: Capture, host: HostEntry, uuid: str) -> None:
        """Ask whether this choice would be refused, to grey it out with the reason."""

        def answer(result: Plan | SnapTreeError) -> None:
            if isinstance(result, Plan) and result.is_refused:
                refusal = result.refusals[0]
                self.captures[capture].setEnabled(False)
                self._consequences[capture].set_text(f"Not now: {refusal.reason} {refusal.remedy}".strip())

        planner = Planner(host, uuid)
        self._probes.append(planner)
        planner.make(self._intention(capture), answer)


def _indented(widget: QWidget, by: int = 24) -> QHBoxLayout:
    layout = QHBoxLayout()
    layout.setContentsMargins(by, 0, 0, 4)
    layout.addWidget(widget)
    return layout
