"""A short list of machines that can be put into another order, by mouse or by keyboard."""

from __future__ import annotations

from typing import TYPE_CHECKING

from PySide6.QtCore import Qt, Signal
from PySide6.QtGui import QKeySequence, QShortcut
from PySide6.QtWidgets import QAbstractItemView, QListWidget, QListWidgetItem, QVBoxLayout, QWidget

from snaptree.plans.wording import plain
from snaptree.ui.labels import PlainLabel

if TYPE_CHECKING:
    from collections.abc import Mapping

_LISTED = 5
"""Machines that are seen at once."""


class MachineOrder(QWidget):
    """Machines in the order in which they have their turns."""

    changed = Signal()

    def __init__(self, text: str, machines: Mapping[str, str], parent: QWidget | None = None) -> None:
        """`text` is ours and says what the order is for. `machines` maps UUIDs to names, the first one first."""
        super().__init__(parent)
        self.list = QListWidget(self)
        self.list.setObjectName("framed")
        self.list.setDragDropMode(QAbstractItemView.DragDropMode.InternalMove)
        self.list.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.list.setTextElideMode(Qt.TextElideMode.ElideMiddle)
        for uuid, name in machines.items():
            item = QListWidgetItem(plain(name), self.list)
            item.setData(Qt.ItemDataRole.UserRole, uuid)
        self.list.setCurrentRow(0)
        self.list.ensurePolished()  # a row is as high as the style sheet makes it
        row = max(self.list.sizeHintForRow(0), 1)
        self.list.setFixedHeight(row * min(len(machines), _LISTED) + 2)
        self.list.model().rowsMoved.connect(self.changed)
        self._move_by("Alt+Up", -1)
        self._move_by("Alt+Down", 1)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(4)
        layout.addWidget(PlainLabel(text, self))
        layout.addWidget(self.list)
        layout.addWidget(PlainLabel("Drag one to another place, or move it by Alt+Up and Alt+Down.", self, dim=True))

    @property
    def uuids(self) -> tuple[str, ...]:
        """The machines, the first one first."""
        return tuple(self.list.item(row).data(Qt.ItemDataRole.UserRole) for row in range(self.list.count()))

    def move_current(self, by: int) -> None:
        """Move the chosen machine so many places down; up if that is negative."""
        row = self.list.currentRow()
        target = row + by
        if row < 0 or not 0 <= target < self.list.count():
            return
        self.list.insertItem(target, self.list.takeItem(row))
        self.list.setCurrentRow(target)
        self.changed.emit()

    def _move_by(self, keys: str, by: int) -> None:
        shortcut = QShortcut(QKeySequence(keys), self.list, context=Qt.ShortcutContext.WidgetShortcut)
        shortcut.activated.connect(lambda: self.move_current(by))
