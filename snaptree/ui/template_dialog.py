"""How new snapshots are named: the template, and what it would make of this moment."""

from __future__ import annotations

from typing import TYPE_CHECKING

from PySide6.QtCore import Qt
from PySide6.QtWidgets import QDialog, QDialogButtonBox, QLineEdit, QVBoxLayout, QWidget

from snaptree.plans.naming import DEFAULT_TEMPLATE, FIELDS, fill_template, template_problem
from snaptree.ui.labels import PlainLabel

if TYPE_CHECKING:
    from snaptree.plans.naming import NameFields


class TemplateDialog(QDialog):
    """Asks for a template. Deletes itself when closed."""

    def __init__(self, template: str, fields: NameFields, parent: QWidget) -> None:
        """`fields` are those of the example that is shown."""
        super().__init__(parent)
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self.setWindowTitle("Names of new snapshots")
        self._fields = fields
        self.template = QLineEdit(template, self)
        self.template.setAccessibleName("Template")
        self.template.setAccessibleDescription(_HELP)
        self.template.selectAll()
        self.template.textChanged.connect(self._changed)
        self.result_line = PlainLabel("", self)
        self.result_line.setMinimumHeight(self.fontMetrics().lineSpacing() * 2)
        standard = QDialogButtonBox.StandardButton
        buttons = QDialogButtonBox(standard.Ok | standard.Cancel | standard.RestoreDefaults, self)
        self.ok_button = buttons.button(standard.Ok)
        buttons.accepted.connect(self.accept)
        buttons.rejected.connect(self.reject)
        buttons.button(standard.RestoreDefaults).clicked.connect(self._restore)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(16, 16, 16, 12)
        layout.setSpacing(12)
        for widget in (PlainLabel(_HELP, self), self.template, self.result_line, buttons):
            layout.addWidget(widget)
        self._changed()

    def _restore(self) -> None:
        self.template.setText(DEFAULT_TEMPLATE)

    def _changed(self) -> None:
        template = self.template.text()
        problem = template_problem(template)
        self.result_line.set_text(problem or f"Now: {fill_template(template, self._fields)}")
        self.ok_button.setEnabled(not problem)


_HELP = f"New snapshots are named by this. Filled in: {', '.join(f'{{{field}}}' for field in FIELDS)}."
