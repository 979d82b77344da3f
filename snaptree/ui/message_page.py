"""A page that says why there is nothing to see, and what to do about it."""

from __future__ import annotations

from PySide6.QtCore import QEvent, Qt, Signal
from PySide6.QtWidgets import QHBoxLayout, QLabel, QPushButton, QVBoxLayout, QWidget

from snaptree.model.errors import SnapTreeError
from snaptree.ui import icons
from snaptree.ui.labels import PlainLabel
from snaptree.ui.theme import colours_of

_ICON = 48
_WIDEST = 460


class MessagePage(QWidget):
    """A sign, a title, a text, and a button. Empty lists, loading, and failures look alike."""

    pressed = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._sign = "tree"
        self._picture = QLabel(self)
        self._picture.setAlignment(Qt.AlignmentFlag.AlignHCenter)
        self.title = PlainLabel("", self)
        self.title.setObjectName("heading")
        self.text = PlainLabel("", self, dim=True)
        self.details = PlainLabel("", self, dim=True)
        column = QVBoxLayout()
        column.setSpacing(10)
        column.addStretch(2)
        column.addWidget(self._picture)
        for label in (self.title, self.text, self.details):
            label.setAlignment(Qt.AlignmentFlag.AlignHCenter)
            column.addWidget(label)
        self.button = QPushButton(self)
        self.button.clicked.connect(self.pressed)
        column.addSpacing(4)
        column.addWidget(self.button, 0, Qt.AlignmentFlag.AlignHCenter)
        column.addStretch(3)
        middle = QWidget(self)
        middle.setMaximumWidth(_WIDEST)
        middle.setLayout(column)
        layout = QHBoxLayout(self)
        layout.addStretch(1)
        layout.addWidget(middle, 100)
        layout.addStretch(1)

    def say(self, sign: str, title: str, text: str = "", *, details: str = "", button: str = "") -> None:
        """Show this. `sign` names an icon."""
        self._sign = sign
        self.title.set_text(title)
        self.text.set_text(text)
        self.text.setVisible(bool(text))
        self.details.set_text(details)
        self.details.setVisible(bool(details))
        self.button.setText(button)
        self.button.setVisible(bool(button))
        self.setAccessibleName(title)
        self.setAccessibleDescription(text)
        self._dress()

    def say_error(self, error: SnapTreeError, button: str = "") -> None:
        """What failed and why, what to do about it, and the raw words of libvirt, unless they are the same."""
        raw = error.details.partition(": ")[2] if error.details.startswith("libvirt error") else error.details
        is_said = bool(raw) and raw.strip().rstrip(".") in error.summary
        self.say("error", error.summary, error.hint, details="" if is_said else error.details, button=button)

    def changeEvent(self, event: QEvent) -> None:
        """The sign has the theme's colours."""
        super().changeEvent(event)
        if event.type() == QEvent.Type.PaletteChange:
            self._dress()

    def _dress(self) -> None:
        colours = colours_of(self.palette())
        colour = {"error": colours.error, "warning": colours.warning}.get(self._sign, colours.faint)
        self._picture.setPixmap(icons.pixmap(self._sign, colour, _ICON, self.devicePixelRatioF()))
