"""Labels that show text of others: never as markup, and elided instead of cut off."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING

from PySide6.QtCore import QPointF, QSize, Qt
from PySide6.QtGui import QGuiApplication, QPainter, QPalette, QTextLayout, QTextOption
from PySide6.QtWidgets import QLabel, QMenu, QSizePolicy, QVBoxLayout, QWidget

from snaptree.ui.text import line, lines, tooltip

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PySide6.QtGui import QContextMenuEvent, QPaintEvent, QResizeEvent


_LONG_LINE = 60
"""Letters: longer lines are wrapped where nothing else says how wide a label is."""


class PlainLabel(QLabel):
    """A label that wraps, within words too if it must, and never takes its text for markup."""

    def __init__(self, text: str = "", parent: QWidget | None = None, *, dim: bool = False) -> None:
        super().__init__(parent)
        self.setTextFormat(Qt.TextFormat.PlainText)
        self.setWordWrap(True)
        if dim:
            self.setForegroundRole(QPalette.ColorRole.PlaceholderText)
        self.set_text(text)

    def set_text(self, text: str) -> None:
        """Show text that may be anybody's."""
        shown = lines(text)
        if shown != self.text():
            self.setText(shown)

    def heightForWidth(self, width: int) -> int:
        """Room for all lines at this width."""
        margins = self.contentsMargins()
        layout = self._lines(width - margins.left() - margins.right())
        return ceil(layout.boundingRect().height()) + margins.top() + margins.bottom()

    def sizeHint(self) -> QSize:
        """As wide as the longest line, within reason."""
        metrics, margins = self.fontMetrics(), self.contentsMargins()
        longest = max((metrics.horizontalAdvance(line) for line in self.text().split("\n")), default=0)
        width = min(longest + 2, metrics.averageCharWidth() * _LONG_LINE) + margins.left() + margins.right()
        return QSize(width, self.heightForWidth(width))

    def minimumSizeHint(self) -> QSize:
        """A few letters: everything can be wrapped."""
        width = min(self.sizeHint().width(), self.fontMetrics().averageCharWidth() * 10)
        return QSize(width, self.fontMetrics().height())

    def paintEvent(self, _event: QPaintEvent) -> None:
        """Draw the text; QLabel itself would cut off long words."""
        inner = self.contentsRect()
        layout = self._lines(inner.width())
        spare = inner.height() - layout.boundingRect().height()
        down = spare / 2 if self.alignment() & Qt.AlignmentFlag.AlignVCenter and spare > 0 else 0.0
        painter = QPainter(self)
        painter.setPen(self.palette().color(self.foregroundRole()))
        layout.draw(painter, QPointF(inner.left(), inner.top() + down))
        painter.end()

    def _lines(self, width: int) -> QTextLayout:
        """The text broken into lines: between words where that is possible, but a long path stays in sight."""
        option = QTextOption(self.alignment() & Qt.AlignmentFlag.AlignHorizontal_Mask)
        option.setWrapMode(QTextOption.WrapMode.WrapAtWordBoundaryOrAnywhere)
        layout = QTextLayout(self.text().replace("\n", "\N{LINE SEPARATOR}"), self.font())
        layout.setTextOption(option)
        layout.beginLayout()
        height = 0.0
        while (line := layout.createLine()).isValid():
            line.setLineWidth(max(1, width))
            line.setPosition(QPointF(0, height))
            height += line.height()
        layout.endLayout()
        return layout

    def contextMenuEvent(self, event: QContextMenuEvent) -> None:
        """Offer to copy the text."""
        menu = QMenu(self)
        menu.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        menu.addAction("&Copy").triggered.connect(self._copy)
        menu.popup(event.globalPos())

    def _copy(self) -> None:
        QGuiApplication.clipboard().setText(self.text())


class PlainLines(QWidget):
    """Lines of text below each other, with room between those that are not one."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._lines: list[PlainLabel] = []
        self._layout = QVBoxLayout(self)
        self._layout.setContentsMargins(0, 0, 0, 0)
        self._layout.setSpacing(4)

    @property
    def lines(self) -> list[str]:
        """What is shown."""
        return [line.text() for line in self._lines if not line.isHidden()]

    def show_lines(self, texts: Sequence[str]) -> None:
        """Show these; labels are used again, so that nothing flickers."""
        while len(self._lines) < len(texts):
            self._lines.append(PlainLabel("", self))
            self._layout.addWidget(self._lines[-1])
        for number, label in enumerate(self._lines):
            label.setVisible(number < len(texts))
            label.set_text(texts[number] if number < len(texts) else "")
        self.setVisible(bool(texts))


class SectionTitle(QLabel):
    """A quiet heading of ours inside a panel or a dialog."""

    def __init__(self, text: str, parent: QWidget | None = None) -> None:
        super().__init__(text, parent)
        self.setTextFormat(Qt.TextFormat.PlainText)
        self.setObjectName("section")
        self.setIndent(0)


class ElidedLabel(QWidget):
    """One line that is shortened in the middle where it has no room; then its tooltip has it all."""

    def __init__(self, text: str = "", parent: QWidget | None = None, *, dim: bool = False) -> None:
        super().__init__(parent)
        self._text = ""
        self._tooltip = ""
        self._role = QPalette.ColorRole.PlaceholderText if dim else QPalette.ColorRole.WindowText
        self.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Fixed)
        self.set_text(text)

    @property
    def text(self) -> str:
        """The text, whole."""
        return self._text

    def set_text(self, text: str, explanation: str = "") -> None:
        """Show text that may be anybody's, with an explanation for its tooltip."""
        self._text = line(text)
        self._tooltip = explanation
        self.setAccessibleName(self._text)
        self._set_tooltip()
        self.updateGeometry()
        self.update()

    def sizeHint(self) -> QSize:
        """Room for the whole text."""
        metrics = self.fontMetrics()
        return QSize(metrics.horizontalAdvance(self._text) + 2, metrics.height())

    def minimumSizeHint(self) -> QSize:
        """Room for some letters: the rest can be elided."""
        metrics = self.fontMetrics()
        return QSize(min(metrics.averageCharWidth() * 8, self.sizeHint().width()), metrics.height())

    def resizeEvent(self, event: QResizeEvent) -> None:
        """Whether a tooltip must show the whole text depends on the width."""
        super().resizeEvent(event)
        self._set_tooltip()

    def paintEvent(self, _event: QPaintEvent) -> None:
        """Draw the text or what fits of it."""
        painter = QPainter(self)
        painter.setPen(self.palette().color(self._role))
        shown = self.fontMetrics().elidedText(self._text, Qt.TextElideMode.ElideMiddle, self.width())
        painter.drawText(self.rect(), Qt.AlignmentFlag.AlignVCenter | Qt.TextFlag.TextSingleLine, shown)
        painter.end()

    def _set_tooltip(self) -> None:
        is_elided = self.fontMetrics().horizontalAdvance(self._text) > self.width()
        self.setToolTip(tooltip("\n".join(part for part in (self._text if is_elided else "", self._tooltip) if part)))
