"""What a host wants to know before it lets us in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from PySide6.QtCore import Qt
from PySide6.QtWidgets import QDialog, QDialogButtonBox, QFormLayout, QLineEdit, QVBoxLayout, QWidget

from snaptree.plans.wording import plain
from snaptree.ui.labels import PlainLabel
from snaptree.ui.text import in_sentence, menu_text

if TYPE_CHECKING:
    from snaptree.jobs.host_backend import CredentialsRequest


class CredentialsDialog(QDialog):
    """Asks the questions of one request and answers it, whatever way it is closed. Deletes itself then."""

    def __init__(self, request: CredentialsRequest, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self.setWindowTitle("Log in")
        self._request = request
        heading = PlainLabel(f"{in_sentence(request.uri)} asks who you are.", self)
        heading.setObjectName("heading")
        form = QFormLayout()
        form.setSpacing(8)
        self.fields: list[QLineEdit] = []
        for question in request.questions:
            field = QLineEdit(question.default, self)
            if question.is_secret:
                field.setEchoMode(QLineEdit.EchoMode.Password)
            field.setMinimumWidth(260)
            prompt = menu_text(question.prompt).rstrip(": ")
            form.addRow(prompt, field)
            field.setAccessibleName(plain(question.prompt))
            self.fields.append(field)
        note = PlainLabel("The answers are kept in memory until SnapTree ends, to reconnect by itself.", self, dim=True)
        buttons = QDialogButtonBox(QDialogButtonBox.StandardButton.Cancel, self)
        buttons.addButton("&Log In", QDialogButtonBox.ButtonRole.AcceptRole).setDefault(True)
        buttons.accepted.connect(self.accept)
        buttons.rejected.connect(self.reject)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(16, 16, 16, 12)
        layout.setSpacing(12)
        layout.addWidget(heading)
        layout.addLayout(form)
        layout.addWidget(note)
        layout.addWidget(buttons)

    def done(self, result: int) -> None:
        """Answer, or give up."""
        is_accepted = result == QDialog.DialogCode.Accepted
        self._request.answer([field.text() for field in self.fields] if is_accepted else None)
        super().done(result)
