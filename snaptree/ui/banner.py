"""One-line messages above the tree: what goes on with a host or machine, with one or two things to do about it."""

from __future__ import annotations

from PySide6.QtCore import QEvent, QSize, Qt, Signal
from PySide6.QtWidgets import QFrame, QHBoxLayout, QLabel, QProgressBar, QPushButton, QVBoxLayout, QWidget

from snaptree.ui import icons
from snaptree.ui.labels import PlainLabel
from snaptree.ui.text import tooltip
from snaptree.ui.theme import colours_of


class Banner(QFrame):
    """A coloured strip: a sign, a sentence, perhaps progress, perhaps one button or two."""

    pressed = Signal()
    other_pressed = Signal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._sign = "info"
        self._picture = QLabel(self)
        self._picture.setFixedSize(QSize(icons.SIZE, icons.SIZE))
        self._text = PlainLabel("", self)
        self._bar = QProgressBar(self)
        self._bar.setTextVisible(False)
        self._bar.setFixedWidth(160)
        self._button = QPushButton(self)
        self._button.clicked.connect(self.pressed)
        self._other = QPushButton(self)
        self._other.clicked.connect(self.other_pressed)
        layout = QHBoxLayout(self)
        layout.setContentsMargins(12, 6, 12, 6)
        layout.setSpacing(8)
        layout.addWidget(self._picture)
        layout.addWidget(self._text, 1)
        layout.addWidget(self._bar)
        layout.addWidget(self._button)
        layout.addWidget(self._other)
        self.hide()

    @property
    def text(self) -> str:
        """The sentence that is shown."""
        return self._text.text()

    def show_message(
        self,
        sign: str,
        text: str,
        *,
        details: str = "",
        button: str = "",
        other: str = "",
        progress: tuple[int, int] | None = None,
    ) -> None:
        """Show this; `sign` is `info`, `warning` or `error`, `progress` is (done, total)."""
        self._sign = sign
        self.setProperty("sign", sign)
        self.style().unpolish(self)
        self.style().polish(self)
        self._text.set_text(text)
        self._text.setToolTip(tooltip(details))
        self._button.setText(button)
        self._button.setVisible(bool(button))
        self._other.setText(other)
        self._other.setVisible(bool(other))
        self._bar.setVisible(progress is not None)
        if progress is not None:
            self._bar.setRange(0, progress[1])
            self._bar.setValue(progress[0])
        self._dress()
        self.setAccessibleName(f"{sign}: {text}")
        self.show()

    def changeEvent(self, event: QEvent) -> None:
        """The sign has the theme's colours."""
        super().changeEvent(event)
        if event.type() == QEvent.Type.PaletteChange:
            self._dress()

    def _dress(self) -> None:
        colours = colours_of(self.palette())
        colour = {"error": colours.error, "warning": colours.warning}.get(self._sign, colours.accent)
        name = "lock" if self._sign == "lock" else self._sign
        self._picture.setPixmap(icons.pixmap(name, colour, icons.SIZE, self.devicePixelRatioF()))


class Banners(QWidget):
    """Banners by topic, one below the other; a topic without a message takes no room."""

    pressed = Signal(str)
    """The button of this topic's banner."""
    other_pressed = Signal(str)
    """Its second one."""

    def __init__(self, topics: tuple[str, ...], parent: QWidget | None = None) -> None:
        super().__init__(parent)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(0)
        self._banners = {}
        for topic in topics:
            banner = Banner(self)
            banner.setObjectName(topic)
            banner.pressed.connect(self._pressed)
            banner.other_pressed.connect(self._other_pressed)
            layout.addWidget(banner)
            self._banners[topic] = banner
        self.setSizePolicy(self.sizePolicy().horizontalPolicy(), self.sizePolicy().verticalPolicy())
        layout.setAlignment(Qt.AlignmentFlag.AlignTop)

    def __getitem__(self, topic: str) -> Banner:
        return self._banners[topic]

    def _pressed(self) -> None:
        banner = self.sender()
        if isinstance(banner, Banner):
            self.pressed.emit(banner.objectName())

    def _other_pressed(self) -> None:
        banner = self.sender()
        if isinstance(banner, Banner):
            self.other_pressed.emit(banner.objectName())
