"""Renaming a snapshot: the new name, and why it may not be that one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from PySide6.QtCore import Qt
from PySide6.QtWidgets import QDialog, QDialogButtonBox, QLineEdit, QVBoxLayout, QWidget

from snaptree.model.errors import SnapTreeError
from snaptree.plans.intention import Rename
from snaptree.plans.naming import name_problem
from snaptree.plans.wording import quoted
from snaptree.ui.labels import PlainLabel
from snaptree.ui.text import in_sentence, window_title

if TYPE_CHECKING:
    from snaptree.plans.plan import Plan
    from snaptree.ui.machine import Machine
    from snaptree.ui.planning import Planner

_LETTERS = 40


class RenameDialog(QDialog):
    """Asks for a name; the rules have the last word about it. Deletes itself when closed."""

    def __init__(self, planner: Planner, machine: Machine, snapshot: str, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        title = f"Rename “{in_sentence(snapshot)}” of {in_sentence(machine.domain.name)}"
        self.setWindowTitle(window_title(title))
        self._planner = planner
        self._snapshot = snapshot
        self._taken = frozenset[str]() if machine.tree is None else frozenset(machine.tree.snapshots)
        heading = PlainLabel(title, self)
        heading.setObjectName("heading")
        self.name = QLineEdit(snapshot, self)
        self.name.setAccessibleName("New name")
        self.name.setMinimumWidth(self.fontMetrics().averageCharWidth() * _LETTERS)
        self.name.selectAll()
        self.name.textChanged.connect(self._changed)
        self.problem = PlainLabel("", self, dim=True)
        self.problem.setMinimumHeight(self.fontMetrics().lineSpacing() * 2)
        buttons = QDialogButtonBox(QDialogButtonBox.StandardButton.Cancel, self)
        self.run_button = buttons.addButton("&Rename", QDialogButtonBox.ButtonRole.AcceptRole)
        self.run_button.setDefault(True)
        self.run_button.setEnabled(False)
        buttons.accepted.connect(self._rename)
        buttons.rejected.connect(self.reject)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(16, 16, 16, 12)
        layout.setSpacing(12)
        for widget in (heading, self.name, self.problem, buttons):
            layout.addWidget(widget)
        self._changed()

    def done(self, result: int) -> None:
        """No answer is waited for any more."""
        self._planner.forget()
        super().done(result)

    def _changed(self) -> None:
        name = self.name.text()
        problem = "" if name == self._snapshot else self._problem_of(name)
        final = name_problem(self._snapshot)
        self.problem.set_text(problem or (f"The old name does not come back by Undo. {final}" if final else ""))
        self.run_button.setEnabled(name != self._snapshot and not problem)

    def _problem_of(self, name: str) -> str:
        return f"There is a snapshot named {quoted(name)} already." if name in self._taken else name_problem(name)

    def _rename(self) -> None:
        self.run_button.setEnabled(False)
        self._planner.make(Rename(self._snapshot, self.name.text()), self._planned)

    def _planned(self, plan: Plan | SnapTreeError) -> None:
        if isinstance(plan, SnapTreeError):
            self.problem.set_text(str(plan))
        elif plan.is_refused:
            refusal = plan.refusals[0]
            self.problem.set_text(f"{refusal.reason} {refusal.remedy}".strip())
        else:
            self._planner.run(plan)
            self.accept()
