"""Adding a host by its address."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from PySide6.QtCore import Qt, Signal
from PySide6.QtWidgets import (
    QCheckBox,
    QComboBox,
    QDialog,
    QDialogButtonBox,
    QFormLayout,
    QVBoxLayout,
    QWidget,
)

from snaptree.ui.labels import PlainLabel
from snaptree.ui.settings import HostRequest
from snaptree.ui.text import tooltip

if TYPE_CHECKING:
    from collections.abc import Collection

EXAMPLES = (
    "qemu:///system",
    "qemu:///session",
    "qemu+ssh://root@kvm-01/system",
    "qemu+tls://kvm-01.example.org/system",
)


def address_problem(uri: str, known: Collection[str]) -> str:
    """Why this can't be a new host's address; empty if it can."""
    if not uri:
        return "Enter the host's libvirt address."
    if uri in known:
        return "This host is in the list already."
    try:
        parts = urlsplit(uri)
    except ValueError as error:
        return f"This is no address: {error}."
    if not parts.scheme or "://" not in uri:
        return "An address begins with a driver, such as qemu:///system or qemu+ssh://root@host/system."
    if any(character.isspace() for character in uri):
        return "An address has no spaces; write %20 for one."
    return ""


class ConnectDialog(QDialog):
    """Asks for an address. Deletes itself when closed."""

    chosen = Signal(object)
    """The HostRequest."""

    def __init__(self, known: Collection[str], parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self.setWindowTitle("Add a host")
        self._known = known
        self.address = QComboBox(self)
        self.address.setEditable(True)
        self.address.setInsertPolicy(QComboBox.InsertPolicy.NoInsert)
        self.address.addItems([uri for uri in EXAMPLES if uri not in known])
        self.address.setCurrentIndex(0)
        self.address.setMinimumContentsLength(36)
        self.address.currentTextChanged.connect(self._check)
        self.problem = PlainLabel("", self)
        self.problem.setObjectName("problem")
        self.read_only = QCheckBox("&Look only (read-only connection)", self)
        self.read_only.setToolTip(tooltip("Nothing can be changed over it, by you or by mistake."))
        hint = PlainLabel(
            "This computer's machines are at qemu:///system. Hosts with SSH access are at "
            "qemu+ssh://USER@HOST/system and need nothing else there than libvirt.\n\n"
            "SnapTree remembers the host for every start that names none (no --connect, no --demo).",
            self,
            dim=True,
        )
        buttons = QDialogButtonBox(QDialogButtonBox.StandardButton.Cancel, self)
        self.connect_button = buttons.addButton("&Connect", QDialogButtonBox.ButtonRole.AcceptRole)
        self.connect_button.setDefault(True)
        buttons.accepted.connect(self.accept)
        buttons.rejected.connect(self.reject)
        form = QFormLayout()
        form.setSpacing(8)
        form.addRow("&Address", self.address)
        form.addRow("", self.problem)
        self._form = form
        form.addRow("", self.read_only)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(16, 16, 16, 12)
        layout.setSpacing(12)
        layout.addWidget(hint)
        layout.addLayout(form)
        layout.addStretch(1)
        layout.addWidget(buttons)
        self._check()
        width = self.sizeHint().width()
        self.resize(width, layout.heightForWidth(width))
        line = self.address.lineEdit()
        if line is not None:
            line.selectAll()

    def accept(self) -> None:
        """Hand out the address."""
        uri = self.address.currentText().strip()
        if not address_problem(uri, self._known):
            self.chosen.emit(HostRequest(uri, self.read_only.isChecked()))
            super().accept()

    def _check(self) -> None:
        problem = address_problem(self.address.currentText().strip(), self._known)
        self.problem.set_text(problem)
        self._form.setRowVisible(self.problem, bool(problem))
        self.connect_button.setEnabled(not problem)
        layout = self.layout()
        if layout is not None and self.height() < layout.heightForWidth(self.width()):
            self.resize(self.width(), layout.heightForWidth(self.width()))
