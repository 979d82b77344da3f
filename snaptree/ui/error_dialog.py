"""The one place where errors become a dialog: what, why, what to do, and the raw words behind "Details"."""

from __future__ import annotations

from typing import TYPE_CHECKING

from PySide6.QtCore import Qt
from PySide6.QtWidgets import QMessageBox, QWidget

from snaptree.ui.text import lines

if TYPE_CHECKING:
    from snaptree.model.errors import SnapTreeError


def show_error(error: SnapTreeError, parent: QWidget | None, *, title: str = "SnapTree") -> QMessageBox:
    """Show an error without waiting for anybody to read it. The box deletes itself when closed."""
    box = QMessageBox(parent)
    box.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
    box.setWindowTitle(title)
    box.setIcon(QMessageBox.Icon.Warning)
    box.setTextFormat(Qt.TextFormat.PlainText)
    box.setText(lines(error.summary))
    box.setInformativeText(lines(error.hint))
    if error.details:
        box.setDetailedText(lines(error.details))
    box.open()
    return box
