"""The note of a snapshot in the inspector: shown whole, and written there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from PySide6.QtCore import QEvent, QSize, Qt, Signal
from PySide6.QtWidgets import QPlainTextEdit, QSizePolicy, QWidget

from snaptree.ui.text import tooltip

if TYPE_CHECKING:
    from PySide6.QtGui import QFocusEvent, QKeyEvent, QResizeEvent

    from snaptree.ui.machine import MachineId

_MOST_LINES = 8
_EDGE = 10
"""What the frame and the document's margins take, above and below."""


class NoteField(QPlainTextEdit):
    """As high as its text, within reason. Leaving it, or Ctrl+Enter, tells what was written; Esc takes that back.

    What is being written stays, whatever is read of the snapshot meanwhile.
    """

    written = Signal(object, str, str)
    """MachineId, snapshot, and the note that the user wrote on it."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._about: tuple[MachineId, str] | None = None
        self._note = ""
        self._told: str | None = None
        """What the note was when another was written: readings may say so a little longer."""
        self.setObjectName("note")
        self.setAccessibleName("Note")
        self.setTabChangesFocus(True)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setVerticalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAsNeeded)
        self.textChanged.connect(self.updateGeometry)

    def show_note(self, about: tuple[MachineId, str] | None, note: str, why_not: str = "") -> None:
        """Show the note of a snapshot; `why_not` says why it can't be changed now."""
        if about != self._about:
            self._tell()
            self._about = about
            self._told = None
        elif self.is_changed or note == self._told:
            return
        self._note, self._told = note, None
        if note != self.toPlainText():
            self.setPlainText(note)
        self.setReadOnly(bool(why_not))
        self.setPlaceholderText("" if why_not else "No note yet. F2 or a click here writes one.")
        self.setToolTip(tooltip(why_not))

    @property
    def is_changed(self) -> bool:
        """Whether somebody is writing something else than what is known."""
        return not self.isReadOnly() and self.toPlainText() != self._note

    def sizeHint(self) -> QSize:
        """Room for all lines, up to some."""
        lines = min(max(1, round(self.document().size().height())), _MOST_LINES)
        return QSize(super().sizeHint().width(), lines * self.fontMetrics().lineSpacing() + 2 * _EDGE)

    def minimumSizeHint(self) -> QSize:
        """It scrolls."""
        return QSize(0, self.sizeHint().height())

    def resizeEvent(self, event: QResizeEvent) -> None:
        """Lines break elsewhere."""
        super().resizeEvent(event)
        self.updateGeometry()

    def keyPressEvent(self, event: QKeyEvent) -> None:
        """Ctrl+Enter writes, Esc does not."""
        is_enter = event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter)
        if is_enter and event.modifiers() & Qt.KeyboardModifier.ControlModifier:
            self._tell()
        elif event.key() == Qt.Key.Key_Escape:
            self.setPlainText(self._note)
        else:
            super().keyPressEvent(event)

    def focusOutEvent(self, event: QFocusEvent) -> None:
        """Whoever leaves the field has written what stands there; a menu or another window does not count."""
        super().focusOutEvent(event)
        if event.reason() not in (Qt.FocusReason.PopupFocusReason, Qt.FocusReason.ActiveWindowFocusReason):
            self._tell()

    def changeEvent(self, event: QEvent) -> None:
        """The font says how high a line is."""
        super().changeEvent(event)
        if event.type() == QEvent.Type.FontChange:
            self.updateGeometry()

    def _tell(self) -> None:
        if self._about is not None and self.is_changed:
            self._told, self._note = self._note, self.toPlainText()
            self.written.emit(*self._about, self._note)
