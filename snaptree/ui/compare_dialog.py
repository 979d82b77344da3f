"""Two moments of a machine beside each other: the settings that differ in words, and the XML behind them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from PySide6.QtCore import QEvent, Qt
from PySide6.QtGui import QColor, QFontDatabase, QGuiApplication, QSyntaxHighlighter, QTextCharFormat
from PySide6.QtWidgets import (
    QAbstractItemView,
    QDialog,
    QDialogButtonBox,
    QHeaderView,
    QPlainTextEdit,
    QTableWidget,
    QTableWidgetItem,
    QTabWidget,
    QVBoxLayout,
    QWidget,
)

from snaptree import words
from snaptree.model.errors import SnapTreeError
from snaptree.plans.wording import plain
from snaptree.ui.labels import PlainLabel
from snaptree.ui.text import in_sentence, lines, tooltip, window_title
from snaptree.ui.theme import colours_of

if TYPE_CHECKING:
    from PySide6.QtGui import QTextDocument

    from snaptree.model.settings import Comparison
    from snaptree.ui.changed_settings import Moments
    from snaptree.ui.estate import HostEntry


class CompareDialog(QDialog):
    """Appears at once; what differs follows. Changes nothing, and deletes itself when closed."""

    def __init__(self, host: HostEntry, name: str, moments: Moments, parent: QWidget | None = None) -> None:
        """`name` is the machine's."""
        super().__init__(parent)
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self.setWindowTitle(window_title(f"Settings of {plain(name)}"))
        self._is_closed = False
        self._as_text = ""
        before, after = (in_sentence(words.moment_named(moment)) for moment in (moments.before, moments.after))
        heading = PlainLabel(f"Settings of {in_sentence(name)}: {before} and {after}", self)
        heading.setObjectName("heading")
        self.summary = PlainLabel("Reading…", self, dim=True)
        self.table = _Table([plain(words.moment_named(each)) for each in (moments.before, moments.after)], self)
        self.xml = _DifferenceView(self)
        self.tabs = QTabWidget(self)
        self.tabs.setDocumentMode(True)
        self.tabs.addTab(self.table, "&Settings")
        self.tabs.addTab(self.xml, "&XML")
        self.tabs.setEnabled(False)
        buttons = QDialogButtonBox(QDialogButtonBox.StandardButton.Close, self)
        self.copy_button = buttons.addButton("C&opy", QDialogButtonBox.ButtonRole.ActionRole)
        self.copy_button.setEnabled(False)
        self.copy_button.setAutoDefault(False)
        buttons.button(QDialogButtonBox.StandardButton.Close).setDefault(True)
        self.copy_button.clicked.connect(self._copy)
        buttons.rejected.connect(self.reject)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(16, 16, 16, 12)
        layout.setSpacing(12)
        layout.addWidget(heading)
        layout.addWidget(self.summary)
        layout.addWidget(self.tabs, 1)
        layout.addWidget(buttons)
        self.resize(760, 520)
        host.backend.compare(moments.machine.uuid, moments.before, moments.after, self._show)

    def done(self, result: int) -> None:
        """However it closes: an answer that comes later has nobody to show it to."""
        self._is_closed = True
        super().done(result)

    def _show(self, result: Comparison | SnapTreeError) -> None:
        if self._is_closed:
            return
        if isinstance(result, SnapTreeError):
            self.summary.set_text(f"{result}\n{result.details}".strip())
            return
        number = len(result.changes)
        verb = "differs" if number == 1 else "differ"
        self.summary.set_text(f"{words.count(number, 'setting')} {verb}." if number else "The settings are the same.")
        self.table.show_comparison(result)
        self.xml.setPlainText(lines("\n".join(result.xml)))
        self.tabs.setEnabled(bool(number))
        self.copy_button.setEnabled(bool(number))
        self._as_text = "\n".join(map(words.setting, result.changes))

    def _copy(self) -> None:
        is_xml = self.tabs.currentWidget() is self.xml
        QGuiApplication.clipboard().setText(self.xml.toPlainText() if is_xml else self._as_text)


class _Table(QTableWidget):
    """A row for each setting: what it is, and its two values."""

    def __init__(self, moments: list[str], parent: QWidget) -> None:
        super().__init__(0, 3, parent)
        self.setHorizontalHeaderLabels(["Setting", *moments])
        self.setAccessibleName("Settings that differ")
        self.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.setVerticalScrollMode(QAbstractItemView.ScrollMode.ScrollPerPixel)
        self.setTabKeyNavigation(False)
        self.setShowGrid(False)
        self.setWordWrap(True)
        self.verticalHeader().hide()
        header = self.horizontalHeader()
        header.setHighlightSections(False)
        header.setDefaultAlignment(Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter)
        header.setSectionResizeMode(QHeaderView.ResizeMode.Stretch)

    def show_comparison(self, comparison: Comparison) -> None:
        """Show what differs."""
        self.setRowCount(len(comparison.changes))
        for row, change in enumerate(comparison.changes):
            cells = (
                (plain(change.what), change.what),
                (words.setting_value(change.before), change.before),
                (words.setting_value(change.after), change.after),
            )
            for column, (text, whole) in enumerate(cells):
                item = QTableWidgetItem(text)
                item.setToolTip(tooltip(whole or ""))
                self.setItem(row, column, item)
        self.resizeRowsToContents()


class _DifferenceView(QPlainTextEdit):
    """A difference as `diff -u` writes it: each line says by its first letter what it is, and by its colour too."""

    def __init__(self, parent: QWidget) -> None:
        super().__init__(parent)
        self.setReadOnly(True)
        self.setAccessibleName("Difference of the XML")
        self.setLineWrapMode(QPlainTextEdit.LineWrapMode.NoWrap)
        self.setFont(QFontDatabase.systemFont(QFontDatabase.SystemFont.FixedFont))
        self._painter = _DifferenceColours(self.document(), self)

    def changeEvent(self, event: QEvent) -> None:
        """The colours are the theme's."""
        super().changeEvent(event)
        if event.type() == QEvent.Type.PaletteChange:
            self._painter.rehighlight()


class _DifferenceColours(QSyntaxHighlighter):
    def __init__(self, document: QTextDocument, view: QWidget) -> None:
        super().__init__(document)
        self._view = view

    def highlightBlock(self, text: str) -> None:
        """Colour one line."""
        colours = colours_of(self._view.palette())
        if text.startswith(("--- ", "+++ ", "@@ ")):
            self._colour(text, colours.dim)
        elif text.startswith("+"):
            self._colour(text, colours.good)
        elif text.startswith("-"):
            self._colour(text, colours.error)

    def _colour(self, text: str, colour: QColor) -> None:
        letters = QTextCharFormat()
        letters.setForeground(colour)
        self.setFormat(0, len(text), letters)
