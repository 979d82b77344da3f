"""Which disks a new snapshot holds, and where its files go."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PySide6.QtCore import Qt, Signal
from PySide6.QtWidgets import (
    QCheckBox,
    QFileDialog,
    QFrame,
    QGridLayout,
    QLabel,
    QLineEdit,
    QScrollArea,
    QSizePolicy,
    QToolButton,
    QVBoxLayout,
    QWidget,
)

from snaptree.ui.labels import ElidedLabel, PlainLabel, SectionTitle
from snaptree.ui.text import menu_text

if TYPE_CHECKING:
    from collections.abc import Sequence

_ROWS = 4
"""Disks in sight; more are scrolled to."""


@dataclass(frozen=True, slots=True)
class DiskRow:
    """A disk that may be left out. `written` says in words what its active layer takes."""

    target: str
    path: str
    written: str


class DiskTicks(QWidget):
    """A tick for each disk. Internal snapshots hold all of them, whatever is ticked."""

    changed = Signal()

    def __init__(self, parent: QWidget) -> None:
        super().__init__(parent)
        self.ticks: dict[str, QCheckBox] = {}
        self._area = QScrollArea(self)
        self._area.setWidgetResizable(True)
        self._area.setFrameShape(QFrame.Shape.NoFrame)
        self._area.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self._area.setAccessibleName("Disks")
        self._hint = PlainLabel("Inside the images, every disk is held.", self, dim=True)
        self._hint.hide()
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(4)
        layout.addWidget(SectionTitle("Disks", self))
        layout.addWidget(self._area)
        layout.addWidget(self._hint)

    def show_disks(self, rows: Sequence[DiskRow]) -> None:
        """Show the disks, all ticked."""
        self.ticks.clear()
        page = QWidget()
        grid = QGridLayout(page)
        grid.setContentsMargins(0, 0, 0, 0)
        grid.setHorizontalSpacing(10)
        grid.setVerticalSpacing(4)
        grid.setColumnStretch(1, 3)
        grid.setColumnStretch(3, 2)
        for number, row in enumerate(rows):
            tick = QCheckBox(menu_text(row.target), page)
            tick.setChecked(True)
            tick.setAccessibleDescription(f"{row.path}, {row.written} written")
            tick.toggled.connect(self.changed)
            file, directory = ElidedLabel("", page), ElidedLabel("", page, dim=True)
            file.set_text(posixpath.basename(row.path), row.path)
            directory.set_text(posixpath.dirname(row.path), "Its layer in use is in this directory.")
            size = ElidedLabel(row.written, page)
            size.set_text(row.written, "What its layer in use takes.")
            for column, widget in enumerate((tick, file, size, directory)):
                grid.addWidget(widget, number, column)
            self.ticks[row.target] = tick
        self._area.setWidget(page)  # deletes the page before
        height = page.sizeHint().height() * min(len(rows), _ROWS) // max(1, len(rows))
        self._area.setFixedHeight(height + 2)

    @property
    def left_out(self) -> tuple[str, ...]:
        """Disks that are not ticked."""
        return tuple(target for target, tick in self.ticks.items() if not tick.isChecked())

    def set_holds_all(self, holds_all: bool) -> None:
        """Whether the chosen kind holds every disk."""
        self._area.setEnabled(not holds_all)
        self._hint.setVisible(holds_all)


class Places(QWidget):
    """Directories for new files, put away until they are asked for."""

    changed = Signal()

    def __init__(self, parent: QWidget, *, is_local: bool) -> None:
        """`is_local`: the host's directories are this computer's, and can be chosen from."""
        super().__init__(parent)
        self._is_local = is_local
        self.toggle = QToolButton(self)
        self.toggle.setText("&Where new files go")
        self.toggle.setObjectName("fold")
        self.toggle.setCheckable(True)
        self.toggle.setToolButtonStyle(Qt.ToolButtonStyle.ToolButtonTextBesideIcon)
        self.toggle.toggled.connect(self._unfold)
        self._body = QWidget(self)
        self._body.setSizePolicy(QSizePolicy.Policy.Preferred, QSizePolicy.Policy.Fixed)
        grid = QGridLayout(self._body)
        grid.setContentsMargins(0, 0, 0, 0)
        grid.setSpacing(6)
        self.layers = self._field(grid, 0, "New l&ayers", "beside the disks' files")
        self.memory = self._field(grid, 1, "Saved m&emory", "beside the first new layer")
        if not is_local:
            hint = "A storage pool's directory can be looked at from here, others can't."
            grid.addWidget(PlainLabel(hint, self._body, dim=True), 2, 0, 1, 3)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(4)
        layout.addWidget(self.toggle)
        layout.addWidget(self._body)
        self._unfold(False)

    def _field(self, grid: QGridLayout, row: int, title: str, default: str) -> QLineEdit:
        label = QLabel(title, self._body)
        field = QLineEdit(self._body)
        field.setPlaceholderText(default)
        field.setAccessibleName(title.replace("&", ""))
        field.textChanged.connect(self.changed)
        label.setBuddy(field)
        grid.addWidget(label, row, 0)
        grid.addWidget(field, row, 1)
        if self._is_local:
            choose = QToolButton(self._body)
            choose.setObjectName("framed")
            choose.setText("…")
            choose.setAccessibleName(f"Choose a directory: {field.accessibleName()}")
            choose.clicked.connect(lambda: self._choose(field))
            grid.addWidget(choose, row, 2)
        return field

    def set_fields(self, *, layers: bool, memory: bool) -> None:
        """Which files the chosen kind makes at all."""
        self.layers.setEnabled(layers)
        self.memory.setEnabled(memory)

    def _unfold(self, is_open: bool) -> None:
        self.toggle.setArrowType(Qt.ArrowType.DownArrow if is_open else Qt.ArrowType.RightArrow)
        self._body.setVisible(is_open)

    def _choose(self, field: QLineEdit) -> None:
        dialog = QFileDialog(self, "Choose a directory", field.text())
        dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        dialog.setFileMode(QFileDialog.FileMode.Directory)
        dialog.setOption(QFileDialog.Option.ShowDirsOnly)
        dialog.fileSelected.connect(field.setText)
        dialog.open()
